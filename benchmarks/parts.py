"""What a small GLOM learns on Fashion-MNIST: classes, or to remove noise; and the islands that it forms meanwhile.

One thread and the processor time of that thread for each of the two trainings, which may run side by side.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, List

import timm
import torch
from torch.utils.data import TensorDataset
from torchvision.transforms.functional import gaussian_blur

import timm_extra  # noqa: F401
from benchmarks.environment import environment
from benchmarks.learning import load_data, read_idx, train
from timm_extra.models.glom.islands import island_counts, neighbour_cosine
from timm_extra.plot import island_sheet
from timm_extra.pretrain import PretrainConfig, checkpoints, pretrain
from timm_extra.pretrain.tasks import Denoise

MEAN, STD = 0.2860, 0.3530
MODELS = {
    'classes': dict(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=128, num_levels=3),
    'noise': dict(img_size=28, patch_size=2, in_chans=1, num_classes=0, embed_dim=96, num_levels=3),
}
CLASSES = dict(batch_size=128, lr=2e-3, weight_decay=0.05, warmup_epochs=0.5, clip_grad=1.0)
NOISE = dict(batch_size=64, lr=2e-3, weight_decay=0.05, clip_grad=1.0)
SHOWN = (0, 1, 12)  # of the test images
THRESHOLD = 0.9


def build(kind: str, seed: int) -> torch.nn.Module:
    """The model of a training, before it."""
    torch.manual_seed(seed)
    return timm.create_model('test_glom', **MODELS[kind])


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


def learn_classes(args: argparse.Namespace) -> Dict[str, Any]:
    """Train a classifier and test it after every epoch."""
    data, test = load_data(args.data, args.num_train)
    model = build('classes', args.seed)
    before = islands(model, test[0][:500])
    curve = train(model, data, test, CLASSES, args.epochs, args.seed)
    if args.plot:
        sheets(model, test[0], args.plot / 'glom-classes.png')
    params = sum(p.numel() for p in model.parameters())
    return dict(CLASSES, params=params, curve=curve, islands=dict(before=before, after=islands(model, test[0][:500])))


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


def learn_noise(args: argparse.Namespace) -> Dict[str, Any]:
    """Pretrain by denoising and compare with doing nothing and with blurring, on test images."""
    x = read_idx(args.data / 'train-images-idx3-ubyte.gz')[: args.num_train, None]
    test = read_idx(args.data / 't10k-images-idx3-ubyte.gz')[:2000, None].float().div(255).sub(MEAN).div(STD)
    model = build('noise', args.seed)
    before = islands(model, test[:500])
    if args.plot:
        sheets(model, test, args.plot / 'glom-before.png')
    begin = time.thread_time()
    task = Denoise(model, mean=(MEAN,), std=(STD,), verbose=False)
    with tempfile.TemporaryDirectory() as output:
        config = PretrainConfig(
            method='glom',
            checkpoint_hist=1,
            epochs=args.noise_epochs,
            mean=(MEAN,),
            std=(STD,),
            workers=0,
            seed=args.seed,
            cpu=True,
            **NOISE,
        )
        pretrain(model, TensorDataset(x), output, config)
        seconds = time.thread_time() - begin
        (file,) = Path(output, 'checkpoints').glob('*.pt')
        state = checkpoints.read(file)
    task.load_checkpoint_state(state['task']['state_dict'], state['task']['task_state'])
    task.eval()
    torch.manual_seed(0)
    noisy = test + torch.randn_like(test)
    denoised = torch.cat([task.denoise(part) for part in noisy.split(100)])
    if args.plot:
        sheets(model, test, args.plot / 'glom-after.png')
    found = dict(identity=psnr(noisy, test), blur=blurred(noisy, test), ours=psnr(denoised, test))
    return dict(
        NOISE,
        epochs=args.noise_epochs,
        params=sum(p.numel() for p in model.parameters()),
        train_seconds=round(seconds, 1),
        psnr=found,
        islands=dict(before=before, after=islands(model, test[:500])),
    )


def run(kind: str, args: argparse.Namespace) -> Dict[str, Any]:
    """One of the two trainings."""
    torch.set_num_threads(1)
    return dict(kind=kind, model=MODELS[kind], **dict(classes=learn_classes, noise=learn_noise)[kind](args))


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True, help='folder of the IDX files')
    parser.add_argument('--kinds', nargs='+', default=list(MODELS), choices=list(MODELS))
    parser.add_argument('--epochs', type=int, default=12, help='of classification (%(default)s)')
    parser.add_argument('--noise-epochs', type=int, default=2, help='of denoising (%(default)s)')
    parser.add_argument('--num-train', type=int, default=60_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--jobs', type=int, default=2, help='trainings side by side (%(default)s)')
    parser.add_argument('--out', type=Path, help='JSON to write')
    parser.add_argument('--plot', type=Path, help='folder for pictures')
    args = parser.parse_args()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context('spawn')) as pool:
        runs = list(pool.map(run, args.kinds, [args] * len(args.kinds)))
    for one in runs:
        print(json.dumps(one))
    if args.out:
        result = dict(environment('cpu'), threads=1, num_train=args.num_train, seed=args.seed, runs=runs)
        args.out.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
