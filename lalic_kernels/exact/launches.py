"""Launch configurations of the exact Triton kernels, and the compiler's options. Reasoned, not tuned on a GPU."""

from __future__ import annotations

from typing import Any

from lalic_kernels.launch import Launch

# One rounding an operation, also on AMD and whatever Triton's default is.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
DEPTH = 64  # rows of digits are filled up to a multiple of it
TOKENS = 256  # tokens whose maximum a program finds
CHUNKS_TO_WALK = 128  # of the WKV: up to so many, each program finds what enters its chunk by itself
LAUNCHES = {
    "pointwise": Launch((("BLOCK", 512),), num_warps=4),
    "residual": Launch((("BLOCK_M", 8), ("BLOCK_N", 64)), num_warps=4),
    "head": Launch((("BLOCK_M", 8), ("BLOCK_N", 64)), num_warps=4),
    "layer_norm": Launch((("BLOCK_M", 4), ("BLOCK_N", 128)), num_warps=4),
    "digits": Launch((("BLOCK_M", 4), ("BLOCK_K", 128)), num_warps=4),
    "image_maximum": Launch((("BLOCK_M", 16), ("BLOCK_N", 64)), num_warps=4),
    "channel_maximum": Launch((("PART", TOKENS), ("BLOCK_P", 16), ("BLOCK_C", 64)), num_warps=4),
    "linear": Launch((("BLOCK_M", 64), ("BLOCK_N", 32), ("BLOCK_K", 64)), num_warps=4, num_stages=3),
    "conv": Launch((("BLOCK_M", 64), ("BLOCK_N", 32), ("BLOCK_K", 64)), num_warps=4, num_stages=3),
    "depthwise": Launch((("BLOCK_P", 32), ("BLOCK_C", 32)), num_warps=4),
    "depthwise_digits": Launch((("BLOCK_P", 4), ("BLOCK_C", 64)), num_warps=4),
    "wkv_sums": Launch((("BLOCK_T", 8), ("BLOCK_C", 32)), num_warps=1),
    "wkv_chain": Launch((("BLOCK_C", 32),), num_warps=1),
    "wkv_values": Launch((("BLOCK_C", 32),), num_warps=1),
    "output_norm": Launch((("BLOCK_M", 16), ("BLOCK_N", 64), ("BLOCK_K", 64)), num_warps=4, num_stages=2),
    "shift_mix": Launch((("BLOCK_M", 16), ("BLOCK_N", 64), ("BLOCK_K", 64)), num_warps=4, num_stages=2),
    "shift_channel": Launch((("BLOCK_M", 16), ("BLOCK_N", 32), ("BLOCK_K", 64)), num_warps=8, num_stages=2),
    "rows_linear": Launch((("BLOCK_M", 32), ("BLOCK_N", 64), ("BLOCK_K", 64)), num_warps=4, num_stages=2),
    "two_products": Launch((("BLOCK_M", 16), ("BLOCK_N", 64), ("BLOCK_K", 64)), num_warps=8, num_stages=2),
    "mix_norm": Launch((("BLOCK_M", 16), ("BLOCK_N", 64), ("BLOCK_K", 64)), num_warps=4, num_stages=2),
    "aggregation": Launch((("BLOCK_M", 16), ("BLOCK_N", 32), ("BLOCK_K", 32)), num_warps=8, num_stages=2),
}


def options(name: str) -> dict[str, Any]:
    return LAUNCHES[name].options() | OPTIONS
