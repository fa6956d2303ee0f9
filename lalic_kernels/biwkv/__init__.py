"""BiWKV: linear attention in both directions with a decay per channel."""
