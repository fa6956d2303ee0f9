"""The grouped coder on a GPU: kernels.py and what launches it. Decoding never waits for the device before `finish`."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels._core import triton_support
from lalic_kernels._core.dispatch import BackendUnavailable
from lalic_kernels._core.launch import Launch, blocks, on
from lalic_kernels.rans.grouped import kernels, layout, reference
from lalic_kernels.rans.grouped.layout import GROUP, GroupedTables, Survey, grouped_tables
from lalic_kernels.rans.grouped.op import FAULTS, check_choice, choose, parts_of
from lalic_kernels.rans.op import RansError, _check_tables
from lalic_kernels.rans.tables import CodingTables

# One warp a group: its lanes agree on the order of their words without a barrier.
LAUNCHES = {
    "count": Launch((("BLOCK", 1024),)),
    "exceptions": Launch((("LANES", GROUP), ("BLOCK", 256)), num_warps=1),
    "spread": Launch((("BLOCK", 1024),)),
    "main": Launch((("LANES", GROUP),), num_warps=1),
    "escapes": Launch((("LANES", GROUP), ("BLOCK", 256)), num_warps=1),
    "push": Launch((("LANES", GROUP),), num_warps=1),
}
_FAULTS = {reference.BAD_INDEX: "an index lies outside the tables"} | FAULTS  # the cause before what follows from it


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


def _check_device(device: torch.device) -> None:
    if not triton_support.INSTALLED or (device.type != "cuda" and not triton_support.interpreting()):
        raise BackendUnavailable(
            f"the GPU coder needs triton and a CUDA device, or triton's interpreter; "
            f"triton: {triton_support.INSTALLED}, device: {device}"
        )


class DeviceDecoder:
    """As `Decoder`, on a GPU: decode() takes and gives tensors there and does not wait; finish() does, and raises.

    data: bytes-like; the stream. tables: those of the encoder. device: of the tensors. room: groups and words of the
    largest stream that `load` shall take; None for no more than this one's. What decode() launches depends on its
    number of symbols and on the room, not on the stream.

    After a fault the symbols are meaningless but there are as many as asked for, and finish() raises RansError.
    Raises RansError at once for a header that cannot be right, BackendUnavailable where Triton cannot run.
    """

    def __init__(
        self, data: bytes, tables: CodingTables, device: torch.device, room: tuple[int, int] | None = None
    ) -> None:
        _check_tables(tables)
        _check_device(device)
        self.device = device
        self._tables = device_tables(tables, device)
        parts = parts_of(data)
        if room is None:
            room = (1, 1) if parts is None else (len(parts.highs), len(parts.words))
        self._groups, self._most = room
        # One piece of memory and one copy: lanes, control, stages, info, words; each aligned to 16 bytes.
        sizes = [GROUP * self._groups, 8 * self._groups, 8, 4, (self._most + 16) // 8 * 4]
        self._places = np.cumsum([0, *sizes]).tolist()
        self._memory = torch.zeros(self._places[-1], dtype=torch.int32, device=device)
        cut = [self._memory[begin:end] for begin, end in zip(self._places, self._places[1:], strict=False)]
        self._x, self._control, self._stages, self._info = cut[:4]
        self._words = cut[4].view(torch.int16)
        self._start(parts)

    def load(self, data: bytes) -> None:
        """Begin with another stream in the same memory, so that what has been captured of decode() serves again.

        Raises RansError as the constructor, ValueError for a stream that is larger than the room or empty.
        """
        parts = parts_of(data)
        if parts is None or len(parts.highs) > self._groups or len(parts.words) > self._most:
            raise ValueError(f"data must be a stream of 1 to {self._groups} groups and {self._most} words")
        self._start(parts)

    def _start(self, parts: layout.Parts | None) -> None:
        self._parts = parts
        self._asked = False
        if parts is None:
            return
        groups, lanes = parts.highs.shape
        joined = np.zeros(self._places[-1], np.int32)
        x, control, stages, _, words = (
            joined[begin:end] for begin, end in zip(self._places, self._places[1:], strict=False)
        )
        first = parts.words[parts.bounds[:-1, None] + np.arange(lanes)]
        states = np.full((groups, GROUP), layout.LOWER, np.uint32)
        states[:, :lanes] = parts.highs << np.uint32(16) | first
        x[: GROUP * groups] = states.view(np.int32).ravel()
        rows = control.reshape(-1, 8)[:groups]
        rows[:, 0], rows[:, 1] = parts.bounds[:-1] + lanes, parts.bounds[1:]
        rows[:, 2], rows[:, 3], rows[:, 6], rows[:, 7] = lanes, -1, parts.fan, parts.level << 16 | groups
        stages[: len(parts.stages)] = np.minimum(parts.stages, 1 << 30)
        words.view(np.uint16)[: len(parts.words)] = parts.words
        # From pageable memory, so it has been read when this returns, and nothing waits for what the device does.
        self._memory.copy_(torch.from_numpy(joined), non_blocking=True)

    def decode(self, indexes: Tensor) -> Tensor:
        """The next section's symbols (n,) int32, for its table rows (n,) int32, both on the device."""
        if indexes.dtype != torch.int32 or indexes.dim() != 1 or indexes.device != self.device:
            raise ValueError(
                f"indexes must be int32 (n,) on {self.device}, but are {indexes.dtype} {tuple(indexes.shape)} on "
                f"{indexes.device}"
            )
        count = indexes.numel()
        out = torch.zeros(count, dtype=torch.int32, device=self.device)
        if count == 0 or self._parts is None:
            self._asked |= count > 0
            return out
        self._asked = True
        rows, t = indexes.contiguous(), self._tables
        across = blocks(count, LAUNCHES["spread"]["BLOCK"])
        counts = torch.empty(across, dtype=torch.int32, device=self.device)
        numbers, row, place = torch.empty((3, count), dtype=torch.int32, device=self.device)
        raw = torch.empty(count, dtype=torch.int64, device=self.device)
        with on(self.device):
            kernels.rans_count_kernel[(across,)](
                rows, t.quiet, counts, self._control, count, t.rows, **LAUNCHES["count"].options()
            )
            kernels.rans_exceptions_kernel[(1,)](
                counts, numbers, self._x, self._words, self._control, self._info, count, across,
                **LAUNCHES["exceptions"].options(),
            )  # fmt: skip
            kernels.rans_spread_kernel[(across,)](
                rows, t.quiet, t.mode, counts, numbers, self._control, self._info, row, place, out, count, t.rows,
                **LAUNCHES["spread"].options(),
            )  # fmt: skip
            kernels.rans_main_kernel[(self._groups,)](
                self._x, self._words, self._control, self._stages, self._info, row, place, t.coarse, t.packed, t.bias,
                out, t.rows, **LAUNCHES["main"].options(),
            )  # fmt: skip
            kernels.rans_escapes_kernel[(1,)](
                self._x, self._words, self._control, self._info, row, place, numbers, raw, t.offset, t.escape, t.mode,
                rows, out, t.rows, **LAUNCHES["escapes"].options(),
            )  # fmt: skip
        return out

    def finish(self) -> None:
        """Waits for the device. Raises RansError as `Decoder` would have, there or in decode()."""
        if self._parts is None:
            if self._asked:
                raise RansError("the stream is empty, but symbols are asked of it")
            return
        if not self._asked:
            raise RansError("the stream holds something, but no symbols were asked of it")
        joined = torch.cat([self._info, self._control, self._x]).cpu()
        faults, control = int(joined[3]), joined[4 : 4 + 8 * self._groups].reshape(-1, 8)
        for code, sentence in _FAULTS.items():
            if faults >> -code & 1:
                raise RansError(sentence)
        control = control[: int(control[0, 7]) & 0xFFFF]
        left = control[:, 1] - control[:, 0]
        if bool((left < 0).any()):
            raise RansError(FAULTS[reference.OUT_OF_WORDS])
        if bool(left.any()):
            raise RansError(f"{int(left.sum())} words of the stream are left after its last symbol")
        x = joined[4 + 8 * self._groups :].reshape(-1, GROUP)[: len(control)]
        if bool((x[:, : int(control[0, 2])] != layout.LOWER).any()):
            raise RansError("the states do not return to their start: the stream is damaged or for other tables")


def encode(
    sections: Iterable[tuple[Tensor, Tensor]], tables: CodingTables, choice: tuple[int, int, int] | None = None
) -> bytes:
    """`encode` (with a `choice`: `encode_with`) of int32 tensors (n,) on one device; the same bytes.

    What depends on few numbers runs on the host, and waits: the choices, lists of exceptions, escapes, and the end of
    the stream, whose lanes come to work one after the other. Raises ValueError for indexes outside the tables.
    """
    _check_tables(tables)
    if choice is not None:
        check_choice(choice)
    pairs = [(symbols, indexes) for symbols, indexes in sections if symbols.numel()]
    if not pairs:
        return b""
    device = pairs[0][0].device
    _check_device(device)
    own, t = grouped_tables(tables), device_tables(tables, device)
    symbols = torch.cat([part for part, _ in pairs]).long()
    rows = torch.cat([part for _, part in pairs]).long()
    if int(rows.min()) < 0 or int(rows.max()) >= t.rows:
        raise ValueError(f"indexes must lie in 0..{t.rows - 1}, but run from {int(rows.min())} to {int(rows.max())}")
    differs = symbols != t.mode[rows]
    priced = t.priced[t.start[rows] + _positions(symbols, rows, t)]
    sums = torch.zeros((3, t.rows + 1), dtype=torch.int64, device=device)
    for total, values in zip(sums, (torch.ones_like(rows), differs.long(), priced >> 32), strict=True):
        total.index_add_(0, rows, values)
    found = Survey(*sums.cpu().numpy())
    groups, lanes, level = choice or choose(found, own, len(pairs))

    is_quiet = t.quiet[level][rows] != 0
    exception = is_quiet & differs
    row = torch.where(is_quiet, t.rows, rows)
    value = torch.where(is_quiet, symbols - t.mode[rows], symbols)
    position = _positions(value, row, t)
    entries = t.packed[t.start[row] + position]
    active = ~is_quiet | exception
    escaped = active & (position == t.escape[row])
    lists: list[tuple[Tensor, bool]] = []

    def add(parts: list[Any]) -> None:
        lists.extend((torch.from_numpy(part.view(np.int32)).to(device), False) for part in parts)

    begin = 0
    for part, _ in pairs:
        here = slice(begin, begin + part.numel())
        begin += part.numel()
        if bool(is_quiet[here].any()):
            places = (torch.cumsum(is_quiet[here], 0) - 1)[exception[here]]
            add(reference.exception_lists(places.cpu().numpy()))
        lists.append((entries[here][active[here]], True))
        if bool(escaped[here].any()):
            at = escaped[here]
            outside, of = value[here][at].cpu().numpy(), row[here][at].cpu().numpy()
            add([part for part, _ in reference.escape_lists(outside, of, own)])
    return _push(lists, groups, lanes, level)


def _positions(values: Tensor, rows: Tensor, t: DeviceTables) -> Tensor:
    position = values - t.offset[rows]
    last = t.escape[rows].long()
    return torch.where((position >= 0) & (position < last), position, last)


def _push(lists: list[tuple[Tensor, bool]], groups: int, lanes: int, level: int) -> bytes:
    device = lists[0][0].device
    entries = torch.cat([part for part, _ in lists])
    on_host = np.split(entries.cpu().numpy().view(np.uint32), np.cumsum([len(part) for part, _ in lists])[:-1])
    shared = [whole for _, whole in lists]
    end = reference.begin_push(list(zip(on_host, shared, strict=True)), groups, lanes)
    # The first lists, and of the one where all lanes work its first symbols.
    sizes = [len(part) for part, _ in lists[: end.number]] + ([end.left] if end.left else [])
    begins = np.cumsum([0, *(len(part) for part, _ in lists)])
    bounds = np.append(begins[: len(sizes)], begins[len(sizes) - 1] + sizes[-1] if sizes else 0)
    room = [sum(-(-size // (groups * lanes)) * lanes if whole else (0 if group else size)
                for size, whole in zip(sizes, shared, strict=False)) + lanes for group in range(groups)]  # fmt: skip
    tops = np.cumsum(room)
    words = torch.zeros(int(tops[-1]), dtype=torch.int16, device=device)
    x = np.full((groups, GROUP), layout.LOWER, np.int64)
    x[:, :lanes] = end.x
    state = torch.from_numpy(x.astype(np.uint32).view(np.int32)).to(device)
    free = torch.from_numpy(tops.astype(np.int32)).to(device)
    with on(device):
        kernels.rans_push_kernel[(groups,)](
            entries, torch.from_numpy(bounds.astype(np.int32)).to(device),
            torch.tensor([*shared[: len(sizes)], True], dtype=torch.int32, device=device), state, words, free,
            len(sizes), groups, lanes, **LAUNCHES["push"].options(),
        )  # fmt: skip
    taken, done = free.cpu().tolist(), words.cpu().numpy().view(np.uint16)
    parts = [
        np.concatenate([done[begin:top], np.array(rest[::-1], np.uint16)])
        for begin, top, rest in zip(taken, tops.tolist(), end.out, strict=True)
    ]
    highs = state.cpu().numpy().view(np.uint32)[:, :lanes]
    bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return layout.pack(layout.Parts(level, end.fan, end.stages, highs, np.concatenate(parts), bounds))
