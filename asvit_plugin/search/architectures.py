"""Which nets of a supernet each step trains: several at once, drawn by a generator of its own, the largest first."""

from typing import TYPE_CHECKING

import numpy as np

from .space import Choice

if TYPE_CHECKING:
    from .supernet import SuperNet

_TRIES = 100  # draws of a net that may break the constraints, before a random point of the space takes its place


class Architectures:
    """Draws the nets of each step and has the supernet compute them.

    *Multi-architectural sampling*: a batch trains A = ``batch_size / examples_per_arch`` nets at once, and example i is
    of net i mod A. Every decision draws by itself, without replacement: from a pool of its choices, repeated until
    there are at least A.

    *Progressive shrinking*: at first there are only the largest choices; more are enabled one by one, down to the
    smallest, until all are at ``warmup_epochs``.

    Source: Liao, Karaman, Sze, arXiv 2109.00642. The authors draw from PyTorch's global generator and restore it after
    every step, so that with mixing that draws from numpy's alone (timm's Mixup) each step of theirs trains the same
    nets. The generator here is a function of (seed, epoch, rank): draws differ from step to step whatever else is
    random, a resumed epoch repeats them, and other random numbers do not notice.

    Args:
        supernet: Whose nets are drawn.
        examples_per_arch: Examples of a batch that one net is trained with.
        seed: A whole number from 0 up.
        warmup_epochs: Epochs until all choices are enabled; 0 enables all at once.
        sandwich: The first net of every step is the largest, whole net and the second the smallest of those enabled
            (Yu, Huang, ICCV 2019); the rest are drawn. While only large choices are enabled, there is no smaller one.

    Raises:
        ValueError: for numbers out of range.
    """

    def __init__(
        self,
        supernet: "SuperNet",
        examples_per_arch: int,
        seed: int = 0,
        warmup_epochs: int = 30,
        sandwich: bool = False,
    ) -> None:
        for field, value, least in (
            ("examples_per_arch", examples_per_arch, 1),
            ("seed", seed, 0),
            ("warmup_epochs", warmup_epochs, 0),
        ):
            if value < least:
                raise ValueError(f"{field} is {value}; it must be a whole number from {least} up")
        self.supernet = supernet
        self.space = supernet.networks.space
        self.examples_per_arch, self.seed, self.warmup_epochs = examples_per_arch, seed, warmup_epochs
        self.sandwich = sandwich
        self.start_epoch(0)

    def start_epoch(self, epoch: int, rank: int = 0) -> None:
        """Enable the choices of an epoch and begin its draws anew; processes of different rank draw different nets."""
        self._rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch, rank)))
        self.enabled = {name: self._enabled(name, epoch) for name in self.space.decisions}

    def step(self, batch_size: int) -> list[Choice]:
        """Draw the nets of the next forward pass, and have the supernet compute them.

        Args:
            batch_size: Examples of the batch.

        Returns:
            A choice for every net.

        Raises:
            ValueError: if ``examples_per_arch`` does not divide the batch, or leaves no two nets for the sandwich.
        """
        count, rest = divmod(batch_size, self.examples_per_arch)
        if rest or not count:
            raise ValueError(f"examples_per_arch is {self.examples_per_arch}; it must divide the batch of {batch_size}")
        if self.sandwich and count < 2:
            raise ValueError(
                f"examples_per_arch is {self.examples_per_arch}; with sandwich a batch of {batch_size} must make two "
                "nets or more"
            )
        ends = [self.supernet.networks.largest_choice(), self._smallest()] if self.sandwich else []
        choices = [*ends, *self._draw(count - len(ends))]
        self.supernet.choose(choices)
        return choices

    def _enabled(self, name: str, epoch: int) -> list:
        """The part of a decision's pool that is enabled, the largest first."""
        choices = self.space.decisions[name]
        counts = dict(zip(choices, self.space.pools.get(name, [1] * len(choices))))
        pool = [value for value in sorted(choices, reverse=True) for _ in range(counts[value])]
        if not self.warmup_epochs:
            return pool
        return pool[: 1 + epoch * (len(pool) - 1) // self.warmup_epochs]

    def _smallest(self) -> Choice:
        """The smallest of the enabled nets; a drawn one where that breaks a constraint."""
        smallest = {name: enabled[-1] for name, enabled in self.enabled.items()}
        return smallest if self.space.allows(smallest) else self._redraw()

    def _draw(self, count: int) -> list[Choice]:
        """Nets whose decisions are drawn without replacement, apart from those that constraints make draw again."""
        if not count:
            return []
        columns = {}
        for name, enabled in self.enabled.items():
            pool = enabled * -(-count // len(enabled))
            columns[name] = [pool[index] for index in self._rng.permutation(len(pool))[:count]]
        drawn = [dict(zip(columns, row)) for row in zip(*columns.values())]
        return [choice if self.space.allows(choice) else self._redraw() for choice in drawn]

    def _redraw(self) -> Choice:
        for _ in range(_TRIES):
            choice = {name: each[self._rng.integers(len(each))] for name, each in self.enabled.items()}
            if self.space.allows(choice):
                return choice
        return self.space.sample(self._rng)
