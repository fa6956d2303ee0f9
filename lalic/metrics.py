"""Quality metrics of pictures: PSNR, and MS-SSIM, which is also a loss.

Source of MS-SSIM: Wang, Simoncelli, Bovik, "Multiscale structural similarity for image quality assessment", 2003,
equation 7, with its constants. Borders and odd sizes are treated as in the package pytorch-msssim, so that values can
be compared with published ones: only windows wholly inside the picture count, and a side of odd length gets one zero at
each end before it is halved.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

__all__ = ["MIN_SIDE", "ms_ssim", "psnr"]

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
_STRIP = 1 << 22  # numbers that `psnr` holds at a time
MIN_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1  # 161: below it the coarsest scale is smaller than the window


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit RGB pictures of equal size.

    The mean square error is over all pixels and channels, summed strip by strip, which is exact. Infinite for equal
    pictures. Raises `ValueError` for two sizes.
    """
    x, y = np.asarray(a), np.asarray(b)
    if x.shape != y.shape:
        raise ValueError(f"a and b have shapes {x.shape} and {y.shape}, expected one")
    rows = max(1, _STRIP // max(1, x[:1].size))
    strips = (np.subtract(x[i : i + rows], y[i : i + rows], dtype=np.float64) for i in range(0, len(x), rows))
    mean_square = sum(float(np.sum(strip**2)) for strip in strips) / x.size
    return float("inf") if mean_square == 0 else 10 * float(np.log10(255**2 / mean_square))


def ms_ssim(x: torch.Tensor, y: torch.Tensor, data_range: float = 1.0) -> torch.Tensor:
    """MS-SSIM of each pair of pictures: x, y (B, C, H, W) of one floating dtype -> (B,), the mean over channels.

    data_range: range of the values, 1 for [0, 1], 255 for 8 bits. H and W are at least `MIN_SIDE`. Differentiable; a
    negative contrast term counts as 0, where the gradient is not finite. In float32 the error for nearly equal pictures
    is about 1e-6; use float64 for less.

    Raises `ValueError` for another shape or a smaller picture.
    """
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}, expected one (B, C, H, W) twice")
    if x.dtype != y.dtype or not x.is_floating_point():
        raise ValueError(f"x and y have dtypes {x.dtype} and {y.dtype}, expected one floating dtype twice")
    if min(x.shape[2:]) < MIN_SIDE:
        raise ValueError(f"x has sides {x.shape[2]} and {x.shape[3]}, expected at least {MIN_SIDE} for five scales")
    window = _gaussian(x)
    values = []
    for scale, weight in enumerate(WEIGHTS):
        if scale:
            odd = [side % 2 for side in x.shape[2:]]
            x, y = (F.avg_pool2d(t, 2, padding=odd) for t in (x, y))
        luminance, contrast = _terms(x, y, window, data_range)
        # Only the coarsest scale has the luminance term, and its product is averaged, not the factors (equation 7).
        term = luminance * contrast if scale == len(WEIGHTS) - 1 else contrast
        values.append(term.mean(dim=(2, 3)).relu() ** weight)
    return torch.stack(values).prod(dim=0).mean(dim=1)


def _gaussian(like: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(WINDOW, device=like.device, dtype=like.dtype) - WINDOW // 2
    window = torch.exp(-(steps**2) / (2 * SIGMA**2))
    return window / window.sum()


def _terms(
    x: torch.Tensor, y: torch.Tensor, window: torch.Tensor, data_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Luminance and contrast-structure terms at each window position, (B, C, H - 10, W - 10) each."""
    C = x.shape[1]
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    down, along = window.view(1, 1, -1, 1).repeat(C, 1, 1, 1), window.view(1, 1, 1, -1).repeat(C, 1, 1, 1)

    def mean(t: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(t, down, groups=C), along, groups=C)

    mean_x, mean_y, xx, yy, xy = (mean(t) for t in (x, y, x * x, y * y, x * y))
    var_x, var_y, covariance = xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance, (2 * covariance + c2) / (var_x + var_y + c2)
