"""The RWKV block as a whole. The function is `lalic_kernels.rwkv_block`, its parameters are `BlockParameters`."""
