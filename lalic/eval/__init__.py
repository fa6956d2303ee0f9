"""Rate and distortion of real files, from Python and as `lalic eval` and `lalic compare`.

    evaluate  pictures through several codecs, with BD-rates (`lalic.eval.measure`)
    compare   one picture through several codecs at equal size or PSNR (`lalic.eval.side_by_side`)

    codecs        what is compared: lalic, and JPEG, WebP, AVIF, JPEG XL, HEVC, VTM, CompressAI where they are installed
    measure       pictures through a codec at each quality: bits of the whole file, PSNR, MS-SSIM, seconds
    curves        Bjontegaard deltas between curves, CompressAI's JSON, and the published curves that ship
    report        a table, plots, files
    side_by_side  the quality at which a codec meets a rate or a PSNR; a sheet of crops

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
    """Both functions are imported on first use: they need torch, and the command line's arguments do not."""
    homes = {"evaluate": "measure", "compare": "side_by_side"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)
