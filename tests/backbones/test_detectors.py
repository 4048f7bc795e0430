"""Whole detectors of detectron2 over our trunks: images of several sizes, empty images, every parameter learns."""

import copy

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

from detectors import DETECTORS, inputs
from detectron2.utils.events import EventStorage
from torch import nn
from trunks import without_gradient

every_detector = pytest.mark.parametrize("kind", list(DETECTORS))
trunks_of_ours = pytest.mark.parametrize("name", ["as_vit", "vit_resnas", "scaled_vit"])
more_trunks = pytest.mark.parametrize(
    "name", ["as_vit", "vit_resnas", "fbnetv2_f1", "scaled_vit", "castled", "vit_small_patch14_dinov2", "test_resnet"]
)


def backward(model: nn.Module, batch: list[dict]) -> dict[str, float]:
    model.train()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}


@every_detector
@more_trunks
def test_losses_and_gradients(name: str, kind: str) -> None:
    model = DETECTORS[kind](name)
    with torch.no_grad():  # some norms and layer scales begin at 0
        for parameter in model.backbone.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    losses = backward(model, inputs(3, 2))
    assert len(losses) == (5 if kind == "mask_rcnn" else 2)
    assert all(torch.tensor(list(losses.values())).isfinite())
    assert without_gradient(model) == []
    gradients = [parameter.grad for parameter in model.backbone.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() > 0 for gradient in gradients) > 0.9 * len(gradients)  # key biases have none


@every_detector
@trunks_of_ours
def test_frozen_stages_get_no_gradient(name: str, kind: str) -> None:
    model = DETECTORS[kind](name, FROZEN_STAGES=1, NORM="LN", GRAD_CHECKPOINTING=True, DROP_PATH=0.1)
    frozen = [key for key, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen
    assert all(".model." in key for key in frozen)
    backward(model, inputs(3, 2))
    assert without_gradient(model) == []
    assert all(model.get_parameter(key).grad is None for key in frozen)


@every_detector
@trunks_of_ours
@pytest.mark.parametrize("objects", [(0, 0), (0, 3)])
def test_images_without_objects(name: str, kind: str, objects: tuple[int, int]) -> None:
    losses = backward(DETECTORS[kind](name), inputs(*objects))
    assert all(torch.tensor(list(losses.values())).isfinite())


@every_detector
@trunks_of_ours
def test_inference(name: str, kind: str) -> None:
    model = DETECTORS[kind](name).eval()
    batch = inputs(None, None)
    with torch.no_grad():
        found = model(batch)
        again = model(copy.deepcopy(batch))
        blank = model([{"image": torch.zeros(3, 40, 40)}])
    for each, other, given in zip(found, again, batch, strict=True):
        instances = each["instances"]
        assert instances.image_size == (given["height"], given["width"])
        assert len(instances) > 0
        assert torch.equal(instances.pred_boxes.tensor, other["instances"].pred_boxes.tensor)
        assert not instances.has("pred_masks") or instances.pred_masks.shape[1:] == instances.image_size
    assert len(blank) == 1


@every_detector
def test_a_step_changes_the_losses(kind: str) -> None:
    torch.manual_seed(0)
    model = DETECTORS[kind]("as_vit")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch, totals = inputs(3, 2), []
    for _ in range(12):
        optimizer.zero_grad()
        totals.append(sum(backward(model, batch).values()))
        optimizer.step()
    assert min(totals[-3:]) < totals[0]
