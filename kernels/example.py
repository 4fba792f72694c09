"""Cross-attention of 512 latents to the pixels of an image, through the Kernel Hub's `kernels`.

`python example.py` loads the kernel from the Hub, `python example.py DIRECTORY` a build in that directory.
"""

# /// script
# requires-python = ">=3.10"
# dependencies = ["kernels>=0.12", "torch>=2.11", "numpy"]
# ///

import sys
from pathlib import Path

import torch

from kernels import get_kernel, get_local_kernel

if len(sys.argv) > 1:
    kernel = get_local_kernel(Path(sys.argv[1]))
else:
    kernel = get_kernel('timm-extra/timm-extra-kernels', version=1, trust_remote_code=True)

device = 'cuda' if torch.cuda.is_available() else 'cpu'
image = torch.randn(1, 3, 56, 56, device=device)
positions = torch.linspace(-1, 1, 56, device=device)[:, None] * torch.arange(1, 17, device=device)
features = torch.cat([positions, (torch.pi * positions).sin(), (torch.pi * positions).cos()], 1)  # (56, 48)
latents = torch.randn(1, 1, 512, 3 + 2 * 48, device=device, requires_grad=True)

arguments = dict(scale=latents.shape[-1] ** -0.5)
print(kernel.explain(kernel.fourier_cross_attention, latents, image, [features, features], **arguments))
out = kernel.fourier_cross_attention(latents, image, [features, features], **arguments)
out.square().mean().backward()
print(f'latents {tuple(latents.shape)} and image {tuple(image.shape)} to {tuple(out.shape)} on {device}')

# the same with tokens that are built in full
rows, columns = features[:, None].expand(-1, 56, -1), features[None].expand(56, -1, -1)
tokens = torch.cat([image[0].movedim(0, -1), rows, columns], -1).flatten(0, 1)
tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
expected = (latents @ tokens.mT * arguments['scale']).softmax(-1) @ tokens
torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-4)
print('equal to attention to tokens that are built in full')
