"""The file of attention timings, and the number of tokens that it says linear attention pays from."""

import itertools
import math
import random
from pathlib import Path

import pytest

from asvit_plugin.costs import AttentionTiming, break_even_tokens, read_attention_timings, write_attention_timings


def timing(tokens: int, ratio: float, num_heads: int = 2, head_dim: int = 8, **more: float) -> AttentionTiming:
    """Softmax takes ``ratio`` times as long as linear."""
    return AttentionTiming(num_heads, head_dim, tokens, ratio, 1.0, **more)


def test_a_file_holds_every_device_runtime_dtype_and_shape(tmp_path: Path) -> None:
    table = tmp_path / "cache" / "attention.json"
    kinds = [("eager", "float32"), ("compile", "float32"), ("eager", "bfloat16")]
    for number, (runtime, dtype) in enumerate(kinds, 1):
        write_attention_timings([timing(16, number)], "cpu", runtime, table, dtype)
    for number, (runtime, dtype) in enumerate(kinds, 1):
        assert read_attention_timings("cpu", runtime, table, dtype) == [timing(16, number)]
    write_attention_timings([timing(16, 5), timing(16, 6, batch_size=4), timing(8, 7)], "cpu", "eager", table)
    assert read_attention_timings("cpu", "eager", table) == [timing(8, 7), timing(16, 5), timing(16, 6, batch_size=4)]
    assert read_attention_timings("meta", "eager", table) == []


def test_no_table_is_no_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read_attention_timings("cpu") == []
    with pytest.raises(ValueError, match=f"cannot be read from {tmp_path / 'none.json'}"):
        read_attention_timings("cpu", path=tmp_path / "none.json")
    write_attention_timings([timing(3, 1)], "cpu", "eager", tmp_path / "broken.json")
    (tmp_path / "broken.json").write_text((tmp_path / "broken.json").read_text().replace("softmax", "soft"))
    with pytest.raises(ValueError, match="cannot be read from .*broken.json"):
        read_attention_timings("cpu", path=tmp_path / "broken.json")


@pytest.mark.parametrize(
    "ratios, expected",
    [
        ({}, 64),
        ({16: 2, 64: 3}, 16),
        ({16: 2, 64: 0.5, 256: 2}, 256),
        ({16: 0.5}, math.inf),
        ({16: 1, 64: 1.1}, 64),
        ({64: 3, 16: 0.9}, 64),
    ],
)
def test_break_even(ratios: dict[int, float], expected: float) -> None:
    timings = [timing(tokens, ratio) for tokens, ratio in ratios.items()]
    assert break_even_tokens(8, [*timings, timing(8, 9, head_dim=64)]) == expected


def test_a_curve_that_ends_slower_goes_on_as_the_others() -> None:
    others = [timing(tokens, 2.0) for tokens in (197, 577)]
    assert break_even_tokens(8, [*others, timing(50, 0.9, threads=2)]) == 197
    assert break_even_tokens(8, [*others, timing(400, 0.9, threads=2)]) == 577


def test_a_ratio_within_its_spread_does_not_pay() -> None:
    timings = [timing(16, 1.2, ratio_low=0.95), timing(64, 1.2, ratio_low=1.05)]
    assert break_even_tokens(8, timings) == 64


def test_heads_batches_and_threads_have_curves_of_their_own() -> None:
    """At 100 tokens 2 heads paid, and what lies between 3 heads' timings says that they do not."""
    two, three = [timing(100, 1.5)], [timing(50, 0.2, num_heads=3), timing(200, 1.1, num_heads=3)]
    assert break_even_tokens(8, [*two, *three], num_heads=2) == 100
    assert break_even_tokens(8, [*two, *three], num_heads=3) == 200
    assert break_even_tokens(8, [*two, *three], num_heads=4) == 200
    assert break_even_tokens(8, [*two, *three]) == 200
    assert break_even_tokens(8, [*two, timing(50, 0.2, batch_size=4), timing(300, 2.0, batch_size=4)]) == 300
    assert break_even_tokens(8, [*two, timing(100, 0.9, threads=8)]) == math.inf
    assert break_even_tokens(8, [*two, timing(900, 9.0, batch_size=4)]) == 100  # which says nothing of fewer tokens


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_taken_where_a_timing_or_a_line_between_two_says_slower(seed: int) -> None:
    rng = random.Random(seed)
    timings = [
        timing(tokens, rng.choice([0.5, 0.9, 1.1, 2.0]), num_heads, batch_size=batch)
        for num_heads in (1, 2)
        for batch in (1, 4)
        for tokens in rng.sample(range(10, 60), 4)
    ]
    needed = break_even_tokens(8, timings)
    curves = [
        sorted((each.tokens, each.softmax) for each in timings if each.curve == curve) for curve in curves_of(timings)
    ]
    for tokens in range(10, 60):
        between = [ratio for curve in curves for ratio in [interpolate(curve, tokens)] if ratio is not None]
        if tokens >= needed:
            assert all(ratio > 1 for ratio in between)
    if needed < math.inf:
        assert any(each.tokens == needed for each in timings)


def curves_of(timings: list[AttentionTiming]) -> set[tuple[int, ...]]:
    return {each.curve for each in timings}


def interpolate(curve: list[tuple[int, float]], tokens: int) -> float | None:
    """The ratio on the lines between a curve's points; None outside of them."""
    for (left, low), (right, high) in itertools.pairwise(curve):
        if left <= tokens <= right:
            return low + (high - low) * (tokens - left) / (right - left)
    return None
