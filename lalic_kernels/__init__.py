"""Fused operations for learned image compression with linear attention. Knows tensors and shapes, never the model."""

from lalic_kernels._core.dispatch import BackendUnavailable
from lalic_kernels.biwkv.op import biwkv
from lalic_kernels.channel_mix.op import channel_mix
from lalic_kernels.entropy_params.op import entropy_params
from lalic_kernels.gaussian import gaussian_likelihood, scale_index, scale_table
from lalic_kernels.norm_shift.op import norm_shift
from lalic_kernels.rwkv_block.op import rwkv_block
from lalic_kernels.rwkv_block.parameters import BlockParameters
from lalic_kernels.spatial_mix.op import spatial_mix
from lalic_kernels.token_shift.op import fold_token_shift, token_shift

# A public op and its folder share a name. Importing the folder's op first and binding the function here last makes
# `lalic_kernels.biwkv` the function, while `from lalic_kernels.biwkv.reference import biwkv` goes on to work.
__all__ = [
    "BackendUnavailable",
    "BlockParameters",
    "biwkv",
    "channel_mix",
    "entropy_params",
    "fold_token_shift",
    "gaussian_likelihood",
    "norm_shift",
    "rwkv_block",
    "scale_index",
    "scale_table",
    "spatial_mix",
    "token_shift",
]
