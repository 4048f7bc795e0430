"""Castling-PiTs over public weights: PiT with linear-angular attention in every block.

See ``castling_vit.py`` for what the authors released. The last stage has 50 tokens, where softmax attention is the
faster one: ``castle(model, blocks=[...])`` or ``blocks=`` leaves it out.
"""

from timm.models import generate_default_cfgs, register_model

from ._castled_build import castling_cfg, castling_entrypoint

# Name: heads of each stage, channels per head, and timm's model with public weights.
SIZES = {
    "castling_pit_ti_224": ((2, 4, 8), 32, "pit_ti_224.in1k"),
    "castling_pit_xs_224": ((2, 4, 8), 48, "pit_xs_224.in1k"),
    "castling_pit_s_224": ((3, 6, 12), 48, "pit_s_224.in1k"),
}

default_cfgs = generate_default_cfgs({name: castling_cfg(weights, 224) for name, (_, _, weights) in SIZES.items()})

for _name, (_heads, _head_dim, _weights) in SIZES.items():
    _entrypoint = castling_entrypoint(__name__, _name, "scaled_pit", num_heads=_heads, head_dim=_head_dim)
    globals()[_name] = register_model(_entrypoint)
