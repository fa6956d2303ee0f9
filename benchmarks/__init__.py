"""Measurements; each verifies what it times before it times it."""
