"""LALIC: the whole model, with the published constructor, state dict and methods."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

import lalic_kernels
from lalic import pretrained
from lalic.coder import Coder, Decoded, Stream, coder_for
from lalic.coder.engines import exact_entropy, float_state
from lalic.coder.graphs import LaunchLock
from lalic.coder.host import decode_latents, symbols_of, z_rows
from lalic.coder.schedule import Estimate, Read, code_slices
from lalic.coder.stream import as_bitstream_errors
from lalic.coder.tables import bottleneck_cdfs, gaussian_tables
from lalic.config import DEFAULT_QUALITY, FULL, Config
from lalic.errors import BitstreamError, CheckpointError, QualityError
from lalic.nn import checkpoints
from lalic.nn.blocks import RWKVBlock
from lalic.nn.bottleneck import EntropyBottleneck
from lalic.nn.context import SliceStack, full_precision, narrowed_for
from lalic.nn.gains import Gains, as_number, as_qualities
from lalic.nn.noise import ALL, Share
from lalic.nn.transforms import Float32, analysis, dtype_of, hyper_analysis, hyper_synthesis, narrowed, synthesis
from lalic_kernels import exact, rans
from lalic_kernels.cache import ModuleCache, WeightCache, named_weights
from lalic_kernels.layers import derived
from lalic_kernels.plain import PlainLayers


class _Hyper(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.entropy_bottleneck = EntropyBottleneck(c.dims[5])
        self.h_a = hyper_analysis(c)
        self.h_s = hyper_synthesis(c)


class LatentCodec(nn.Module):
    """The entropy model, under the published names: hyper transforms, prior and slices."""

    def __init__(self, c: Config):
        super().__init__()
        self.cache = WeightCache()  # the exact entropy model
        self.plain = PlainLayers()
        self.y = SliceStack(c)
        self.hyper = _Hyper(c)

    def __getitem__(self, name: str) -> nn.Module:
        """The parts "y" (slices) and "hyper", as the published class has them."""
        if name not in ("y", "hyper"):
            raise KeyError(f'latent_codec: expected "y" or "hyper", got {name!r}')
        return self.y if name == "y" else self.hyper

    def forward(self, y: Tensor, z: Tensor | None = None, share: Share = ALL) -> dict[str, Any]:
        """Gained latents y (B, M, h, w) -> ``{"likelihoods": {"y", "z"}, "y_hat"}``, as the published method.

        z: hyper latents (B, C, h / 4, w / 4) that are computed already. share: this process's part of the batch.
        """
        z = self.hyper.h_a(narrowed_for(_a_weight(self.hyper.h_a), y)) if z is None else z
        z_hat, z_likelihoods = self.hyper.entropy_bottleneck(full_precision(z), share)
        coder = Estimate(y, self.y.groups, self.training, share)
        y_hat = code_slices(float_state(self.y, self.hyper_parameters(z_hat)), coder)
        return {"likelihoods": {"y": coder.likelihoods(), "z": z_likelihoods}, "y_hat": y_hat}

    def hyper_parameters(self, z_hat: Tensor) -> Tensor:
        """Rounded hyper latents (B, C, h / 4, w / 4) -> hyper parameters (B, hyper_width, h, w), in floating point."""
        return self.hyper.h_s(_channels_last(narrowed_for(_a_weight(self.hyper.h_s), z_hat)))


class LALIC(nn.Module):
    """Linear Attention Modeling for Learned Image Compression (Feng et al., CVPR 2025).

    Args:
        N: half of the smallest width inside the entropy-parameter networks.
        M: latent channels, equal to ``dims[3]``.
        dims, depths: six numbers of channels, four numbers of RWKV blocks (`lalic.config.Config`).
        groups: latent channels of each slice; ``None``: 16, 16, 32, 64 and the rest, as published.
        use_ckpt: keep only the input of each RWKV block in training, and compute the rest again in the backward pass.
        context_depth, context_rate: blocks of a channel context, and their hidden width in multiples of their own.
        context_width: channels of the hyper parameters and inside the channel contexts; 0: M, as published.
        kernels: sides of the convolutions of g_a, and of g_s in reverse order.
        aggregation_widths: inner widths of the entropy-parameter networks; (): as published.
        qualities: anchors of the gains; 0: a model of one quality, as published.

    Coding (`compress`, `encode` and their inverses) computes the entropy model in exact arithmetic, so symbols do not
    depend on the machine; `forward` and training compute it in floating point. The attribute ``entropy`` is "exact", or
    "float" to measure the cost of exact arithmetic. Only files of an exact model are portable.

    Pictures are (B, 3, H, W) float in [0, 1] with H and W multiples of 64. A bad configuration raises ``ValueError``.

    The argument ``quality`` of a model with gains (`lalic.nn.gains`) is a number in [1, 100], or a tensor (B,) with one
    for each picture; ``None`` is the attribute ``default_quality``, 50. Decoding needs the quality of encoding.
    ``QualityError`` is raised for other numbers, and by a model without gains for anything but ``None``.

    The argument ``graph`` is for a model on a GPU: True to capture the launches as a CUDA graph, False to launch one by
    one, ``None`` for the value of the attribute ``graphs``; if that is ``None`` too, a graph is captured at the second
    picture of a size (docs/gpu.md). On other devices True raises ``ValueError``.
    """

    downsampling = 64  # pixels a side for one hyper latent

    # Tensors made in torch.inference_mode have no version, so that nothing computed from them could be kept.
    @torch.inference_mode(mode=False)
    def __init__(
        self,
        N: int = FULL.N,
        M: int = FULL.M,
        dims: Sequence[int] = FULL.dims,
        depths: Sequence[int] = FULL.depths,
        groups: Sequence[int] | None = None,
        use_ckpt: bool = False,
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
        self.config = Config(
            "custom", N, M, tuple(dims), tuple(depths), tuple(groups), context_depth, context_rate, qualities,
            context_width, tuple(kernels), tuple(aggregation_widths),
        ).named()  # fmt: skip
        self.g_a = analysis(self.config)
        self.g_s = synthesis(self.config)
        self.latent_codec = LatentCodec(self.config)
        self.h_a = self.latent_codec.hyper.h_a  # the published state dict has these two twice
        self.h_s = self.latent_codec.hyper.h_s
        self.gains = Gains(M, qualities) if qualities else None
        for module in self.modules():
            if isinstance(module, RWKVBlock):
                module.with_ckpt = use_ckpt
        # DistributedDataParallel reads this name: it would wait for gradients that never come.
        self._ddp_params_and_buffers_to_ignore = derived(self)
        self.precision = "float32"
        self.entropy = "exact"
        self.default_quality = DEFAULT_QUALITY
        self.share = ALL  # this process's part of a batch in training
        self.graphs: bool | None = None
        self.cache = WeightCache()  # tables, transforms in low precision
        self.coding = ModuleCache(checkpoints.matters)  # of all weights: graphs that encode
        self.decoding = ModuleCache(_decodes)  # of those that decoding depends on: graphs that decode, the hash
        self.launch_lock = LaunchLock()

    # Weights

    @classmethod
    def from_config(cls, config: Config) -> LALIC:
        """A model of this configuration with random weights, in training mode."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(config) if f.name != "name"})

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], strict: bool = True) -> LALIC:
        """A model ready to code, in eval mode. The configuration follows from the shapes of the tensors.

        Takes wrappers and key names of published files, and converted checkpoints. strict: False takes a state dict
        with keys too many or too few, if it has those that the configuration follows from; what is missing starts at
        random. Raises ``CheckpointError`` if it is no LALIC state dict, or a converted one with another entropy model
        than its digest names.
        """
        sd = checkpoints.normalise(state_dict)
        # In float32 whatever the program's default is; and on the CPU where that is the device without memory.
        meta = torch.get_default_device().type == "meta"
        with torch.device("cpu") if meta else nullcontext(), checkpoints.Uninitialised() if strict else nullcontext():
            model = cls.from_config(checkpoints.infer_config(sd)).float()
        checkpoints.load_into(model, sd, strict)
        model.update()
        expected = checkpoints.unwrap(state_dict).get(checkpoints.DIGEST)
        if expected is not None:
            digest = exact_entropy(model.latent_codec).digest()
            if not isinstance(expected, Tensor) or bytes(expected.tolist()).hex() != digest:
                raise CheckpointError(
                    f"the file's integer weights give an entropy model with digest {digest[:16]}..., not the one that "
                    f"it names: it is damaged, or was converted for other arithmetic than version {exact.VERSION}"
                )
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> LALIC:
        """A model ready to code, in eval mode, from a folder of `save_pretrained` or from the Hugging Face Hub.

        options: revision, token, cache_dir, force_download, local_files_only, as in huggingface_hub. `lalic.load` takes
        files too. Raises ``CheckpointError`` if there is no such model, or one of the Hub needs the package.
        """
        return cls.from_state_dict(pretrained.read(pretrained_model_name_or_path, **options))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> str | None:
        """Write weights, configuration and a model card into a folder; options as in huggingface_hub's mixin."""
        return pretrained.save(self, save_directory, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Put the folder of `save_pretrained` on the Hugging Face Hub; options as in huggingface_hub's mixin.

        Returns the address. Raises ``CheckpointError`` if the Hub does not take it.
        """
        return pretrained.push(self, repo_id, **options)

    @torch.inference_mode(mode=False)
    def _apply(self, fn: Any, recurse: bool = True) -> LALIC:
        """What `to`, `half`, `cuda` and others call; for `inference_mode` see the constructor."""
        return super()._apply(fn, recurse)

    def converted(self) -> dict[str, Tensor]:
        """State dict with the matrices of the entropy model as integers, for `from_state_dict`.

        It gives a model with the same hash and the same symbols. Raises ``ValueError`` before ``update()``.
        """
        self.prior_tables()
        return checkpoints.convert(self, exact_entropy(self.latent_codec).digest())

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """``torch.nn.Module.load_state_dict`` that also takes published key names, and resizes the coding tables."""
        given = checkpoints.normalise(state_dict)
        sd = checkpoints.complete(given, self)
        for name, buffer in list(self.named_buffers()):
            if name.rsplit(".", 1)[-1] in checkpoints.TABLE_BUFFERS and name in sd:
                buffer.resize_(sd[name].shape)
        result = super().load_state_dict(sd, strict=strict, assign=assign)
        if (
            not strict
        ):  # as of a plain module: safetensors.torch.load_model counts the second names that a file leaves out
            result.missing_keys.extend(checkpoints.second_names(checkpoints.unwrap(state_dict)))
        return result

    def update(self, scale_table: Any = None, force: bool = False, update_quantiles: bool = False) -> bool:
        """Make the integer coding tables of z from the trained prior. Returns whether they were made.

        Existing tables, such as those of a checkpoint, stay unless ``force``. update_quantiles: search the prior's
        quantiles first, where training has left them short. The tables of y are constant data: ``scale_table`` exists
        for published scripts, and ``ValueError`` is raised for another table than `lalic_kernels.scale_table`.
        """
        if scale_table is not None:
            given, frozen = torch.as_tensor(scale_table, dtype=torch.float32, device="cpu"), lalic_kernels.scale_table()
            if given.shape != frozen.shape or not torch.allclose(given, frozen):
                raise ValueError(
                    "scale_table: expected None or the default table, as Gaussian tables are frozen; got another one"
                )
        prior = self.prior
        if prior.tables()[0].numel() and not force:
            return False
        if update_quantiles:
            prior.search_quantiles()
        # On the CPU for any model's device, as devices differ in the last bit.
        with torch.device("cpu"):
            on_cpu = EntropyBottleneck(prior.channels).float()
            empty = {name: torch.empty(0) for name in checkpoints.PRIOR_TABLES}
        on_cpu.load_state_dict({**prior.state_dict(), **empty})
        prior.set_tables(*bottleneck_cdfs(on_cpu.logits_cumulative, on_cpu.quantiles))
        return True

    def aux_loss(self) -> Tensor:
        """Loss that trains the prior's quantiles only, a scalar."""
        return self.prior.auxiliary_loss()

    def weights_hash(self) -> bytes:
        """8 bytes, written to every file, that identify the weights that decoding depends on.

        They cover the version of the arithmetic, the integer weights of the entropy model, the coding tables of z and
        y, the inverse gains and the synthesis transform; not what only an encoder runs. With `entropy` set to "float"
        they differ, and neither model reads the other's files.
        """
        return self.decoding.look(self).get(("hash", self.entropy), self._hash_weights)

    def _hash_weights(self) -> bytes:
        plain: list[tuple[str, Tensor]] = [*self.g_s.named_parameters(prefix="g_s")]
        if self.gains is not None:
            plain.append(("gains.log_inverses", self.gains.log_inverses))
        plain += [(name, getattr(self.prior, name)) for name in checkpoints.PRIOR_TABLES]
        entropy: list[tuple[str, Tensor]] = [*self.latent_codec.y.named_parameters()]
        entropy += [*self.h_s.named_parameters(prefix="hyper"), ("quantiles", self.prior.quantiles)]
        digest = hashlib.sha256(f"lalic weights 1 {self.entropy} {exact.VERSION}\n".encode())
        digest.update(gaussian_tables().digest())
        if self.entropy == "exact":
            digest.update(exact_entropy(self.latent_codec).digest().encode())
        for name, value in plain if self.entropy == "exact" else [*plain, *entropy]:
            if checkpoints.matters(name):
                t = value.detach().cpu().contiguous()
                digest.update(f"{name} {t.dtype} {tuple(t.shape)}\n".encode())
                digest.update(t.flatten().view(torch.uint8).numpy().data)
        return digest.digest()[:8]

    def set_precision(self, precision: str) -> LALIC:
        """Compute g_a, h_a and g_s in "float32", "bfloat16" or "float16" if there are no gradients. Returns the model.

        Pictures and rates change a little, the meaning of a file does not (`lalic.nn.transforms`). Raises
        ``ValueError`` for another name.
        """
        dtype_of(precision)
        self.precision = precision
        return self

    # Tensors to tensors

    def forward(self, x: Tensor, quality: float | Tensor | None = None) -> dict[str, Any]:
        """x (B, 3, H, W) -> ``{"x_hat", "likelihoods": {"y", "z"}}``, as the published method.

        x_hat (B, 3, H, W) is not clamped; likelihoods are (B, M, H / 16, W / 16) and (B, C, H / 64, W / 64), at least
        float32. In training mode noise replaces rounding for the likelihoods. Rounding of what x_hat is made of passes
        gradients on, in training and evaluation mode.
        """
        self.check_picture(x)
        qualities = self.as_qualities(quality, x.shape[0])
        y = self.gain(self._transform("g_a", _channels_last(x)), qualities)
        coded = self.latent_codec(y, self._transform("h_a", y), self.share)
        return {"x_hat": self.synthesise(coded["y_hat"], qualities), "likelihoods": coded["likelihoods"]}

    @torch.no_grad()
    def latents(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> y (B, M, H / 16, W / 16), before gains and rounding: equal for every quality."""
        self.check_picture(x)
        return self._transform("g_a", _channels_last(x))

    # Tensors to bytes

    @torch.no_grad()
    def encode(self, x: Tensor, quality: float | None = None, *, graph: bool | None = None) -> Stream:
        """The stream of one picture x (1, 3, H, W), as files have it: all symbols in one rANS stream.

        On a GPU symbols are coded on the device, to the same bytes. Raises ``LalicError`` for a picture that cannot be
        coded with these weights.
        """
        _check_one(x)
        self.check_picture(x)
        if x.is_cpu:  # elsewhere it would wait for the device
            _check_values(x)
        return self.coder(graph).encode(x, quality)

    @torch.no_grad()
    def encode_latents(self, y: Tensor, quality: float | None = None, *, graph: bool | None = None) -> Stream:
        """The stream of one picture, from its `latents` y (1, M, H / 16, W / 16)."""
        _check_one(y)
        return self.coder(graph).encode_latents(y, quality)

    @torch.no_grad()
    def decode(
        self, stream: Stream, height: int, width: int, quality: float | None = None, *, graph: bool | None = None
    ) -> Tensor:
        """Inverse of `encode`: x_hat (1, 3, height, width) clamped to [0, 1].

        Raises ``BitstreamError`` if the stream is malformed or the symbols are not the encoder's; it never returns a
        wrong picture. On a GPU errors are checked once, when the picture is done.
        """
        (result,) = self.decode_batch([stream], height, width, [quality], graph=graph)
        if isinstance(result, BitstreamError):
            raise result
        return result

    @torch.no_grad()
    def decode_batch(
        self,
        streams: Sequence[Stream],
        height: int,
        width: int,
        qualities: Sequence[float | None],
        *,
        graph: bool | None = None,
    ) -> list[Tensor | BitstreamError]:
        """Decode several pictures of one size: a list with each picture, or the error of its stream.

        On a GPU the launches of one picture decode all of them. Raises ``ValueError`` for lists of different lengths.
        """
        if len(streams) != len(qualities):
            raise ValueError(
                f"streams, qualities: expected lists of one length, got {len(streams)} and {len(qualities)}"
            )
        size = self._hyper_size(height, width)
        return self.coder(graph).decode(streams, size, qualities)

    @torch.no_grad()
    def read(self, stream: Stream, height: int, width: int) -> Decoded:
        """Decode a stream without the synthesis transform; in exact arithmetic to the same bits on every machine.

        Raises ``BitstreamError`` like `decode`.
        """
        return coder_for(self).read(stream, self._hyper_size(height, width))

    @torch.no_grad()
    def compress(self, x: Tensor, quality: float | Tensor | None = None) -> dict[str, Any]:
        """x (B, 3, H, W) -> ``{"strings", "shape", "y_hat"}``, as the published method.

        ``strings`` is a list of 2 * slices + 1 lists (anchors and others of each slice, then z) of one ``bytes`` a
        picture; ``shape`` is ``{"y": [(g, h, w), ...], "hyper": (h / 4, w / 4)}``; y_hat is (B, M, h, w). Each string
        is a rANS stream of its own; `encode` makes the smaller streams of files.
        """
        self.check_picture(x)
        _check_values(x)
        z, passes, y_hat = symbols_of(self, self.latents(x), quality)
        tables = [gaussian_tables()] * len(passes) + [self.prior_tables()]
        strings = [
            [rans.encode([pair], table) for pair in zip(*section, strict=True)]
            for section, table in zip([*passes, z], tables, strict=True)
        ]
        h, w = y_hat.shape[2:]
        shape = {"y": [torch.Size((g, h, w)) for g in self.config.groups], "hyper": torch.Size((h // 4, w // 4))}
        return {"strings": strings, "shape": shape, "y_hat": y_hat}

    @torch.no_grad()
    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Mapping[str, Any], quality: float | Tensor | None = None
    ) -> dict[str, Tensor]:
        """Inverse of `compress`: ``{"x_hat": (B, 3, H, W)}`` clamped to [0, 1]. Raises ``BitstreamError``."""
        y_hat = self.decode_strings(strings, shape)
        return {"x_hat": self.synthesise(y_hat, self.as_qualities(quality, y_hat.shape[0])).clamp_(0, 1)}

    @torch.no_grad()
    def decode_strings(self, strings: Sequence[Sequence[bytes]], shape: Mapping[str, Any]) -> Tensor:
        """Decode ``strings`` of `compress` to y_hat (B, M, h, w), equal to the encoder's. Raises ``BitstreamError``."""
        count = 2 * len(self.config.groups) + 1
        if len(strings) != count or len({len(s) for s in strings}) != 1 or not strings[0]:
            raise ValueError(f"strings: expected {count} lists of one bytes a picture, got {[len(s) for s in strings]}")
        size, channels = tuple(int(n) for n in shape["hyper"]), self.config.dims[5]

        def read(number: int, indexes: Tensor) -> Tensor:
            table = gaussian_tables() if number < count - 1 else self.prior_tables()
            rows = []
            for data, row in zip(strings[number], indexes, strict=True):
                decoder = rans.Decoder(data, table)
                rows.append(torch.from_numpy(decoder.decode(row)))
                decoder.finish()
            return torch.stack(rows)

        with as_bitstream_errors(self.entropy):
            batch = len(strings[0])
            z = read(count - 1, z_rows(channels, math.prod(size)).expand(batch, -1))
            return decode_latents(self, z.reshape(batch, channels, *size).to(self.medians), Read(read))

    def prior_tables(self) -> rans.CodingTables:
        """Coding tables of z, one row for each channel. Raises ``ValueError`` before ``update()``."""
        buffers = self._table_buffers()
        return self.cache.get("z tables", buffers, lambda: rans.CodingTables(*(x.cpu().numpy() for x in buffers)))

    def tables(self) -> rans.CodingTables:
        """Coding tables of a file's stream: Gaussian rows, then z's. Raises ``ValueError`` before ``update()``."""
        buffers = self._table_buffers()
        return self.cache.get("tables", buffers, lambda: gaussian_tables().concat(self.prior_tables()))

    def _table_buffers(self) -> list[Tensor]:
        tables = self.prior.tables()
        if tables[0].numel() == 0:
            raise ValueError("the model has no coding tables yet: call update() after training or loading weights")
        return tables

    def coder(self, graph: bool | None = None) -> Coder:
        """The steps of coding by themselves, as pictures in several tiles need them. Without gradients."""
        return coder_for(self, self.graphs if graph is None else graph)

    def _hyper_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the hyper latents of a picture."""
        step = self.downsampling
        if min(height, width) < step or height % step or width % step:
            raise ValueError(f"height, width: expected positive multiples of {step}, got {height}, {width}")
        return height // step, width // step

    # Steps of encoding and decoding

    def __getitem__(self, name: str) -> nn.Module:
        """The parts "y" and "hyper" of the entropy model, as the published class has them."""
        return self.latent_codec[name]

    @property
    def groups(self) -> list[int]:
        """Latent channels of each slice."""
        return list(self.config.groups)

    @property
    def prior(self) -> EntropyBottleneck:
        """The factorised prior of the hyper latents."""
        return self.latent_codec.hyper.entropy_bottleneck

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.prior.quantiles.device

    @property
    def medians(self) -> Tensor:
        """Medians of the hyper latents' distributions, (1, C, 1, 1), at least float32."""
        return self.prior.medians().reshape(1, -1, 1, 1)

    def hyper_latents(self, y: Tensor) -> Tensor:
        """Gained latents (B, M, h, w) -> hyper latents (B, C, h / 4, w / 4), not rounded."""
        return self._transform("h_a", y)

    def gain(self, y: Tensor, qualities: Tensor | None) -> Tensor:
        """Latents y (B, M, h, w) -> gained latents, which are coded. qualities: from `as_qualities`."""
        if self.gains is None:
            return y
        assert qualities is not None
        return self.gains.gain(y, qualities)

    def synthesise(self, y_hat: Tensor, qualities: Tensor | None) -> Tensor:
        """Decoded latents (B, M, h, w) -> pictures (B, 3, H, W), not clamped. qualities: from `as_qualities`."""
        if self.gains is not None:
            assert qualities is not None
            y_hat = self.gains.inverse(y_hat, qualities)
        return self._transform("g_s", y_hat)

    def as_qualities(self, quality: float | Sequence[float | None] | Tensor | None, batch: int) -> Tensor | None:
        """Checked qualities (batch,) float32, on the CPU or a given tensor's device; None for a model without gains.

        quality: one for all pictures, or one for each; ``None`` is `default_quality`. Raises ``QualityError``.
        """
        values: Any = quality if isinstance(quality, list | tuple) else [quality]
        if self.gains is None:
            for value in values:
                if value is not None:
                    given, name = as_number(value), self.config.name
                    raise QualityError(
                        f"quality is {given:g}, expected none: the model {name!r} was trained for one quality"
                    )
            return None
        if isinstance(quality, Tensor):
            return as_qualities(quality, batch)
        return as_qualities([self.default_quality if q is None else as_number(q) for q in values], batch)

    def check_picture(self, x: Tensor) -> None:
        """Raise ``ValueError`` unless x is (B, 3, H, W) floating point, with H and W multiples of 64."""
        step = self.downsampling
        if x.ndim != 4 or x.shape[1] != 3 or x.shape[2] % step or x.shape[3] % step or x.numel() == 0:
            raise ValueError(
                f"x: expected (B, 3, H, W) with H and W positive multiples of {step}, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"x: expected a floating dtype with values in [0, 1], got {x.dtype}")

    def _transform(self, name: str, x: Tensor) -> Tensor:
        """g_a, h_a or g_s of x, without gradients in the model's precision; a model in 16 bits computes in its own."""
        transform, dtype = getattr(self, name), dtype_of(self.precision)
        x = narrowed_for(_a_weight(transform), x)
        if dtype == torch.float32 or x.dtype != torch.float32 or torch.is_grad_enabled():
            with Float32() if _wants_float32(x) else nullcontext():
                return transform(x)
        return narrowed(self.cache, name, transform, x, dtype)


def _a_weight(transform: nn.Module) -> Tensor:
    compiling = torch.compiler.is_compiling()
    return next(transform.parameters()) if compiling else next(named_weights(transform))[1]


def _check_values(x: Tensor) -> None:
    """Raise ``ValueError`` for values that are not of a picture in [0, 1], which may overshoot a little."""
    low, high = (float(value) for value in x.aminmax())
    if low < -0.5 or high > 1.5:  # not for NaN, which gives latents that cannot be coded
        raise ValueError(f"x: expected values in [0, 1], got {low:g} to {high:g}")


def _wants_float32(x: Tensor) -> bool:
    """Whether torch might use TF32 for what shall be float32: on a GPU, when it is not training."""
    return x.is_cuda and x.dtype == torch.float32 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _decodes(name: str) -> bool:
    """Whether decoding can depend on the module, parameter or buffer of this name."""
    return checkpoints.matters(name) and not f"{name}.".startswith(("g_a.", "latent_codec.hyper.h_a."))


def _check_one(x: Tensor) -> None:
    if x.shape[0] != 1:
        raise ValueError(f"x: expected one picture, a batch of 1, got {x.shape[0]}")


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
