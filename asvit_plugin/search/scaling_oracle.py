"""How good a net may become, for scaling: a proxy without training, or any function of the net's arguments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .measuring import check_measurement, directions, measure_scores


@dataclass(frozen=True)
class Oracle:
    """Scores a net.

    Attributes:
        name: What the score is called.
        measure: Gives the score for timm's name of the model and the arguments of ``timm.create_model``; NaN where it
            has none, and then the net is passed over.
        maximize: Whether more is better.
        context: What scores depend on, as JSON can hold it: a study that was begun with another is refused.
    """

    name: str
    measure: Callable[[str, Mapping[str, Any]], float]
    maximize: bool = True
    context: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """All that a study must have been begun with."""
        return {"oracle": self.name, "maximize": self.maximize, **self.context}

    def worth(self, score: float) -> float:
        """The score, so that more is better."""
        return score if self.maximize else -score


def proxy_oracle(name: str = "spectrum_entropy", repeats: int = 3, seed: int = 0, device: str = "cpu") -> Oracle:
    """A proxy as an oracle; every net is measured at its own image size and by the same random numbers.

    Args:
        name: Of ``asvit_plugin.search.PROXIES``. The default is the one that said most beyond the size of trained
            PiTs (docs/proxies.md).
        repeats: Draws of weights per net.
        seed: Of all draws.
        device: Where nets are measured. No part of what a study is refused for.

    Raises:
        ValueError: naming the argument, its value and what is allowed.
    """
    check_measurement((name,), seed, repeats, None)

    def measure(model: str, arguments: Mapping[str, Any]) -> float:
        return measure_scores(model, arguments, (name,), repeats, seed, device)[0][name]

    return Oracle(name, measure, directions((name,))[name], {"repeats": repeats, "seed": seed})
