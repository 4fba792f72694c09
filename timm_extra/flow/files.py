"""Files of optical flow in the format of Middlebury, `.flo`.

Format: the README.txt of https://vision.middlebury.edu/flow/code/flow-code/. All numbers are little-endian: the bytes
`PIEH`, which are 202021.25 as float32; width and height as int32; then x and y of the flow of every pixel as float32,
row by row. A component above 1e9 in absolute value, or NaN, means that the flow of the pixel is unknown.
"""

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_extra._files import PathLike, atomic_file

from .field import as_flow, known_flow

MAGIC = b'PIEH'
HEADER = struct.Struct('<4sii')  # magic, width, height
LONGEST = 99_999  # pixels of width or height, as Middlebury's own reader has it
UNKNOWN = 1e10  # what stands in a file for unknown flow, as in Middlebury's own


def read_flo(path: PathLike) -> torch.Tensor:
    """Read a `.flo` file.

    Args:
        path: File.

    Returns:
        (2, H, W) in pixels, x to the right and y down, float32; unknown flow as it is in the file (`known_flow`).

    Raises:
        OSError: It cannot be opened.
        ValueError: It is none, or is cut off; the message names the file and the value.
    """
    with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        if size < HEADER.size:
            raise ValueError(f'{path} is no .flo file: it has {size} bytes, fewer than the {HEADER.size} of a header')
        magic, width, height = HEADER.unpack(file.read(HEADER.size))
        if magic != MAGIC:
            raise ValueError(f'{path} is no .flo file: it begins with {magic!r}, not {MAGIC!r}')
        for name, length in (('width', width), ('height', height)):
            if not 1 <= length <= LONGEST:
                raise ValueError(f'{path} is no .flo file: its {name} must be in 1 to {LONGEST:,}, it is {length:,}')
        wanted = HEADER.size + 8 * width * height
        if size != wanted:  # before memory of a size that a damaged file names is asked for
            raise ValueError(f'{path} has {size:,} bytes, but flow of {width} × {height} pixels takes {wanted:,}')
        values = np.frombuffer(file.read(), '<f4').reshape(height, width, 2)
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1).contiguous()


def write_flo(flow: Any, path: PathLike) -> Path:
    """Write a `.flo` file, whole or not at all.

    Args:
        flow: Tensor or NumPy array (2, H, W) in pixels, x to the right and y down. Unknown flow (`known_flow`) is
            written as 1e10.
        path: File to write, replaced if it is there.

    Returns:
        The path.

    Raises:
        OSError: It cannot be written.
        ValueError: It is neither, or the shape is another.
    """
    flow = as_flow(flow, single=True)
    if max(flow.shape) > LONGEST:
        raise ValueError(f'flow must be (2, H, W) with H and W in 1 to {LONGEST:,}, got {tuple(flow.shape)}')
    flow = flow.detach().cpu().double()
    flow = torch.where(known_flow(flow), flow, UNKNOWN)
    _, height, width = flow.shape
    path = Path(path)
    with atomic_file(path) as aside:
        aside.write_bytes(HEADER.pack(MAGIC, width, height) + flow.permute(1, 2, 0).numpy().astype('<f4').tobytes())
    return path
