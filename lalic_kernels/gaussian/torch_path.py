"""The likelihood and its gradients in plain torch, written out: no graph, a stretch of elements at a time.

The forward does the reference's operations one by one, so its values are the reference's. What torch would keep for
every operation's gradient lives here for the length of a stretch, which stays in a CPU's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from lalic_kernels.gaussian.reference import LIKELIHOOD_MIN, SCALE_MIN

# Elements of a stretch for each thread: torch gives a thread no less, and a dozen such rows fit a core's cache.
STRETCH = 1 << 15
_ROOT_HALF = -math.sqrt(0.5)
_DENSITY = 1 / math.sqrt(2 * math.pi)


def forward(y: Tensor, scales: Tensor, means: Tensor, out: Tensor) -> None:
    """Fill out (n,), float32 or float64, from arguments (n,) of any floating dtype."""
    for part in _stretches(out):
        *_, mass = _mass(y[part].to(out.dtype), scales[part].to(out.dtype), means[part].to(out.dtype))
        torch.clamp(mass, min=LIKELIHOOD_MIN, out=out[part])


def backward(y: Tensor, scales: Tensor, means: Tensor, grad: Tensor, out: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill the gradients of y, scales and means, each (n,) in its argument's dtype; grad (n,) is the result's."""
    for part in _stretches(grad):
        wide = grad.dtype
        scale, upstream = scales[part].to(wide), grad[part]
        difference, s, lower, upper, mass = _mass(y[part].to(wide), scale, means[part].to(wide))
        g = upstream * ((mass >= LIKELIHOOD_MIN) | (upstream < 0))
        g.mul_(_DENSITY).div_(s)
        at_lower, at_upper = _falling(lower), _falling(upper)
        of_y = torch.sub(at_lower, at_upper).mul_(g).mul_(difference.sign_())
        # lower and upper are the ends from above and from below: (0.5 - v) / s and (-0.5 - v) / s.
        of_scale = upper.mul_(at_upper).sub_(lower.mul_(at_lower)).mul_(g)
        of_scale.mul_((scale >= SCALE_MIN) | (of_scale < 0))
        out[0][part], out[1][part], out[2][part] = of_y.neg(), of_scale, of_y


def _mass(y: Tensor, scale: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y - mean, s, (0.5 - v) / s, (-0.5 - v) / s, and the mass between before its bound."""
    difference = y - mean
    v = difference.abs()
    s = scale.clamp(min=SCALE_MIN)
    lower, upper = (0.5 - v).div_(s), (-0.5 - v).div_(s)
    return difference, s, lower, upper, _cdf(lower).sub_(_cdf(upper))


def _cdf(x: Tensor) -> Tensor:
    return (x * _ROOT_HALF).erfc_().mul_(0.5)


def _falling(x: Tensor) -> Tensor:
    return x.square().mul_(-0.5).exp_()


def _stretches(like: Tensor) -> Iterator[slice]:
    step = STRETCH * torch.get_num_threads() if like.device.type == "cpu" else max(like.numel(), 1)
    for start in range(0, like.numel(), step):
        yield slice(start, start + step)
