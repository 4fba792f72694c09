"""Compile what the launchers would launch, for GPUs that are not there, and read what it takes of them.

`python kernels/tests/triton_aot.py sm_90 [operation …]` prints a line for each kernel, case and dtype.
`python kernels/tests/triton_aot.py --report [target …]` prints what spills, does not fit or does not compile, of all
targets or of those named, and fails if there is any: also with the Triton of another environment's Python.
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
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

os.environ.pop('TRITON_INTERPRET', None)  # before the first import of triton

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from timm_extra_kernels._cases import Case
from timm_extra_kernels._dispatch import arguments, unsupported
from timm_extra_kernels._spec import SPECS, OpSpec
from timm_extra_kernels._target import describe

NAMES = ['sm_80', 'sm_86', 'sm_89', 'sm_90', 'sm_100', 'sm_103', 'sm_120', 'gfx90a', 'gfx942', 'gfx950']
TARGETS = {
    name: GPUTarget('hip', name, describe(name).warp)
    if name.startswith('gfx')
    else GPUTarget('cuda', int(name[3:]), 32)
    for name in NAMES
}
SHARED = {name: describe(name).shared * 1024 for name in NAMES}  # bytes that a block may have
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FIELDS = ['registers', 'spills', 'shared', 'tensor', 'warps', 'mma', 'wgmma', 'async', 'exp']
TENSOR = 512  # columns of tensor memory: of a kernel that needs more, Triton 3.9 compiles nothing but a trap
ACCEPTED = {('sm_86', '_fourier_cross_attention_fwd_kernel'): 16}  # bytes of spills: in float32 with a conv stem
COMMITTED = Path(__file__).with_name('resources.json')
NVIDIA_TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
Pair = Tuple[Case, torch.dtype]
Table = Dict[str, Dict[str, Dict[str, int]]]  # by kernel, then by case and dtype
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
def compiling_for(target: GPUTarget, really: bool = True) -> Iterator[List[Tuple[str, Any]]]:
    """Launches within compile for the target, or are noted alone; yields the list of (name, compiled kernel)."""
    compiled = []
    launch = JITFunction.__getitem__

    def compile_only(kernel, grid):
        def run(*args, **kwargs):
            made = kernel.run(*args, grid=grid, warmup=True, **kwargs) if really else None
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
    """Registers, spills (bytes of stack, or registers), shared memory in bytes, columns of tensor memory, warps and
    counted instructions."""
    metadata = compiled.metadata
    found = dict(shared=metadata.shared, warps=metadata.num_warps, tensor=getattr(metadata, 'tmem_size', None) or 0)
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


def pairs(spec: OpSpec) -> List[Pair]:
    """All cases of an operation in all dtypes."""
    return [(case, dtype) for case in spec.compiled for dtype in DTYPES]


def few_pairs(spec: OpSpec, target: str) -> List[Pair]:
    """As many of them as it takes to launch every kernel of the operation once; others for the next target."""
    found, seen = [], set()
    everything = pairs(spec)
    first = NAMES.index(target) * 4 % len(everything)
    for pair in (*everything[first:], *everything[:first]):
        names = {name for name, _ in _launched(spec, target, pair, really=False)}
        if not names <= seen:
            found.append(pair)
            seen |= names
    return found


def _launched(spec: OpSpec, target: str, pair: Pair, really: bool = True) -> List[Tuple[str, Any]]:
    """What forward and backward launch."""
    case, dtype = pair
    args = spec.inputs(case, dtype, torch.device('meta'))
    with compiling_for(TARGETS[target], really) as launched:
        outs = _launch(spec, 'forward', args)
        if outs is None:
            outs = spec.package.OPERATORS.fake(*args)
        first = outs[0] if isinstance(outs, tuple) else outs
        _launch(spec, 'backward', spec.backward_args(torch.empty_like(first), args, outs))
    return launched


def _launch(spec: OpSpec, direction: str, args: Sequence[Any]) -> Optional[Any]:
    """Call the launcher; None where a GPU would take PyTorch."""
    named = dict(zip(arguments(getattr(spec.eager, direction)), args, strict=True))
    return getattr(spec.kernel, direction)(*args) if unsupported(spec.limits, named) is None else None


def compile_operation(spec: OpSpec, target: str, chosen: Sequence[Pair]) -> Table:
    """Resources of every kernel that forward and backward launch."""
    table: Table = {}
    known: Dict[str, Dict[str, int]] = {}
    for case, dtype in chosen:
        for name, made in _launched(spec, target, (case, dtype)):
            if made.hash not in known:
                known[made.hash] = resources(made)
            key = f'{case.name}, {str(dtype)[6:]}'
            numbered, role = key, 1
            while numbered in table.setdefault(name, {}):  # the same kernel in another role
                role += 1
                numbered = f'{key}, {role}'
            table[name][numbered] = known[made.hash]
    return table


def compile_target(target: str, names: Sequence[str] = (), few: bool = False) -> Table:
    """Resources for a target, of the operations named or of all, in all cases and dtypes or in few."""
    table: Table = {}
    for spec in SPECS:
        if not names or spec.name in names:
            table.update(compile_operation(spec, target, few_pairs(spec, target) if few else pairs(spec)))
    return table


def compile_all(targets: Sequence[str], few: bool = False) -> Dict[str, Table]:
    """Resources for each target; one process for each, two at a time."""

    def one(target: str) -> Table:
        command = [sys.executable, __file__, '--json', target, *(['few'] if few else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'compiling for {target} failed with {done.returncode}:\n{done.stderr}')
        return json.loads(done.stdout)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(targets, pool.map(one, targets), strict=True))


def fault(target: str, name: str, found: Dict[str, int]) -> Optional[str]:
    """What is wrong with a kernel, from its resources; None if nothing is."""
    if found['spills'] > ACCEPTED.get((target, name), 0):
        return 'spills registers'
    if found['shared'] > SHARED[target]:
        return f'needs more shared memory than {SHARED[target]} bytes'
    return f'needs more than {TENSOR} columns of tensor memory' if found['tensor'] > TENSOR else None


def faults(tables: Dict[str, Table]) -> List[str]:
    """What is wrong with each kernel of which something is."""
    return [
        f'{target} {name} ({key}) {fault(target, name, found)}: {found}'
        for target, table in tables.items()
        for name, lines in table.items()
        for key, found in lines.items()
        if fault(target, name, found)
    ]


def report(targets: Sequence[str]) -> int:
    """Print what is wrong with the kernels of the targets; returns how many that are."""
    tables = compile_all(targets)
    found = faults(tables)
    count = sum(len(lines) for table in tables.values() for lines in table.values())
    print(*found, f'triton {triton.__version__}: {len(found)} of {count} kernels', sep='\n')
    return len(found)


def write(tables: Dict[str, Table]) -> None:
    """Write resources.json, a line for each kernel, case and dtype."""
    targets = {
        target: {
            name: {key: [found.get(f, 0) for f in FIELDS] for key, found in lines.items()} for name, lines in t.items()
        }
        for target, t in tables.items()
    }
    text = json.dumps(dict(triton=triton.__version__, fields=FIELDS, targets=targets), indent=0)
    COMMITTED.write_text(re.sub(r'\[([^\[\]]*)\]', lambda m: '[' + ' '.join(m[1].split()) + ']', text) + '\n')


def committed() -> Dict[str, Any]:
    """What resources.json says: the version of Triton, and the tables by target."""
    read = json.loads(COMMITTED.read_text())
    fields = read['fields']
    for table in read['targets'].values():
        for lines in table.values():
            lines.update((key, dict(zip(fields, values, strict=True))) for key, values in lines.items())
    return read


def main() -> None:
    """Print the table of one target, report on all, or write the committed one."""
    first, *rest = sys.argv[1:]
    if first == '--write':
        write(compile_all(NAMES, few=True))
    elif first == '--report':
        sys.exit(min(report(rest or NAMES), 1))
    elif first == '--json':
        print(json.dumps(compile_target(rest[0], few=rest[1:] == ['few'])))
    else:
        for name, lines in compile_target(first, rest).items():
            for key, found in lines.items():
                print(f'{name} ({key}): {found}')


if __name__ == '__main__':
    main()
