"""LayerNorm over channels, then the token shift, in one kernel. The function is `lalic_kernels.norm_shift`."""
