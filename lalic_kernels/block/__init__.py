"""The RWKV block as a whole: `rwkv_block`, and its parameters, `BlockParameters`."""
