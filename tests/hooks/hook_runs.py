"""What the runs of all trainers share: a model under both schedules, its data, what it was seen to do, and the kill."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from plugin_models import cheap, images
from torch import nn

from asvit_plugin import AttentionSwitching, ProgressiveTokenization, castle
from asvit_plugin.hooks import Schedule, step_schedules
from asvit_plugin.layers import castled_attention

ITERATIONS, BATCH = 10, 2
# For a model so small that the schedule's own threshold would be 1, and with an end that the last iteration is not at.
SWITCHING = dict(threshold=0.1, linear_from=0.95)

State = tuple[int, float, float]  # stride of the stem in pixels, blend, threshold


class Killed(Exception):
    """The end of a run in the middle of a step."""


@dataclass
class Run:
    """What was seen of a run that got to its end; training and validation by forward pass."""

    start: list[State]
    trained: list[State]
    validated: list[State]
    end: State
    weights: dict[str, torch.Tensor]


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return castle(cheap("as_vit")).train()


def make_schedules(model: nn.Module) -> list[Schedule]:
    return [ProgressiveTokenization(model), AttentionSwitching(model, **SWITCHING)]


def state_of(model: nn.Module) -> State:
    ((blend, threshold),) = {(each.blend, each.threshold) for each in castled_attention(model).values()}
    return model.patch_embed.proj.stride[0], blend, threshold


def expected_states() -> list[State]:
    """Those of every iteration, and that of the end."""
    model, states = make_model(), []
    schedules = make_schedules(model)
    for iteration in range(ITERATIONS + 1):
        step_schedules(schedules, iteration, ITERATIONS)
        states.append(state_of(model))
    assert len(set(states)) == ITERATIONS + 1
    return states


def batch(iteration: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(iteration)
    return torch.randn(BATCH, 3, 64, 64, generator=generator), torch.randint(10, (BATCH,), generator=generator)


def batches(start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return map(batch, range(start, ITERATIONS))


def stop() -> None:
    raise Killed


class Watch:
    """Notes the state of a model in each of its forward passes, and kills the run in one of training.

    Args:
        model: Model to watch.
        die_at: How many forward passes of training go well; None for all.
        die: Ends the run.
    """

    def __init__(self, model: nn.Module, die_at: int | None = None, die: Callable[[], None] = stop) -> None:
        self.model, self.die_at, self.die = model, die_at, die
        self.start: list[State] = []
        self.trained: list[State] = []
        self.validated: list[State] = []
        model.register_forward_pre_hook(self._note)

    def note_start(self, *_: object) -> None:
        self.start.append(state_of(self.model))

    def _note(self, model: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if model.training and len(self.trained) == self.die_at:
            self.die()
        if not inputs[0].is_meta:  # a schedule that counts tokens
            (self.trained if model.training else self.validated).append(state_of(model))

    def run(self) -> Run:
        return Run(self.start, self.trained, self.validated, state_of(self.model), self.model.state_dict())


def validate(model: nn.Module) -> None:
    model.eval()
    with torch.no_grad():
        model(images())
    model.train()


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """Of this process alone, for DDP."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def check_kill_and_resume(train: Callable[..., Run], folder: Path, die_at: int, resumed_at: int) -> None:
    """A whole run does what the schedules say; one that is killed and resumed ends with the same weights.

    Args:
        train: Trains in a folder, from the last checkpoint that is there; takes ``die_at`` as :class:`Watch` does.
        folder: An empty one.
        die_at: Iteration of the kill.
        resumed_at: Iteration at which the resumed run must begin.
    """
    expected, whole = expected_states(), train(folder / "whole")
    assert whole.start == expected[:1]
    assert [*whole.trained, whole.end] == expected
    with pytest.raises(Killed):
        train(folder / "killed", die_at=die_at)
    check_resumed(train(folder / "killed"), whole, resumed_at)


def check_resumed(resumed: Run, whole: Run, resumed_at: int) -> None:
    expected = expected_states()
    assert resumed.start == expected[resumed_at : resumed_at + 1]
    assert [*resumed.trained, resumed.end] == expected[resumed_at:]
    assert resumed.weights.keys() == whole.weights.keys()
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
