"""What a small Perceiver IO learns of optical flow in minutes, beside estimators that learn nothing.

It is trained on pairs of known motion (`flow_pairs`) and measured on pairs of other photos, beside scikit-image's TV-L1
and ILK and OpenCV's DIS with their own settings. It begins with many small images, which show many motions for the same
work: with large ones from the start, small models stayed with the answer 0. Positions have low frequencies alone, so
that larger images are not new to it.
"""

import argparse
import importlib.util
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple

import numpy as np
import timm
import torch
from torch import nn

from timm_extra import hub
from timm_extra.flow import end_point_error, flow_loss
from timm_extra.images import input_config
from timm_extra.plot import flow_colours, new_figure
from timm_extra.plot.sheets import draw_image

from ..environment import environment
from . import timed
from .flow_pairs import FlowPairs, Motion, Pair, load_photos
from .whiten import whiten

SIZE, MOTION = (32, 32), Motion(shift=1.5, patch_shift=2.0, patches=2)
MODEL: Dict[str, Any] = dict(
    img_size=SIZE, num_bands=4, max_resolution=8, num_latents=64, latent_dim=128, num_heads=4, block_depth=2,
    cross_num_heads=2, decoder_residual=True,
)  # fmt: skip
RECIPE: Dict[str, Any] = dict(lr=2e-3, weight_decay=0.01, clip_grad=1.0, warmup=0.03)


class Stage(NamedTuple):
    """A part of the training.

    Attributes:
        until: Part of the time at which it ends.
        size: Pixels of height and width.
        batch_size: Pairs of a step.
        motion: How much moves, as a part of `MOTION`.
        patches: Patches at most.
    """

    until: float
    size: int
    batch_size: int
    motion: float
    patches: int


STAGES = (
    Stage(0.3, 16, 32, 1.0, 0),
    Stage(0.5, 24, 20, 1.0, 1),
    Stage(1.0, SIZE[0], 16, 1.0, MOTION.patches),
)
NUM_TEST, TEST_SEED = 200, 1
NUM_SHOWN = 6  # of the test pairs
NAME = 'perceiver_io_flow, small'
NUM_WHITEN = 100  # pairs
ESTIMATORS = {'scikit-image': 'skimage', 'opencv-python-headless': 'cv2'}  # package and module


def batch(pairs: List[Pair]) -> Pair:
    """Pairs as one, with an axis in front."""
    return Pair(*map(torch.stack, zip(*pairs, strict=True)))


def check_estimators() -> None:
    """Fail before the training on what is compared with it at the end.

    Raises:
        ModuleNotFoundError: A package is missing.
    """
    missing = [package for package, module in ESTIMATORS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(f'the estimators beside the model need packages: pip install {" ".join(missing)}')


def grey(image: torch.Tensor) -> np.ndarray:
    """RGB (3, H, W) in 0 to 1 as luminance (H, W)."""
    return (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0).numpy()


def tvl1(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """scikit-image's TV-L1, (2, H, W) with x first."""
    from skimage.registration import optical_flow_tvl1

    return optical_flow_tvl1(grey(first), grey(second))[::-1].copy()


def ilk(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """scikit-image's iterative Lucas-Kanade, (2, H, W) with x first."""
    from skimage.registration import optical_flow_ilk

    return optical_flow_ilk(grey(first), grey(second))[::-1].copy()


def dis(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """OpenCV's dense inverse search, (2, H, W) with x first."""
    import cv2

    estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    images = [(255 * grey(image)).round().astype(np.uint8) for image in (first, second)]
    return estimator.calc(*images, None).transpose(2, 0, 1).copy()


OTHERS: Dict[str, Callable[[torch.Tensor, torch.Tensor], np.ndarray]] = {'TV-L1': tvl1, 'ILK': ilk, 'DIS': dis}


def errors(flow: torch.Tensor, pairs: Pair) -> Dict[str, float]:
    """End-point error in pixels of flow (B, 2, H, W), where pixels stay visible and everywhere."""
    valid = float(end_point_error(flow, pairs.flow, pairs.valid))
    return dict(visible=round(valid, 3), all=round(float(end_point_error(flow, pairs.flow)), 3))


class Normalised(nn.Module):
    """A model of flow for frames in 0 to 1."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        config = input_config(model)
        for name in ('mean', 'std'):
            self.register_buffer(name, torch.tensor(config[name]).view(-1, 1, 1, 1))

    def normalise(self, frames: torch.Tensor) -> torch.Tensor:
        return (frames - self.mean) / self.std

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.model(self.normalise(frames))


@torch.inference_mode()
def estimate(model: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """Flow (B, 2, H, W) of frames (B, 3, 2, H, W), a few at a time."""
    model.eval()
    return torch.cat([model(part) for part in frames.split(10)])


def train(model: nn.Module, photos: List[torch.Tensor], minutes: float, seed: int) -> Dict[str, Any]:
    """Train for a time, stage by stage; beside the loss in pixels, what it would be for `zero` flow."""

    def step(number: int, passed: float) -> Dict[str, torch.Tensor]:
        stage = next(one for one in STAGES if passed < one.until)
        motion = replace(MOTION.scaled(stage.motion), patches=stage.patches)
        pairs = batch([*FlowPairs(photos, stage.batch_size, (stage.size, stage.size), seed + number, motion)])
        loss = flow_loss(model(pairs.frames), pairs.flow)  # where pixels vanish, too
        return dict(loss=loss, zero=pairs.flow.norm(dim=1).mean())

    return timed.train(model, step, RECIPE, minutes)


def draw(pairs: Pair, flows: Dict[str, torch.Tensor], path: Path) -> None:
    """A row for each pair: its images, the true flow, and flows (B, 2, H, W) by name, in colours of one scale."""
    titles = ['first', 'second', 'true flow', *flows]
    figure = new_figure(1.4 * len(titles), 1.4 * len(pairs.flow) + 0.3)
    rows = figure.subplots(len(pairs.flow), len(titles), squeeze=False)
    for i, (row, frames, true) in enumerate(zip(rows, pairs.frames, pairs.flow, strict=True)):
        longest = float(true.norm(dim=0).max())
        found = [flow_colours(flow, longest) / 255 for flow in (true, *(flow[i] for flow in flows.values()))]
        for axis, image in zip(row, [*frames.unbind(1), *found], strict=True):
            draw_image(axis, image)
    for axis, title in zip(rows[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    figure.savefig(path, dpi=100)


def table(result: Dict[str, Any]) -> str:
    """End-point errors as a table of Markdown."""
    lines = ['| | pixels that stay visible | all pixels |', '|---|---|---|']
    lines += [f'| {name} | {e["visible"]:.2f} | {e["all"]:.2f} |' for name, e in result['end_point_error'].items()]
    return '\n'.join(lines)


def run(args: argparse.Namespace) -> Dict[str, Any]:
    """Train, save the model, and measure everything on the same pairs."""
    torch.manual_seed(args.seed)
    model, photos = Normalised(timm.create_model('perceiver_io_flow', **MODEL)), load_photos('train')
    frames = batch([*FlowPairs(photos, NUM_WHITEN, SIZE, args.seed, MOTION)]).frames
    whiten(model.model.stem.conv, model.normalise(frames).transpose(1, 2).flatten(1, 2))
    found = train(model, photos, args.minutes, 1_000_000 * (1 + args.seed))
    hub.save(model.model, args.out / 'flow')
    test = batch([*FlowPairs(load_photos('test'), NUM_TEST, SIZE, TEST_SEED, MOTION)])
    flows = {NAME: estimate(model, test.frames)}
    for name, other in OTHERS.items():
        flow = [other(first, second) for first, second in test.frames.permute(0, 2, 1, 3, 4)]
        flows[name] = torch.from_numpy(np.stack(flow)).float()
    shown = slice(0, NUM_SHOWN)
    draw(Pair(*(t[shown] for t in test)), {name: flow[shown] for name, flow in flows.items()}, args.out / 'flow.png')
    flows = {'zero flow': torch.zeros_like(test.flow), **flows}
    result = {name: errors(flow, test) for name, flow in flows.items()}
    return dict(
        environment=environment(),
        model=MODEL,
        params=sum(p.numel() for p in model.parameters()),
        recipe=RECIPE,
        stages=[stage._asdict() for stage in STAGES],
        motion=asdict(MOTION),
        minutes=args.minutes,
        seed=args.seed,
        num_test=NUM_TEST,
        **found,
        end_point_error=result,
    )


if __name__ == '__main__':
    check_estimators()
    args = timed.arguments('flow', __doc__.splitlines()[0], minutes=30)
    result = run(args)
    (args.out / 'flow.json').write_text(json.dumps(result, indent=1) + '\n')
    print(table(result))
    print(f"{args.out}/flow.json\ntimm.create_model('local-dir:{args.out}/flow', pretrained=True)")
