"""What a mixture of nets costs: the exact expectation over independent gates, from tables over their options.

The cost of a net is a sum of terms: one for what all nets have (stem, reductions, head), and one for each block. A term
depends on few decisions; its table holds its cost for all of their options together. So the expectation of a product of
widths that one gate ties is that of the product, not the product of expectations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch

from ..models.vit_resnas_genotype import NetworkDef
from .space import Choice, Space

_ENTRIES = 10_000_000  # of one table
_CHECKED = 32  # random nets for which the tables must tell the truth

Size = tuple[str, int, int]  # what, stage, block; what is "embed", "heads", "mlp", "exists" or "token_stride"
Cost = Callable[[NetworkDef, int], float]  # of a net and its token stride; a sum over the net's blocks and the rest


def no_stride(choice: Mapping[str, Any]) -> int:
    """The token stride of nets that have none."""
    return 1


@dataclass(frozen=True)
class Nets:
    """A space of nets that are the first channels, heads and units of the largest one.

    Attributes:
        space: The space.
        largest: Definition of the largest net.
        network: The definition of a choice's net; those of a plain ViT have one stage.
        token_stride: Every how many-th row and column of tokens a choice's blocks see.
    """

    space: Space
    largest: NetworkDef
    network: Callable[[Mapping[str, Any]], NetworkDef]
    token_stride: Callable[[Mapping[str, Any]], int] = no_stride


@dataclass(frozen=True)
class Table:
    """A number for every combination of some decisions' options.

    Attributes:
        names: The decisions.
        values: In double precision, with an axis for each decision.
    """

    names: tuple[str, ...]
    values: torch.Tensor

    def at(self, choice: Mapping[str, Any], decisions: Mapping[str, Sequence[Any]]) -> float:
        """The number for a choice of the decisions' options."""
        return self.values[tuple(decisions[name].index(choice[name]) for name in self.names)].item()

    def expected(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean number, for options that are drawn independently with the given weights (double, on the CPU)."""
        values = self.values
        for name in reversed(self.names):
            values = values @ weights[name]
        return values

    def spread(self, names: Sequence[str], shape: Sequence[int]) -> np.ndarray:
        """The numbers for every combination of these and more decisions, of so many options each."""
        own = [size if name in self.names else 1 for name, size in zip(names, shape)]
        order = [self.names.index(name) for name in names if name in self.names]
        return np.broadcast_to(self.values.permute(order).reshape(own).numpy(), tuple(shape))


def size_tables(nets: Nets) -> dict[Size, Table]:
    """How large everything is for every option of the decisions that it depends on.

    Raises:
        ValueError: where a size depends on more decisions together than a table can hold.
    """
    space = nets.space
    options = {name: choices for name, choices in space.decisions.items() if len(choices) > 1}
    bases = [{name: pick(choices) for name, choices in space.decisions.items()} for pick in (max, min)]
    tied: dict[Size, set[str]] = {size: set() for size in _sizes(nets, bases[0])}
    for base in bases:
        before = _sizes(nets, base)
        for name, choices in options.items():
            for value in set(choices) - {base[name]}:
                now = _sizes(nets, base | {name: value})
                for size in (each for each in now if now[each] != before[each]):
                    tied[size].add(name)
    cached = lru_cache(maxsize=None)(lambda items: _sizes(nets, bases[0] | dict(items)))
    tables = {
        size: _tabulate(
            options, [name for name in options if name in names], lambda values, size=size: cached(values)[size]
        )
        for size, names in tied.items()
    }
    _check(nets, tables)
    return tables


class IdleDecisions:
    """Tells which decisions change nothing of a choice's net: those of the insides of blocks that it has not.

    Args:
        space: The space of the nets.
        sizes: Their :func:`size_tables`.
    """

    def __init__(self, space: Space, sizes: Mapping[Size, Table]) -> None:
        self._decisions = space.decisions
        shared = {name for (what, *_), table in sizes.items() if what not in ("heads", "mlp") for name in table.names}
        self._inside: dict[str, set[tuple[int, int]]] = {}
        for (_, *block), table in sizes.items():
            for name in set(table.names) - shared:
                self._inside.setdefault(name, set()).add(tuple(block))
        blocks = set().union(*self._inside.values())
        self._exists = {(stage, block): sizes["exists", stage, block] for stage, block in blocks}

    def __call__(self, choice: Mapping[str, Any]) -> set[str]:
        """Names of the decisions that are idle in a choice."""
        missing = {block for block, table in self._exists.items() if not table.at(choice, self._decisions)}
        return {name for name, blocks in self._inside.items() if blocks <= missing} if missing else set()


def cost_tables(nets: Nets, sizes: Mapping[Size, Table], cost: Cost) -> list[Table]:
    """The terms of a cost; their sum is the cost of a net.

    Args:
        nets: The space.
        sizes: Its :func:`size_tables`.
        cost: Of a net, a sum over its blocks and the rest.
    """
    cost = cache(cost)
    largest = nets.largest
    stages = range(len(largest.dims))
    bare = replace(largest, stages=tuple(() for _ in stages))
    stride = sizes["token_stride", 0, 0]
    rest = [*(sizes["embed", stage, 0] for stage in stages), stride]
    terms = [_combined(rest, lambda *each: cost(replace(bare, dims=each[:-1]), each[-1]))]

    @cache
    def block_cost(stage: int, head_dim: int, dim: int, heads: int, mlp: int, exists: int, stride: int) -> float:
        if not exists:
            return 0
        definition = replace(
            largest.stages[stage][0], num_heads=heads, head_dim=head_dim, mlp_hidden_dim=mlp, exists=True
        )
        without = replace(bare, dims=tuple(dim if each == stage else largest.dims[each] for each in stages))
        alone = tuple((definition,) if each == stage else () for each in stages)
        return cost(replace(without, stages=alone), stride) - cost(without, stride)

    for stage, block, definition in _blocks(largest):
        own = [sizes["embed", stage, 0], *(sizes[what, stage, block] for what in ("heads", "mlp", "exists")), stride]
        at = (stage, definition.head_dim)
        terms.append(_combined(own, lambda *each, at=at: block_cost(*at, *each)))
    return terms


def _blocks(net: NetworkDef) -> Iterator[tuple[int, int, Any]]:
    """Stage, number and definition of every block."""
    for stage, blocks in enumerate(net.stages):
        for number, block in enumerate(blocks):
            yield stage, number, block


def _sizes(nets: Nets, choice: Choice) -> dict[Size, int]:
    net = nets.network(choice)
    sizes = {("embed", stage, 0): dim for stage, dim in enumerate(net.dims)}
    for stage, number, block in _blocks(net):
        sizes["heads", stage, number] = block.num_heads
        sizes["mlp", stage, number] = block.mlp_hidden_dim
        sizes["exists", stage, number] = int(block.exists)
    return sizes | {("token_stride", 0, 0): nets.token_stride(choice)}


def _tabulate(
    options: Mapping[str, Sequence[Any]], names: Sequence[str], number: Callable[[tuple[tuple[str, Any], ...]], float]
) -> Table:
    shape = _shape(names, [len(options[name]) for name in names])
    values = np.empty(shape)
    for index in np.ndindex(*shape):
        values[index] = number(tuple((name, options[name][place]) for name, place in zip(names, index)))
    return Table(tuple(names), torch.from_numpy(values))


def _combined(tables: Sequence[Table], number: Callable[..., float]) -> Table:
    """A number that depends on those of other tables; it is asked once for every distinct combination of theirs."""
    lengths = {name: size for table in tables for name, size in zip(table.names, table.values.shape)}
    shape = _shape(list(lengths), list(lengths.values()))
    columns = np.stack([table.spread(list(lengths), shape).ravel() for table in tables]).astype(np.int64)
    distinct, index = np.unique(columns, axis=1, return_inverse=True)
    found = np.array([number(*map(int, each)) for each in distinct.T], dtype=np.float64)
    return Table(tuple(lengths), torch.from_numpy(found[index.ravel()].reshape(shape)))


def _shape(names: Sequence[str], lengths: Sequence[int]) -> tuple[int, ...]:
    entries = int(np.prod(lengths, dtype=float))
    if entries > _ENTRIES:
        raise ValueError(
            f"a cost depends on {len(names)} decisions together ({', '.join(names[:4])}, ...), {entries:.1e} options; "
            f"gates take at most {_ENTRIES:,}"
        )
    return tuple(lengths)


def _check(nets: Nets, tables: Mapping[Size, Table]) -> None:
    """Trying one decision at a time may miss what a size depends on; then the tables do not tell the truth."""
    decisions, rng = nets.space.decisions, np.random.default_rng(0)
    for _ in range(_CHECKED):
        places = {name: int(rng.integers(len(choices))) for name, choices in decisions.items()}
        sizes = _sizes(nets, {name: decisions[name][place] for name, place in places.items()})
        for size, table in tables.items():
            found = table.values[tuple(places[name] for name in table.names)]
            if found != sizes[size]:
                raise ValueError(
                    f"{size[0]} of block {size[2] + 1} of stage {size[1] + 1} in space {nets.space.name!r} depends on "
                    f"decisions in a way that gates do not follow; it depends on {list(table.names)} one by one"
                )
