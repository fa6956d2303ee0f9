"""Spatial mix, the attention half of an RWKV block: so far its reference only."""
