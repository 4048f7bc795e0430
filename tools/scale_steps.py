"""A path of tools/scale.py step by step: what it will be, and each net as it is chosen."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from result_files import write_recipe
from scale_report import SHOWN
from step_progress import StepProgress
from tqdm import tqdm

from asvit_plugin.search.scaling import Scaled, ScalingSettings
from asvit_plugin.search.scaling_bases import Base
from asvit_plugin.search.scaling_costs import Pricing, Target, Timing
from asvit_plugin.search.scaling_nets import ScaledNet
from asvit_plugin.search.scaling_oracle import Oracle
from asvit_plugin.search.scaling_reach import check_counted

Go = Callable[[ScalingSettings, Callable[[int, int, int], Any]], Scaled]


def outlook(base: Base, target: Target, settings: ScalingSettings, timing: Timing | None) -> str:
    """What the base costs, the budget, and about how many steps lie between.

    Raises:
        ValueError: Nets of the base's space cannot cost so little or so much, as far as that can be counted.
    """
    pricing = Pricing(base.space, target, timing)
    if target.value is not None and timing is None:
        check_counted(pricing, base.choice)  # before a study is begun with such a budget
    cost = pricing.measure(base.choice)["cost"]
    begin = f"{base.name} costs {shown(cost, target)}"
    if target.value is None:
        return f"{begin}; steps at that cost for as long as one gains"
    steps = math.ceil(abs(math.log(target.value / cost)) / math.log(settings.growth))
    return f"{begin}, the budget is {shown(target.value, target)}: up to about {steps} step{'s' * (steps != 1)}"


def shown(cost: float, target: Target) -> str:
    """A cost with its unit."""
    unit, name = SHOWN[target.name]
    return f"{cost / unit:.4g} {name}"


def step_by_step(go: Go, settings: ScalingSettings, target: Target, oracle: Oracle, folder: Path) -> Scaled:
    """Lets a path grow by one step after the other, shows each, and writes its net as net_STEP.yaml.

    The study holds what was measured, so a run of one step more measures that step alone.

    Args:
        go: Scales with the settings it is given, and tells the second argument what is measured.
        settings: Those of the whole path.
        target: What is limited.
        oracle: What scores.
        folder: Where the nets' files go.
    """
    progress, limit, step = StepProgress(), settings.steps or math.inf, 1
    try:
        while True:

            def on_trial(now: int, done: int, count: int, new: int = step) -> None:
                if now >= new or new == 1:
                    progress(now, done, count)

            found = go(replace(settings, steps=step), on_trial)
            progress.close()
            _show([net for net in found.path if net.step == step or step == 1], target, oracle, folder)
            if found.end != "steps" or step >= limit:
                return found
            step += 1
    finally:
        progress.close()


def _show(nets: list[ScaledNet], target: Target, oracle: Oracle, folder: Path) -> None:
    """One line for each net, and its file; those of an earlier run stay until the path ends."""
    for net in nets:
        write_recipe(folder / f"net_{net.step}.yaml", net.model, net.arguments)
        move = f"{net.move}; " if net.move else ""
        tqdm.write(f"step {net.step}: {move}{shown(net.cost, target)}, {oracle.name} {net.score:.5g}")
        sys.stdout.flush()
