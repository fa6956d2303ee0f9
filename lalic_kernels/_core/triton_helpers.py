"""@triton.jit functions shared by kernels of several ops."""

import triton
import triton.language as tl


@triton.jit
def sigmoid_stable(x):
    """1 / (1 + exp(-x)) without overflow on either side."""
    z = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, z) / (1.0 + z)
