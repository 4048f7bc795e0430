"""Weights drawn by name, so that the reference files in ``tests/data`` store only outputs.

Each weight is a normal draw, seeded by the CRC-32 of its name in the authors' layout and scaled by its kind. A test
draws the authors' state dict again from the names and shapes in a reference file.
"""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

DATA = Path(__file__).parent / "data"


def reference(name: str) -> dict[str, Any]:
    """The reference file ``tests/data/<name>.json``: a net's shapes, and what the authors' code gave for it."""
    return json.loads((DATA / f"{name}.json").read_text())


def draw(name: str, shape: Sequence[int]) -> torch.Tensor:
    """The weight called ``name`` in the authors' layout."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.long)
    weight = torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    if leaf == "running_var":
        return 0.5 + weight.abs()
    if leaf in ("running_mean", "bias"):
        return 0.1 * weight
    if leaf in ("pos_embed", "tokens", "absolute_pos_embed"):
        return 0.2 * weight
    if len(shape) <= 1:
        return 1.0 + 0.1 * weight
    return weight * weight[0].numel() ** -0.5


def image(seed: int, shape: Sequence[int]) -> torch.Tensor:
    """The image batch of ``seed``."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
