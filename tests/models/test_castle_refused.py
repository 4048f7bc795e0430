"""What castle() refuses leaves the model as it was; what the registered ``castled`` refuses names its base."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from plugin_models import cheap
from torch import nn

import asvit_plugin
from asvit_plugin.layers import castled_attention


@pytest.mark.parametrize(
    "images, found",
    [
        (torch.zeros(1, 64, 64), r"images is a tensor of torch.float32 and shape \(1, 64, 64\); it must be"),
        (torch.zeros(0, 3, 64, 64), "images holds none"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "images is a tensor of torch.uint8 .*; it must be a float"),
        ([[1.0]], "images is a list; it must be a float tensor"),
    ],
    ids=["one_image", "none", "bytes", "list"],
)
def test_what_are_no_images(images: Any, found: str) -> None:
    model = cheap("scaled_vit")
    with pytest.raises(ValueError, match=f"^{found}"):
        asvit_plugin.castle(model, images=images)
    asvit_plugin.castle(model)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_whatever_fails_on_images_undoes_the_swap(error: type[BaseException]) -> None:
    """A model that does not run says so, in our sentence where the images are to blame, and is whole again."""
    model = cheap("scaled_vit")
    attention = [block.attn for block in model.blocks]

    def fail(module: nn.Module, args: tuple) -> None:
        raise error("wrong\nchannels")

    handle = model.blocks[2].register_forward_pre_hook(fail)
    expected = ValueError if error is RuntimeError else error
    with pytest.raises(expected, match="do not fit the model: wrong channels$" if expected is ValueError else "wrong"):
        asvit_plugin.castle(model, images=torch.zeros(1, 3, 64, 64))
    assert [block.attn for block in model.blocks] == attention
    assert model.pretrained_cfg["architecture"] == "scaled_vit"
    handle.remove()
    asvit_plugin.castle(model, images=torch.ones(1, 3, 64, 64))
    assert len(castled_attention(model)) == len(model.blocks)


def test_options_of_numpy_can_be_saved(tmp_path: Path) -> None:
    model = cheap("scaled_vit")
    asvit_plugin.castle(model, reference_length=np.float32(9), dwconv_kernel_size=np.int64(9))
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(images), model(images))


def test_a_base_is_refused_by_its_name() -> None:
    with pytest.raises(ValueError, match="^resnet18 has no attention that can be castled"):
        timm.create_model("castled", base="resnet18", device="meta")
    with pytest.raises(ValueError, match="^base is None; it must be the name of a timm model$"):
        timm.model_entrypoint("castled")(base=None)
    model = timm.create_model("castled", base="deit_tiny_patch16_224", device="meta")
    assert model.pretrained_cfg["architecture"] == "castled"
