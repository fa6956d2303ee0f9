"""The Gaussian likelihood in Triton: forward and backward are one pass over memory each, in float32.

The upper tail of the normal distribution for z >= 0 is Q(z) = exp(-z^2 / 2) G(z). G falls slowly, from 1/2 like 1 / z.
It is computed as a polynomial of degree 9 in t = (z - 3.5) / (z + 3.5), divided by z + 3.5: a minimax fit with relative
error 7e-9 up to z = 14.5, where exp(-z^2 / 2) is zero in float32, and bounded beyond. So a tail is accurate relative to
its size down to the smallest normal number. The density, which the gradient needs, is the same exponential.

Tensors are (rows, columns) with contiguous columns and any stride between rows, so that halves of a wider tensor (a
network's scales and means) are read without a copy. A thread takes VEC columns.
"""

import triton
import triton.language as tl

# Not specialised: another size needs no compilation.
SIZES = ["rows", "columns"]


@triton.jit
def _tail(z, falling):
    """Q(z) for z >= 0, from falling = exp(-z^2 / 2). NaN for NaN."""
    r = 1.0 / (z + 3.5)
    t = 1.0 - 7.0 * r
    p = 0.00011068939784308895
    p = p * t + 0.0004218978574499488
    p = p * t - 0.0004949436988681555
    p = p * t - 0.003175310790538788
    p = p * t + 0.006493115797638893
    p = p * t + 0.01740637794137001
    p = p * t - 0.1160530373454094
    p = p * t + 0.3154250383377075
    p = p * t - 0.5655617713928223
    p = p * t + 0.7444160580635071
    return falling * (p * r)


@triton.jit
def _mass(y, scale, mean, SCALE_MIN: tl.constexpr):
    """The mass before its bound; 1 / s, the interval's ends a and b in units of s, exp(-a^2 / 2), exp(-b^2 / 2)."""
    v = tl.abs(y - mean)
    s = tl.where(scale < SCALE_MIN, SCALE_MIN, scale)  # not tl.maximum: a NaN must stay NaN
    per_s = tl.div_rn(1.0, s)  # rounded once, because the tail multiplies a relative error of z by z^2
    a, b = (v - 0.5) * per_s, (v + 0.5) * per_s
    at_a, at_b = tl.exp(-0.5 * a * a), tl.exp(-0.5 * b * b)
    tail = _tail(tl.abs(a), at_a)
    return tl.where(a < 0, 1.0 - tail, tail) - _tail(b, at_b), per_s, a, b, at_a, at_b


@triton.jit
def _elements(rows, columns, GROUPS: tl.constexpr, VEC: tl.constexpr):
    """Indices of a program's elements: row (GROUPS, 1) int64, column (GROUPS, VEC), and the mask (GROUPS, 1)."""
    groups_per_row = columns // VEC
    first = tl.program_id(0).to(tl.int64) * GROUPS
    row = first // groups_per_row
    # In the columns' type from here on, mostly 32-bit: a 64-bit division a thread would cost more than the arithmetic.
    group = (first - row * groups_per_row).to(groups_per_row.dtype) + tl.arange(0, GROUPS)
    rows_down = group // groups_per_row
    column = (group - rows_down * groups_per_row)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    row = (row + rows_down)[:, None]
    return row, column, row < rows  # one mask per vector: with one per element, Triton would split the vectors


@triton.jit
def _load(x_ptr, row, column, mask, stride, VEC: tl.constexpr):
    """x[row, column] as float32, [GROUPS, VEC]; `stride` between rows, in vectors."""
    return tl.load(x_ptr + row * stride * VEC + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=[*SIZES, "y_stride", "scales_stride", "means_stride"])
def likelihood_kernel(
    y_ptr, scales_ptr, means_ptr, out_ptr, rows, columns, y_stride, scales_stride, means_stride,
    SCALE_MIN: tl.constexpr, MASS_MIN: tl.constexpr, GROUPS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Write the likelihood to out (rows, columns) float32, contiguous."""
    # Load.
    row, column, mask = _elements(rows, columns, GROUPS, VEC)
    y = _load(y_ptr, row, column, mask, y_stride, VEC)  # [GROUPS, VEC]
    scale = _load(scales_ptr, row, column, mask, scales_stride, VEC)  # [GROUPS, VEC]
    mean = _load(means_ptr, row, column, mask, means_stride, VEC)  # [GROUPS, VEC]
    # The mass, and its bound.
    mass, _, _, _, _, _ = _mass(y, scale, mean, SCALE_MIN)
    out = tl.where(mass < MASS_MIN, MASS_MIN, mass)
    tl.store(out_ptr + row * (columns // VEC) * VEC + column, out, mask=mask)


@triton.jit(do_not_specialize=[*SIZES, "y_stride", "scales_stride", "means_stride", "grad_stride"])
def grad_likelihood_kernel(
    y_ptr, scales_ptr, means_ptr, grad_ptr, grad_y_ptr, grad_scales_ptr, grad_means_ptr, rows, columns,
    y_stride, scales_stride, means_stride, grad_stride,
    SCALE_MIN: tl.constexpr, MASS_MIN: tl.constexpr, GROUPS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """Write the three gradients, contiguous, each in its argument's dtype; the forward is computed again."""
    # Load.
    row, column, mask = _elements(rows, columns, GROUPS, VEC)
    y = _load(y_ptr, row, column, mask, y_stride, VEC)  # [GROUPS, VEC]
    scale = _load(scales_ptr, row, column, mask, scales_stride, VEC)  # [GROUPS, VEC]
    mean = _load(means_ptr, row, column, mask, means_stride, VEC)  # [GROUPS, VEC]
    grad = _load(grad_ptr, row, column, mask, grad_stride, VEC)  # [GROUPS, VEC]
    # The forward again, and the gradients. A value below its bound gets a gradient only if a step would raise it.
    mass, per_s, a, b, at_a, at_b = _mass(y, scale, mean, SCALE_MIN)
    stops = (mass < MASS_MIN) & (grad >= 0)  # so written, a NaN passes
    grad = tl.where(stops, 0.0, grad) * (0.3989422804014327 * per_s)
    grad_v, grad_s = grad * (at_b - at_a), grad * (a * at_a - b * at_b)
    grad_y = tl.where(y < mean, -grad_v, grad_v)  # both zero where y is the mean
    grad_scale = tl.where((scale < SCALE_MIN) & (grad_s >= 0), 0.0, grad_s)
    # Write.
    offset = row * (columns // VEC) * VEC + column
    tl.store(grad_y_ptr + offset, grad_y.to(grad_y_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_scales_ptr + offset, grad_scale.to(grad_scales_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_means_ptr + offset, (-grad_y).to(grad_means_ptr.dtype.element_ty), mask=mask)
