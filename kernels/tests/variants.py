"""How many compiled forms of each kernel a set of sizes leads to, counted without compiling any and without a GPU.

`counted('leff_depthwise', 'bfloat16', [dict(B=1, H=14, W=14, C=1536, P=1), …])` returns the number of distinct keys of
Triton's own cache by kernel. Sizes are those of the operation's `cases.inputs`.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List, Optional


def counted(
    operation: str,
    dtype: str,
    sizes: List[Dict[str, Any]],
    parameters: Optional[str] = None,
    offsets: Optional[List[int]] = None,
    target: str = 'sm_90',
) -> Dict[str, int]:
    """Compiled forms by kernel that forward and backward of an operation take, in a process without the interpreter.

    Args:
        operation: Its name.
        dtype: Name of the dtype of its inputs.
        sizes: Sizes of the calls.
        parameters: Name of the dtype of all inputs but the first, the same if not given.
        offsets: Elements that an input may lie behind the beginning of its memory; one after the other, call by call.
        target: As in `triton_aot.TARGETS`.
    """
    request = dict(operation=operation, dtype=dtype, sizes=sizes, parameters=parameters or dtype, target=target)
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    command = [sys.executable, str(Path(__file__))]
    text = json.dumps(dict(request, offsets=offsets or [0]))
    done = subprocess.run(command, input=text, env=environment, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f'counting the forms of {operation} failed:\n{done.stderr}')
    return json.loads(done.stdout)


def main() -> None:
    """Answer one request of `counted`."""
    import torch
    import triton_aot
    from gates import BY_NAME, mapped
    from triton.runtime.jit import JITFunction

    from timm_extra_kernels._cases import Case

    request = json.load(sys.stdin)
    spec = BY_NAME[request['operation']]
    forms: Dict[str, int] = Counter()

    def count(kernel: JITFunction, key: Any, signature: Any, device: Any, *_: Any) -> object:
        forms[kernel.__name__] += 1
        return kernel.device_caches[device][0].setdefault(key, object())

    JITFunction._do_compile = count

    def moved(tensor: torch.Tensor, offset: int) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        dtype = getattr(torch, request['dtype' if tensor is first else 'parameters'])
        return torch.empty(tensor.numel() + offset, dtype=dtype, device='meta')[offset:].view(tensor.shape)

    with triton_aot.compiling_for(triton_aot.TARGETS[request['target']]):
        for number, sizes in enumerate(request['sizes']):
            args = spec.inputs(Case('', sizes), torch.float32, torch.device('meta'))
            first = args[0]
            offset = request['offsets'][number % len(request['offsets'])]
            args = mapped(lambda tensor, offset=offset: moved(tensor, offset), args)
            outs = spec.kernel.forward(*args)
            out = outs[0] if isinstance(outs, tuple) else outs
            spec.kernel.backward(*spec.backward_args(torch.empty_like(out), args, outs))
    print(json.dumps(forms))


if __name__ == '__main__':
    main()
