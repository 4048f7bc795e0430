"""Castling-ViTs over public weights: DeiT and ViT with linear-angular attention in every block.

You et al., "Castling-ViT", CVPR 2023 (arXiv 2211.10526). The authors released one attention block and no models; what
these nets are beyond that block is timm's base model, whose weights ``pretrained=True`` loads. They are made for being
fine-tuned: linear attention does not compute what those weights were trained for.
"""

from timm.models import generate_default_cfgs, register_model

from ._castled_build import castling_cfg, castling_entrypoint

# Name: heads of 64 channels, image size, and timm's model with public weights.
SIZES = {
    "castling_deit_tiny_patch16_224": (3, 224, "deit_tiny_patch16_224.fb_in1k"),
    "castling_deit_small_patch16_224": (6, 224, "deit_small_patch16_224.fb_in1k"),
    "castling_deit_base_patch16_224": (12, 224, "deit_base_patch16_224.fb_in1k"),
    "castling_deit_tiny_patch16_384": (3, 384, "deit_tiny_patch16_224.fb_in1k"),  # there are none at 384
    "castling_deit_small_patch16_384": (6, 384, "deit_small_patch16_224.fb_in1k"),  # likewise
    "castling_deit_base_patch16_384": (12, 384, "deit_base_patch16_384.fb_in1k"),
    "castling_vit_small_patch16_224": (6, 224, "vit_small_patch16_224.augreg_in21k_ft_in1k"),
    "castling_vit_base_patch16_224": (12, 224, "vit_base_patch16_224.augreg_in21k_ft_in1k"),
    "castling_vit_small_patch16_384": (6, 384, "vit_small_patch16_384.augreg_in21k_ft_in1k"),
    "castling_vit_base_patch16_384": (12, 384, "vit_base_patch16_384.augreg_in21k_ft_in1k"),
}

default_cfgs = generate_default_cfgs({name: castling_cfg(weights, side) for name, (_, side, weights) in SIZES.items()})

for _name, (_heads, _side, _weights) in SIZES.items():
    _entrypoint = castling_entrypoint(__name__, _name, "scaled_vit", num_heads=_heads, img_size=_side)
    globals()[_name] = register_model(_entrypoint)
