"""A search by masks put together from its options: gated net, images for weights and for gates."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn
from torch.utils.data import Dataset

from asvit_plugin.costs import LatencyCache, LatencySetting
from asvit_plugin.search.gated_net import GatedNet, GatedResNAS
from asvit_plugin.search.gated_vit import gate_vit
from asvit_plugin.search.latency_terms import add_latency
from asvit_plugin.search.mask_search import GatedTask, MaskSearch
from asvit_plugin.search.space import Choice
from asvit_plugin.search.vit_space import DEFAULT_PARTS, PARTS

sys.path.append(str(Path(__file__).resolve().parents[1] / "classification"))

from assembly import make_data_config, make_lr_scheduler, make_optimizer, make_process, place_model
from checkpoints import load_weights, read_foreign
from data import count_classes, make_eval_loader, make_train_loader, open_dataset
from engine import Process, Training, evaluate, make_autocast
from holdout import SHARE, split_off
from mask_options import MaskSearchOptions
from pretrained import make_model
from supernet_training import make_supernet_model
from task import make_criterion, make_mixup, mixes


@dataclass
class MaskRun:
    """A search by masks.

    Attributes:
        options: Its options.
        training: What weights are trained with.
        search: The gates' part.
        gate_loader: Images that gates learn from, augmented as those of the weights.
        setup_seconds: Wall time before the first epoch, of measuring latency above all.
    """

    options: MaskSearchOptions
    training: Training
    search: MaskSearch
    gate_loader: torch.utils.data.DataLoader
    setup_seconds: float = 0.0

    @property
    def net(self) -> GatedNet:
        """The gated net."""
        return self.search.net

    def judge(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracies of a net on the held-out images."""
        training = self.training
        channels_last = self.options.channels_last
        return evaluate(model, training.eval_loader, training.process, training.autocast, channels_last)

    def arguments(self, choice: Choice) -> tuple[str, dict[str, Any]]:
        """Model and arguments of a choice's net, for ``timm.create_model``."""
        if isinstance(self.net, GatedResNAS):
            net = str(self.net.nets.network(choice))
            return "vit_resnas", {**self.options.model_kwargs, "network_def": net}
        return self.net.space.arguments(choice)


def make_run(options: MaskSearchOptions) -> MaskRun:
    """Builds everything that a search needs, at its state before the first epoch.

    Raises:
        ValueError: An option does not fit the net, the data or this installation.
    """
    process = make_process(options.device)
    if process.world_size > 1:
        raise ValueError(f"a search by masks runs in one process; this is one of {process.world_size}")
    for_weights, for_gates = (_part(options, gates) for gates in (False, True))
    held_out = open_dataset(options, training=False)
    random_seed(options.seed)
    net = make_net(options, count_classes(options, for_weights, held_out))
    model = net.network
    data_config = make_data_config(options, model)
    place_model(net, options, process)
    if options.latency is not None:
        tabulate_latency(net, options, data_config["input_size"], process)
    loaders = [
        make_train_loader(part, data_config, options, process.device, False) for part in (for_weights, for_gates)
    ]
    optimizer = make_optimizer(options, model)
    lr_scheduler, epochs = make_lr_scheduler(options, optimizer, len(loaders[0]))
    search = MaskSearch(net, options.settings, epochs)
    training = Training(
        options,
        process,
        model,
        GatedTask(search, make_criterion(options, model), process.device),
        ema=None,
        schedule=None,
        switching=None,
        architectures=None,
        mixup=make_mixup(options, model, data_config["input_size"]) if mixes(options) else None,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        scaler=None,
        autocast=make_autocast(process.device, options.amp, options.amp_dtype),
        train_loader=loaders[0],
        eval_loader=make_eval_loader(held_out, data_config, options, process.device),
        data_config=data_config,
        epochs=epochs,
        saved_fraction=None,
    )
    return MaskRun(options, training, search, loaders[1])


def make_net(options: MaskSearchOptions, num_classes: int | None) -> GatedNet:
    """The gated net, on the CPU: of a space, or of a plain ViT with its weights."""
    make: Callable[[Any, int | None], nn.Module] = make_supernet_model if options.supernet else make_model
    model = make(options, num_classes)
    if options.initial_checkpoint:
        load_weights(model, read_foreign(options.initial_checkpoint), options.initial_checkpoint)
    if options.supernet:
        return GatedResNAS(model)
    grids = {"embed_dim": options.embed_dims, "token_stride": options.token_strides}
    parts = options.decide or [part for part in PARTS if part in DEFAULT_PARTS or grids.get(part)]
    try:
        return gate_vit(model, {part: grids.get(part) for part in parts})
    except ValueError as error:
        raise ValueError(f"--model is {options.model!r}: {error}") from error


def _part(options: MaskSearchOptions, gates: bool) -> Dataset:
    """The training images that gates learn from, or those of the weights: the same share of every class."""
    whole = open_dataset(options, training=True)
    try:
        part = split_off(whole, [SHARE, options.gate_share], training=not gates)
    except ValueError as error:
        raise ValueError(f"--gate-share is {options.gate_share}; {str(error).partition('; ')[2]}") from error
    if gates and len(part) < options.batch_size:
        raise ValueError(
            f"--gate-share is {options.gate_share}, which is {len(part)} images; it must be a batch of them at least, "
            f"--batch-size {options.batch_size}"
        )
    return part


def tabulate_latency(net: GatedNet, options: MaskSearchOptions, input_size: tuple[int, ...], process: Process) -> None:
    """Gives a net its table of measured latency, kept in the search's folder: resumed, a search goes on with the same.

    Raises:
        ValueError: The folder cannot be written to.
    """
    options.folder.mkdir(parents=True, exist_ok=True)
    add_latency(net, input_size, latency_setting(process), cache=LatencyCache(options.folder / "latency.json"))


def latency_setting(process: Process) -> LatencySetting:
    """How latency is measured: eager, on the device of the search, in single precision."""
    return LatencySetting(device=str(process.device), threads=torch.get_num_threads())
