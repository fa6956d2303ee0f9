"""Every error that lalic raises on purpose for bad input: one base class, one sentence each.

A caller who wants to survive any bad file catches `LalicError`; the command line prints its message behind the file's
name and goes on. Programming mistakes (a wrong type passed to a function) stay `TypeError` and `ValueError`.
"""

from __future__ import annotations

__all__ = [
    "BitstreamError",
    "CheckpointError",
    "ImageError",
    "LalicError",
    "ModelMismatchError",
    "QualityError",
    "RequestError",
]


class LalicError(ValueError):
    """Base of all errors below. `str(error)` is one sentence without a line break, fit to be shown to a person."""


class BitstreamError(LalicError):
    """A .lalic file, or a section of one, is damaged, truncated, hostile, or of a version that is not read."""


class ModelMismatchError(BitstreamError):
    """The file is whole, but was written by other weights than those at hand."""


class ImageError(LalicError):
    """A picture cannot be read, or is of a kind that lalic refuses (the table in `lalic.images` says which)."""


class QualityError(LalicError):
    """A quality is outside 1 to 100, or is given to a model of one quality."""


class CheckpointError(LalicError):
    """A weights file cannot be read, or does not fit the model."""


class RequestError(LalicError):
    """What was asked for cannot be done without losing a file or guessing. Raised before any work starts."""
