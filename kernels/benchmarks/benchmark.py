"""What `kernels benchmark` runs: the operations in inference beside plain PyTorch, sizes as in models.

A workload is `setup_X`, `benchmark_X`, which leaves its result in `out`, and `verify_X`, which computes it in plain
PyTorch: the tool refuses results that differ and reports both times.
"""

import torch
import torch.nn.functional as F
from kernels.benchmark import Benchmark

GPU = torch.cuda.is_available()  # the tool says 'cuda' wherever PyTorch was built for it
# float16, whose rounding stays below what the tool allows; on a CPU sizes at which it takes milliseconds
MADE = dict(device='cuda', dtype=torch.float16) if GPU else dict(device='cpu', dtype=torch.float32)


def on_grid(content: torch.Tensor, axes: list) -> torch.Tensor:
    """Content (B, c, H, W) and features (H, F) and (W, F) of each position (B, H·W, c + 2F)."""
    B, _, *sizes = content.shape
    rows, columns = (t.expand(B, *sizes, -1) for t in (axes[0][:, None], axes[1][None]))
    return torch.cat([content.movedim(1, -1), rows, columns], -1).flatten(1, 2)


def attend(q: torch.Tensor, x: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention to normalised tokens (B, N, C) that are keys and values."""
    x = F.layer_norm(x, x.shape[-1:])[:, None]
    return (q @ x.mT * scale).softmax(-1) @ x


class ClassAttention(Benchmark):
    """CeiT's layer-wise class-token attention."""

    seed = 0

    def setup(self) -> None:
        qkv = torch.randn(3, 256 if GPU else 8, 6, 12, 64, **MADE)
        self.args = qkv[0, :, :, -1:], qkv[1], 0.25 * qkv[2]

    def benchmark_ceit_small(self) -> None:
        self.out = self.kernel.class_attention(*self.args, scale=0.125)

    def verify_ceit_small(self) -> torch.Tensor:
        q, k, v = self.args
        return (q @ k.mT * 0.125).softmax(-1) @ v


class LatentCrossAttention(Benchmark):
    """A Perceiver's latents attend to tokens."""

    seed = 0

    def _setup(self, channels: int) -> None:
        batch, inputs = (16, 50176) if GPU else (1, 3136)
        self.q = torch.randn(batch, 1, 512, channels, **MADE)
        self.x = torch.randn(batch, inputs, channels, **MADE)
        self.scale = channels**-0.5

    def _run(self) -> None:
        self.out = self.kernel.latent_cross_attention(self.q, self.x, scale=self.scale)

    def _reference(self) -> torch.Tensor:
        return attend(self.q, self.x, self.scale)

    def setup_perceiver_261(self) -> None:
        self._setup(261)

    def setup_perceiver_512(self) -> None:
        self._setup(512)

    benchmark_perceiver_261 = benchmark_perceiver_512 = _run
    verify_perceiver_261 = verify_perceiver_512 = _reference


class FourierCrossAttention(Benchmark):
    """A Perceiver's latents attend to pixels with position features, which are not built."""

    seed = 0

    def setup(self) -> None:
        batch, side = (16, 224) if GPU else (1, 56)
        self.q = torch.randn(batch, 1, 512, 261, **MADE)
        self.image = torch.randn(batch, 3, side, side, **MADE)
        self.axes = list(torch.randn(2, side, 129, **MADE))

    def benchmark_perceiver_base(self) -> None:
        self.out = self.kernel.fourier_cross_attention(self.q, self.image, self.axes, scale=261**-0.5)

    def verify_perceiver_base(self) -> torch.Tensor:
        return attend(self.q, on_grid(self.image, self.axes), 261**-0.5)


class GridQueryAttention(Benchmark):
    """Pixels with position features, which are not built, attend to a Perceiver IO's latents."""

    seed = 0

    def setup(self) -> None:
        height, width = (368, 496) if GPU else (46, 62)
        self.k, self.v = torch.randn(2, 1, 1, 2048, 322, **MADE)
        self.content = torch.randn(1, 64, height, width, **MADE)
        self.axes = [torch.randn(size, 129, **MADE) for size in (height, width)]

    def benchmark_flow(self) -> None:
        self.out = self.kernel.grid_query_attention(self.k, self.v, self.content, self.axes, scale=322**-0.5)

    def verify_flow(self) -> torch.Tensor:
        x = on_grid(self.content, self.axes)
        q = F.layer_norm(x, x.shape[-1:])[:, None]
        return (q @ self.k.mT * 322**-0.5).softmax(-1) @ self.v


class LeFFDepthwise(Benchmark):
    """The depthwise stage of CeiT's LeFF."""

    seed = 0

    def _setup(self, side: int) -> None:
        batch, channels = 64 if GPU else 1, 1536
        self.grid = side, side
        self.x = torch.randn(batch, side * side, channels, **MADE)
        self.weight = torch.randn(channels, 1, 3, 3, **MADE) / 3
        names = ('scale1', 'shift1', 'scale2', 'shift2')
        self.affines = dict(zip(names, 0.25 * torch.randn(4, channels, **MADE)))  # noqa: B905 (Python 3.9 has no strict)
        self.bias = torch.zeros(channels, **MADE)

    def _run(self) -> None:
        self.out = self.kernel.leff_depthwise(self.x, self.weight, self.bias, grid=self.grid, **self.affines)

    def _reference(self) -> torch.Tensor:
        scale1, shift1, scale2, shift2 = self.affines.values()
        hidden = F.gelu(self.x * scale1 + shift1).mT.unflatten(-1, self.grid)
        z = F.conv2d(hidden, self.weight, self.bias, padding=1, groups=len(self.bias)).flatten(2).mT
        return F.gelu(z * scale2 + shift2)

    def setup_ceit_small(self) -> None:
        self._setup(14)

    def setup_ceit_small_384(self) -> None:
        self._setup(24)

    benchmark_ceit_small = benchmark_ceit_small_384 = _run
    verify_ceit_small = verify_ceit_small_384 = _reference
