"""Sums of dense ranks, and Pareto fronts."""

import math

import pytest

from asvit_plugin.search import rank_sum
from asvit_plugin.search.ranking import unbeaten


def test_dense_ranks_add_up_and_equal_values_share_one() -> None:
    columns = {"ntk": [2.0, 1.0, 2.0, 5.0], "length": [0.1, 0.2, 0.4, 0.4]}
    assert rank_sum(columns, {"ntk": False, "length": True}) == [2 + 3, 1 + 2, 2 + 1, 3 + 1]


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("invalid", [math.nan, math.inf, -math.inf])
def test_an_invalid_value_ranks_behind_everything(invalid: float, maximize: bool) -> None:
    ranks = rank_sum({"a": [invalid, 1.0, 2.0]}, {"a": maximize})
    assert ranks[0] > max(ranks[1:])


def test_the_best_by_one_score_is_no_winner_with_a_nan_in_another() -> None:
    columns = {"a": [math.nan, 1.0, 1.0], "b": [9.0, 1.0, 2.0], "c": [9.0, 2.0, 1.0]}
    ranks = rank_sum(columns, dict.fromkeys(columns, True))
    assert ranks[0] == max(ranks) > sorted(ranks)[1]


def test_no_candidates_have_no_ranks() -> None:
    assert rank_sum({"a": []}, {"a": True}) == []


@pytest.mark.parametrize(
    "columns, maximize, message",
    [
        ({}, {}, "columns is empty"),
        ({"a": [1.0], "b": []}, {"a": True, "b": True}, "lengths {'a': 1, 'b': 0}"),
        ({"a": [1.0]}, {}, "maximize is without 'a'"),
    ],
)
def test_refusals(columns: dict, maximize: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_sum(columns, maximize)


def test_unbeaten_are_those_that_none_matches_everywhere_and_beats_somewhere() -> None:
    columns = {"cost": [2.0, 1.0, 3.0, 4.0, 1.0, 2.0, 0.5], "score": [5.0, 4.0, 5.0, 6.0, 3.0, 5.0, float("nan")]}
    assert unbeaten(columns, {"cost": False, "score": True}) == [0, 1, 3, 5]
    assert unbeaten(columns, {"cost": False, "score": False}) == [4]
