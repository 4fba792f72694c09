"""Trainings that last a time, for comparisons at equal time of models whose steps cost different amounts."""

import argparse
import math
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import torch
from torch import nn

from timm_extra.training.progress import Progress

PARTS = 20  # of the curve


def train(
    model: nn.Module, step: Callable[[int, float], Dict[str, torch.Tensor]], recipe: Dict[str, Any], minutes: float
) -> Dict[str, Any]:
    """Train by AdamW under a cosine of the time that has passed.

    Time is that of the processor by all threads: what else the machine does meanwhile changes little.

    Args:
        model: Any model.
        step: From the number of a step and the part of the time that has passed to its `loss`, and what else is noted,
            as tensors of one number.
        recipe: `lr`, `weight_decay`, `clip_grad` (of the norm) and `warmup` (a part of the time).
        minutes: On a machine that does nothing else.

    Returns:
        `steps`, `seconds` and `cpu_seconds`, and the `curve`: means of what is noted, for each twentieth part of the
        time in which a step began.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe['lr'], weight_decay=recipe['weight_decay'])
    begin, cpu, steps = time.monotonic(), time.process_time(), 0
    noted: List[List[Tuple[float, ...]]] = [[] for _ in range(PARTS)]
    names: List[str] = []
    model.train()
    with Progress(100) as progress:
        while (passed := (time.process_time() - cpu) / (60 * minutes * torch.get_num_threads())) < 1:
            rate = max(1e-3, min(1.0, passed / recipe['warmup']) * (1 + math.cos(math.pi * passed)) / 2)
            for group in optimizer.param_groups:
                group['lr'] = recipe['lr'] * rate
            found = step(steps, passed)
            found['loss'].backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe['clip_grad'])
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            names, values = list(found), tuple(float(value.detach()) for value in found.values())
            noted[int(PARTS * passed)].append(values)
            while progress.done < int(100 * passed):
                progress.update()
            progress.show(', '.join(f'{name} {value:.3f}' for name, value in zip(names, values, strict=True)))
    means = {(i + 1) / PARTS: np.mean(part, axis=0).round(3).tolist() for i, part in enumerate(noted) if part}
    curve = [dict(time=until, **dict(zip(names, mean, strict=True))) for until, mean in means.items()]
    seconds = dict(seconds=round(time.monotonic() - begin), cpu_seconds=round(time.process_time() - cpu))
    return dict(steps=steps, **seconds, curve=curve)


def arguments(name: str, about: str, minutes: float) -> argparse.Namespace:
    """Parse the command line that these trainings have; makes the folder."""
    parser = argparse.ArgumentParser(f'python -m benchmarks.learning.{name}', description=about)
    parser.add_argument(
        '--minutes', type=float, default=minutes, help='of training a model on an idle machine (%(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of weights and data (%(default)s)')
    parser.add_argument('--out', type=Path, default=Path('output/learning'), help='folder for what comes out')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    return args
