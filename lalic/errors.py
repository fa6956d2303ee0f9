"""Errors that lalic raises for bad input: one base class, one sentence each.

Catch `LalicError` to go on after any bad file, as the command line does. Programming mistakes, such as an argument of a
wrong type, are `TypeError` and `ValueError`.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

__all__ = [
    "BitstreamError",
    "CheckpointError",
    "ImageError",
    "ImageWarning",
    "LalicError",
    "ModelMismatchError",
    "QualityError",
    "RequestError",
    "RunError",
    "as_request",
    "is_out_of_memory",
    "one_line",
    "sentence",
]


class LalicError(ValueError):
    """Base of all errors of lalic. `str(error)` is one sentence without a line break, to be shown to users."""


class BitstreamError(LalicError):
    """A .lalic file or a stream is damaged, truncated, invalid, or of a version that is not supported."""


class ModelMismatchError(BitstreamError):
    """The file is intact, but was written with other weights than the given ones."""


class ImageError(LalicError):
    """A picture cannot be read, or is of a kind that lalic does not take (table in `lalic.images`)."""


class ImageWarning(UserWarning):
    """A part of a picture file was ignored: colours, orientation or metadata may differ from what was meant."""


class QualityError(LalicError):
    """A quality is outside 1 to 100, or was given for a model of one quality."""


class CheckpointError(LalicError):
    """A weights file cannot be read, or does not fit the model."""


class RequestError(LalicError):
    """A request is contradictory, or would overwrite a file. Raised before any work starts."""


class RunError(LalicError):
    """A run of many files, which had begun, was given up."""


_OUT_OF_MEMORY = (
    "can't allocate memory",  # torch's words on a CPU
    "cannot allocate memory",
    "not enough memory",
    "out of memory",  # CUDA's, and Pillow's
    "unable to allocate",
    "bad_alloc",  # C++
    "status_alloc_failed",  # cuBLAS, cuDNN
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of whatever library, means that there is too little memory."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    text = f"{type(error).__name__}: {error}".lower()
    return "outofmemoryerror" in text or any(words in text for words in _OUT_OF_MEMORY)


@contextlib.contextmanager
def as_request() -> Iterator[None]:
    """Raise what is found wrong before any work as `RequestError`."""
    try:
        yield
    except (LalicError, OSError) as error:
        raise RequestError(sentence(error)) from None


_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160))}


def one_line(text: str) -> str:
    """A text with its control characters as escapes: file names may have line breaks, and codes for terminals."""
    return text.translate(_CONTROL)


def sentence(error: Exception) -> str:
    """One line about any exception, for users; with its type for an unexpected one."""
    line = " ".join(str(error).split())
    if isinstance(error, LalicError):
        return line
    if is_out_of_memory(error):
        return "there is not enough memory for this picture"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    return f"unexpected {type(error).__name__}: {line[:300]}"
