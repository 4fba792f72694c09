"""What of a stream is done, in a file, for a run that is interrupted to go on from."""

import hashlib
import io
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import nn

from timm_extra._files import PathLike, atomic_file, check_folder, check_output

from .tile_source import TileSource

SAVE_SECONDS = 30.0  # between two saved states


class State:
    """What of a stream is done, in a file: finished passes, and the running softmax of the one under way.

    Args:
        path: The file; of one that is there the stream goes on.
        about: What it must belong to.
        tiles: Number of tiles.
        like: Gives the device.

    Raises:
        ValueError: It is of another image or model, or cannot be read.
    """

    def __init__(self, path: PathLike, about: str, tiles: int, like: torch.Tensor):
        self.path, self.about, self.tiles = Path(path), about, tiles
        self.finished: List[Tuple[torch.Tensor, torch.Tensor]] = []
        self.running: Optional[Tuple[int, torch.Tensor, torch.Tensor]] = None
        self._saved = time.monotonic()
        check_output(self.path, force=True)
        check_folder(self.path.parent)
        if self.path.exists():
            held = self._load(like.device)
            self.finished, self.running = held['finished'], held['running']

    def _load(self, device: torch.device) -> Dict[str, Any]:
        try:
            held = torch.load(self.path, map_location=device, weights_only=True)
            about = held['about']
        except Exception as e:  # what broken files raise is of nearly any type
            raise ValueError(f'{self.path} is no state of a stream: {" ".join(str(e).split())[:200]}') from e
        if about != self.about:
            raise ValueError(
                f'{self.path} is the state of another model, image or preprocessing: remove it to begin again'
            )
        return held

    def resume(self, done: int) -> Optional[Tuple[int, torch.Tensor, torch.Tensor]]:
        """Tiles that the pass after `done` others has behind it, and its sums and log-sum-exp."""
        if done < len(self.finished):
            return (self.tiles, *self.finished[done])
        return self.running if done == len(self.finished) else None

    def save(self, done: int, tiles: int, out: torch.Tensor, lse: torch.Tensor) -> None:
        """Note what a pass has behind it; written every half minute, and at its end."""
        if tiles == self.tiles:
            self.finished, self.running = [*self.finished[:done], (out, lse)], None
        else:
            self.running = tiles, out, lse
        if tiles == self.tiles or time.monotonic() - self._saved > SAVE_SECONDS:
            held = io.BytesIO()
            torch.save(dict(about=self.about, finished=self.finished, running=self.running), held)
            with atomic_file(self.path) as aside:
                aside.write_bytes(held.getvalue())
            self._saved = time.monotonic()


def identity(model: nn.Module, source: TileSource, *options: Any) -> str:
    """A digest of weights, image and options: what a saved state belongs to."""
    version = getattr(source, 'version', None)
    if version is None:
        raise ValueError(f'{source.name} has no version, by which a state knows its image: open a file')
    device = next(model.parameters()).device.type
    precision = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    arguments = sorted(getattr(model, '_model_args', {}).items()), model.num_blocks, model.num_cross_attends
    about = tuple(source.shape), tuple(source.tile), version, options, arguments, precision, repr(model)
    digest = hashlib.sha256(repr(about).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
