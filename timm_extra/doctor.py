"""What is installed, what it runs on, and which path the operations take."""

import importlib.metadata
import os
import platform
from dataclasses import dataclass
from typing import Dict, List, Optional

import torch

from timm_extra_kernels import Path, explain, linear
from timm_extra_kernels._dispatch import cannot_run, no_triton
from timm_extra_kernels._spec import SPECS
from timm_extra_kernels.linear.cases import example

from ._version import __version__

NEEDED = ('torch', 'timm', 'einops', 'safetensors', 'huggingface_hub')
OPTIONAL = (
    'accelerate',
    'tqdm',
    'matplotlib',
    'mlxtend',
    'soundfile',
    'soxr',
    'trimesh',
    'av',
    'pillow-heif',
    'transformers',
    'tensorboard',
    'onnx',
    'onnxscript',
    'onnxruntime',
    'kernels',
)
SWITCHES = ('TIMM_EXTRA_FUSED', 'TRITON_INTERPRET', 'HF_HUB_OFFLINE')


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As its driver says.
        capability: Compute capability, or architecture.
        gibibytes: Memory.
    """

    name: str
    capability: str
    gibibytes: float


@dataclass(frozen=True)
class Health:
    """What `doctor` found.

    Attributes:
        versions: Of this package, Python and what is needed; None where it is missing.
        optional: Of what the extras bring, likewise.
        platform: Operating system and processor.
        triton: Which triton there is, and whether kernels can be compiled with it. Only a GPU needs it.
        threads: That PyTorch uses on the CPU.
        gpus: Those that PyTorch sees.
        switches: Environment variables that change what runs; those that are set.
        paths: Which path each operation takes on the best device, and why, for the models' shapes.
        linear: What the linear layers of an accelerated model take on the CPU, and why, for shapes of `ceit_small`.
        hub: Login to the Hub, as text.
        problems: What hinders work, each in a line; none if all is well.
    """

    versions: Dict[str, Optional[str]]
    optional: Dict[str, Optional[str]]
    platform: str
    triton: str
    threads: int
    gpus: List[Gpu]
    switches: Dict[str, str]
    paths: List[Path]
    linear: Path
    hub: str
    problems: List[str]


def doctor(hub: bool = True) -> Health:
    """Look at the installation.

    Args:
        hub: Ask the Hub who is logged in, where a token is configured. The network may fail.

    Returns:
        What was found. Tokens are not part of it.
    """
    versions = {'timm-extra': __version__, 'python': platform.python_version(), **{n: _version(n) for n in NEEDED}}
    gpus = [_gpu(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    problems = [f'{name} is not installed' for name in NEEDED if versions[name] is None]
    if gpus and (reason := no_triton() or cannot_run(torch.device('cuda', torch.cuda.current_device()))):
        problems.append(f'no kernel runs on the GPU, {reason}: all takes the slower PyTorch code')
    if os.environ.get('TRITON_INTERPRET') == '1' and gpus:
        problems.append('TRITON_INTERPRET=1: kernels are interpreted, thousands of times slower')
    return Health(
        versions=versions,
        optional={name: _version(name) for name in OPTIONAL},
        platform=f'{platform.system()} {platform.machine()}',
        triton=triton_found(),
        threads=torch.get_num_threads(),
        gpus=gpus,
        switches={name: os.environ[name] for name in SWITCHES if name in os.environ},
        paths=operation_paths('cuda' if gpus else 'cpu'),
        linear=explain(linear, *example('cpu')),
        hub=hub_login() if hub else 'not checked',
        problems=problems,
    )


def triton_found() -> str:
    """Which triton there is: the package that brought it, its version, and why kernels cannot be compiled with it."""
    brought = list(dict.fromkeys(importlib.metadata.packages_distributions().get('triton', [])))
    parts = [f'{name} {_version(name)}' for name in brought]
    if len(brought) > 1:
        parts.append('several packages wrote one folder: docs/installation.md says how to mend that')
    reason = no_triton()
    return ', '.join([*parts, reason] if reason else parts) or 'of no package'


def operation_paths(device: str) -> List[Path]:
    """Which path the operations take for the shapes of `ceit_small` and `perceiver_base`, one image.

    Args:
        device: Where.

    Returns:
        One entry an operation.
    """
    examples = [(spec.function, *spec.example(device)) for spec in SPECS]
    return [explain(function, *args, **kwargs) for function, args, kwargs in examples]


def hub_login() -> str:
    """Who is logged in to the Hub, without ever showing a token."""
    from huggingface_hub import get_token, whoami

    token = get_token()
    if not token:
        return 'not logged in: public models only (hf auth login)'
    try:
        who = whoami(token=token)
    except Exception as e:  # of the network, of the Hub or of its answer; the message could hold the token
        status = getattr(getattr(e, 'response', None), 'status_code', None)
        if status in (401, 403):
            return 'the token that is configured was refused (hf auth login)'
        return f'a token is configured, the Hub could not be reached ({type(e).__name__})'
    return f'logged in as {who.get("name", "?")}'


def _version(package: str) -> Optional[str]:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    capability = getattr(properties, 'gcnArchName', '') if torch.version.hip else ''
    capability = capability or f'{properties.major}.{properties.minor}'
    return Gpu(properties.name, capability, round(properties.total_memory / 2**30, 1))
