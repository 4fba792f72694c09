"""What several files of tests use."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope='session')
def pictures(tmp_path_factory):
    """A folder with 24 grey images in train/ and validation/ each, in two classes."""
    root = tmp_path_factory.mktemp('pictures')
    generator = np.random.default_rng(0)
    for split in ('train', 'validation'):
        for i in range(24):
            (root / split / f'class{i % 2}').mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 255, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / f'class{i % 2}' / f'{i}.png')
    return root
