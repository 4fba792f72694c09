"""What BYOL and SimSiam share: two views, an online network, predictions of the other view's projection."""

from abc import abstractmethod
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from ..layers.sync_batchnorm import CrossReplicaBatchNorm
from ..views import RandomView, Recipe, view_config
from ._encoder import Encoder, HiddenLayer

View = Callable[[torch.Tensor], torch.Tensor]
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


class TwoViewTask(TrainingTask):
    """A task whose loss compares predictions from one view with projections of another.

    Attributes:
        trainable_module: `Online`, or its DDP wrapper.
        view1: First augmentation.
        view2: Second augmentation.
        view_config: Size, mean and std of views.
        input_size: Channels, height and width of views.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        hidden_layer: HiddenLayer,
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
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise ValueError(f'{type(model).__name__} has no parameters to train')
        super().__init__(device or parameter.device, dtype or parameter.dtype, verbose)
        self.view_config = view_config(model, input_size, mean, std)
        self.input_size = self.view_config['input_size']
        self.view1, self.view2 = (
            RandomView(recipe, **self.view_config) if view is None else view
            for view, recipe in zip((view1, view1 if view2 is None else view2), recipes, strict=True)
        )

    @property
    def model(self) -> nn.Module:
        """The model that is pretrained."""
        return self._online().encoder.model

    @property
    def encoder(self) -> Encoder:
        """From images to embeddings."""
        return self._online().encoder

    def _online(self) -> Online:
        return unwrap_model(self.trainable_module)

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
            `loss`, a scalar; `output`, the embeddings of the first view (B, D); `std`, how much projections spread, 1
            if they fill all directions and 0 if all are the same (collapse).

        Raises:
            ValueError: There is one image only, in training mode with BatchNorm, or there are not two views.
        """
        if return_embedding:
            embedding = self._online().encoder(input)
            return self._online().projector(embedding), embedding
        if isinstance(input, torch.Tensor):
            views = self.view1(input), self.view2(input)
        else:
            views = tuple(input)
            if len(views) != 2:
                raise ValueError(f'input must be images or a pair of views, got {len(views)} tensors')
        if self.training and len(views[0]) < 2 and _normalises_batches(self._online().projector):
            raise ValueError('a batch of one image has no batch statistics: give two or more')
        online = self.trainable_module(*views)
        return dict(loss=self._loss(online, views), output=online[0][0].detach(), std=spread(online[0][1]))

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'TwoViewTask':
        """Wrap the online network in DistributedDataParallel, as `TrainingTask` has it.

        A classifier that the loss does not reach gets no gradient: unused parameters are looked for.
        """
        ddp_kwargs = dict(dict(find_unused_parameters=True), **ddp_kwargs)
        self.trainable_module = nn.parallel.DistributedDataParallel(
            self.trainable_module, device_ids=device_ids, **ddp_kwargs
        )
        return self

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        """The model that is pretrained: its state dict is a plain timm checkpoint."""
        if ema:
            module = self.get_trainable_module(ema=True)
            return None if module is None else unwrap_model(module).encoder.model
        return self.model if module is None else unwrap_model(module).encoder.model

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> Dict[str, Any]:
        """State of the heads."""
        online = unwrap_model(module or self.get_trainable_module(ema=ema))
        return {name: getattr(online, name).state_dict() for name in ('projector', 'predictor')}

    def load_task_state(
        self,
        state: Optional[Dict[str, Any]],
        strict: bool = True,
        module: Optional[nn.Module] = None,
        ema: bool = False,
    ) -> None:
        """Load what `get_task_state` gave."""
        if not state:
            return
        online = unwrap_model(module or self.get_trainable_module(ema=ema))
        for name in ('projector', 'predictor'):
            getattr(online, name).load_state_dict(state[name], strict=strict)


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the angles between rows of a and b (B, D), in at least float32."""
    a, b = (t if t.dtype == torch.float64 else t.float() for t in (a, b))
    return (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1).mean()


@torch.no_grad()
def spread(z: torch.Tensor) -> torch.Tensor:
    """Standard deviation over the batch of projections (B, D) of length one, averaged over features, times √D.

    SimSiam, section 4.1: it is 1 where projections are spread over the sphere, and 0 where they have collapsed.
    """
    z = F.normalize(z.detach().float(), dim=-1)
    return z.std(0, correction=0).mean() * z.shape[1] ** 0.5


def _normalises_batches(module: nn.Module) -> bool:
    across = (nn.SyncBatchNorm, CrossReplicaBatchNorm)
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and not isinstance(m, across) for m in module.modules())
