"""The Gaussian likelihood in Triton, forward and backward: a pass over memory each, arithmetic in float32.

The tail of the normal distribution beyond z >= 0 is Q(z) = exp(-z^2 / 2) G(z). G falls slowly, from 1/2 as 1 / z, and
is a polynomial of degree 9 in t = (z - 3.5) / (z + 3.5), divided by z + 3.5: a minimax fit of 7e-9 relative up to
z = 14.5, where exp(-z^2 / 2) is zero in float32, and bounded beyond. So a tail keeps its relative accuracy down to the
last normal number, and the density, which the gradient needs, is the same exponential.

Tensors are (rows, columns) with neighbouring columns side by side and a stride from row to row, so that halves of a
wider tensor (scales and means as a network gives them) are read where they are. A thread takes VEC columns.
"""

import triton
import triton.language as tl


@triton.jit
def _tail(z, falling):
    """Q(z) for z >= 0, given falling = exp(-z^2 / 2). Not a number where z is not."""
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
    s = tl.where(scale < SCALE_MIN, SCALE_MIN, scale)  # a comparison, so that what is not a number stays so
    per_s = tl.div_rn(1.0, s)  # rounded once: a tail multiplies an error of its argument by z^2
    a, b = (v - 0.5) * per_s, (v + 0.5) * per_s
    at_a, at_b = tl.exp(-0.5 * a * a), tl.exp(-0.5 * b * b)
    tail = _tail(tl.abs(a), at_a)
    return tl.where(a < 0, 1.0 - tail, tail) - _tail(b, at_b), per_s, a, b, at_a, at_b


@triton.jit
def _place(rows, columns, GROUPS: tl.constexpr, VEC: tl.constexpr):
    """Row and mask (GROUPS, 1), int64, and column (GROUPS, VEC) of a program's elements."""
    per = columns // VEC
    first = tl.program_id(0).to(tl.int64) * GROUPS
    row = first // per
    # From here on small numbers: a division of 64 bits for each thread would cost more than the arithmetic.
    group = (first - row * per).to(tl.int32) + tl.arange(0, GROUPS)
    down = group // per
    column = (group - down * per)[:, None] * VEC + tl.arange(0, VEC)[None, :]
    row = (row + down)[:, None]
    return row, column, row < rows  # a mask for whole vectors, without which they would be taken apart


@triton.jit
def _load(x_ptr, row, column, mask, stride, VEC: tl.constexpr):
    """Elements as float32; `stride` counts vectors."""
    return tl.load(x_ptr + row * stride * VEC + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def likelihood_kernel(
    y_ptr, scales_ptr, means_ptr, out_ptr, rows, columns, y_stride, scales_stride, means_stride,
    SCALE_MIN: tl.constexpr, MASS_MIN: tl.constexpr, GROUPS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """out (rows, columns) float32, contiguous."""
    # Load a vector a thread.
    row, column, mask = _place(rows, columns, GROUPS, VEC)
    y = _load(y_ptr, row, column, mask, y_stride, VEC)  # [GROUPS, VEC]
    scale = _load(scales_ptr, row, column, mask, scales_stride, VEC)  # [GROUPS, VEC]
    mean = _load(means_ptr, row, column, mask, means_stride, VEC)  # [GROUPS, VEC]
    # The mass, and its bound.
    mass, _, _, _, _, _ = _mass(y, scale, mean, SCALE_MIN)
    out = tl.where(mass < MASS_MIN, MASS_MIN, mass)
    tl.store(out_ptr + row * (columns // VEC) * VEC + column, out, mask=mask)


@triton.jit
def grad_likelihood_kernel(
    y_ptr, scales_ptr, means_ptr, grad_ptr, grad_y_ptr, grad_scales_ptr, grad_means_ptr, rows, columns,
    y_stride, scales_stride, means_stride, grad_stride,
    SCALE_MIN: tl.constexpr, MASS_MIN: tl.constexpr, GROUPS: tl.constexpr, VEC: tl.constexpr,
):  # fmt: skip
    """The three gradients, contiguous, each in its argument's dtype; the forward is computed again."""
    # Load a vector a thread.
    row, column, mask = _place(rows, columns, GROUPS, VEC)
    y = _load(y_ptr, row, column, mask, y_stride, VEC)  # [GROUPS, VEC]
    scale = _load(scales_ptr, row, column, mask, scales_stride, VEC)  # [GROUPS, VEC]
    mean = _load(means_ptr, row, column, mask, means_stride, VEC)  # [GROUPS, VEC]
    grad = _load(grad_ptr, row, column, mask, grad_stride, VEC)  # [GROUPS, VEC]
    # The forward again; both bounds let a gradient pass that would raise what is below them.
    mass, per_s, a, b, at_a, at_b = _mass(y, scale, mean, SCALE_MIN)
    passes = (mass >= MASS_MIN) | (grad < 0)
    grad = tl.where(passes, grad, 0.0) * (0.3989422804014327 * per_s)
    of_v, of_s = grad * (at_b - at_a), grad * (a * at_a - b * at_b)
    of_y = tl.where(y < mean, -of_v, of_v)  # both zero where y is the mean
    of_scale = tl.where((scale >= SCALE_MIN) | (of_s < 0), of_s, 0.0)
    # Write.
    place = row * (columns // VEC) * VEC + column
    tl.store(grad_y_ptr + place, of_y.to(grad_y_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_scales_ptr + place, of_scale.to(grad_scales_ptr.dtype.element_ty), mask=mask)
    tl.store(grad_means_ptr + place, (-of_y).to(grad_means_ptr.dtype.element_ty), mask=mask)
