"""The hook in mmengine's own runner, from a config, with its checkpoint hook."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hook_runs import (
    BATCH,
    ITERATIONS,
    SWITCHING,
    Run,
    Watch,
    batch,
    check_kill_and_resume,
    expected_states,
    make_model,
    process_group,
)
from torch import nn

from asvit_plugin import ProgressiveTokenization

pytest.importorskip(
    "mmengine.runner", reason="mmengine or OpenCV is not installed: pip install 'asvit-plugin[openmmlab]'"
)

from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.utils.data import DataLoader

import asvit_plugin.hooks.mmengine_hook

EPOCHS = 2
SCHEDULES = [dict(type="ProgressiveTokenization"), dict(type="AttentionSwitching", **SWITCHING)]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()


class Classifier(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()

    def init_weights(self) -> None:
        """mmengine would draw new ones."""

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor, mode: str = "loss") -> Any:
        logits = self.backbone.model(inputs)
        return dict(loss=nn.functional.cross_entropy(logits, targets)) if mode == "loss" else [logits]


class NoMetric(BaseMetric):
    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        return {}


class StartWatch(Hook):
    priority = "VERY_LOW"

    def __init__(self, watch: Watch) -> None:
        self.before_train = watch.note_start


def loader(sampler: type, **kwargs: Any) -> DataLoader:
    dataset = [tuple(tensor[0] for tensor in batch(index)) for index in range(ITERATIONS // EPOCHS * BATCH)]
    return DataLoader(dataset, batch_size=BATCH, sampler=sampler(dataset, seed=0, **kwargs))


def make_runner(folder: Path, by_epoch: bool, hooks: list[Any], wrap: Callable = lambda model: model) -> Runner:
    length = dict(max_epochs=EPOCHS) if by_epoch else dict(max_iters=ITERATIONS, val_interval=4)
    return Runner(
        wrap(Classifier()),
        work_dir=str(folder),
        train_dataloader=loader(DefaultSampler if by_epoch else InfiniteSampler),
        train_cfg=dict(by_epoch=by_epoch, **length),
        val_dataloader=loader(DefaultSampler, shuffle=False),
        val_cfg=dict(),
        val_evaluator=[NoMetric()],
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-2)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", by_epoch=by_epoch, interval=1 if by_epoch else 3)),
        custom_hooks=hooks,
        resume=True,
        randomness=dict(seed=0),
        log_level="ERROR",
        experiment_name=f"{folder.parent.name}_{folder.name}_{len(list(folder.glob('*')))}",
    )


def schedule_hook(schedules: Any = SCHEDULES, module: str | None = "backbone.model") -> dict[str, Any]:
    return dict(type="ScheduleHook", schedules=schedules, module=module)


def train(folder: Path, die_at: int | None = None, by_epoch: bool = False) -> Run:
    runner = make_runner(folder, by_epoch, [schedule_hook(SCHEDULES[0], None), schedule_hook()])
    watch = Watch(runner.model.backbone.model, die_at)
    runner.register_hook(StartWatch(watch))
    runner.train()
    return watch.run()


def test_killed_and_resumed_with_two_hooks_of_the_class(tmp_path: Path) -> None:
    check_kill_and_resume(train, tmp_path, die_at=7, resumed_at=6)


def test_killed_and_resumed_by_epochs(tmp_path: Path) -> None:
    def train_epochs(folder: Path, die_at: int | None = None) -> Run:
        return train(folder, die_at, by_epoch=True)

    check_kill_and_resume(train_epochs, tmp_path, die_at=7, resumed_at=ITERATIONS // EPOCHS)


def test_validation_sees_the_present_phase(tmp_path: Path) -> None:
    expected = expected_states()
    in_order = list(dict.fromkeys(train(tmp_path).validated))
    assert in_order == list(dict.fromkeys([expected[3], expected[7], expected[9]]))


def test_ema_hook_validates_in_the_model_that_the_schedules_drive(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, False, [dict(type="EMAHook"), schedule_hook()])
    watch = Watch(runner.model.backbone.model)
    runner.train()
    assert set(watch.validated) == {expected_states()[iteration] for iteration in (3, 7, 9)}


def test_a_finished_run_resumes_at_its_end(tmp_path: Path) -> None:
    train(tmp_path)
    again = train(tmp_path)
    assert again.start == [again.end] == expected_states()[-1:]
    assert not again.trained


def test_ddp_is_looked_through(tmp_path: Path) -> None:
    with process_group(tmp_path):
        runner = make_runner(tmp_path, False, [schedule_hook()], wrap=MMDistributedDataParallel)
        watch = Watch(runner.model.module.backbone.model)
        runner.train()
    assert [*watch.trained, watch.run().end] == expected_states()


def test_a_path_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, False, [schedule_hook(module="backbone.net")])
    with pytest.raises(ValueError, match="module is 'backbone.net'; it must be the path of a module in Classifier"):
        runner.train()


@pytest.mark.parametrize("kind", ["Progressive", dict, None])
def test_an_unknown_type_is_refused(kind: object) -> None:
    with pytest.raises(ValueError, match="schedules has type .*; it must be one of AttentionSwitching, Progressive"):
        HOOKS.build(schedule_hook(dict(type=kind)))


def test_classes_are_taken_for_names() -> None:
    hook = HOOKS.build(schedule_hook(dict(type=ProgressiveTokenization)))
    assert isinstance(hook, asvit_plugin.hooks.mmengine_hook.ScheduleHook)
