"""One small kernel, to see whether any can be compiled and run here. Imports triton."""

import torch
import triton
import triton.language as tl


@triton.jit
def _probe_kernel(X, BLOCK: tl.constexpr):
    at = X + tl.arange(0, BLOCK)
    tl.store(at, tl.load(at) + 1.0)


def run(device: torch.device) -> None:
    """Run it on the current device.

    Raises:
        Exception: Whatever compiler, assembler and driver raise.
        RuntimeError: What it computed is wrong.
    """
    x = torch.zeros(16, device=device)
    _probe_kernel[(1,)](x, BLOCK=16)
    if x.tolist() != [1.0] * 16:
        raise RuntimeError(f'a kernel that adds 1 to zeros gave {x.tolist()}')
