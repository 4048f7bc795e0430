"""A score: mean and spread over repeats, and what an invalid repeat does to them."""

import math

import pytest

from asvit_plugin.search import Score


def test_mean_and_spread() -> None:
    assert Score((1.0, 3.0)).value == 2.0
    assert Score((1.0, 3.0)).spread == pytest.approx(math.sqrt(2))
    assert (Score((5.0,)).value, Score((5.0,)).spread) == (5.0, 0.0)


@pytest.mark.parametrize("invalid", [math.nan, math.inf, -math.inf])
def test_one_invalid_repeat_spoils_the_score(invalid: float) -> None:
    assert math.isnan(Score((1.0, invalid)).value)
    assert math.isnan(Score((1.0, invalid)).spread)


def test_no_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="values is ()"):
        Score(())
