"""Runs of the detection scripts that take seconds: few tiny scenes, few iterations."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "detection" / "configs"
sys.path.insert(0, str(ROOT / "detection"))

YACS = CONFIGS / "tiny" / "mask_rcnn_as_vit.yaml"
LAZY = CONFIGS / "tiny" / "tiny_mask_rcnn.py"


def train_net(config: Path, *argv: str) -> Any:
    """Results of the script's ``main``."""
    import train_net

    flags = [each for each in argv if each.startswith("--")]
    return train_net.main(["--config-file", str(config), *flags, *(each for each in argv if each not in flags)])


def small(config: Path, scenes: Path, output: Path, iterations: int = 2, **entries: Any) -> list[str]:
    """Overrides that make a tiny config smaller still; ``entries`` are more."""
    split = {
        f"{name}_json": scenes / f"annotations_{part}.json" for name, part in (("train", "train"), ("test", "val"))
    }
    split |= {f"{name}_images": scenes / part for name, part in (("train", "train"), ("test", "val"))}
    if config.suffix == ".py":
        settings = {f"train.data.{name}": path for name, path in split.items()}
        settings |= {"train.max_iter": iterations, "dataloader.train.total_batch_size": 2}
        settings |= {"train.checkpointer.period": 1, "train.output_dir": output}
        return [f"{name}={value}" for name, value in (settings | entries).items()]
    settings = {f"DATASETS.{name.upper()}": path for name, path in split.items()}
    settings |= {"SOLVER.MAX_ITER": iterations, "SOLVER.IMS_PER_BATCH": 2, "SOLVER.CHECKPOINT_PERIOD": 1}
    settings |= {"OUTPUT_DIR": output} | entries
    return [text for name, value in settings.items() for text in (name, str(value))]


def refusal(capfd: pytest.CaptureFixture[str], config: str | Path, *argv: str) -> str:
    """What train_net.py refuses a run with."""
    return refusal_of(lambda: train_net(Path(config), *argv), capfd)


def refusal_of(script: Callable[[], Any], capfd: pytest.CaptureFixture[str]) -> str:
    """The one line that a script prints to stderr as it ends with exit status 2, without a traceback anywhere."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        script()
    assert stopped.value.code == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    (message,) = [line for line in printed.err.splitlines() if "error: " in line]
    return message
