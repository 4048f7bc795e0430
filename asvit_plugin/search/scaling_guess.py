"""What a net may take, guessed from nets that were measured: so that few are measured in vain."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .space import Choice

_RIDGE = 0.003  # squares of logarithms: a factor that was hardly moved is taken to act as its MACs


class LatencyGuess:
    """Seconds as MACs times a power of each factor, in this runtime on this device; just MACs before anything is known.

    The powers are least squares over logarithms of measured nets, drawn towards zero a little.
    """

    def __init__(self) -> None:
        self._powers: dict[str, float] = {}

    def learn(self, nets: Sequence[Mapping[str, Any]]) -> None:
        """Take the powers from measured nets.

        Args:
            nets: With "choice", "macs" and "cost" in seconds. Decisions that are not positive in all of them are left
                out.
        """
        if len(nets) < 2:
            return
        names = [name for name in nets[0]["choice"] if all(net["choice"][name] > 0 for net in nets)]
        logs = np.log([[net["choice"][name] for name in names] for net in nets]).reshape(len(nets), -1)
        per_mac = np.log([net["cost"] / net["macs"] for net in nets])
        factors = logs - logs.mean(0)
        squares = factors.T @ factors + _RIDGE * np.eye(len(names))
        powers = np.linalg.solve(squares, factors.T @ (per_mac - per_mac.mean()))
        self._powers = dict(zip(names, powers.tolist()))

    def ratio(self, choice: Choice, known: Choice) -> float:
        """How many times as long a net takes for a multiply-accumulate as another."""
        moved = ((power, choice[name], known[name]) for name, power in self._powers.items())
        return math.exp(sum(power * math.log(new / old) for power, new, old in moved if min(new, old) > 0))
