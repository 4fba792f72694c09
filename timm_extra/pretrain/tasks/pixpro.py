"""PixPro: pixel-to-propagation consistency (Xie et al., 2020, https://arxiv.org/abs/2011.10043)."""

import math
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import nn

from ..located import Located, positive_pairs, with_places
from ..views import BYOL_VIEWS, Recipe, in_float32
from .encoder import embedding_size
from .heads import mlp
from .maps import MapEncoder
from .momentum import MomentumTask
from .task import View
from .two_views import cosine, normalises_batches, projection_std


class PixelPropagation(nn.Module):
    """Features of every pixel, smoothed over the pixels of its image that are alike.

    Section 3.2, equations 3 and 4: yᵢ = Σⱼ max(cos(xᵢ, xⱼ), 0)^γ · g(xⱼ), over all pixels of the image.

    Args:
        dim: D.
        gamma: γ, the sharpness of the similarity.
        transform_layers: l, the linear layers of g, with a norm and ReLU between them; 0 for g(x) = x.
        norm: As `mlp` has it.
        device: Device.
        dtype: Dtype.

    Raises:
        ValueError: γ is not positive and finite, or l is no integer from 0 on.
    """

    def __init__(
        self,
        dim: int,
        gamma: float = 2.0,
        transform_layers: int = 1,
        *,
        norm: str = 'batch',
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
    ):
        super().__init__()
        if not (_is_number(gamma) and gamma > 0):
            raise ValueError(f'`gamma` must be positive and finite, got {gamma!r}')
        if type(transform_layers) is not int or transform_layers < 0:
            raise ValueError(f'`transform_layers` must be an integer, 0 or more, got {transform_layers!r}')
        self.gamma = gamma
        self.transform = nn.Identity()
        if transform_layers:
            self.transform = mlp((dim,) * (transform_layers + 1), norm=norm, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Smoothed pixels (B, N, D) of pixels (B, N, D)."""
        unit = F.normalize(x, dim=-1)
        similarity = unit @ unit.mT  # (B, N, N)
        if self.gamma < 1:  # then 0 to this power has no finite gradient
            alike = similarity > 0
            weights = torch.where(alike, torch.where(alike, similarity, 1.0) ** self.gamma, 0.0)
        else:
            weights = similarity.clamp(min=0) ** self.gamma
        return weights @ on_pixels(self.transform, x)


class Pixels(NamedTuple):
    """What the online network computes for a view: N = h·w pixels.

    Attributes:
        maps: Feature maps (B, C, h, w).
        projection: x (B, N, D).
        propagated: y (B, N, D).
        instance: Prediction of the other view's projection as a whole (B, D); None without the instance loss.
    """

    maps: torch.Tensor
    projection: torch.Tensor
    propagated: torch.Tensor
    instance: Optional[torch.Tensor]


class PixelOnline(nn.Module):
    """The network that learns: encoder, projection and propagation of pixels, projection and prediction of instances.

    Every view has a forward pass of its own.
    """

    def __init__(
        self,
        encoder: MapEncoder,
        projector: nn.Module,
        propagation: nn.Module,
        instance: Optional[Tuple[nn.Module, ...]],
    ):
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.propagation = propagation
        self.instance_projector, self.predictor = instance or (None, None)

    def forward(self, *views: torch.Tensor) -> List[Pixels]:
        """Outputs for every view, in one call so that DDP sees one forward pass."""
        outputs = []
        for view in views:
            maps, projection, instance = project(self.encoder, self.projector, self.instance_projector, view)
            prediction = None if instance is None else self.predictor(instance)
            outputs.append(Pixels(maps, projection, self.propagation(projection), prediction))
        return outputs


class PixPro(MomentumTask):
    """Predict, for every pixel, what a slowly moving copy computes at the same place of another view.

    The prediction of a pixel is the mean of its image's pixels that are alike, by `PixelPropagation`; which pixels
    of two crops are at the same place follows from the crops (`positive_pairs`). BYOL's loss of whole images is added.

    Args:
        model: Any timm model with feature maps: ConvNets, Swin, ViT, CeiT, GLOM. Construction changes nothing in it.
        feature_index: Which of its maps, as `MapEncoder` has it; the last by default.
        projection_size: D, features of projections and predictions.
        projection_hidden_size: Features between the two layers of projectors and predictor.
        gamma: γ, the sharpness of the similarity in the propagation.
        transform_layers: l, the linear layers of the propagation's transform.
        threshold: T, the distance up to which two pixels are the same place, in units of a pixel's diagonal.
        instance_weight: α, the weight of the loss of whole images; without its heads and its cost at 0.
        decay: Decay of the target network per step: τ₀, or a function of the step.
        num_steps: K, the steps of the training: the decay goes from τ₀ to 1 along a cosine. None leaves it at τ₀.
        view1: First augmentation, a `RandomView`, or any callable from images (B, C, H, W) to `Located`; BYOL's when
            None.
        view2: Second augmentation; when None as the first, if that is given, or BYOL's.
        head_norm: 'batch' as in the paper, or 'group' with standardised weights.
        input_size: Channels, height and width of a view; the model's own when None.
        mean: What the views subtract from each channel; the model's own when None.
        std: What they divide by then; likewise.
        device: Device of the heads; the model's when None.
        dtype: Dtype of the heads; the model's when None.
        verbose: Log what is done.

    Attributes:
        trainable_module: `PixelOnline`, or its DDP wrapper.

    Raises:
        ValueError: The model has no feature maps, or an argument is out of range.

    Differences from the paper: the loss of whole images is BYOL's, as in the authors' code, where the paper has
    SimCLR's with a momentum encoder. Differences from that code: its transformed pixels are normalised before they
    are summed, ours are not, as in the paper; its projections of instances are averages over the projected map, ours
    are projections of the model's embedding; all its terms are twice as large; batch statistics that the target keeps
    for evaluation follow the online network's.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        feature_index: int = -1,
        projection_size: int = 256,
        projection_hidden_size: int = 2048,
        gamma: float = 2.0,
        transform_layers: int = 1,
        threshold: float = 0.7,
        instance_weight: float = 1.0,
        decay: Union[float, Callable[[int], float]] = 0.99,
        num_steps: Optional[int] = None,
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
        super().__init__(model, input_size=input_size, mean=mean, std=std, device=device, dtype=dtype, verbose=verbose)
        for name, value in (('threshold', threshold), ('instance_weight', instance_weight)):
            if not (_is_number(value) and value >= 0):
                raise ValueError(f'`{name}` must be 0 or more and finite, got {value!r}')
        self._set_decay(decay, num_steps)
        self.threshold, self.instance_weight = threshold, instance_weight
        self.view1 = self._view(view1, BYOL_VIEWS[0])
        self.view2 = self._view(view1 if view2 is None else view2, BYOL_VIEWS[1])
        encoder = MapEncoder(model, feature_index, self.input_size)
        heads = dict(norm=head_norm, device=self.device, dtype=self.dtype)
        hidden, size = projection_hidden_size, projection_size
        projector = mlp((encoder.map_shape[0], hidden, size), **heads)
        propagation = PixelPropagation(size, gamma, transform_layers, **heads)
        instance = None
        if instance_weight:
            embedded = embedding_size(encoder, self.input_size)
            instance = mlp((embedded, hidden, size), **heads), mlp((size, hidden, size), **heads)
        self.trainable_module = PixelOnline(encoder, projector, propagation, instance)
        self._copy_target('encoder', 'projector', *(['instance_projector'] if instance_weight else []))

    def _view(self, view: Optional[View], recipe: Recipe) -> View:
        return with_places(super()._view(view, recipe))

    @property
    def views(self) -> Tuple[View, View]:
        """Both augmentations, which give `Located`."""
        return self.view1, self.view2

    def forward(
        self, input: Union[torch.Tensor, Sequence[Located]], target: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """Loss of a batch.

        Args:
            input: Images (B, C, H, W), to which `view1` and `view2` are applied, or two `Located` made before.
            target: Not used: labels are what there are none of.

        Returns:
            `loss`, a scalar; `output`, the feature maps of the first view (B, C, h, w); `std` of the projections of
            pixels, 1 if they fill all directions and 0 if all are the same (collapse); none of a single pixel.

        Raises:
            ValueError: There is one image only, in training mode with BatchNorm, or there are not two views with
                places of the same images.
        """
        views = self._viewed(input)
        for number, view in enumerate(views, 1):
            if not isinstance(view, Located):
                raise ValueError(
                    f'view{number} gives {type(view).__name__}, not `Located`: PixPro needs the place of every crop'
                )
        online = self._online()
        rows = len(views[0]) if self.instance_weight else len(views[0]) * math.prod(online.encoder.map_shape[1:])
        if self.training and rows < 2 and normalises_batches(online.projector):
            raise ValueError('a batch of one image has no batch statistics: raise `batch_size`')
        outputs = self.trainable_module(*(view.images for view in views))
        out = dict(loss=self._loss(outputs, views), output=outputs[0].maps.detach())
        projections = outputs[0].projection.flatten(0, 1)
        return dict(out, std=projection_std(projections)) if len(projections) > 1 else out

    def _loss(self, online: List[Pixels], views: Sequence[Located]) -> torch.Tensor:
        """Equations 5 and 6: −cos of propagated and target pixels at the same place, and of instances, both orders."""
        with torch.no_grad():
            heads = self.target['projector'], self.target['instance_projector'] if self.instance_weight else None
            targets = [project(self.target['encoder'], *heads, view.images) for view in views]
        with torch.autocast(views[0].images.device.type, enabled=False):
            sizes, loss = [output.maps.shape[2:] for output in online], 0.0
            pairs = positive_pairs(*views, sizes, self.threshold, in_float32(online[0].propagated).dtype)
            for one, other in ((0, 1), (1, 0)):
                both = pairs.mT if one else pairs
                loss = loss + consistency(online[one].propagated, targets[other][1], both)
                if self.instance_weight:
                    loss = loss - self.instance_weight * cosine(online[one].instance, targets[other][2])
        return loss


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def project(
    encoder: MapEncoder, projector: nn.Module, instance_projector: Optional[nn.Module], view: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]]:
    """Feature maps (B, C, h, w), projections of pixels (B, h·w, D) and, if there is a projector, instances (B, D)."""
    if instance_projector is None:
        maps, instance = encoder.maps(view), None
    else:
        maps, embedding = encoder.maps_and_embeddings(view)
        instance = instance_projector(embedding)
    return maps, on_pixels(projector, maps.flatten(2).mT), instance


def on_pixels(head: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A head on all pixels (B, N, C) of a batch: linear layers are 1×1 convolutions, and norms those of maps."""
    return head(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def consistency(propagated: torch.Tensor, targets: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """Equation 5: the mean of −cos(yᵢ, x′ⱼ) over the pairs of every image, averaged over the images.

    Args:
        propagated: y (B, N, D).
        targets: x′ (B, M, D).
        pairs: Which pixels are at the same place (B, N, M). An image without any adds 0.

    Returns:
        The loss, in at least float32.
    """
    y, x = (F.normalize(in_float32(t), dim=-1) for t in (propagated, targets))
    sums = (y * (pairs.to(x.dtype) @ x)).sum((1, 2))  # of cosines: Σᵢ yᵢ · Σⱼ x′ⱼ
    return -(sums / pairs.sum((1, 2)).clamp(min=1)).mean()
