"""Denoising with GLOM, how lucidrains' glom-pytorch (https://github.com/lucidrains/glom-pytorch, README) trains it."""

import math
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import nn

from ..views import DENOISE_VIEW, in_float32
from .encoder import Encoder, output_shape
from .task import PretrainingTask, View

SCHEDULES = {None: lambda p: 1.0, 'linear': lambda p: p, 'cosine': lambda p: (1 - math.cos(math.pi * p)) / 2}
INTERFACE = (
    'forward_level', 'forward_features', 'forward_head', 'patch_embed', 'num_levels', 'iters', 'embed_dim', 'in_chans'
)  # fmt: skip


class Denoiser(nn.Module):
    """A GLOM and a linear layer from one level of its columns to the pixels of their patches."""

    def __init__(self, encoder: Encoder, decoder: nn.Linear, level: int, iteration: int):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.level, self.iteration = level, iteration

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) from noisy ones."""
        model = self.encoder.model
        columns = model.forward_level(x, level=self.level, iters=self.iteration)  # (B, h·w, D)
        h, w = model.patch_embed.dynamic_feat_size(x.shape[-2:])
        p, q = model.patch_embed.patch_size
        pixels = self.decoder(columns).unflatten(-1, (p, q, -1)).unflatten(1, (h, w))  # (B, h, w, p, q, C)
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Denoise(PretrainingTask):
    """Decode images from noisy copies, from what one level of a GLOM holds in the middle of its iterations.

    Construction changes nothing in the model. Noise comes from PyTorch's random state on the images' device.

    Args:
        model: `timm_extra.models.GLOM`, or any module with its interface.
        noise: Standard deviation of the noise, in units of normalised pixels; two values are a range, from which every
            image gets its own.
        iteration: After how many iterations the level is read. When None one more than half of the model's, 7 of 12, or
            as many as the level needs to see the image.
        level: Which level is read; the top when −1.
        noise_schedule: None for constant noise; 'linear' or 'cosine' let it grow from 0 over `num_steps`.
        num_steps: Steps of the training.
        view1: Augmentation, any callable or module on images (B, C, H, W); a crop and a flip when None.
        input_size: Channels, height and width of a view; the model's own when None.
        mean: What the view subtracts from each channel; the model's own when None.
        std: What it divides by then; likewise.
        device: Device of the decoder; the model's when None.
        dtype: Dtype of the decoder; the model's when None.
        verbose: Log what is done.

    Attributes:
        trainable_module: `Denoiser`, or its DDP wrapper.
        step: Steps of the optimizer done, which the noise goes by.

    Raises:
        ValueError: The model is no GLOM or does not take such images, or an argument is out of range.

    Differences from glom-pytorch: images are augmented, the loss is in units of normalised pixels, the decoder starts
    from small weights.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        noise: Union[float, Tuple[float, float]] = 1.0,
        iteration: Optional[int] = None,
        level: int = -1,
        noise_schedule: Optional[str] = None,
        num_steps: Optional[int] = None,
        view1: Optional[View] = None,
        input_size: Optional[Sequence[int]] = None,
        mean: Optional[Sequence[float]] = None,
        std: Optional[Sequence[float]] = None,
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
        verbose: bool = True,
    ):
        missing = [name for name in INTERFACE if not hasattr(model, name)]
        if missing:
            raise ValueError(f'{type(model).__name__} is no GLOM: it has no {" and no ".join(missing)}')
        super().__init__(model, input_size=input_size, mean=mean, std=std, device=device, dtype=dtype, verbose=verbose)
        if not -model.num_levels <= level < model.num_levels:
            raise ValueError(f'`level={level}` is out of range, the model has {model.num_levels} levels')
        if iteration is None:
            iteration = max(model.iters // 2, level % model.num_levels) + 1
        _check(noise, iteration, noise_schedule, num_steps)
        self.noise, self.noise_schedule, self.num_steps = noise, noise_schedule, num_steps
        self.step = 0
        self.view1 = self._view(view1, DENOISE_VIEW)
        pixels = math.prod(model.patch_embed.patch_size) * model.in_chans
        decoder = nn.Linear(model.embed_dim, pixels, device=self.device, dtype=self.dtype)
        nn.init.trunc_normal_(decoder.weight, std=0.02)
        nn.init.zeros_(decoder.bias)
        self.trainable_module = Denoiser(Encoder(model), decoder, level, iteration)
        found = tuple(output_shape(self.trainable_module, model, self.input_size)[1:])
        if found != tuple(self.input_size):
            sizes = ('×'.join(map(str, size)) for size in (self.input_size, found))
            raise ValueError('{} does not take inputs of {}: its patches cover {}'.format(type(model).__name__, *sizes))

    @property
    def views(self) -> Tuple[View]:
        """The augmentation."""
        return (self.view1,)

    def forward(
        self, input: Union[torch.Tensor, Sequence[torch.Tensor]], target: Optional[torch.Tensor] = None
    ) -> Dict[str, torch.Tensor]:
        """Loss of a batch.

        Args:
            input: Images (B, C, H, W), to which `view1` is applied, or a list of the view made before.
            target: Not used: labels are what there are none of.

        Returns:
            `loss`, the mean squared error in normalised pixels; `output`, the denoised views (B, C, H, W).

        Raises:
            ValueError: There is not one view.
        """
        (clean,) = self._viewed(input)
        denoised = self.trainable_module(self.add_noise(clean))
        return dict(loss=F.mse_loss(in_float32(denoised), in_float32(clean)), output=denoised.detach())

    def add_noise(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) with the noise of the present step."""
        noise = self.noise
        if isinstance(noise, (tuple, list)):
            noise = x.new_empty(len(x), 1, 1, 1).uniform_(*noise)
        return x + self._growth() * noise * torch.randn_like(x)

    @torch.no_grad()
    def denoise(self, x: torch.Tensor) -> torch.Tensor:
        """Denoised images, without gradients and in the mode (training or not) that the task is in.

        Args:
            x: Noisy normalised images (B, C, H, W).

        Returns:
            (B, C, H, W).
        """
        return self._online()(x)

    def _growth(self) -> float:
        return SCHEDULES[self.noise_schedule](min(self.step / self.num_steps, 1.0) if self.num_steps else 1.0)

    def update_ema(self, step: Optional[int] = None) -> None:
        """Count a step of the optimizer; to be called after each.

        Args:
            step: Which step it was, counted from 0; the one after the last when None.
        """
        super().update_ema(step)
        self.step = (self.step if step is None else step) + 1

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> Dict[str, Any]:
        """State of the decoder, and the step."""
        return dict(super().get_task_state(module, ema), step=self.step)

    def load_task_state(
        self,
        state: Optional[Dict[str, Any]],
        strict: bool = True,
        module: Optional[nn.Module] = None,
        ema: bool = False,
    ) -> None:
        """Load what `get_task_state` gave."""
        super().load_task_state(state, strict, module, ema)
        if state:
            self.step = state['step']


def _check(
    noise: Union[float, Tuple[float, float]], iteration: int, schedule: Optional[str], num_steps: Optional[int]
) -> None:
    bounds = tuple(noise) if isinstance(noise, (tuple, list)) else (noise, noise)
    if (
        len(bounds) != 2
        or not all(isinstance(b, (int, float)) for b in bounds)
        or not 0 <= bounds[0] <= bounds[1] < math.inf
    ):
        raise ValueError(f'`noise` must be a standard deviation or two, the smaller first, got {noise}')
    if iteration < 1:
        raise ValueError(f'`iteration` must be positive, got {iteration}')
    if schedule not in SCHEDULES:
        raise ValueError(f'`noise_schedule` must be None, linear or cosine, got {schedule!r}')
    if num_steps is not None and num_steps < 1:
        raise ValueError(f'num_steps must be positive, got {num_steps}')
    if schedule and num_steps is None:
        raise ValueError(f'`noise_schedule={schedule!r}` needs num_steps, over which the noise grows')
