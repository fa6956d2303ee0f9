"""PSNR of known pictures; MS-SSIM as a numpy rendering of its definition and as pytorch-msssim 1.0.0 gave it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lalic import images, metrics
from lalic.metrics import MIN_SIDE, ms_ssim, picture_ms_ssim, psnr


def test_psnr():
    black, grey = Image.new("RGB", (5, 4)), Image.new("RGB", (5, 4), (0, 0, 51))
    assert psnr(black, black) == float("inf")
    # one channel of three off by 51 = 255 / 5: 10 log10(3 * 25)
    assert psnr(black, grey) == pytest.approx(18.7506, abs=1e-4)


def _windows(picture: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of each 11x11 window inside (H, W)."""
    return (np.lib.stride_tricks.sliding_window_view(picture, (11, 11)) * weights).sum(axis=(2, 3))


def _by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """One channel in [0, 1], window by window."""
    at = np.arange(-5, 6)
    weights = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    weights /= weights.sum()
    result = 1.0
    for scale, power in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        mx, my = _windows(x, weights), _windows(y, weights)
        sxx, syy, sxy = (_windows(a * b, weights) - ma * mb for a, b, ma, mb in
                         ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my)))  # fmt: skip
        term = (2 * sxy + 0.03**2) / (sxx + syy + 0.03**2)
        if scale == 4:
            term *= (2 * mx * my + 0.01**2) / (mx**2 + my**2 + 0.01**2)
        result *= max(term.mean(), 0) ** power
        x, y = (np.pad(t, [(s % 2, s % 2) for s in t.shape]) for t in (x, y))
        x, y = (t[: t.shape[0] // 2 * 2, : t.shape[1] // 2 * 2] for t in (x, y))
        x, y = ((t[::2, ::2] + t[1::2, ::2] + t[::2, 1::2] + t[1::2, 1::2]) / 4 for t in (x, y))
    return result


def pair(height: int, width: int, channels: int = 3, amount: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth picture and the same with noise, float64 (1, C, H, W) in [0, 1], from sines: the same everywhere."""
    c, i, j = (torch.arange(n, dtype=torch.float64) for n in (channels, height, width))
    c, i, j = c[:, None, None], i[:, None], j[None]
    x = 0.5 + 0.25 * torch.sin(0.11 * i + c) + 0.2 * torch.cos(0.07 * j + 0.03 * i * (1 + c))
    return x[None], (x + amount * torch.sin(1.7 * i * j + 3 * c)).clamp(0, 1)[None]


@pytest.mark.parametrize("size", [(MIN_SIDE, 200), (176, 163), (187, 219), (301, 177)])
def test_strips_change_nothing(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """MS-SSIM of pictures is that of tensors, for odd sides too, and holds strips alone at full size."""
    a, b = (images.from_tensor(each.float()) for each in pair(*size))
    wanted = float(ms_ssim(images.to_tensor(a).double(), images.to_tensor(b).double()))
    calls = []
    inner = metrics._terms
    monkeypatch.setattr(metrics, "_terms", lambda x, *rest: calls.append(x.shape[2]) or inner(x, *rest))
    for strip in (1, 1 << 16, 1 << 20):
        calls.clear()
        monkeypatch.setattr(metrics, "_STRIP", strip)
        # Float32 beside float64, as in `test_it_is_the_definition`.
        assert picture_ms_ssim(a, b) == pytest.approx(wanted, abs=1e-5)
        assert calls[0] == min(max(44, strip // (6 * size[1])), size[0] - 10) + 10
    assert picture_ms_ssim(a, a) == 1


@pytest.mark.parametrize("size", [(MIN_SIDE, 200), (176, 163), (187, 219)])
def test_it_is_the_definition(size: tuple[int, int]) -> None:
    x, y = pair(*size)
    wanted = np.mean([_by_definition(a.numpy(), b.numpy()) for a, b in zip(x[0], y[0], strict=True)])
    assert 0.3 < wanted < 0.97
    # Same arithmetic in float64 in another order.
    assert float(ms_ssim(x, y)) == pytest.approx(wanted, abs=1e-12)
    # Variances are differences of means of squares, each rounded at 6e-8, beside a constant of 9e-4: relative 1e-4 at
    # the worst position, and the mean over positions is far better.
    assert float(ms_ssim(x.float(), y.float())) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("size", "theirs"),
    [((161, 200), 0.9119617377), ((176, 163), 0.9128158522), ((187, 219), 0.9120163781)],
)
def test_it_gives_the_values_of_pytorch_msssim(size: tuple[int, int], theirs: float) -> None:
    # What pytorch-msssim 1.0.0 printed for these float64 pictures; its window is float32, which the 2e-6 allows for.
    assert float(ms_ssim(*pair(*size))) == pytest.approx(theirs, abs=2e-6)


def test_scale_batch_and_equal_pictures() -> None:
    x, y = pair(170, 180)
    both = ms_ssim(torch.cat([x, y]), torch.cat([y, y]))
    assert both.shape == (2,) and float(both[1]) == pytest.approx(1, abs=1e-12)
    assert float(both[0]) == pytest.approx(float(ms_ssim(x, y)), abs=1e-12)
    assert float(ms_ssim(255 * x, 255 * y, data_range=255)) == pytest.approx(float(both[0]), abs=1e-12)
    assert float(ms_ssim(x, 1 - x)) == 0  # inverted: the contrast term is negative


def test_its_gradient_is_the_slope() -> None:
    x, y = pair(MIN_SIDE, MIN_SIDE, channels=1)
    y.requires_grad_()
    ms_ssim(x, y).sum().backward()
    step = 1e-5 * torch.cos(torch.arange(y.numel(), dtype=torch.float64)).view_as(y)
    slope = float((ms_ssim(x, y.detach() + step) - ms_ssim(x, y.detach() - step)) / 2)
    # Central difference: its error is of third order in a step of 1e-5.
    assert slope == pytest.approx(float((y.grad * step).sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (torch.rand(1, 3, 160, 200), torch.rand(1, 3, 160, 200), "161"),
        (torch.rand(1, 3, 170, 200), torch.rand(1, 3, 200, 170), "shapes"),
        (torch.rand(3, 170, 200), torch.rand(3, 170, 200), "shapes"),
        (torch.rand(1, 3, 170, 200), torch.rand(1, 3, 170, 200).double(), "dtype"),
    ],
)
def test_what_it_refuses(x: torch.Tensor, y: torch.Tensor, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        ms_ssim(x, y)
