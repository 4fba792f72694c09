"""Audio files as inputs of a Perceiver."""

from dataclasses import dataclass
from typing import Tuple

import numpy as np
import torch

from timm_extra._files import PathLike
from timm_extra.images import FileKind

AUDIO = FileKind('audio file', 'audio files', frozenset(('.wav', '.flac', '.ogg', '.mp3', '.aif', '.aiff')))
RATE = 48_000  # Hz, of the Perceiver papers' audio


@dataclass(frozen=True)
class AudioReader:
    """Reads a part of an audio file at 48 kHz, whatever its own rate.

    Attributes:
        input_size: Channels and samples: 1 for the mean of the file's channels, 2 for stereo.
        mean: What is subtracted.
        std: What it is divided by then.
        random: Take any part of a longer file, by the random state of PyTorch; the middle if not.

    Raises:
        ModuleNotFoundError: soundfile or soxr is not installed.
    """

    input_size: Tuple[int, int]
    mean: float = 0.0
    std: float = 1.0
    random: bool = False

    def __post_init__(self):
        try:
            import soundfile  # noqa: F401 (missed now, not by the first file)
            import soxr  # noqa: F401
        except ModuleNotFoundError as e:
            raise ModuleNotFoundError('audio files need soundfile and soxr: pip install "timm-extra[audio]"') from e

    def read(self, path: PathLike) -> torch.Tensor:
        """A part of the audio in a file as (channels, samples); what is shorter is followed by silence.

        Raises:
            ValueError: There is none that can be read; the message names the file.
        """
        import soundfile
        import soxr

        channels, samples = self.input_size
        try:
            with soundfile.SoundFile(path) as file:
                rate = file.samplerate
                wanted = -(-samples * rate // RATE)
                spare = max(0, file.frames - wanted)
                file.seek(int(torch.randint(spare + 1, ())) if self.random else spare // 2)
                audio = file.read(wanted, dtype='float32', always_2d=True)  # (frames, channels)
        except (soundfile.SoundFileError, TypeError) as e:  # TypeError: of headerless files
            raise ValueError(f'{path} cannot be read: {getattr(e, "error_string", e)}') from e
        if not len(audio) or not np.isfinite(audio).all():
            raise ValueError(f'{path} cannot be read: it has no samples, or some that are no numbers')
        if channels == 1:
            audio = audio.mean(1, keepdims=True)
        elif audio.shape[1] not in (1, channels):
            raise ValueError(f'{path} cannot be read: it has {audio.shape[1]} channels, the model takes {channels}')
        if rate != RATE:
            audio = soxr.resample(audio, rate, RATE)
        filled = np.zeros((samples, channels), dtype=np.float32)
        filled[: len(audio)] = audio[:samples]
        return (torch.from_numpy(filled).T.contiguous() - self.mean) / self.std
