"""A space of ViT-ResNAS nets that share weights: each is made of the first channels and heads of the largest."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models.vit_resnas_genotype import BlockDef, NetworkDef
from .space import Choice, Space
from .space_schema import load_space
from .templates import fill

ROLES = ("embed", "heads", "mlp", "exists")


class NetworkSpace:
    """A space of ViT-ResNAS nets, read as network definitions.

    The largest net has every decision at its largest value, and the smallest net at its smallest; constraints do not
    bind these two. Every net of the space nests in the largest one.

    Args:
        space: A space of the model ``vit_resnas`` whose decisions are numbers.

    Attributes:
        space: The same.
        largest: Definition of the largest net.
        smallest: Definition of the smallest net.
        roles: What each decision is about: "embed" (channels of stages), "heads", "mlp" or "exists" of blocks.

    Raises:
        ValueError: where a definition cannot be read or does not nest in the largest (the widths of its stages do not
            chain, for example), and where a decision is about nothing or about several of these things; it names the
            decision.
    """

    space: Space
    largest: NetworkDef
    smallest: NetworkDef
    roles: Mapping[str, str]

    def __init__(self, space: Space) -> None:
        if space.model != "vit_resnas" or "network_def" not in space.template:
            raise ValueError(
                f"space {space.name!r} is of the model {space.model!r}; nets that share weights need a space of the "
                "model 'vit_resnas' with the argument network_def"
            )
        for name, choices in space.decisions.items():
            if not all(isinstance(value, (bool, int, float)) for value in choices):
                raise ValueError(
                    f"decision {name!r} of space {space.name!r} has {list(choices)}; it takes numbers only"
                )
        self.space = space
        self.largest = self._read(self.largest_choice(), "all decisions at their largest")
        for choice, where in self._corners():
            self._check_nests(self._read(choice, where), where)
        self.smallest = self._read(self.smallest_choice(), "all decisions at their smallest")
        self.roles = {name: self._role(name) for name in space.decisions}

    def largest_choice(self) -> Choice:
        """Every decision at its largest value; constraints may be broken."""
        return {name: max(choices) for name, choices in self.space.decisions.items()}

    def smallest_choice(self) -> Choice:
        """Every decision at its smallest value; constraints may be broken."""
        return {name: min(choices) for name, choices in self.space.decisions.items()}

    def network(self, choice: Mapping[str, Any]) -> NetworkDef:
        """Definition of a choice's net, which may break constraints; blocks that it removes stay, with exists=False.

        Raises:
            ValueError: where a decision or its value is not one of the space.
        """
        self.space.check_values(choice)
        return self._read(choice, ", ".join(f"{name}={value!r}" for name, value in choice.items()))

    def distinct_network(self, choice: Mapping[str, Any]) -> NetworkDef:
        """The same definition whatever widths a choice names for blocks that it removes (those of the largest net)."""
        net = self.network(choice)
        stages = tuple(
            tuple(block if block.exists else replace(whole, exists=False) for block, whole in zip(*pair))
            for pair in zip(net.stages, self.largest.stages)
        )
        return replace(net, stages=stages)

    def _read(self, choice: Mapping[str, Any], where: str) -> NetworkDef:
        definition = fill(self.space.template["network_def"], choice)
        try:
            return NetworkDef.parse(_lists(definition))
        except ValueError as error:
            raise ValueError(f"space {self.space.name!r} has no net with {where}: {error}") from None

    def _corners(self) -> Iterator[tuple[Choice, str]]:
        """Choices at which a space of independent widths goes wrong first, if it does, and what to call them."""
        largest, smallest = self.largest_choice(), self.smallest_choice()
        for name in self.space.decisions:
            yield largest | {name: smallest[name]}, f"{name}={smallest[name]!r} and the rest at their largest"
        for name in self.space.decisions:
            yield smallest | {name: largest[name]}, f"{name}={largest[name]!r} and the rest at their smallest"
        yield smallest, "all decisions at their smallest"

    def _check_nests(self, net: NetworkDef, where: str) -> None:
        problem = _not_nested(net, self.largest)
        if problem:
            raise ValueError(
                f"space {self.space.name!r} with {where} has {problem}; nets that share weights must nest in the "
                "largest one"
            )

    def _role(self, name: str) -> str:
        """The one thing that differs when a decision goes from its largest to its smallest value."""
        smallest = min(self.space.decisions[name])
        net = self._read(self.largest_choice() | {name: smallest}, name)
        pairs = list(zip(_blocks(net), _blocks(self.largest)))
        differs = (
            net.dims != self.largest.dims,
            any(block.num_heads != whole.num_heads for block, whole in pairs),
            any(block.mlp_hidden_dim != whole.mlp_hidden_dim for block, whole in pairs),
            any(block.exists != whole.exists for block, whole in pairs),
        )
        found = [role for role, differing in zip(ROLES, differs) if differing]
        if len(found) != 1:
            raise ValueError(
                f"decision {name!r} of space {self.space.name!r} is about {' and '.join(found) or 'nothing'} of the "
                f"net; it must be about one of {', '.join(ROLES)}"
            )
        return found[0]


def load_network_space(source: str | Path) -> NetworkSpace:
    """A space of ViT-ResNAS nets by its name or from a YAML file.

    Raises:
        ValueError: if there is no such space, or saying what is wrong with it.
    """
    return NetworkSpace(load_space(source))


def _lists(definition: Any) -> Any:
    """A definition's text as lists, which JSON reads in a tenth of the time; what it cannot read stays as it is."""
    if isinstance(definition, str):
        with suppress(ValueError):
            return json.loads(definition.replace("(", "[").replace(")", "]"))
    return definition


def _blocks(net: NetworkDef) -> list[BlockDef]:
    return [block for stage in net.stages for block in stage]


def _not_nested(net: NetworkDef, largest: NetworkDef) -> str | None:
    """What keeps a net from being made of the first channels and heads of the largest one."""
    if (net.stem_width, net.num_classes) != (largest.stem_width, largest.num_classes):
        return f"a stem or a number of classes of its own in {str(net)[:40]}..."
    depths, whole_depths = ([len(stage) for stage in each.stages] for each in (net, largest))
    if depths != whole_depths:
        return f"{depths} blocks in its stages, where the largest net has {whole_depths}"
    if any(dim > whole for dim, whole in zip(net.dims, largest.dims)):
        return f"stages of {list(net.dims)} channels, where the largest net has {list(largest.dims)}"
    for index, (block, whole) in enumerate(zip(_blocks(net), _blocks(largest)), start=1):
        if block.head_dim != whole.head_dim:
            return f"heads of {block.head_dim} channels in block {index}, where the largest net has {whole.head_dim}"
        if block.num_heads > whole.num_heads or block.mlp_hidden_dim > whole.mlp_hidden_dim:
            return f"a block {index} that is wider than the largest net's"
        if block.exists and not whole.exists:
            return f"a block {index} that the largest net lacks"
    return None
