"""Quality metrics of pictures: PSNR, and MS-SSIM, which is also a loss.

Source of MS-SSIM: Wang, Simoncelli, Bovik, "Multiscale structural similarity for image quality assessment", 2003,
equation 7, with its constants. Borders and odd sizes are treated as in the package pytorch-msssim, so that values can
be compared with published ones: only windows wholly inside the picture count, and a side of odd length gets one zero at
each end before it is halved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

__all__ = ["MIN_SIDE", "ms_ssim", "picture_ms_ssim", "psnr"]

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales, finest first
WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03
_STRIP = 1 << 20  # numbers of a picture that are held as floats at a time
MIN_SIDE = (WINDOW - 1) * 2 ** (len(WEIGHTS) - 1) + 1  # 161: below it the coarsest scale is smaller than the window


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB of two 8-bit RGB pictures of equal size.

    The mean square error is over all pixels and channels, summed strip by strip, which is exact. Infinite for equal
    pictures. Raises `ValueError` for two sizes.
    """
    shapes = [(each.height, each.width, len(each.getbands())) for each in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"a and b have shapes {shapes[0]} and {shapes[1]}, expected one")
    height, width, channels = shapes[0]
    step = max(1, _STRIP // (width * channels))
    total = 0.0
    for top in range(0, height, step):
        x, y = (_rows(each, top, min(top + step, height)) for each in (a, b))
        total += float(np.sum(np.subtract(x, y, dtype=np.float64) ** 2))
    mean_square = total / (height * width * channels)
    return float("inf") if mean_square == 0 else 10 * float(np.log10(255**2 / mean_square))


def _rows(picture: Image.Image, top: int, bottom: int) -> NDArray[np.uint8]:
    """Some rows of a picture: uint8 (bottom - top, W, 3)."""
    return np.asarray(picture.crop((0, top, picture.width, bottom)))


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


def picture_ms_ssim(a: Image.Image, b: Image.Image) -> float:
    """`ms_ssim` of two 8-bit RGB pictures of equal size, each side at least `MIN_SIDE`: in float32, sums in float64.

    It is computed strip by strip, so beside the pictures it holds one copy of both at half the width and height.
    """
    width, height = a.size
    whole: torch.Tensor | None = None

    def rows(top: int, bottom: int) -> torch.Tensor:
        """Rows of both pictures at the present scale: (2, 3, bottom - top, width)."""
        if whole is not None:
            return whole[:, :, top:bottom]
        pixels = torch.from_numpy(np.stack([_rows(each, top, bottom) for each in (a, b)]))
        return pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)

    with torch.inference_mode():
        window = _gaussian(torch.empty(0, dtype=torch.float32, device="cpu"))
        values = []
        for scale, weight in enumerate(WEIGHTS):
            if scale:
                halves = []
                odd, left = height % 2, width % 2  # the zero at the far end of an odd side is in no average
                height, width = (height + odd) // 2, (width + left) // 2
                for top, bottom in _strips(height, 2 * width):
                    part = rows(max(0, 2 * top - odd), 2 * bottom - odd)
                    halves.append(F.avg_pool2d(F.pad(part, (left, 0, 0 if top else odd, 0)), 2))
                whole = torch.cat(halves, dim=2)
                del halves
            places = height - WINDOW + 1
            total = torch.zeros(3, dtype=torch.float64, device="cpu")
            for top, bottom in _strips(places, width):
                x, y = rows(top, bottom + WINDOW - 1).split(1)
                luminance, contrast = _terms(x, y, window, 1.0)
                term = luminance * contrast if scale == len(WEIGHTS) - 1 else contrast
                total += term.sum(dim=(0, 2, 3), dtype=torch.float64)
            values.append((total / (places * (width - WINDOW + 1))).relu() ** weight)
    return float(torch.stack(values).prod(dim=0).mean())


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row, and the row after the last, of each strip of both pictures."""
    step = max(4 * WINDOW, _STRIP // (6 * width))
    return ((top, min(top + step, height)) for top in range(0, height, step))


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
