"""Where the time of a pretraining step goes: reading images, making views, the networks."""

import io
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import Dataset

from timm_extra.pretrain.data import Collate, MakeViews, Samples
from timm_extra.pretrain.tasks import BYOL

from ..harness import Call, Case, Side

BATCH, SIZE = 16, 224
PHOTO = (375, 500)  # rows and columns: ImageNet's usual size


class Photos(Dataset):
    """JPEG files in memory, smooth with some noise: about as many bytes as photographs of that size."""

    def __init__(self, count: int):
        self.files = []
        for i in range(count):
            random = np.random.default_rng(i)
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize(PHOTO[::-1], Image.Resampling.BICUBIC), dtype=np.float32)
            noisy = (smooth + random.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(noisy).save(file, 'JPEG', quality=90)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tuple[Image.Image, int]:
        return Image.open(io.BytesIO(self.files[index])), 0


def _step(part: str, device: str) -> Call:
    """A step of BYOL, or one part of it, in one process and with no reading ahead."""
    torch.manual_seed(0)
    task = BYOL(timm.create_model('resnet18', num_classes=0), input_size=(3, SIZE, SIZE)).to(device).train()
    for view in task.views:
        view.cpu()  # where images are read
    optimizer = torch.optim.SGD(task.trainable_module.parameters(), 1e-3, momentum=0.9)
    samples, views = Samples(Photos(BATCH), 3), Collate(MakeViews(task.views, seed=0))

    def read() -> List[Any]:
        return [samples[0, i] for i in range(BATCH)]

    def network(batch: Dict[str, Any]) -> torch.Tensor:
        loss = task([view.to(device) for view in batch['views']])['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        task.update_ema(0)
        return loss.detach()

    kept = read()
    batch = views(kept)
    calls: Dict[str, Callable[[], Any]] = {
        'ours': lambda: network(views(read())),
        'reading': read,
        'views': lambda: views(kept),
        'networks': lambda: network(batch),
    }

    def call() -> torch.Tensor:
        calls[part]()
        return torch.zeros(())

    return call


CASES = [
    Case(
        'pretraining/byol-step',
        Side(
            f'BYOL of resnet18, {BATCH} JPEG photographs of {PHOTO[1]} × {PHOTO[0]} at {SIZE} × {SIZE}, one process',
            partial(_step, 'ours'),
        ),
        {
            'reading': Side('reading and decoding the files', partial(_step, 'reading'), same=False),
            'views': Side("the paper's two views of every image", partial(_step, 'views'), same=False),
            'networks': Side('forward, backward, optimizer and moving average', partial(_step, 'networks'), same=False),
        },
        kind='share',
    )
]
