"""@triton.jit functions shared by kernels of several ops."""

import triton
import triton.language as tl


@triton.jit
def merge_states(a, b, e, a_here, b_here, e_here, decay):
    """Sum of two states of weighted sums, the first one decayed.

    A state (a, b, e) stands for numerator a * exp(e) and denominator b * exp(e). The first state is worth exp(-decay)
    of itself here. The new exponent is the larger of both, so no factor exceeds one; the scaling uses the rounded
    exponents, (e - e_new) - decay, which makes their rounding cancel. An empty state has a = b = 0 and a very low
    finite e; the minimum keeps its factor finite.
    """
    e_new = tl.maximum(e - decay, e_here)
    old = tl.exp(tl.minimum((e - e_new) - decay, 1.0))
    here = tl.exp(e_here - e_new)
    return a * old + a_here * here, b * old + b_here * here, e_new


@triton.jit
def sigmoid_stable(x):
    """1 / (1 + exp(-x)) without overflow on either side."""
    z = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, z) / (1.0 + z)
