"""What coarse tokens, or small images, save of the arithmetic of a training."""

from options import TrainOptions
from pretrained import first_line
from timm.data.scheduled_sampler import ScheduledBatchSampler
from torch import nn
from torch.utils.data import DataLoader

from asvit_plugin import ProgressiveTokenization
from asvit_plugin.costs import macs, run_on_meta


def count_savings(
    model: nn.Module,
    schedule: ProgressiveTokenization | None,
    loader: DataLoader,
    options: TrainOptions,
    input_size: tuple[int, int, int],
    epochs: int,
) -> float | None:
    """Part of the training MACs that a run saves against one with all tokens of full images throughout.

    Args:
        model: What is trained.
        schedule: Its progressive tokenization, if any.
        loader: Training batches.
        options: With the sizes of training images, if there are several.
        input_size: Full size, (C, H, W).
        epochs: Length of the run, which may cool down after `--epochs`.

    Returns:
        The saved part; None for a run that has neither.

    Raises:
        ValueError: The model takes images of one size only.
    """
    if schedule is not None:
        return schedule.saved_fraction(input_size)
    sampler = loader.batch_sampler
    if not isinstance(sampler, ScheduledBatchSampler):
        return None
    try:
        run_on_meta(model, input_size)
    except NotImplementedError:  # it cannot run without values, and nothing can be said
        return None
    costs = _costs_of_sizes(model, options.train_img_sizes, input_size)
    spent, images = 0, 0
    for epoch in range(epochs):
        sampler.epoch = epoch
        for choice, batch_size in sampler.schedule:
            spent, images = spent + batch_size * costs[choice], images + batch_size
    return 1 - spent / (images * macs(model, input_size))


def _costs_of_sizes(model: nn.Module, sides: list[int], input_size: tuple[int, int, int]) -> list[int]:
    """MACs of one image of each side."""
    try:
        return [macs(model, (input_size[0], side, side)) for side in sides]
    except ValueError as error:
        if isinstance(error.__cause__, AssertionError):  # timm's ViTs of a fixed size
            raise ValueError(
                f"--train-img-sizes is {sides}; this model takes {input_size[-1]} only (timm's ViTs take others with "
                "--model-kwargs.dynamic_img_size true)"
            ) from error
        raise ValueError(f"--train-img-sizes is {sides}; the model does not take them: {first_line(error)}") from error
