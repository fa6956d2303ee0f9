"""Spatial mix, the attention half of an RWKV block. The function is `lalic_kernels.spatial_mix`."""
