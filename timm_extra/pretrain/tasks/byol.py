"""Bootstrap Your Own Latent (Grill et al., 2020, https://arxiv.org/abs/2006.07733)."""

import copy
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

import torch
from torch import nn

from ..views import BYOL_VIEWS
from .encoder import Encoder, HiddenLayer, embedding_size
from .heads import mlp
from .task import View
from .two_views import Online, Output, TwoViewTask, cosine


class BYOL(TwoViewTask):
    """Predict a slowly moving copy's projection of one view from another view of the same image.

    Construction changes nothing in the model: no forward pass, no statistics, no random state but that of the
    heads' initial weights.

    Args:
        model: Any timm model, or any module together with `hidden_layer`.
        hidden_layer: Name or index of the layer whose output is the embedding; None for timm's `pre_logits`.
        projection_size: Features of projections and predictions.
        projection_hidden_size: Features between the two layers of projector and predictor.
        decay: Decay of the target network per step: τ₀, or a function of the step.
        num_steps: K, the steps of the training: the decay goes from τ₀ to 1 along a cosine, τ = 1 − (1 − τ₀)
            (cos(πk / K) + 1) / 2. None leaves it at τ₀.
        use_momentum: Without it there is no target network: the online projections are the targets.
        view1: First augmentation, any callable or module on images (B, C, H, W); the paper's when None.
        view2: Second augmentation; when None as the first, if that is given, or the paper's.
        head_norm: 'batch' as in the paper, or 'group' (16 groups, standardised weights, as in
            https://arxiv.org/abs/2010.10241); see `without_batchnorm` for the model.
        input_size: Channels, height and width of a view; the model's own when None.
        mean: What the paper's views subtract from each channel; the model's own when None.
        std: What they divide by then; likewise.
        device: Device of the heads; the model's when None.
        dtype: Dtype of the heads; the model's when None.
        verbose: Log what is done.

    Raises:
        ValueError: A decay outside [0, 1], or what `hidden_layer` and `head_norm` cannot be.

    Differences from the authors' code: batch statistics that the target network keeps for evaluation follow the online
    network's, too.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden_layer: HiddenLayer = None,
        projection_size: int = 256,
        projection_hidden_size: int = 4096,
        decay: Union[float, Callable[[int], float]] = 0.996,
        num_steps: Optional[int] = None,
        use_momentum: bool = True,
        view1: Optional[View] = None,
        view2: Optional[View] = None,
        head_norm: str = 'batch',
        input_size: Optional[Sequence[int]] = None,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
        verbose: bool = True,
    ):
        super().__init__(
            model,
            input_size=input_size,
            mean=mean,
            std=std,
            view1=view1,
            view2=view2,
            recipes=BYOL_VIEWS,
            device=device,
            dtype=dtype,
            verbose=verbose,
        )
        if not callable(decay) and not 0 <= decay <= 1:
            raise ValueError(f'decay must be between 0 and 1, got {decay}')
        if num_steps is not None and num_steps < 1:
            raise ValueError(f'num_steps must be positive, got {num_steps}')
        self.decay, self.num_steps = decay, num_steps
        encoder = Encoder(model, hidden_layer)
        heads = dict(norm=head_norm, last_bias=False, device=self.device, dtype=self.dtype)
        size = embedding_size(encoder, self.input_size)
        projector = mlp((size, projection_hidden_size, projection_size), **heads)
        predictor = mlp((projection_size, projection_hidden_size, projection_size), **heads)
        self.trainable_module = Online(encoder, projector, predictor)
        self.target = None
        if use_momentum:
            self.target = nn.ModuleDict(dict(encoder=copy.deepcopy(encoder), projector=copy.deepcopy(projector)))
            self.target.requires_grad_(False)

    def _loss(self, online: List[Output], views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Equations 2 and 3: 2 − 2 cos of prediction and target, for both orders of the views."""
        predictions = [prediction for _, _, prediction in online]
        if self.target is None:
            targets = [projection.detach() for _, projection, _ in online]
        else:
            with torch.no_grad():
                targets = [self.target['projector'](self.target['encoder'](view)) for view in views]
        return 4 - 2 * (cosine(predictions[0], targets[1]) + cosine(predictions[1], targets[0]))

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

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'BYOL':
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
