"""Encoding on a GPU: torch's operations, the host where numbers are few, and kernels_push.py while all lanes work."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lalic_kernels.launch import Launch, on
from lalic_kernels.rans.grouped import kernels_push, layout, reference
from lalic_kernels.rans.grouped.gpu import DeviceTables, check_device, device_tables
from lalic_kernels.rans.grouped.layout import GROUP, Survey, grouped_tables
from lalic_kernels.rans.grouped.op import check_choice, choose
from lalic_kernels.rans.op import _check_tables
from lalic_kernels.rans.tables import CodingTables

LAUNCHES = {"push": Launch((("LANES", GROUP),), num_warps=1)}


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
    check_device(device)
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
        kernels_push.rans_push_kernel[(groups,)](
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
