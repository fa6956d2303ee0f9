"""Exact arithmetic: float32 in and out, the same bits on every machine (docs/portable-arithmetic.md, version 1)."""

from lalic_kernels.exact.numbers import VERSION
from lalic_kernels.exact.quantise import quantise, settle
from lalic_kernels.exact.reference import (
    biwkv,
    conv,
    depthwise,
    exp,
    gate,
    layer_norm,
    linear,
    pack,
    residual,
    scale_index,
    sigmoid,
    squared_relu,
)  # fmt: skip
from lalic_kernels.exact.weights import (
    ExactConv,
    ExactDepthwise,
    ExactLinear,
    prepare_conv,
    prepare_depthwise,
    prepare_linear,
)  # fmt: skip

__all__ = [
    "VERSION",
    "ExactConv",
    "ExactDepthwise",
    "ExactLinear",
    "biwkv",
    "conv",
    "depthwise",
    "exp",
    "gate",
    "layer_norm",
    "linear",
    "pack",
    "prepare_conv",
    "prepare_depthwise",
    "prepare_linear",
    "quantise",
    "residual",
    "scale_index",
    "settle",
    "sigmoid",
    "squared_relu",
]
