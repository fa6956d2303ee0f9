"""The two mixes through torch's matrix products, and the backward of all paths.

For float64, for CPUs with float16 or without numba, and for widths beyond the kernels' tables. Tokens are processed in
chunks, so that the channel mix's hidden layer is never in memory as a whole. BiWKV is the op of that name.

Tensors are contiguous and of one dtype, except residual and gamma. Rows are tokens. k, v, r: one tensor (3, B, T, C).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lalic_kernels.biwkv.op import OP as BIWKV
from lalic_kernels.biwkv.op import gated_over
from lalic_kernels.checks import no_autocast
from lalic_kernels.threads import run_each, workers

# Work space for a chunk of tokens. It fits a core's cache on a CPU, and the L2 cache on a GPU.
CHUNK_BYTES = {"cpu": 3 << 19, "cuda": 32 << 20}

Matrices = tuple[Tensor, Tensor, Tensor, Tensor]  # key, value, receptance, output


def dtype_of(x: Tensor, residual: Tensor | None) -> torch.dtype:
    """The result's dtype: the residual's if there is one, so that float32 activations stay float32."""
    return x.dtype if residual is None else residual.dtype


def sums_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over chunks of tokens."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def token_chunks(x: Tensor, width: int) -> Iterator[slice]:
    """Slices of the rows of x (rows, C), each small enough for a work space of `width` elements per row."""
    capacity = CHUNK_BYTES["cuda" if x.device.type == "cuda" else "cpu"]
    step = max(64, capacity // (max(width, 1) * x.element_size()) // 64 * 64)
    for start in range(0, x.shape[0], step):
        yield slice(start, min(start + step, x.shape[0]))


def over_tokens(work: Callable[[slice], object], x: Tensor, width: int) -> None:
    """Call work(rows) for slices that cover the rows of x (rows, C), with a work space of `width` elements per row.

    On a CPU threads share the slices, and wait for each other once, not after each product of each chunk; with fewer
    chunks than threads all work on one chunk. Slices are whole vectors of 32 rows or more, with which no row's result
    depends on the others; but float64 products differ.
    """
    rows, chunks = x.shape[0], list(token_chunks(x, width))
    threads = workers() if x.is_cpu and x.dtype != torch.float64 else 1
    if 1 < threads <= len(chunks):
        count = -(-len(chunks) // threads) * threads
        edges = [*(rows * i // count // 32 * 32 for i in range(count)), rows]
        run_each(work, [slice(start, stop) for start, stop in itertools.pairwise(edges)])
    else:
        for chunk in chunks:
            work(chunk)


def finish(mixed: Tensor, residual: Tensor | None, gamma: Tensor | None, out: Tensor) -> None:
    """out = mixed, or residual + gamma * mixed, for (rows, C)."""
    if residual is None or gamma is None:
        out.copy_(mixed)
    else:
        torch.addcmul(residual, mixed.to(out.dtype), gamma.to(out.dtype), out=out)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a^T b for a (rows, m), b (rows, n); total (m, n) may have a wider dtype."""
    if total.dtype == a.dtype:
        total.addmm_(a.t(), b)
    else:
        total += torch.mm(a.t(), b)


def planes(x: Tensor, matrices: Matrices, out: Tensor | Sequence[Tensor]) -> None:
    """Write k, v, r of x (B, T, C) to three tensors of this shape: rounded to x's dtype, stored in their own."""
    flat = x.flatten(0, 1)
    for matrix, plane in zip(matrices, (plane.flatten(0, 1) for plane in out), strict=False):
        if plane.dtype == x.dtype:
            torch.mm(flat, matrix.t(), out=plane)
        else:  # convert each chunk while it is in the cache
            for rows in token_chunks(flat, 2 * flat.shape[1]):
                plane[rows].copy_(torch.mm(flat[rows], matrix.t()))


def biwkv(
    decay: Tensor, boost: Tensor, kvr: Tensor | Sequence[Tensor], backend: str | None, over: bool = False
) -> Tensor:
    """sigmoid(r) * BiWKV(decay / T, boost / T, k, v), shape (B, T, C). over: r's memory may get the result."""
    k, v, r = kvr
    w, u = by_tokens(decay, boost, k)
    return gated_over(w, u, k, v, r, backend) if over else BIWKV.call(w, u, k, v, r, False, backend)[0]


def by_tokens(decay: Tensor, boost: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """decay / T and boost / T in float32 (float64 for a float64 k): in float16 they would be subnormal."""
    wide, tokens = sums_dtype(k), k.shape[1]
    return decay.to(wide) / tokens, boost.to(wide) / tokens


def project(y: Tensor, output: Tensor, residual: Tensor | None, gamma: Tensor | None) -> Tensor:
    """y @ output^T, or residual + gamma * (), shape (B, T, C). A wider y is rounded to output's dtype first."""
    out = torch.empty(y.shape, dtype=dtype_of(output, residual), device=y.device)
    flat, flat_out = y.flatten(0, 1), out.flatten(0, 1)
    added = None if residual is None else residual.flatten(0, 1)

    def product(rows: slice) -> None:
        part = None if added is None else added[rows]
        finish(torch.mm(flat[rows].to(output.dtype), output.t()), part, gamma, flat_out[rows])

    over_tokens(product, flat, 2 * flat.shape[1])
    return out


@torch.no_grad()
def spatial_backward(
    x: Tensor,
    decay: Tensor,
    boost: Tensor,
    key: Tensor,
    value: Tensor,
    receptance: Tensor,
    output: Tensor,
    gamma: Tensor | None,
    kvr: Tensor,
    y: Tensor,
    grad: Tensor,
    backend: str | None,
) -> tuple[Tensor | None, ...]:
    """Gradients of all arguments up to gamma (None without gamma); x and grad are (B, H, W, C), with any strides.

    kvr, y: k, v, r (3, B, T, C) and the gated y (B, T, C) of the forward; empty to compute them again. With
    A = grad^T y the gradient of output is gamma A, and that of gamma is the row sums of A * output.
    """
    if x.numel() == 0:
        inputs = (x, decay, boost, key, value, receptance, output)
        zeros = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in inputs]
        return *zeros, None if gamma is None else torch.zeros_like(gamma)
    wide, s = sums_dtype(x), x.flatten(1, 2).contiguous()
    matrices = (key.contiguous(), value.contiguous(), receptance.contiguous(), output.contiguous())
    with no_autocast(x.device):
        states = [x.new_empty(0, dtype=torch.float32) for _ in range(3)]
        if kvr.numel() == 0:
            kvr = s.new_empty((3, *s.shape))
            planes(s, matrices, kvr)
            y, *states = BIWKV.call(*by_tokens(decay, boost, kvr[0]), *kvr, True, backend)
        flat_x, upstream = s.flatten(0, 1), grad.flatten(0, 2).contiguous().to(x.dtype)
        sums = [torch.zeros(matrix.shape, dtype=wide, device=x.device) for matrix in matrices]
        add_product_(sums[3], upstream, y.flatten(0, 1))
        del y
        output = matrices[3]
        grad_gamma, scaled = None, output
        if gamma is not None:
            grad_gamma = (sums[3] * output).sum(1).to(gamma.dtype)
            sums[3] *= gamma.to(wide)[:, None]
            scaled = gamma.to(wide)[:, None] * output
        grad_y = torch.mm(upstream, scaled.to(x.dtype)).view_as(s)
        by_t = by_tokens(decay, boost, kvr[0])
        grad_w, grad_u, *grads = BIWKV.call_backward(*by_t, *kvr, *states, grad_y, backend)
        del kvr, grad_y
        grad_x = torch.zeros_like(flat_x)
        for matrix, total, part in zip(matrices, sums, grads, strict=False):
            flat = part.flatten(0, 1)
            add_product_(total, flat, flat_x)
            grad_x.addmm_(flat, matrix)
        grad_decay, grad_boost = (grad_w / s.shape[1]).to(decay.dtype), (grad_u / s.shape[1]).to(boost.dtype)
        return grad_x.view(x.shape), grad_decay, grad_boost, *(total.to(x.dtype) for total in sums), grad_gamma


def channel_forward(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, residual: Tensor | None, gamma: Tensor | None
) -> Tensor:
    """The channel mix of x (rows, C), shape (rows, C), in the residual's dtype or x's."""
    out = torch.empty(x.shape, dtype=dtype_of(x, residual), device=x.device)

    def mix(rows: slice) -> None:
        part = x[rows]
        hidden = F.linear(part, key).relu_()
        mixed = F.linear(hidden.mul_(hidden), value).mul_(F.linear(part, receptance).sigmoid_())
        finish(mixed, None if residual is None else residual[rows], gamma, out[rows])

    over_tokens(mix, x, key.shape[0])
    return out


def channel_backward(
    x: Tensor, key: Tensor, receptance: Tensor, value: Tensor, gamma: Tensor | None, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of x, key, receptance, value and gamma (None without gamma) for the result's gradient (rows, C).

    m = g * z, g = sigmoid(R x), z = V h, h = p^2, p = relu(K x) are computed again for each chunk of tokens. The
    gradients of the matrices are summed in float32 in a fixed order.
    """
    wide = sums_dtype(x)
    grad_x = torch.empty_like(x)
    sums = [torch.zeros(matrix.shape, dtype=wide, device=x.device) for matrix in (key, receptance, value)]
    for rows in token_chunks(x, 2 * key.shape[0]):
        part, upstream = x[rows], grad[rows].to(x.dtype)
        p = F.linear(part, key).relu_()
        hidden = p.square()
        gate = F.linear(part, receptance).sigmoid_()
        # (gate * upstream)^T h: times gamma it is the gradient of value; times value and summed, that of gamma.
        add_product_(sums[2], upstream * gate, hidden)
        if gamma is not None:
            upstream = upstream * gamma.to(x.dtype)
        grad_gate = F.linear(hidden, value).mul_(upstream)
        grad_gate.mul_(gate).mul_(1 - gate)
        grad_hidden = torch.mm(upstream * gate, value).mul_(p).mul_(2)
        add_product_(sums[0], grad_hidden, part)
        add_product_(sums[1], grad_gate, part)
        torch.mm(grad_hidden, key, out=grad_x[rows])
        grad_x[rows].addmm_(grad_gate, receptance)
    grad_gamma = None
    if gamma is not None:
        grad_gamma = (sums[2] * value).sum(1).to(gamma.dtype)
        sums[2] *= gamma.to(wide)[:, None]
    grads = [total.to(x.dtype) for total in sums]
    return grad_x, grads[0], grads[1], grads[2], grad_gamma
