"""LALIC: the whole model, with the published constructor, state dict and methods."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lalic_kernels
from lalic.config import FULL, Config
from lalic.entropy.exact import exact_entropy
from lalic.entropy.slices import Checksum, Collect, Estimate, Read, SliceCoder, check_symbols, code_slices
from lalic.entropy.tables import bottleneck_cdfs, gaussian_tables
from lalic.errors import BitstreamError, CheckpointError, LalicError
from lalic.nn import checkpoints, integers
from lalic.nn.bottleneck import EntropyBottleneck
from lalic.nn.context import SliceStack, full_precision
from lalic.nn.gains import Gains, as_qualities
from lalic.nn.kept import Kept
from lalic.nn.precision import dtype_of, narrowed
from lalic.nn.transforms import analysis, hyper_analysis, hyper_synthesis, synthesis
from lalic_kernels import exact
from lalic_kernels.rans import CodingTables, Decoder, RansError, encode

Sections = list[tuple[Tensor, Tensor]]
DEFAULT_QUALITY = 50.0


@dataclass(frozen=True)
class EncodedSections:
    """One picture's streams, and `Checksum` of all their symbols.

    One stream holds hyper latents and then latents. Two, hyper latents' and latents', are what files of version 1 have.
    """

    streams: tuple[bytes, ...]
    checksum: int


@dataclass(frozen=True)
class DecodedSections:
    """What the symbols of one picture say: y_hat (1, M, h, w), and SHA-256 of the symbols in coding order, z first."""

    y_hat: Tensor
    symbols_sha256: str


class _Hyper(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(c.dims[5])
        self.h_a = hyper_analysis(c)
        self.h_s = hyper_synthesis(c)


class _LatentCodec(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.kept = Kept()  # the exact entropy model
        self.y = SliceStack(c)
        self.hyper = _Hyper(c)


class LALIC(nn.Module):
    """Linear Attention Modeling for Learned Image Compression (Feng et al., CVPR 2025).

    Args:
        N: half the least width inside the entropy-parameter networks.
        M: latent channels, equal to ``dims[3]``.
        dims: six channel counts; depths: four block counts; see `lalic.config.Config`.
        groups: latent channels of each slice; ``None`` is the published 16, 16, 32, 64 and the rest.
        context_depth, context_rate: blocks of a channel context and their hidden rate (published: 2 and 8).
        qualities: anchors of the gains; 0, as published, is a model of one quality.

    Coding (`compress`, `decompress` and the sections) computes the entropy model in exact arithmetic, so that symbols
    do not depend on the machine; `forward` and training compute it in floating point. ``entropy`` says so: "exact", or
    "float" for measuring what the exact one costs. Only an exact model's files are portable.

    Pictures are (B, 3, H, W) float in [0, 1] with H and W multiples of 64. A bad configuration raises ``ValueError``.

    ``quality``, where a method takes it, is a number in [1, 100], or a tensor (B,) with one for each picture, if the
    model has gains (`lalic.nn.gains`); ``None`` is 50 there. Decoding must be told what coding was. A model without
    gains raises ``ValueError`` for anything but ``None``.
    """

    downsampling = 64

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
    ):
        super().__init__()
        groups = (16, 16, 32, 64, M - 128) if groups is None else groups
        shape = {
            "N": N, "M": M, "dims": tuple(dims), "depths": tuple(depths), "groups": tuple(groups),
            "context_depth": context_depth, "context_rate": context_rate, "qualities": qualities,
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
        self._kept = Kept()

    # Weights

    @classmethod
    def from_config(cls, config: Config) -> LALIC:
        """A model of this shape with fresh weights."""
        return cls(
            config.N, config.M, config.dims, config.depths, config.groups,
            context_depth=config.context_depth, context_rate=config.context_rate, qualities=config.qualities,
        )  # fmt: skip

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

        return self._kept.get("hash", [t for _, t in [*plain, *named]], make, self.entropy)

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
        z_hat, z_likelihoods = hyper.entropy_bottleneck(full_precision(self._transform("h_a", y)))
        coder = Estimate(y, self.config.groups, self.training)
        y_hat = code_slices(self.latent_codec.y, hyper.h_s(_channels_last(z_hat)), coder)
        x_hat = self._synthesise(y_hat, quality)
        return {"x_hat": x_hat, "likelihoods": {"y": coder.likelihoods(), "z": z_likelihoods}}

    # Tensors to bytes

    @torch.no_grad()
    def compress(self, x: Tensor, quality: float | Tensor | None = None) -> dict[str, Any]:
        """x (B, 3, H, W) -> ``{"strings", "shape", "y_hat"}``.

        ``strings`` is a list of 2 * slices + 1 lists (each slice's anchors and others, then z) of one ``bytes`` per
        picture; ``shape`` is ``{"y": [(g, h, w), ...], "hyper": (h / 4, w / 4)}``. Each stream stands for itself;
        `encode_sections` makes the smaller streams that files hold.
        """
        y_passes, z_pass, y_hat = self._symbols(x, quality)
        tables = [gaussian_tables()] * len(y_passes) + [self._bottleneck_tables()]
        strings = [
            [encode([(s, i)], table) for s, i in zip(*section, strict=True)]
            for section, table in zip([*y_passes, z_pass], tables, strict=True)
        ]
        h, w = y_hat.shape[2:]
        shape = {"y": [torch.Size((g, h, w)) for g in self.config.groups], "hyper": torch.Size((h // 4, w // 4))}
        return {"strings": strings, "shape": shape, "y_hat": y_hat}

    @torch.no_grad()
    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Mapping[str, Any], quality: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Inverse of `compress`: ``{"x_hat": (B, 3, H, W)}`` clamped to [0, 1]. Raises ``BitstreamError``."""
        return {"x_hat": self._synthesise(self.decode_strings(strings, shape), quality).clamp_(0, 1)}

    @torch.no_grad()
    def decode_strings(self, strings: Sequence[Sequence[bytes]], shape: Mapping[str, Any]) -> Tensor:
        """`decompress` up to y_hat (B, M, h, w), which is the encoder's to the last bit."""
        count = 2 * len(self.config.groups) + 1
        if len(strings) != count or len({len(s) for s in strings}) != 1 or not strings[0]:
            raise ValueError(f"strings: expected {count} lists of one bytes a picture, got {[len(s) for s in strings]}")
        size = tuple(int(n) for n in shape["hyper"])

        def read(number: int, indexes: Tensor) -> Tensor:
            table = gaussian_tables() if number < count - 1 else self._bottleneck_tables()
            rows = []
            for data, row in zip(strings[number], indexes, strict=True):
                decoder = Decoder(data, table)
                rows.append(torch.from_numpy(decoder.decode(row)))
                decoder.finish()
            return torch.stack(rows)

        try:
            z = read(count - 1, self._z_indexes(len(strings[0]), size))
            y_hat = self._decode_latents(z, size, read)
        except RansError as error:
            raise BitstreamError(f"strings: {error}") from error
        return y_hat

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> y (B, M, H / 16, W / 16), before gains and rounding: the same for every quality."""
        self._check_picture(x)
        return self._transform("g_a", _channels_last(x))

    @torch.no_grad()
    def encode_sections(self, x: Tensor, quality: float | None = None) -> EncodedSections:
        """Streams of one picture x (1, 3, H, W), as files hold them: all in one, so lanes are paid for once."""
        return self.encode_latents(self.latents(x), quality)

    @torch.no_grad()
    def encode_latents(self, y: Tensor, quality: float | None = None) -> EncodedSections:
        """`encode_sections` of a picture whose `latents` y (1, M, H / 16, W / 16) are known."""
        if y.shape[0] != 1:
            raise ValueError(f"x: expected one picture, shape (1, 3, H, W), got {y.shape[0]} of them")
        y_passes, z_pass, _ = self._latent_symbols(y, quality)
        checksum = Checksum()
        checksum.add(z_pass[0][0])
        checksum.end_of_z()
        for symbols, _ in y_passes:
            checksum.add(symbols[0])
        z_rows = z_pass[1] + gaussian_tables().rows
        sections = [(s[0], i[0]) for s, i in [(z_pass[0], z_rows), *y_passes]]
        return EncodedSections((encode(sections, self._joined_tables()),), checksum.value)

    @torch.no_grad()
    def decode_sections(
        self, streams: Sequence[bytes], height: int, width: int, checksum: int, quality: float | None = None
    ) -> Tensor:
        """Inverse of `encode_sections`: x_hat (1, 3, height, width) clamped to [0, 1].

        Raises ``BitstreamError`` when a stream is malformed or the symbols are not the encoder's; never returns a wrong
        picture, as the checksum is compared before the synthesis transform runs.
        """
        y_hat = self.read_sections(streams, height, width, checksum).y_hat
        return self._synthesise(y_hat, quality).clamp_(0, 1)

    @torch.no_grad()
    def read_sections(self, streams: Sequence[bytes], height: int, width: int, checksum: int) -> DecodedSections:
        """`decode_sections` without the synthesis transform. With exact arithmetic the same bits on every machine."""
        step = self.downsampling
        if min(height, width) < step or height % step or width % step:
            raise ValueError(f"height, width: expected positive multiples of {step}, got {height}, {width}")
        size = (height // step, width // step)
        found = Checksum()
        try:
            if len(streams) == 1:
                z_decoder = y_decoder = Decoder(streams[0], self._joined_tables())
                z_first = gaussian_tables().rows
            else:
                z_decoder, z_first = Decoder(streams[0], self._bottleneck_tables()), 0
                y_decoder = Decoder(streams[1], gaussian_tables())

            def read(decoder: Decoder, indexes: Tensor) -> Tensor:
                symbols = torch.from_numpy(decoder.decode(indexes[0]))
                found.add(symbols)
                return symbols[None]

            z_symbols = read(z_decoder, self._z_indexes(1, size) + z_first)
            if z_decoder is not y_decoder:
                z_decoder.finish()
            if found.end_of_z() != checksum >> 32:
                raise BitstreamError(
                    f"the decoded symbols of z are not the encoder's (expected checksum {checksum >> 32:04x}): "
                    f"{self._whose_fault()}"
                )
            y_hat = self._decode_latents(z_symbols, size, lambda _, indexes: read(y_decoder, indexes))
            y_decoder.finish()
        except RansError as error:
            raise BitstreamError(f"the symbols cannot be decoded: {error}; {self._whose_fault()}") from error
        if found.value != checksum:
            raise BitstreamError(
                f"the decoded symbols are not the encoder's (checksum {found.value & 0xFFFFFFFF:08x}, expected "
                f"{checksum & 0xFFFFFFFF:08x}): {self._whose_fault()}"
            )
        return DecodedSections(y_hat, found.sha256.hexdigest())

    def _whose_fault(self) -> str:
        if self.entropy == "exact":
            return "the data is damaged, or an encoder or this decoder departs from the exact arithmetic"
        return "the data is damaged, or the floating point of the encoder's machine differs from this one's"

    # Shared steps

    def _transform(self, name: str, x: Tensor) -> Tensor:
        """g_a, h_a or g_s of x; without gradients under the model's precision, with them as autocast says."""
        transform, dtype = getattr(self, name), dtype_of(self.precision)
        if dtype == torch.float32 or x.dtype != torch.float32 or torch.is_grad_enabled():
            return transform(x)
        return narrowed(self._kept, name, transform, x, dtype)

    def _gained(self, y: Tensor, quality: float | Tensor | None) -> Tensor:
        """Latents as they are coded."""
        if self.gains is None:
            self._check_quality(quality)
            return y
        return self.gains.gain(y, as_qualities(DEFAULT_QUALITY if quality is None else quality, y.shape[0], y.device))

    def _synthesise(self, y_hat: Tensor, quality: float | Tensor | None) -> Tensor:
        """The picture behind decoded latents, not clamped."""
        if self.gains is None:
            self._check_quality(quality)
        else:
            given = DEFAULT_QUALITY if quality is None else quality
            y_hat = self.gains.inverse(y_hat, as_qualities(given, y_hat.shape[0], y_hat.device))
        return self._transform("g_s", y_hat)

    def _check_quality(self, quality: float | Tensor | None) -> None:
        if quality is not None:
            raise ValueError(f"quality: the model {self.config.name!r} has one quality only, expected None")

    def _symbols(
        self, x: Tensor, quality: float | Tensor | None = None
    ) -> tuple[Sections, tuple[Tensor, Tensor], Tensor]:
        """(symbols, indexes) of each pass of y and of z, all (B, n) int32, and y_hat."""
        return self._latent_symbols(self.latents(x), quality)

    def _latent_symbols(
        self, y: Tensor, quality: float | Tensor | None
    ) -> tuple[Sections, tuple[Tensor, Tensor], Tensor]:
        prior = self.latent_codec.hyper.entropy_bottleneck
        y = self._gained(y, quality)
        medians = prior.medians().reshape(1, -1, 1, 1)
        z = torch.round(self._transform("h_a", y) - medians)
        check_symbols("z", z)
        check_symbols("y", y)
        coder = Collect(y, self.config.groups, self._scale_index())
        y_hat = self._code(z, coder)
        indexes = self._z_indexes(z.shape[0], (z.shape[2], z.shape[3]))
        return coder.passes, (z.flatten(1).to(torch.int32).cpu(), indexes), y_hat

    def _decode_latents(self, z: Tensor, size: tuple[int, ...], read: Any) -> Tensor:
        symbols = z.reshape(z.shape[0], -1, *size).to(self.latent_codec.hyper.entropy_bottleneck.quantiles)
        try:
            return self._code(symbols, Read(read, self._scale_index()))
        except (LalicError, RansError):
            raise
        except ValueError as error:  # the exact arithmetic's word for what is not finite
            raise BitstreamError(f"the file does not decode with these weights: {error}") from error

    def _code(self, z: Tensor, coder: SliceCoder) -> Tensor:
        """All slices behind z (B, C, h, w), whole numbers: y_hat."""
        if self.entropy == "exact":
            return exact_entropy(self.latent_codec).code(z, coder)
        medians = self.latent_codec.hyper.entropy_bottleneck.medians().reshape(1, -1, 1, 1)
        return code_slices(self.latent_codec.y, self.h_s(_channels_last(z + medians)), coder)

    def _scale_index(self) -> Any:
        if self.entropy not in ("exact", "float"):
            raise ValueError(f'entropy: expected "exact" or "float", got {self.entropy!r}')
        return _exact_index if self.entropy == "exact" else lalic_kernels.scale_index

    def _z_indexes(self, batch: int, size: tuple[int, ...]) -> Tensor:
        """Table row of every z symbol, its channel: (B, C * h * w) int32."""
        channels = torch.arange(self.config.dims[5], dtype=torch.int32)
        return channels.repeat_interleave(size[0] * size[1]).expand(batch, -1)

    def _bottleneck_tables(self) -> CodingTables:
        buffers = self._table_buffers()
        return self._kept.get("z tables", buffers, lambda: CodingTables(*(x.cpu().numpy() for x in buffers)))

    def _joined_tables(self) -> CodingTables:
        """Rows of the Gaussian tables and then z's: those of a stream that holds everything."""

        def make() -> CodingTables:
            return gaussian_tables().concat(self._bottleneck_tables())

        return self._kept.get("tables", self._table_buffers(), make)

    def _table_buffers(self) -> list[Tensor]:
        prior = self.latent_codec.hyper.entropy_bottleneck
        if prior._quantized_cdf.numel() == 0:
            raise ValueError("the model has no coding tables yet: call update() after training or loading weights")
        return [prior._quantized_cdf, prior._cdf_length, prior._offset]

    def _check_picture(self, x: Tensor) -> None:
        step = self.downsampling
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % step or x.shape[3] % step or x.numel() == 0:
            raise ValueError(
                f"x: expected (B, 3, H, W) with H and W positive multiples of {step}, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"x: expected a floating dtype with values in [0, 1], got {x.dtype}")


def _exact_index(scales: Tensor) -> Tensor:
    return exact.scale_index(scales.contiguous())


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
