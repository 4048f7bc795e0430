"""Gates over the nets inside a plain ViT, such as a pretrained DeiT that shall become cheaper."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import Attention, LayerScale, Mlp, PatchEmbed
from timm.models import VisionTransformer, checkpoint_seq
from timm.models.vision_transformer import Block
from torch import nn

from ..costs.analytic import block_macs
from ..models import NetworkDef
from ..models.scaled_vit import ScaledViT, StridedViT, sample_tokens, spread_tokens
from .gated_costs import Cost, Nets
from .gated_net import TOKEN_STRIDE, GatedNet
from .space import Space
from .supernet_masks import ChannelMask, MaskedLayerNorm, install_in_block
from .vit_slices import count_params, slice_vit
from .vit_space import PARTS, vit_definition, vit_network, vit_space, vit_stride

_EPS = 1e-6  # of all norms of scaled_vit
_SHAPE = {"depth", "embed_dim", "num_heads", "head_dim", "mlp_ratio", "token_stride"}  # arguments of the nets


class GatedViT(GatedNet):
    """Gates over the nets inside a plain ViT; see :func:`gate_vit`.

    Args:
        model: The ViT; masks are put into it.
        space: The space of its nets.
    """

    def __init__(self, model: VisionTransformer, space: Space) -> None:
        largest = vit_definition(model)
        nets = Nets(space, largest, _Network(largest), vit_stride)
        costs = _vit_costs(model)
        super().__init__(model, nets, _install_masks(model, largest), costs)

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        if TOKEN_STRIDE not in self.gates:
            return self.network(images)
        model, gate = self.network, self.gates[TOKEN_STRIDE]
        grid = model.patch_embed.dynamic_feat_size((images.shape[2], images.shape[3]))
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        weights = gate.weights
        wanted = weights.requires_grad and torch.is_grad_enabled()  # then every option's tokens have a gradient
        mixed = torch.zeros((), device=tokens.device, dtype=tokens.dtype)
        for stride, weight in zip(gate.options, weights):
            if wanted or weight > 0:
                mixed = mixed + weight.to(tokens.dtype) * self._run_blocks(tokens, grid, stride)
        return model.forward_head(model.norm(mixed))

    def _run_blocks(self, tokens: torch.Tensor, grid: tuple[int, int], stride: int) -> torch.Tensor:
        """Tokens of the whole grid to what the blocks make of every ``stride``-th, spread over it again."""
        model = self.network
        x = sample_tokens(tokens, grid, stride, model.num_prefix_tokens)
        x = checkpoint_seq(model.blocks, x) if model.grad_checkpointing else model.blocks(x)
        return spread_tokens(x, grid, stride, model.num_prefix_tokens)

    def extract(self, choice: Mapping[str, Any], **kwargs: Any) -> ScaledViT:
        """The net of a choice by itself, with a copy of its weights: what timm builds as ``scaled_vit``.

        Device, type and mode are the gated net's, as are image size, classes, rates of dropout and preprocessing.

        Args:
            choice: A value for every decision of the space.
            kwargs: More arguments of ``timm.create_model``, such as ``drop_path_rate``.

        Raises:
            ValueError: where the choice is none of the space, and for arguments that it decides or with which its
                weights do not fit.
        """
        decided = sorted(_SHAPE & kwargs.keys())
        if decided:
            raise ValueError(f"{decided[0]} is {kwargs[decided[0]]!r}; it is the choice that decides it")
        name, arguments = self.space.arguments(choice)
        overlay = {
            **_preprocessing(self.network),
            **_input_config(self.network, kwargs),
            **(kwargs.pop("pretrained_cfg_overlay", None) or {}),
        }
        with torch.device("meta"):
            model = timm.create_model(name, pretrained_cfg_overlay=overlay, **{**arguments, **kwargs})
        weights = slice_vit(dict(self.network.named_parameters()), self.nets.network(choice))
        try:
            copies = {name: weight.detach().clone() for name, weight in weights.items()}
            model.load_state_dict(copies, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the weights of the choice do not fit a net with {kwargs}: {reason}") from error
        return model.train(self.training)


def _input_config(model: VisionTransformer, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a net takes and gives, for its configuration."""
    size = kwargs.get("img_size", model.patch_embed.img_size)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return {"input_size": (model.in_chans, height, width), "num_classes": model.num_classes}


def _preprocessing(model: nn.Module) -> dict[str, Any]:
    """How images are made ready for a model, as its configuration says; their size is the net's own argument."""
    config = getattr(model, "pretrained_cfg", None) or {}
    names = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    return {name: config[name] for name in names if config.get(name) is not None}


class _Network:
    """Definition of a choice's net."""

    def __init__(self, largest: NetworkDef) -> None:
        self.largest = largest

    def __call__(self, choice: Mapping[str, Any]) -> NetworkDef:
        return vit_network(self.largest, choice)


def gate_vit(model: VisionTransformer, options: Mapping[str, Sequence[int] | None] | Space | None = None) -> GatedViT:
    """Gates over the nets inside a plain ViT, whose weights they share.

    The model stays as it is; the gated net has a copy of its weights. :meth:`GatedNet.reorder` puts the important
    heads, units and channels first, and so into the narrower nets, without changing what the whole net computes.

    Args:
        model: timm's ``VisionTransformer`` with one class token or none, such as ``deit_small_patch16_224``, or a
            ``scaled_vit``.
        options: What may be decided, as in :func:`vit_space`, or a space that it made for such a model.

    Raises:
        ValueError: for a model that cannot be masked, naming what is in the way, and for options that it has not.
    """
    problem = next(_problems(model), None)
    if problem:
        raise ValueError(f"gates cannot mask this {type(model).__name__}: {problem}")
    space = options if isinstance(options, Space) else vit_space(model, vit_arguments(model), options)
    _check_space(space, vit_space(model, {}, {part: None for part in PARTS if part != "depth"}))
    return GatedViT(copy.deepcopy(model), space)


def vit_arguments(model: VisionTransformer) -> dict[str, Any]:
    """Arguments with which ``scaled_vit`` is built like a plain ViT, but for its shape."""
    block = model.blocks[0]
    height, width = model.patch_embed.img_size
    found = {
        "img_size": height if height == width else [height, width],
        "patch_size": model.patch_embed.patch_size[0],
        "in_chans": model.in_chans,
        "num_classes": model.num_classes,
        "global_pool": model.global_pool,
        "class_token": model.has_class_token,
        "reg_tokens": model.num_reg_tokens,
        "no_embed_class": model.no_embed_class,
        "pool_include_prefix": model.pool_include_prefix,
        "pos_embed": "none" if model.pos_embed is None else "learn",
        "pre_norm": isinstance(model.norm_pre, nn.LayerNorm),
        "fc_norm": isinstance(model.fc_norm, nn.LayerNorm),
        "qkv_bias": block.attn.qkv.bias is not None,
        "qk_norm": isinstance(block.attn.q_norm, nn.LayerNorm),
        "scale_attn_norm": isinstance(block.attn.norm, nn.LayerNorm),
        "scale_mlp_norm": isinstance(block.mlp.norm, nn.LayerNorm),
        "proj_bias": block.attn.proj.bias is not None,
        "init_values": block.ls1.init_values if isinstance(block.ls1, LayerScale) else None,
        "drop_rate": model.head_drop.p,
        "pos_drop_rate": model.pos_drop.p,
        "proj_drop_rate": block.attn.proj_drop.p,
        "attn_drop_rate": block.attn.attn_drop.p,
        "drop_path_rate": round(getattr(model.blocks[-1].drop_path1, "drop_prob", 0.0), 6),  # a float32
    }
    return {name: value for name, value in found.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


# Arguments that need not be said.
_DEFAULTS = {
    "global_pool": "token", "class_token": True, "reg_tokens": 0, "no_embed_class": False, "pool_include_prefix": False,
    "pos_embed": "learn", "pre_norm": False, "qkv_bias": True, "qk_norm": False, "scale_attn_norm": False,
    "scale_mlp_norm": False, "proj_bias": True, "init_values": None, "drop_rate": 0.0, "pos_drop_rate": 0.0,
    "proj_drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0,
}  # fmt: skip


def _problems(model: nn.Module) -> Iterator[str]:
    """What keeps a model from being masked."""
    if isinstance(model, StridedViT):
        yield f"its blocks see every {model.token_stride}. row and column of tokens already; take token_stride out"
        return
    if type(model) not in (VisionTransformer, ScaledViT):
        yield "its class must be VisionTransformer or ScaledViT itself, without parts of its own"
        return
    kinds = {"": Block, "attn": Attention, "mlp": Mlp}
    for number, block in enumerate(model.blocks):
        for name, kind in kinds.items():
            found = block.get_submodule(name) if isinstance(block, Block) or not name else None
            if found is not None and type(found) is not kind:
                where = ".".join(each for each in (f"blocks.{number}", name) if each)
                yield f"{where} is a {type(found).__name__}; it must be timm's {kind.__name__}"
    if type(model.patch_embed) is not PatchEmbed or not isinstance(model.patch_embed.norm, nn.Identity):
        yield f"patch_embed is a {type(model.patch_embed).__name__}; it must be timm's PatchEmbed without a norm"
    elif len(set(model.patch_embed.patch_size)) > 1:
        yield f"its patches are {model.patch_embed.patch_size} pixels; they must be square"
    if model.attn_pool is not None:
        yield f"global_pool is {model.global_pool!r}; attention over tokens has widths of its own"
    if not isinstance(model.patch_drop, nn.Identity):
        yield "patch_drop_rate is not 0"
    if isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity):
        yield "it has no norm before its head"
    for name, module in model.named_modules():
        known = isinstance(module, nn.Identity) or (isinstance(module, nn.LayerNorm) and module.eps == _EPS)
        if name.endswith(("norm", "norm1", "norm2", "norm_pre")) and not known:
            yield f"{name} is {module}; it must be a LayerNorm with eps={_EPS}"
        if isinstance(module, Mlp) and type(module.act) is not nn.GELU:
            yield f"{name}.act is a {type(module.act).__name__}; it must be GELU"
        if isinstance(module, Attention) and getattr(module, "gate", None) is not None:
            yield f"{name} is gated attention"


def _check_space(space: Space, known: Space) -> None:
    """Refuse a space that is none of this model's nets."""
    for name, choices in space.decisions.items():
        most = known.decisions.get(name)
        if name == "depth":
            most = (1 + sum(each.startswith("exists_") for each in known.decisions),)
        if space.model != "scaled_vit" or most is None:
            raise ValueError(f"space {space.name!r} has the decision {name!r}, which is none of this ViT's")
        if name != "token_stride" and max(choices) != max(most):
            raise ValueError(
                f"decision {name!r} of space {space.name!r} goes up to {max(choices)}; the ViT has {max(most)}"
            )


def _install_masks(model: VisionTransformer, largest: NetworkDef) -> nn.ModuleList:
    """Put masks into a ViT, in place; they own no weights, and no name of a weight changes."""
    embed = ChannelMask("embed", 0)
    masks = nn.ModuleList([embed])
    for name in ("norm_pre", "norm", "fc_norm"):
        if isinstance(getattr(model, name), nn.LayerNorm):
            setattr(model, name, MaskedLayerNorm(getattr(model, name), embed))
    for number, block in enumerate(model.blocks):
        masks.extend(install_in_block(block, embed, number))
    return masks


def _vit_costs(model: VisionTransformer) -> dict[str, Cost]:
    """Formulas of MACs of one image of the model's size, and of parameters."""
    rows, columns = model.patch_embed.dynamic_feat_size(model.patch_embed.img_size)
    in_chans, classes, prefix = model.in_chans, model.num_classes, model.num_prefix_tokens
    patch_area = model.patch_embed.patch_size[0] ** 2
    pooled = 1 if model.global_pool else rows * columns + prefix
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def macs(net: NetworkDef, stride: int) -> int:
        dim, tokens = net.dims[0], -(-rows // stride) * -(-columns // stride) + prefix
        blocks = (block for block in net.stages[0] if block.exists)
        total = rows * columns * in_chans * patch_area * dim + pooled * dim * classes
        return total + sum(block_macs(tokens, dim, b.num_heads * b.head_dim, b.mlp_hidden_dim) for b in blocks)

    return {"macs": macs, "params": lambda net, stride: count_params(shapes, net)}
