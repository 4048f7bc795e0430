"""Latency of plain ViTs from a table of their parts: stem, blocks by distinct shape, and head, measured one by one."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from timm.models import VisionTransformer
from torch import nn

from .counted import example_input, run_on_meta
from .fingerprint import fingerprint
from .latency import LatencyProbe, measure_in_turn
from .latency_cache import LatencyCache
from .latency_record import LatencyKey, LatencySetting

PartKey = tuple[str, tuple[int, ...]]
Measure = Callable[[list[nn.Module], list[torch.Tensor]], list[float]]


@dataclass(frozen=True)
class Part:
    """A piece of a net.

    Attributes:
        name: "stem", "head", or "blocks.N".
        module: What computes it, of one tensor.
        shape: Of its input, with the batch.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]

    @property
    def key(self) -> PartKey:
        """Equal for parts that cost the same."""
        return fingerprint(self.module), self.shape


class Stem(nn.Module):
    """What comes before a ViT's blocks, such as patches and positions: images (B, C, H, W) in, tokens (B, N, C) out."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = _with(model, blocks=nn.Sequential(), norm=nn.Identity(), fc_norm=None, head=None)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.forward_features(images)


class Head(nn.Module):
    """What comes after a ViT's blocks: tokens (B, N, C) in, logits (B, classes) out."""

    def __init__(self, model: VisionTransformer) -> None:
        super().__init__()
        self.model = _with(model, blocks=None, patch_embed=None)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.forward_head(self.model.norm(tokens))


def vit_parts(model: nn.Module, input: torch.Tensor | Sequence[int] | None = None) -> list[Part]:
    """Stem, blocks and head of a plain ViT, which share its weights.

    Args:
        model: timm's ``VisionTransformer``, or one of its kind such as ``scaled_vit``.
        input: A tensor, or the shape of one ((C, H, W) stands for a batch of one); None for the model's own input size.

    Raises:
        ValueError: It is no plain ViT.
    """
    if not isinstance(model, VisionTransformer) or not isinstance(model.blocks, nn.Sequential):
        raise ValueError(f"{type(model).__name__} has no table of blocks; it must be a plain ViT (VisionTransformer)")
    images = tuple(example_input(model, input).shape)
    shapes: list[tuple[int, ...]] = []
    watch = [
        block.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape))) for block in model.blocks
    ]
    try:
        run_on_meta(model, images)
    finally:
        for hook in watch:
            hook.remove()
    blocks = [Part(f"blocks.{i}", block, shape) for i, (block, shape) in enumerate(zip(model.blocks, shapes))]
    return [Part("stem", Stem(model), images), *blocks, Part("head", Head(model), shapes[-1])]


class BlockTable:
    """Seconds of the distinct parts of plain ViTs, and what the parts of a net add up to.

    Args:
        measure: Gives the seconds of modules for their inputs; best measures them in turn.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.seconds: dict[PartKey, float] = {}

    @classmethod
    def timed(
        cls,
        setting: LatencySetting | None = None,
        seconds: float = 1.0,
        rounds: int = 5,
        cache: LatencyCache | None = None,
    ) -> "BlockTable":
        """A table of medians, looked up in a cache or measured in turn; arguments of :func:`measure_in_turn`."""
        setting = setting or LatencySetting()

        def measure(modules: list[nn.Module], inputs: list[torch.Tensor]) -> list[float]:
            keys = [LatencyKey.of(module, each.shape, setting) for module, each in zip(modules, inputs)]
            known = {key: cache.get(key) if cache else None for key in keys}
            missing = [index for index, key in enumerate(keys) if known[key] is None]
            probes = [LatencyProbe(modules[index], inputs[index], setting) for index in missing]
            known |= {latency.key: latency for latency in measure_in_turn(probes, seconds, rounds)}
            if cache and missing:
                cache.put(*(known[keys[index]] for index in missing))
            return [known[key].median for key in keys]

        return cls(measure)

    def total(self, model: nn.Module, input: torch.Tensor | Sequence[int] | None = None) -> float:
        """Sum of the seconds of a net's parts; measures those that the table lacks. Arguments of :func:`vit_parts`."""
        return self.totals([model], input)[0]

    def totals(self, models: Sequence[nn.Module], input: torch.Tensor | Sequence[int] | None = None) -> list[float]:
        """The same for several nets, whose missing parts are measured together."""
        nets = [vit_parts(model, input) for model in models]
        counts = [Counter(part.key for part in parts) for parts in nets]
        distinct = {part.key: part for parts in nets for part in parts}
        missing = [part for key, part in distinct.items() if key not in self.seconds]
        found = self.measure([part.module for part in missing], [torch.randn(part.shape) for part in missing])
        self.seconds.update(zip((part.key for part in missing), found))
        return [sum(count * self.seconds[key] for key, count in each.items()) for each in counts]


@dataclass(frozen=True)
class LatencyLine:
    """Seconds of a net as ``offset + slope * cost``, where the cost is a sum over its parts, or any number.

    Attributes:
        offset: Seconds that every net takes.
        slope: Seconds per unit of cost.
    """

    offset: float
    slope: float

    @classmethod
    def fit(cls, costs: Sequence[float], seconds: Sequence[float]) -> "LatencyLine":
        """The line with the least squared relative error.

        Raises:
            ValueError: There are not two nets of different cost, or a latency is not positive.
        """
        if len(costs) != len(seconds) or len(set(costs)) < 2:
            raise ValueError(f"costs are {list(costs)} for {len(seconds)} latencies; two different ones are needed")
        if not min(seconds) > 0:
            raise ValueError(f"seconds are {list(seconds)}; they must be positive")
        measured = torch.tensor(seconds, dtype=torch.float64)
        scale = max(costs)  # so that both columns are of one size
        columns = torch.stack([torch.ones_like(measured), torch.tensor(costs, dtype=torch.float64) / scale], dim=1)
        weighted = columns / measured[:, None]
        offset, slope = torch.linalg.lstsq(weighted, torch.ones_like(measured)[:, None]).solution.flatten().tolist()
        return cls(offset, slope / scale)

    def predict(self, cost: float) -> float:
        """Seconds of a net."""
        return self.offset + self.slope * cost


def relative_errors(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """Median and largest of abs(predicted / measured - 1)."""
    errors = (torch.tensor(predicted, dtype=torch.float64) / torch.tensor(measured, dtype=torch.float64) - 1).abs()
    return errors.quantile(0.5).item(), errors.max().item()


def _with(model: nn.Module, **modules: nn.Module | None) -> nn.Module:
    """A model that shares everything with another except some submodules; those of None are gone."""
    other = copy.copy(model)
    other._modules = {name: modules.get(name, module) for name, module in model._modules.items()}
    return other
