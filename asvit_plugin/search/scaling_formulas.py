"""Parameters and MACs of nets that are scaled: by formula for plain shapes, else counted on the model."""

from collections.abc import Mapping
from typing import Any

from ..costs import PiTShape, ViTShape
from ..costs.analytic_as_vit import AsViTShape
from ..models.as_vit_genotype import AsViTGenotype
from ..models.scaled_pit_shape import stage_shapes
from .measuring import count_costs

_COMMON = {"in_chans", "num_classes"}
_VIT = {"depth", "num_heads", "head_dim", "mlp_ratio", "img_size", "patch_size"}
_STAGES = ("depth", "embed_dims", "num_heads", "head_dim", "mlp_ratio")
_PIT = {*_STAGES, "img_size", "patch_size", "stride"} - {"embed_dims"}
_AS_VIT = {"genotype", "img_size"}


def count(model: str, arguments: Mapping[str, Any]) -> dict[str, int]:
    """Parameters and MACs of one image, as "params" and "macs".

    Raises:
        ValueError: The arguments make no such net.
    """
    given, classes = set(arguments), arguments.get("num_classes", 1000)
    if model == "scaled_vit" and _VIT <= given <= _VIT | _COMMON | {"embed_dim"}:
        shape = _vit(**arguments)
    elif model == "scaled_pit" and _PIT <= given <= _PIT | _COMMON | {"embed_dims", "distilled"}:
        shape = _pit(**arguments)
    elif model == "as_vit" and classes and _AS_VIT <= given <= _AS_VIT | _COMMON | {"stem_stride", "pos_embed"}:
        shape = AsViTShape(**{**arguments, "genotype": AsViTGenotype.parse(arguments["genotype"])})
    else:
        return count_costs(model, arguments)
    return {"params": shape.params, "macs": shape.macs}


def _vit(depth: int, num_heads: int, mlp_ratio: float, embed_dim: int | None = None, **rest: Any) -> ViTShape:
    return ViTShape([num_heads] * depth, [mlp_ratio] * depth, embed_dim or num_heads * rest["head_dim"], **rest)


def _pit(**arguments: Any) -> PiTShape:
    stages = stage_shapes(*(arguments.pop(name, None) for name in _STAGES))
    heads, ratios = [stage.num_heads for stage in stages], [stage.mlp_ratio for stage in stages]
    return PiTShape(
        heads, ratios, [stage.embed_dim for stage in stages], [stage.head_dim for stage in stages], **arguments
    )
