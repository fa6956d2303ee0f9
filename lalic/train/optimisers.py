"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, for matrices; Adam for everything else.

Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, algorithm 3. A gradient G (m, n) is
rotated to the eigenbases of the moving averages of G G' and G' G, where its entries are nearly independent, so that
each can be divided by its size. The averages are updated at every step, the bases every few steps by one step of a
power iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_SMALLEST = 8  # a parameter with a shorter side, such as the gains, is treated as vectors
_LARGEST = 512  # a longer side is not rotated: the products would cost more than they gain


class Soap(torch.optim.Optimizer):
    """SOAP for matrices, and for convolutions as matrices (out, the rest); Adam for vectors and depth-wise kernels.

    Matrices of one shape are updated as one batch. Equal gradients give equal updates, so processes that average their
    gradients keep equal weights.

    Args:
        params: parameters, float32. lr: learning rate, on the scale of Adam's. betas: of Adam's two averages; the
            second also of the preconditioner. eps: added to the root of the second average.
        every: steps between updates of the bases.
        products: None, or torch.bfloat16: on CPUs that multiply bfloat16 faster, factors of the products of a step
            (covariances, rotations) are rounded to it. Sums, results, bases and averages are float32. Not part of the
            saved state.

    Raises:
        ValueError: `products` is another dtype.
    """

    products: torch.dtype | None = None

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        every: int = 10,
        products: torch.dtype | None = None,
    ):
        if products not in (None, torch.bfloat16):
            raise ValueError(f"products: expected None or torch.bfloat16, got {products}")
        self.products = products
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "every": every})

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"products": self.products}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter; all must have gradients. The first step only sets averages and bases."""
        if closure is not None:
            raise ValueError("closure: expected None, got a function")
        for group in self.param_groups:
            batches: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                shape = (p.shape[0], p[0].numel())
                matrix = p.ndim in (2, 4) and p.shape[1] > 1 and min(shape) >= _SMALLEST
                batches.setdefault(shape if matrix else (), []).append(p)
            for sides, batch in batches.items():
                if sides:
                    self._matrices(batch, sides, group)
                else:
                    self._others(batch, group)

    def _others(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads = [p.grad for p in params if p.grad is not None]
        beta1, beta2 = group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p] = {"count": 0, "first": torch.zeros_like(p), "second": torch.zeros_like(p)}
        first, second = ([self.state[p][name] for p in params] for name in ("first", "second"))
        count = self.state[params[0]]["count"] + 1
        for p in params:
            self.state[p]["count"] = count
        torch._foreach_lerp_(first, grads, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, 1 - beta2)
        root = torch._foreach_sqrt(second)
        torch._foreach_div_(root, (1 - beta2**count) ** 0.5)
        torch._foreach_add_(root, group["eps"])
        torch._foreach_addcdiv_(params, first, root, -group["lr"] / (1 - beta1**count))

    def _matrices(self, params: list[Tensor], shape: tuple[int, ...], group: dict[str, Any]) -> None:
        """Update params that have one shape as matrices. Their state is stacked, under the first of them."""
        grad = torch.stack([p.grad.reshape(shape) for p in params if p.grad is not None])
        state = self.state[params[0]]
        beta1, beta2 = group["betas"]
        sides = [side for side in (0, 1) if shape[side] <= _LARGEST]
        if not state:
            state |= {"count": 0, "first": torch.zeros_like(grad), "second": torch.zeros_like(grad)}
            for side in sides:
                state[f"covariance{side}"] = _covariance(grad, side)
                state[f"basis{side}"] = _eigenvectors(state[f"covariance{side}"])
            return
        state["count"] = count = state["count"] + 1
        state["first"].lerp_(grad, 1 - beta1)
        bases = {side: state[f"basis{side}"] for side in sides}
        with _factors_in(self.products):
            rotated = _into(grad, bases)
            state["second"].mul_(beta2).addcmul_(rotated, rotated, value=1 - beta2)
            step = _into(state["first"], bases).div_(1 - beta1**count)
            step = _out_of(step.div_(state["second"].div(1 - beta2**count).sqrt_().add_(group["eps"])), bases)
            for side in sides:
                state[f"covariance{side}"].lerp_(_covariance(grad, side), 1 - beta2)
        torch._foreach_add_(params, [d.reshape(p.shape) for d, p in zip(step, params, strict=True)], alpha=-group["lr"])
        for side in sides:
            if count % group["every"] == 0:
                self._update_basis(state, side)

    @staticmethod
    def _update_basis(state: dict[str, Any], side: int) -> None:
        """Move a basis towards the eigenvectors of its covariance, largest first; reorder the second average too."""
        covariance, basis = state[f"covariance{side}"], state[f"basis{side}"]
        image = covariance @ basis
        order = (basis * image).sum(dim=-2).argsort(dim=-1, descending=True, stable=True)
        columns = order[:, None, :].expand_as(image)
        state[f"basis{side}"] = torch.linalg.qr(image.gather(2, columns))[0]
        second = state["second"]
        index = order[:, :, None] if side == 0 else order[:, None, :]
        state["second"] = second.gather(1 + side, index.expand_as(second))


@contextmanager
def _factors_in(dtype: torch.dtype | None) -> Iterator[None]:
    """Round the factors of float32 products inside to bfloat16; sums and results stay float32.

    It changes a setting of torch for the process, as products of bfloat16 copies would have bfloat16 results on a CPU.
    torch 2.9 and later has a setting for each kind of product, which must not be mixed with the older one.
    """
    if dtype is None:
        yield
        return
    matmul: Any = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    newer = hasattr(matmul, "fp32_precision")
    before = matmul.fp32_precision if newer else torch.get_float32_matmul_precision()
    try:
        if newer:
            matmul.fp32_precision = "bf16"
        else:
            torch.set_float32_matmul_precision("medium")
        yield
    finally:
        if newer:
            matmul.fp32_precision = before
        else:
            torch.set_float32_matmul_precision(before)


def _covariance(grad: Tensor, side: int) -> Tensor:
    return grad @ grad.mT if side == 0 else grad.mT @ grad


def _eigenvectors(covariance: Tensor) -> Tensor:
    """Eigenvectors of each matrix of a batch, largest eigenvalue first, in the batch's dtype.

    Computed in float64 with a largest entry of 1: float32 does not converge for tiny matrices and a few large values.
    """
    wide = covariance.double()
    wide = wide / wide.abs().amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.linalg.eigh(wide)[1].flip(-1).to(covariance.dtype).contiguous()


def _into(x: Tensor, bases: dict[int, Tensor]) -> Tensor:
    x = bases[0].mT @ x if 0 in bases else x
    return x @ bases[1] if 1 in bases else x.clone()


def _out_of(x: Tensor, bases: dict[int, Tensor]) -> Tensor:
    x = bases[0] @ x if 0 in bases else x
    return x @ bases[1].mT if 1 in bases else x
