"""Fused operations for learned image compression with linear attention. Knows tensors and shapes, never the model."""

from lalic_kernels import layers
from lalic_kernels.biwkv.op import biwkv
from lalic_kernels.block.op import BlockParameters, rwkv_block
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.entropy_params.op import entropy_params
from lalic_kernels.gaussian import gaussian_likelihood, scale_index, scale_table
from lalic_kernels.mix.op import channel_mix, spatial_mix
from lalic_kernels.shift.op import fold_token_shift, norm_shift, token_shift

# Some ops have the name of their folder. After the imports above `lalic_kernels.biwkv` is the function, and
# `from lalic_kernels.biwkv.reference import biwkv` still works.
__all__ = [
    "BackendUnavailable",
    "BlockParameters",
    "biwkv",
    "channel_mix",
    "entropy_params",
    "fold_token_shift",
    "gaussian_likelihood",
    "layers",
    "norm_shift",
    "rwkv_block",
    "scale_index",
    "scale_table",
    "spatial_mix",
    "token_shift",
]
