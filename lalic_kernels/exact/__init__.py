"""Exact arithmetic: float32 in and out, the same bits on every machine (docs/exact-arithmetic.md, version 1)."""

from typing import TYPE_CHECKING

from lalic_kernels.exact.numbers import BITS, VERSION, NotFinite
from lalic_kernels.exact.op import (
    conv,
    entropy_params,
    gaussian_head,
    linear,
    one_check,
    rwkv_block,
    rwkv_blocks,
    slice_kernels,
    statuses,
)
from lalic_kernels.exact.quantise import power_of_two, quantise, settle
from lalic_kernels.exact.weights import (
    ExactBlock,
    ExactConv,
    ExactDepthwise,
    ExactEntropyParams,
    ExactLinear,
    prepare_block,
    prepare_conv,
    prepare_depthwise,
    prepare_entropy_params,
    prepare_linear,
)

if TYPE_CHECKING:  # importing it needs Triton; `slice_kernels` returns an instance
    from lalic_kernels.exact.gpu_slices import SliceKernels as SliceKernels

__all__ = [
    "BITS",
    "VERSION",
    "ExactBlock",
    "ExactConv",
    "ExactDepthwise",
    "ExactEntropyParams",
    "ExactLinear",
    "NotFinite",
    "conv",
    "entropy_params",
    "gaussian_head",
    "linear",
    "one_check",
    "power_of_two",
    "prepare_block",
    "prepare_conv",
    "prepare_depthwise",
    "prepare_entropy_params",
    "prepare_linear",
    "quantise",
    "rwkv_block",
    "rwkv_blocks",
    "settle",
    "slice_kernels",
    "statuses",
]
