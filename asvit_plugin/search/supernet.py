"""A supernet: one ViT-ResNAS that holds the weights of all nets of a space, and computes several of them per batch.

Liao, Karaman, Sze: "Searching for Efficient Multi-Stage Vision Transformers", 2021 (arXiv 2109.00642).
"""

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_args

from ..checks import check_choice
from ..costs.runtimes import synchronize
from ..models import NetworkDef, ViTResNAS
from .network_space import NetworkSpace, load_network_space
from .space import Choice, Space
from .supernet_masks import clear_masks, install_masks, set_masks, take_over
from .supernet_slices import blocks_left, slice_weights, sliced_net
from .templates import fill

MODES = ("masks", "slices")
_TIMED_STEPS = 3  # of each mode, after one that is not timed; the median counts

Output = torch.Tensor | tuple[torch.Tensor, ...]


class SuperNet(ViTResNAS):
    """The largest net of a space; all others are made of its first channels and heads, and share its weights.

    Until :meth:`choose` says otherwise it computes what a plain ``vit_resnas`` does, to the last bit. A checkpoint of
    it is also one of that net.

    Several nets per batch are computed in one of two ways, with the same numbers and gradients (zeros where no net has
    a weight). ``mode = "masks"`` computes the largest net, and sets to zero what an example's net does not have.
    ``mode = "slices"`` computes the examples of each net with slices of the weights. Either way the stem, whose batch
    norms see all examples, runs once. What is not ``forward`` itself, and nets without a classifier, take masks.

    With gradient checkpointing in masks mode, a batch's backward pass must come before the next forward pass.

    Args:
        networks: The space.
        model: A net of the largest definition; the supernet takes over its modules and what timm knows of it.

    Raises:
        ValueError: for a net of another definition.
    """

    def __init__(self, networks: NetworkSpace, model: ViTResNAS) -> None:
        if model.network_def != str(networks.largest):
            raise ValueError(
                f"model has the network_def {model.network_def!r}; it must be the space's largest net, "
                f"{str(networks.largest)!r}"
            )
        take_over(self, model)
        self.networks = networks
        self.nets: tuple[NetworkDef, ...] = ()  # of the next batches; none stands for the whole net
        self.masks = install_masks(self, networks.largest)
        self._mode = "masks"

    @property
    def mode(self) -> str:
        """How several nets per batch are computed: "masks" or "slices"."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        check_choice("mode", mode, MODES)
        self._mode = mode

    def choose(self, choices: Sequence[Choice] | None) -> None:
        """Have the net of choice i % len(choices) compute example i of the next batches; with None, the whole net.

        Every net computes as many examples: batches must be multiples of the number of choices (``drop_last=True`` of
        a ``DataLoader``).

        Raises:
            ValueError: for no list of choices or none in it, and where one has a decision or value that the space has
                not.
        """
        if isinstance(choices, Mapping):
            raise ValueError("choices are a single one; they must be a list of them, or None for the whole net")
        if choices is not None and not choices:
            raise ValueError("choices are empty; there must be at least one, or None for the whole net")
        self.nets = tuple(self.networks.network(choice) for choice in choices or ())

    def extract(self, choice: Choice, **kwargs: Any) -> ViTResNAS:
        """The net of a choice by itself, with a copy of its weights: what timm builds from the choice's definition.

        Blocks that the choice removes stand in the definition with exists=0, and so the others keep their rates of
        drop path. Device, type and mode are the supernet's, as are image size, classes, pooling and heads.

        Args:
            choice: A value for every decision of the space.
            kwargs: More arguments of ``timm.create_model``, such as ``drop_path_rate``.

        Raises:
            ValueError: where the choice is none of the space, and for arguments with which its weights do not fit.
        """
        net = self.networks.network(choice)
        with torch.device("meta"):
            model = timm.create_model("vit_resnas", **{**get_model_args(self), "network_def": str(net), **kwargs})
        weights = slice_weights(self.state_dict(), self.networks.largest, net)
        try:
            model.load_state_dict({name: weight.clone() for name, weight in weights.items()}, assign=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the weights of the choice do not fit a net with {kwargs}: {reason}") from error
        return model.train(self.training)

    # Forward --------------------------------------------------------------------------------------------------------

    def run_stages(self, x: torch.Tensor, last: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """As :meth:`ViTResNAS.run_stages`, with zeros in channels that the net of an example does not have."""
        clear_masks(self.masks)
        if self.nets:
            self._check_batch(len(x))
            set_masks(self.masks, self.nets, self.networks.largest, len(x), x.device)
        return super().run_stages(x, last)

    def forward(self, x: torch.Tensor) -> Output:
        """As :meth:`ViTResNAS.forward`.

        Raises:
            ValueError: if the number of chosen nets does not divide the batch.
        """
        if self.mode == "masks" or not self.nets or not self.num_classes:
            return super().forward(x)
        self._check_batch(len(x))
        clear_masks(self.masks)
        tokens = self._tokenize(x)
        outputs = [self._forward_slice(x, tokens, index) for index in range(len(self.nets))]
        return _interleave(outputs, self._zero())

    def _check_batch(self, batch_size: int) -> None:
        if batch_size % len(self.nets):
            raise ValueError(
                f"the batch has {batch_size} examples; {len(self.nets)} chosen nets do not divide it (a DataLoader's "
                "last batch is left out by drop_last=True)"
            )

    def _forward_slice(self, x: torch.Tensor, tokens: tuple[torch.Tensor, torch.Tensor], index: int) -> Output:
        """What a chosen net makes of its examples, whose tokens the joint stem has made."""
        net, examples = self.nets[index], slice(index, None, len(self.nets))
        model = sliced_net(self, self.networks.largest, net)
        own = tuple(each[examples, ..., : net.dims[0]] for each in tokens)
        model._tokenize = lambda _: own
        return model.forward(x[examples])  # not by a call, which would run hooks of the supernet once more

    def _zero(self) -> torch.Tensor:
        """Zero, with a gradient of zeros for blocks that no chosen net has: optimizers and DDP expect one of all."""
        zero = torch.zeros((), device=self.cls_token.device)
        for index, stage in enumerate(self.stages):
            used = {i for net in self.nets for i, _ in blocks_left(self.networks.largest, net, index)}
            unused = [block for i, block in enumerate(stage.blocks) if i not in used]
            for parameter in (each for block in unused for each in block.parameters()):
                zero = zero + parameter.flatten()[:0].sum()
        return zero


def _interleave(outputs: Sequence[Output], zero: torch.Tensor) -> Output:
    """The outputs of net j, of every A, as the examples j, j + A, ... of the batch they are from."""
    if isinstance(outputs[0], tuple):
        return tuple(_interleave(each, zero) for each in zip(*outputs))
    return torch.stack(outputs, dim=1).flatten(0, 1) + zero


def make_supernet(space: NetworkSpace | Space | str | Path, **kwargs: Any) -> SuperNet:
    """A supernet of a space of ViT-ResNAS nets.

    Args:
        space: The space: read, or by name, or a YAML file.
        kwargs: Arguments of ``timm.create_model("vit_resnas", ...)``; they win over those of the space. As many classes
            as its definition names, unless ``num_classes`` says otherwise.

    Raises:
        ValueError: for a space that is none of nets which share weights, and arguments that a supernet does not take.
    """
    for name in ("network_def", "features_only"):
        if kwargs.get(name):
            raise ValueError(f"{name} is {kwargs[name]!r}; a supernet's definition is its space's, and it classifies")
    if isinstance(space, Space):
        space = NetworkSpace(space)
    networks = space if isinstance(space, NetworkSpace) else load_network_space(space)
    largest, template = networks.largest_choice(), networks.space.template
    arguments = {"num_classes": networks.largest.num_classes} | {
        name: fill(template[name], largest) for name in template
    }
    arguments |= {name: value for name, value in kwargs.items() if value is not None}  # as timm reads None
    arguments["network_def"] = str(networks.largest)
    return SuperNet(networks, timm.create_model("vit_resnas", **arguments))


def faster_mode(supernet: SuperNet, images: torch.Tensor, choices: Sequence[Choice]) -> str:
    """Times a forward and backward pass in both modes, in turn, and tells the faster one.

    It runs a copy: the supernet, its statistics and gradients, and the random numbers stay as they are.

    Args:
        supernet: A supernet, not wrapped.
        images: A batch (B, C, H, W), on the supernet's device.
        choices: As many as are chosen per batch in training.
    """
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    with torch.random.fork_rng([images.device] if images.is_cuda else []):
        copied = copy.deepcopy(supernet)
        copied.choose(choices)
        for _ in range(1 + _TIMED_STEPS):
            for mode in MODES:
                copied.mode = mode
                seconds[mode].append(_time_step(copied, images))
    return min(MODES, key=lambda mode: statistics.median(seconds[mode][1:]))


def _time_step(model: SuperNet, images: torch.Tensor) -> float:
    synchronize(images.device)
    start = time.perf_counter()
    output = model(images)
    sum(each.sum() for each in (output if isinstance(output, tuple) else (output,))).backward()
    synchronize(images.device)
    elapsed = time.perf_counter() - start
    model.zero_grad()
    return elapsed
