"""BiWKV in linear time, in plain torch: no compiled code, autograd works through it, float32 and float64.

The sequence is cut into chunks of S tokens. Three kinds of sums make up a row t = (chunk c, position j): what comes
from the left of the chunk, what comes from its right, and what is inside. A sum is always a *state*: a numerator a, a
denominator b and an exponent e, standing for (a, b) * exp(e).

Which of two forms computes the sums inside a chunk depends on w, u and S alone, never on k:

* **Scaled form**, when max|w| * S <= 10 and max|u| <= 10. With M the largest key of the chunk and p_i = exp(k_i - M),
  the left sum of row j is exp(-(j-1)w) * sum_{i<j} exp(iw) p_i (v_i, 1): one running sum for all rows. Every factor
  lies within exp(+-10), the chunk's largest key alone contributes at least exp(-10) to every row, so what underflows in
  p is far below rounding. (Values v beyond 1e12, which could overflow here, take the other form too.)
* **Logarithmic form**, otherwise: a doubling scan over states whose exponents are the true running maxima, so that no
  factor ever exceeds one. Correct for any finite w, u, k, at about four times the cost.

The chunks' sums are always combined in logarithmic form. Exponents follow the data through a maximum, and any value
works as an exponent as long as numerator and denominator are scaled to match; hence they carry no gradient, and the
scaling uses the *rounded* exponents: exp((e_old - e_new) - n w), never exp(e_old - n w - e_new). The subtraction of
the two close numbers is exact or nearly so, which keeps the error at a few roundings even for |k| = 1e4 and 1e5 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
SCALED_LIMIT = 10.0
SCALED_V_LIMIT = 1e12
_State = tuple[Tensor, Tensor, Tensor]


def uses_scaled_form(w: Tensor, u: Tensor, tokens: int) -> bool:
    """Whether `biwkv` takes the scaled form for this decay, bonus and number of tokens (see the module's docstring)."""
    if w.numel() == 0:
        return True
    span = min(CHUNK, max(tokens, 1))
    decay, bonus = w.detach().abs().max().item(), u.detach().abs().max().item()
    return decay * span <= SCALED_LIMIT and bonus <= SCALED_LIMIT


def biwkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """Bidirectional WKV of the closed form (see `reference.biwkv`) in time and memory linear in T.

    Args:
        w, u: decay per step and bonus, shape (C,), any sign.
        k, v: keys and values, shape (B, T, C).
        gate: as k, or None.

    Returns:
        y, or sigmoid(gate) * y, shape (B, T, C), in k's dtype. float16 and bfloat16 are computed in float32; float64
        stays float64.

    Finite for finite arguments as long as T * max|v| is representable.
    """
    dtype = k.dtype
    if dtype in (torch.float16, torch.bfloat16):
        k, v = k.float(), v.float()
        gate = None if gate is None else gate.float()
    w, u = w.to(k.dtype), u.to(k.dtype)
    batch, tokens, channels = k.shape
    if k.numel() == 0:
        return (k + v + w + u if gate is None else k + v + w + u + gate).to(dtype)
    if tokens <= 2:
        w = w * 0  # no two tokens are more than one step apart: w has no part in y, and a gradient of exactly zero
    span = min(CHUNK, tokens)
    chunks = -(-tokens // span)
    missing = chunks * span - tokens
    low = _low(k)
    if missing:
        k = torch.nn.functional.pad(k, (0, 0, 0, missing), value=low)
        v = torch.nn.functional.pad(v, (0, 0, 0, missing))
    k, v = k.reshape(batch, chunks, span, channels), v.reshape(batch, chunks, span, channels)
    scaled = uses_scaled_form(w, u, tokens) and v.detach().abs().max().item() <= SCALED_V_LIMIT
    y = _scaled_form(w, u, k, v) if scaled else _logarithmic_form(w, u, k, v)
    y = y.reshape(batch, chunks * span, channels)[:, :tokens]
    return (y if gate is None else torch.sigmoid(gate) * y).to(dtype)


def centred(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """`biwkv` in a form to differentiate; arguments as there, the result in float32 or float64.

    A row's weights add up to one, so y(v - c) = y(v) - c for any c, and c has no part in the gradients of w, u and k:
    each is a sum of terms weighted by v_i - y_t. It has a part in their rounding, because autograd forms v_i and y_t
    terms apart and subtracts. Where keys are so sharp that one token outweighs all others, every y is close to one v,
    and what remains of the difference is 1e-4 of the terms at keys of 80. With c = y of the middle row the terms are as
    small as what remains.
    """
    wide = torch.promote_types(k.dtype, torch.float32)
    w, u, k, v = w.to(wide), u.to(wide), k.to(wide), v.to(wide)
    if k.numel() == 0:
        return biwkv(w, u, k, v, gate)
    centre = _row(w.detach(), u.detach(), k.detach(), v.detach(), k.shape[1] // 2)
    y = biwkv(w, u, k, v - centre)
    return y if gate is None else torch.sigmoid(gate.to(wide)) * (y + centre)


def _row(w: Tensor, u: Tensor, k: Tensor, v: Tensor, row: int) -> Tensor:
    """One row of y, (B, 1, C), by the definition."""
    gap = (torch.arange(k.shape[1], device=k.device) - row).abs()[:, None]
    logits = torch.where(gap == 0, u + k, k - (gap - 1) * w)
    return (torch.softmax(logits, dim=1) * v).sum(dim=1, keepdim=True)


def _low(k: Tensor) -> float:
    """A finite exponent below all others; -inf would turn differences of two empty states into NaN."""
    return torch.finfo(k.dtype).min / 4


def _scaled_form(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    span = k.shape[2]
    position = torch.arange(span, device=k.device, dtype=k.dtype)[:, None]
    top = k.detach().amax(dim=2, keepdim=True)
    p = torch.exp(k - top)
    pv = p * v
    fall = torch.exp(-position * w)  # (S, C): exp(-j w)
    rise = torch.exp(position * w)  # (S, C): exp(j w)
    one_back = torch.exp(w)

    def inside(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        up = torch.cumsum(x * rise, dim=2)
        down = torch.cumsum((x * fall).flip(2), dim=2).flip(2)
        left = torch.nn.functional.pad(up[:, :, :-1], (0, 0, 1, 0)) * (fall * one_back)
        right = torch.nn.functional.pad(down[:, :, 1:], (0, 0, 0, 1)) * (rise * one_back)
        own = x * torch.exp(u)
        # The chunk's sum as its right neighbour sees it (at distance S - 1 - i) and as its left one does (distance i).
        return left + right + own, up[:, :, -1] * (fall[-1]), down[:, :, 0]

    num, num_right, num_left = inside(pv)
    den, den_right, den_left = inside(p)
    summit = top[:, :, 0]
    from_left, from_right = _between_chunks(w * span, (num_right, den_right, summit), (num_left, den_left, summit))
    peak = torch.maximum(torch.maximum(from_left[2], from_right[2]), summit)
    here = torch.exp(summit - peak).unsqueeze(2)
    scale_left = torch.exp(from_left[2] - peak).unsqueeze(2) * fall
    scale_right = torch.exp(from_right[2] - peak).unsqueeze(2) * fall.flip(0)
    num = num * here + from_left[0].unsqueeze(2) * scale_left + from_right[0].unsqueeze(2) * scale_right
    den = den * here + from_left[1].unsqueeze(2) * scale_left + from_right[1].unsqueeze(2) * scale_right
    return num / den


def _logarithmic_form(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    span = k.shape[2]
    exponent = k.detach()
    # exp(k - its own detached value) is one and carries the gradient of k. A padded token gets no weight at all.
    p = torch.exp(k - exponent) * (exponent > _low(k))
    token = (p * v, p, exponent)
    left = _running(token, w, 2)
    right = _flip(_running(_flip(token, 2), w, 2), 2)
    into_right = left[0][:, :, -1], left[1][:, :, -1], left[2][:, :, -1]
    into_left = right[0][:, :, 0], right[1][:, :, 0], right[2][:, :, 0]
    from_left, from_right = _between_chunks(w * span, into_right, into_left)
    position = torch.arange(span, device=k.device, dtype=k.dtype)[:, None]
    ahead = span - 1 - position
    parts = [
        (token, u),
        (_shift(left, 2), torch.zeros_like(w)),
        (_flip(_shift(_flip(right, 2), 2), 2), torch.zeros_like(w)),
        (_unsqueeze(from_left), -position * w),
        (_unsqueeze(from_right), -ahead * w),
    ]
    peak = exponent + u.detach()
    for state, offset in parts[1:]:
        peak = torch.maximum(peak, state[2] + offset.detach())
    num, den = torch.zeros_like(v), torch.zeros_like(v)
    for state, offset in parts:
        scale = _exp((state[2] - peak) + offset)
        num, den = num + state[0] * scale, den + state[1] * scale
    return num / den


def _exp(x: Tensor) -> Tensor:
    """exp for arguments that are at most a rounding error above zero, or belong to an empty state (which is zero)."""
    return torch.exp(x.clamp(max=1.0))


def _unsqueeze(state: _State) -> _State:
    return state[0].unsqueeze(2), state[1].unsqueeze(2), state[2].unsqueeze(2)


def _flip(state: _State, dim: int) -> _State:
    return state[0].flip(dim), state[1].flip(dim), state[2].flip(dim)


def _shift(state: _State, dim: int) -> _State:
    """Move every state one place on; the first place gets the empty state."""
    a, b, e = state
    size = a.shape[dim]
    empty = torch.zeros_like(a.narrow(dim, 0, 1))
    lowest = torch.full_like(e.narrow(dim, 0, 1), _low(e))
    return (
        torch.cat([empty, a.narrow(dim, 0, size - 1)], dim),
        torch.cat([empty, b.narrow(dim, 0, size - 1)], dim),
        torch.cat([lowest, e.narrow(dim, 0, size - 1)], dim),
    )


def _running(state: _State, step: Tensor, dim: int) -> _State:
    """Inclusive running sum of states along dim, each place a decay of `step` (C,); by doubling, log2(n) rounds."""
    a, b, e = state
    size = e.shape[dim]
    reach = 1
    while reach < size:
        rest = size - reach
        decay = step * reach
        e_old, e_here = e.narrow(dim, 0, rest), e.narrow(dim, reach, rest)
        e_new = torch.maximum(e_old - decay.detach(), e_here)
        old, here = _exp((e_old - e_new) - decay), torch.exp(e_here - e_new)
        a_new = a.narrow(dim, 0, rest) * old + a.narrow(dim, reach, rest) * here
        b_new = b.narrow(dim, 0, rest) * old + b.narrow(dim, reach, rest) * here
        a = torch.cat([a.narrow(dim, 0, reach), a_new], dim)
        b = torch.cat([b.narrow(dim, 0, reach), b_new], dim)
        e = torch.cat([e.narrow(dim, 0, reach), e_new], dim)
        reach *= 2
    return a, b, e


def _between_chunks(step: Tensor, into_right: _State, into_left: _State) -> tuple[_State, _State]:
    """What enters each chunk from its left, as seen by its first token, and from its right, as seen by its last."""
    from_left = _shift(_running(into_right, step, 1), 1)
    from_right = _flip(_shift(_running(_flip(into_left, 1), step, 1), 1), 1)
    return from_left, from_right
