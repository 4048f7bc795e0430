"""tools/measure_attention.py writes what castle(blocks="auto") reads, and what the docs show."""

import json
from functools import partial
from pathlib import Path

import measure_attention
import pytest
import timm
import torch

import asvit_plugin
from asvit_plugin.costs import AttentionTiming, copy_probe, read_attention_timings, write_attention_timings
from asvit_plugin.layers.castling import castled_attention

SMALL = ["--num-heads", "2", "--head-dim", "8", "--tokens", "40", "12", "--batch-size", "2"]
QUICK = ["--device", "cpu", "--threads", "1", "--seconds", "0.02", "--rounds", "2"]


@pytest.fixture(autouse=True)
def _small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure_attention, "copy_probe", partial(copy_probe, copied=2**20))


def test_measures_and_keeps_earlier_measurements(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = tmp_path / "cache" / "attention.json"
    earlier = [AttentionTiming(2, 8, tokens, 1.0, 2.0, batch_size=2) for tokens in (10, 12)]
    write_attention_timings(earlier, "cpu", "eager", table)
    write_attention_timings(earlier, "cpu", "eager", table, "bfloat16")
    files = ["--table", str(table), "--json", str(tmp_path / "figures" / "figures.json")]
    measure_attention.main([*SMALL, *QUICK, *files])
    timings = {each.tokens: each for each in read_attention_timings("cpu", "eager", table)}
    assert set(timings) == {10, 12, 40}
    assert timings[10] == earlier[0]
    assert 0 < timings[12].softmax < 1.0
    assert read_attention_timings("cpu", "eager", table, "bfloat16") == earlier
    figures = json.loads((tmp_path / "figures" / "figures.json").read_text())
    assert [row["tokens"] for row in figures["rows"]] == [12, 40]
    row = figures["rows"][1]
    assert (
        row["bytes"] == 4 * 4 * 2 * 40 * 16
    )  # q, k, v and the output, in single precision, of 2 times 40 tokens of 16
    assert row["sdpa"] == "flash_attention"
    assert timings[40].softmax == row["block"]["softmax"]
    assert timings[40].ratio_low == row["block"]["ratio"][1] <= row["block"]["ratio"][0] <= row["block"]["ratio"][2]
    assert capsys.readouterr().out.count("\n| 40 | 2 | eager | ") == 1


def test_runtimes_are_timed_in_the_same_turns(tmp_path: Path) -> None:
    table, figures = tmp_path / "attention.json", tmp_path / "figures.json"
    files = ["--table", str(table), "--json", str(figures)]
    measure_attention.main([*SMALL, *QUICK, "--tokens", "12", "--runtime", "eager", "compile", "eager", *files])
    eager, compiled = json.loads(figures.read_text())["rows"]
    assert (eager["runtime"], compiled["runtime"]) == ("eager", "compile")
    assert eager["bandwidth"] == compiled["bandwidth"]
    for row in (eager, compiled):
        (kept,) = read_attention_timings("cpu", row["runtime"], table)
        assert (kept.softmax, kept.linear) == (row["block"]["softmax"], row["block"]["linear"])


def test_the_core_is_the_block_between_its_projections() -> None:
    args = measure_attention.make_parser().parse_args(SMALL)
    for mode in measure_attention.MODES:
        block = measure_attention.block(args, mode).eval()
        x = torch.randn(2, 12, 16)
        assert torch.equal(block.proj(measure_attention.Core(block)(block.qkv(x))), block(x))


def test_auto_castles_by_the_table_of_the_models_heads_and_dtype(tmp_path: Path) -> None:
    """The heads of this scaled_vit are 2 of 8 channels; its 17 tokens pay by the measurement, and 64 are the rule."""
    table = tmp_path / "attention.json"
    write_attention_timings([AttentionTiming(2, 8, 17, 2.0, 1.0)], "cpu", "eager", table)
    write_attention_timings([AttentionTiming(4, 8, 17, 1.0, 2.0)], "cpu", "eager", table)

    def castled(**kwargs: object) -> int:
        model = timm.create_model("scaled_vit", head_dim=8, num_heads=2, depth=2, img_size=64)
        return len(castled_attention(asvit_plugin.castle(model.to(**kwargs), blocks="auto", table=str(table))))

    assert castled() == 2
    with pytest.raises(ValueError, match="has 17 tokens and linear attention pays from 64 on"):
        castled(dtype=torch.bfloat16)


def test_batches_shrink_where_tokens_are_many() -> None:
    args = measure_attention.make_parser().parse_args([])
    assert [measure_attention.batch_size(tokens, args) for tokens in args.tokens] == [4, 4, 4, 4, 1]
    args.batch_size = 3
    assert [measure_attention.batch_size(tokens, args) for tokens in args.tokens] == [3] * 5


def test_unfused_attention_is_not_timed_where_its_weights_would_fill_the_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("timm.layers.attention.use_fused_attn", lambda: False)
    with pytest.raises(SystemExit):
        measure_attention.main(["--tokens", "12", "16385", *QUICK])
    assert "--tokens holds 16385; softmax attention of these heads is not fused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--tokens", "1"], "--tokens holds 1"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--device", "toaster"], "toaster"),
        (["--runtime", "tensorrt"], "'tensorrt'"),
        (["--clock", "cpu", "--threads", "2"], "clock is 'cpu' with 2 threads"),
        (["--table", __file__], "cannot be read from"),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as exit:
        measure_attention.main(arguments)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
