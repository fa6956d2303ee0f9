"""The mixes of an RWKV block: `spatial_mix`, its attention half, and `channel_mix`, its feed-forward half."""
