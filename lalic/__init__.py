"""LALIC: learned image compression with linear attention, as a codec.

>>> import lalic
>>> data = lalic.encode("photo.png")  # doctest: +SKIP
>>> lalic.decode(data).save("again.png")  # doctest: +SKIP

Models: `lalic.slim()` ships with weights, `lalic.load("path-or-hub-id")` takes the published files and others,
`lalic.LALIC(...)` builds any. Many files: `lalic.batch`. Measuring and training: `lalic.eval`, `lalic.train`; beside
CompressAI's models: `lalic.compressai`. Names are imported on first use, so that `import lalic` and `lalic --help` do
not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lalic.codec import decode, decode_many, encode
    from lalic.errors import BitstreamError, CheckpointError, ImageError, LalicError, ModelMismatchError
    from lalic.hub import load, load_checkpoint, slim
    from lalic.model import LALIC

_MODULES = {
    "decode": "codec",
    "decode_many": "codec",
    "encode": "codec",
    "BitstreamError": "errors",
    "CheckpointError": "errors",
    "ImageError": "errors",
    "LalicError": "errors",
    "ModelMismatchError": "errors",
    "LALIC": "model",
    "load": "hub",
    "load_checkpoint": "hub",
    "slim": "hub",
}

__all__ = [
    "LALIC",
    "BitstreamError",
    "CheckpointError",
    "ImageError",
    "LalicError",
    "ModelMismatchError",
    "__version__",
    "decode",
    "decode_many",
    "encode",
    "load",
    "load_checkpoint",
    "slim",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lalic.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
