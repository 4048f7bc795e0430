"""A trained detector as a program: it finds what the detector finds, in images of its size only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection_runs import CONFIGS, LAZY, YACS, refusal_of, small, train_net

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

import export
from detection_config import load_config
from detectron2.engine import default_argument_parser

RETINANET = {
    "MODEL.TIMM.NAME": "as_vit",
    "MODEL.TIMM.IMG_SIZE": 64,
    "MODEL.RETINANET.NUM_CLASSES": 10,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.005,  # an untrained one is unsure of everything
    "MODEL.FPN.OUT_CHANNELS": 16,
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
}
CASTLED = CONFIGS / "tiny" / "mask_rcnn_castled.yaml"
KINDS = {
    "as_vit": (YACS, {}, True),
    "lazy": (LAZY, {}, True),
    "castled": (CASTLED, {}, True),
    "vit_resnas": (CONFIGS / "tiny" / "mask_rcnn_vit_resnas.yaml", {}, True),
    "retinanet": (CONFIGS / "retinanet_as_vit_small.yaml", RETINANET, False),
}


def run(config: Path, scenes: Path, folder: Path, *flags: str, **entries: object) -> Path:
    return export.main(
        ["--config-file", str(config), "--output", str(folder / "detector.ts"), *flags]
        + small(config, scenes, folder, **entries)
    )


def _disturb(checkpoint: Path) -> None:
    """Weights that are far from those of the start, where many scores are the same and any of them may be kept."""
    state = torch.load(checkpoint, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, weight in state["model"].items():
        if name.endswith("weight"):
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.02)
    torch.save(state, checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_finds_the_same(kind: str, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, entries, masks = KINDS[kind]
    train_net(config, *small(config, scenes, tmp_path, **entries))
    _disturb(tmp_path / "model_final.pth")
    file = run(config, scenes, tmp_path, "--image-size", "96", "128", **entries)
    assert "takes images of (3, 96, 128); finds the same" in capfd.readouterr().out
    detect = torch.jit.load(file)
    found = detect(torch.rand(3, 96, 128) * 255)
    assert set(found) == {"boxes", "classes", "scores"} | ({"masks"} if masks else set())
    assert found["boxes"].shape == (len(found["scores"]), 4)
    with pytest.raises(torch.jit.Error, match=r"image is \[3, 128, 96\]; it must be \[3, 96, 128\]"):
        detect(torch.rand(3, 128, 96))


def test_a_castled_detector_is_finished_and_runs_without_detectron2(scenes: Path, tmp_path: Path) -> None:
    from runs import runs_of

    train_net(CASTLED, *small(CASTLED, scenes, tmp_path))
    run(CASTLED, scenes, tmp_path)
    image = torch.rand(3, 128, 128) * 255
    torch.save(image, tmp_path / "image.pt")
    code = (
        "import sys, torch, torchvision; folder = sys.argv[1]\n"
        "found = torch.jit.load(folder + '/detector.ts')(torch.load(folder + '/image.pt'))\n"
        "assert not {'detectron2', 'timm', 'asvit_plugin'} & set(sys.modules)\n"
        "torch.save(found, folder + '/found.pt')"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, cwd=tmp_path, check=True)
    found = torch.load(tmp_path / "found.pt")
    arguments = ["--config-file", str(CASTLED), *small(CASTLED, scenes, tmp_path)]
    cfg = load_config(default_argument_parser().parse_args(arguments))
    detector = runs_of(cfg).make_detector(cfg, resume=True)
    with torch.no_grad():
        wanted = detector([{"image": image}])[0]["instances"]
    assert len(wanted) > 0
    torch.testing.assert_close(found["boxes"], wanted.pred_boxes.tensor, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found["scores"], wanted.scores)


def test_refuses_a_branch_in_use(scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_net(CASTLED, *small(CASTLED, scenes, tmp_path))
    more = {"MODEL.WEIGHTS": tmp_path / "model_0000000.pth", "OUTPUT_DIR": tmp_path / "other"}
    message = refusal_of(lambda: run(CASTLED, scenes, tmp_path, **more), capfd)
    assert "blocks.0; the softmax branch can go when it is 1" in message
    assert not (tmp_path / "detector.ts").exists()


def test_refuses_what_cannot_be_compared(
    finished: tuple[Path, dict], scenes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unsure = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.99}
    message = refusal_of(lambda: run(YACS, scenes, finished[0], "--images", "2", **unsure), capfd)
    assert message.endswith("--images is 2; nothing is found in any of them, so the export cannot be checked")
    message = refusal_of(lambda: run(YACS, scenes, finished[0], "--tolerance", "-1"), capfd)
    assert "the program differs from the detector by" in message
