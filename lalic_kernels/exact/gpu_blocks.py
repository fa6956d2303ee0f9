"""The exact blocks in few launches: `blocks.py`, with what follows a product in the launch of the product.

Two ways, by size. Programs that own whole rows (`kernels_rows.py`) go through several steps in one launch, but each of
them reads all weights, so they pay where positions or weights are few. Elsewhere a step is a launch, whose programs
share rows and outputs. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lalic_kernels.exact import kernels_blocks, reference
from lalic_kernels.exact.blocks import ExactBlock, ExactEntropyParams, first_product
from lalic_kernels.exact.gpu import biwkv, depthwise_digits, eps_area, normalise, taps_of
from lalic_kernels.exact.gpu_products import Factor, Rows, digits_of, factor_of, product
from lalic_kernels.exact.gpu_state import checked, lined_up, maxima, one_check, require
from lalic_kernels.exact.launches import LAUNCHES, options
from lalic_kernels.exact.quantise import settle
from lalic_kernels.exact.weights import ExactLinear
from lalic_kernels.launch import blocks

# Not tuned on a GPU. What the programs of one launch read of weights, together, comes from the second cache at some
# TB/s; 2^27 bytes are some tens of microseconds, about what the launches cost that are saved.
WEIGHTS_READ = 1 << 27


def rows_pay(rows: int, weights: int) -> bool:
    """Whether programs of 16 rows, each of which reads so many bytes of weights, are the better way."""
    return blocks(rows, 16) * weights <= WEIGHTS_READ


def hidden_factor(key: ExactLinear, receptance: ExactLinear) -> Factor:
    """key and receptance as one product: each output has a scale of its own, so that nothing changes."""
    name = "triton", id(receptance)
    if name not in key.kept:
        weight = torch.cat((key.weight, receptance.weight))
        exponent = torch.cat((key.exponent, receptance.exponent))
        key.kept[name] = receptance, Factor(weight, exponent, None)
    found: Factor = key.kept[name][1]
    return found


def channel_mix(
    x: Rows, weights: ExactEntropyParams | ExactBlock, flat: Tensor, gamma: Tensor | None, status: Tensor
) -> Tensor:
    """flat + gamma (sigmoid(R x) V relu(K x)^2) in three launches; flat (rows, C)."""
    inner = weights.key.weight.shape[0]
    first = product(x, hidden_factor(weights.key, weights.receptance), squared=inner)  # (rows, inner + C)
    hidden = digits_of(first, status, inner)
    return product(hidden, factor_of(weights.value), gate=first[:, inner:], residual=flat, gamma=gamma)


def entropy_params(x: Tensor, block: ExactEntropyParams, eps: float = 1e-5, partial: Tensor | None = None) -> Tensor:
    """As `blocks.entropy_params`, in two launches and those of the tail."""
    return entropy_params_tail(first_product(x, block, partial, "triton"), block, eps)


def entropy_params_tail(m: Tensor, block: ExactEntropyParams, eps: float = 1e-5) -> Tensor:
    """As `blocks.entropy_params_tail`, in four launches: norm and digits, first products, digits, the rest."""
    require(m)
    reference.check_norm(m, eps)
    if m.numel() == 0:
        return torch.empty_like(m)
    flat = m.contiguous().reshape(-1, m.shape[-1])
    with checked(m.device) as status:
        normal = Rows(flat.shape[0], flat.shape[1], m.device)
        normalise(flat, 1, block.norm_weight, block.norm_bias, eps, status, digits=normal)
        return channel_mix(normal, block, flat, None, status).reshape(m.shape)


def rwkv_block(x: Tensor, block: ExactBlock, eps: float = 1e-5) -> Tensor:
    """As `blocks.rwkv_block`."""
    return rwkv_blocks(x, (block,), eps)


def rwkv_blocks(x: Tensor, sequence: Sequence[ExactBlock], eps: float = 1e-5) -> Tensor:
    """As `blocks.rwkv_blocks`: five launches a block and one more, or nine or ten a block, as `rows_pay` says."""
    return rwkv_blocks_and_largest(x, sequence, eps)[0]


def rwkv_blocks_and_largest(
    x: Tensor, sequence: Sequence[ExactBlock], eps: float = 1e-5
) -> tuple[Tensor, Tensor | None]:
    """The same, and each image's largest magnitude bits (B,) int32, or None where no launch found them on its way."""
    require(x)
    reference.check_norm(x, eps)
    if x.numel() == 0 or not sequence:
        return x, None
    state = _Image(x, eps)
    with one_check(), checked(x.device) as status:
        for i, block in enumerate(sequence):
            state.block(block, sequence[i + 1] if i + 1 < len(sequence) else None, status)
    return state.flat.reshape(x.shape), state.largest


class _Image:
    """What goes from block to block: images' rows, and the next LayerNorm of them with its channels' maxima."""

    def __init__(self, x: Tensor, eps: float):
        self.images, self.height, self.width, self.channels = self.shape = x.shape
        self.eps = eps
        self.tokens = self.height * self.width
        self.flat = lined_up(x).view(-1, self.channels)
        self.normal: Tensor | None = None
        self.most = self.flat  # replaced with normal
        self.largest: Tensor | None = None  # each image's largest magnitude bits, where the last launch found them

    def block(self, block: ExactBlock, then: ExactBlock | None, status: Tensor) -> None:
        inner = block.key.weight.shape[0]
        rows, channels = self.images * self.tokens, self.channels
        own = rows_pay(rows, 2 * channels * (channels + 2 * inner))
        if self.normal is None:
            self._fresh(channels)
            normalise(
                self.flat, self.images, block.norm1_weight, block.norm1_bias, self.eps, status, y=self.normal,
                most=self.most,
            )  # fmt: skip
        tops = maxima(self.flat.device, self.images, channels)
        first = self._mix_own(block, tops) if rows_pay(rows, 6 * channels**2) else self._mix(block, tops)
        decay, boost = per_token(block, self.tokens)
        k, v, r = first.reshape(self.images, self.tokens, 3 * channels).split(channels, dim=2)
        self._output(biwkv(decay, boost, k, v, r, tops).reshape(rows, channels), block, status)
        if own:
            self._channel_own(block, then, inner)
            return
        digits = depthwise_digits(self._picture(), self.most, block.shift2)
        self.flat = channel_mix(digits, block, self.flat, block.gamma2, status)
        self.normal = None

    def _picture(self) -> Tensor:
        assert self.normal is not None
        return self.normal.reshape(self.shape)

    def _fresh(self, channels: int) -> None:
        """Memory for a LayerNorm and its maxima."""
        self.normal = torch.empty(self.images * self.tokens, channels, device=self.flat.device)
        self.most = maxima(self.flat.device, self.images, channels)

    def _mix(self, block: ExactBlock, tops: Tensor) -> Tensor:
        """key, value and receptance, (rows, 3 C), in two launches."""
        digits = depthwise_digits(self._picture(), self.most, block.shift1)
        return product(digits, factor_of(block.mix), tops=tops)

    def _mix_own(self, block: ExactBlock, tops: Tensor) -> Tensor:
        """The same in one."""
        factor, x = factor_of(block.mix), self._picture()
        y = torch.empty(self.images * self.tokens, 3 * self.channels, device=x.device)
        kernels_blocks.exact_shift_mix_kernel[(blocks(self.tokens, LAUNCHES["shift_mix"]["BLOCK_M"]), self.images)](
            x, self.most, *taps_of(block.shift1), torch.empty_like(x), factor.digits, factor.scales, tops, y,
            self.height, self.width, self.channels, factor.depth, SIZE=block.shift1.weight.shape[-1],
            **options("shift_mix"),
        )  # fmt: skip
        return y

    def _output(self, mixed: Tensor, block: ExactBlock, status: Tensor) -> None:
        """The spatial mix's end and the channel mix's norm."""
        factor = factor_of(block.output)
        y, residual = torch.empty_like(mixed), self.flat
        self._fresh(self.channels)
        kernels_blocks.exact_output_norm_kernel[(blocks(self.tokens, LAUNCHES["output_norm"]["BLOCK_M"]), self.images)](
            mixed, factor.digits, factor.scales, residual, block.gamma1, block.norm2_weight, block.norm2_bias, y,
            self.normal, self.most, status, self.tokens, self.channels, factor.depth, residual.stride(0),
            eps_area(self.eps, self.channels), **options("output_norm"),
        )  # fmt: skip
        self.flat = y

    def _channel_own(self, block: ExactBlock, then: ExactBlock | None, inner: int) -> None:
        """The channel mix, and the norm of the block behind, in one launch."""
        key, value = hidden_factor(block.key, block.receptance), factor_of(block.value)
        x, most, y = self._picture(), self.most, torch.empty_like(self.flat)
        if then is not None:
            self._fresh(self.channels)
        else:
            self.largest = maxima(x.device, self.images)
        weights = (block.norm2_weight, block.norm2_bias) if then is None else (then.norm1_weight, then.norm1_bias)
        kernels_blocks.exact_shift_channel_kernel[
            (blocks(self.tokens, LAUNCHES["shift_channel"]["BLOCK_M"]), self.images)
        ](
            x, most, *taps_of(block.shift2), torch.empty_like(x),
            torch.empty(y.shape[0], inner, device=x.device), key.digits, key.scales, value.digits, value.scales,
            self.flat, block.gamma2, *weights, y, self.normal, self.most if self.largest is None else self.largest,
            self.height, self.width, self.channels,
            inner, key.depth, value.depth, eps_area(self.eps, self.channels), NEXT=then is not None,
            SIZE=block.shift2.weight.shape[-1], **options("shift_channel"),
        )  # fmt: skip
        self.flat = y
        if then is None:
            self.normal = None


def per_token(block: ExactBlock, tokens: int) -> tuple[Tensor, Tensor]:
    """decay / T and boost / T as the block's definition has them; those of the last T are kept."""
    found = block.mix.kept.get("triton per token")
    if found is None or found[0] != tokens:
        count = torch.full_like(block.decay, tokens)
        found = tokens, settle(block.decay / count), settle(block.boost / count)
        block.mix.kept["triton per token"] = found
    return found[1], found[2]
