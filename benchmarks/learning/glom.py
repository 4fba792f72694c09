"""What a small GLOM learns on Fashion-MNIST: classes, or to remove noise; and the islands that it forms meanwhile."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List

import timm
import torch
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import gaussian_blur

from timm_extra.models.glom.islands import island_counts, neighbour_cosine
from timm_extra.plot import island_sheet
from timm_extra.pretrain import PretrainConfig, pretrain
from timm_extra.pretrain.tasks import Denoise
from timm_extra.training import checkpoints

from .common import MEAN, STD, arguments, load_images, run_all, train

MODELS = {
    'classes': dict(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=128, num_levels=3),
    'noise': dict(img_size=28, patch_size=2, in_chans=1, num_classes=0, embed_dim=96, num_levels=3),
}
CLASSES = dict(batch_size=128, lr=2e-3, weight_decay=0.05, warmup_epochs=0.5, clip_grad=1.0)
NOISE = dict(batch_size=64, lr=2e-3, weight_decay=0.05, clip_grad=1.0)
NOISE_EPOCHS = 6  # of classes for one of noise
SHOWN = (0, 1, 12)  # of the test images
THRESHOLD = 0.9


@torch.inference_mode()
def islands(model: torch.nn.Module, x: torch.Tensor) -> Dict[str, List[float]]:
    """Islands per image and cosine of neighbours, for every level after the last iteration."""
    grid = model.patch_embed.grid_size
    states = torch.cat([model.eval().forward_state(part) for part in x.split(100)])
    counts = island_counts(states, grid, THRESHOLD).double().mean(0)
    cosines = neighbour_cosine(states, grid).mean(0)
    return dict(counts=[round(c, 2) for c in counts.tolist()], cosines=[round(c, 4) for c in cosines.tolist()])


def sheets(model: torch.nn.Module, x: torch.Tensor, path: Path) -> None:
    """The islands of some images, one file each."""
    with torch.inference_mode():
        for index in SHOWN:
            states = model.eval().forward_state(x[index : index + 1], return_all=True)[:, 0]
            file = path.with_name(f'{path.stem}-{index}{path.suffix}')
            island_sheet(x[index] * STD + MEAN, states, model.patch_embed.grid_size, file, threshold=THRESHOLD)


def psnr(x: torch.Tensor, clean: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of normalised images whose pixels are in 0 to 1 before, clamped to that."""
    x, clean = ((t * STD + MEAN).clamp(0, 1) for t in (x, clean))
    return float(-10 * (x - clean).square().mean((1, 2, 3)).log10().mean())


def blurred(noisy: torch.Tensor, clean: torch.Tensor) -> Dict[str, float]:
    """The best of Gaussian blurs, chosen on these very images, with the gain that suits it best."""
    best = dict(psnr=-1.0)
    for sigma in (0.4, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0):
        x = gaussian_blur(noisy, 13, sigma)
        for gain in (0.7, 0.8, 0.9, 1.0):
            found = psnr(x * gain + (gain - 1) * MEAN / STD, clean)
            if found > best['psnr']:
                best = dict(psnr=found, sigma=sigma, gain=gain)
    return best


def denoise(
    model: torch.nn.Module, x: torch.Tensor, test: torch.Tensor, seed: int, args: argparse.Namespace
) -> Dict[str, Any]:
    """Pretrain by denoising and compare with doing nothing and with blurring, on test images."""
    begin = time.thread_time()
    norm = dict(mean=(MEAN,), std=(STD,))
    task = Denoise(model, **norm, verbose=False)
    epochs = max(1, args.epochs // NOISE_EPOCHS)
    with tempfile.TemporaryDirectory() as output:
        about = dict(method='glom', checkpoint_hist=1, epochs=epochs, workers=0, seed=seed, cpu=True)
        pretrain(model, TensorDataset(x), output, PretrainConfig(**about, **norm, **NOISE))
        seconds = time.thread_time() - begin
        (file,) = Path(output, 'checkpoints').glob('*.pt')
        state = checkpoints.read(file)
    task.load_checkpoint_state(state['task']['state_dict'], state['task']['task_state'])
    task.eval()
    torch.manual_seed(0)
    noisy = test + torch.randn_like(test)
    denoised = torch.cat([task.denoise(part) for part in noisy.split(100)])
    found = dict(identity=psnr(noisy, test), blur=blurred(noisy, test), ours=psnr(denoised, test))
    params = sum(p.numel() for p in model.parameters())
    return dict(NOISE, params=params, epochs=epochs, train_seconds=round(seconds, 1), psnr=found)


def run(kind: str, seed: int, args: argparse.Namespace) -> Dict[str, Any]:
    """Train for classes or to remove noise; the islands of test images before and after."""
    data = load_images(args.data, 'train', args.num_train, normalised=kind != 'noise')
    test, classes = load_images(args.data, 't10k', 10_000)
    model = timm.create_model('test_glom', **MODELS[kind])
    before = islands(model, test[:500])
    sheets(model, test, args.out / f'glom-{kind}-before.png')
    if kind == 'noise':
        found = denoise(model, data[0], test[:2000], seed, args)
    else:
        found = dict(CLASSES, **train(model, data, (test, classes), CLASSES, args.epochs, seed))
    sheets(model, test, args.out / f'glom-{kind}-after.png')
    return dict(found, islands=dict(before=before, after=islands(model, test[:500])))


if __name__ == '__main__':
    run_all('glom', run, list(MODELS), arguments('glom', __doc__, epochs=12, num_train=60_000))
