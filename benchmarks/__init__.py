"""Benchmarks: one registry of operations and inputs, each verified against its definition before it is timed."""
