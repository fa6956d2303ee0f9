"""Exact arithmetic: float32 in and out, the same bits on every machine (docs/portable-arithmetic.md, version 1)."""

from lalic_kernels.exact.blocks import (
    ExactBlock,
    ExactEntropyParams,
    entropy_params,
    entropy_params_tail,
    prepare_block,
    prepare_entropy_params,
    rwkv_block,
)
from lalic_kernels.exact.numbers import VERSION, NotFinite
from lalic_kernels.exact.op import (
    biwkv,
    conv,
    depthwise,
    exp,
    gate,
    gaussian_head,
    layer_norm,
    linear,
    one_check,
    residual,
    scale_index,
    sigmoid,
    squared_relu,
)
from lalic_kernels.exact.quantise import quantise, settle
from lalic_kernels.exact.reference import pack
from lalic_kernels.exact.weights import (
    ExactConv,
    ExactDepthwise,
    ExactLinear,
    prepare_conv,
    prepare_depthwise,
    prepare_linear,
)

__all__ = [
    "VERSION",
    "ExactBlock",
    "ExactConv",
    "ExactDepthwise",
    "ExactEntropyParams",
    "ExactLinear",
    "NotFinite",
    "biwkv",
    "conv",
    "depthwise",
    "entropy_params",
    "entropy_params_tail",
    "exp",
    "gate",
    "gaussian_head",
    "layer_norm",
    "linear",
    "one_check",
    "pack",
    "prepare_block",
    "prepare_conv",
    "prepare_depthwise",
    "prepare_entropy_params",
    "prepare_linear",
    "quantise",
    "residual",
    "rwkv_block",
    "scale_index",
    "settle",
    "sigmoid",
    "squared_relu",
]
