"""Quality metrics of pictures: PSNR. (MS-SSIM, which is also a loss, is in `lalic.nn.ms_ssim`.)"""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["psnr"]


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit RGB pictures of equal size.

    The mean square error is over all pixels and channels. Infinite for equal pictures.
    """
    error = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    mean_square = float(np.mean(error**2))
    return float("inf") if mean_square == 0 else 10 * float(np.log10(255**2 / mean_square))
