"""Small folders of files whose classes are easily learned."""

import numpy as np
import soundfile
from PIL import Image


def write_images(folder, classes=('dark', 'bright'), each=10, seed=0):
    """`each` grey images of 16×16, of another brightness, in a folder for every class."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 128, (16, 16)) + 127 * number // max(1, len(classes) - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f'{i}.png')
    return folder


def write_audio(folder, each=12, seed=0):
    """`each` tones and as many files of noise, WAV and FLAC by turns, of two sampling rates."""
    random = np.random.default_rng(seed)
    for name in ('noise', 'tone'):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            rate, ending = ((48_000, 'wav'), (16_000, 'flac'))[i % 2]
            times = np.arange(rate // 20) / rate
            tone = np.sin(2 * np.pi * random.uniform(300, 500) * times)
            audio = tone if name == 'tone' else random.normal(size=len(times))
            soundfile.write(folder / name / f'{i}.{ending}', 0.3 * audio, rate)
    return folder
