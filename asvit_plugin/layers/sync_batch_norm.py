"""Batch norm over the batches of all processes, on devices for which torch has none."""

from itertools import chain

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, register_notrace_module
from timm.layers import convert_sync_batchnorm as convert_to_torch
from torch import nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm


@register_notrace_module
class SyncBatchNorm2d(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` whose statistics in training mode are those of the batches of all processes together.

    ``torch.nn.SyncBatchNorm`` does this with kernels of its own and refuses tensors on the CPU, so gloo processes
    cannot train with it. This one needs nothing but ``all_gather`` and ``all_reduce``, on any device. Every value
    weighs the same, whatever the processes' batch and image sizes; a batch may be empty. As with torch's, all processes
    have to run it together, forward and backward, and gradients are those of the sum of their losses.

    In eval mode, and where there is no second process, it is ``nn.BatchNorm2d``; its state dict always is.

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: As for ``nn.BatchNorm2d``.
        process_group: The processes that share statistics; all of them by default.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.process_group = process_group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, H, W).

        Raises:
            ValueError: In training mode, the processes have fewer than 2 values per channel in all.
        """
        if self.training and dist.is_available() and dist.is_initialized() and self._world_size() > 1:
            return self._synchronised(x)
        return super().forward(x)

    def _world_size(self) -> int:
        return dist.get_world_size(self.process_group)

    @torch.compiler.disable  # a graph break: the collectives of an autograd function are not traced
    def _synchronised(self, x: torch.Tensor) -> torch.Tensor:
        self._check_input_dim(x)
        mean, var, count = _group_statistics(x.detach(), self._world_size(), self.process_group)
        if count < 2:
            raise ValueError(f"x must have at least 2 values per channel over all processes, not {count:.0f}")
        if self.track_running_stats and self.running_mean is not None:
            self._update_running(mean, var * (count / (count - 1)))
        return _Normalise.apply(x, self.weight, self.bias, mean, var, self.eps, count, self.process_group)

    def _update_running(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            running.copy_(torch.lerp(running.to(batch.dtype), batch, factor))  # float16 may not hold the batch's alone


@register_notrace_module
class _SyncBatchNormAct2d(SyncBatchNorm2d):
    """timm's ``BatchNormAct2d``, synchronised; made by ``convert_sync_batchnorm``, which hands it drop and act."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def _group_statistics(
    x: torch.Tensor, world_size: int, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean and biased variance, (C,) each in at least float32, and values per channel over all processes."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    count = x.numel() // x.shape[1]
    mean = var = x.new_zeros(x.shape[1])
    if count:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    own = torch.stack((mean, var, torch.full_like(mean, count)))
    gathered = [torch.empty_like(own) for _ in range(world_size)]
    dist.all_gather(gathered, own, group=group)
    means, variances, counts = torch.stack(gathered).unbind(1)  # (processes, C) each
    shares = counts / counts.sum(0).clamp(min=1.0)
    mean = (shares * means).sum(0)
    # Law of total variance; differences of squares would lose digits.
    var = (shares * (variances + (means - mean).square())).sum(0)
    return mean, var, counts[:, 0].double().sum().item()


def _per_channel(statistic: torch.Tensor) -> torch.Tensor:
    return statistic[:, None, None]


class _Normalise(torch.autograd.Function):
    """Batch norm by given statistics; backward, these count as functions of all processes' inputs."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        mean: torch.Tensor,
        var: torch.Tensor,
        eps: float,
        count: float,
        group: dist.ProcessGroup | None,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps))
        ctx.count, ctx.group = count, group
        affine = [p if p is None else p.to(mean.dtype) for p in (weight, bias)]
        return F.batch_norm(x, mean, var, *affine, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, inv_std = ctx.saved_tensors
        normed, grad = (x - _per_channel(mean)) * _per_channel(inv_std), grad.to(mean.dtype)
        sums = torch.stack((grad.sum((0, 2, 3)), (grad * normed).sum((0, 2, 3))))  # (2, C)
        grad_bias, grad_weight = sums.clone().unbind()  # of this process alone: data parallelism adds them up
        grad_x = None
        if ctx.needs_input_grad[0]:
            dist.all_reduce(sums, group=ctx.group)
            shift, slope = (_per_channel(total / ctx.count) for total in sums)
            scale = inv_std if weight is None else inv_std * weight
            grad_x = ((grad - shift - normed * slope) * _per_channel(scale)).to(x.dtype)
        needed = zip((grad_weight, grad_bias), ctx.needs_input_grad[1:3])
        return grad_x, *(g if need else None for g, need in needed), None, None, None, None, None


def convert_sync_batchnorm(model: nn.Module, process_group: dist.ProcessGroup | None = None) -> nn.Module:
    """Synchronise every batch norm of ``model`` over the processes; parameters and buffers stay the same tensors.

    On CUDA devices this is ``timm.layers.convert_sync_batchnorm``, with torch's kernels; elsewhere
    ``nn.BatchNorm2d`` becomes ``SyncBatchNorm2d``, and timm's ``BatchNormAct2d`` keeps its activation. Call it when
    the model is on its device, and before ``DistributedDataParallel``.

    Args:
        model: Changed in place.
        process_group: The processes that share statistics; all of them by default.

    Returns:
        ``model``, or what replaces it where it is a batch norm itself.

    Raises:
        ValueError: ``model``, not on a CUDA device, has a batch norm of another class. It is unchanged then.
    """
    if {tensor.device.type for tensor in chain(model.parameters(), model.buffers())} == {"cuda"}:
        return convert_to_torch(model, process_group)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and not isinstance(m, SyncBatchNorm2d)]
    converted = {norm: _synchronised_norm(norm, process_group) for norm in norms}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # unlike named_children, with every name of a shared module
            parent._modules[name] = converted.get(child, child)
    return converted.get(model, model)


def _synchronised_norm(norm: _BatchNorm, process_group: dist.ProcessGroup | None) -> SyncBatchNorm2d:
    """A synchronised norm with the tensors, settings and, if there is one, the activation of ``norm``."""
    classes = {nn.BatchNorm2d: SyncBatchNorm2d, BatchNormAct2d: _SyncBatchNormAct2d}
    if type(norm) not in classes:
        raise ValueError(
            "model's batch norms must be BatchNorm2d or timm's BatchNormAct2d to be synchronised without CUDA, not "
            f"{type(norm).__name__}"
        )
    settings = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    new = classes[type(norm)](*settings, process_group=process_group, device="meta")
    for name in (*norm._parameters, *norm._buffers, *norm._modules):
        setattr(new, name, getattr(norm, name))
    return new.train(norm.training)
