"""Layers on the fused ops, with the parameter names of published code: their state dicts load unchanged.

    block = RWKVBlock(96)
    y = block(image)                # (B, H, W, C)
    y = block(tokens, (H, W))       # (B, H * W, C), pixels in row-major order

`form` says whose layer it is:

    "lalic"    LALIC (RwkvCompress). Names decay, boost; a 5x5 shift. All of a block is `lalic_kernels.rwkv_block`.
    "restore"  Restore-RWKV. Names spatial_decay, spatial_first, of shape (2, C): a second BiWKV takes the first one's
               result column by column. A 5x5 shift.
    "vision"   Vision-RWKV (vrwkv.py). Names spatial_decay, spatial_first; in place of the 5x5 shift a quarter of the
               channels comes from each neighbour, mixed in by spatial_mix_k, spatial_mix_v and spatial_mix_r.

Decays are the model's: they are divided by the number of tokens here. Weights start as torch's layers do, decays as in
the published code of LALIC and Restore-RWKV; Vision-RWKV's initialisation by depth is its own code's work.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lalic_kernels.biwkv.op import biwkv
from lalic_kernels.block.op import BlockParameters, rwkv_block
from lalic_kernels.cache import WeightCache, named_weights
from lalic_kernels.mix.op import channel_mix, spatial_mix
from lalic_kernels.plain import PlainLayers, plain
from lalic_kernels.shift.op import fold_token_shift, norm_shift, token_shift

__all__ = ["BiWKVAttention", "ChannelMix", "OmniShift", "RWKVBlock"]

Form = Literal["lalic", "restore", "vision"]
Resolution = tuple[int, int]


def _as_image(layer: nn.Module, x: Tensor, resolution: Resolution | None) -> Tensor:
    """x as (B, H, W, C). Raises ``ValueError`` for tokens without a resolution, or with one that does not fit."""
    name = type(layer).__name__
    if x.ndim == 4:
        if resolution is not None and tuple(resolution) != tuple(x.shape[1:3]):
            raise ValueError(f"{name}: resolution is {tuple(resolution)}, but x has shape {tuple(x.shape)}")
        return x
    if x.ndim != 3:
        raise ValueError(f"{name}: x must be (B, H, W, C), or (B, T, C) with a resolution, but is {tuple(x.shape)}")
    if resolution is None:
        raise ValueError(f"{name}: resolution must be (H, W) beside x of shape (B, T, C), but is None")
    height, width = resolution
    if height * width != x.shape[1]:
        raise ValueError(f"{name}: resolution is {(height, width)}, but x has {x.shape[1]} tokens")
    return x.unflatten(1, (height, width))


def _like(x: Tensor, image: Tensor) -> Tensor:
    """The result (B, H, W, C) in x's form."""
    return image if x.ndim == 4 else image.flatten(1, 2)


def _check_form(name: str, form: str) -> None:
    if form not in ("lalic", "restore", "vision"):
        raise ValueError(f'{name}: form must be "lalic", "restore" or "vision", but is {form!r}')


class _DepthwiseWeight(nn.Module):
    """One depth-wise kernel under the published name ``<branch>.weight``, shape (C, 1, K, K)."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        # The published model leaves these to Conv2d's default initialisation; fan-in is K * K.
        conv = nn.Conv2d(dim, dim, kernel, groups=dim, bias=False)
        self.weight = nn.Parameter(conv.weight.detach().clone())

    def forward(self) -> Tensor:
        """The weight: called so that hooks, such as those of torch's pruning, see to it first."""
        return self.weight


class OmniShift(nn.Module):
    """5x5 depth-wise token shift: four branches (identity, 1x1, 3x3, 5x5) folded into one kernel.

    The fold is differentiable and made at every call, so training runs one convolution in place of three, and the
    result never depends on ``conv5x5_reparam.weight``. That parameter is only there because the published state dict
    and optimisers have it: it never gets a gradient, and a state dict has the folded kernel under it.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.randn(4))
        self.conv1x1 = _DepthwiseWeight(dim, 1)
        self.conv3x3 = _DepthwiseWeight(dim, 3)
        self.conv5x5 = _DepthwiseWeight(dim, 5)
        self.conv5x5_reparam = _DepthwiseWeight(dim, 5)
        self.register_state_dict_pre_hook(_store_folded_kernel)

    def kernel(self) -> Tensor:
        """The folded kernel, shape (C, 5, 5)."""
        return fold_token_shift(self.alpha, self.conv1x1(), self.conv3x3(), self.conv5x5())

    def forward(self, x: Tensor, resolution: Resolution | None = None) -> Tensor:
        """x (B, H, W, C), or (B, T, C) with its resolution (H, W) -> the same shape."""
        return _like(x, token_shift(_as_image(self, x, resolution), self.kernel()))


def _store_folded_kernel(module: OmniShift, prefix: str, keep_vars: bool) -> None:
    with torch.no_grad():
        module.conv5x5_reparam.weight.copy_(module.kernel().unsqueeze(1))


def derived(module: nn.Module) -> list[str]:
    """Names of the module's parameters that never get a gradient, because they follow from others."""
    return [name for name, _ in module.named_parameters() if name.endswith("conv5x5_reparam.weight")]


def _neighbours(x: Tensor) -> Tensor:
    """Vision-RWKV's shift of x (B, H, W, C): a quarter of the channels from the pixel left, right, above and below.

    Zero outside the image.
    """
    left, right, above, below = x.tensor_split([x.shape[3] * i // 4 for i in (1, 2, 3)], dim=3)
    pad = nn.functional.pad
    moved = (
        pad(left, (0, 0, 1, 0))[:, :, :-1],
        pad(right, (0, 0, 0, 1))[:, :, 1:],
        pad(above, (0, 0, 0, 0, 1, 0))[:, :-1],
        pad(below, (0, 0, 0, 0, 0, 1))[:, 1:],
    )
    return torch.cat(moved, dim=3)


class BiWKVAttention(nn.Module):
    """Attention half of a block: shift, key, value and receptance, bidirectional WKV, output product.

    Args:
        dim: channels C.
        form: whose layer (the module's docstring).
        key_norm: a LayerNorm of BiWKV's result, under the published name ``key_norm``; form "vision" only.
    """

    spatial_mix_k: Tensor
    spatial_mix_v: Tensor
    spatial_mix_r: Tensor

    def __init__(self, dim: int, form: Form = "lalic", *, key_norm: bool = False):
        super().__init__()
        _check_form("BiWKVAttention", form)
        if key_norm and form != "vision":
            raise ValueError(f'BiWKVAttention: key_norm is of form "vision", but form is {form!r}')
        self.form = form
        if form == "lalic":
            self.decay = nn.Parameter(torch.randn(dim))
            self.boost = nn.Parameter(torch.randn(dim))
        elif form == "restore":
            self.spatial_decay = nn.Parameter(torch.randn(2, dim))
            self.spatial_first = nn.Parameter(torch.randn(2, dim))
        else:
            self.spatial_decay = nn.Parameter(torch.ones(dim))
            self.spatial_first = nn.Parameter(torch.ones(dim))
            for name in ("spatial_mix_k", "spatial_mix_v", "spatial_mix_r"):
                self.register_parameter(name, nn.Parameter(torch.full((1, 1, dim), 0.5)))
        if form != "vision":
            self.omni_shift = OmniShift(dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.key_norm = nn.LayerNorm(dim) if key_norm else None
        self.output = nn.Linear(dim, dim, bias=False)
        self._plain = PlainLayers()

    def forward(self, x: Tensor, resolution: Resolution | None = None) -> Tensor:
        """x (B, H, W, C), or (B, T, C) with its resolution (H, W) -> the same shape."""
        image = _as_image(self, x, resolution)
        if self.form == "vision":
            return _like(x, self._vision(image))
        s = self.omni_shift(image)
        if self.form == "restore":
            return _like(x, self._restore(s))
        if not plain(self._plain, self):
            w, u = (_a_token(p, image) for p in (self.decay, self.boost))
            k, v, r = (layer(s).flatten(1, 2) for layer in (self.key, self.value, self.receptance))
            return _like(x, self.output(biwkv(w, u, k, v, gate=r)).unflatten(1, image.shape[1:3]))
        matrices = self.key.weight, self.value.weight, self.receptance.weight, self.output.weight
        return _like(x, spatial_mix(s, self.decay, self.boost, *matrices))

    def _restore(self, s: Tensor) -> Tensor:
        (w, w_columns), (u, u_columns) = (_a_token(p, s) for p in (self.spatial_decay, self.spatial_first))
        k, v, r = self.key(s), self.value(s), self.receptance(s)
        v = biwkv(w, u, k.flatten(1, 2), v.flatten(1, 2)).view(v.shape)
        columns = [t.transpose(1, 2).flatten(1, 2) for t in (k, v)]
        y = biwkv(w_columns, u_columns, *columns, gate=r.transpose(1, 2).flatten(1, 2))
        return self.output(y.unflatten(1, (s.shape[2], s.shape[1])).transpose(1, 2)).contiguous()

    def _vision(self, image: Tensor) -> Tensor:
        moved = _neighbours(image)
        mixes = (self.spatial_mix_k, self.spatial_mix_v, self.spatial_mix_r)
        layers = (self.key, self.value, self.receptance)
        k, v, r = (layer(_between(moved, image, m)).flatten(1, 2) for layer, m in zip(layers, mixes, strict=True))
        w, u = (_a_token(p, image) for p in (self.spatial_decay, self.spatial_first))
        y = biwkv(w, u, k, v, gate=r if self.key_norm is None else None)
        y = y if self.key_norm is None else torch.sigmoid(r) * self.key_norm(y)
        return self.output(y).unflatten(1, image.shape[1:3])


def _between(moved: Tensor, image: Tensor, share: Tensor) -> Tensor:
    """Vision-RWKV's mix of both images, `share` (1, 1, C) being that of `image`; in 16 bits if all three are."""
    wide = torch.promote_types(image.dtype, share.dtype)
    return moved.to(wide).lerp(image.to(wide), share)


def _a_token(parameter: Tensor, image: Tensor) -> Tensor:
    """A decay as `lalic_kernels.biwkv` takes it: divided by the number of tokens, which 16 bits would not hold."""
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.to(wide) / max(image.shape[1] * image.shape[2], 1)


class ChannelMix(nn.Module):
    """Feed-forward half of a block: shift, squared ReLU, gate.

    Args:
        dim: channels C.
        hidden_rate: width of the hidden layer in multiples of C.
        form: whose layer (the module's docstring); "lalic" and "restore" are the same.
        key_norm: a LayerNorm of the hidden layer, under the published name ``key_norm``; form "vision" only.
    """

    def __init__(self, dim: int, hidden_rate: float = 4, form: Form = "lalic", *, key_norm: bool = False):
        super().__init__()
        _check_form("ChannelMix", form)
        if key_norm and form != "vision":
            raise ValueError(f'ChannelMix: key_norm is of form "vision", but form is {form!r}')
        self.form, hidden = form, int(hidden_rate * dim)
        if form == "vision":
            self.spatial_mix_k = nn.Parameter(torch.full((1, 1, dim), 0.5))
            self.spatial_mix_r = nn.Parameter(torch.full((1, 1, dim), 0.5))
        elif form == "lalic":
            self.omni_shift = OmniShift(dim)
        self.key = nn.Linear(dim, hidden, bias=False)
        if form == "restore":  # in the published order, which optimisers' states depend on
            self.omni_shift = OmniShift(dim)
        self.key_norm = nn.LayerNorm(hidden) if key_norm else None
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)
        self._plain = PlainLayers()

    def forward(self, x: Tensor, resolution: Resolution | None = None) -> Tensor:
        """x (B, H, W, C), or (B, T, C) with its resolution (H, W) -> the same shape."""
        image = _as_image(self, x, resolution)
        if self.form == "vision":
            moved = _neighbours(image)
            k = torch.relu(self.key(_between(moved, image, self.spatial_mix_k))).square()
            k = k if self.key_norm is None else self.key_norm(k)
            gate = torch.sigmoid(self.receptance(_between(moved, image, self.spatial_mix_r)))
            return _like(x, gate * self.value(k))
        s = self.omni_shift(image)
        if not plain(self._plain, self):
            return _like(x, torch.sigmoid(self.receptance(s)) * self.value(torch.relu(self.key(s)).square()))
        return _like(x, channel_mix(s, self.key.weight, self.receptance.weight, self.value.weight))


def _norm_shift(x: Tensor, norm: nn.LayerNorm, shift: OmniShift) -> Tensor:
    return norm_shift(x, norm.weight, norm.bias, shift.kernel(), eps=norm.eps)


class RWKVBlock(nn.Module):
    """x + gamma1 * BiWKVAttention(LN(x)), then x + gamma2 * ChannelMix(LN(x)).

    Args:
        dim: channels C.
        hidden_rate: width of the channel mix's hidden layer in multiples of C.
        form: whose block (the module's docstring).
        with_ckpt: in training keep the input alone and compute the rest again in the backward pass.
        first, layer_scale, post_norm, key_norm: of form "vision". A LayerNorm before all, as a model's first block has;
            the value of gammas at the start, None for no gammas; LayerNorms after the halves; LayerNorms inside them.
            Stochastic depth is left out.
    """

    gamma1: Tensor
    gamma2: Tensor

    def __init__(
        self,
        dim: int,
        hidden_rate: float = 4,
        form: Form = "lalic",
        with_ckpt: bool = False,
        *,
        first: bool = False,
        layer_scale: float | None = None,
        post_norm: bool = False,
        key_norm: bool = False,
    ):
        super().__init__()
        _check_form("RWKVBlock", form)
        if form != "vision" and (first or post_norm or layer_scale is not None):
            raise ValueError(f'RWKVBlock: first, layer_scale and post_norm are of form "vision", but form is {form!r}')
        self.form, self.with_ckpt, self.post_norm = form, with_ckpt, post_norm
        scale = 1.0 if form != "vision" else layer_scale
        for name in ("gamma1", "gamma2"):
            self.register_parameter(name, None if scale is None else nn.Parameter(torch.full((dim,), scale)))
        self.ln1 = nn.LayerNorm(dim)
        self.ln2 = nn.LayerNorm(dim)
        self.ln0 = nn.LayerNorm(dim) if first else None
        self.att = BiWKVAttention(dim, form, key_norm=key_norm)
        self.ffn = ChannelMix(dim, hidden_rate, form, key_norm=key_norm)
        self._cache = WeightCache()
        self._plain = PlainLayers()

    def forward(self, x: Tensor, resolution: Resolution | None = None) -> Tensor:
        """x (B, H, W, C), or (B, T, C) with its resolution (H, W) -> the same shape."""
        image = _as_image(self, x, resolution)
        if self.with_ckpt and image.requires_grad:
            result: Tensor = checkpoint(self._forward, image, use_reentrant=False)
        else:
            result = self._forward(image)
        return _like(x, result)

    def _forward(self, x: Tensor) -> Tensor:
        fused = self.form != "vision" and plain(self._plain, self)
        if fused and self.form == "lalic":
            return rwkv_block(x, self.block_parameters())
        if fused:
            att, ffn = self.att, self.ffn
            x = x + self.gamma1 * att._restore(_norm_shift(x, self.ln1, att.omni_shift))
            matrices = ffn.key.weight, ffn.receptance.weight, ffn.value.weight
            return channel_mix(_norm_shift(x, self.ln2, ffn.omni_shift), *matrices, residual=x, gamma=self.gamma2)
        x = x if self.ln0 is None else self.ln0(x)
        for half, norm, gamma in ((self.att, self.ln1, self.gamma1), (self.ffn, self.ln2, self.gamma2)):
            y = norm(half(x)) if self.post_norm else half(norm(x))
            x = x + (y if gamma is None else gamma * y)
        return x

    def block_parameters(self) -> BlockParameters:
        """The parameters as `lalic_kernels.rwkv_block` takes them; form "lalic" only.

        With gradients the shifts are folded at every call. Without, they are folded once and cached until a parameter
        changes.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self._gather()
        parameters = [p for name, p in named_weights(self) if "conv5x5_reparam" not in name]
        if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
            return self._gather()
        return self._cache.get("parameters", parameters, self._gather)

    def _gather(self) -> BlockParameters:
        att, ffn = self.att, self.ffn
        return BlockParameters(
            norm1_weight=self.ln1.weight, norm1_bias=self.ln1.bias, shift1=att.omni_shift.kernel(),
            decay=att.decay, boost=att.boost, key=att.key.weight, value=att.value.weight,
            receptance=att.receptance.weight, output=att.output.weight, gamma1=self.gamma1,
            norm2_weight=self.ln2.weight, norm2_bias=self.ln2.bias, shift2=ffn.omni_shift.kernel(),
            channel_key=ffn.key.weight, channel_receptance=ffn.receptance.weight, channel_value=ffn.value.weight,
            gamma2=self.gamma2, eps=self.ln1.eps,
        )  # fmt: skip
