"""Candidates in order by several scores at once, and those that no other one beats."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def rank_sum(columns: Mapping[str, Sequence[float]], maximize: Mapping[str, bool]) -> list[int]:
    """Sum of the dense ranks of every candidate over some scores; lower is better (As-ViT's way to combine its two).

    The best value of a score has rank 1, the next one 2; equal values share a rank. NaN and infinities rank behind
    every number, and so far behind that a candidate with one comes after all candidates without, whatever its other
    scores are.

    Args:
        columns: For each score, its value of every candidate.
        maximize: For each score, whether more is better.

    Returns:
        One sum per candidate.

    Raises:
        ValueError: for no scores, columns of different lengths, or a score without a direction.
    """
    if not columns:
        raise ValueError("columns is empty; a ranking needs at least one score")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns have lengths {lengths}; every score needs a value for every candidate")
    undirected = [name for name in columns if name not in maximize]
    if undirected:
        raise ValueError(f"maximize is without {undirected[0]!r}; it must say for every score whether more is better")
    # More than any candidate without a NaN can add up to.
    invalid_rank = len(columns) * max(lengths.values()) + 1
    ranks = [_dense_ranks(values, maximize[name], invalid_rank) for name, values in columns.items()]
    return [sum(candidate) for candidate in zip(*ranks)]


def unbeaten(columns: Mapping[str, Sequence[float]], maximize: Mapping[str, bool]) -> list[int]:
    """The Pareto front: candidates than which no other one is as good in every score and better in one.

    Args:
        columns: For each score, its value of every candidate; who has one that is not finite has no part.
        maximize: For each score, whether more is better.

    Returns:
        Indices of the candidates, ascending; equal ones are all there.
    """
    costs = np.array([[-each if maximize[name] else each for each in values] for name, values in columns.items()]).T
    finite = [i for i, own in enumerate(costs) if np.isfinite(own).all()]
    others = costs[finite]
    return [i for i in finite if not ((others <= costs[i]).all(axis=1) & (others < costs[i]).any(axis=1)).any()]


def _dense_ranks(values: Sequence[float], maximize: bool, invalid_rank: int) -> list[int]:
    ordered = sorted({value for value in values if math.isfinite(value)}, reverse=maximize)
    rank_of = {value: rank for rank, value in enumerate(ordered, start=1)}
    return [rank_of[value] if math.isfinite(value) else invalid_rank for value in values]
