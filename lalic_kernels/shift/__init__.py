"""Token shift: depth-wise 5x5 correlation over tokens, after a LayerNorm (`norm_shift`) or not (`token_shift`)."""
