"""Gaussian conditional model: scale table, table index, likelihood."""

from lalic_kernels.gaussian.op import gaussian_likelihood
from lalic_kernels.gaussian.reference import lower_bound, scale_index, scale_table

__all__ = ["gaussian_likelihood", "lower_bound", "scale_index", "scale_table"]
