"""Fused operations for learned image compression with linear attention. Knows tensors and shapes, never the model."""

from lalic_kernels.biwkv.op import biwkv
from lalic_kernels.entropy_params.op import entropy_params
from lalic_kernels.gaussian import gaussian_likelihood, scale_index, scale_table
from lalic_kernels.token_shift.op import fold_token_shift, token_shift

__all__ = [
    "biwkv",
    "entropy_params",
    "fold_token_shift",
    "gaussian_likelihood",
    "scale_index",
    "scale_table",
    "token_shift",
]
