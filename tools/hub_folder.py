"""A folder in the layout of the Hugging Face hub: written beside its place, loaded again, compared, and renamed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_input_config, save_for_hf
from torch import nn

from asvit_plugin.atomic import new_folder


def check_target(target: Path) -> None:
    """Refuse a folder that holds something."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"argument --output: {target} exists; it must be new or an empty folder")


def write_hub_folder(
    model: nn.Module, target: Path, card: str | None = None, pretrained_cfg: dict[str, Any] | None = None
) -> None:
    """Write weights, config.json and a model card; ``local-dir:`` of the folder must give the model's outputs.

    Args:
        model: A model that timm's factory made, in eval mode.
        target: New or empty folder.
        card: Text of README.md; None for no card.
        pretrained_cfg: Entries to change in the stored config.
    """
    with new_folder(target) as folder:
        config = {"pretrained_cfg": pretrained_cfg} if pretrained_cfg else None
        save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        check_outputs(model, lambda: timm.create_model(f"local-dir:{folder}", pretrained=True))


@torch.inference_mode()
def check_outputs(model: nn.Module, load: Callable[[], nn.Module]) -> None:
    """Refuse weights that give no numbers, or others after they were written and loaded."""
    image = torch.randn(1, *get_model_input_config(model)["input_size"])
    expected = model(image)
    if not torch.isfinite(expected).all():
        raise ValueError("the model gives no finite numbers on a random image: the weights are broken")
    if not torch.equal(load().eval()(image), expected):
        raise RuntimeError("the written weights, loaded again, give other outputs: nothing is left at --output")
