"""Makes bfloat16 right or loud in Triton's interpreter, which computes with its bits as if they were integers.

Casts to and from float32 are exact and round to nearest even, `tl.dot` takes float32 values of its operands, and any
other arithmetic on bfloat16 raises: kernels widen to float32 first.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def widen(bits: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """Float32 to the bits of bfloat16, to nearest even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def install() -> None:
    """Replace the interpreter's casts, products and arithmetic."""
    builder = interpreter.InterpreterBuilder
    cast, dot, binary = builder.cast_impl, builder.create_dot, builder.binary_op

    def cast_impl(self, source, target):
        a, b = source.dtype.scalar, target.scalar
        if a == tl.bfloat16 and b == tl.float32:
            return interpreter.TensorHandle(widen(source.data), tl.float32)
        if a == tl.float32 and b == tl.bfloat16:
            return interpreter.TensorHandle(narrow(source.data), tl.bfloat16)
        return cast(self, source, target)

    def wide(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(widen(handle.data), tl.float32)

    def create_dot(self, a, b, *rest):
        return dot(self, wide(a), wide(b), *rest)

    def binary_op(self, a, b, op):
        if a.dtype.scalar == tl.bfloat16:
            raise TypeError('arithmetic on bfloat16 in a kernel: widen to float32 first')
        return binary(self, a, b, op)

    builder.cast_impl, builder.create_dot, builder.binary_op = cast_impl, create_dot, binary_op
