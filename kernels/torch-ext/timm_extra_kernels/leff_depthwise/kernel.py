"""The depthwise stage of LeFF in one pass over the tokens.

A program holds a block of channels and walks down the grid. Each token of a row is its own tensor over the channels, so
that neighbours are met in registers and every token is loaded once; grids too wide for that are cut into blocks of
columns that overlap by half a kernel. The compiler knows how many columns a program takes, 14 or 8, but no size of the
grid and no number of channels: two compiled forms serve them all.
"""

# ruff: noqa: RUF005 (Triton knows no starred tuples)

import inspect
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple

import torch
import triton
import triton.language as tl

from .._target import FUSION, INTERPRETER, target

PROGRAMS = 4096  # enough for every GPU; backward programs take several images each, which leaves fewer partial sums
SIZES = ('B', 'H', 'W', 'C', 'N', 'IMAGES', 'TOKENS', 'PARTS', 'INPUT_PARTS', 'OUTPUT_PARTS')  # as kernels name them


def any_size(function: Callable) -> Any:
    """Decorate a kernel: compiled once for all `SIZES` and alignments of memory, instead of again where one is 1 or a
    multiple of 16."""
    parameters = inspect.signature(function).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.annotation is not tl.constexpr]
    return triton.jit(function, do_not_specialize=SIZES, do_not_specialize_on_alignment=names)


@triton.jit
def gelu_terms(x, EXACT: tl.constexpr):
    """The normal distribution function at x and its density. Half precision takes a quarter of the instructions.

    The logit of the distribution function is odd and smooth: a polynomial, which leaves GELU within 4e-6, a fiftieth at
    most of what half precision rounds off values of 1. A reciprocal is a division to the compiler, of many
    instructions; the square of a reciprocal root is two.
    """
    square = x * x
    density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * square)
    if EXACT:
        below = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
    else:
        square = tl.minimum(square, 30.25)
        logit = 3.21037669e-06 * square - 8.7909757e-05
        logit = logit * square - 0.000362047751
        logit = logit * square + 0.105229974
        logit = logit * square + 2.30204368
        root = tl.rsqrt(1.0 + tl.exp2(-x * logit))
        below = root * root
    return below, density


@triton.jit
def gelu(x, EXACT: tl.constexpr):
    """x Φ(x)."""
    return x * gelu_terms(x, EXACT)[0]


@triton.jit
def gelu_slope(x, EXACT: tl.constexpr):
    """Derivative of `gelu`."""
    below, density = gelu_terms(x, EXACT)
    return below + x * density


@triton.jit
def channel_vector(ptr, c, C):
    """Values of the channels c as float32."""
    return tl.load(ptr + c, mask=c < C, other=0.0).to(tl.float32)


@triton.jit
def row_end(c, C, W, j0, HALO: tl.constexpr):
    """By channel, how many tokens of a row there are from column j0 − HALO on; none of channels from C on."""
    return tl.where(c < C, W - j0 + HALO, 0)


@triton.jit
def token_mask(end, n: tl.constexpr, j0, HALO: tl.constexpr):
    """Mask of the channels of token n of a row, counted from column j0 − HALO on; `end` is that of `row_end`."""
    if n < HALO:
        end = tl.where(j0 > 0, end, 0)  # a block that is not the first has at least HALO columns before it
    if HALO == 0 and n < 9:
        return end > 0
    else:
        return end > n


@triton.jit
def taps(WEIGHT, c, C, TAPS: tl.constexpr):
    """The depthwise kernel (C, 1, k, k), a tensor over channels per tap."""
    w = ()
    for tap in tl.static_range(TAPS):
        w = w + (tl.load(WEIGHT + c * TAPS + tap, mask=c < C, other=0.0).to(tl.float32),)
    return w


@triton.jit
def empty_rows(c, COUNT: tl.constexpr):
    """Zeros, a tensor over channels each."""
    rows = ()
    for _ in tl.static_range(COUNT):
        rows = rows + (tl.zeros_like(c).to(tl.float32),)
    return rows


@triton.jit
def hidden_row(X, r, j0, end, H, W, c, C, m, s, t, LOADED: tl.constexpr, HALO: tl.constexpr, EXACT: tl.constexpr):
    """Row r of GELU((x − m) s + t), from column j0 − HALO on; zero outside the grid, as the convolution pads it."""
    row = ()
    at = X + (r * W + j0 - HALO) * C + c
    end = tl.where(r < H, end, 0)
    for n in tl.static_range(LOADED):
        inside = token_mask(end, n, j0, HALO)
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        at += C
        row = row + (tl.where(inside, gelu((x - m) * s + t, EXACT), 0.0),)
    return row


@triton.jit
def block_row(X, r, j0, end, W, c, C, COLS: tl.constexpr, HALO: tl.constexpr):
    """Row r of the tokens of a block itself, from column j0 on, as they are stored.

    They are loaded together, before anything of the row is stored: what follows a store waits for its own load.
    """
    row = ()
    at = X + (r * W + j0) * C + c
    end = tl.where(r >= 0, end, 0)
    for j in tl.static_range(COLS):
        row = row + (tl.load(at, mask=token_mask(end, j + HALO, j0, HALO), other=0.0),)
        at += C
    return row


@triton.jit
def convolve(rows, w, start, j: tl.constexpr, K: tl.constexpr, LOADED: tl.constexpr, HALO: tl.constexpr):
    """Depthwise convolution at column j of the block, from the K rows around it."""
    FIRST: tl.constexpr = j + HALO - K // 2
    out = start
    for a in tl.static_range(K):
        for b in tl.static_range(K):
            if FIRST + b >= 0 and FIRST + b < LOADED:
                out += rows[a * LOADED + FIRST + b] * w[a * K + b]
    return out


@any_size
def _leff_depthwise_fwd_kernel(
    X, WEIGHT, BIAS, SCALE1, SHIFT1, SCALE2, SHIFT2, Y, H, W, C,
    K: tl.constexpr, COLS: tl.constexpr, HALO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # X and Y (B, H·W, C) contiguous; a program: one image, COLS columns, BC channels
    P: tl.constexpr = K // 2
    LOADED: tl.constexpr = COLS + 2 * HALO
    EXACT: tl.constexpr = X.dtype.element_ty == tl.float32
    c = tl.program_id(0) % tl.cdiv(C, BC) * BC + tl.arange(0, BC)
    block = tl.program_id(0) // tl.cdiv(C, BC)
    j0 = block % tl.cdiv(W, COLS) * COLS
    image = (block // tl.cdiv(W, COLS)).to(tl.int64) * H * W * C
    end = row_end(c, C, W, j0, HALO)
    w = taps(WEIGHT, c, C, K * K)
    bias = channel_vector(BIAS, c, C)
    s1, t1 = channel_vector(SCALE1, c, C), channel_vector(SHIFT1, c, C)
    s2, t2 = channel_vector(SCALE2, c, C), channel_vector(SHIFT2, c, C)
    rows = empty_rows(c, 2 * P * LOADED)
    for r in range(0, H + P):
        rows = rows + hidden_row(X + image, r, j0, end, H, W, c, C, 0.0, s1, t1, LOADED, HALO, EXACT)
        if r >= P:
            at = Y + image + ((r - P) * W + j0) * C + c
            for j in tl.static_range(COLS):
                y = gelu(convolve(rows, w, bias, j, K, LOADED, HALO) * s2 + t2, EXACT)
                inside = token_mask(end, j + HALO, j0, HALO)
                tl.store(at, y.to(Y.dtype.element_ty), mask=inside)
                at += C
        rows = rows[LOADED:]


@any_size
def _leff_depthwise_bwd_output_kernel(
    G, X, WEIGHT, BIAS, SCALE1, SHIFT1, SCALE2, SHIFT2, DZ, SUMS, B, H, W, C,
    IMAGES, K: tl.constexpr, COLS: tl.constexpr, HALO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # the convolution z once more; DZ (B, H·W, C) its gradient; SUMS (programs, 2, C) those of scale2 and shift2
    P: tl.constexpr = K // 2
    LOADED: tl.constexpr = COLS + 2 * HALO
    EXACT: tl.constexpr = X.dtype.element_ty == tl.float32
    c = tl.program_id(0) % tl.cdiv(C, BC) * BC + tl.arange(0, BC)
    block = tl.program_id(0) // tl.cdiv(C, BC)
    j0 = block % tl.cdiv(W, COLS) * COLS
    b0 = block // tl.cdiv(W, COLS) * IMAGES
    end = row_end(c, C, W, j0, HALO)
    w = taps(WEIGHT, c, C, K * K)
    bias = channel_vector(BIAS, c, C)
    s1, t1 = channel_vector(SCALE1, c, C), channel_vector(SHIFT1, c, C)
    s2, t2 = channel_vector(SCALE2, c, C), channel_vector(SHIFT2, c, C)
    scale_sum, shift_sum = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for b in range(b0, tl.minimum(b0 + IMAGES, B)):
        image = tl.cast(b, tl.int64) * H * W * C
        rows = empty_rows(c, 2 * P * LOADED)
        for r in range(0, H + P):
            grads = block_row(G + image, r - P, j0, end, W, c, C, COLS, HALO)
            rows = rows + hidden_row(X + image, r, j0, end, H, W, c, C, 0.0, s1, t1, LOADED, HALO, EXACT)
            if r >= P:
                at = DZ + image + ((r - P) * W + j0) * C + c
                for j in tl.static_range(COLS):
                    z = convolve(rows, w, bias, j, K, LOADED, HALO)
                    inside = token_mask(end, j + HALO, j0, HALO)
                    g = grads[j].to(tl.float32)
                    dv = tl.where(inside, g * gelu_slope(z * s2 + t2, EXACT), 0.0)
                    scale_sum += dv * z
                    shift_sum += dv
                    tl.store(at, (dv * s2).to(DZ.dtype.element_ty), mask=inside)
                    at += C
            rows = rows[LOADED:]
    at = SUMS + block.to(tl.int64) * 2 * C + c
    tl.store(at, scale_sum, mask=c < C)
    tl.store(at + C, shift_sum, mask=c < C)


@triton.jit
def gradient_row(DZ, r, j0, end, H, W, c, C, LOADED: tl.constexpr, HALO: tl.constexpr):
    """Row r of the gradient of the convolution, from column j0 − HALO on; zero outside the grid."""
    row = ()
    at = DZ + (r * W + j0 - HALO) * C + c
    end = tl.where(r < H, end, 0)
    for n in tl.static_range(LOADED):
        inside = token_mask(end, n, j0, HALO)
        row = row + (tl.load(at, mask=inside, other=0.0).to(tl.float32),)
        at += C
    return row


@triton.jit
def spread(rows, h, w, dw, j: tl.constexpr, K: tl.constexpr, LOADED: tl.constexpr, HALO: tl.constexpr):
    """Gradient of column j of the convolution's input h, and of the K×K weights with what h adds to it."""
    LAST: tl.constexpr = j + HALO + K // 2
    dh = tl.zeros_like(h)
    new = ()
    for a in tl.static_range(K):
        for b in tl.static_range(K):
            sum = dw[a * K + b]
            if LAST - b >= 0 and LAST - b < LOADED:
                dh += rows[(K - 1 - a) * LOADED + LAST - b] * w[a * K + b]
                sum += rows[(K - 1 - a) * LOADED + LAST - b] * h
            new = new + (sum,)
    return dh, new


@any_size
def _leff_depthwise_bwd_input_kernel(
    DZ, X, WEIGHT, SCALE1, SHIFT1, DX, SUMS, B, H, W, C, IMAGES,
    K: tl.constexpr, COLS: tl.constexpr, HALO: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # SUMS (programs, k·k + 2, C): gradients of the weight's taps, of scale1 and of shift1
    P: tl.constexpr = K // 2
    LOADED: tl.constexpr = COLS + 2 * HALO
    EXACT: tl.constexpr = X.dtype.element_ty == tl.float32
    c = tl.program_id(0) % tl.cdiv(C, BC) * BC + tl.arange(0, BC)
    block = tl.program_id(0) // tl.cdiv(C, BC)
    j0 = block % tl.cdiv(W, COLS) * COLS
    b0 = block // tl.cdiv(W, COLS) * IMAGES
    end = row_end(c, C, W, j0, HALO)
    w = taps(WEIGHT, c, C, K * K)
    s1, t1 = channel_vector(SCALE1, c, C), channel_vector(SHIFT1, c, C)
    dw = empty_rows(c, K * K)
    scale_sum, shift_sum = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for b in range(b0, tl.minimum(b0 + IMAGES, B)):
        image = tl.cast(b, tl.int64) * H * W * C
        rows = empty_rows(c, 2 * P * LOADED)
        for r in range(0, H + P):
            tokens = block_row(X + image, r - P, j0, end, W, c, C, COLS, HALO)
            rows = rows + gradient_row(DZ + image, r, j0, end, H, W, c, C, LOADED, HALO)
            if r >= P:
                at = DX + image + ((r - P) * W + j0) * C + c
                for j in tl.static_range(COLS):
                    inside = token_mask(end, j + HALO, j0, HALO)
                    x = tokens[j].to(tl.float32)
                    u = x * s1 + t1
                    below, density = gelu_terms(u, EXACT)
                    dh, dw = spread(rows, tl.where(inside, u * below, 0.0), w, dw, j, K, LOADED, HALO)
                    du = tl.where(inside, dh * (below + u * density), 0.0)
                    scale_sum += du * x
                    shift_sum += du
                    tl.store(at, (du * s1).to(DX.dtype.element_ty), mask=inside)
                    at += C
            rows = rows[LOADED:]
    at = SUMS + block.to(tl.int64) * (K * K + 2) * C + c
    for tap in tl.static_range(K * K):
        tl.store(at + tap * C, dw[tap], mask=c < C)
    tl.store(at + K * K * C, scale_sum, mask=c < C)
    tl.store(at + (K * K + 1) * C, shift_sum, mask=c < C)


@triton.jit
def sum_of_parts(SUMS, PARTS, SIZE, c, C, BP: tl.constexpr):
    """Sums of the channels c over the parts (PARTS, SIZE), in their order, BP of them loaded at a time."""
    at = SUMS + c
    sum = tl.zeros([c.shape[0]], tl.float32)
    for p0 in range(0, PARTS, BP):
        left = tl.where(c < C, PARTS - p0, 0)
        for p in tl.static_range(BP):
            sum += tl.load(at, mask=left > p, other=0.0)
            at += SIZE
    return sum


@triton.jit
def store_channels(ptr, c, C, value):
    """Values of the channels c, in the dtype of the memory."""
    tl.store(ptr + c, value.to(ptr.dtype.element_ty), mask=c < C)


@any_size
def _leff_depthwise_bwd_parameters_kernel(
    INPUT_SUMS, OUTPUT_SUMS, SCALE2, DWEIGHT, DBIAS, DSCALE1, DSHIFT1, DSCALE2, DSHIFT2, SUMS1, INPUT_PARTS,
    OUTPUT_PARTS, C, K: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    # INPUT_SUMS (INPUT_PARTS, k·k + 2, C) and OUTPUT_SUMS (OUTPUT_PARTS, 2, C); a program: one row of either.
    # SCALE2: None if the mean takes the bias away; SUMS1 (2, C): None, or where those of scale1 and shift1 also go
    c = tl.program_id(0) % tl.cdiv(C, BC) * BC + tl.arange(0, BC)
    row = tl.program_id(0) // tl.cdiv(C, BC)
    if row < K * K + 2:
        sum = sum_of_parts(INPUT_SUMS + row * C, INPUT_PARTS, (K * K + 2) * C, c, C, BP)
        if row < K * K:
            tl.store(DWEIGHT + c * K * K + row, sum.to(DWEIGHT.dtype.element_ty), mask=c < C)
        elif row == K * K:
            store_channels(DSCALE1, c, C, sum)
        else:
            store_channels(DSHIFT1, c, C, sum)
        if SUMS1 is not None and row >= K * K:
            store_channels(SUMS1 + (row - K * K) * C, c, C, sum)
    else:
        sum = sum_of_parts(OUTPUT_SUMS + (row - K * K - 2) * C, OUTPUT_PARTS, 2 * C, c, C, BP)
        if row == K * K + 2:
            store_channels(DSCALE2, c, C, sum)
        else:
            store_channels(DSHIFT2, c, C, sum)
            if SCALE2 is None:
                store_channels(DBIAS, c, C, sum * 0.0)
            else:
                store_channels(DBIAS, c, C, sum * channel_vector(SCALE2, c, C))


class Cut(NamedTuple):
    """How a launch is cut: its blocks of channels times columns, images per program where it takes several, options."""

    blocks: int
    images: int
    options: dict


def cut(x: torch.Tensor, k: int, W: int, sums: bool = True) -> Cut:
    """Columns, channels and images that a program takes, and registers where it also holds sums."""
    B, _, C = x.shape
    kind = target()
    # registers hold k rows of 14 columns, but not with sums for 5×5 weights; fewer columns than 9 are less work in 8
    whole = 8 < W <= 14 and not (sums and k > 3)
    few = 4 if kind == INTERPRETER else 8
    cols, halo = (14, 0) if whole else (few, k // 2)
    BC = 64 if kind.startswith('gfx') else 32  # one warp
    blocks = triton.cdiv(C, BC) * triton.cdiv(W, cols)
    programs = 2 if kind == INTERPRETER else PROGRAMS
    images = triton.cdiv(B, max(1, min(B, programs // blocks)))
    options = dict(K=k, COLS=cols, HALO=halo, BC=BC, num_warps=1, **FUSION)
    if sums and kind.startswith('sm'):
        options['maxnreg'] = 255  # for the sake of occupancy the assembler would rather spill a few
    if kind.startswith('gfx'):
        options['waves_per_eu'] = 1  # likewise
    return Cut(blocks, images, options)


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    scale1: torch.Tensor, shift1: torch.Tensor, scale2: torch.Tensor, shift2: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """As `eager.forward`."""
    x, weight, *vectors = (t.contiguous() for t in (x, weight, bias, scale1, shift1, scale2, shift2))
    B, _, C = x.shape
    out = x.new_empty(x.shape)
    plan = cut(x, weight.shape[-1], W, sums=False)
    _leff_depthwise_fwd_kernel[(B * plan.blocks,)](x, weight, *vectors, out, H, W, C, **plan.options)
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    scale1: torch.Tensor, shift1: torch.Tensor, scale2: torch.Tensor, shift2: torch.Tensor,
) -> Tuple[torch.Tensor, ...]:  # fmt: skip
    """As `eager.backward`."""
    args = weight, bias, scale1, shift1, scale2, shift2
    grad, x, w, b, s1, t1, s2, t2 = (t.contiguous() for t in (grad, x, *args))
    B, _, C = x.shape
    k = weight.shape[-1]
    plan = cut(x, k, W)
    groups = triton.cdiv(B, plan.images)
    parts = groups * triton.cdiv(W, plan.options['COLS'])
    grid = (groups * plan.blocks,)
    dz, dx = x.new_empty(x.shape), x.new_empty(x.shape)
    output_sums = x.new_empty(parts, 2, C, dtype=torch.float32)
    input_sums = x.new_empty(parts, k * k + 2, C, dtype=torch.float32)
    _leff_depthwise_bwd_output_kernel[grid](
        grad, x, w, b, s1, t1, s2, t2, dz, output_sums, B, H, W, C, plan.images, **plan.options
    )
    _leff_depthwise_bwd_input_kernel[grid](dz, x, w, s1, t1, dx, input_sums, B, H, W, C, plan.images, **plan.options)
    return (dx, *parameter_gradients(args, input_sums, output_sums, s2))


def parameter_gradients(
    parameters: Sequence[torch.Tensor],
    input_sums: torch.Tensor,
    output_sums: torch.Tensor,
    scale2: Optional[torch.Tensor] = None,
    sums1: Optional[torch.Tensor] = None,
) -> List[torch.Tensor]:
    """Gradients of weight, bias and the four vectors, in their dtypes, from all partial sums; one launch."""
    grads = [p.new_empty(p.shape) for p in parameters]
    rows, C = input_sums.shape[1] + output_sums.shape[1], input_sums.shape[2]
    options = dict(K=parameters[0].shape[-1], BP=32, BC=32, num_warps=1, **FUSION)
    _leff_depthwise_bwd_parameters_kernel[(rows * triton.cdiv(C, 32),)](
        input_sums, output_sums, scale2, *grads, sums1, input_sums.shape[0], output_sums.shape[0], C, **options
    )
    return grads
