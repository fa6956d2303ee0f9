"""Encoding on a GPU: from the picture, or its latents, to symbols in launches that can be captured; then the coder.

`lalic_kernels.rans.grouped.gpu_encode` codes where the symbols lie, to the same bytes as a CPU. It looks at numbers on
its way, so it is not part of a graph. docs/gpu-decoder.md says when there is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lalic.coder.exact import exact_entropy
from lalic.coder.gpu_decode import weights_of, why_plain, z_rows
from lalic.coder.graphs import Launches, Shelf, settings, tensors_of
from lalic.coder.slices import Collect, check_symbols
from lalic.errors import LalicError
from lalic_kernels import exact
from lalic_kernels.rans.checksum import symbol_checksum


class Symbols(NamedTuple):
    """What is launched of an encoding, on the device.

    sections: (symbols, rows) of z and of each pass, (n,) int32. largest: magnitudes of z, of y and of the passes'
    symbols. sums: of z's symbols and of all, (2,) int64. statuses: as `exact.statuses` gives them.
    """

    sections: list[tuple[Tensor, Tensor]]
    largest: Tensor
    sums: Tensor
    statuses: list[Tensor]


def encode(
    model: Any, x: Tensor, analyse: bool, quality: float | None, graph: bool | None
) -> tuple[tuple[bytes], int]:  # fmt: skip
    """The stream of one picture x (1, 3, H, W), or with `analyse` false of its latents, and its checksum.

    model: `lalic.coder.coding.Coding` on a GPU, with exact arithmetic. graph: as in `gpu_decode.pictures`. Raises
    ``LalicError`` for a picture that cannot be coded with these weights.
    """
    if analyse:
        model._check_picture(x)
    device = x.device
    level = model._levels([quality])
    cells = model.downsampling if analyse else model.downsampling // 16
    size = (x.shape[2] // cells, x.shape[3] // cells)
    problem = why_plain(model, 1, size)
    if graph and problem:
        raise ValueError(f"graph: expected None or False, because {problem}")
    if graph is not False and not problem:
        shelf: Shelf = model._cache.get("graphs", weights_of(model), Shelf)
        key = ("encode", analyse, size, x.dtype, model.precision, device, settings())
        captured = shelf.get(key, device, lambda: EncodeGraph(model, x, analyse, size, level), graph)
        if captured is not None:
            found: tuple[tuple[bytes], int] = captured(x, level)
            return found
    there = None if level is None else torch.empty(1, device=device).copy_(level, non_blocking=True)
    with model._launching:
        symbols = _launch(model, x, analyse, there, z_rows(model.config.dims[5], size[0] * size[1], device))
    return _finished(symbols, model._joined_tables())


class EncodeGraph:
    """The launches of one encoding, captured: call it with another picture of the same size."""

    def __init__(self, model: Any, x: Tensor, analyse: bool, size: tuple[int, int], level: Tensor | None) -> None:
        device = x.device
        with torch.inference_mode(False):
            self._x = torch.empty(x.shape, dtype=x.dtype, device=device)
            self._level = None if level is None else torch.empty(1, device=device)
        self._tables = model._joined_tables()
        rows = z_rows(model.config.dims[5], size[0] * size[1], device)
        with model._launching:
            self._launches = Launches(
                device,
                lambda: self._write(x, level),
                lambda: _launch(model, self._x, analyse, self._level, rows),
                lambda: [rows, *tensors_of(model)],
            )
        self.bytes = self._launches.bytes + self._x.untyped_storage().nbytes()

    def _write(self, x: Tensor, level: Tensor | None) -> None:
        self._x.copy_(x)
        if self._level is not None and level is not None:
            self._level.copy_(level, non_blocking=True)

    def __call__(self, x: Tensor, level: Tensor | None) -> tuple[tuple[bytes], int]:
        with self._launches.lock, torch.cuda.device(self._launches.device):
            self._write(x, level)
            self._launches.run()
            return _finished(self._launches.results, self._tables)


def _launch(model: Any, x: Tensor, analyse: bool, level: Tensor | None, rows: Tensor) -> Symbols:
    """Everything between a picture and its symbols."""
    prior = model.latent_codec.hyper.entropy_bottleneck
    with exact.statuses(x.device) as statuses:
        y = model._gained_at(model.latents(x) if analyse else x, level)
        z = torch.round(model._hyper_latents(y) - prior.medians().reshape(1, -1, 1, 1))
        coder = Collect(y, model.config.groups)
        exact_entropy(model.latent_codec).code(z, coder)
        z_symbols = z.flatten(1).to(torch.int32)
        sections = [(z_symbols[0], rows), *((symbols[0], of[0]) for symbols, of in coder.kept)]
        everything = torch.cat([symbols for symbols, _ in sections])[None]
        sums = torch.cat((symbol_checksum(z_symbols), symbol_checksum(everything)))
        largest = torch.stack((z.abs().amax(), y.abs().amax().to(z), *(most.to(z) for most in coder.largest)))
    return Symbols(sections, largest, sums, statuses)


def _finished(symbols: Symbols, tables: Any) -> tuple[tuple[bytes], int]:
    """Waits for the device, looks at what could be wrong, and codes."""
    from lalic_kernels.rans.grouped.gpu_encode import encode as encode_there

    largest = symbols.largest.cpu()
    check_symbols("z", largest[0])
    check_symbols("y", largest[1:])
    if any(int(status) for status in symbols.statuses):
        raise LalicError("the picture cannot be coded with these weights: a number on the way is not finite")
    z, everything = symbols.sums.tolist()
    stream = encode_there(symbols.sections, tables)
    return (stream,), (z & 0xFFFF) << 32 | everything & 0xFFFFFFFF
