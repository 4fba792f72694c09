"""One image of a gigapixel through Perceiver IO: time, memory and equality, by the size of the image.

`python -m benchmarks.streaming --sizes 4096 8192 32768` generates tiled TIFFs of real tissue and measures each in a
fresh process. It prints what it measures and writes it beside the committed results.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator

import numpy as np
import torch
from PIL import Image

from timm_extra._files import atomic_file

from .environment import environment, processor, settle, slug
from .isolated import release, status

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results' / 'streaming'
MODEL = 'perceiver_io_base'
TILE = 512  # pixels along each side of a tile of the files
WHOLE = 4096  # the largest size at which the image is also taken as a whole, and compared


def _tissue() -> np.ndarray:
    """A micrograph of tissue (512, 512, 3) that scikit-image ships."""
    (folder,) = importlib.util.find_spec('skimage').submodule_search_locations
    return np.asarray(Image.open(Path(folder) / 'data' / 'ihc.png').convert('RGB'))


def _tiles(side: int) -> Iterator[np.ndarray]:
    """Tiles of an image: the micrograph shifted, turned, mirrored, lighter and darker, as drawn from a seed."""
    tissue, rng = _tissue(), np.random.default_rng(side)
    for _ in range((side // TILE) ** 2):
        tile = np.rot90(np.roll(tissue, rng.integers(0, TILE, 2), (0, 1)), rng.integers(4))
        tile = tile[:, ::-1] if rng.random() < 0.5 else tile
        yield np.ascontiguousarray(np.clip(tile * rng.uniform(0.85, 1.1), 0, 255).astype(np.uint8))


def generate(side: int, path: Path) -> None:
    """Write a square image of tissue as a TIFF of compressed tiles."""
    import tifffile

    if side % TILE:
        raise ValueError(f'sizes are multiples of {TILE}, got {side}')
    with atomic_file(path) as aside:
        tifffile.imwrite(
            aside, _tiles(side), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), photometric='rgb',
            compression='zlib', compressionargs=dict(level=1), bigtiff=True,
        )  # fmt: skip


def measure(path: Path) -> Dict[str, Any]:
    """Seconds and peak of memory beyond weights of one pass over a file, in this process, which shall be fresh."""
    import timm

    import timm_extra
    from timm_extra.images import open_tiles

    settle()
    torch.manual_seed(0)
    model = timm_extra.accelerate(timm.create_model(MODEL)).eval()
    release()
    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = status('VmRSS')
    begin = time.perf_counter()
    with torch.inference_mode():
        source = open_tiles(path)
        logits = model.forward_stream(source, progress=sys.stderr.isatty())
    seconds, peak = time.perf_counter() - begin, status('VmHWM') - before
    height, width, _ = source.shape
    found = dict(height=height, width=width, seconds=seconds, peak_mib=peak, mib_of_file=path.stat().st_size / 2**20)
    if max(height, width) <= WHOLE:
        mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
        x = torch.from_numpy(source.read(slice(0, height), slice(0, width))).permute(2, 0, 1)
        with torch.inference_mode():
            whole = model(((x / 255 - mean) / std)[None])
        found.update(difference=float((whole - logits).abs().max()), largest_logit=float(whole.abs().max()))
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', type=int, nargs='+', default=[WHOLE, 8192, 32768], help='pixels (%(default)s)')
    parser.add_argument('--images', type=Path, default=Path('output/streaming'), help='folder of the generated files')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder for the results')
    parser.add_argument('--measure', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    args.images.mkdir(parents=True, exist_ok=True)
    about, rows = environment(), []
    for side in args.sizes:
        path = args.images / f'tissue-{side}.tif'
        if not path.exists():
            generate(side, path)
        command = [sys.executable, '-m', 'benchmarks.streaming', '--measure', str(path.resolve())]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_file(args.out / f'{slug(processor())}.json') as aside:
        aside.write_text(json.dumps(dict(environment=about, model=MODEL, rows=rows), indent=1) + '\n')


if __name__ == '__main__':
    main()
