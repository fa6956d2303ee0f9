"""Decoding on a GPU, bytes to pixels: nothing waits for the device before the pictures are done.

One picture or several of one padded size go together through the launches of one. The launches are made plain, or were
captured as a CUDA graph (`lalic.coder.graphs`) when that size was seen for the second time. docs/gpu-decoder.md is the
whole story.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lalic.coder.decoder import ReadThere
from lalic.coder.exact import exact_entropy
from lalic.coder.graphs import Launches, Shelf, settings, tensors_of
from lalic.coder.tables import gaussian_tables
from lalic.errors import BitstreamError
from lalic_kernels import exact
from lalic_kernels.rans.grouped.op import parts_of

MOST_PIXELS = 1 << 22  # of a batch: beyond, launching takes less time than what is launched
_GROUP_WORDS = 4096  # words a group of a graph's room: the coder itself gives one about 1300
_ROOMS = (4, 16, 64, 256, 1024)  # groups: few sizes, so that few graphs serve all streams

Outcome = tuple[Tensor, list[ValueError | None], list[list[int]], bool]
"""Pictures (B, 3, H, W), and of each its fault and its sums; whether all was finite."""


def pictures(
    model: Any,
    streams: Sequence[bytes],
    size: tuple[int, int],
    device: torch.device,
    checksums: Sequence[int],
    qualities: Sequence[float | None],
    graph: bool | None,
) -> list[Tensor | BitstreamError]:
    """The picture (1, 3, H, W) clamped to [0, 1] behind each stream, or what is wrong with it.

    model: `lalic.coder.coding.Coding`. size: of hyper latents, for all. graph: True for a CUDA graph, False for plain
    launches, None for the rule. Raises ``ValueError`` for a graph where there can be none, `GraphError` if it fails.
    """
    model._levels(qualities)  # raises for one that is none
    problem = why_plain(model, len(streams), size)
    if graph and problem:
        raise ValueError(f"graph: expected None or False, because {problem}")
    if problem:
        graph = False
    heads = [_head(model, stream) for stream in streams]
    good = [i for i, head in enumerate(heads) if not isinstance(head, BitstreamError)]
    found: list[Any] = list(heads)
    if good:
        whole = [streams[i] for i in good]
        levels = model._levels([qualities[i] for i in good])
        room = _room([heads[i] for i in good])
        x, faults, sums, finite = _decoded(model, whole, size, device, levels, room, graph)
        if not finite and len(good) > 1:  # which of them it was, each says for itself
            for i in good:
                found[i] = pictures(model, [streams[i]], size, device, [checksums[i]], [qualities[i]], False)[0]
            return found
        for i, picture, fault, pair in zip(good, x.split(1), faults, sums, strict=True):
            if fault is None and not finite:
                fault = exact.NotFinite("x must be finite in exact arithmetic, but holds an infinity or NaN")
            error = _error(model, fault, pair, checksums[i])
            found[i] = picture if error is None else error
    return found


def _head(model: Any, stream: bytes) -> tuple[int, int] | BitstreamError:
    """Groups and words of a stream, or what is wrong with its header."""
    try:
        with model._named_faults():
            parts = parts_of(stream)
    except BitstreamError as error:
        return error
    return (1, 1) if parts is None else (len(parts.highs), len(parts.words))


def _room(heads: Sequence[Any]) -> tuple[int, int]:
    """Groups and words of the least of few rooms that takes streams with so many."""
    least = max(max(groups, -(-words // _GROUP_WORDS)) for groups, words in heads)
    room = next((number for number in _ROOMS if number >= least), least)
    return min(room, _ROOMS[-1]), room * _GROUP_WORDS


def _decoded(
    model: Any, streams: Sequence[bytes], size: tuple[int, int], device: torch.device, levels: Tensor | None,
    room: tuple[int, int], graph: bool | None,
) -> Outcome:  # fmt: skip
    if graph is not False:
        shelf: Shelf = model._cache.get("graphs", weights_of(model), Shelf)
        key = ("decode", len(streams), size, room, model.precision, device, settings())
        made = shelf.get(key, device, lambda: DecodeGraph(model, streams, size, device, levels, room), graph)
        if made is not None:
            outcome: Outcome = made(streams, levels)
            return outcome
    return _plain(model, streams, size, device, levels)


def why_plain(model: Any, batch: int, size: tuple[int, int]) -> str:
    """Why there can be no graph, or nothing."""
    if model.entropy != "exact":
        return "the entropy model is computed in floating point"
    if model.precision == "float16":
        return "float16 has to be looked at before its result can be used"
    pixels = batch * size[0] * size[1] * model.downsampling**2
    if pixels > MOST_PIXELS:
        return f"{pixels} pixels are more than the {MOST_PIXELS} that a graph pays for"
    if any(t.is_inference() for t in weights_of(model)):
        return "weights made in torch.inference_mode do not show when they change"
    return ""


def weights_of(model: Any) -> list[Tensor]:
    """What a graph is captured of: it serves as long as none of these is written to or replaced."""
    return [*model.parameters(), *model.buffers()]


class DecodeGraph:
    """The launches of one decode, captured: call it with as many other streams.

    Static: the decoder's memory, qualities, and the results. Not thread-safe by itself but by its lock.
    """

    def __init__(
        self,
        model: Any,
        streams: Sequence[bytes],
        size: tuple[int, int],
        device: torch.device,
        levels: Tensor | None,
        room: tuple[int, int],
    ) -> None:
        from lalic_kernels.rans.grouped.gpu import DeviceDecoder

        with torch.inference_mode(False), torch.no_grad():
            self._levels = None if levels is None else torch.empty(len(streams), device=device)
            self._decoder = DeviceDecoder(list(streams), model._joined_tables(), device, room)
        rows = z_rows(model.config.dims[5], size[0] * size[1], device)

        def launch() -> tuple[Tensor, list[Tensor]]:
            with exact.statuses(device) as statuses:
                x = _launch(model, self._decoder, size, rows, self._levels)
            return x, statuses

        with model._launching:
            self._launches = Launches(
                device, lambda: self._write(streams, levels), launch, lambda: [rows, *tensors_of(model)]
            )
        own = [value for value in vars(self._decoder).values() if isinstance(value, Tensor)]
        self.bytes = self._launches.bytes + sum(x.untyped_storage().nbytes() for x in own)

    def _write(self, streams: Sequence[bytes], levels: Tensor | None) -> None:
        self._decoder.load(list(streams))
        if self._levels is not None and levels is not None:
            self._levels.copy_(levels, non_blocking=True)

    def __call__(self, streams: Sequence[bytes], levels: Tensor | None) -> Outcome:
        with self._launches.lock, torch.cuda.device(self._launches.device):
            self._write(streams, levels)
            self._launches.run()
            x, statuses = self._launches.results
            x = x.clone()  # the next run writes to the original
            return x, *_look(self._decoder, statuses)


def _plain(
    model: Any, streams: Sequence[bytes], size: tuple[int, int], device: torch.device, levels: Tensor | None
) -> Outcome:
    from lalic_kernels.rans.grouped.gpu import DeviceDecoder

    there = None if levels is None else torch.empty(len(streams), device=device).copy_(levels, non_blocking=True)
    decoder = DeviceDecoder(list(streams), model._joined_tables(), device)
    rows = z_rows(model.config.dims[5], size[0] * size[1], device)
    with model._launching, exact.statuses(device) as statuses:
        x = _launch(model, decoder, size, rows, there)
    return x, *_look(decoder, statuses)


def _launch(model: Any, decoder: Any, size: tuple[int, int], rows: Tensor, levels: Tensor | None) -> Tensor:
    """Everything that a decode launches, (B, 3, H, W)."""
    x: Tensor = model._synthesise_at(latents(model, decoder, size, rows), levels)
    return x.clamp_(0, 1)


def latents(model: Any, decoder: Any, size: tuple[int, int], rows: Tensor) -> Tensor:
    """y_hat (B, M, 4 h, 4 w) of a decoder's streams; the decoder is to be asked for faults."""
    batch = decoder.sums().shape[0]
    if model.entropy != "exact":
        z = decoder.decode(rows).reshape(batch, -1)
        return model._decode_latents(z, size, ReadThere(decoder.decode_parameters))
    entropy = exact_entropy(model.latent_codec)
    return entropy.code_there(
        lambda place: decoder.decode_channels(rows, entropy.medians, place),
        (batch, *size, model.config.dims[5]),
        ReadThere(decoder.decode_parameters),
    )


def _look(decoder: Any, statuses: list[Tensor]) -> tuple[list[ValueError | None], list[list[int]], bool]:
    """Waits for the device."""
    faults = decoder.faults()
    return faults, decoder.sums().tolist(), not any(int(status) for status in statuses)


def _error(model: Any, fault: ValueError | None, sums: list[int], checksum: int) -> BitstreamError | None:
    try:
        with model._named_faults():
            if fault is not None:
                raise fault
        model._check_z(sums[0] & 0xFFFF, checksum)
        model._check_all((sums[0] & 0xFFFF) << 32 | sums[1] & 0xFFFFFFFF, checksum)
    except BitstreamError as error:
        return error
    return None


@functools.lru_cache(maxsize=32)
def z_rows(channels: int, positions: int, device: torch.device) -> Tensor:
    """Rows of the joined tables for z's symbols, (channels * positions,) int32, kept on the device."""
    with torch.inference_mode(False):
        rows = gaussian_tables().rows + torch.arange(channels, dtype=torch.int32)
        return rows.repeat_interleave(positions).to(device)
