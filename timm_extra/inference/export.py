"""Models as ONNX or as programs of torch.export, compared with the original before they are left behind."""

import contextlib
import copy
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from timm_extra._files import PathLike, atomic_folder, check_output
from timm_extra.images import input_config

FORMATS = ('onnx', 'torch-export')
BATCHES = (1, 3)  # compared; exported with another
TOLERANCE = 1e-4  # of float32


@dataclass(frozen=True)
class Export:
    """An exported model.

    Attributes:
        path: File.
        format: Its format.
        input_size: Shape of one input; the batch may have any size.
        sizes: Shapes of the inputs that were compared: others than `input_size` with `dynamic_size`.
        largest_error: Largest absolute difference to the model's outputs.
        tolerance: Largest difference that was allowed.
        batch_sizes: Sizes of the batches that were compared.
        megabytes: Size on disk.
        constant: Whether all random images have the same outputs, so that the comparison says little.
    """

    path: str
    format: str
    input_size: Tuple[int, ...]
    sizes: Tuple[Tuple[int, ...], ...]
    largest_error: float
    tolerance: float
    batch_sizes: Tuple[int, ...]
    megabytes: float
    constant: bool


class Written(NamedTuple):
    """A file that was written.

    Attributes:
        run: Computes the outputs of a batch from it.
        open_axes: Axes of a batch that may have any size, beside the first.
    """

    run: Callable[[torch.Tensor], List[torch.Tensor]]
    open_axes: List[int]


class Comparison(NamedTuple):
    """How outputs of a file differ from those of its model.

    Attributes:
        largest_error: Largest absolute difference.
        rounding: Largest difference that rounding in half precision explains; 0 in other dtypes.
        constant: Whether outputs do not depend on the input.
    """

    largest_error: float
    rounding: float
    constant: bool


def export(
    model: nn.Module,
    path: PathLike,
    format: str = 'onnx',
    *,
    input_size: Optional[Sequence[int]] = None,
    dynamic_size: bool = False,
    tolerance: Optional[float] = None,
    opset: Optional[int] = None,
) -> Export:
    """Export a model for batches of any size and compare it with the original on two of them.

    Made aside and moved into place when its outputs are right. ONNX takes the PyTorch code of every layer and runs
    without this package; a program of torch.export keeps the package's operations, kernels included, so that the
    process that loads it by `torch.export.load` has to import `timm_extra` first. `run_decompositions` of the program
    turns them into PyTorch's.

    A model that gives a list of tensors, as with `features_only=True`, is exported with as many outputs.

    Args:
        model: A timm model, whose dtype the file has too; it is set to evaluation mode.
        path: File to write.
        format: 'onnx' (needs the extra `export`) or 'torch-export'.
        input_size: As in `timm_extra.images.input_config`.
        dynamic_size: Let inputs have any size that the model takes: any height and width for images. Compared with
            each such axis doubled, too.
        tolerance: Largest absolute difference allowed. When None 1e-4, and in float16 and bfloat16 what rounding
            explains: twice the model's own difference to its copy in float32 and 4 ε of the largest output. Two orders
            of summation may differ by that much, and a fixed number would be far too small for some models and say
            nothing of others.
        opset: Of ONNX; PyTorch's choice when None.

    Returns:
        What was written and how close it is.

    Raises:
        ValueError: The format is unknown, the model cannot be exported, takes no other size, or the result differs.
        ModuleNotFoundError: ONNX is not installed.
        OSError: As in `timm_extra._files.check_output`; a file that is there is replaced.
    """
    if format not in FORMATS:
        raise ValueError(f'formats are {" and ".join(FORMATS)}, got {format!r}')
    if opset is not None and format != 'onnx':
        raise ValueError(f'{format} has no opset')
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f'tolerance must not be negative, got {tolerance:g}')
    path = Path(path)
    check_output(path, force=True)
    model, size = model.eval(), tuple(input_config(model, input_size)['input_size'])
    write: Callable[..., Written] = _write_onnx if format == 'onnx' else _write_program
    like = next(model.parameters())
    if format == 'onnx' and like.dtype == torch.bfloat16:
        raise ValueError('onnxruntime has no bfloat16 on a CPU to compare with: export to ONNX in float32 or float16')
    example = _random(2, size, like)
    shapes: Dict[int, Any] = {0: torch.export.Dim('batch')}
    if dynamic_size:
        open_to = (axis for axis in range(1, example.ndim) if example.shape[axis] > 1)
        shapes.update((axis, torch.export.Dim.AUTO) for axis in open_to)
    with atomic_folder(path.parent, last=[path.name]) as aside:  # ONNX of more than 2 GB names a file of weights
        written = write(model, example, shapes, aside / path.name, opset)
        if dynamic_size and not written.open_axes:
            raise ValueError(
                f'{type(model).__name__} takes inputs of {"×".join(map(str, size))} alone: many models take others '
                'when they are made with dynamic_img_size=True'
            )
        sizes = (size, *(_doubled(size, axis - 1) for axis in written.open_axes))
        found = _compare(model, written.run, sizes, like)
        if tolerance is None:
            tolerance = found.rounding or TOLERANCE
        if not found.largest_error <= tolerance:  # NaN, too
            raise ValueError(
                f'outputs differ from the model by up to {found.largest_error:.2g}, more than {tolerance:.2g}'
            )
        megabytes = round(sum(f.stat().st_size for f in aside.iterdir()) / 1e6, 3)
    facts = sizes, found.largest_error, tolerance, BATCHES, megabytes, found.constant
    return Export(str(path), format, size, *facts)


def _random(batch: int, size: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(batch)).to(like)


def _doubled(size: Tuple[int, ...], axis: int) -> Tuple[int, ...]:
    return tuple(2 * s if i == axis else s for i, s in enumerate(size))


def _tensors(outputs: Any) -> List[torch.Tensor]:
    """The tensors of a tensor, or of a list, tuple or dict of them."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [t for part in (outputs.values() if isinstance(outputs, dict) else outputs) for t in _tensors(part)]


def _compare(model: nn.Module, run: Callable, sizes: Sequence[Sequence[int]], like: torch.Tensor) -> Comparison:
    """Compare on batches of other sizes than the exported one."""
    half = like.dtype in (torch.float16, torch.bfloat16)
    exact_model = copy.deepcopy(model).float() if half else None
    errors, rounding, of_items = [], 0.0, []
    for size in sizes:
        for batch in BATCHES:
            x = _random(batch, size, like)
            with torch.inference_mode():
                expected = [y.cpu() for y in _tensors(model(x))]
                exact = [y.cpu() for y in _tensors(exact_model(x.float()))] if exact_model else []
            try:
                found = run(x)
            except Exception as e:  # of onnxruntime, whose errors have no class in common, and guards of programs
                shape = '×'.join(map(str, x.shape))
                raise ValueError(f'what was exported does not run on inputs of {shape}: {_reason(e)}') from e
            shapes, wanted = ([tuple(y.shape) for y in outputs] for outputs in (found, expected))
            if shapes != wanted:
                raise ValueError(f'outputs are {_listed(shapes)}, those of the model {_listed(wanted)}')
            errors += [(a - b).abs().max() for a, b in zip(found, expected, strict=True)]
            for a, b in zip(expected, exact, strict=bool(exact)):
                own = 2 * (a - b).abs().max() + 4 * torch.finfo(like.dtype).eps * b.abs().max()
                rounding = max(rounding, float(own))
            if size == sizes[0]:
                of_items.append([y.flatten(1) for y in expected])
    every = torch.cat([torch.cat(items, 1) for items in of_items])
    return Comparison(float(torch.stack(errors).max()), rounding, bool((every == every[:1]).all()))


def _listed(shapes: Sequence[Tuple[int, ...]]) -> str:
    return ', '.join(map(str, shapes))


def _write_onnx(model: nn.Module, x: torch.Tensor, shapes: Dict[int, Any], file: Path, opset: Optional[int]) -> Written:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, what torch.onnx needs
    except ModuleNotFoundError as e:
        raise ModuleNotFoundError('ONNX needs more packages: pip install "timm-extra[export]"') from e
    from torch.onnx import OnnxExporterError

    with torch.no_grad(), _quiet():
        count = len(_tensors(model(x)))
        try:
            program = torch.onnx.export(
                model,
                (x,),
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=['input'],
                output_names=['output'] if count == 1 else [f'output_{i}' for i in range(count)],
                opset_version=opset,
                verbose=False,
            )
        except OnnxExporterError as e:
            raise ValueError(f'{type(model).__name__} does not export to ONNX: {_reason(e)}') from e
    program.save(str(file))
    try:
        session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    except Exception as e:  # its errors have no class in common
        raise ValueError(f'onnxruntime cannot run what was exported: {_reason(e)}') from e
    name = session.get_inputs()[0].name

    def run(batch: torch.Tensor) -> List[torch.Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, {name: batch.cpu().numpy()})]

    return Written(run, _open_axes(program.exported_program))


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


def _write_program(
    model: nn.Module, x: torch.Tensor, shapes: Dict[int, Any], file: Path, opset: Optional[int]
) -> Written:
    with torch.no_grad():
        try:
            program = torch.export.export(model, (x,), dynamic_shapes=(shapes,))
        except (RuntimeError, torch._dynamo.exc.UserError) as e:
            raise ValueError(f'{type(model).__name__} does not export: {_reason(e)}') from e
        with file.open('wb') as f:  # a path must end in .pt2, a file need not
            torch.export.save(program, f)
        with file.open('rb') as f:
            loaded = torch.export.load(f).module()

    def run(batch: torch.Tensor) -> List[torch.Tensor]:
        with torch.no_grad():
            return [y.cpu() for y in _tensors(loaded(batch))]

    return Written(run, _open_axes(program))


def _open_axes(program: torch.export.ExportedProgram) -> List[int]:
    """Axes of a program's input that may have any size, without the batch."""
    from torch.fx.experimental.symbolic_shapes import has_static_value  # which imports sympy

    (name,) = program.graph_signature.user_inputs
    shape = next(node.meta['val'].shape for node in program.graph.nodes if node.name == name)
    return [axis for axis, size in enumerate(shape) if axis > 0 and not has_static_value(size)]


def _reason(error: BaseException) -> str:
    """The first paragraph of what went wrong at first, in one line: exporters put generalities before it."""
    while error.__cause__ is not None:
        error = error.__cause__
    paragraph = str(error).strip().partition('\n\n')[0]
    return ' '.join(paragraph.split()) or type(error).__name__
