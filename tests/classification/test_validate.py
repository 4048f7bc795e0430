"""validate.py measures what train.py logged, and refuses what does not fit."""

from shlex import split

import pytest
import timm
import torch
import train
import validate
from runs import TINY, start


def test_equals_the_logged_accuracy(finished):
    for name in ("last", "best"):
        path = finished / f"{name}.pth.tar"
        logged = torch.load(path, weights_only=True)["history"][-1]
        result = validate.main(["--checkpoint", str(path)])
        assert (result["top1"], result["top5"]) == (logged["top1"], logged["top5"])
        assert result["loss"] == pytest.approx(logged["eval_loss"], rel=1e-6)


def test_equals_it_in_the_middle_of_the_phases(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Reporter, "add", stop)
    phases = split("--epochs 6 --progressive-tokenization --phases [[0.5,8],[1,2]]")
    with pytest.raises(KeyboardInterrupt):
        train.main([*TINY, "--output", str(tmp_path), *phases])
    path = tmp_path / "as_vit" / "last.pth.tar"
    logged = torch.load(path, weights_only=True)["history"][-1]
    assert logged["stride"] == 8
    assert validate.main(["--checkpoint", str(path)])["top1"] == logged["top1"]


def test_export_measures_the_same(finished):
    best = torch.load(finished / "best.pth.tar", weights_only=True)
    result = validate.main(["--model", f"local-dir:{finished / 'export'}", "--in-chans", "1", "--workers", "0"])
    assert result["top1"] == best["metric"]


def test_plain_weights_with_a_named_model(finished, tmp_path):
    best = torch.load(finished / "best.pth.tar", weights_only=True)
    torch.save(best["state_dict_ema"], tmp_path / "weights.pth")
    result = validate.main([*TINY[:10], "--checkpoint", str(tmp_path / "weights.pth"), "--crop-pct", "1"])
    assert result["top1"] == best["metric"]


def test_command_line_wins(finished, capfd):
    """The checkpoint knows 10 classes and its own data; asked for others, it does not fit."""
    with pytest.raises(SystemExit):
        validate.main(["--checkpoint", str(finished / "last.pth.tar"), "--data", "nosuch"])
    assert "'nosuch' does not exist" in capfd.readouterr().err


def test_refuses_weights_that_match_in_part(finished, tmp_path, capfd):
    state = torch.load(finished / "last.pth.tar", weights_only=True)
    weights = dict(state["state_dict"])
    weights.pop("head.fc.bias")
    torch.save(weights, tmp_path / "partial.pth")
    with pytest.raises(SystemExit) as stopped:
        validate.main([*TINY[:10], "--checkpoint", str(tmp_path / "partial.pth")])
    message = capfd.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2
    assert "1 of" in message
    assert "head.fc.bias" in message


@pytest.mark.parametrize(
    "argv, words",
    [
        ([], "--model"),
        (["--checkpoint", "nosuch.pth"], "nosuch.pth"),
        (["--model", "nosuch"], "nosuch"),
        (["--model", "local-dir:nosuch"], "nosuch"),
    ],
)
def test_mistakes_give_one_sentence(argv, words, capfd):
    with pytest.raises(SystemExit) as stopped:
        validate.main(argv)
    assert stopped.value.code == 2
    assert words in capfd.readouterr().err.splitlines()[-1]


def test_from_the_shell(finished):
    process = start("validate.py", "--checkpoint", str(finished / "best.pth.tar"))
    out, err = process.communicate(timeout=60)
    metric = torch.load(finished / "best.pth.tar", weights_only=True)["metric"]
    assert process.returncode == 0, err
    assert out.startswith(f"top-1 {metric:.3f} %")


def test_stock_timm_model_runs(capsys):
    timm_result = validate.main(["--model", "test_vit", "--img-size", "32", "--workers", "0"])
    assert timm_result["images"] == 360
    assert timm.is_model("test_vit")
