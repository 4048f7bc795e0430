"""The rule of growth: the authors' widths and candidates, sums of ranks, and what settles a tie."""

import math

import pytest

from asvit_plugin.search.growth_rule import GrowthRule, pick, widths

RULE = GrowthRule(("L1", "L2"), "W", {"L1": 1, "L2": 1, "W": 8}, {"genotype": "{K},{L1}|{L2}|{W}"})


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (8, [8, 9, 10]),
        (9, [9, 10, 11]),
        (11, [12, 13]),
        (18, [19, 20, 21, 22]),
        (24, [25, 26, 28, 29]),
        (30, [32, 33, 34, 36]),
    ],
)
def test_widths(width: int, expected: list[int]) -> None:
    assert widths(width) == expected


def test_candidates_add_a_block_to_one_stage_and_widen() -> None:
    assert RULE.candidates({"L1": 1, "L2": 3, "W": 11}) == [
        {"L1": 2, "L2": 3, "W": 12},
        {"L1": 2, "L2": 3, "W": 13},
        {"L1": 1, "L2": 4, "W": 12},
        {"L1": 1, "L2": 4, "W": 13},
    ]


def test_the_net_is_four_times_as_wide_as_the_one_that_is_measured() -> None:
    size = {"L1": 2, "L2": 3, "W": 12}
    assert RULE.arguments({"K": 8}, size) == {"genotype": "8,2|3|48"}
    assert RULE.arguments({"K": 8}, size, thin=True) == {"genotype": "8,2|3|12"}


DIRECTIONS = {"ntk": False, "length": True}


@pytest.mark.parametrize(
    ("ntk", "length", "expected"),
    [
        ([3.0, 1.0, 2.0], [5.0, 9.0, 1.0], 1),
        ([1.0, 2.0, 3.0], [1.0, 9.0, 5.0], 1),
        ([math.inf, 2.0, 3.0], [9.0, 5.0, 1.0], 1),  # one without a condition number is last in it
        ([1.0, 1.1, 5.0], [2.0, 9.0, 1.0], 1),  # equal sums: lengths range wider, and more is better
        ([1.0, 9.0, 9.0], [5.0, 5.1, 5.1], 0),  # equal sums: condition numbers range wider
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], 0),  # equal values share a rank
    ],
)
def test_pick(ntk: list[float], length: list[float], expected: int) -> None:
    assert pick({"ntk": ntk, "length": length}, DIRECTIONS) == expected


def test_the_best_of_more_than_two_is_found() -> None:
    assert pick({"ntk": [1.0, 2.0, 3.0], "length": [1.0, 50.0, 100.0]}, DIRECTIONS) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(start={"L1": 1, "W": 8}), r"start of growth has \['L1', 'W'\]; it must have \['L1', 'L2', 'W'\]"),
        (dict(start={"L1": 1, "L2": 0, "W": 8}), "L2 of growth is 0; it must be a whole number of at least 1"),
        (dict(width_factor=1.5), "width_factor of growth is 1.5; it must be a whole number of at least 1"),
        (dict(width="L1"), r"growth has depths \['L1', 'L2'\] and width 'L1'; they must all differ"),
    ],
)
def test_refuses(change: dict, message: str) -> None:
    fields = dict(depths=("L1", "L2"), width="W", start={"L1": 1, "L2": 1, "W": 8})
    with pytest.raises(ValueError, match=message):
        GrowthRule(**{**fields, **change})
