"""One epoch of training and one pass of validation."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from freezing import hold_still
from options import TrainOptions
from timm.data import Mixup
from timm.scheduler.scheduler import Scheduler
from timm.task import TrainingTask
from timm.utils import (
    ModelEmaV3,
    NativeScaler,
    accuracy,
    dispatch_clip_grad,
    distribute_bn,
    random_seed,
    reduce_tensor,
)
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, RandomSampler
from tqdm import tqdm

import asvit_plugin
from asvit_plugin import SwitchTokenMix
from asvit_plugin.search.architectures import Architectures

Autocast = Callable[[], AbstractContextManager]


class Process(NamedTuple):
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    world_size: int = 1


@dataclass
class Training:
    """What a run trains with. Parts that a run does not use are None.

    `model` is bare; `task` holds it as it trains, compiled and shared between processes as asked.
    """

    options: TrainOptions
    process: Process
    model: nn.Module
    task: TrainingTask
    ema: ModelEmaV3 | None
    schedule: asvit_plugin.ProgressiveTokenization | None
    switching: asvit_plugin.AttentionSwitching | None
    architectures: Architectures | None
    mixup: Mixup | SwitchTokenMix | None
    optimizer: torch.optim.Optimizer
    lr_scheduler: Scheduler | None
    scaler: NativeScaler | None
    autocast: Autocast
    train_loader: DataLoader
    eval_loader: DataLoader
    data_config: dict[str, object]
    epochs: int
    saved_fraction: float | None  # part of the training MACs that the schedule saves

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates in one epoch."""
        return math.ceil(len(self.train_loader) / self.options.grad_accum_steps)


def start_epoch(training: Training, epoch: int) -> None:
    """Puts everything that changes from epoch to epoch into the state of this one, a function of (seed, epoch, rank).

    A resumed run starts its first epoch with the same call, so it repeats what an undisturbed run would have done.
    """
    seed = np.random.SeedSequence((training.options.seed, epoch)).generate_state(1)[0] >> 1
    random_seed(int(seed), training.process.rank)
    if training.schedule is not None:
        training.schedule.step(epoch / training.epochs)
    if training.switching is not None:
        training.switching.step(epoch / training.epochs)
    if training.lr_scheduler is not None:  # whichever of the two it does not work by changes nothing
        training.lr_scheduler.step(epoch)
        training.lr_scheduler.step_update(epoch * training.updates_per_epoch)
    if training.mixup is not None:
        training.mixup.mixup_enabled = not 0 < training.options.mixup_off_epoch <= epoch
    order_images(training.train_loader, training.options.seed, epoch)


def order_images(loader: DataLoader, seed: int, epoch: int) -> None:
    """Has a loader draw the order of its images from (seed, epoch) alone.

    Any number of processes then sees the same images in the same updates: torch's distributed sampler deals out the
    permutation that its random sampler draws from the same generator.
    """
    sampler = getattr(loader.batch_sampler, "sampler", None)
    if isinstance(sampler, RandomSampler):
        sampler.generator = torch.Generator().manual_seed(seed + epoch)
    elif isinstance(sampler, DistributedSampler):
        sampler.seed = seed
    for part in (loader.batch_sampler, sampler, loader.dataset):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def train_one_epoch(training: Training, epoch: int, bar: tqdm) -> dict[str, float]:
    """Trains for one epoch.

    Args:
        training: What to train and with what.
        epoch: Number of the epoch, from 0.
        bar: Progress bar of the batches.

    Returns:
        `train_loss`, the mean over all images, and `images_per_second`, over all processes.

    Raises:
        FloatingPointError: The loss is no longer finite.
    """
    options, process = training.options, training.process
    training.task.train()
    hold_still(training.model)
    training.optimizer.zero_grad()
    total, images_seen, started = torch.zeros((), device=process.device), 0, time.perf_counter()
    last, update = len(training.train_loader) - 1, epoch * training.updates_per_epoch
    for index, (images, targets) in enumerate(training.train_loader):
        steps = options.grad_accum_steps
        accumulated = min(steps, last + 1 - index // steps * steps)
        needs_update = (index + 1) % steps == 0 or index == last
        loss = _backward(training, images, targets, accumulated, needs_update)
        if needs_update:
            update += 1
            _after_update(training, update)
        total += loss * len(images)
        images_seen += len(images)
        bar.update()
        if index % options.log_interval == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    if training.architectures is not None:
        training.model.choose(None)  # the whole net is what validation measures
    sums = torch.stack([total, torch.tensor(float(images_seen), device=process.device)])
    mean_loss, images_seen = _mean_and_count(sums, process)
    if not math.isfinite(mean_loss):
        raise FloatingPointError(f"the loss became {mean_loss} in epoch {epoch}; a lower --lr or --clip-grad may help")
    if process.world_size > 1 and options.dist_bn:
        copies = [] if training.ema is None else [training.ema.module]
        for model in (training.task.get_trainable_module(), *copies):
            distribute_bn(model, process.world_size, options.dist_bn == "reduce")
    return {"train_loss": mean_loss, "images_per_second": images_seen / (time.perf_counter() - started)}


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    process: Process,
    autocast: Autocast = nullcontext,
    channels_last: bool = False,
) -> dict[str, float]:
    """Measures a model on held-out images, each counted exactly once however many processes share them.

    Args:
        model: Gives logits of shape (B, classes).
        loader: Gives (images, labels) on the process's device.
        process: This process; the result is the same in all of them.
        autocast: Context of the forward pass.
        channels_last: Whether the model wants that memory format.

    Returns:
        `loss` (cross entropy), `top1` and `top5` in percent, `images`, `images_per_second`.
    """
    model.eval()
    sums, started = torch.zeros(4, dtype=torch.float64, device=process.device), time.perf_counter()
    for images, labels in _own_share(loader, process):
        with torch.inference_mode(), autocast():
            logits = model(_in_format(images, channels_last)).float()
        loss = nn.functional.cross_entropy(logits, labels)
        shares = torch.stack(accuracy(logits, labels, topk=(1, 5))).double() / 100
        correct = (shares * len(labels)).round()  # whole numbers again: the sum is exact however batches are cut
        sums += torch.stack([loss.double() * len(labels), *correct, torch.tensor(len(labels), device=sums.device)])
    if process.world_size > 1:
        sums = reduce_tensor(sums, 1)
    loss, top1, top5, count = sums.tolist()
    if not count:
        raise ValueError("there are no held-out images")
    return {
        "loss": loss / count,
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "images": int(count),
        "images_per_second": count / (time.perf_counter() - started),
    }


def make_autocast(device: torch.device, amp: bool, amp_dtype: str) -> Autocast:
    """Context of forward passes: mixed precision, or nothing."""
    return (lambda: torch.autocast(device.type, dtype=getattr(torch, amp_dtype))) if amp else nullcontext


def _backward(
    training: Training, images: torch.Tensor, targets: torch.Tensor, accumulated: int, needs_update: bool
) -> torch.Tensor:
    """Forward and backward pass of one batch, and the optimizer's update where it is due; gives the batch's loss."""
    options, task = training.options, training.task
    if training.mixup is not None:
        images, targets = training.mixup(images, targets)
    if training.architectures is not None:
        training.architectures.step(len(images))
    with nullcontext() if needs_update else task.no_sync():
        with training.autocast():
            loss = task(_in_format(images, options.channels_last), targets)["loss"]
        parameters = task.get_clip_parameters(exclude_head=options.clip_mode == "agc")
        if training.scaler is not None:
            training.scaler(
                loss / accumulated,
                training.optimizer,
                clip_grad=options.clip_grad,
                clip_mode=options.clip_mode,
                parameters=parameters,
                need_update=needs_update,
            )
        else:
            (loss / accumulated).backward()
            if needs_update:
                if options.clip_grad is not None:
                    dispatch_clip_grad(parameters, options.clip_grad, mode=options.clip_mode)
                training.optimizer.step()
    return loss.detach()


def _after_update(training: Training, update: int) -> None:
    """What follows the update number `update` of the run, counted from 1."""
    training.optimizer.zero_grad()
    if training.ema is not None:
        training.ema.update(training.model, step=update)
    if training.lr_scheduler is not None:
        training.lr_scheduler.step_update(update)
    if training.switching is not None:
        training.switching.step(update / (training.epochs * training.updates_per_epoch))


def _own_share(loader: DataLoader, process: Process) -> Iterable[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of this process without the repeated images that timm's sampler fills up the last processes with."""
    if process.world_size == 1 or isinstance(loader.dataset, IterableDataset):
        yield from loader
        return
    left = len(range(process.rank, len(loader.dataset), process.world_size))
    for images, labels in loader:
        if left > 0:
            yield images[:left], labels[:left]
        left -= len(images)


def _mean_and_count(sums: torch.Tensor, process: Process) -> tuple[float, int]:
    """Mean and number of images from (sum, number), over all processes."""
    total, count = (reduce_tensor(sums, 1) if process.world_size > 1 else sums).tolist()
    return total / count, int(count)


def _in_format(images: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images
