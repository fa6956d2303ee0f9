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
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lalic_kernels
from lalic.coder.gpu_slices import GpuSliceState
from lalic.coder.schedule import GpuRead, PassCoder, SliceState, code_slices
from lalic.coder.weights import StackWeights, make_weights
from lalic.errors import CheckpointError
from lalic.nn.blocks import RWKVBlock
from lalic.nn.checkpoints import matters
from lalic.nn.context import SliceStack, full_precision
from lalic_kernels import exact
from lalic_kernels.rans import OutputView

if TYPE_CHECKING:
    from lalic.model import LatentCodec


class _Affine(NamedTuple):
    weight: Tensor
    bias: Tensor | None


class FloatEngine:
    """Floating point, differentiable: torch and `lalic_kernels`. Preparing leaves weights as they are."""

    name = "float"

    def prepare_linear(self, weight: Tensor, bias: Tensor | None) -> _Affine:
        return _Affine(weight, bias)

    prepare_conv = prepare_linear

    def prepare_block(self, block: RWKVBlock) -> RWKVBlock:
        return block  # it caches what it derives from its weights

    def prepare_aggregation(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tensors

    def without_inputs(self, aggregation: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return aggregation[0][:, :0], *aggregation[1:]

    def linear(self, x: Tensor, weights: _Affine) -> Tensor:
        return F.linear(x, weights.weight, weights.bias)

    def conv(self, x: Tensor, weights: _Affine) -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), weights.weight, weights.bias, padding=1).permute(0, 2, 3, 1)

    def block(self, x: Tensor, weights: RWKVBlock) -> Tensor:
        return weights(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def aggregation(self, x: Tensor, weights: tuple[Tensor, ...], partial: Tensor | None) -> Tensor:
        return lalic_kernels.entropy_params(x, *weights, partial=partial)  # type: ignore[misc]

    def head(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = full_precision(parameters).chunk(2, dim=2)
        return scales, means


FLOAT = FloatEngine()


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

    def without_inputs(self, aggregation: exact.ExactEntropyParams) -> exact.ExactEntropyParams:
        return aggregation  # `exact.entropy_params` takes inputs of no columns as they are

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
    hyper: tuple[exact.ExactConv | exact.ExactBlock, ...]  # hyper synthesis, in order
    slices: StackWeights

    def hyper_parameters(self, z: Tensor, engine: ExactEngine = EXACT) -> Tensor:
        """Symbols z (B, C, h, w) of any dtype -> hyper parameters (B, M, 4 h, 4 w), channels last."""
        return self._hyper_parameters(z.to(self.medians).permute(0, 2, 3, 1) + self.medians, None, engine)

    def _hyper_parameters(self, x: Tensor, absmax_bits: Tensor | None, engine: ExactEngine) -> Tensor:
        """Hyper latents x (B, h, w, C) -> hyper parameters; absmax_bits: of x, for `exact.SliceKernels.conv`."""
        kernels = exact.slice_kernels(x.device, backend=engine.backend)
        for convolves, group in itertools.groupby(self.hyper, lambda layer: isinstance(layer, exact.ExactConv)):
            layers: list[Any] = list(group)
            if not convolves and kernels is not None:
                x, absmax_bits = kernels.rwkv_blocks(x, layers)
            elif not convolves:
                x = exact.rwkv_blocks(x, layers, backend=engine.backend)
            else:
                for layer in layers:
                    if kernels is not None:
                        x, absmax_bits = kernels.conv(x, layer, absmax_bits=absmax_bits), None
                    else:
                        x = exact.conv(x, layer, backend=engine.backend)
        return x.permute(0, 3, 1, 2)

    def code(self, z: Tensor, coder: PassCoder | GpuRead, engine: ExactEngine = EXACT) -> Tensor:
        """Symbols z (B, C, h, w) -> y_hat (B, M, 4 h, 4 w), channels last, through all slices.

        Raises ValueError if a value is not finite; on a GPU one check at the end covers everything.
        """
        with exact.one_check(z.device, backend=engine.backend):
            return self._code(self.hyper_parameters(z, engine), coder, engine)

    def code_on_gpu(self, read: Callable[[OutputView], None], size: tuple[int, ...], coder: GpuRead) -> Tensor:
        """`code` with z decoded on the GPU: `read` writes hyper latents of this size, (B, h, w, C), to a view."""
        device = self.medians.device
        kernels = exact.slice_kernels(device)
        with exact.one_check(device):
            absmax = None if kernels is None else kernels.zero_bits(size[0])
            view = OutputView(torch.empty(size, device=device), None, absmax)
            read(view)
            return self._code(self._hyper_parameters(view.image, view.absmax_bits, EXACT), coder, EXACT)

    def _code(self, params: Tensor, coder: PassCoder | GpuRead, engine: ExactEngine) -> Tensor:
        kernels = exact.slice_kernels(params.device, backend=engine.backend)
        if kernels is None:
            return code_slices(SliceState(self.slices, params, engine), coder)
        return code_slices(GpuSliceState(self.slices, params, engine, kernels), coder)

    def digest(self) -> str:
        """Hex SHA-256 of all integers and floats in it, their names, and the version of the arithmetic."""
        digest = hashlib.sha256(f"exact entropy model {exact.VERSION}\n".encode())
        for name, value in _entries("", self):
            part = value.digest() if not isinstance(value, Tensor) else _tensor_digest(value)
            digest.update(f"{name} {part}\n".encode())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> ExactEntropy:
        """A copy on a device."""
        return cast(ExactEntropy, _mapped(self, lambda value: value.to(device)))


def _leaf(value: Any) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "digest") and not isinstance(value, ExactEntropy))


# Names in the digest, which files depend on, of fields that are called otherwise in the code.
_DIGEST_NAMES = {"first_block": "first", "other_blocks": "rest", "to_later_contexts": "spread"}


def _entries(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, tensor or prepared weight) in the order of fields. `anchor_block` is `first_block` again and left out."""
    if value is None or isinstance(value, int):
        return
    if _leaf(value):
        yield name, value
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _entries(f"{name}.{i}", item)
    else:
        for field in fields(value):
            if field.name != "anchor_block":
                entry = _DIGEST_NAMES.get(field.name, field.name)
                yield from _entries(f"{name}.{entry}", getattr(value, field.name))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` with each tensor and prepared weight changed."""
    if value is None or isinstance(value, int):
        return value
    if _leaf(value):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    assert is_dataclass(value) and not isinstance(value, type)
    new = {f.name: _mapped(getattr(value, f.name), change) for f in fields(value) if f.name != "anchor_block"}
    if "first_block" in new:
        new["anchor_block"] = new["first_block"]
    return replace(value, **new)


def _tensor_digest(value: Tensor) -> str:
    return hashlib.sha256(value.cpu().numpy().astype("<f4").tobytes()).hexdigest()


def exact_entropy(latent_codec: LatentCodec) -> ExactEntropy:
    """The exact entropy model of `LALIC.latent_codec`, on its device: cached, and made again when a weight changes.

    Raises `CheckpointError` if a weight is not finite.
    """
    hyper, stack = latent_codec.hyper, latent_codec.y
    quantiles = hyper.entropy_bottleneck.quantiles
    modules = (("hyper", hyper.h_s), ("y", stack))
    named = [(n, p) for top, module in modules for n, p in module.named_parameters(prefix=top)]
    sources = [quantiles, *(p for n, p in named if matters(n))]
    medians = hyper.entropy_bottleneck.medians
    return latent_codec.cache.get("exact", sources, lambda: _make(hyper.h_s, stack, medians()))


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
    stride, padding, output_padding = (
        cast(tuple[int, int], n)[0] for n in (conv.stride, conv.padding, conv.output_padding)
    )
    return exact.prepare_conv(conv.weight, conv.bias, stride, padding, True, output_padding)
