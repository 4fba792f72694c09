"""BatchNorm over all processes where PyTorch's own refuses: on the CPU."""

from typing import Any, Tuple

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import nn

from .views import in_float32


class _AllReduce(torch.autograd.Function):
    """Sum over the processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class CrossReplicaBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm whose statistics in training are those of the batches of all processes together, on any device.

    Parameters, buffers and what they become are those of `nn.BatchNorm*d`.
    """

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f'expected at least 2 dimensions, got shape {tuple(x.shape)}')

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, …) normalised."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        mean, var, count = _statistics(x)
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * (count / (count - 1).clamp(min=1)))
        shape = (1, -1) + (1,) * (x.ndim - 2)
        out = (x - mean.view(shape).to(x.dtype)) * (var + self.eps).rsqrt().view(shape).to(x.dtype)
        return out * self.weight.view(shape) + self.bias.view(shape) if self.affine else out

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, unbiased: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(unbiased.to(self.running_var), momentum)


class _CrossReplicaBatchNormAct(CrossReplicaBatchNorm):
    """With the drop and activation of timm's `BatchNormAct2d`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(x)))


def _statistics(x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, biased variance (C,) and count over batches and places of all processes, the variance around the mean."""
    wide = in_float32(x)
    dims = [d for d in range(x.ndim) if d != 1]
    count = wide.new_tensor([wide.numel() / wide.shape[1]])
    sums = _AllReduce.apply(torch.cat([wide.sum(dims), count]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = wide - mean.view((1, -1) + (1,) * (x.ndim - 2))
    return mean, _AllReduce.apply(centred.square().sum(dims)) / count, count


def cross_replica(module: nn.Module) -> nn.Module:
    """Let every BatchNorm share its statistics between processes.

    By PyTorch's own layer on CUDA, by `CrossReplicaBatchNorm` elsewhere.

    Args:
        module: Changed in place.

    Returns:
        The module, or its replacement if it is a BatchNorm itself. Names of parameters and buffers stay.
    """
    parameter = next(module.parameters(), None)
    if parameter is not None and parameter.device.type == 'cuda':
        return convert_sync_batchnorm(module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return _converted(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, _converted(child))
    return module


def _converted(norm: nn.Module) -> nn.Module:
    with_act = isinstance(norm, BatchNormAct2d)
    kind = _CrossReplicaBatchNormAct if with_act else CrossReplicaBatchNorm
    new = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    if with_act:
        new.drop, new.act = norm.drop, norm.act
    for name in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked'):
        setattr(new, name, getattr(norm, name))
    return new.train(norm.training)
