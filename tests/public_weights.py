"""The hub's cache as downloads would leave it, filled with fresh weights: timm's real loading runs on it offline."""

from pathlib import Path

import timm
from safetensors.torch import save_file
from torch import nn


def hub_cache(root: Path, models: dict[str, nn.Module]) -> Path:
    """Fill ``root`` with the repositories that ``models`` names, each with the weights of its model."""
    for repository, model in models.items():
        folder = root / f"models--{repository.replace('/', '--')}"
        revision = "0" * 40
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), snapshot / "model.safetensors")
    return root


def public_models(names: list[str]) -> dict[str, nn.Module]:
    """The timm models that the public weights of our models ``names`` belong to, by hub repository."""
    found = (timm.get_pretrained_cfg(name) for name in names)
    repositories = {cfg.hf_hub_id for cfg in found if cfg.hf_hub_id}
    return {name: timm.create_model(name.removeprefix("timm/")) for name in sorted(repositories)}
