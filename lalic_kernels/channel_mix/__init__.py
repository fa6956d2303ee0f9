"""Channel mix, the feed-forward half of an RWKV block: so far its reference only."""
