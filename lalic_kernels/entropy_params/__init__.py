"""The entropy-parameter block. The function is `lalic_kernels.entropy_params`."""
