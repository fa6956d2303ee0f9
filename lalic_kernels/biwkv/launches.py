"""Frozen launch configurations of BiWKV's kernels, by architecture and shape: the rules; the rows are in launches.json.

The choice depends on device, dtype and shape alone, never on what ran before, so results are the same from run to run.
`python -m benchmarks.tune biwkv` measures an architecture's own rows; until somebody did, "any" serves.

A row of the table is for one of three uses:

* "forward": chunk_sums and rows. GROUPS groups of four tokens make a chunk. Counted in tokens.
* "backward": chunk_sums and the gradient kernels. LENGTH tokens make a chunk. Counted in tokens.
* "scan": PIECE chunks at a time. Counted in chunks; for every dtype, because states are float32.

From `start` tokens (or chunks) on, until the next row's start, it is the one that is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lalic_kernels._core.launch import Launch, blocks

PER_GROUP = 4
FILE = Path(__file__).with_name("launches.json")
CONSTANTS = {"forward": ("GROUPS", "BLOCK_C"), "backward": ("LENGTH", "BLOCK_C"), "scan": ("PIECE", "BLOCK_C")}


@dataclass(frozen=True)
class Row:
    """A row of the table. `architecture` is "any", or as "cuda 90" or "hip gfx942"; itemsize is None for "scan"."""

    use: str
    architecture: str
    itemsize: int | None
    start: int
    launch: Launch


@dataclass(frozen=True)
class Choice:
    """The launches of one call, and whether channels come in whole 16-byte vectors (VEC of them, else 1)."""

    rows: Launch
    scan: Launch
    chunk: int
    vec: int


def parse(table: Iterable[dict[str, Any]]) -> tuple[Row, ...]:
    """Rows from what the file holds. Raises ValueError for a row that no kernel could be launched with."""
    rows = []
    for found in table:
        use, constants = found["use"], tuple((name, found[name]) for name in CONSTANTS[found["use"]])
        sizes = [*(number for _, number in constants), found["num_warps"]]
        if any(number < 1 or number & (number - 1) for number in sizes):
            raise ValueError(f"launches.json: a size or a number of warps is no power of two in {found}")
        launch = Launch(constants, num_warps=found["num_warps"])
        rows.append(Row(use, found["architecture"], found["itemsize"], found["start"], launch))
    keys = [(row.use, row.architecture, row.itemsize, row.start) for row in rows]
    if len(set(keys)) < len(keys):
        raise ValueError("launches.json: two rows for one use, architecture, itemsize and start")
    firsts = {(row.use, row.architecture, row.itemsize) for row in rows if row.start == 0}
    if {key[:3] for key in keys} != firsts:
        raise ValueError("launches.json: rows that start above 0 without one that starts there")
    return tuple(rows)


TABLE = parse(json.loads(FILE.read_text(encoding="utf-8")))
JOIN = Launch((("BLOCK", 256),), num_warps=4)


def architecture(device: torch.device) -> str:
    """The name of a device's architecture in the table; "any" for the interpreter."""
    if device.type != "cuda":
        return "any"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "hip " + properties.gcnArchName.split(":")[0]
    return f"cuda {properties.major}{properties.minor}"


def find(use: str, arch: str, itemsize: int | None, size: int) -> Launch:
    """The launch for `size` tokens or chunks: of the architecture's own rows where it has any, else of "any"."""
    fitting = [row for row in TABLE if row.use == use and row.itemsize == itemsize and row.start <= size]
    rows = [row for row in fitting if row.architecture == arch] or [row for row in fitting if row.architecture == "any"]
    return max(rows, key=lambda row: row.start).launch


def choose(arch: str, tokens: int, channels: int, itemsize: int) -> Choice:
    """The configuration for T tokens and C channels of `itemsize` bytes."""
    rows = find("forward", arch, itemsize, tokens)
    return complete(rows, PER_GROUP * rows["GROUPS"], arch, tokens, channels, itemsize)


def choose_backward(arch: str, tokens: int, channels: int, itemsize: int) -> Choice:
    """The backward's configuration, likewise."""
    rows = find("backward", arch, itemsize, tokens)
    return complete(rows, rows["LENGTH"], arch, tokens, channels, itemsize)


def sums_of(rows: Launch, itemsize: int) -> Launch:
    """The backward's launch of chunk_sums: a group of tokens and 16 bytes of channels a thread, for wide loads."""
    groups, block_c = rows["LENGTH"] // PER_GROUP, rows["BLOCK_C"]
    warps = max(1, groups * block_c * itemsize // (16 * 32))
    return Launch((("GROUPS", groups), ("BLOCK_C", block_c)), num_warps=warps)


def complete(rows: Launch, chunk: int, arch: str, tokens: int, channels: int, itemsize: int) -> Choice:
    """A call's launches, the one by chunks given."""
    vec = 16 // itemsize
    scan = find("scan", arch, None, blocks(tokens, chunk))
    return Choice(rows, scan, chunk, vec if channels % vec == 0 else 1)
