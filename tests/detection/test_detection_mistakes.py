"""What is wrong with a command line, a config or data is one sentence that names it."""

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from detection_runs import CONFIGS, LAZY, YACS, refusal, small

needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None,
    reason="detectron2 is not installed, and on no index; the README says how",
)


def test_without_detectron2(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    find_spec = importlib.util.find_spec
    hidden = {"detectron2": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hidden[name] if name in hidden else find_spec(name))
    assert "detectron2 is not installed, and on no package index: build it with pip install" in refusal(capfd, YACS)


def test_the_missing_package_is_said_without_importing_it() -> None:
    """The scripts can be imported, and so tested and documented, without detectron2."""
    import subprocess

    hide = "import sys; sys.modules['detectron2'] = None; sys.path.insert(0, 'detection')"
    subprocess.run(
        [sys.executable, "-c", f"{hide}; import train_net, draw_predictions"], cwd=CONFIGS.parents[1], check=True
    )


CONFIG_MISTAKES: dict[str, tuple[Path, list[str], str]] = {
    "no file": (CONFIGS / "none.yaml", [], "none.yaml'; there is no such file"),
    "another kind": (CONFIGS / "none.json", [], "none.json'; it must be a .yaml or a .py file"),
    "unknown key": (YACS, ["SOLVER.MAX_ITERS", "3"], "SOLVER.MAX_ITERS"),
    "other type": (YACS, ["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
    "optimizer": (YACS, ["SOLVER.OPTIMIZER", "Adam"], "SOLVER.OPTIMIZER is 'Adam'; it must be one of SGD, AdamW"),
    "precision": (YACS, ["SOLVER.AMP.DTYPE", "half"], "SOLVER.AMP.DTYPE is 'half'"),
    "no gpu": (YACS, ["MODEL.DEVICE", "cuda"], "MODEL.DEVICE is 'cuda'; this machine has no GPU"),
    "gpus": (YACS, ["--num-gpus=2"], "--num-gpus is 2; this machine has 0"),
    "half of a split": (YACS, ["DATASETS.TRAIN_IMAGES", ""], "DATASETS.TRAIN_IMAGES is ''; give both, or neither"),
    "classes": (YACS, ["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "MODEL.ROI_HEADS.NUM_CLASSES is 3; "),
    "dataset": (
        YACS,
        ["DATASETS.TRAIN_JSON", "", "DATASETS.TRAIN_IMAGES", "", "DATASETS.TRAIN", "('mine',)"],
        "DATASETS.TRAIN holds 'mine', which is not registered",
    ),
    "no data": (
        YACS,
        ["DATASETS.TRAIN_JSON", "", "DATASETS.TRAIN_IMAGES", ""],
        "DATASETS.TRAIN is empty; give names there, or annotations by path in DATASETS.TRAIN_JSON",
    ),
    "annotations": (
        CONFIGS / "mask_rcnn_as_vit_small.yaml",
        [],
        "DATASETS.TRAIN holds 'coco_2017_train', whose annotations",
    ),
    "trunk": (YACS, ["MODEL.TIMM.NAME", "as_vit_huge"], "name is 'as_vit_huge'"),
    "layer decay": (YACS, ["SOLVER.LAYER_DECAY", "0.0"], "layer_decay is 0.0; it must be above 0"),
    "not castled": (YACS, ["SCHEDULES.ATTENTION_SWITCHING", "True"], "has no castled block"),
    "phases": (
        YACS,
        ["SCHEDULES.PROGRESSIVE_TOKENIZATION", "True", "SCHEDULES.PHASES", "[[0.5, 8]]"],
        "phases end at [0.5]; the ends must rise",
    ),
    "no trunk": (
        CONFIGS / "tiny" / "mask_rcnn_resnet.yaml",
        ["SCHEDULES.PROGRESSIVE_TOKENIZATION", "True"],
        "GeneralizedRCNN has 0 timm trunks; it must have one",
    ),
    "no weights": (YACS, ["--eval-only"], "MODEL.WEIGHTS is empty; evaluation needs a checkpoint"),
    "weights": (
        YACS,
        ["--eval-only", "MODEL.WEIGHTS", "none.pth"],
        "MODEL.WEIGHTS is 'none.pth'; there is no such file",
    ),
    "weights to start from": (
        YACS,
        ["MODEL.WEIGHTS", "none.pth"],
        "MODEL.WEIGHTS is 'none.pth'; there is no such file",
    ),
    "lazy weights": (LAZY, ["train.init_checkpoint=none.pth"], "train.init_checkpoint is 'none.pth'; there is no such"),
    "lazy key": (LAZY, ["model.roi_head.num_classes=3"], "the override is 'model.roi_head.num_classes=3'"),
    "lazy train key": (LAZY, ["train.maxiter=3"], "the override is 'train.maxiter=3'; it must be entry=value"),
    "lazy override": (LAZY, ["SOLVER.MAX_ITER", "3"], "the override is 'SOLVER.MAX_ITER'"),
    "lazy classes": (LAZY, ["model.roi_heads.num_classes=3"], "model.roi_heads.num_classes is 3; "),
    "lazy schedules": (LAZY, ["train.schedules=[progressive]"], "train.schedules[0] is 'progressive'"),
    "lazy argument": (LAZY, ["model.backbone.bottom_up.drop_paths=0.1"], "unexpected keyword argument 'drop_paths'"),
    "lazy device": (LAZY, ["train.device=cuda"], "train.device is 'cuda'; this machine has no GPU"),
}


@needs_detectron2
@pytest.mark.parametrize("mistake", CONFIG_MISTAKES)
def test_config(mistake: str, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch

    config, argv, sentence = CONFIG_MISTAKES[mistake]
    if torch.cuda.is_available() and mistake in ("no gpu", "gpus", "lazy device"):
        pytest.skip("this machine has a GPU")
    usual = small(config, scenes, tmp_path) if "tiny" in config.parts else []
    assert sentence in refusal(capfd, config, *usual, *argv)


@pytest.fixture
def own(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes, to be spoilt."""
    return shutil.copytree(scenes, tmp_path / "own")


def edit(file: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    def edited(folder: Path) -> None:
        coco = json.loads((folder / file).read_text())
        change(coco)
        (folder / file).write_text(json.dumps(coco))

    return edited


TRAIN, VAL = "annotations_train.json", "annotations_val.json"
DATA_MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (lambda folder: (folder / TRAIN).unlink(), "annotations_train.json'; it cannot be read: No such file"),
    "no json": (
        lambda folder: (folder / TRAIN).write_text("{"),
        "annotations_train.json'; it cannot be read: it is no JSON",
    ),
    "a list": (
        lambda folder: (folder / TRAIN).write_text("[]"),
        "it must hold COCO's images, annotations and categories",
    ),
    "no categories": (edit(VAL, lambda coco: coco.pop("categories")), "annotations_val.json'; it has no categories"),
    "no box": (edit(TRAIN, lambda coco: coco["annotations"][0].pop("bbox")), "one of its annotations lacks bbox"),
    "odd box": (
        edit(TRAIN, lambda coco: coco["annotations"][0].update(bbox=[1, 2])),
        "annotation 1 has the box [1, 2]",
    ),
    "stray": (
        edit(TRAIN, lambda coco: coco["annotations"][0].update(image_id=99)),
        "annotation 1 is of image 99, which",
    ),
    "class": (edit(VAL, lambda coco: coco["annotations"][0].update(category_id=99)), "annotation 1 is of category 99"),
    "mask": (edit(TRAIN, lambda coco: coco["annotations"][0].pop("segmentation")), "annotation 1 of"),
    "names": (edit(VAL, lambda coco: coco["categories"][2].update(name="two")), "the categories differ: 3 is '2' in"),
    "fewer": (edit(VAL, lambda coco: coco["categories"].append({"id": 11, "name": "x"})), "11 is None in"),
    "no image": (lambda folder: (folder / "val" / "000001.png").unlink(), "there is no image '000001.png' in it"),
    "no such image": (
        lambda folder: _spoil(folder / "train"),
        ".png' or its annotations cannot be read: cannot identify",
    ),
    "size": (edit(TRAIN, lambda coco: [each.update(width=63) for each in coco["images"]]), "Mismatched image shape"),
}


def _spoil(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(b"no image")


@needs_detectron2
@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_data(mistake: str, own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, sentence = DATA_MISTAKES[mistake]
    spoil(own)
    assert sentence in refusal(capfd, YACS, *small(YACS, own, tmp_path / "run"))


@needs_detectron2
def test_an_image_that_a_worker_cannot_read(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _spoil(own / "train")
    message = refusal(capfd, YACS, *small(YACS, own, tmp_path / "run", **{"DATALOADER.NUM_WORKERS": 1}))
    assert "train_net.py: error: " not in message.removeprefix(message.partition(": error: ")[0])
    assert ".png' or its annotations cannot be read: cannot identify image file" in message


@needs_detectron2
def test_an_image_that_a_lazy_config_cannot_read(own: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _spoil(own / "train")
    message = refusal(capfd, LAZY, *small(LAZY, own, tmp_path / "run"))
    assert ".png' or its annotations cannot be read: cannot identify image file" in message


@needs_detectron2
def test_a_loss_that_is_not_finite(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    overrides = small(YACS, scenes, tmp_path, iterations=5, **{"SOLVER.BASE_LR": 1e30, "SOLVER.WARMUP_ITERS": 0})
    message = refusal(capfd, YACS, *overrides)
    assert re.search("Loss became infinite or NaN|contain Inf/NaN. Training has diverged", message)


@needs_detectron2
def test_mixed_precision_is_off_on_the_cpu(capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    from detection_config import load_config
    from detectron2.engine import default_argument_parser

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for config in (CONFIGS / "mask_rcnn_as_vit_small.yaml", CONFIGS / "mask_rcnn_as_vit_small.py"):
        cfg = load_config(default_argument_parser().parse_args(["--config-file", str(config)]))
        amp = cfg.SOLVER.AMP.ENABLED if config.suffix == ".yaml" else cfg.train.amp.enabled
        assert not amp
        assert "mixed precision is off, for detectron2 has it on GPUs only" in capfd.readouterr().err


@needs_detectron2
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_of_what_is_found(finished: tuple[Path, dict], scenes: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    import draw_predictions
    from PIL import Image

    flags = ["--picture", str(tmp_path / "new" / f"found.{suffix}"), "--images", "2", "--score", "0.0"]
    overrides = small(YACS, scenes, finished[0])
    path = draw_predictions.main(["--config-file", str(YACS), *flags, *overrides])
    assert Image.open(path).size == (600, 300)
