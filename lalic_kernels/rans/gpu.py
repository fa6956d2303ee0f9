"""The coder on a GPU: the launches of kernels.py. Decoding synchronises only at its end."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels import installed
from lalic_kernels.dispatch import BackendUnavailable
from lalic_kernels.exact.numbers import THRESHOLDS, NotFinite
from lalic_kernels.launch import Launch, blocks, on
from lalic_kernels.rans import kernels, layout, reference
from lalic_kernels.rans.layout import GROUP, RansError
from lalic_kernels.rans.op import FAULTS, backend_of, check_lanes, check_tables, parts_of
from lalic_kernels.rans.tables import CodingTables
from lalic_kernels.rans.view import OutputView

# One warp per group: its lanes can order their words without a barrier.
LAUNCHES = {
    "rows": Launch((("LANES", GROUP), ("BLOCK", 1024)), num_warps=4),
    "symbols": Launch((("LANES", GROUP), ("BLOCK", 256)), num_warps=1),
    "values": Launch((("LANES", GROUP), ("BLOCK", 1024)), num_warps=4),
    "push": Launch((("LANES", GROUP),), num_warps=1),
}
_NOT_FINITE, _EMPTY = -16, -17  # in addition to the codes of reference.py
# In order: a cause comes before the faults that it leads to.
_FAULTS = {
    _EMPTY: "the stream is empty, but symbols are requested",
    _NOT_FINITE: "scales and means must be finite, but hold an infinity or NaN",
    reference.BAD_INDEX: "an index is outside the tables",
} | FAULTS
_FIXED, _CONTROL, _RAMP_STEPS = (int(n) for n in (kernels.FIXED, kernels.CONTROL, kernels.RAMP_STEPS))
_AT, _END, _WORKING, _STEPS_LEFT = (int(n) for n in (kernels.AT, kernels.END, kernels.WORKING, kernels.STEPS_LEFT))
_SECTION, _RAMP, _GROUPS = (int(n) for n in (kernels.SECTION, kernels.RAMP, kernels.GROUPS))


ReadStream = layout.Parts | bytes  # the parts of a stream; b"" for an empty one


class DeviceTables:
    """`CodingTables` on a device; unsigned integers become signed ones with the same bits."""

    def __init__(self, tables: CodingTables, device: torch.device) -> None:
        def put(array: Any) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.rows = tables.rows
        self.packed, self.coarse = put(tables.packed.view(np.int32)), put(tables.coarse.view(np.int32))
        self.offset, self.escape = put(tables.offset), put(tables.escape)
        self.start, self.bias = put(tables.start), put(tables.bias)
        self.priced = put(tables.priced.view(np.int64))


_on_device: weakref.WeakKeyDictionary[CodingTables, dict[torch.device, DeviceTables]] = weakref.WeakKeyDictionary()


def device_tables(tables: CodingTables, device: torch.device) -> DeviceTables:
    """`tables` on a device, copied once."""
    copies = _on_device.setdefault(tables, {})
    if device not in copies:
        copies[device] = DeviceTables(tables, device)
    return copies[device]


def check_device(device: torch.device) -> None:
    """Raise BackendUnavailable if kernels cannot run on the device."""
    if not installed.TRITON or (device.type != "cuda" and not installed.interpreting()):
        raise BackendUnavailable(
            f"the GPU coder needs triton and a CUDA device, or triton's interpreter; "
            f"triton: {installed.TRITON}, device: {device}"
        )


@functools.cache
def _thresholds(device: torch.device) -> Tensor:
    return torch.tensor(THRESHOLDS, dtype=torch.float32, device=device)


class DeviceDecoder:
    """Decoder of one stream, or of several at once, on a GPU: one decode call for each section, then finish().

    Launches depend on the number of streams, the sections' lengths and the capacity, not on the streams' content. Only
    finish() waits for the device. A section takes three launches, and allocates only its results: scratch memory is
    reused, and grows with the largest section. Run launches once before a graph capture of them.

    After a fault the symbols are meaningless, but as many as requested, and finish() raises RansError.

    Args:
        data: bytes-like, the stream; or a list of B streams of images of one size, decoded together. A stream may also
            be given as `read` returns it.
        tables: those of the encoder.
        device: the device of all tensors.
        capacity: (groups, words) of the largest stream that `load` can take; None: as large as these streams.

    Raises:
        RansError: a stream's header is damaged.
        ValueError: a stream exceeds the capacity, or an argument does not fit.
        BackendUnavailable: Triton cannot run on the device.
    """

    def __init__(
        self,
        data: ReadStream | Sequence[ReadStream],
        tables: CodingTables,
        device: torch.device,
        capacity: tuple[int, int] | None = None,
    ) -> None:
        check_tables(tables)
        check_device(device)
        self.device = device
        self._tables = device_tables(tables, device)
        self._single = not isinstance(data, list | tuple)
        parts = _all_parts(data)
        self._streams = len(parts)
        if capacity is None:
            full = [part for part in parts if part is not None]
            capacity = max((len(p.highs) for p in full), default=1), max((len(p.words) for p in full), default=1)
        self._groups, self._max_words = capacity
        if min(capacity) < 1:
            raise ValueError(f"capacity must be numbers of groups and words of at least 1, but is {capacity}")
        # One allocation and one copy for sums, heads and words; each row of words is aligned to 16 bytes.
        self._head = _FIXED + (_CONTROL + GROUP) * self._groups
        self._words_stride = (self._max_words + 16) // 8 * 8
        sizes = [blocks(self._streams, 2) * 8, self._streams * self._head, self._streams * self._words_stride // 2]
        self._bounds = np.cumsum([0, *sizes]).tolist()
        self._memory = torch.empty(self._bounds[-1], dtype=torch.int32, device=device)
        sums, self._heads, words = self._memory.split(sizes)
        self._sums = sums.view(torch.int64)[: 2 * self._streams].view(-1, 2)
        self._words = words.view(torch.int16)
        self._symbols: list[Tensor] = []
        self._scratch = torch.empty(0, dtype=torch.int32, device=device)
        self._start(parts)

    def load(self, data: ReadStream | Sequence[ReadStream]) -> None:
        """Start with other streams in the same memory, so that captured launches can be replayed.

        Raises:
            RansError: a stream's header is damaged.
            ValueError: there is another number of streams, or one exceeds the capacity.
        """
        parts = _all_parts(data)
        if len(parts) != self._streams:
            raise ValueError(f"data must be {self._streams} streams, as before, but is {len(parts)}")
        self._start(parts)

    def _start(self, parts: list[layout.Parts | None]) -> None:
        for part in parts:
            if part is not None and (len(part.highs) > self._groups or len(part.words) > self._max_words):
                raise ValueError(
                    f"data must be streams of 1 to {self._groups} groups and {self._max_words} words, but one has "
                    f"{len(part.highs)} and {len(part.words)}"
                )
        self._fresh = True
        self._first = 0  # index of the next section's first symbol
        # The copy from pinned memory does not wait, and torch uses this memory again only after it.
        staged = torch.empty(self._bounds[-1], dtype=torch.int32, pin_memory=self.device.type == "cuda", device="cpu")
        joined = staged.numpy()
        joined.fill(0)
        heads = joined[self._bounds[1] : self._bounds[2]].reshape(-1, self._head)
        words = joined[self._bounds[2] :].view(np.uint16).reshape(-1, self._words_stride)
        for part, head, row in zip(parts, heads, words, strict=True):
            _fill(part, head, row, self._groups)
        self._memory.copy_(staged, non_blocking=True)

    def decode(self, indexes: Tensor) -> Tensor:
        """The next section's symbols, int32 on the device: (n,) for a single stream, (B, n) for a list.

        Args:
            indexes: each symbol's table row, int32 on the device: (n,) for all streams, or (B, n).

        Raises:
            ValueError: indexes do not fit.
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

    def decode_channels(self, rows: Tensor, medians: Tensor, view: OutputView) -> None:
        """Write the next section's values, symbol + median, to a view of all positions.

        Args:
            rows: table rows, int32 (n,) or (B, n) on the device, channel by channel, each at all positions.
            medians: (g,) float32.
            view: of images (B, h, w, g).

        Raises:
            ValueError: shapes do not fit.
        """
        if medians.shape != view.image.shape[3:] or rows.shape[-1] != view.positions * len(medians):
            raise ValueError(
                f"rows and medians must be those of an image {tuple(view.image.shape)}, but are {tuple(rows.shape)} "
                f"and {tuple(medians.shape)}"
            )
        size = tuple(rows.shape)
        self._section(rows.contiguous(), size[-1], size[-1] if len(size) == 2 else 0, medians, view)

    def decode_parameters(self, parameters: Tensor, view: OutputView | None = None) -> Tensor:
        """The next section's values, symbol + mean, (B, P, g) float32; with a view they are written to its image.

        Args:
            parameters: (B, P, 2 g) float32 on the device: at each of P positions g scales, then g means. A symbol's
                table row is the exact scale index of its scale. Symbols are coded channel by channel, each at all
                positions. finish() raises NotFinite if a scale or mean is infinite or NaN.
            view: of images (B, h, w, g) with P positions, or None.

        Returns:
            The values, or the view's image.

        Raises:
            ValueError: shapes, dtype, device or the tables do not fit.
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
        if view is None:
            values = torch.empty((*size[:2], size[2] // 2), device=self.device, dtype=torch.float32)
            self.decode_parameters(parameters, OutputView(values[:, None], None))
            return values
        if (view.image.shape[0], view.positions, 2 * view.image.shape[3]) != size:
            raise ValueError(f"view must be of parameters {size}, but its image is {tuple(view.image.shape)}")
        self._section(parameters.contiguous(), size[1] * (size[2] // 2), size[1] * size[2], None, view)
        return view.image

    def symbols(self) -> list[Tensor]:
        """The symbols of each section so far, (B, n) int32 on the device, in coding order."""
        return self._symbols

    def sums(self) -> Tensor:
        """`symbol_checksum` of the first section with symbols, and of all so far: (B, 2) int64 on the device."""
        return self._sums

    def _section(
        self, source: Tensor, count: int, stride: int, medians: Tensor | None = None, view: OutputView | None = None
    ) -> Tensor:
        """The next section's symbols (B, count). source: parameters for a view without medians, else rows."""
        out = torch.empty((self._streams, count), dtype=torch.int32, device=self.device)
        if self._fresh:  # not done in load(): replayed launches after it write to the same tensors
            self._fresh, self._symbols = False, []
        self._symbols.append(out)
        if count == 0:
            return out
        t, heads, words = self._tables, self._heads, self._words
        by_scale = view is not None and medians is None
        offsets = "means" if by_scale else "" if view is None else "medians"
        positions = 1 if view is None else view.positions
        rows, numbers, raw = self._scratch_of(count)
        with on(self.device):
            kernels.rans_rows_kernel[(self._streams * blocks(count, LAUNCHES["rows"]["BLOCK"]),)](
                source, _thresholds(self.device), rows, heads, count, positions, stride, self._groups, t.rows,
                PARAMETERS=by_scale, **LAUNCHES["rows"].options(),
            )  # fmt: skip
            kernels.rans_symbols_kernel[(self._streams * self._groups,)](
                heads, words, rows, t.coarse, t.packed, t.bias, t.offset, t.escape, numbers, raw, out,
                count, self._groups, self._words_stride, **LAUNCHES["symbols"].options(),
            )  # fmt: skip
            absmax = None if view is None else view.absmax_bits
            kernels.rans_values_kernel[(self._streams * blocks(count, LAUNCHES["values"]["BLOCK"]),)](
                out, source if medians is None else medians, out if view is None else view.image,
                heads if absmax is None else absmax, self._sums, heads, count, positions, self._first, self._groups,
                *((1, 1, 0, 0) if view is None else view.numbers),
                OFFSETS=offsets, ABSMAX=absmax is not None, **LAUNCHES["values"].options(),
            )  # fmt: skip
        self._first += count
        return out

    def _scratch_of(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scratch tensors rows, numbers and raw for a section of `count` symbols per stream."""
        n = self._streams * count
        if n > self._scratch.numel() // 4:
            self._scratch = torch.empty(4 * n, dtype=torch.int32, device=self.device)
        rows, numbers, raw = self._scratch[: 4 * n].split([n, n, 2 * n])
        return rows, numbers, raw.view(torch.int64)

    def faults(self) -> list[ValueError | None]:
        """The fault of each stream, or None. Waits for the device; raises nothing."""
        heads = self._heads.cpu().view(self._streams, -1).numpy()
        return [_fault(head, self._groups) for head in heads]

    def finish(self) -> None:
        """Wait for the device, and raise the first stream's fault, if there is one.

        Raises:
            RansError: a stream is damaged. Of several streams the message names the first, counted from 0.
            NotFinite: parameters were not finite.
        """
        for number, fault in enumerate(self.faults()):
            if fault is not None:
                raise fault if self._single else type(fault)(f"picture {number}: {fault}")


def read(data: bytes) -> ReadStream:
    """A stream's parts, to be given to a `DeviceDecoder`, so that its header is read once.

    Raises:
        RansError: the stream's header is damaged.
    """
    return parts_of(data) or b""


def capacity_of(data: ReadStream) -> tuple[int, int]:
    """(groups, words) of a stream, each at least 1.

    Raises:
        RansError: the stream's header is damaged.
    """
    parts = _parts(data)
    return (1, 1) if parts is None else (len(parts.highs), len(parts.words))


def _parts(data: ReadStream) -> layout.Parts | None:
    return data if isinstance(data, layout.Parts) else parts_of(data)


def _all_parts(data: ReadStream | Sequence[ReadStream]) -> list[layout.Parts | None]:
    streams: Any = data if isinstance(data, list | tuple) else [data]
    if not streams:
        raise ValueError("data must be a stream or a list of one or more, but the list is empty")
    return [_parts(stream) for stream in streams]


def _fill(part: layout.Parts | None, head: Any, words: Any, max_groups: int) -> None:
    """Fill a stream's rows of heads and words, which are zero. An empty stream begins with a fault."""
    control = head[_FIXED : _FIXED + _CONTROL * max_groups].reshape(-1, _CONTROL)
    states = head[_FIXED + _CONTROL * max_groups :].view(np.uint32).reshape(-1, GROUP)
    states[:] = layout.LOWER
    if part is None:
        head[int(kernels.FAULTS)] = 1 << -_EMPTY
        control[0, [_WORKING, _STEPS_LEFT, _RAMP, _GROUPS]] = GROUP, -1, -1, 1
        return
    groups, lanes = part.highs.shape
    first = part.words[part.bounds[:-1, None] + np.arange(lanes)]
    states[:groups, :lanes] = part.highs << np.uint32(16) | first
    rows = control[:groups]
    rows[:, _AT], rows[:, _END] = part.bounds[:-1] + lanes, part.bounds[1:]
    rows[:, _WORKING], rows[:, _STEPS_LEFT], rows[:, _RAMP] = lanes, -1, part.ramp
    rows[:, _GROUPS] = groups
    head[_RAMP_STEPS : _RAMP_STEPS + len(part.ramp_steps)] = np.minimum(part.ramp_steps, 1 << 30)
    words[: len(part.words)] = part.words


def _fault(head: Any, max_groups: int) -> ValueError | None:
    """The fault of a stream after its last section, from its row of heads."""
    control = head[_FIXED : _FIXED + _CONTROL * max_groups].reshape(-1, _CONTROL)
    faults, decoded = int(head[int(kernels.FAULTS)]), int(control[0, _SECTION]) > 0
    if not decoded:
        empty = bool(faults >> -_EMPTY & 1)
        return None if empty else RansError("the stream is not empty, but no symbols were requested")
    for code, message in _FAULTS.items():
        if faults >> -code & 1:
            return NotFinite(message) if code == _NOT_FINITE else RansError(message)
    control = control[: int(control[0, _GROUPS])]
    left = control[:, _END] - control[:, _AT]
    if (left < 0).any():
        return RansError(FAULTS[reference.OUT_OF_WORDS])
    if left.any():
        return RansError(f"{int(left.sum())} words of the stream are left after its last symbol")
    states = head[_FIXED + _CONTROL * max_groups :].reshape(-1, GROUP)[: len(control)]
    if (states[:, : int(control[0, _WORKING])] != layout.LOWER).any():
        return RansError("the states do not return to their start: the stream is damaged or for other tables")
    return None


# Encoding


def encode(
    sections: Iterable[tuple[Tensor, Tensor]], tables: CodingTables, *, lanes: tuple[int, int] | None = None
) -> bytes:
    """Encode all sections into one stream, with the bytes of `lalic_kernels.rans.encode`.

    Small parts run on the host, after a synchronisation: the choice of lanes, the escapes, and the end of the stream,
    where only some lanes work.

    Args:
        sections: pairs (symbols, indexes) of int32 tensors (n,) on one device.
        tables: the distributions.
        lanes: (groups, lanes per group), or None for the encoder's choice.

    Returns:
        The stream; b"" if there are no symbols.

    Raises:
        ValueError: an index is outside the tables, or a stream cannot have such lanes.
        BackendUnavailable: Triton cannot run on the device.
    """
    check_tables(tables)
    if lanes is not None:
        check_lanes(lanes)
    pairs = [(symbols, indexes) for symbols, indexes in sections if symbols.numel()]
    if not pairs:
        return b""
    device = pairs[0][0].device
    check_device(device)
    t = device_tables(tables, device)
    symbols = torch.cat([part for part, _ in pairs])
    rows = torch.cat([part for _, part in pairs])
    within = rows.clamp(0, t.rows - 1)  # no read outside of the tables before the look below
    last = t.escape[within].long()
    position = symbols.long() - t.offset[within]
    escaped = (position < 0) | (position >= last)
    priced = t.priced[t.start[within] + torch.where(escaped, last, position)]
    low, high, cost = torch.stack((*(row.long() for row in rows.aminmax()), (priced >> 32).sum())).tolist()
    if low < 0 or high >= t.rows:
        raise ValueError(f"indexes must lie in 0..{t.rows - 1}, but range from {low} to {high}")
    entries = priced.to(torch.int32)  # the low half
    # All escapes in one copy to the host, where they are divided among their sections.
    sizes = [part.numel() for part, _ in pairs]
    indexes = escaped.nonzero()[:, 0]
    escapes = torch.stack((indexes.to(torch.int32), entries[indexes], symbols[indexes], rows[indexes])).cpu().numpy()
    ends = np.searchsorted(escapes[0], np.cumsum(sizes)[:-1])
    lists: list[tuple[Tensor, bool]] = []
    for section, (_, *parts) in zip(entries.split(sizes), np.split(escapes, ends, axis=1), strict=True):
        escape_entries, escape_symbols, escape_rows = parts[0].view(np.uint32), *parts[1:]
        raw = reference.raw_values(escape_entries, escape_symbols, escape_rows, tables)
        fields = reference.section_lists(escape_entries, raw)[1:]
        lists += [(section, True), *((torch.from_numpy(part.view(np.int32)).to(device), False) for part, _ in fields)]
    return _push(lists, *(lanes or layout.choose_lanes(cost)))


def _push(lists: list[tuple[Tensor, bool]], groups: int, lanes: int) -> bytes:
    """Encode lists: their end on the host, until all lanes work; the others on the device."""
    device = lists[0][0].device
    entries = torch.cat([part for part, _ in lists])
    on_host = np.split(entries.cpu().numpy().view(np.uint32), np.cumsum([len(part) for part, _ in lists])[:-1])
    shared = [whole for _, whole in lists]
    end = backend_of(None).begin_push(list(zip(on_host, shared, strict=True)), groups, lanes)
    # The lists for the device: whole ones, then the first symbols of the one in which all lanes began to work.
    sizes = [len(part) for part, _ in lists[: end.number]] + ([end.left] if end.left else [])
    begins = np.cumsum([0, *(len(part) for part, _ in lists)])
    bounds = np.append(begins[: len(sizes)], begins[len(sizes) - 1] + sizes[-1] if sizes else 0)
    capacity = [sum(-(-size // (groups * lanes)) * lanes if whole else (0 if group else size)
                for size, whole in zip(sizes, shared, strict=False)) + lanes for group in range(groups)]  # fmt: skip
    ends = np.cumsum(capacity)
    words = torch.zeros(int(ends[-1]), dtype=torch.int16, device=device)
    x = np.full((groups, GROUP), layout.LOWER, np.int64)
    x[:, :lanes] = end.encoder.x
    state = torch.from_numpy(x.astype(np.uint32).view(np.int32)).to(device)
    free = torch.from_numpy(ends.astype(np.int32)).to(device)
    with on(device):
        kernels.rans_push_kernel[(groups,)](
            entries, torch.from_numpy(bounds.astype(np.int32)).to(device),
            torch.tensor([*shared[: len(sizes)], True], dtype=torch.int32, device=device), state, words, free,
            len(sizes), groups, lanes, **LAUNCHES["push"].options(),
        )  # fmt: skip
    starts, written = free.cpu().tolist(), words.cpu().numpy().view(np.uint16)
    parts = [
        np.concatenate([written[start:stop], np.array(last_words[::-1], np.uint16)])
        for start, stop, last_words in zip(starts, ends.tolist(), end.encoder.out, strict=True)
    ]
    highs = state.cpu().numpy().view(np.uint32)[:, :lanes]
    bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return layout.pack(layout.Parts(end.ramp, end.ramp_steps, highs, np.concatenate(parts), bounds))
