"""BiWKV: linear attention with a decay per channel, in both directions. The function is `lalic_kernels.biwkv`."""
