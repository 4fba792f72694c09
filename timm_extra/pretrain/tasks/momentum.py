"""A target network that follows the online one, as in BYOL (https://arxiv.org/abs/2006.07733, section 3.1)."""

import copy
import math
from typing import Any, Callable, Dict, List, Optional, Union

import torch
from torch import nn

from .task import PretrainingTask


class MomentumTask(PretrainingTask):
    """A task with a target network: a moving average of the encoder and some of the heads, without gradients.

    A subclass sets `trainable_module`, then calls `_set_decay` and `_copy_target`.

    Attributes:
        target: Copies of children of the online network by name; None for a task without a target.
        decay: τ₀, or a function of the step.
        num_steps: K, the steps of the training; None for a constant decay.
    """

    target: Optional[nn.ModuleDict]

    def _set_decay(self, decay: Union[float, Callable[[int], float]], num_steps: Optional[int]) -> None:
        if not callable(decay) and not (isinstance(decay, (int, float)) and 0 <= decay <= 1):
            raise ValueError(f'decay must be between 0 and 1, got {decay!r}')
        if num_steps is not None and num_steps < 1:
            raise ValueError(f'num_steps must be positive, got {num_steps}')
        self.decay, self.num_steps = decay, num_steps

    def _copy_target(self, *names: str) -> None:
        """Make the target network from children of the online one."""
        self.target = nn.ModuleDict({name: copy.deepcopy(getattr(self._online(), name)) for name in names})
        self.target.requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """τ of a step, counted from 0."""
        if callable(self.decay):
            return float(self.decay(step))
        if self.num_steps is None:
            return self.decay
        progress = min(step / self.num_steps, 1.0)
        return 1 - (1 - self.decay) * (math.cos(math.pi * progress) + 1) / 2

    @torch.no_grad()
    def update_ema(self, step: Optional[int] = None) -> None:
        """Move the target network towards the online one, running statistics included; counters are copied.

        To be called after every step of the optimizer.

        Args:
            step: Which step it was, counted from 0, for the schedule of the decay.

        Raises:
            ValueError: The decay has a schedule and no step is given.
        """
        super().update_ema(step)
        if self.target is None:
            return
        if step is None and (callable(self.decay) or self.num_steps is not None):
            raise ValueError('update_ema needs the step: the decay changes over training')
        tau = self.decay_at(step or 0)
        online = self._online()
        moving: List[torch.Tensor] = []
        towards: List[torch.Tensor] = []
        for name, module in self.target.items():
            pairs = zip(_tensors(module), _tensors(getattr(online, name)), strict=True)
            for old, new in pairs:
                if old.is_floating_point():
                    moving.append(old)
                    towards.append(new)
                else:
                    old.copy_(new)
        torch._foreach_lerp_(moving, towards, 1 - tau)

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'MomentumTask':
        """Wrap the online network in DistributedDataParallel, and take the first process's target everywhere."""
        super().prepare_distributed(device_ids, **ddp_kwargs)
        if self.target is not None:
            for tensor in _tensors(self.target):
                torch.distributed.broadcast(tensor.detach(), 0)
        return self

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> Dict[str, Any]:
        """State of the heads and the target network."""
        state = super().get_task_state(module, ema)
        if self.target is not None and not ema:
            state['target'] = self.target.state_dict()
        return state

    def load_task_state(
        self,
        state: Optional[Dict[str, Any]],
        strict: bool = True,
        module: Optional[nn.Module] = None,
        ema: bool = False,
    ) -> None:
        """Load what `get_task_state` gave."""
        super().load_task_state(state, strict, module, ema)
        if state and self.target is not None and not ema:
            self.target.load_state_dict(state['target'], strict=strict)

    def reset_target(self) -> None:
        """Make the target network equal to the online one."""
        if self.target is not None:
            online = self._online()
            for name, module in self.target.items():
                module.load_state_dict(getattr(online, name).state_dict())


def _tensors(module: nn.Module) -> List[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
