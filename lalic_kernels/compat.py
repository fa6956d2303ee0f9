"""BiWKV under the names and calling forms of published code, so that a CUDA extension is replaced by an import.

    from lalic_kernels.compat import RUN_BiWKV4, load_biwkv4  # RwkvCompress (LALIC)
    from lalic_kernels.compat import RUN_CUDA                 # all others, in either form:

    RUN_CUDA(w, u, k, v)            # Vision-RWKV, Restore-RWKV, RWKV-SAM
    RUN_CUDA(B, T, C, w, u, k, v)   # Vision-RWKV before its second kernel and in mae/, Diffusion-RWKV, U-RWKV

The import replaces the code that loads the extension, its autograd function and the function of that name. New code
should call `lalic_kernels.biwkv(w, u, k, v)`, which can also apply the receptance gate, or take a layer from
`lalic_kernels.layers`.

Differences from the published CUDA kernel:

* It deviates from the closed form by a term of order w, and adds 1e-6 to the denominator (`biwkv/README.md`). Rate and
  distortion of trained weights stay the same; bits differ.
* Its result has w's dtype; if that is float16 or bfloat16, so do all gradients. In this package the result has k's
  dtype, and each gradient the dtype of its argument.
* It moves arguments to the GPU. In this package they must be on one device, and the result is computed there.
* It needs C divisible by 16 and reads past the end of k and v at some T without an error. This package takes any sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lalic_kernels import checks
from lalic_kernels.biwkv.op import biwkv

__all__ = ["RUN_CUDA", "RUN_BiWKV4", "load_biwkv4"]


def load_biwkv4() -> None:
    """Do nothing: the published model of LALIC calls this name to compile its extension, and none is needed here."""


def RUN_BiWKV4(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """BiWKV in the calling form of LALIC.

    Args:
        w: decay per step, shape (C,), any floating dtype; the model's parameter divided by T, as in published code.
        u: bonus of a token for itself, shape (C,), any floating dtype; also divided by T.
        k, v: keys and values, shape (B, T, C), any floating dtypes. Arithmetic is in the wider of the two, at least
            float32.

    Returns:
        y, shape (B, T, C), in k's dtype; differentiable in all four arguments. The module's docstring lists the
        differences from the published kernel.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not floating.
        ValueError: a shape, layout or device does not fit.
    """
    return _run("RUN_BiWKV4", w, u, k, v)


def RUN_CUDA(*arguments: Any) -> Tensor:
    """BiWKV in both calling forms of Vision-RWKV and what follows it: (w, u, k, v) or (B, T, C, w, u, k, v).

    Args:
        arguments: w, u, k, v as `RUN_BiWKV4` takes them; before them perhaps the three sizes of k, which are checked.

    Returns:
        y, shape (B, T, C), in k's dtype, as `RUN_BiWKV4`.

    Raises:
        TypeError: another number of arguments, one that is not a tensor, a dtype that is not floating, or a size that
            is not an integer.
        ValueError: a shape, layout or device does not fit, or B, T, C are not k's shape.
    """
    if len(arguments) not in (4, 7):
        raise TypeError(f"RUN_CUDA: expected (w, u, k, v) or (B, T, C, w, u, k, v), but got {len(arguments)} arguments")
    *sizes, w, u, k, v = arguments
    if sizes and isinstance(k, Tensor) and k.dim() == 3:
        for name, size, expected in zip("BTC", sizes, k.shape, strict=True):
            if isinstance(size, bool) or not isinstance(size, int | torch.SymInt):
                raise TypeError(f"RUN_CUDA: {name} must be an integer, but is a {type(size).__name__}")
            if size != expected:
                raise ValueError(f"RUN_CUDA: {name} must be {expected}, as k has shape {tuple(k.shape)}, but is {size}")
    return _run("RUN_CUDA", w, u, k, v)


def _run(name: str, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    checks.shapes(name, ("k", k, "B T C"), ("v", v, "B T C"), ("w", w, "C"), ("u", u, "C"))
    dtype = checks.floating(name, "k", k)
    wide = torch.promote_types(dtype, checks.floating(name, "v", v))
    parameter_dtype = torch.promote_types(wide, torch.float32)
    for argument, value in (("w", w), ("u", u)):
        checks.floating(name, argument, value)
    checks.same_device(name, ("k", k), ("v", v), ("w", w), ("u", u))
    return biwkv(w.to(parameter_dtype), u.to(parameter_dtype), k.to(wide), v.to(wide)).to(dtype)
