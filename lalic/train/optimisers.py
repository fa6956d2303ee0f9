"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, for matrices; Adam for everything else.

Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam", 2024, algorithm 3. A gradient G (m, n) is
seen in the eigenbases of the moving averages of G G' and G' G, where its entries are nearly independent and dividing
each by its own size makes sense. The averages follow at every step, the bases every few, by one step of a power
iteration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_SMALLEST = 8  # with a shorter side, as of the gains' table, it is no matrix but a few vectors
_LARGEST = 512  # a side longer than this keeps the basis it has: the products would cost more than they bring


class Soap(torch.optim.Optimizer):
    """SOAP for matrices, and for convolutions as (first side, the rest); Adam for vectors, stacks, depth-wise kernels.

    Matrices of one shape are treated as one batch. Equal gradients give equal updates, so that processes which share
    their gradients stay together.

    Args:
        params: parameters, float32. lr: learning rate, on the scale of Adam's. betas: of Adam's two averages; the
            second is the preconditioner's too. eps: added to the root of the second average.
        every: steps between renewals of the bases.
        products: None, or torch.bfloat16: float32 factors of a step's products (covariances, into the bases and out of
            them) are rounded to it where the processor multiplies that faster. Without such products a CPU stays with
            float32, and so does a GPU. Sums and results are float32, as are bases, their renewal and all averages. No
            part of the saved state.

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
        """One update of every parameter; all must have gradients. The first only measures, as in the source."""
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
        """params that are all of one shape as matrices; their state is stacked and belongs to the first of them."""
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
                self._renew(state, side)

    @staticmethod
    def _renew(state: dict[str, Any], side: int) -> None:
        """Bring a basis nearer to the eigenvectors of its covariance, largest first; the second average follows."""
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
    """Let float32 products inside take factors rounded to bfloat16; their sums and results stay float32.

    Through torch's setting, which is the process's: copies in bfloat16 would give results in bfloat16 on a CPU. torch
    2.9 and later has a setting for each kind of product, which must not be mixed with the older one.
    """
    if dtype is None:
        yield
        return
    matmul: Any = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if hasattr(matmul, "fp32_precision"):
        before = matmul.fp32_precision
        matmul.fp32_precision = "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = before
        return
    older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)


def _covariance(grad: Tensor, side: int) -> Tensor:
    return grad @ grad.mT if side == 0 else grad.mT @ grad


def _eigenvectors(covariance: Tensor) -> Tensor:
    """Of each matrix of a batch, largest first, in the batch's dtype.

    In float64 and at a size of one: in float32, what has few large eigenvalues or is tiny throughout does not converge.
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
