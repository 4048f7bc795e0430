"""What the nets of a space can cost at all: a budget that none meets is refused."""

import math

from .scaling_costs import UNITS, Pricing
from .scaling_space import extreme
from .space import Choice


def ends(pricing: Pricing, start: Choice) -> tuple[Choice, Choice]:
    """The cheapest and the dearest net of a space, found from a point of it; where latency is limited, by MACs."""
    name = "macs" if pricing.timing is not None else pricing.target.name

    def cost(choice: Choice) -> float:
        return pricing.counted(choice)[name]

    return extreme(pricing.space, start, cost), extreme(pricing.space, start, cost, largest=True)


def check_counted(pricing: Pricing, start: Choice) -> None:
    """Refuse a budget of what is counted that no net of the space meets; :func:`check_reach` tells more."""
    smallest, largest = ends(pricing, start)
    name = pricing.target.name
    check_reach(pricing, smallest, pricing.counted(smallest)[name], pricing.counted(largest)[name])


def check_reach(pricing: Pricing, smallest: Choice, low: float, high: float = math.inf) -> None:
    """Refuse a budget that is less than the cheapest net costs, or more than the dearest.

    Args:
        pricing: With a target that has a value.
        smallest: The cheapest net, which the message names.
        low: What it costs.
        high: What the dearest net costs, where that is known.

    Raises:
        ValueError: The budget is out of reach, its tolerance included.
    """
    target = pricing.target
    tolerance = 1 + target.tolerance
    if low / tolerance <= target.value <= high * tolerance:
        return
    reach = f"from {low:.4g}" + (f" to {high:.4g}" if high < math.inf else " on")
    raise ValueError(
        f"budget is {target.value:g} {UNITS[target.name]}; the nets of space {pricing.space.name!r} reach {reach}, the "
        f"smallest with {', '.join(f'{name}={value}' for name, value in smallest.items())}"
    )
