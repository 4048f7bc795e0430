"""In-place distillation: the smaller nets of a supernet learn what its largest net says."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn

if TYPE_CHECKING:
    from ..search.supernet import SuperNet

Logits = tuple[torch.Tensor, ...]  # of the classifier, and of the patch head where there is one


class InplaceDistillationTask(ClassificationTask):
    """A timm training task: the largest net learns the targets, and all others what it makes of their images.

    Of the nets that are chosen for a batch, one or more must be the whole net (:class:`Architectures` with
    ``sandwich=True`` sees to that): their examples are learnt from the targets. For the examples of all others the
    whole net computes logits in evaluation mode, without gradients: their soft cross entropy is the loss, and with a
    patch head that of the patches' logits is added. The loss is the mean over all examples of the batch.

    Yu, Huang, "Universally Slimmable Networks", ICCV 2019. There the largest net computes all images in training mode;
    here an example trains one net, and what it is to learn has no stochastic depth.

    Args:
        model: A supernet, not wrapped.
        criterion: Loss of the targets, a mean over examples.
        device: Where the model is.

    Raises:
        ValueError: if the model has a distillation head, which has no part in this, and in a step without the whole
            net.
    """

    def __init__(self, model: "SuperNet", criterion: nn.Module, device: torch.device | None = None) -> None:
        if model.head_dist is not None:
            raise ValueError("distilled is True with in-place distillation; its nets have one classifier")
        super().__init__(model, criterion, device=device, verbose=False)

    def forward(self, input: torch.Tensor, target: Any) -> dict[str, torch.Tensor]:
        """The loss of a batch.

        Args:
            input: Images (B, C, H, W).
            target: What ``criterion`` takes.

        Returns:
            `loss`; its parts `task_loss`, of the largest net's examples, and `distill_loss`, of the others' (0 where
            there are none); and `output`, the logits (B, num_classes).
        """
        supernet = unwrap_model(self.trainable_module)
        own, rest = _split(supernet, len(input), input.device)
        taught = _ask(supernet, input[rest]) if len(rest) else ()
        output = _as_tuple(self.trainable_module(input))
        ours = tuple(each[own] for each in output)
        targets = tuple(each[own] for each in target) if isinstance(target, tuple) else target[own]
        task_loss = self.criterion(ours if len(ours) > 1 else ours[0], targets)
        distill_loss = torch.zeros_like(task_loss)
        for logits, whole in zip(output, taught):
            distill_loss = distill_loss + _soft_cross_entropy(logits[rest], whole)
        loss = (task_loss * len(own) + distill_loss * len(rest)) / len(input)
        return {"loss": loss, "output": output[0], "task_loss": task_loss, "distill_loss": distill_loss}


def _split(supernet: "SuperNet", batch_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the examples that the whole net computes, and those of all others."""
    is_whole = [net == supernet.networks.largest for net in supernet.nets] or [True]
    if not any(is_whole):
        raise ValueError(f"none of the {len(is_whole)} chosen nets is the whole one; in-place distillation needs it")
    whole = torch.tensor(is_whole).repeat(batch_size // len(is_whole))
    return whole.nonzero().flatten().to(device), whole.logical_not().nonzero().flatten().to(device)


@torch.no_grad()
def _ask(supernet: "SuperNet", images: torch.Tensor) -> Logits:
    """The whole net's logits in evaluation mode, with those of the patches where it has a head for them."""
    with _whole(supernet):
        features = supernet.forward_features(images)
        logits = supernet.forward_head(features)
        patch_head = supernet.patch_head
        return (logits,) if patch_head is None else (logits, patch_head(features[:, supernet.num_prefix_tokens :]))


@contextmanager
def _whole(supernet: "SuperNet") -> Iterator[None]:
    """The whole net, in evaluation mode; afterwards the chosen nets, and every module's own mode, again."""
    nets, modes = supernet.nets, [(module, module.training) for module in supernet.modules()]
    supernet.choose(None)
    supernet.eval()
    try:
        yield
    finally:
        supernet.nets = nets
        for module, training in modes:
            module.training = training


def _soft_cross_entropy(logits: torch.Tensor, taught: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of logits (..., K) with the distribution of others."""
    return -(taught.float().softmax(dim=-1) * F.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


def _as_tuple(output: torch.Tensor | Logits) -> Logits:
    return output if isinstance(output, tuple) else (output,)
