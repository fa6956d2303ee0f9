"""Coding on a GPU, pictures to bytes and back. docs/gpu.md explains it in full.

Decoding waits for the device once, when the pictures are done. Several pictures of one padded size are decoded by the
launches of one. At the second request of a size the launches are captured as a CUDA graph (`lalic.coder.graphs`).

Encoding launches everything from the picture, or its latents, to symbols; this part can be captured. Then the entropy
coder of `lalic_kernels.rans.gpu` makes the bytes, the same as on a CPU. It reads numbers back from the device, so it is
not part of a graph.

A large picture is coded in tiles. Its windows are of one size, so transforms of several at once are one graph, and so
is the decoding of the latents of several tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lalic.coder import host
from lalic.coder.engines import exact_entropy
from lalic.coder.graphs import Graph, GraphCache, settings
from lalic.coder.schedule import Collect, GpuRead, check_magnitudes
from lalic.coder.stream import Decoded, Stream, as_bitstream_errors, check_symbols, checksum_of, joined_sums
from lalic.coder.tables import gaussian_tables
from lalic.errors import BitstreamError, LalicError
from lalic_kernels import exact
from lalic_kernels.cache import ModuleCache, ModuleWeights, tensors_of
from lalic_kernels.rans import CodingTables, OutputView, symbol_checksum
from lalic_kernels.rans import gpu as rans_gpu
from lalic_kernels.rans.gpu import DeviceDecoder, ReadStream

if TYPE_CHECKING:
    from lalic.model import LALIC

MAX_GRAPH_PIXELS = 1 << 22  # of a batch; in larger ones kernels take longer than launches, and a graph gains nothing
_GROUP_WORDS = 4096  # capacity of a graph in words a group; the entropy coder writes about 1050
_GROUPS = (4, 16, 64, 256, 1024)  # capacities in groups: few, so that few graphs serve all streams


class Decoding(NamedTuple):
    """Decoded pictures x (B, 3, H, W) or latents (B, M, h, w), for each its fault and checksums (of z, of all symbols).

    finite: whether all values of the whole batch were finite.
    """

    x: Tensor
    faults: list[ValueError | None]
    sums: list[list[int]]
    finite: bool


class Encoding(NamedTuple):
    """Symbols of one picture and what is needed to check them, on the device.

    sections: (symbols, table rows) of z and of each pass, each (n,) int32. absmax: largest magnitudes of z, of y and of
    each pass's symbols. sums: checksums of z and of all symbols, (2,) int64. statuses: from `exact.statuses`.
    """

    sections: list[tuple[Tensor, Tensor]]
    absmax: Tensor
    sums: Tensor
    statuses: list[Tensor]


class GpuCoder:
    """The `lalic.coder.Coder` that codes symbols on the model's GPU.

    graph: True for a CUDA graph, False for launches one by one, None for a graph from the second picture of a size on.
    With True, calls raise ``ValueError`` if no graph is possible, `GraphError` if the capture fails.
    """

    def __init__(self, model: LALIC, graph: bool | None = None):
        self.model, self.graph = model, graph

    # Encoding

    def encode(self, x: Tensor, quality: float | None) -> Stream:
        """The stream of one picture x (1, 3, H, W)."""
        self.model.check_picture(x)
        return self._encode(x, True, quality)

    def encode_latents(self, y: Tensor, quality: float | None) -> Stream:
        """The stream of a picture's latents y (1, M, h, w), before gains."""
        return self._encode(y, False, quality)

    def _encode(self, x: Tensor, analyse: bool, quality: float | None) -> Stream:
        model = self.model
        if model.entropy != "exact":
            self._graphs(model.coding, 1, (1, 1))  # raises if a graph was asked for
            coder = host.HostCoder(model)
            return coder.encode(x, quality) if analyse else coder.encode_latents(x, quality)
        qualities = model.as_qualities([quality], 1)
        step = model.downsampling if analyse else model.downsampling // 16
        size = (x.shape[2] // step, x.shape[3] // step)
        key = ("encode", analyse, size, x.dtype)
        graphs = self._graphs(model.coding, 1, size)
        rows = z_rows(model.config.dims[5], size[0] * size[1], x.device)
        return self._run(
            graphs, key, x, qualities, lambda x, qualities: _launch_encoding(model, x, analyse, qualities, rows),
            functools.partial(_finish_encoding, model.tables()), [rows],
        )  # fmt: skip

    # Transforms alone

    def latents(self, x: Tensor) -> Tensor:
        """y (B, M, H / 16, W / 16) of pictures x (B, 3, H, W), before gains."""
        model = self.model
        model.check_picture(x)
        return self._transform(model.coding, "latents", x, None, lambda x, _: model.latents(x))

    def synthesise(self, y_hat: Tensor, qualities: Tensor | None) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of decoded latents y_hat (B, M, h, w). qualities: from `as_qualities`."""
        model = self.model
        return self._transform(
            model.decoding, "synthesise", y_hat, qualities, lambda y, q: model.synthesise(y, q).clamp_(0, 1)
        )

    def _transform(
        self,
        cache: ModuleCache,
        name: str,
        x: Tensor,
        qualities: Tensor | None,
        launch: Callable[[Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        step = self.model.downsampling // (1 if name == "latents" else 16)
        graphs = self._graphs(cache, x.shape[0], (x.shape[2] // step, x.shape[3] // step))
        return self._run(graphs, (name, x.shape, x.dtype), x, qualities, launch, _copied, [])

    def _run(
        self,
        graphs: GraphCache | None,
        key: tuple[Hashable, ...],
        x: Tensor,
        qualities: Tensor | None,
        launch: Callable[[Tensor, Tensor | None], Any],
        finish: Callable[[Any], Any],
        held: list[Tensor],
    ) -> Any:
        """`finish(launch(x, qualities))`, launched by a graph if there is one. Arguments as of `_InputGraph`."""
        captured = self._captured(graphs, key, lambda: _InputGraph(self.model, x, qualities, launch, finish, held))
        if captured is not None:
            return captured(x, qualities)
        with self.model.launch_lock:
            launched = launch(x, _to_device(qualities, x.device))
        return finish(launched)

    # Decoding

    def decode(
        self, streams: Sequence[Stream], size: tuple[int, int], qualities: Sequence[float | None]
    ) -> list[Tensor | BitstreamError]:
        """Pictures (1, 3, H, W) in [0, 1] of one size; for a damaged stream its error. size: of hyper latents."""
        return self._decoded(streams, size, self.model.as_qualities(qualities, len(streams)), pixels=True)

    def read_latents(self, streams: Sequence[Stream], size: tuple[int, int]) -> list[Tensor | BitstreamError]:
        """y_hat (1, M, h, w) of tiles of one size; for a damaged stream its error. size: of hyper latents."""
        return self._decoded(streams, size, None, pixels=False)

    def _decoded(
        self, streams: Sequence[Stream], size: tuple[int, int], qualities: Tensor | None, pixels: bool
    ) -> list[Tensor | BitstreamError]:
        """Pictures, or latents without the synthesis transform."""
        model = self.model
        graphs = self._graphs(model.decoding, len(streams), size)
        results: list[Any] = [None] * len(streams)
        data: dict[int, ReadStream] = {}  # streams whose header is sound
        for i, stream in enumerate(streams):
            try:
                with as_bitstream_errors(model.entropy):
                    data[i] = rans_gpu.read(stream.data)
            except BitstreamError as error:
                results[i] = error
        if not data:
            return results
        sound = qualities
        if qualities is not None and len(data) < len(streams):
            sound = qualities[list(data)]
        batch = self._decode([*data.values()], size, sound, graphs, pixels)
        if not batch.finite and len(data) > 1:  # decode one by one to see which stream it was
            plain = GpuCoder(model, False)
            for i in data:
                one = None if qualities is None else qualities[i : i + 1]
                (results[i],) = plain._decoded([streams[i]], size, one, pixels)
            return results
        for i, x, fault, sums in zip(data, batch.x.split(1), batch.faults, batch.sums, strict=True):
            if fault is None and not batch.finite:
                fault = exact.NotFinite()
            try:
                with as_bitstream_errors(model.entropy):
                    if fault is not None:
                        raise fault
                check_symbols(joined_sums(*sums), streams[i], model.entropy)
                results[i] = x
            except BitstreamError as error:
                results[i] = error
        return results

    def read(self, stream: Stream, size: tuple[int, int]) -> Decoded:
        """Decode without the synthesis transform. Raises ``BitstreamError``. size: of hyper latents."""
        model = self.model
        with as_bitstream_errors(model.entropy):
            decoder = DeviceDecoder(stream.data, model.tables(), model.device)
            rows = z_rows(model.config.dims[5], size[0] * size[1], model.device)
            with model.launch_lock:
                y_hat = decode_latents(model, decoder, size, rows)
            decoder.finish()
        z, *passes = [section[0].cpu() for section in decoder.symbols()]
        symbols = torch.cat([z, *passes])
        check_symbols(checksum_of(z, symbols), stream, model.entropy)
        return Decoded(y_hat, symbols)

    def _decode(
        self,
        data: list[ReadStream],
        size: tuple[int, int],
        qualities: Tensor | None,
        graphs: GraphCache | None,
        pixels: bool,
    ) -> Decoding:
        model, device = self.model, self.model.device
        capacity = _capacity([rans_gpu.capacity_of(stream) for stream in data])
        captured = self._captured(
            graphs, ("decode", pixels, len(data), size, capacity),
            lambda: _DecodeGraph(model, data, size, qualities, capacity, pixels),
        )  # fmt: skip
        if captured is not None:
            return captured(data, qualities)
        decoder = DeviceDecoder(data, model.tables(), device)
        rows = z_rows(model.config.dims[5], size[0] * size[1], device)
        with model.launch_lock:
            x, statuses = _launch_decoding(model, decoder, size, rows, _to_device(qualities, device), pixels)
        return _finish_decoding(x, decoder, statuses)

    # Graphs

    def _graphs(self, cache: ModuleCache, batch: int, size: tuple[int, int]) -> GraphCache | None:
        """The graphs of the weights as they are, or None to launch one by one. Raises if a graph cannot be had."""
        if self.graph is False:
            return None
        weights = cache.look(self.model)
        problem = why_no_graph(self.model, batch, size, weights)
        if self.graph and problem:
            raise ValueError(f"graph: expected None or False, because {problem}")
        return None if problem else weights.get("graphs", GraphCache)

    def _captured(
        self, graphs: GraphCache | None, key: tuple[Hashable, ...], capture: Callable[[], Graph]
    ) -> Callable[..., Any] | None:
        """The graph of these launches, or None to launch one by one. graphs: from `_graphs`."""
        if graphs is None:
            return None
        model = self.model
        return graphs.get((*key, model.precision, model.device, settings()), model.device, capture, self.graph)


def why_no_graph(model: LALIC, batch: int, size: tuple[int, int], weights: ModuleWeights | None = None) -> str:
    """Why launches of this size cannot be captured; empty if they can.

    size: of hyper latents. weights: of the last look at the model; None to look now.
    """
    if model.entropy != "exact":
        return "the entropy model is computed in floating point"
    if model.precision == "float16":
        return "float16 has to be checked before its result can be used"
    pixels = batch * size[0] * size[1] * model.downsampling**2
    if pixels > MAX_GRAPH_PIXELS:
        return f"{pixels} pixels are more than {MAX_GRAPH_PIXELS}, where a graph gains nothing"
    if torch.is_autocast_enabled(model.device.type):
        return "torch.autocast is on, which frees its copies of weights when it ends"
    if not (weights or model.coding.look(model)).tracked:
        return "weights made in torch.inference_mode do not record when they change"
    return ""


def _capacity(heads: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The smallest capacity (groups, words) of a few that takes streams of these (groups, words)."""
    least = max(max(groups, -(-words // _GROUP_WORDS)) for groups, words in heads)
    groups = next((number for number in _GROUPS if number >= least), least)
    return min(groups, _GROUPS[-1]), groups * _GROUP_WORDS


def _to_device(qualities: Tensor | None, device: torch.device) -> Tensor | None:
    return None if qualities is None else qualities.to(device, non_blocking=True)


@functools.lru_cache(maxsize=32)
def z_rows(channels: int, positions: int, device: torch.device) -> Tensor:
    """Rows of `LALIC.tables` for z's symbols, (channels * positions,) int32, cached on the device."""
    with torch.inference_mode(False):
        return (host.z_rows(channels, positions) + gaussian_tables().rows).to(device)


def launch_once(model: LALIC, x: Tensor, streams: Sequence[Stream], size: tuple[int, int]) -> None:
    """Make the launches of an encode of x and of a decode of streams, and look at nothing. size: of hyper latents."""
    qualities = _to_device(model.as_qualities(None, len(streams)), model.device)
    rows = z_rows(model.config.dims[5], size[0] * size[1], model.device)
    with model.launch_lock:
        _launch_encoding(model, x, True, qualities, rows)
        decoder = DeviceDecoder([stream.data for stream in streams], model.tables(), model.device)
        _launch_decoding(model, decoder, size, rows, qualities)


# Decoding: launches, and the check after them


class _DecodeGraph(Graph):
    """The captured launches of one decode; call it with the same number of other streams of this size.

    Fixed in memory: the decoder's buffers, the qualities, the results.
    """

    def __init__(
        self,
        model: LALIC,
        data: list[ReadStream],
        size: tuple[int, int],
        qualities: Tensor | None,
        capacity: tuple[int, int],
        pixels: bool,
    ) -> None:
        device = model.device
        with torch.inference_mode(False), torch.no_grad():
            self._qualities = None if qualities is None else torch.empty(len(data), device=device, dtype=torch.float32)
            self._decoder = DeviceDecoder(data, model.tables(), device, capacity)
        rows = z_rows(model.config.dims[5], size[0] * size[1], device)
        with model.launch_lock:
            self.capture(
                device,
                lambda: self._write(data, qualities),
                lambda: _launch_decoding(model, self._decoder, size, rows, self._qualities, pixels),
                lambda: [rows, *tensors_of(model)],
            )
        buffers = [value for value in vars(self._decoder).values() if isinstance(value, Tensor)]
        self.bytes += sum(x.untyped_storage().nbytes() for x in buffers)

    def _write(self, data: list[ReadStream], qualities: Tensor | None) -> None:
        self._decoder.load(data)
        if self._qualities is not None and qualities is not None:
            self._qualities.copy_(qualities, non_blocking=True)

    def __call__(self, data: list[ReadStream], qualities: Tensor | None) -> Decoding:
        with self.lock, torch.cuda.device(self.device):
            self._write(data, qualities)
            self.run()
            x, statuses = self.results
            return _finish_decoding(x.clone(), self._decoder, statuses)  # the next run overwrites x


def _launch_decoding(
    model: LALIC,
    decoder: DeviceDecoder,
    size: tuple[int, int],
    rows: Tensor,
    qualities: Tensor | None,
    pixels: bool = True,
) -> tuple[Tensor, list[Tensor]]:
    """Launch everything of a decode -> pictures (B, 3, H, W) or latents, and statuses from `exact.statuses`."""
    with exact.statuses(model.device) as statuses:
        x = decode_latents(model, decoder, size, rows)
        if pixels:
            x = model.synthesise(x, qualities).clamp_(0, 1)
    return x, statuses


def decode_latents(model: LALIC, decoder: DeviceDecoder, size: tuple[int, int], rows: Tensor) -> Tensor:
    """y_hat (B, M, 4 h, 4 w) of a decoder's streams. The caller checks the decoder for faults afterwards."""
    batch, channels, device = decoder.sums().shape[0], model.config.dims[5], model.device
    coder = GpuRead(decoder.decode_parameters)
    if model.entropy != "exact":
        z = decoder.decode(rows).reshape(batch, channels, *size).to(model.medians)
        return host.decode_latents(model, z, coder)
    entropy, kernels = exact_entropy(model.latent_codec), exact.slice_kernels(device)
    with exact.one_check(device):
        absmax_bits = None if kernels is None else kernels.zero_bits(batch)
        view = OutputView(torch.empty((batch, *size, channels), device=device, dtype=torch.float32), None, absmax_bits)
        decoder.decode_channels(rows, entropy.medians, view)
        return entropy.code_hyper(view.image, coder, absmax_bits=absmax_bits)


def _finish_decoding(x: Tensor, decoder: DeviceDecoder, statuses: list[Tensor]) -> Decoding:
    """Wait for the device and collect faults and checksums."""
    faults = decoder.faults()
    return Decoding(x, faults, decoder.sums().tolist(), not any(int(status) for status in statuses))


# Encoding, and transforms alone


class _InputGraph(Graph):
    """The captured launches of `launch(x, qualities)`; call it with others of these shapes, for what `finish` returns.

    finish: makes the result of what was launched, and waits for the device: the next run overwrites it. held: tensors
    that the launches read, beside the model's.
    """

    def __init__(
        self,
        model: LALIC,
        x: Tensor,
        qualities: Tensor | None,
        launch: Callable[[Tensor, Tensor | None], Any],
        finish: Callable[[Any], Any],
        held: list[Tensor],
    ) -> None:
        device = x.device
        with torch.inference_mode(False):
            self._x = torch.empty(x.shape, dtype=x.dtype, device=device)
            self._qualities = (
                None if qualities is None else torch.empty(qualities.shape, device=device, dtype=torch.float32)
            )
        self._finish = finish  # and neither `launch` nor the model, which has this graph in its cache
        with model.launch_lock:
            self.capture(
                device,
                lambda: self._write(x, qualities),
                lambda: launch(self._x, self._qualities),
                lambda: [*held, *tensors_of(model)],
            )
        self.bytes += self._x.untyped_storage().nbytes()

    def _write(self, x: Tensor, qualities: Tensor | None) -> None:
        self._x.copy_(x)
        if self._qualities is not None and qualities is not None:
            self._qualities.copy_(qualities, non_blocking=True)

    def __call__(self, x: Tensor, qualities: Tensor | None) -> Any:
        with self.lock, torch.cuda.device(self.device):
            self._write(x, qualities)
            self.run()
            return self._finish(self.results)


def _copied(x: Tensor) -> Tensor:
    copy = x.clone()
    torch.cuda.current_stream(x.device).synchronize()
    return copy


def _launch_encoding(model: LALIC, x: Tensor, analyse: bool, qualities: Tensor | None, rows: Tensor) -> Encoding:
    """Launch everything from a picture, or its latents, to symbols."""
    with exact.statuses(x.device) as statuses:
        y = model.gain(model.latents(x) if analyse else x, qualities)
        z = torch.round(model.hyper_latents(y) - model.medians)
        coder = Collect(y, model.config.groups)
        exact_entropy(model.latent_codec).code(z, coder)
        z_symbols = z.flatten(1).to(torch.int32)
        sections = [(z_symbols[0], rows), *((symbols[0], y_rows[0]) for symbols, y_rows in coder.sections)]
        all_symbols = torch.cat([symbols for symbols, _ in sections])[None]
        sums = torch.cat((symbol_checksum(z_symbols), symbol_checksum(all_symbols)))
        absmax = torch.stack((z.abs().amax(), y.abs().amax().to(z), *(each.to(z) for each in coder.absmax)))
    return Encoding(sections, absmax, sums, statuses)


def _finish_encoding(tables: CodingTables, launched: Encoding) -> Stream:
    """Wait for the device, check the symbols, and entropy-code them."""
    absmax = launched.absmax.cpu()
    check_magnitudes("z", absmax[0])
    check_magnitudes("y", absmax[1:])
    if any(int(status) for status in launched.statuses):
        raise LalicError("the picture cannot be coded with these weights: an intermediate value is not finite")
    return Stream(rans_gpu.encode(launched.sections, tables), joined_sums(*launched.sums.tolist()))
