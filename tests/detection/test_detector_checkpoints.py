"""A detector's checkpoint is read with all of its timm trunk, or refused: nets of one search are easily confused."""

import pickle
from pathlib import Path

import pytest
import torch
from detection_runs import CONFIGS, refusal, small, train_net

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

TINY = CONFIGS / "tiny" / "mask_rcnn_scaled_vit.yaml"


@pytest.fixture(scope="session")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run of the config as it stands."""
    folder = tmp_path_factory.mktemp("trained")
    train_net(TINY, *small(TINY, scenes, folder))
    return folder


@pytest.mark.parametrize("flag", ["--resume", "--eval-only"])
@pytest.mark.parametrize("shape", [{"depth": 3}, {"depth": 5}, {"num_heads": 2}, {"patch_size": 10}], ids=str)
def test_a_checkpoint_of_another_net_is_refused(
    flag: str, shape: dict[str, int], trained: Path, scenes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """detectron2 would read what fits of it."""
    entries = {"MODEL.WEIGHTS": trained / "model_final.pth"} if flag == "--eval-only" else {}
    entries |= {f"MODEL.TIMM.KWARGS.{name}": value for name, value in shape.items()}
    message = refusal(capfd, TINY, flag, *small(TINY, scenes, trained, iterations=3, **entries))
    assert "the checkpoint is of a detector with another trunk: they differ in 'backbone.net.model." in message


def test_heads_may_differ_where_training_begins(trained: Path, scenes: Path, tmp_path: Path) -> None:
    """The trunk is the file's, which no seed gives: its weights are moved by 1."""
    state = torch.load(trained / "model_final.pth", weights_only=True)
    trunk = [name for name in state["model"] if name.startswith("backbone.net.model.")]
    moved = {name: tensor + 1 if name in trunk else tensor for name, tensor in state["model"].items()}
    torch.save({"model": moved}, tmp_path / "moved.pth")
    entries = {"MODEL.WEIGHTS": tmp_path / "moved.pth", "MODEL.ROI_BOX_HEAD.FC_DIM": 64}
    train_net(TINY, *small(TINY, scenes, tmp_path / "run", iterations=1, **entries))
    found = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)["model"]
    assert found["roi_heads.box_head.fc1.weight"].shape[0] == 64
    assert trunk
    for name in trunk:
        assert torch.allclose(found[name], moved[name], atol=0.01), name  # one step of AdamW is a learning rate at most


def test_heads_without_a_trunk_start_a_detector_but_are_not_evaluated(
    trained: Path, scenes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As from detectron2's model zoo."""
    state = torch.load(trained / "model_final.pth", weights_only=True)["model"]
    heads = {name: tensor.numpy() for name, tensor in state.items() if not name.startswith("backbone")}
    file = tmp_path / "heads.pkl"
    file.write_bytes(pickle.dumps({"model": heads, "__author__": "us"}))
    train_net(TINY, *small(TINY, scenes, tmp_path / "run", iterations=1, **{"MODEL.WEIGHTS": file}))
    message = refusal(capfd, TINY, "--eval-only", *small(TINY, scenes, tmp_path / "eval", **{"MODEL.WEIGHTS": file}))
    assert "the checkpoint is of a detector with another trunk: they differ in 'backbone.net.model." in message
