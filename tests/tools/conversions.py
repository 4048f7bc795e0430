"""Small checkpoints in the layouts that tools/convert.py reads, and the tool itself, run in this process."""

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from plugin_models import CHEAP
from torch import nn

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import convert  # noqa: E402

Weights = dict[str, torch.Tensor]

GENOTYPE = CHEAP["as_vit"]["genotype"]
DEFINITION = CHEAP["vit_resnas"]["network_def"]
FLAT = {  # our stages and blocks in the authors' list, where removed block 5 has an index too
    "stages.0.blocks.0": 0,
    "stages.1.downsample": 1,
    "stages.1.blocks.0": 2,
    "stages.1.blocks.1": 3,
    "stages.2.downsample": 4,
    "stages.2.blocks.0": 6,
}
PARTS = {"downsample.conv": "patch_reduce", "downsample.token_proj": "token_transform"}


def resnas(**kwargs: Any) -> nn.Module:
    return timm.create_model("vit_resnas", **{"network_def": DEFINITION, "num_classes": 10, **kwargs}).eval()


def as_vit(**kwargs: Any) -> nn.Module:
    return timm.create_model("as_vit", **{"genotype": GENOTYPE, "num_classes": 10, **kwargs}).eval()


def to_authors(weights: Weights) -> Weights:
    """Weights of the small ViT-ResNAS in the layout of its authors."""
    weights = dict(weights)
    renamed = {
        "tokens": weights.pop("cls_token"),
        "pos_embed": torch.cat([weights.pop("prefix_pos_embed"), weights.pop("pos_embed").flatten(1, 2)], dim=1),
    }
    for name, tensor in weights.items():
        for part, theirs in PARTS.items():
            name = name.replace(f"{part}.", f"downsample.{theirs}.")
        for prefix, index in FLAT.items():
            name = name.replace(f"{prefix}.", f"blocks.{index}.")
        name = re.sub(r"^head\.", "cls_head.", name.replace("patch_embed.proj", "patch_embed.conv_proj"))
        renamed[name] = tensor.flatten(1, 2) if name.endswith("pos_embed") else tensor
    return renamed


def training_checkpoint(weights: Weights, definition: str = DEFINITION) -> dict[str, Any]:
    """As the authors' code leaves it: the averaged weights are those that count."""
    return {
        "model": {name: tensor + 1 for name, tensor in weights.items()},
        "model_ema": weights,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}}, "param_groups": [{}]},
        "lr_scheduler": {"t_initial": 300},
        "epoch": 289,
        "args": argparse.Namespace(network_def=definition, device=torch.device("cpu")),
    }


def run(checkpoint: Path, model: str, *options: str) -> Path:
    """Convert in this process; the folder that is written."""
    output = checkpoint.parent / "converted" / "net"
    convert.main([str(checkpoint), "--model", model, "--output", str(output), *options])
    return output


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path
