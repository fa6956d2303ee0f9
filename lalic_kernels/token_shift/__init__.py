"""Token shift: depth-wise 5x5 correlation over tokens. The function is `lalic_kernels.token_shift`."""
