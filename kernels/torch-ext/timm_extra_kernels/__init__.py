"""Operations of timm-extra: PyTorch on any device, to be joined by Triton kernels on GPUs."""

from .fourier_cross_attention import fourier_cross_attention
from .latent_cross_attention import latent_cross_attention

__all__ = ['fourier_cross_attention', 'latent_cross_attention']
