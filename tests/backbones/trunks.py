"""Small trunks of every kind: pyramids of ours and of timm's, plain ViTs, patches of 14 pixels."""

from typing import Any

import torch
from plugin_models import CHEAP

from asvit_plugin.backbones import FeatureTrunk

_SWIN = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), img_size=64, window_size=2)
_PLAIN = dict(depth=3, embed_dim=16, num_heads=2, img_size=64)

PYRAMIDS: dict[str, dict[str, Any]] = {
    "as_vit": CHEAP["as_vit"],
    "vit_resnas": CHEAP["vit_resnas"],
    "scaled_pit": CHEAP["scaled_pit"],
    "castling_pit_ti_224": CHEAP["castling_pit"],
    "fbnetv2_f1": CHEAP["fbnetv2"],
    "swin_tiny_patch4_window7_224": _SWIN,
    "test_convnext": {},
    "test_resnet": {},
}
PLAIN: dict[str, dict[str, Any]] = {
    "castled": CHEAP["castled"],
    "scaled_vit": CHEAP["scaled_vit"],
    "vit_tiny_patch16_224": _PLAIN,
    "vit_small_patch14_dinov2": dict(_PLAIN, img_size=56),
}
TRUNKS = {**PYRAMIDS, **PLAIN}
STRIDES = {"vit_resnas": (16, 32, 64), "scaled_pit": (8, 16, 32), "castling_pit_ti_224": (8, 16, 32)}


def strides_of(name: str) -> tuple[int, ...]:
    return (16,) if name in PLAIN else STRIDES.get(name, (4, 8, 16, 32))


def arguments(name: str, **kwargs: Any) -> dict[str, Any]:
    """Plain arguments of a small trunk, as configs give them."""
    return dict(name=name, model_kwargs=dict(TRUNKS[name]), **kwargs)


def make_trunk(name: str, **kwargs: Any) -> FeatureTrunk:
    """A small trunk in evaluation mode, biases and gains of norms not at 0 and 1."""
    trunk = FeatureTrunk(**arguments(name, **kwargs)).eval()
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return trunk


def without_gradient(module: torch.nn.Module) -> list[str]:
    """Parameters that should learn and got no gradient."""
    return [name for name, each in module.named_parameters() if each.requires_grad and each.grad is None]
