"""Bootstrap Your Own Latent (Grill et al., 2020, https://arxiv.org/abs/2006.07733)."""

from typing import Callable, List, Optional, Sequence, Union

import torch
from torch import nn

from ..views import BYOL_VIEWS
from .encoder import Encoder, HiddenLayer, embedding_size
from .heads import mlp
from .momentum import MomentumTask
from .task import View
from .two_views import Online, Output, TwoViewTask, cosine


class BYOL(MomentumTask, TwoViewTask):
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
        self._set_decay(decay, num_steps)
        encoder = Encoder(model, hidden_layer)
        heads = dict(norm=head_norm, last_bias=False, device=self.device, dtype=self.dtype)
        size = embedding_size(encoder, self.input_size)
        projector = mlp((size, projection_hidden_size, projection_size), **heads)
        predictor = mlp((projection_size, projection_hidden_size, projection_size), **heads)
        self.trainable_module = Online(encoder, projector, predictor)
        self.target = None
        if use_momentum:
            self._copy_target('encoder', 'projector')

    def _loss(self, online: List[Output], views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Equations 2 and 3: 2 − 2 cos of prediction and target, for both orders of the views."""
        predictions = [prediction for _, _, prediction in online]
        if self.target is None:
            targets = [projection.detach() for _, projection, _ in online]
        else:
            with torch.no_grad():
                targets = [self.target['projector'](self.target['encoder'](view)) for view in views]
        return 4 - 2 * (cosine(predictions[0], targets[1]) + cosine(predictions[1], targets[0]))
