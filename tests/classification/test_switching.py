"""Attention switching in train.py: from a castled model to a finished one, with its record, and resumed exactly."""

import csv
from pathlib import Path
from shlex import split

import pytest
import timm
import torch
import train
from PIL import Image
from runs import TINY

from asvit_plugin.layers import castled_attention

RUN = [
    *TINY,
    *split("--model castled --epochs 5 --attention-switching --mask-threshold 0.02"),
    *split("--model-ema --model-ema-decay 0.9 --tensorboard true"),
    *split("--model-kwargs {base:\\ scaled_vit,\\ depth:\\ 2,\\ num_heads:\\ 2,\\ head_dim:\\ 16,\\ patch_size:\\ 4}"),
]


@pytest.fixture(scope="module")
def switched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("switched")
    train.main([*RUN, "--output", str(output)])
    return output / "castled"


def test_ends_linear_and_exports_a_finished_model(switched: Path) -> None:
    model = timm.create_model(f"local-dir:{switched / 'export'}", pretrained=True)
    assert all(attention.finished for attention in castled_attention(model).values())
    state = torch.load(switched / "last.pth.tar", weights_only=True)
    assert state["model_args"]["blend"] == state["model_args"]["threshold"] == 1.0
    assert torch.load(switched / "best.pth.tar", weights_only=True)["epoch"] == 4  # the only linear one
    assert state["history"][-1]["masks"] == {"blocks.0": [0.0, 0.0], "blocks.1": [0.0, 0.0]}
    assert state["history"][0]["masks"]["blocks.0"][1] > 0


def test_keeps_a_record(switched: Path) -> None:
    with open(switched / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["blend"]) for row in rows] == [pytest.approx(2 / 3), 1, 1, 1, 1]
    thresholds = [float(row["threshold"]) for row in rows]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] == 1.0
    assert Image.open(switched / "masks.png").size[0] > 1000


def test_tensorboard_has_every_block(switched: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(switched)).Reload()
    assert {"blend", "threshold", "mask_density/blocks.1", "mask_share/blocks.0"} <= set(events.Tags()["scalars"])
    assert [event.value for event in events.Scalars("threshold")][-1] == 1.0


def test_resumes_exactly(switched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    resumed = [*RUN, "--output", str(tmp_path), "--resume", "auto"]
    monkeypatch.setattr(train.Reporter, "add", stop)
    for _ in range(3):
        with pytest.raises(Stop):
            train.main(resumed)
    monkeypatch.undo()
    train.main(resumed)
    ours, theirs = (
        torch.load(folder / "last.pth.tar", weights_only=True) for folder in (tmp_path / "castled", switched)
    )
    for key in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(tensor, theirs[key][name]) for name, tensor in ours[key].items())
    assert [row["masks"] for row in ours["history"]] == [row["masks"] for row in theirs["history"]]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--epochs 3", "--epochs is 3; with --linear-from 0.8 no whole epoch is linear"),
        ("--linear-from 1.5", "linear_from 1.5"),
        ("--model scaled_vit --model-kwargs {}", "ScaledViT has no castled block"),
    ],
)
def test_mistakes_get_one_sentence(
    options: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train.main([*RUN, "--output", str(tmp_path), *split(options)])
    assert stopped.value.code == 2
    assert message in capfd.readouterr().err.splitlines()[-1]
