"""The arithmetic of coding: engines in floating point and in exact arithmetic, and the exact entropy model.

`lalic.coder.schedule` defines what is computed and in which order; an engine defines how. `FloatEngine` is for training
and `forward`. `ExactEngine` gives the same bits on every machine, from z symbols to table rows and means
(docs/exact-arithmetic.md). `ExactEntropy` holds what a decoder needs of a model before the synthesis transform, as
integers and settled floats: medians, hyper synthesis, slices. Only exact steps make it from float weights, so every
machine makes the same one from the same weights, and `digest` identifies it.

Beside the exact primitives there are only single float32 additions:
z_hat = symbol + median; first product of a slice = (spatial part + bias, or the bias alone for anchors)
+ (hyper part + channel part); first convolution of a channel context = its parts in coding order;
y_hat = symbol + mean.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lalic_kernels
from lalic.coder.gpu_slices import GpuSliceState
from lalic.coder.schedule import GpuRead, LayerState, PassCoder, SliceState, StackWeights, code_slices, make_weights
from lalic.errors import CheckpointError
from lalic.nn.blocks import RWKVBlock
from lalic.nn.checkpoints import matters
from lalic.nn.context import SliceStack, full_precision, narrowed_for
from lalic_kernels import exact
from lalic_kernels.plain import plain

if TYPE_CHECKING:
    from lalic.model import LatentCodec


class _Affine(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class FloatEngine:
    """Floating point, differentiable: torch and `lalic_kernels`. Preparing leaves weights as they are.

    Latents are float32 always; a model in 16 bits takes them in its weights' dtype.
    """

    name = "float"

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> _Affine:
        return _Affine(weight, bias)

    prepare_conv = prepare_linear

    def prepare_block(self, block: RWKVBlock) -> RWKVBlock:
        return block  # it caches what it derives from its weights

    def prepare_aggregation(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tensors

    def linear(self, x: Tensor, weights: _Affine) -> Tensor:
        return F.linear(narrowed_for(weights.weight, x), weights.weight, weights.bias)

    def conv(self, x: Tensor, weights: _Affine) -> Tensor:
        image = narrowed_for(weights.weight, x).permute(0, 3, 1, 2)
        return F.conv2d(image, weights.weight, weights.bias, padding=1).permute(0, 2, 3, 1)

    def block(self, x: Tensor, weights: RWKVBlock) -> Tensor:
        return weights(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def aggregation(self, x: Tensor, weights: tuple[Tensor, ...], partial: Tensor | None) -> Tensor:
        mix, *others = weights
        return lalic_kernels.entropy_params(x, mix if x.shape[2] else mix[:, :0], *others, partial=partial)  # type: ignore[misc]

    def head(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = full_precision(parameters).chunk(2, dim=2)
        return scales, means


FLOAT = FloatEngine()


def float_state(stack: SliceStack, params: Tensor) -> SliceState | LayerState:
    """A new state in floating point, for the stack and hyper parameters (B, M, h, w)."""
    return SliceState(stack, params, FLOAT) if plain(stack.plain, stack) else LayerState(stack, params)


class ExactEngine:
    """`lalic_kernels.exact` with the interface of `Engine`. Preparing a weight quantises it."""

    name = "exact"

    def __init__(self, backend: str | None = None):
        self.backend = backend

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> exact.ExactLinear:
        return exact.prepare_linear(weight, bias)

    def prepare_conv(self, weight: Tensor, bias: Tensor | None) -> exact.ExactConv:
        return exact.prepare_conv(weight, bias, padding=1)

    def prepare_block(self, block: RWKVBlock) -> exact.ExactBlock:
        att, ffn = block.att, block.ffn
        return exact.prepare_block(
            (block.ln1.weight, block.ln1.bias), att.omni_shift.kernel(), att.decay, att.boost,
            (att.key.weight, att.value.weight, att.receptance.weight, att.output.weight), block.gamma1,
            (block.ln2.weight, block.ln2.bias), ffn.omni_shift.kernel(),
            (ffn.key.weight, ffn.receptance.weight, ffn.value.weight), block.gamma2,
        )  # fmt: skip

    def prepare_aggregation(self, tensors: tuple[Tensor, ...]) -> exact.ExactEntropyParams:
        mix, bias, norm_weight, norm_bias, key, receptance, value = tensors
        return exact.prepare_entropy_params((mix, bias), (norm_weight, norm_bias), key, receptance, value)

    def linear(self, x: Tensor, weights: exact.ExactLinear) -> Tensor:
        return exact.linear(x, weights, backend=self.backend)

    def conv(self, x: Tensor, weights: exact.ExactConv) -> Tensor:
        return exact.conv(x, weights, backend=self.backend)

    def block(self, x: Tensor, weights: exact.ExactBlock) -> Tensor:
        return exact.rwkv_block(x, weights, backend=self.backend)

    def aggregation(self, x: Tensor, weights: exact.ExactEntropyParams, partial: Tensor | None) -> Tensor:
        return exact.entropy_params(x, weights, partial=partial, backend=self.backend)

    def head(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return exact.gaussian_head(parameters, backend=self.backend)


EXACT = ExactEngine()


# The exact entropy model


@dataclass(frozen=True, eq=False)
class ExactEntropy:
    """Prepared weights of what a decoder computes before the synthesis transform. Shared: treat it as read-only."""

    medians: Tensor  # (C,) of the hyper latents, float32
    hyper: tuple[Any, ...]  # hyper synthesis: an `ExactConv`, `ExactBlock`s, an `ExactConv`
    slices: StackWeights

    def code(self, z: Tensor, coder: PassCoder | GpuRead, engine: ExactEngine = EXACT) -> Tensor:
        """Symbols z (B, C, h, w) of any dtype -> y_hat (B, M, 4 h, 4 w), channels last, through all slices.

        Raises ValueError if a value is not finite; on a GPU one check at the end covers everything.
        """
        with exact.one_check(z.device, backend=engine.backend):
            return self.code_hyper(z.to(self.medians).permute(0, 2, 3, 1) + self.medians, coder, engine)

    def code_hyper(
        self, x: Tensor, coder: PassCoder | GpuRead, engine: ExactEngine = EXACT, absmax_bits: Tensor | None = None
    ) -> Tensor:
        """`code` of hyper latents x (B, h, w, C), symbols plus medians, inside `exact.one_check`.

        absmax_bits: of x, for `exact.SliceKernels.conv`, or None to compute them.
        """
        params = self._hyper_parameters(x, absmax_bits, engine)
        kernels = exact.slice_kernels(params.device, backend=engine.backend)
        if kernels is None:
            return code_slices(SliceState(self.slices, params, engine), coder)
        return code_slices(GpuSliceState(self.slices, params, engine, kernels), coder)

    def _hyper_parameters(self, x: Tensor, absmax_bits: Tensor | None, engine: ExactEngine) -> Tensor:
        """Hyper latents x (B, h, w, C) -> hyper parameters (B, M, 4 h, 4 w), channels last."""
        kernels = exact.slice_kernels(x.device, backend=engine.backend)
        first, *blocks, last = self.hyper
        x = engine.conv(x, first) if kernels is None else kernels.conv(x, first, absmax_bits=absmax_bits)
        for block in blocks:
            x = engine.block(x, block)
        x = engine.conv(x, last)
        return x.permute(0, 3, 1, 2)

    def digest(self) -> str:
        """Hex SHA-256 of all integers and floats in it, their names, and the version of the arithmetic."""
        digest = hashlib.sha256(f"exact entropy model {exact.VERSION}\n".encode())
        for field in fields(self):
            for name, part in _digests(f".{field.name}", getattr(self, field.name)):
                digest.update(f"{name} {part}\n".encode())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> ExactEntropy:
        """A copy on a device."""
        return replace(self, **{field.name: _moved(getattr(self, field.name), device) for field in fields(self)})


# Names in the digest, which files depend on, of fields that are called otherwise in the code.
_DIGEST_NAMES = {"first_block": "first", "other_blocks": "rest", "to_later_contexts": "spread"}


def _digests(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """(name, digest) of each tensor and prepared weight in `value`, in the order of fields."""
    if isinstance(value, Tensor):
        yield name, hashlib.sha256(value.cpu().numpy().astype("<f4").tobytes()).hexdigest()
    elif hasattr(value, "digest"):
        yield name, value.digest()
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _digests(f"{name}.{i}", item)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _digests(f"{name}.{_DIGEST_NAMES.get(field.name, field.name)}", getattr(value, field.name))


def _moved(value: Any, device: torch.device | str) -> Any:
    """`value` with each tensor and prepared weight in it on a device."""
    if hasattr(value, "to"):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def exact_entropy(latent_codec: LatentCodec) -> ExactEntropy:
    """The exact entropy model of `LALIC.latent_codec`, on its device: cached, and made again when a weight changes.

    Raises `CheckpointError` if a weight is not finite, or a layer is none that integers can be made of.
    """
    hyper, stack = latent_codec.hyper, latent_codec.y
    if not latent_codec.plain.of(hyper.h_s, stack, inner=False):
        raise CheckpointError(
            f"the entropy model is coded in integers, made of the weights of plain layers, and "
            f"{latent_codec.plain.first_other()!r} is another or has hooks: merge it, remove them (prune.remove, "
            f"handle.remove), or only call forward"
        )
    prior = hyper.entropy_bottleneck
    weights = [p for module in (hyper.h_s, stack) for name, p in module.named_parameters() if matters(name)]
    return latent_codec.cache.get(
        "exact", [prior.quantiles, *weights], lambda: _make(hyper.h_s, stack, prior.medians())
    )


def _make(h_s: nn.Sequential, stack: SliceStack, medians: Tensor) -> ExactEntropy:
    """Made from float32 tensors on the CPU, whatever the model's device and dtype."""
    device = medians.device
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for m in (h_s, stack) for p in m.parameters()):
        h_s = copy.deepcopy(h_s).to("cpu", torch.float32)
        stack = copy.deepcopy(stack).to("cpu", torch.float32)
    try:
        on_cpu = medians.detach().to("cpu", torch.float32, copy=True)
        if not bool(torch.isfinite(on_cpu).all()):
            raise ValueError("the prior's medians must be finite")
        hyper = tuple(EXACT.prepare_block(m) if isinstance(m, RWKVBlock) else _up(m) for m in h_s)
        made = ExactEntropy(exact.settle(on_cpu), hyper, make_weights(stack, EXACT))
    except ValueError as error:
        raise CheckpointError(f"the entropy model's weights cannot be made integers: {error}") from error
    return made if device.type == "cpu" else made.to(device)


def _up(m: nn.Module) -> exact.ExactConv:
    conv = cast(nn.ConvTranspose2d, m)
    sizes: tuple[Any, ...] = conv.stride, conv.padding, conv.output_padding
    stride, padding, output_padding = (size[0] for size in sizes)
    return exact.prepare_conv(conv.weight, conv.bias, stride, padding, True, output_padding)
