"""The callback in Lightning's own trainer, with its checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hook_runs import (
    ITERATIONS,
    Run,
    Watch,
    batch,
    check_kill_and_resume,
    expected_states,
    make_model,
    make_schedules,
    state_of,
)
from torch import nn

from asvit_plugin import ProgressiveTokenization, finish

pytest.importorskip("lightning", reason="lightning is not installed: pip install 'asvit-plugin[lightning]'")

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch.utils.data import DataLoader, IterableDataset

from asvit_plugin.hooks.lightning_callback import ScheduleCallback

EPOCHS = 2
PER_EPOCH = ITERATIONS // EPOCHS

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore::UserWarning:lightning")


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> None:
        self.model(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Loader:
    """Says where it is, which Lightning keeps in its checkpoints, to resume within an epoch."""

    def __init__(self) -> None:
        self.done = 0

    def __len__(self) -> int:
        return PER_EPOCH

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.done += 1
            yield batch(self.done - 1)
            if self.done % PER_EPOCH == 0:
                return

    def state_dict(self) -> dict[str, int]:
        return {"done": self.done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.done = state["done"]


class StartWatch(Callback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.watch.note_start()


def make_trainer(folder: Path, callbacks: list[Callback], **kwargs: Any) -> Trainer:
    quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False, accelerator="cpu", devices=1)
    return Trainer(default_root_dir=folder, callbacks=callbacks, **{**quiet, "max_epochs": EPOCHS, **kwargs})


def validation_loader() -> DataLoader:
    return DataLoader(list(zip(*batch(0))), batch_size=2)


def train(folder: Path, die_at: int | None = None) -> Run:
    module = Classifier()
    watch = Watch(module.model, die_at)
    first = ScheduleCallback(lambda module: ProgressiveTokenization(module.model))
    both = ScheduleCallback(lambda module: make_schedules(module.model))
    checkpoints = ModelCheckpoint(folder, every_n_train_steps=3, save_last=True)
    trainer = make_trainer(folder, [first, both, StartWatch(watch), checkpoints])
    trainer.fit(module, Loader(), validation_loader(), ckpt_path="last" if list(folder.glob("*.ckpt")) else None)
    return watch.run()


def test_killed_and_resumed_within_an_epoch_with_two_of_the_class(tmp_path: Path) -> None:
    check_kill_and_resume(train, tmp_path, die_at=7, resumed_at=6)


def test_validation_sees_the_present_phase_from_the_sanity_check_on(tmp_path: Path) -> None:
    expected = expected_states()
    assert train(tmp_path).validated == [expected[0], expected[4], expected[9]]


def callback() -> ScheduleCallback:
    return ScheduleCallback(lambda module: ProgressiveTokenization(module.model))


def strides_of(module: Classifier, loader: Any, folder: Path, **kwargs: Any) -> list[int]:
    """The strides that training saw, and the one at its end."""
    watch = Watch(module.model)
    make_trainer(folder, [callback()], limit_val_batches=0, **kwargs).fit(module, loader)
    return [state[0] for state in [*watch.trained, watch.run().end]]


def test_a_finished_run_resumes_at_its_end(tmp_path: Path) -> None:
    """Of a callback's methods, Lightning then calls only those around fitting."""
    trainer = make_trainer(tmp_path, [callback()])
    trainer.fit(Classifier(), Loader())
    trainer.save_checkpoint(tmp_path / "done.ckpt")
    assert not any("Schedule" in key for key in torch.load(tmp_path / "done.ckpt")["callbacks"])
    module = Classifier()
    ProgressiveTokenization(module.model).step(0.0)
    make_trainer(tmp_path, [callback()]).fit(module, Loader(), ckpt_path=tmp_path / "done.ckpt")
    assert module.model.patch_embed.proj.stride == (4, 4)


def test_accumulated_batches_see_one_state(tmp_path: Path) -> None:
    strides = strides_of(Classifier(), Loader(), tmp_path, accumulate_grad_batches=3)  # 2 steps an epoch
    assert strides == [16, 16, 16, 16, 16, 4, 4, 4, 4, 4, 4]


def test_weight_averaging_validates_in_the_model_that_the_schedules_drive(tmp_path: Path) -> None:
    module = Classifier()
    watch = Watch(module.model)
    schedules = ScheduleCallback(lambda module: make_schedules(module.model))
    trainer = make_trainer(tmp_path, [WeightAveraging(), schedules], num_sanity_val_steps=0)
    trainer.fit(module, Loader(), validation_loader())
    assert watch.validated == [expected_states()[4], expected_states()[9]]


class Finishing(Classifier):
    def on_train_end(self) -> None:
        self.end = state_of(self.model)
        finish(self.model)


def test_the_module_can_finish_its_model_at_the_end(tmp_path: Path) -> None:
    module = Finishing()
    schedules = ScheduleCallback(lambda module: make_schedules(module.model))
    make_trainer(tmp_path, [schedules], limit_val_batches=0).fit(module, Loader())
    assert module.end == expected_states()[-1]


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        while True:
            yield tuple(tensor[0] for tensor in batch(0))


def test_max_steps_is_the_length_where_it_is_less(tmp_path: Path) -> None:
    endless = DataLoader(Endless(), batch_size=2)
    for loader, epochs in ((Loader(), -1), (Loader(), 2), (endless, -1)):
        assert strides_of(Classifier(), loader, tmp_path, max_epochs=epochs, max_steps=5) == [16, 16, 8, 4, 4, 4]


def test_a_run_that_stops_early_keeps_the_state_it_was_trained_in(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = True

    module = Classifier()
    make_trainer(tmp_path, [callback(), Stop()], limit_val_batches=0).fit(module, Loader())
    assert module.model.patch_embed.proj.stride == (16, 16)


def test_training_without_a_length_is_refused(tmp_path: Path) -> None:
    endless = DataLoader(Endless(), batch_size=2)
    for loader, epochs in ((Loader(), -1), (endless, 2)):
        with pytest.raises(ValueError, match="max_steps is -1; it must be set where Lightning cannot tell"):
            strides_of(Classifier(), loader, tmp_path, max_epochs=epochs)


class ByHand(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
        self.manual_backward(super().training_step(batch, index))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.model.patch_embed, self.model.head)]


def test_optimizers_by_hand_need_max_steps(tmp_path: Path) -> None:
    assert strides_of(ByHand(), Loader(), tmp_path, max_epochs=-1, max_steps=8) == [16, 16, 4, 4, 4]
    with pytest.raises(ValueError, match="the module optimizes by hand; max_steps must be set"):
        strides_of(ByHand(), Loader(), tmp_path)


def test_what_is_no_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedules holds 'tokens'; each must have step"):
        ScheduleCallback("tokens")
