"""BiWKV under the names and calling forms of published code, so that a CUDA extension is replaced by an import.

    from lalic_kernels.compat import RUN_BiWKV4   # Restore-RWKV, LALIC:  RUN_BiWKV4(w, u, k, v)
    from lalic_kernels.compat import RUN_CUDA     # Vision-RWKV:          RUN_CUDA(B, T, C, w, u, k, v)

stands in place of the extension's loading, its autograd function and the function of that name. In new code call
`lalic_kernels.biwkv(w, u, k, v)`, which can also apply the receptance's gate.

Where results differ from the published CUDA kernel's:

* It computes a deviation of the closed form, of order w: 1e-3 of max|y| at 384 tokens and 2e-5 at 6144 for a decay
  parameter of one (`biwkv/README.md` has the formula). Trained weights keep their rate and distortion; bits differ.
* It adds 1e-6 to the denominator, here nothing is added.
* Its result has w's dtype, and where that is float16 or bfloat16 so have all gradients. Here the result has k's dtype,
  and each gradient its argument's.
* It moves arguments to the GPU; here they stay where they are, and must be on one device. CPU tensors are computed on
  the CPU.
* It needs C divisible by 16 and reads past the end of k and v at some T, without saying so; here any sizes go.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lalic_kernels import checks
from lalic_kernels.biwkv.op import biwkv

__all__ = ["RUN_CUDA", "RUN_BiWKV4"]


def RUN_BiWKV4(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """BiWKV in the calling form of Restore-RWKV and LALIC.

    Args:
        w: decay per step, shape (C,), any floating dtype; the model's parameter divided by T, as published code calls.
        u: bonus of a token for itself, shape (C,), any floating dtype; divided by T too.
        k, v: keys and values, shape (B, T, C), any floating dtypes. Arithmetic is in the widest of theirs, float32 at
            least.

    Returns:
        y, shape (B, T, C), in k's dtype; differentiable in all four. The module's docstring says where it differs from
        the published kernel.

    Raises:
        TypeError: an argument is no tensor, or its dtype is not floating.
        ValueError: a shape, layout or device does not fit.
    """
    return _run("RUN_BiWKV4", w, u, k, v)


def RUN_CUDA(B: int, T: int, C: int, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """BiWKV in the calling form of Vision-RWKV: `RUN_BiWKV4` after the sizes of k, which are checked.

    Raises:
        TypeError: an argument is no tensor, its dtype is not floating, or a size is no integer.
        ValueError: a shape, layout or device does not fit, or B, T, C are not k's shape.
    """
    if isinstance(k, Tensor) and k.dim() == 3:
        for name, size, found in zip("BTC", (B, T, C), k.shape, strict=True):
            if isinstance(size, bool) or not isinstance(size, int | torch.SymInt):
                raise TypeError(f"RUN_CUDA: {name} must be an integer, but is a {type(size).__name__}")
            if size != found:
                raise ValueError(f"RUN_CUDA: {name} must be {found}, as k has shape {tuple(k.shape)}, but is {size}")
    return _run("RUN_CUDA", w, u, k, v)


def _run(name: str, w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    checks.shapes(name, ("k", k, "B T C"), ("v", v, "B T C"), ("w", w, "C"), ("u", u, "C"))
    dtype = checks.floating(name, "k", k)
    wide = torch.promote_types(dtype, checks.floating(name, "v", v))
    beside = torch.promote_types(wide, torch.float32)
    for which, value in (("w", w), ("u", u)):
        checks.floating(name, which, value)
    checks.same_device(name, ("k", k), ("v", v), ("w", w), ("u", u))
    return biwkv(w.to(beside), u.to(beside), k.to(wide), v.to(wide)).to(dtype)
