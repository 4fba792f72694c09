"""What all tasks that pretrain a model share: views, the encoder among heads, checkpoints."""

from abc import abstractmethod
from typing import Any, Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import nn

from timm_extra.images import input_config

from ..views import RandomView, Recipe
from .encoder import Encoder

View = Callable[[torch.Tensor], torch.Tensor]


class PretrainingTask(TrainingTask):
    """A task that trains a model without labels, on views of images.

    A subclass sets `trainable_module`, whose child `encoder` is the `Encoder` of the model and whose other children are
    heads, which evaluation leaves out. `forward` gives `loss` and `output`, and may give `std`, by which
    collapse is noticed.

    Attributes:
        trainable_module: The network that learns, or its DDP wrapper.
        input_config: Size, mean and std of views.
        input_size: Channels, height and width of views.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        input_size: Optional[Sequence[int]],
        mean: Optional[Sequence[float]],
        std: Optional[Sequence[float]],
        device: Optional[torch.device],
        dtype: Optional[torch.dtype],
        verbose: bool,
    ):
        parameter = next(model.parameters(), None)
        if parameter is None:
            raise ValueError(f'{type(model).__name__} has no parameters to train')
        super().__init__(device or parameter.device, dtype or parameter.dtype, verbose)
        self.input_config = input_config(model, input_size, mean, std)
        self.input_size = self.input_config['input_size']

    @property
    @abstractmethod
    def views(self) -> Tuple[View, ...]:
        """The augmentations that make what `forward` takes."""

    @property
    def model(self) -> nn.Module:
        """The model that is pretrained."""
        return self._online().encoder.model

    @property
    def encoder(self) -> Encoder:
        """From images to embeddings."""
        return self._online().encoder

    def _online(self) -> nn.Module:
        """The network that learns, without its wrapper."""
        return unwrap_model(self.trainable_module)

    def _view(self, view: Optional[View], recipe: Recipe) -> View:
        return RandomView(recipe, **self.input_config) if view is None else view

    def _viewed(self, input: Union[torch.Tensor, Sequence[torch.Tensor]]) -> Tuple[torch.Tensor, ...]:
        """Views of images (B, C, H, W), or the views that a sequence holds."""
        if isinstance(input, torch.Tensor):
            # low precision is for networks: resizing, blurring and colours lose digits, or overflow in float16
            with torch.autocast(input.device.type, enabled=False):
                views = tuple(view(input) for view in self.views)
        else:
            wanted = f'input must be images, or a list of views ({len(self.views)})'
            if not isinstance(input, (tuple, list)):
                raise ValueError(f'{wanted}, got one {type(input).__name__}')
            views = tuple(input)
            if len(views) != len(self.views):
                raise ValueError(f'{wanted}, got {len(views)} tensors')
        if len({len(view) for view in views}) > 1:
            raise ValueError(f'views must be of the same images, got {" and ".join(str(len(v)) for v in views)} views')
        return views

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'PretrainingTask':
        """Wrap the network that learns in DistributedDataParallel, as `TrainingTask` has it.

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
        return {name: head.state_dict() for name, head in self._heads(module, ema).items()}

    def load_task_state(
        self,
        state: Optional[Dict[str, Any]],
        strict: bool = True,
        module: Optional[nn.Module] = None,
        ema: bool = False,
    ) -> None:
        """Load what `get_task_state` gave."""
        if state:
            for name, head in self._heads(module, ema).items():
                head.load_state_dict(state[name], strict=strict)

    def _heads(self, module: Optional[nn.Module], ema: bool) -> Dict[str, nn.Module]:
        module = module or self.get_trainable_module(ema=ema)
        online = nn.Module() if module is None else unwrap_model(module)  # there may be no moving average
        return {name: child for name, child in online.named_children() if name != 'encoder'}
