"""Decoding the grouped coder's streams on a GPU: what launches kernels.py and kernels_main.py.

Nothing waits for the device before the end.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact.numbers import THRESHOLDS, NotFinite
from lalic_kernels.launch import Launch, blocks, on
from lalic_kernels.rans.grouped import kernels, kernels_common, kernels_main, layout, reference
from lalic_kernels.rans.grouped.layout import GROUP, GroupedTables, grouped_tables
from lalic_kernels.rans.grouped.op import FAULTS, parts_of
from lalic_kernels.rans.grouped.place import Place
from lalic_kernels.rans.op import RansError, _check_tables
from lalic_kernels.rans.tables import CodingTables

# One warp a group: its lanes agree on the order of their words without a barrier. `count` and `main` end with what is
# done by one warp alone, and `spread` has the blocks that `count` has counted.
LAUNCHES = {
    "count": Launch((("LANES", GROUP), ("BLOCK", 256)), num_warps=1),
    "spread": Launch((("LANES", GROUP), ("BLOCK", 256)), num_warps=1),
    "main": Launch((("LANES", GROUP), ("BLOCK", 256)), num_warps=1),
    "values": Launch((("LANES", GROUP), ("BLOCK", 1024)), num_warps=4),
}
_NOT_FINITE, _EMPTY = -16, -17  # beside what reference.py returns
# Causes before what follows from them.
_FAULTS = {
    _EMPTY: "the stream is empty, but symbols are asked of it",
    _NOT_FINITE: "scales and means must be finite, but hold an infinity or NaN",
    reference.BAD_INDEX: "an index lies outside the tables",
} | FAULTS
_FIXED, _CONTROL = int(kernels_common.FIXED), int(kernels_common.CONTROL)
_AT, _END, _WORKING, _LEFT = (
    int(n) for n in (kernels_common.AT, kernels_common.END, kernels_common.WORKING, kernels_common.LEFT)
)
_SECTION, _FAN, _SHAPE = (int(n) for n in (kernels_common.SECTION, kernels_common.FAN, kernels_common.SHAPE))


class DeviceTables:
    """`GroupedTables` on a device, unsigned numbers as the signed ones of the same bits."""

    def __init__(self, tables: GroupedTables, device: torch.device) -> None:
        if (np.abs(tables.mode.astype(np.int64)) >= (1 << 31) - 2).any():
            raise ValueError("tables must have symbols that stay within int32 when 2 is added, to decode on a GPU")

        def put(array: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.rows = tables.rows
        self.packed, self.coarse = put(tables.packed.view(np.int32)), put(tables.coarse.view(np.int32))
        self.mode, self.offset, self.escape = put(tables.mode), put(tables.offset), put(tables.escape)
        self.start, self.bias = put(tables.start), put(tables.bias)
        self.quiet = put(tables.quiet.astype(np.int8))
        self.priced = put(tables.priced.view(np.int64))


_on_device: weakref.WeakKeyDictionary[GroupedTables, dict[torch.device, DeviceTables]] = weakref.WeakKeyDictionary()


def device_tables(tables: CodingTables, device: torch.device) -> DeviceTables:
    """Of `tables` on a device, copied once."""
    own = grouped_tables(tables)
    found = _on_device.setdefault(own, {})
    if device not in found:
        found[device] = DeviceTables(own, device)
    return found[device]


def check_device(device: torch.device) -> None:
    """Raises BackendUnavailable where kernels cannot run."""
    if not installed.TRITON or (device.type != "cuda" and not installed.interpreting()):
        raise BackendUnavailable(
            f"the GPU coder needs triton and a CUDA device, or triton's interpreter; "
            f"triton: {installed.TRITON}, device: {device}"
        )


@functools.cache
def _thresholds(device: torch.device) -> Tensor:
    return torch.tensor(THRESHOLDS, dtype=torch.float32, device=device)


class DeviceDecoder:
    """As `Decoder`, on a GPU and of one stream or several at once: nothing waits for the device before finish().

    data: bytes-like, the stream; or a list of B streams, of pictures of one size, decoded with the launches of one.
    tables: those of the encoder. device: of the tensors. room: groups and words of the largest stream that `load` shall
    take; None for no more than these need. What is launched depends on the number of streams, the sections' lengths and
    the room, not on what the streams say.

    A section is four launches, and takes no memory but its results': scratch is kept, and grows with the largest
    section so far. To capture launches, run them once before.

    After a fault the symbols are meaningless but there are as many as asked for, and finish() raises RansError.
    Raises RansError at once for a header that cannot be right, ValueError for streams larger than a given room,
    BackendUnavailable where Triton cannot run.
    """

    def __init__(
        self,
        data: bytes | Sequence[bytes],
        tables: CodingTables,
        device: torch.device,
        room: tuple[int, int] | None = None,
    ) -> None:
        _check_tables(tables)
        check_device(device)
        self.device = device
        self._tables = device_tables(tables, device)
        self._single = not isinstance(data, list | tuple)
        parts = _all_parts(data)
        self._streams = len(parts)
        if room is None:
            known = [part for part in parts if part is not None]
            room = max((len(p.highs) for p in known), default=1), max((len(p.words) for p in known), default=1)
        self._room, self._words_room = room
        if min(room) < 1:
            raise ValueError(f"room must be numbers of groups and words of at least 1, but is {room}")
        # One piece of memory and one copy: sums, heads, words; each row of words aligned to 16 bytes.
        self._head = _FIXED + (_CONTROL + GROUP) * self._room
        self._most = (self._words_room + 16) // 8 * 8
        sizes = [blocks(self._streams, 2) * 8, self._streams * self._head, self._streams * self._most // 2]
        self._bounds = np.cumsum([0, *sizes]).tolist()
        self._memory = torch.empty(self._bounds[-1], dtype=torch.int32, device=device)
        sums, self._heads, words = self._memory.split(sizes)
        self._sums = sums.view(torch.int64)[: 2 * self._streams].view(-1, 2)
        self._words = words.view(torch.int16)
        self._found: list[Tensor] = []
        self._scratch_for = 0
        self._scratch: dict[int, tuple[Tensor, ...]] = {}
        self._start(parts)

    def load(self, data: bytes | Sequence[bytes]) -> None:
        """Begin with as many other streams in the same memory, so that what has been captured serves again.

        Raises RansError as the constructor, ValueError for another number of streams or one larger than the room.
        """
        parts = _all_parts(data)
        if len(parts) != self._streams:
            raise ValueError(f"data must be {self._streams} streams, as before, but is {len(parts)}")
        self._start(parts)

    def _start(self, parts: list[layout.Parts | None]) -> None:
        for part in parts:
            if part is not None and (len(part.highs) > self._room or len(part.words) > self._words_room):
                raise ValueError(
                    f"data must be streams of 1 to {self._room} groups and {self._words_room} words, but one has "
                    f"{len(part.highs)} and {len(part.words)}"
                )
        self._fresh = True
        self._first = 0  # place of the next section's first symbol
        joined = np.zeros(self._bounds[-1], np.int32)
        heads = joined[self._bounds[1] : self._bounds[2]].reshape(-1, self._head)
        words = joined[self._bounds[2] :].view(np.uint16).reshape(-1, self._most)
        for part, head, own in zip(parts, heads, words, strict=True):
            _fill(part, head, own, self._room)
        # From pageable memory, so it has been read when this returns, and nothing waits for what the device does.
        self._memory.copy_(torch.from_numpy(joined), non_blocking=True)

    def decode(self, indexes: Tensor) -> Tensor:
        """The next section's symbols, int32 on the device: (n,) of a single stream, (B, n) of a list.

        indexes: int32 on the device, each symbol's table row: (n,) for all streams alike, or (B, n).
        """
        size = tuple(indexes.shape)
        if (
            indexes.dtype != torch.int32
            or indexes.device != self.device
            or len(size) not in (1, 2)
            or (len(size) == 2 and size[0] != self._streams)
        ):
            raise ValueError(
                f"indexes must be int32 (n,) or ({self._streams}, n) on {self.device}, but are {indexes.dtype} {size} "
                f"on {indexes.device}"
            )
        symbols = self._section(indexes.contiguous(), size[-1], size[-1] if len(size) == 2 else 0)
        return symbols[0] if self._single else symbols

    def decode_channels(self, rows: Tensor, medians: Tensor, place: Place) -> None:
        """The next section's values, symbol + median, to their place, of no colour.

        rows: as `decode` has indexes, of symbols channel by channel, each at all positions. medians: (g,) float32.
        """
        if medians.shape != place.image.shape[3:] or rows.shape[-1] != place.positions * len(medians):
            raise ValueError(
                f"rows and medians must be those of an image {tuple(place.image.shape)}, but are {tuple(rows.shape)} "
                f"and {tuple(medians.shape)}"
            )
        size = tuple(rows.shape)
        self._section(rows.contiguous(), size[-1], size[-1] if len(size) == 2 else 0, medians, place)

    def decode_parameters(self, parameters: Tensor, place: Place | None = None) -> Tensor:
        """The next section's values, symbol + mean, (B, P, g) float32 on the device; or to a place, which is returned.

        parameters: (B, P, 2 g) float32 on the device, at each of P positions g scales and then g means. A symbol's
        table row is `exact.scale_index` of its scale; the section has the symbols channel by channel, each at all
        positions. finish() raises NotFinite if a scale or mean is an infinity or NaN.
        """
        size = tuple(parameters.shape)
        if parameters.dtype != torch.float32 or parameters.device != self.device or len(size) != 3 or size[2] % 2:
            raise ValueError(
                f"parameters must be float32 (B, P, 2 g) on {self.device}, but are {parameters.dtype} {size} on "
                f"{parameters.device}"
            )
        if size[0] != self._streams:
            raise ValueError(f"parameters must be of {self._streams} pictures, but their shape is {size}")
        if self._tables.rows <= len(THRESHOLDS):
            raise ValueError(
                f"tables must have {len(THRESHOLDS) + 1} rows for scales, but have {self._tables.rows} in all"
            )
        if place is None:
            values = torch.empty((*size[:2], size[2] // 2), device=self.device)
            self.decode_parameters(parameters, Place(values[:, None], None))
            return values
        if (place.image.shape[0], place.positions, 2 * place.image.shape[3]) != size:
            raise ValueError(f"place must be of parameters {size}, but its image is {tuple(place.image.shape)}")
        self._section(parameters.contiguous(), size[1] * (size[2] // 2), size[1] * size[2], None, place)
        return place.image

    def symbols(self) -> list[Tensor]:
        """The symbols of each section so far, (B, n) int32 on the device, in coding order."""
        return self._found

    def sums(self) -> Tensor:
        """`symbol_checksum` of the first section with symbols and of all so far: (B, 2) int64 on the device."""
        return self._sums

    def _section(
        self, source: Tensor, count: int, stride: int, medians: Tensor | None = None, place: Place | None = None
    ) -> Tensor:
        """The next section's symbols (B, count). source: parameters if there is a place without medians, else rows."""
        out = torch.empty((self._streams, count), dtype=torch.int32, device=self.device)
        if self._fresh:  # not in load(), after which captured launches write to the same tensors
            self._fresh, self._found = False, []
        self._found.append(out)
        if count == 0:
            return out
        t, heads, words = self._tables, self._heads, self._words
        given = place is not None and medians is None
        offsets = "means" if given else "" if place is None else "medians"
        positions = 1 if place is None else place.positions
        across = blocks(count, LAUNCHES["count"]["BLOCK"])
        raw, counts, rows, numbers, row, order = self._scratch_of(count)
        with on(self.device):
            kernels.rans_count_kernel[(across, self._streams)](
                source, _thresholds(self.device), t.quiet, rows, counts, numbers, heads, words,
                count, positions, stride, self._room, self._most, t.rows,
                PARAMETERS=given, **LAUNCHES["count"].options(),
            )  # fmt: skip
            kernels.rans_spread_kernel[(across, self._streams)](
                rows, t.quiet, t.mode, counts, numbers, heads, row, order, out, count, self._room, t.rows,
                **LAUNCHES["spread"].options(),
            )  # fmt: skip
            kernels_main.rans_main_kernel[(self._room, self._streams)](
                heads, words, row, order, rows, t.coarse, t.packed, t.bias, t.offset, t.escape, t.mode,
                numbers, raw, out, count, self._room, self._most, t.rows, **LAUNCHES["main"].options(),
            )  # fmt: skip
            most = None if place is None else place.most
            kernels.rans_values_kernel[(blocks(count, LAUNCHES["values"]["BLOCK"]), self._streams)](
                out, source if medians is None else medians, out if place is None else place.image,
                heads if most is None else most, self._sums, heads, count, positions, self._first, self._room,
                *((1, 1, 0, 0) if place is None else place.numbers),
                OFFSETS=offsets, MOST=most is not None, **LAUNCHES["values"].options(),
            )  # fmt: skip
        self._first += count
        return out

    def _scratch_of(self, count: int) -> tuple[Tensor, ...]:
        """raw, counts, rows, numbers, row, place: dense for a section of `count` symbols a stream."""
        if count > self._scratch_for:
            self._scratch_for, self._scratch = count, {}
            most = self._streams * count
            across = self._streams * blocks(count, LAUNCHES["count"]["BLOCK"])
            self._raw = torch.empty(most, dtype=torch.int64, device=self.device)
            self._rest = torch.empty(across + 4 * most, dtype=torch.int32, device=self.device)
        if count not in self._scratch:
            n = self._streams * count
            across = self._streams * blocks(count, LAUNCHES["count"]["BLOCK"])
            self._scratch[count] = self._raw, *self._rest[: across + 4 * n].split([across, n, n, n, n])
        return self._scratch[count]

    def faults(self) -> list[ValueError | None]:
        """What is wrong with each stream, None where nothing is: waits for the device, and raises nothing."""
        heads = self._heads.cpu().view(self._streams, -1).numpy()
        return [_fault(head, self._room) for head in heads]

    def finish(self) -> None:
        """Waits for the device. Raises RansError as `Decoder` would have, there or in decode(); of several streams it
        names the first that has a fault, counted from 0. NotFinite for parameters that were not finite."""
        for number, fault in enumerate(self.faults()):
            if fault is not None:
                raise fault if self._single else type(fault)(f"picture {number}: {fault}")


def _all_parts(data: bytes | Sequence[bytes]) -> list[layout.Parts | None]:
    streams = data if isinstance(data, list | tuple) else [data]
    if not streams:
        raise ValueError("data must be a stream or a list of one or more, but the list is empty")
    return [parts_of(stream) for stream in streams]


def _fill(part: layout.Parts | None, head: Any, words: Any, room: int) -> None:
    """A stream's row of heads, and of words as uint16, from zeros. An empty stream begins with its fault."""
    control = head[_FIXED : _FIXED + _CONTROL * room].reshape(-1, _CONTROL)
    states = head[_FIXED + _CONTROL * room :].view(np.uint32).reshape(-1, GROUP)
    states[:] = layout.LOWER
    if part is None:
        head[int(kernels_common.FAULTS)] = 1 << -_EMPTY
        control[0, [_WORKING, _LEFT, _FAN, _SHAPE]] = GROUP, -1, -1, 1
        return
    groups, lanes = part.highs.shape
    first = part.words[part.bounds[:-1, None] + np.arange(lanes)]
    states[:groups, :lanes] = part.highs << np.uint32(16) | first
    rows = control[:groups]
    rows[:, _AT], rows[:, _END] = part.bounds[:-1] + lanes, part.bounds[1:]
    rows[:, _WORKING], rows[:, _LEFT], rows[:, _FAN] = lanes, -1, part.fan
    rows[:, _SHAPE] = part.level << 16 | groups
    stages = int(kernels_common.STAGES)
    head[stages : stages + len(part.stages)] = np.minimum(part.stages, 1 << 30)
    words[: len(part.words)] = part.words


def _fault(head: Any, room: int) -> ValueError | None:
    """What a stream's row of heads says at the end."""
    control = head[_FIXED : _FIXED + _CONTROL * room].reshape(-1, _CONTROL)
    faults, asked = int(head[int(kernels_common.FAULTS)]), int(control[0, _SECTION]) > 0
    if not asked:
        empty = bool(faults >> -_EMPTY & 1)
        return None if empty else RansError("the stream holds something, but no symbols were asked of it")
    for code, sentence in _FAULTS.items():
        if faults >> -code & 1:
            return NotFinite(sentence) if code == _NOT_FINITE else RansError(sentence)
    control = control[: int(control[0, _SHAPE]) & 0xFFFF]
    left = control[:, _END] - control[:, _AT]
    if (left < 0).any():
        return RansError(FAULTS[reference.OUT_OF_WORDS])
    if left.any():
        return RansError(f"{int(left.sum())} words of the stream are left after its last symbol")
    states = head[_FIXED + _CONTROL * room :].reshape(-1, GROUP)[: len(control)]
    if (states[:, : int(control[0, _WORKING])] != layout.LOWER).any():
        return RansError("the states do not return to their start: the stream is damaged or for other tables")
    return None
