"""Rate and distortion of files: `evaluate` and `compare`, and the commands `lalic eval` and `lalic compare`.

    evaluate  pictures through several codecs, with BD-rates (`lalic.eval.measure`)
    compare   one picture through several codecs at equal size or PSNR (`lalic.eval.side_by_side`)

    codecs        lalic, and JPEG, WebP, AVIF, JPEG XL, HEVC, VTM, CompressAI if they are installed
    measure       bits of the whole file, PSNR, MS-SSIM and seconds of each picture at each quality
    curves        BD-rates, CompressAI's JSON format, published curves
    report        table, plots, files
    side_by_side  the quality for a rate or a PSNR; a sheet of crops

    >>> results = lalic.eval.evaluate(["kodak/"], ["lalic", "jpeg", "webp:20,40,60,80"])
    >>> print(lalic.eval.report.text(results))

Documentation: `docs/evaluation.md`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lalic.eval.measure import evaluate
    from lalic.eval.side_by_side import compare

__all__ = ["DEFAULT_CODECS", "compare", "evaluate"]

DEFAULT_CODECS = ("lalic", "jpeg", "webp", "avif")


def __getattr__(name: str) -> Any:
    """Import both functions on first use: they need torch, which parsing the command line does not."""
    modules = {"evaluate": "measure", "compare": "side_by_side"}
    if name not in modules:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{modules[name]}"), name)
