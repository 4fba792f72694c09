"""Compile what the launchers would launch, for GPUs that are not there, and read what it takes of them.

`python kernels/tests/triton_aot.py sm_90 [operation …]` prints one JSON object: a key for each kernel, case and dtype.
`python kernels/tests/triton_aot.py --write` writes those of all targets to resources.json, which a test compares with.
Launchers run on meta tensors under a driver that only names the target; Triton's own wheel brings the assemblers.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

os.environ.pop('TRITON_INTERPRET', None)  # before the first import of triton

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from timm_extra_kernels._dispatch import arguments, unsupported
from timm_extra_kernels._spec import SPECS, OpSpec

TARGETS = {
    'sm_80': GPUTarget('cuda', 80, 32),
    'sm_90': GPUTarget('cuda', 90, 32),
    'sm_100': GPUTarget('cuda', 100, 32),
    'gfx942': GPUTarget('hip', 'gfx942', 64),
}
COMMITTED = Path(__file__).with_name('resources.json')
NVIDIA_TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
# instructions that say how a kernel computes: tensor cores, asynchronous copies, special functions
COUNTED = {
    'cubin': {'wgmma': r'wgmma\.mma_async', 'mma': r'\bmma\.sync|tcgen05\.mma', 'async': r'cp\.async', 'exp': r'ex2\.'},
    'amdgcn': {'mma': r'v_mfma', 'exp': r'v_exp_f32'},
}


class NamedTarget:
    """A driver that says which GPU it is and can do nothing else."""

    def __init__(self, target: GPUTarget):
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device=None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device('meta')


@contextmanager
def compiling_for(target: GPUTarget) -> Iterator[List[Tuple[str, Any]]]:
    """Launches within compile for the target; yields the list of (name, compiled kernel)."""
    compiled = []
    launch = JITFunction.__getitem__

    def compile_only(kernel, grid):
        def run(*args, **kwargs):
            made = kernel.run(*args, grid=grid, warmup=True, **kwargs)
            made = made.result() if callable(getattr(made, 'result', None)) else made
            compiled.append((kernel.__name__, made))

        return run

    driver.set_active(NamedTarget(target))
    JITFunction.__getitem__ = compile_only
    try:
        yield compiled
    finally:
        JITFunction.__getitem__ = launch


def resources(compiled: Any) -> Dict[str, int]:
    """Registers, spills (bytes of stack, or registers), shared memory in bytes, warps and counted instructions."""
    found = dict(shared=compiled.metadata.shared, warps=compiled.metadata.num_warps)
    if 'cubin' in compiled.asm:
        with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
            file.write(compiled.asm['cubin'])
            file.flush()
            command = [str(NVIDIA_TOOLS / 'cuobjdump'), '-res-usage', file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True)
        registers, stack = re.search(r'REG:(\d+) STACK:(\d+)', usage.stdout + usage.stderr).groups()
        found.update(registers=int(registers), spills=int(stack))
        text, counted = compiled.asm['ptx'], COUNTED['cubin']
    else:
        text, counted = compiled.asm['amdgcn'], COUNTED['amdgcn']
        for key, name in (('registers', 'vgpr_count'), ('spills', 'vgpr_spill_count')):
            found[key] = int(re.search(rf'\.{name}:\s+(\d+)', text)[1])
    found.update({name: len(re.findall(pattern, text)) for name, pattern in counted.items()})
    return found


def compile_operation(spec: OpSpec, target: str) -> Dict[str, Dict[str, int]]:
    """Resources of every kernel that forward and backward of the spec's cases launch."""
    table: Dict[str, Dict[str, int]] = {}
    for case in spec.compiled:
        for dtype in (torch.bfloat16, torch.float32):
            args = spec.inputs(case, dtype, torch.device('meta'))
            with compiling_for(TARGETS[target]) as compiled:
                outs = _launch(spec, 'forward', args)
                first = outs[0] if isinstance(outs, tuple) else outs
                _launch(spec, 'backward', spec.backward_args(torch.empty_like(first), args, outs))
            for name, made in compiled:
                key = f'{spec.name}/{case.name}/{str(dtype).removeprefix("torch.")}/{name}'
                numbered = key
                while numbered in table:  # the same kernel in another role
                    numbered = f'{key} {int(numbered[len(key) :] or 1) + 1}'
                table[numbered] = resources(made)
    return table


def _launch(spec: OpSpec, direction: str, args: Sequence[Any]) -> Any:
    """Call the launcher, or the eager form where a GPU would."""
    eager = getattr(spec.eager, direction)
    named = dict(zip(arguments(eager), args, strict=True))
    return (getattr(spec.kernel, direction) if unsupported(spec.limits, named) is None else eager)(*args)


def compile_all(targets: Sequence[str], names: Sequence[str] = ()) -> Dict[str, Any]:
    """Resources for each target, of the operations named or of all; one process per target, two at a time."""

    def one(target: str) -> Dict[str, Any]:
        command = [sys.executable, __file__, target, *names]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'compiling for {target} failed:\n{done.stderr}')
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(targets, pool.map(one, targets), strict=True))


def main() -> None:
    """Print the table of one target, or write the committed one of all."""
    if sys.argv[1:] == ['--write']:
        table = dict(triton=triton.__version__, targets=compile_all(list(TARGETS)))
        text = json.dumps(table, indent=1)
        COMMITTED.write_text(re.sub(r'{([^{}]*)}', lambda m: '{' + ' '.join(m[1].split()) + '}', text) + '\n')
        return
    target, *names = sys.argv[1:]
    kernels: Dict[str, Dict[str, int]] = {}
    for spec in SPECS:
        if not names or spec.name in names:
            kernels.update(compile_operation(spec, target))
    print(json.dumps(kernels, indent=1))


if __name__ == '__main__':
    main()
