"""Channel mix, the feed-forward half of an RWKV block. The function is `lalic_kernels.channel_mix`."""
