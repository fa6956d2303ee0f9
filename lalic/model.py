"""LALIC: the whole model, with the published constructor, state dict and methods."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lalic.coder.coding import Coding
from lalic.coder.exact import exact_entropy
from lalic.coder.graphs import Launching
from lalic.coder.slices import Estimate, code_slices
from lalic.coder.tables import bottleneck_cdfs, gaussian_tables
from lalic.config import DEFAULT_QUALITY, FULL, Config
from lalic.errors import CheckpointError
from lalic.nn import checkpoints, integers
from lalic.nn.bottleneck import EntropyBottleneck
from lalic.nn.context import SliceStack, full_precision
from lalic.nn.gains import Gains, as_qualities, checked_quality
from lalic.nn.noise import ALL
from lalic.nn.precision import dtype_of, narrowed
from lalic.nn.transforms import analysis, hyper_analysis, hyper_synthesis, synthesis
from lalic_kernels import exact
from lalic_kernels.cache import WeightCache


class _Hyper(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(c.dims[5])
        self.h_a = hyper_analysis(c)
        self.h_s = hyper_synthesis(c)


class _LatentCodec(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.cache = WeightCache()  # the exact entropy model
        self.y = SliceStack(c)
        self.hyper = _Hyper(c)


class LALIC(Coding):
    """Linear Attention Modeling for Learned Image Compression (Feng et al., CVPR 2025).

    Args:
        N: half the least width inside the entropy-parameter networks.
        M: latent channels, equal to ``dims[3]``.
        dims: six channel counts; depths: four block counts; see `lalic.config.Config`.
        groups: latent channels of each slice; ``None`` is the published 16, 16, 32, 64 and the rest.
        context_depth, context_rate: blocks of a channel context and their hidden rate (published: 2 and 8).
        context_width: channels of the hyper parameters and inside the channel contexts; 0, as published, is M.
        kernels: sides of the convolutions of g_a, and of g_s in reverse; aggregation_widths: inner widths of the
            entropy-parameter networks, () as published.
        qualities: anchors of the gains; 0, as published, is a model of one quality.

    Coding (`compress`, `decompress` and the sections) computes the entropy model in exact arithmetic, so that symbols
    do not depend on the machine; `forward` and training compute it in floating point. ``entropy`` says so: "exact", or
    "float" for measuring what the exact one costs. Only an exact model's files are portable.

    Pictures are (B, 3, H, W) float in [0, 1] with H and W multiples of 64. A bad configuration raises ``ValueError``.

    ``quality``, where a method takes it, is a number in [1, 100], or a tensor (B,) with one for each picture, if the
    model has gains (`lalic.nn.gains`); ``None`` is 50 there. Decoding must be told what coding was. A model without
    gains raises ``ValueError`` for anything but ``None``.
    """

    def __init__(
        self,
        N: int = FULL.N,
        M: int = FULL.M,
        dims: Sequence[int] = FULL.dims,
        depths: Sequence[int] = FULL.depths,
        groups: Sequence[int] | None = None,
        *,
        context_depth: int = 2,
        context_rate: int = 8,
        qualities: int = 0,
        context_width: int = 0,
        kernels: Sequence[int] = FULL.kernels,
        aggregation_widths: Sequence[int] = (),
    ):
        super().__init__()
        groups = (16, 16, 32, 64, M - 128) if groups is None else groups
        shape = {
            "N": N, "M": M, "dims": tuple(dims), "depths": tuple(depths), "groups": tuple(groups),
            "context_depth": context_depth, "context_rate": context_rate, "qualities": qualities,
            "context_width": context_width, "kernels": tuple(kernels), "aggregation_widths": tuple(aggregation_widths),
        }  # fmt: skip
        self.config = Config(name="custom", **shape).named()  # type: ignore[arg-type]
        self.g_a = analysis(self.config)
        self.g_s = synthesis(self.config)
        self.latent_codec = _LatentCodec(self.config)
        self.h_a = self.latent_codec.hyper.h_a  # the published state dict holds these two twice
        self.h_s = self.latent_codec.hyper.h_s
        self.gains = Gains(M, qualities) if qualities else None
        self.precision = "float32"
        self.entropy = "exact"
        self.share = ALL  # of a batch that several processes train on
        self.graphs: bool | None = None
        self._cache = WeightCache()
        self._launching = Launching()

    # Weights

    @classmethod
    def from_config(cls, config: Config) -> LALIC:
        """A model of this shape with fresh weights."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"})

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> LALIC:
        """A model ready to code, in eval mode, whose configuration is read off the tensors' shapes.

        Takes the wrappers and key names of published files, and converted ones. Raises ``CheckpointError`` if it is not
        a LALIC state dict, or a converted one whose entropy model is not the one that it names.
        """
        sd = checkpoints.normalise(state_dict)
        model = cls.from_config(checkpoints.infer_config(sd))
        checkpoints.load_into(model, sd)
        model.update()
        named = state_dict.get(checkpoints.DIGEST)
        if named is not None:
            found = exact_entropy(model.latent_codec).digest()
            if not isinstance(named, Tensor) or bytes(named.tolist()).hex() != found:
                raise CheckpointError(
                    f"the file's integer weights give an entropy model with digest {found[:16]}..., not the one that "
                    f"it names: it is damaged, or was converted for other arithmetic than version {exact.VERSION}"
                )
        return model.eval()

    def converted(self) -> dict[str, Tensor]:
        """State dict with the entropy model's matrices as integers (`lalic.nn.integers`); `from_state_dict` takes it.

        The same hash, and the same symbols, as this model. Raises ``ValueError`` before ``update()``.
        """
        self._bottleneck_tables()
        return integers.pack(self, self.config, exact_entropy(self.latent_codec).digest())

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As ``torch.nn.Module.load_state_dict``, taking published key names; coding tables are resized."""
        sd = checkpoints.complete(checkpoints.normalise(state_dict), self)
        for name, buffer in list(self.named_buffers()):
            if name.rsplit(".", 1)[-1] in checkpoints.TABLE_BUFFERS and name in sd:
                buffer.resize_(sd[name].shape)
        return super().load_state_dict(sd, strict=strict, assign=assign)

    def update(self, scale_table: Any = None, force: bool = False) -> bool:
        """Make the integer coding tables of z from the trained prior; true if they were made.

        Tables that a checkpoint brought are kept unless ``force``. The tables of y are frozen data and need no update;
        ``scale_table`` is accepted for the published scripts' sake and must be ``None``.
        """
        if scale_table is not None:
            raise ValueError("scale_table: expected None, the Gaussian tables are frozen; got another table")
        prior = self.latent_codec.hyper.entropy_bottleneck
        if prior._quantized_cdf.numel() and not force:
            return False
        # On the CPU whatever the model's device: tables made twice should not differ in a last bit.
        on_cpu = EntropyBottleneck(prior.channels)
        on_cpu.load_state_dict({**prior.state_dict(), **{n: torch.empty(0) for n in checkpoints.PRIOR_TABLES}})
        cdf, length, offset = bottleneck_cdfs(on_cpu.logits_cumulative, on_cpu.quantiles)
        device = prior.quantiles.device
        prior._quantized_cdf, prior._cdf_length, prior._offset = cdf.to(device), length.to(device), offset.to(device)
        return True

    def aux_loss(self) -> Tensor:
        """Loss that trains the prior's quantiles, and nothing else."""
        return self.latent_codec.hyper.entropy_bottleneck.auxiliary_loss()

    def weights_hash(self) -> bytes:
        """8 bytes that name what decoding depends on; files carry them.

        They cover the arithmetic's version, the integer weights of the entropy model, the coding tables of z and y, the
        inverse gains and the synthesis transform; not what only an encoder runs. With `entropy` set to "float" they
        name another model, which cannot read files of this one, nor this one its.
        """
        prior = self.latent_codec.hyper.entropy_bottleneck
        weights = [*self.latent_codec.y.named_parameters(), *self.h_s.named_parameters(prefix="hyper")]
        synthesis = [*self.g_s.named_parameters(prefix="g_s")]
        if self.gains is not None:
            synthesis.append(("gains.log_inverses", self.gains.log_inverses))
        tables = [(name, getattr(prior, name)) for name in checkpoints.PRIOR_TABLES]
        plain = [(n, t) for n, t in [*synthesis, *tables] if checkpoints.matters(n)]
        named = [(n, t) for n, t in [*weights, ("quantiles", prior.quantiles)] if checkpoints.matters(n)]

        def make() -> bytes:
            digest = hashlib.sha256(f"lalic weights 1 {self.entropy} {exact.VERSION}\n".encode())
            digest.update(gaussian_tables().digest())
            if self.entropy == "exact":
                digest.update(exact_entropy(self.latent_codec).digest().encode())
            for name, value in plain if self.entropy == "exact" else [*plain, *named]:
                t = value.detach().cpu().contiguous()
                digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
                digest.update(t.flatten().view(torch.uint8).numpy())
            return digest.digest()[:8]

        return self._cache.get("hash", [t for _, t in [*plain, *named]], make, self.entropy)

    def set_precision(self, precision: str) -> LALIC:
        """Let g_a, h_a and g_s compute in "float32", "bfloat16" or "float16" where no gradients are asked for.

        Pictures and rates change a little, the meaning of a file does not (`lalic.nn.precision`). Returns the model.
        """
        dtype_of(precision)
        self.precision = precision
        return self

    # Tensors to tensors

    def forward(self, x: Tensor, quality: float | Tensor | None = None) -> dict[str, Any]:
        """x (B, 3, H, W) -> ``{"x_hat": (B, 3, H, W), "likelihoods": {"y", "z"}}``; x_hat is not clamped."""
        self._check_picture(x)
        y = self._gained(self._transform("g_a", _channels_last(x)), quality)
        hyper = self.latent_codec.hyper
        z_hat, z_likelihoods = hyper.entropy_bottleneck(full_precision(self._transform("h_a", y)), self.share)
        coder = Estimate(y, self.config.groups, self.training, self.share)
        y_hat = code_slices(self.latent_codec.y, hyper.h_s(_channels_last(z_hat)), coder)
        x_hat = self._synthesise(y_hat, quality)
        return {"x_hat": x_hat, "likelihoods": {"y": coder.likelihoods(), "z": z_likelihoods}}

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> y (B, M, H / 16, W / 16), before gains and rounding: the same for every quality."""
        self._check_picture(x)
        return self._transform("g_a", _channels_last(x))

    # Shared steps

    def _transform(self, name: str, x: Tensor) -> Tensor:
        """g_a, h_a or g_s of x; without gradients under the model's precision, with them as autocast says."""
        transform, dtype = getattr(self, name), dtype_of(self.precision)
        if dtype == torch.float32 or x.dtype != torch.float32 or torch.is_grad_enabled():
            return transform(x)
        return narrowed(self._cache, name, transform, x, dtype)

    def _hyper_latents(self, y: Tensor) -> Tensor:
        return self._transform("h_a", y)

    def _gained(self, y: Tensor, quality: float | Tensor | None) -> Tensor:
        """Latents as they are coded."""
        return self._gained_at(y, self._qualities(quality, y.shape[0], y.device))

    def _gained_at(self, y: Tensor, qualities: Tensor | None) -> Tensor:
        """`_gained` at what `_qualities` gave."""
        if self.gains is None:
            return y
        assert qualities is not None
        return self.gains.gain(y, qualities)

    def _synthesise(self, y_hat: Tensor, quality: float | Tensor | None) -> Tensor:
        """The picture behind decoded latents, not clamped."""
        return self._synthesise_at(y_hat, self._qualities(quality, y_hat.shape[0], y_hat.device))

    def _synthesise_at(self, y_hat: Tensor, qualities: Tensor | None) -> Tensor:
        """`_synthesise` at what `_qualities` gave."""
        if self.gains is not None:
            assert qualities is not None
            y_hat = self.gains.inverse(y_hat, qualities)
        return self._transform("g_s", y_hat)

    def _qualities(self, quality: float | Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        """(batch,) float32 on the device; None for a model of one quality."""
        if self.gains is None:
            self._check_quality(quality)
            return None
        return as_qualities(DEFAULT_QUALITY if quality is None else quality, batch, device)

    def _levels(self, qualities: Sequence[float | None]) -> Tensor | None:
        """`_qualities` of one number a picture, on the CPU and without a call that a device would count."""
        if self.gains is None:
            for quality in qualities:
                self._check_quality(quality)
            return None
        given = [checked_quality(DEFAULT_QUALITY if quality is None else quality) for quality in qualities]
        return torch.from_numpy(np.array(given, np.float32))

    def _check_quality(self, quality: float | Tensor | None) -> None:
        if quality is not None:
            raise ValueError(f"quality: the model {self.config.name!r} has one quality only, expected None")

    def _check_picture(self, x: Tensor) -> None:
        step = self.downsampling
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % step or x.shape[3] % step or x.numel() == 0:
            raise ValueError(
                f"x: expected (B, 3, H, W) with H and W positive multiples of {step}, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"x: expected a floating dtype with values in [0, 1], got {x.dtype}")


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
