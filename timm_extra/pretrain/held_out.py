"""The training images that choose the regularisation of probes."""

from typing import Tuple

import torch

HELD_OUT, SEED = 10, 0  # one in so many; which ones


def held_out(length: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Split training images, the same way every time.

    Args:
        length: Number of training images.

    Returns:
        Indices of the images to fit, none of a single image, and of those held out, one in ten and at least one.
    """
    order = torch.randperm(length, generator=torch.Generator().manual_seed(SEED))
    held, kept = order.tensor_split([max(1, length // HELD_OUT)])
    return kept, held
