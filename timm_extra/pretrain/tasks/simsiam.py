"""SimSiam (Chen and He, 2020, https://arxiv.org/abs/2011.10566)."""

from typing import List, Optional, Sequence

import torch
from torch import nn

from ..views import SIMSIAM_VIEWS
from .encoder import Encoder, HiddenLayer, embedding_size
from .heads import mlp
from .task import View
from .two_views import Online, Output, TwoViewTask, cosine


class SimSiam(TwoViewTask):
    """Predict one view's projection from another's, whose gradient is stopped; no second network.

    Projector of three layers, the last normalised too; predictor with a bottleneck. As in the authors' code, no layer
    that a norm follows has a bias.

    Args:
        model: Any timm model, or any module together with `hidden_layer`. Construction changes nothing in it.
        hidden_layer: Name or index of the layer whose output is the embedding; None for timm's `pre_logits`.
        projection_size: Features of projections and predictions, and within the projector.
        prediction_hidden_size: Features of the predictor's bottleneck.
        view1: First augmentation, any callable or module on images (B, C, H, W); the paper's when None.
        view2: Second augmentation; when None as the first, if that is given, or the paper's.
        head_norm: 'batch' as in the paper, or 'group' with standardised weights.
        input_size: Channels, height and width of a view; the model's own when None.
        mean: What the paper's views subtract from each channel; the model's own when None.
        std: What they divide by then; likewise.
        device: Device of the heads; the model's when None.
        dtype: Dtype of the heads; the model's when None.
        verbose: Log what is done.

    Raises:
        ValueError: What `hidden_layer` and `head_norm` cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden_layer: HiddenLayer = None,
        projection_size: int = 2048,
        prediction_hidden_size: int = 512,
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
            recipes=SIMSIAM_VIEWS,
            device=device,
            dtype=dtype,
            verbose=verbose,
        )
        encoder = Encoder(model, hidden_layer)
        heads = dict(norm=head_norm, bias=False, device=self.device, dtype=self.dtype)
        size = embedding_size(encoder, self.input_size)
        projector = mlp((size, projection_size, projection_size, projection_size), last_norm=True, **heads)
        predictor = mlp((projection_size, prediction_hidden_size, projection_size), last_bias=True, **heads)
        self.trainable_module = Online(encoder, projector, predictor)

    def _loss(self, online: List[Output], views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Equation 2: half the negative cosines of predictions and the other view's projections."""
        (_, z1, p1), (_, z2, p2) = online
        return -(cosine(p1, z2.detach()) + cosine(p2, z1.detach())) / 2
