"""A supernet as classification/train.py left it, with the images of its run, judged as that script judges."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils import random_seed
from torch import nn

from asvit_plugin.search import SuperNet, load_network_space, make_supernet

sys.path.append(str(Path(__file__).resolve().parents[1] / "classification"))

from assembly import make_data_config, make_process, place_model
from checkpoints import load_weights, read_checkpoint
from data import make_eval_loader, make_train_loader, open_dataset
from engine import Autocast, Process, evaluate, make_autocast
from options import TrainOptions
from supernet_options import SHARING

__all__ = ["SHARING", "SupernetRun", "TrainOptions", "open_run"]

_IN_MEMORY = 2**30  # bytes of prepared images that are kept; more are prepared anew for every net

Batches = list[tuple[torch.Tensor, torch.Tensor]] | torch.utils.data.DataLoader


@dataclass
class SupernetRun:
    """A trained supernet and what it was trained with.

    Attributes:
        options: Those of its run, with what was changed for this one.
        process: The device.
        supernet: With its weights, the averaged ones where the run has them.
        batches: Held-out images with their labels.
        train_loader: Images to train on, augmented as in the run.
        data_config: Size and normalisation of the images.
        autocast: Context of forward passes.
        record: What tells this supernet and its judgement from others.
    """

    options: TrainOptions
    process: Process
    supernet: SuperNet
    batches: Batches
    train_loader: torch.utils.data.DataLoader
    data_config: dict[str, Any]
    autocast: Autocast
    record: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return (self.supernet.in_chans, *self.supernet.img_size)

    def top1(self, model: nn.Module) -> float:
        """Percent of the held-out images that a net classifies correctly."""
        return evaluate(model, self.batches, self.process, self.autocast, self.options.channels_last)["top1"]

    def refit(self, model: nn.Module, steps: int, lr: float) -> None:
        """Trains the norms and the heads of a net for some steps; every net sees the same images in the same order."""
        random_seed(self.options.seed)
        trained = _norms_and_heads(model.train().requires_grad_(False))
        optimizer = torch.optim.AdamW([each.requires_grad_(True) for each in trained], lr=lr, weight_decay=0.0)
        loss = nn.CrossEntropyLoss(label_smoothing=self.options.smoothing)
        for _, (images, labels) in zip(range(steps), _forever(self.train_loader)):
            with self.autocast():
                outputs = model(images)
                logits = outputs[0] if isinstance(outputs, tuple) else outputs
                value = loss(logits, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()


def open_run(checkpoint: Path, **changed: Any) -> SupernetRun:
    """Reads a supernet from a checkpoint of ``train.py --supernet``.

    Args:
        checkpoint: ``last.pth.tar`` or ``best.pth.tar`` of its run.
        changed: Options of the run that are others here, such as ``data_dir`` or ``holdout``; None leaves one.

    Raises:
        ValueError: The checkpoint is damaged or no supernet's, its space is another, or its images are not to be had.
    """
    state = read_checkpoint(checkpoint)
    if "space" not in state:
        raise ValueError(f"--supernet is {str(checkpoint)!r}; that run did not train a supernet")
    options = TrainOptions(**state["options"] | {key: value for key, value in changed.items() if value is not None})
    networks = load_network_space(options.supernet)
    if networks.space.fingerprint != state["space"]:
        raise ValueError(
            f"--supernet is {str(checkpoint)!r}, of a space with the fingerprint {state['space']}; "
            f"{options.supernet!r} has {networks.space.fingerprint}: name its file with --space"
        )
    arguments = {key: value for key, value in state["model_args"].items() if key != "network_def"}
    supernet = make_supernet(networks, **arguments)
    weights = state.get("state_dict_ema", state["state_dict"])
    load_weights(supernet, weights, checkpoint)
    process = make_process(options.device)
    place_model(supernet, options, process)
    config = make_data_config(options, supernet)
    held_out = open_dataset(options, training=False)
    return SupernetRun(
        options,
        process,
        supernet.eval(),
        _kept(make_eval_loader(held_out, config, options, process.device), supernet, len(held_out)),
        make_train_loader(open_dataset(options, training=True), config, options, process.device, distributed=False),
        config,
        make_autocast(process.device, options.amp, options.amp_dtype),
        {
            "space": f"{networks.space.name} ({networks.space.fingerprint})",
            "weights": _fingerprint(weights),
            "img_size": list(supernet.img_size),
            **{name: asdict(options)[name] for name in ("dataset", "train_split", "val_split", "holdout")},
        },
    )


def _norms_and_heads(model: nn.Module) -> list[nn.Parameter]:
    parts = [each for each in model.modules() if isinstance(each, (nn.LayerNorm, nn.BatchNorm2d))]
    heads = model.get_classifier()
    return [each for part in [*parts, *(heads if isinstance(heads, tuple) else [heads])] for each in part.parameters()]


def _forever(loader: torch.utils.data.DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        yield from loader


def _kept(loader: torch.utils.data.DataLoader, supernet: SuperNet, count: int) -> Batches:
    """The batches in memory, where they are small enough."""
    height, width = supernet.img_size
    return list(loader) if 4 * count * supernet.in_chans * height * width <= _IN_MEMORY else loader


def _fingerprint(weights: dict[str, torch.Tensor]) -> str:
    """Tells one set of weights from another: a study of one supernet must not go on with another."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
