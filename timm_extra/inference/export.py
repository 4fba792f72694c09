"""Models as ONNX or as programs of torch.export, compared with the original before they are left behind."""

import contextlib
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Optional, Sequence, Tuple

import torch
from torch import nn

from timm_extra._files import PathLike, atomic_folder
from timm_extra.images import input_config

FORMATS = ('onnx', 'torch-export')
BATCHES = (1, 3)  # compared; exported with another


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        path: File.
        format: Its format.
        input_size: Shape of one input; the batch may have any size.
        largest_error: Largest absolute difference to the model's outputs.
        batch_sizes: Sizes of the batches that were compared.
        megabytes: Size on disk.
        constant: Whether all random images have the same outputs, so that the comparison says little.
    """

    path: str
    format: str
    input_size: Tuple[int, ...]
    largest_error: float
    batch_sizes: Tuple[int, ...]
    megabytes: float
    constant: bool


def export(
    model: nn.Module,
    path: PathLike,
    format: str = 'onnx',
    *,
    input_size: Optional[Sequence[int]] = None,
    tolerance: float = 1e-4,
    opset: Optional[int] = None,
) -> Export:
    """Export a model for batches of any size and compare it with the original on two of them.

    Made aside and moved into place when its outputs are right. ONNX takes the PyTorch code of every layer and runs
    without this package; a program of torch.export keeps the package's operations, kernels included, so that the
    process that loads it by `torch.export.load` has to import `timm_extra` first.

    Args:
        model: A timm model; it is set to evaluation mode.
        path: File to write.
        format: 'onnx' (needs the extra `export`) or 'torch-export'.
        input_size: As in `timm_extra.images.input_config`.
        tolerance: Largest absolute difference allowed.
        opset: Of ONNX; PyTorch's choice when None.

    Returns:
        What was written and how close it is.

    Raises:
        ValueError: The format is unknown, the model cannot be exported, or the result differs.
        ModuleNotFoundError: ONNX is not installed.
    """
    if format not in FORMATS:
        raise ValueError(f'formats are {" and ".join(FORMATS)}, got {format!r}')
    if opset is not None and format != 'onnx':
        raise ValueError(f'{format} has no opset')
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{path} is a folder, not a file to write')
    if not path.parent.is_dir():
        raise ValueError(f'no folder at {str(path.parent)!r}')
    model, size = model.eval(), input_config(model, input_size)['input_size']
    write: Callable = _write_onnx if format == 'onnx' else _write_program
    like = next(model.parameters())
    example = torch.randn(2, *size, generator=torch.Generator().manual_seed(2)).to(like)
    with atomic_folder(path.parent, last=[path.name]) as aside:  # ONNX of more than 2 GB names a file of weights
        run = write(model, example, aside / path.name, opset)
        error, constant = _compare(model, run, size, like)
        if not error <= tolerance:  # NaN, too
            raise ValueError(f'outputs differ from the model by up to {error:.2g}, more than {tolerance:g}')
        megabytes = sum(f.stat().st_size for f in aside.iterdir()) / 1e6
    return Export(str(path), format, size, error, BATCHES, round(megabytes, 3), constant)


def _compare(model: nn.Module, run: Callable, size: Sequence[int], like: torch.Tensor) -> Tuple[float, bool]:
    """Largest difference on batches of other sizes than the exported one, and whether outputs ignore the input."""
    errors, outputs = [], []
    for batch in BATCHES:
        x = torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch)).to(like)
        with torch.inference_mode():
            expected = model(x)
        found = run(x)
        if found.shape != expected.shape:
            raise ValueError(f'outputs are {tuple(found.shape)}, those of the model {tuple(expected.shape)}')
        errors.append((found - expected.cpu()).abs().max())
        outputs.append(expected.cpu())
    every = torch.cat(outputs)
    return float(torch.stack(errors).max()), bool((every == every[:1]).all())


def _write_onnx(model: nn.Module, x: torch.Tensor, file: Path, opset: Optional[int]) -> Callable:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, what torch.onnx needs
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('ONNX needs more packages: pip install "timm-extra[export]"') from e
    from torch.onnx import OnnxExporterError

    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                model,
                (x,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim('batch')},),
                input_names=['input'],
                output_names=['output'],
                opset_version=opset,
                verbose=False,
            )
        except OnnxExporterError as e:
            raise ValueError(f'{type(model).__name__} does not export to ONNX: {_first_line(e)}') from e
    program.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.cpu().numpy()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter says about its own insides."""
    loggers = [logging.getLogger(name) for name in ('onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _write_program(model: nn.Module, x: torch.Tensor, file: Path, opset: Optional[int]) -> Callable:
    with torch.no_grad():
        try:
            program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
        except (RuntimeError, torch._dynamo.exc.UserError) as e:
            raise ValueError(f'{type(model).__name__} does not export: {_first_line(e)}') from e
        with file.open('wb') as f:  # a path must end in .pt2, a file need not
            torch.export.save(program, f)
        with file.open('rb') as f:
            loaded = torch.export.load(f).module()

    def run(batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return loaded(batch).cpu()

    return run


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
