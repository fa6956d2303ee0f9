"""The entropy-parameter block: `entropy_params`."""
