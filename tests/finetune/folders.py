"""Small folders of images whose classes differ in brightness."""

import numpy as np
from PIL import Image


def write_images(folder, classes=('dark', 'bright'), each=10, seed=0):
    """`each` grey images of 16×16 in a folder for every class."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = random.integers(0, 128, (16, 16)) + 127 * number // max(1, len(classes) - 1)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f'{i}.png')
    return folder
