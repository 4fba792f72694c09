"""The depthwise stage of LeFF in training, in four launches forward and four backward.

Forward: statistics of x, convolution of the normalised and activated x with the statistics of its result z, their
combination, normalisation and activation of z. What lies between is computed again from x and z.
Backward: sums of the second norm, gradients up to the first norm, those of the parameters, what the first norm's
statistics take away.
"""

# ruff: noqa: RUF005 (Triton knows no starred tuples)

from typing import Any, Dict, Tuple

import torch
import triton
import triton.language as tl

from .._target import FUSION, INTERPRETER, target
from ..leff_depthwise.kernel import (
    Cut,
    any_size,
    block_row,
    channel_vector,
    convolve,
    cut,
    empty_rows,
    gelu,
    gelu_slope,
    gelu_terms,
    hidden_row,
    parameter_gradients,
    row_end,
    spread,
    store_channels,
    sum_of_parts,
    taps,
    token_mask,
)

PROGRAMS = 2048  # of the passes that sum over tokens
ROWS, STEPS = 4, 16  # tokens that the passes without neighbours load together: a warp each, several times
PARTS = 16  # of sums that every program of the next pass adds up, at a time


@triton.jit
def normal_scale(VAR, GAMMA, eps, c, C):
    """1 / σ, and that times γ."""
    rstd = tl.rsqrt(channel_vector(VAR, c, C) + eps)
    return rstd, rstd * channel_vector(GAMMA, c, C)


@triton.jit
def store_statistics(SUMS, COUNTS, part, c, C, mean, m2, count):
    """One part of the statistics (parts, 2, C), mean from the origin of all parts and sum of squares around it, and how
    many tokens it has (parts,)."""
    at = SUMS + part.to(tl.int64) * 2 * C + c
    tl.store(at, mean, mask=c < C)
    tl.store(at + C, m2, mask=c < C)
    if tl.program_id(0) % tl.cdiv(C, c.shape[0]) == 0:
        tl.store(COUNTS + part, count)


@triton.jit
def combine(SUMS, COUNTS, PARTS, c, C, BP: tl.constexpr):
    """Mean, from the origin, and biased variance of all parts that `store_statistics` stored."""
    total = tl.full([], 0.0, tl.float32)
    at = SUMS + c
    mean, squares = tl.zeros([c.shape[0]], tl.float32), tl.zeros([c.shape[0]], tl.float32)
    for p0 in range(0, PARTS, BP):
        left = tl.where(c < C, PARTS - p0, 0)
        for p in tl.static_range(BP):
            count = tl.load(COUNTS + p0 + p, mask=p0 + p < PARTS, other=0.0)
            total += count
            mean += tl.load(at, mask=left > p, other=0.0) * count
            at += 2 * C
    mean = mean / total
    at = SUMS + c
    for p0 in range(0, PARTS, BP):
        left = tl.where(c < C, PARTS - p0, 0)
        for p in tl.static_range(BP):
            count = tl.load(COUNTS + p0 + p, mask=p0 + p < PARTS, other=0.0)
            gap = tl.load(at, mask=left > p, other=0.0) - mean
            squares += tl.load(at + C, mask=left > p, other=0.0) + gap * gap * count
            at += 2 * C
    return mean, squares / total


@triton.jit
def part_of_tokens(N, C, TOKENS, BC: tl.constexpr):
    """The program's channels, and which TOKENS of all N it takes: number of the part, first token, how many."""
    c = tl.program_id(0) % tl.cdiv(C, BC) * BC + tl.arange(0, BC)
    part = tl.program_id(0) // tl.cdiv(C, BC)
    n0 = part.to(tl.int64) * TOKENS
    return c, part, n0, tl.minimum(TOKENS, N - n0).to(tl.int32)


@triton.jit
def tokens_from(c, size, C, ROWS: tl.constexpr):
    """Offsets of ROWS tokens, and by channel how many of `size` tokens there are from each on."""
    row = tl.arange(0, ROWS)[:, None]
    return row * C + c[None, :], tl.where(c[None, :] < C, size - row, 0)


@triton.jit
def load_tokens(at, left, C, ROWS: tl.constexpr, STEPS: tl.constexpr):
    """STEPS times ROWS tokens as they are stored, loaded together: what follows a store waits for its own load.

    Adding to the pointers of a tile again and again takes Triton's compiler for AMD minutes and all memory.
    """
    values = ()
    for i in tl.static_range(STEPS):
        values = values + (tl.load(at + i * (ROWS * C), mask=left > i * ROWS, other=0.0),)
    return values


@any_size
def _leff_depthwise_train_fwd_statistics_kernel(
    X, ORIGIN, SUMS, COUNTS, N, C, TOKENS, ROWS: tl.constexpr, STEPS: tl.constexpr, BC: tl.constexpr
):
    # X (N, C); a program: TOKENS tokens, STEPS times ROWS of them at a time with statistics of their own
    c, part, n0, size = part_of_tokens(N, C, TOKENS, BC)
    # a large offset would cost digits: all parts count from the mean of the first tokens, also kept in ORIGIN (C,)
    offset, left = tokens_from(c, N, C, ROWS)
    first = tl.load(X + offset, mask=left > 0, other=0.0).to(tl.float32)
    origin = tl.sum(first, 0) / tl.minimum(N, ROWS)
    if part == 0:
        store_channels(ORIGIN, c, C, origin)
    mean, m2 = tl.zeros([ROWS, BC], tl.float32), tl.zeros([ROWS, BC], tl.float32)
    count = tl.zeros([ROWS, BC], tl.float32)
    for t in range(0, TOKENS, ROWS * STEPS):
        offset, left = tokens_from(c, size - t, C, ROWS)
        values = load_tokens(X + (n0 + t) * C + offset, left, C, ROWS, STEPS)
        sum = tl.zeros([ROWS, BC], tl.float32)
        for i in tl.static_range(STEPS):
            sum += tl.where(left > i * ROWS, values[i].to(tl.float32) - origin[None, :], 0.0)
        new = tl.minimum(tl.maximum(left + (ROWS - 1), 0) // ROWS, STEPS).to(tl.float32)
        middle = sum / tl.maximum(new, 1.0)
        for i in tl.static_range(STEPS):
            d = tl.where(left > i * ROWS, values[i].to(tl.float32) - origin[None, :] - middle, 0.0)
            m2 += d * d
        gap = middle - mean
        share = new / tl.maximum(count + new, 1.0)
        m2 += gap * gap * (count * share)
        mean += gap * share
        count += new
    total = tl.sum(count, 0)
    middle = tl.sum(mean * count, 0) / tl.maximum(total, 1.0)
    gap = mean - middle[None, :]
    store_statistics(SUMS, COUNTS, part, c, C, middle, tl.sum(m2 + gap * gap * count, 0), size.to(tl.float32))


@any_size
def _leff_depthwise_train_fwd_combine_kernel(
    SUMS, COUNTS, ORIGIN, MEAN, VAR, PARTS, C, BP: tl.constexpr, BC: tl.constexpr
):
    # SUMS (PARTS, 2, C) and COUNTS (PARTS,) with means from ORIGIN (C,) to MEAN and VAR (C,)
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    mean, var = combine(SUMS, COUNTS, PARTS, c, C, BP)
    store_channels(MEAN, c, C, channel_vector(ORIGIN, c, C) + mean)
    store_channels(VAR, c, C, var)


@any_size
def _leff_depthwise_train_fwd_conv_kernel(
    X, WEIGHT, BIAS, ORIGIN, X_SUMS, X_COUNTS, GAMMA, BETA, MEAN, VAR, Z, SUMS, COUNTS, eps, B, H, W, C, IMAGES,
    PARTS, K: tl.constexpr, COLS: tl.constexpr, HALO: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    # X and Z (B, H·W, C) contiguous; the PARTS statistics of X go to MEAN and VAR (C,); SUMS (programs, 2, C) and
    # COUNTS (programs,) those of Z, a row of tokens at a time
    P: tl.constexpr = K // 2
    LOADED: tl.constexpr = COLS + 2 * HALO
    EXACT: tl.constexpr = X.dtype.element_ty == tl.float32
    c = tl.program_id(0) % tl.cdiv(C, BC) * BC + tl.arange(0, BC)
    block = tl.program_id(0) // tl.cdiv(C, BC)
    j0 = block % tl.cdiv(W, COLS) * COLS
    b0 = block // tl.cdiv(W, COLS) * IMAGES
    m, var = combine(X_SUMS, X_COUNTS, PARTS, c, C, BP)
    m += channel_vector(ORIGIN, c, C)
    if block == 0:
        store_channels(MEAN, c, C, m)
        store_channels(VAR, c, C, var)
    s = tl.rsqrt(var + eps) * channel_vector(GAMMA, c, C)
    bias, t = channel_vector(BIAS, c, C), channel_vector(BETA, c, C)
    end = row_end(c, C, W, j0, HALO)
    w = taps(WEIGHT, c, C, K * K)
    columns = tl.minimum(COLS, W - j0).to(tl.float32)
    total = tl.full([], 0.0, tl.float32)
    mean, m2 = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for b in range(b0, tl.minimum(b0 + IMAGES, B)):
        image = tl.cast(b, tl.int64) * H * W * C
        rows = empty_rows(c, 2 * P * LOADED)
        for r in range(0, H + P):
            rows = rows + hidden_row(X + image, r, j0, end, H, W, c, C, m, s, t, LOADED, HALO, EXACT)
            if r >= P:
                at = Z + image + ((r - P) * W + j0) * C + c
                row_sum = tl.zeros([BC], tl.float32)
                values = ()
                for j in tl.static_range(COLS):
                    inside = token_mask(end, j + HALO, j0, HALO)
                    z = convolve(rows, w, bias, j, K, LOADED, HALO).to(Z.dtype.element_ty)
                    tl.store(at, z, mask=inside)
                    at += C
                    value = tl.where(inside, z.to(tl.float32) - bias, 0.0)  # its mean is small
                    row_sum += value
                    values = values + (value,)
                gap = row_sum / columns - mean
                middle = row_sum / columns
                for j in tl.static_range(COLS):
                    inside = token_mask(end, j + HALO, j0, HALO)
                    d = tl.where(inside, values[j] - middle, 0.0)
                    m2 += d * d
                m2 += gap * gap * (total * columns / (total + columns))
                total += columns
                mean += gap * (columns / total)
            rows = rows[LOADED:]
    store_statistics(SUMS, COUNTS, block, c, C, mean, m2, total)


@any_size
def _leff_depthwise_train_fwd_apply_kernel(
    Z, MEAN, VAR, GAMMA, BETA, Y, eps, N, C, ROWS: tl.constexpr, STEPS: tl.constexpr, BC: tl.constexpr
):
    # Z and Y (N, C)
    EXACT: tl.constexpr = Z.dtype.element_ty == tl.float32
    c, _, n0, size = part_of_tokens(N, C, ROWS * STEPS, BC)
    m, t = channel_vector(MEAN, c, C), channel_vector(BETA, c, C)
    s = normal_scale(VAR, GAMMA, eps, c, C)[1]
    offset, left = tokens_from(c, size, C, ROWS)
    values = load_tokens(Z + n0 * C + offset, left, C, ROWS, STEPS)
    at = Y + n0 * C + offset
    for i in tl.static_range(STEPS):
        y = gelu((values[i].to(tl.float32) - m[None, :]) * s[None, :] + t[None, :], EXACT)
        tl.store(at + i * (ROWS * C), y.to(Y.dtype.element_ty), mask=left > i * ROWS)


@any_size
def _leff_depthwise_train_bwd_output_kernel(
    G, Z, MEAN, VAR, GAMMA, BETA, SUMS, eps, N, C, TOKENS, ROWS: tl.constexpr, STEPS: tl.constexpr, BC: tl.constexpr
):
    # SUMS (programs, 2, C): gradients of gamma2 and beta2
    EXACT: tl.constexpr = Z.dtype.element_ty == tl.float32
    c, part, n0, size = part_of_tokens(N, C, TOKENS, BC)
    m, t = channel_vector(MEAN, c, C), channel_vector(BETA, c, C)
    rstd, s = normal_scale(VAR, GAMMA, eps, c, C)
    gamma_sum, beta_sum = tl.zeros([ROWS, BC], tl.float32), tl.zeros([ROWS, BC], tl.float32)
    for step in range(0, TOKENS, ROWS * STEPS):
        offset, left = tokens_from(c, size - step, C, ROWS)
        values = load_tokens(Z + (n0 + step) * C + offset, left, C, ROWS, STEPS)
        grads = load_tokens(G + (n0 + step) * C + offset, left, C, ROWS, STEPS)
        for i in tl.static_range(STEPS):
            z = values[i].to(tl.float32) - m[None, :]
            dv = grads[i].to(tl.float32) * gelu_slope(z * s[None, :] + t[None, :], EXACT)
            dv = tl.where(left > i * ROWS, dv, 0.0)
            gamma_sum += dv * z
            beta_sum += dv
    at = SUMS + part.to(tl.int64) * 2 * C
    store_channels(at, c, C, tl.sum(gamma_sum, 0) * rstd)
    store_channels(at + C, c, C, tl.sum(beta_sum, 0))


@triton.jit
def gradient_row(G, Z, r, j0, end, H, W, c, C, m, s, t, each, slope, LOADED: tl.constexpr, HALO: tl.constexpr,
                 EXACT: tl.constexpr):  # fmt: skip
    """Row r of the gradient of the convolution: of the activation, less what the statistics take away."""
    row = ()
    z_at, g_at = Z + (r * W + j0 - HALO) * C + c, G + (r * W + j0 - HALO) * C + c
    end = tl.where(r < H, end, 0)
    for n in tl.static_range(LOADED):
        inside = token_mask(end, n, j0, HALO)
        z = tl.load(z_at, mask=inside, other=0.0).to(tl.float32) - m
        g = tl.load(g_at, mask=inside, other=0.0).to(tl.float32)
        z_at += C
        g_at += C
        dz = (g * gelu_slope(z * s + t, EXACT) - each - z * slope) * s
        row = row + (tl.where(inside, dz, 0.0),)
    return row


@any_size
def _leff_depthwise_train_bwd_input_kernel(
    G, Z, X, WEIGHT, MEAN1, VAR1, GAMMA1, BETA1, MEAN2, VAR2, GAMMA2, BETA2, OUTPUT_SUMS, DX, SUMS, eps, inverse,
    B, H, W, C, IMAGES, PARTS,
    K: tl.constexpr, COLS: tl.constexpr, HALO: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    # DX without what the statistics of x take away; OUTPUT_SUMS (PARTS, 2, C) the gradients of gamma2 and beta2;
    # SUMS (programs, k·k + 2, C): gradients of the weight's taps, of gamma1 and of beta1; inverse = 1 / tokens
    P: tl.constexpr = K // 2
    LOADED: tl.constexpr = COLS + 2 * HALO
    EXACT: tl.constexpr = X.dtype.element_ty == tl.float32
    c = tl.program_id(0) % tl.cdiv(C, BC) * BC + tl.arange(0, BC)
    block = tl.program_id(0) // tl.cdiv(C, BC)
    j0 = block % tl.cdiv(W, COLS) * COLS
    b0 = block // tl.cdiv(W, COLS) * IMAGES
    slope = sum_of_parts(OUTPUT_SUMS, PARTS, 2 * C, c, C, BP) * inverse
    each = sum_of_parts(OUTPUT_SUMS + C, PARTS, 2 * C, c, C, BP) * inverse
    end = row_end(c, C, W, j0, HALO)
    w = taps(WEIGHT, c, C, K * K)
    m1, t1 = channel_vector(MEAN1, c, C), channel_vector(BETA1, c, C)
    rstd1, s1 = normal_scale(VAR1, GAMMA1, eps, c, C)
    m2, t2 = channel_vector(MEAN2, c, C), channel_vector(BETA2, c, C)
    rstd2, s2 = normal_scale(VAR2, GAMMA2, eps, c, C)
    slope = slope * rstd2
    dw = empty_rows(c, K * K)
    gamma_sum, beta_sum = tl.zeros([BC], tl.float32), tl.zeros([BC], tl.float32)
    for b in range(b0, tl.minimum(b0 + IMAGES, B)):
        image = tl.cast(b, tl.int64) * H * W * C
        rows = empty_rows(c, 2 * P * LOADED)
        for r in range(0, H + P):
            tokens = block_row(X + image, r - P, j0, end, W, c, C, COLS, HALO)
            rows = rows + gradient_row(
                G + image, Z + image, r, j0, end, H, W, c, C, m2, s2, t2, each, slope, LOADED, HALO, EXACT
            )
            if r >= P:
                at = DX + image + ((r - P) * W + j0) * C + c
                for j in tl.static_range(COLS):
                    inside = token_mask(end, j + HALO, j0, HALO)
                    x = tokens[j].to(tl.float32) - m1
                    u = x * s1 + t1
                    below, density = gelu_terms(u, EXACT)
                    dh, dw = spread(rows, tl.where(inside, u * below, 0.0), w, dw, j, K, LOADED, HALO)
                    du = tl.where(inside, dh * (below + u * density), 0.0)
                    gamma_sum += du * x
                    beta_sum += du
                    tl.store(at, (du * s1).to(DX.dtype.element_ty), mask=inside)
                    at += C
            rows = rows[LOADED:]
    at = SUMS + block.to(tl.int64) * (K * K + 2) * C + c
    for tap in tl.static_range(K * K):
        tl.store(at + tap * C, dw[tap], mask=c < C)
    tl.store(at + K * K * C, gamma_sum * rstd1, mask=c < C)
    tl.store(at + (K * K + 1) * C, beta_sum, mask=c < C)


@any_size
def _leff_depthwise_train_bwd_apply_kernel(
    X, MEAN, VAR, GAMMA, SUMS, DX, eps, inverse, N, C, ROWS: tl.constexpr, STEPS: tl.constexpr, BC: tl.constexpr
):
    # SUMS (2, C): gradients of gamma1 and beta1; what the statistics take away goes off DX (N, C) in place
    c, _, n0, size = part_of_tokens(N, C, ROWS * STEPS, BC)
    m = channel_vector(MEAN, c, C)
    rstd, s = normal_scale(VAR, GAMMA, eps, c, C)
    each = channel_vector(SUMS + C, c, C) * inverse * s
    slope = channel_vector(SUMS, c, C) * inverse * rstd * s
    offset, left = tokens_from(c, size, C, ROWS)
    values = load_tokens(X + n0 * C + offset, left, C, ROWS, STEPS)
    grads = load_tokens(DX + n0 * C + offset, left, C, ROWS, STEPS)
    at = DX + n0 * C + offset
    for i in tl.static_range(STEPS):
        x = values[i].to(tl.float32) - m[None, :]
        dx = grads[i].to(tl.float32) - each[None, :] - x * slope[None, :]
        tl.store(at + i * (ROWS * C), dx.to(DX.dtype.element_ty), mask=left > i * ROWS)


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    gamma1: torch.Tensor, beta1: torch.Tensor, gamma2: torch.Tensor, beta2: torch.Tensor, eps: float,
) -> Tuple[torch.Tensor, ...]:  # fmt: skip
    """As `eager.forward`."""
    args = x, weight, bias, gamma1, beta1, gamma2, beta2
    x, weight, bias, gamma1, beta1, gamma2, beta2 = (t.contiguous() for t in args)
    B, L, C = x.shape
    N = B * L
    plan, tile = cut(x, weight.shape[-1], W), _tile()
    tokens, parts = _chunks(x, plan, tile)
    tiles = triton.cdiv(C, tile['BC'])
    origin, mean1, var1, mean2, var2 = (x.new_empty(C, dtype=torch.float32) for _ in range(5))
    sums, counts = x.new_empty(parts, 2, C, dtype=torch.float32), x.new_empty(parts, dtype=torch.float32)
    _leff_depthwise_train_fwd_statistics_kernel[(parts * tiles,)](x, origin, sums, counts, N, C, tokens, **tile)
    groups = triton.cdiv(B, plan.images)
    z_parts = groups * triton.cdiv(W, plan.options['COLS'])
    z_sums, z_counts = x.new_empty(z_parts, 2, C, dtype=torch.float32), x.new_empty(z_parts, dtype=torch.float32)
    z, y = x.new_empty(x.shape), x.new_empty(x.shape)
    _leff_depthwise_train_fwd_conv_kernel[(groups * plan.blocks,)](
        x, weight, bias, origin, sums, counts, gamma1, beta1, mean1, var1, z, z_sums, z_counts, eps, B, H, W, C,
        plan.images, parts, BP=PARTS, **plan.options,
    )  # fmt: skip
    _leff_depthwise_train_fwd_combine_kernel[(triton.cdiv(C, 32),)](
        z_sums, z_counts, bias, mean2, var2, z_parts, C, BP=PARTS, BC=32, num_warps=1, **FUSION
    )
    _leff_depthwise_train_fwd_apply_kernel[(triton.cdiv(N, ROWS * STEPS) * tiles,)](
        z, mean2, var2, gamma2, beta2, y, eps, N, C, **tile
    )
    return y, mean1, var1, mean2, var2, z


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, H: int, W: int,
    gamma1: torch.Tensor, beta1: torch.Tensor, gamma2: torch.Tensor, beta2: torch.Tensor, eps: float,
    mean1: torch.Tensor, var1: torch.Tensor, mean2: torch.Tensor, var2: torch.Tensor, z: torch.Tensor,
) -> Tuple[torch.Tensor, ...]:  # fmt: skip
    """As `eager.backward`."""
    like = weight, bias, gamma1, beta1, gamma2, beta2
    grad, x, weight, _, gamma1, beta1, gamma2, beta2 = (t.contiguous() for t in (grad, x, *like))
    B, L, C = x.shape
    N, k = B * L, weight.shape[-1]
    first, second = (mean1, var1, gamma1, beta1), (mean2, var2, gamma2, beta2)
    plan, tile = cut(x, k, W), _tile()
    tokens, parts = _chunks(x, plan, tile)
    tiles = triton.cdiv(C, tile['BC'])
    output_sums = x.new_empty(parts, 2, C, dtype=torch.float32)
    _leff_depthwise_train_bwd_output_kernel[(parts * tiles,)](grad, z, *second, output_sums, eps, N, C, tokens, **tile)
    groups = triton.cdiv(B, plan.images)
    sums = x.new_empty(groups * triton.cdiv(W, plan.options['COLS']), k * k + 2, C, dtype=torch.float32)
    dx, sums1 = x.new_empty(x.shape), x.new_empty(2, C, dtype=torch.float32)
    _leff_depthwise_train_bwd_input_kernel[(groups * plan.blocks,)](
        grad, z, x, weight, *first, *second, output_sums, dx, sums, eps, 1 / N,
        B, H, W, C, plan.images, parts, BP=PARTS, **plan.options,
    )  # fmt: skip
    grads = parameter_gradients(like, sums, output_sums, sums1=sums1)
    _leff_depthwise_train_bwd_apply_kernel[(triton.cdiv(N, ROWS * STEPS) * tiles,)](
        x, mean1, var1, gamma1, sums1, dx, eps, 1 / N, N, C, **tile
    )
    return (dx, *grads)


def _tile() -> Dict[str, Any]:
    """Tokens and channels of the passes without neighbours, and options of their launches."""
    kind = target()
    options = dict(ROWS=ROWS, STEPS=STEPS, BC=64 if kind.startswith('gfx') else 32, num_warps=ROWS, **FUSION)
    if kind.startswith('sm'):
        options['maxnreg'] = 128  # as in `cut`
    return options


def _chunks(x: torch.Tensor, plan: Cut, tile: Dict[str, Any]) -> Tuple[int, int]:
    """Tokens per program where each sums over some, and how many such parts there are.

    Every program of the pass with neighbours reads the sums of all parts of its channels. One part for eight of its
    tokens adds at most a byte per element to the four or more that it moves anyway, and that from the cache.
    """
    B, L, C = x.shape
    programs = 2 if target() == INTERPRETER else PROGRAMS
    parts = min(programs // triton.cdiv(C, tile['BC']), max(PARTS, plan.images * L // 8))
    tokens = triton.cdiv(triton.cdiv(B * L, max(1, parts)), ROWS * STEPS) * ROWS * STEPS
    return tokens, triton.cdiv(B * L, tokens)
