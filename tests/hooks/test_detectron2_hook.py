"""The hook in detectron2's own trainer, with its checkpointer."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hook_runs import (
    ITERATIONS,
    Killed,
    Run,
    Watch,
    batches,
    check_kill_and_resume,
    expected_states,
    make_model,
    make_schedules,
    process_group,
    validate,
)
from torch import nn

from asvit_plugin import AttentionSwitching, ProgressiveTokenization

pytest.importorskip("detectron2", reason="detectron2 is not installed, and on no index; the README says how")

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer

from asvit_plugin.hooks.detectron2_hook import ScheduleHook


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = make_model()

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"loss": nn.functional.cross_entropy(self.backbone(batch[0]), batch[1])}


class StartWatch(HookBase):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def before_train(self) -> None:
        self.watch.note_start()


def train(folder: Path, die_at: int | None = None) -> Run:
    folder.mkdir(exist_ok=True)
    model = Detector()
    watch = Watch(model.backbone, die_at)
    trainer = SimpleTrainer(model, None, torch.optim.AdamW(model.parameters(), lr=1e-2))
    checkpointer = DetectionCheckpointer(model, str(folder), trainer=trainer)
    checkpointer.resume_or_load("", resume=True)
    start = trainer.iter + 1 if checkpointer.has_checkpoint() else 0
    trainer.data_loader = batches(start)  # detectron2 does not resume the order of its data; here it cannot matter
    trainer.register_hooks(
        [
            ScheduleHook(ProgressiveTokenization),
            ScheduleHook(lambda model: make_schedules(model.backbone)),
            StartWatch(watch),
            PeriodicCheckpointer(checkpointer, 3),
            EvalHook(4, lambda: validate(model.backbone)),
        ]
    )
    trainer.train(start, ITERATIONS)
    assert "hooks" not in trainer.state_dict()
    return watch.run()


def test_killed_and_resumed_with_two_hooks_of_the_class(tmp_path: Path) -> None:
    check_kill_and_resume(train, tmp_path, die_at=7, resumed_at=6)


def test_evaluation_sees_the_present_phase_and_at_last_the_end(tmp_path: Path) -> None:
    expected = expected_states()
    assert train(tmp_path).validated == [expected[3], expected[7], expected[ITERATIONS]]


def test_a_finished_run_resumes_at_its_end(tmp_path: Path) -> None:
    """detectron2 then counts one iteration more than there are."""
    train(tmp_path)
    again = train(tmp_path)
    assert again.start == [again.end] == expected_states()[-1:]
    assert not again.trained


class OwnTrainer(DefaultTrainer):
    """detectron2's, with a model and data that no config of its describes."""

    start = 0

    @classmethod
    def build_model(cls, cfg: object) -> nn.Module:
        return Detector()

    @classmethod
    def build_optimizer(cls, cfg: object, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    @classmethod
    def build_train_loader(cls, cfg: object) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return batches(cls.start)


class ScheduledTrainer(OwnTrainer):
    def build_hooks(self) -> list[HookBase]:
        return [ScheduleHook(lambda model: make_schedules(model.backbone)), *super().build_hooks()]


def config(folder: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = str(folder), ITERATIONS, 3
    return cfg


def test_default_trainer_with_the_hook_before_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_default(folder: Path, die_at: int | None = None) -> Run:
        start = 6 if folder.exists() else 0  # as in train()
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(OwnTrainer, "start", start)
        trainer = ScheduledTrainer(config(folder))
        trainer.resume_or_load(resume=True)
        watch = Watch(trainer.model.backbone, die_at)
        trainer.register_hooks([StartWatch(watch)])
        trainer.train()
        return watch.run()

    check_kill_and_resume(train_default, tmp_path, die_at=7, resumed_at=6)


def test_ddp_is_looked_through(tmp_path: Path) -> None:
    with process_group(tmp_path):
        model = nn.parallel.DistributedDataParallel(Detector())
        trainer_of(model, ScheduleHook(lambda model: make_schedules(model.backbone))).train(0, 2)
    assert expected_states()[-1] == Watch(model.module.backbone).run().end


def trainer_of(model: nn.Module, hook: ScheduleHook) -> SimpleTrainer:
    trainer = SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([hook])
    return trainer


def test_takes_schedules_and_their_classes() -> None:
    """A class finds the backbone in a detector by itself."""
    model = Detector()
    trainer_of(model, ScheduleHook([ProgressiveTokenization, AttentionSwitching(model.backbone)])).train(0, 1)
    assert model.backbone.patch_embed.proj.stride == (4, 4)


def test_a_failure_leaves_the_state_that_was_trained_in() -> None:
    model = Detector()
    Watch(model.backbone, die_at=1)
    with pytest.raises(Killed):
        trainer_of(model, ScheduleHook(ProgressiveTokenization)).train(0, 10)
    assert model.backbone.patch_embed.proj.stride == (16, 16)


def test_a_schedule_that_cannot_be_made_says_why() -> None:
    with pytest.raises(ValueError, match="progressive tokenization cannot drive"):
        trainer_of(nn.Linear(1, 1), ScheduleHook(ProgressiveTokenization)).train(0, 10)


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match=r"schedules made None; each function must make what has step\(progress\)"):
        trainer_of(Detector(), ScheduleHook(lambda model: None)).train(0, 10)
    with pytest.raises(ValueError, match="schedules holds 3; each must have step"):
        ScheduleHook([ProgressiveTokenization, 3])
