"""What BYOL and SimSiam share: two views, an online network, predictions of the other view's projection."""

from abc import abstractmethod
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import nn

from ..sync_batchnorm import CrossReplicaBatchNorm
from ..views import Recipe, in_float32
from .encoder import Encoder
from .task import PretrainingTask, View

Output = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Online(nn.Module):
    """The network that learns: encoder, projector, predictor. Every view has a forward pass of its own."""

    def __init__(self, encoder: Encoder, projector: nn.Module, predictor: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor

    def forward(self, *views: torch.Tensor) -> List[Output]:
        """Embedding, projection and prediction of every view, in one call so that DDP sees one forward pass."""
        outputs = []
        for view in views:
            embedding = self.encoder(view)
            projection = self.projector(embedding)
            outputs.append((embedding, projection, self.predictor(projection)))
        return outputs


class TwoViewTask(PretrainingTask):
    """A task whose loss compares predictions from one view with projections of another.

    Attributes:
        trainable_module: `Online`, or its DDP wrapper.
        view1: First augmentation.
        view2: Second augmentation.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        input_size: Optional[Sequence[int]],
        mean: Optional[Sequence[float]],
        std: Optional[Sequence[float]],
        view1: Optional[View],
        view2: Optional[View],
        recipes: Tuple[Recipe, Recipe],
        device: Optional[torch.device],
        dtype: Optional[torch.dtype],
        verbose: bool,
    ):
        super().__init__(model, input_size=input_size, mean=mean, std=std, device=device, dtype=dtype, verbose=verbose)
        self.view1 = self._view(view1, recipes[0])
        self.view2 = self._view(view1 if view2 is None else view2, recipes[1])

    @property
    def views(self) -> Tuple[View, View]:
        """Both augmentations."""
        return self.view1, self.view2

    @abstractmethod
    def _loss(self, online: List[Output], views: Sequence[torch.Tensor]) -> torch.Tensor:
        """Loss of a batch."""

    def forward(
        self,
        input: Union[torch.Tensor, Sequence[torch.Tensor]],
        target: Optional[torch.Tensor] = None,
        return_embedding: bool = False,
    ) -> Union[Dict[str, torch.Tensor], Tuple[torch.Tensor, torch.Tensor]]:
        """Loss of a batch.

        Args:
            input: Images (B, C, H, W), to which `view1` and `view2` are applied, or two views made before.
            target: Not used: labels are what there are none of.
            return_embedding: Give (projection (B, P), embedding (B, D)) of the images as they are instead.

        Returns:
            `loss`, a scalar; `output`, the embeddings of the first view (B, D); `std` of the projections, 1
            if they fill all directions and 0 if all are the same (collapse); none of a batch of one image.

        Raises:
            ValueError: There is one image only, in training mode with BatchNorm, or there are not two views.
        """
        if return_embedding:
            embedding = self._online().encoder(input)
            return self._online().projector(embedding), embedding
        views = self._viewed(input)
        if self.training and len(views[0]) < 2 and normalises_batches(self._online().projector):
            raise ValueError('a batch of one image has no batch statistics: raise `batch_size`')
        online = self.trainable_module(*views)
        out = dict(loss=self._loss(online, views), output=online[0][0].detach())
        return dict(out, std=projection_std(online[0][1])) if len(views[0]) > 1 else out


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the angles between rows of a and b (B, D), in at least float32."""
    a, b = (F.normalize(in_float32(t), dim=-1) for t in (a, b))
    return (a * b).sum(-1).mean()


@torch.no_grad()
def projection_std(z: torch.Tensor) -> torch.Tensor:
    """Standard deviation over the batch of projections (B, D) of length one, averaged over features, times √D.

    SimSiam, section 4.1: it is 1 where projections fill the whole sphere, and 0 where they have collapsed.
    """
    z = F.normalize(z.detach().float(), dim=-1)
    return z.std(0, correction=0).mean() * z.shape[1] ** 0.5


def normalises_batches(module: nn.Module) -> bool:
    """Whether a module has a BatchNorm whose statistics are those of one process."""
    across = (nn.SyncBatchNorm, CrossReplicaBatchNorm)
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, across) for m in module.modules())
