"""BiWKV in linear time, in plain torch, differentiable by autograd, in float32 and float64.

The sequence is cut into chunks of S tokens. A row t = (chunk c, position j) is made of three sums: over the chunks to
the left, over the chunks to the right, and over the chunk itself. A sum is always a *state*: a numerator a, a
denominator b and an exponent e, which mean (a, b) * exp(e).

The sums inside a chunk have two forms. The choice depends on w, u, S and the size of v, never on k:

* **Scaled form**, if max|w| * S <= 10, max|u| <= 10 and max|v| <= 1e12. With M the largest key of the chunk and
  p_i = exp(k_i - M), the left sum of row j is exp(-(j-1)w) * sum_{i<j} exp(iw) p_i (v_i, 1): one running sum for all
  rows. Every factor is within exp(+-10), and the chunk's largest key contributes at least exp(-10) to every row, so
  what underflows in p is far below rounding.
* **Logarithmic form**, otherwise: a doubling scan over states whose exponents are the true running maxima, so that no
  factor exceeds one. Correct for any finite w, u, k, at about four times the cost.

The chunks' sums are always combined in logarithmic form. Any value works as an exponent if numerator and denominator
are scaled to match, so exponents carry no gradient. The scaling uses the *rounded* exponents:
exp((e_old - e_new) - n w), never exp(e_old - n w - e_new). The difference of two close numbers is exact or nearly so,
which keeps the error at a few roundings even for |k| = 1e4 and 1e5 tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 64
SCALED_LIMIT = 10.0
SCALED_V_LIMIT = 1e12
_State = tuple[Tensor, Tensor, Tensor]


def uses_scaled_form(w: Tensor, u: Tensor, tokens: int) -> bool:
    """Whether w (C,), u (C,) and the number of tokens allow the scaled form (the module's docstring describes it)."""
    if torch.onnx.is_in_onnx_export():  # whose tensors have no values
        return False
    if w.numel() == 0:
        return True
    span = min(CHUNK, max(tokens, 1))
    decay, bonus = w.detach().abs().max().item(), u.detach().abs().max().item()
    return decay * span <= SCALED_LIMIT and bonus <= SCALED_LIMIT


def biwkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """Bidirectional WKV, the closed form of `reference.biwkv`, in time and memory linear in T.

    Args:
        w, u: decay per step and bonus, shape (C,), any sign.
        k, v: keys and values, shape (B, T, C).
        gate: shape (B, T, C), or None.

    Returns:
        y, or sigmoid(gate) * y, shape (B, T, C), in k's dtype. float16 and bfloat16 are computed in float32; float64
        stays float64.

    Finite for finite arguments if T * max|v| is representable.
    """
    dtype = k.dtype
    if dtype in (torch.float16, torch.bfloat16):
        k, v = k.float(), v.float()
        gate = None if gate is None else gate.float()
    w, u = w.to(k.dtype), u.to(k.dtype)
    w = w + (w - w).detach()  # NaN in place of an infinite decay, which times no distance is none
    batch, tokens, channels = k.shape
    if k.numel() == 0:
        return (k + v + w + u if gate is None else k + v + w + u + gate).to(dtype)
    if tokens <= 2:
        w = w * 0  # no tokens are more than one step apart: y does not depend on w, whose gradient must be exactly 0
    span = min(CHUNK, tokens)
    chunks = -(-tokens // span)
    missing = chunks * span - tokens
    if missing:
        k = torch.nn.functional.pad(k, (0, 0, 0, missing), value=-torch.inf)
        v = torch.nn.functional.pad(v, (0, 0, 0, missing))
    k, v = k.reshape(batch, chunks, span, channels), v.reshape(batch, chunks, span, channels)
    scaled = uses_scaled_form(w, u, tokens) and v.detach().abs().max().item() <= SCALED_V_LIMIT
    y = _scaled_form(w, u, k, v) if scaled else _logarithmic_form(w, u, k, v)
    y = y.reshape(batch, chunks * span, channels)[:, :tokens]
    return (y if gate is None else torch.sigmoid(gate) * y).to(dtype)


def centred(w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None) -> Tensor:
    """`biwkv` with an accurate autograd gradient. Same arguments; the result is in float32 or float64.

    A row's weights add up to one, so y(v - c) = y(v) - c for any c. In exact arithmetic the gradients of w, u and k do
    not depend on c: each is a sum of terms times v_i - y_t. Their rounding does, because autograd sums the v_i and the
    y_t terms separately and then subtracts. If one token outweighs all others (sharp keys), every y is close to one v,
    and the difference is only 1e-4 of the terms for keys of 80. With c = y of the middle row the terms themselves are
    small.
    """
    wide = torch.promote_types(k.dtype, torch.float32)
    w, u, k, v = w.to(wide), u.to(wide), k.to(wide), v.to(wide)
    if k.numel() == 0:
        return biwkv(w, u, k, v, gate)
    centre = _row(w.detach(), u.detach(), k.detach(), v.detach(), k.shape[1] // 2)
    y = biwkv(w, u, k, v - centre)
    return y if gate is None else torch.sigmoid(gate.to(wide)) * (y + centre)


def _row(w: Tensor, u: Tensor, k: Tensor, v: Tensor, row: int) -> Tensor:
    """Row `row` of y, (B, 1, C), by the definition."""
    gap = (torch.arange(k.shape[1], device=k.device, dtype=torch.int64) - row).abs()[:, None]
    logits = torch.where(gap == 0, u + k, k - (gap - 1) * w)
    return (torch.softmax(logits, dim=1) * v).sum(dim=1, keepdim=True)


def _low(k: Tensor) -> float:
    """The exponent of an empty state: below all others, but finite, because -inf - -inf would be NaN."""
    return torch.finfo(k.dtype).min / 4


def _finite(k: Tensor) -> Tensor:
    """Exponents of keys, without gradient: finite for a key of -inf too, which masks or pads a token."""
    return k.detach().clamp(min=torch.finfo(k.dtype).min)


def _scaled_form(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    span = k.shape[2]
    position = torch.arange(span, device=k.device, dtype=k.dtype)[:, None]
    peak_k = _finite(k).amax(dim=2, keepdim=True)
    p = torch.exp(k - peak_k)
    pv = p * v
    fall = torch.exp(-position * w)  # (S, C): exp(-j w)
    rise = torch.exp(position * w)  # (S, C): exp(j w)
    one_back = torch.exp(w)

    def inside(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        up = torch.cumsum(x * rise, dim=2)
        down = torch.cumsum((x * fall).flip(2), dim=2).flip(2)
        left = torch.nn.functional.pad(up[:, :, :-1], (0, 0, 1, 0)) * (fall * one_back)
        right = torch.nn.functional.pad(down[:, :, 1:], (0, 0, 0, 1)) * (rise * one_back)
        # Each row's sum inside the chunk; the whole chunk's sum decayed to its right edge, and to its left edge.
        return left + right + x * torch.exp(u), up[:, :, -1] * (fall[-1]), down[:, :, 0]

    num, num_right, num_left = inside(pv)
    den, den_right, den_left = inside(p)
    chunk_max = peak_k[:, :, 0]
    from_left, from_right = _between_chunks(
        w * span, (num_right, den_right, chunk_max), (num_left, den_left, chunk_max)
    )
    peak = torch.maximum(torch.maximum(from_left[2], from_right[2]), chunk_max)
    scale = torch.exp(chunk_max - peak).unsqueeze(2)
    scale_left = torch.exp(from_left[2] - peak).unsqueeze(2) * fall
    scale_right = torch.exp(from_right[2] - peak).unsqueeze(2) * fall.flip(0)
    num = num * scale + from_left[0].unsqueeze(2) * scale_left + from_right[0].unsqueeze(2) * scale_right
    den = den * scale + from_left[1].unsqueeze(2) * scale_left + from_right[1].unsqueeze(2) * scale_right
    return num / den


def _logarithmic_form(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    span = k.shape[2]
    exponent = _finite(k)
    # exp(k - k.detach()) is one, with the gradient of k. A key of -inf, of a padded token too, has weight 0.
    p = torch.exp(k - exponent)
    token = (p * v, p, exponent)
    left, right = _running(token, w), _flip(_running(_flip(token), w))
    into_right = left[0][:, :, -1], left[1][:, :, -1], left[2][:, :, -1]
    into_left = right[0][:, :, 0], right[1][:, :, 0], right[2][:, :, 0]
    from_left, from_right = _between_chunks(w * span, into_right, into_left)
    position = torch.arange(span, device=k.device, dtype=k.dtype)[:, None]
    to_right_edge = span - 1 - position
    parts = [
        (token, u),
        (_shift(left), torch.zeros_like(w)),
        (_flip(_shift(_flip(right))), torch.zeros_like(w)),
        (tuple(x.unsqueeze(2) for x in from_left), -position * w),
        (tuple(x.unsqueeze(2) for x in from_right), -to_right_edge * w),
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
    """exp of arguments that are at most a rounding error above zero, or belong to an empty state (a = b = 0)."""
    return torch.exp(torch.where(x > 1.0, 1.0, x))  # not clamp, which gives a NaN no gradient


# Functions of states along their second-last dimension, which counts tokens or chunks.


def _flip(state: _State) -> _State:
    return state[0].flip(-2), state[1].flip(-2), state[2].flip(-2)


def _shift(state: _State) -> _State:
    """Shift all states by one; the first one becomes the empty state."""
    a, b, e = state
    empty, lowest = torch.zeros_like(a[..., :1, :]), torch.full_like(e[..., :1, :], _low(e))
    a, b, e = (torch.cat([first, x[..., :-1, :]], -2) for first, x in ((empty, a), (empty, b), (lowest, e)))
    return a, b, e


def _running(state: _State, step: Tensor) -> _State:
    """Inclusive running sum of states, with a decay of `step` (C,) per position, in log2(n) rounds."""
    a, b, e = state
    reach = 1
    while reach < e.shape[-2]:
        decay = step * reach
        e_before, e_this = e[..., :-reach, :], e[..., reach:, :]
        e_sum = torch.maximum(e_before - decay.detach(), e_this)
        scale_before, scale_this = _exp((e_before - e_sum) - decay), torch.exp(e_this - e_sum)
        a_sum = a[..., :-reach, :] * scale_before + a[..., reach:, :] * scale_this
        b_sum = b[..., :-reach, :] * scale_before + b[..., reach:, :] * scale_this
        sums = ((a, a_sum), (b, b_sum), (e, e_sum))
        a, b, e = (torch.cat([x[..., :reach, :], x_sum], -2) for x, x_sum in sums)
        reach *= 2
    return a, b, e


def _between_chunks(step: Tensor, into_right: _State, into_left: _State) -> tuple[_State, _State]:
    """The sums of all chunks to the left of each chunk, at its first token, and of all to its right, at its last."""
    from_left = _shift(_running(into_right, step))
    from_right = _flip(_shift(_running(_flip(into_left), step)))
    return from_left, from_right
