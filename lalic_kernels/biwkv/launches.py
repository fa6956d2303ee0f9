"""Frozen launch configurations of BiWKV's kernels, by architecture and shape.

The choice depends on device, dtype and shape alone, never on what ran before, so results are the same from run to run.
GROUPS groups of four tokens make a chunk of the forward; BLOCK_C channels make a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lalic_kernels._core.launch import Launch

# From this many tokens on, chunks are long: less traffic for states; below, short ones: more programs.
LONG_FROM = 1024
PER_GROUP = 4


def _launch(groups: int, block_c: int, warps: int) -> Launch:
    return Launch((("GROUPS", groups), ("BLOCK_C", block_c)), num_warps=warps)


# (architecture or "any", size, bytes an element) -> configuration. An architecture is "cuda 90" or "hip gfx942".
TABLE: dict[tuple[str, str, int], Launch] = {
    ("any", "short", 2): _launch(16, 32, 2),
    ("any", "short", 4): _launch(16, 16, 2),
    ("any", "long", 2): _launch(64, 16, 4),
    ("any", "long", 4): _launch(64, 16, 8),
}
# The backward's: LENGTH tokens make a chunk.
BACKWARD: dict[tuple[str, str, int], Launch] = {
    ("any", "all", 2): Launch((("LENGTH", 64), ("BLOCK_C", 16)), num_warps=4),
    ("any", "all", 4): Launch((("LENGTH", 64), ("BLOCK_C", 16)), num_warps=4),
}
# Chunks that a program of the scan takes at a time, by the number of chunks.
SCANS: dict[str, Launch] = {
    "few": Launch((("PIECE", 32), ("BLOCK_C", 4)), num_warps=1),
    "many": Launch((("PIECE", 128), ("BLOCK_C", 4)), num_warps=4),
}

JOIN = Launch((("BLOCK", 256),), num_warps=4)


@dataclass(frozen=True)
class Choice:
    """The launches of one call, and whether channels come in whole 16-byte vectors (VEC of them, else 1)."""

    rows: Launch
    scan: Launch
    chunk: int
    vec: int


def architecture(device: torch.device) -> str:
    """The name of a device's architecture in the table; "any" for the interpreter."""
    if device.type != "cuda":
        return "any"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return "hip " + properties.gcnArchName.split(":")[0]
    return f"cuda {properties.major}{properties.minor}"


def choose(arch: str, tokens: int, channels: int, itemsize: int) -> Choice:
    """The configuration for T tokens and C channels of `itemsize` bytes."""
    size = "long" if tokens >= LONG_FROM else "short"
    rows = TABLE.get((arch, size, itemsize)) or TABLE["any", size, itemsize]
    return _complete(rows, PER_GROUP * rows["GROUPS"], tokens, channels, itemsize)


def choose_backward(arch: str, tokens: int, channels: int, itemsize: int) -> Choice:
    """The backward's configuration, likewise."""
    rows = BACKWARD.get((arch, "all", itemsize)) or BACKWARD["any", "all", itemsize]
    return _complete(rows, rows["LENGTH"], tokens, channels, itemsize)


def _complete(rows: Launch, chunk: int, tokens: int, channels: int, itemsize: int) -> Choice:
    scan = SCANS["few" if -(-tokens // chunk) <= SCANS["few"]["PIECE"] else "many"]
    vec = 16 // itemsize
    return Choice(rows, scan, chunk, vec if channels % vec == 0 else 1)
