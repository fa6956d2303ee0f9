"""BiWKV on a GPU: the launches of its Triton kernels, forward and backward, and their table, launches.json.

The choice of a launch depends on device, dtype and shape alone, never on what ran before, so results are the same from
run to run. `python -m benchmarks.tune biwkv` measures an architecture's own rows; until somebody did, "any" serves.

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
from torch import Tensor

from lalic_kernels.launch import Launch, architecture, blocks, on

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
    """The backward's configuration for T tokens and C channels of `itemsize` bytes."""
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


def make_factors(w: Tensor, u: Tensor, choice: Choice) -> Tensor:
    """The powers of exp(w) for a launch configuration; contiguous float32 w and u. A caller may cache them."""
    from lalic_kernels.biwkv import kernels

    groups, block_c = choice.rows["GROUPS"], choice.rows["BLOCK_C"]
    factors = torch.empty((2 * groups + 4, w.shape[0]), dtype=torch.float32, device=w.device)
    with on(w.device):
        kernels.factors_kernel[(blocks(w.shape[0], block_c),)](
            w, u, factors, w.shape[0], GROUPS=groups, PER_GROUP=PER_GROUP, BLOCK_C=block_c, num_warps=4
        )
    return factors


def forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None, factors: Tensor | None = None
) -> Tensor:
    """y, or sigmoid(gate) * y, (B, T, C) in k's dtype; w, u (C,) of any dtype, k, v and gate (B, T, C) of one.

    factors: what `make_factors` returned for w and u and these sizes, or None to make it here. Four launches, or three.
    """
    from lalic_kernels.biwkv import kernels

    batch, tokens, channels = k.shape
    w, u, k, v = w.float().contiguous(), u.float().contiguous(), k.contiguous(), v.contiguous()
    gates = k if gate is None else gate.contiguous()  # without a gate nothing is read through its pointer
    choice = choose(architecture(k.device), tokens, channels, k.element_size())
    groups, block_c = choice.rows["GROUPS"], choice.rows["BLOCK_C"]
    chunks, across = blocks(tokens, choice.chunk), blocks(channels, block_c)
    plane = batch * chunks * channels
    if factors is None:
        factors = make_factors(w, u, choice)
    sums, entering = torch.empty((2, 6, batch, chunks, channels), dtype=torch.float32, device=k.device)
    y = torch.empty_like(k)
    options = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False}
    with on(k.device):
        kernels.chunk_sums_kernel[(across, batch * chunks)](
            w, k, v, factors, sums, w, tokens, channels, chunks, plane, **options, CENTRED=False
        )
        kernels.chunk_scan_kernel[(batch, blocks(channels, choice.scan["BLOCK_C"]))](
            w, u, factors, sums, entering, entering, w, w, channels, chunks, plane,
            GROUPS=groups, PER_GROUP=PER_GROUP, FOLDED=PER_GROUP, BACKWARD=False,
            **choice.scan.options(),
        )  # fmt: skip
        kernels.rows_kernel[(across, batch * chunks)](
            w, u, k, v, gates, factors, entering, y, tokens, channels, chunks, plane, **options, GATED=gate is not None
        )
    return y


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(grad_w, grad_u float32, grad_k, grad_v, grad_gate or None); arguments as `forward`'s, grad as k.

    What the forward computed on its way is computed again, not stored. Work space: two float32 tensors of k's shape,
    which only the logarithmic form touches, and 50 floats per chunk and channel. Bit-identical from run to run:
    shares of grad_w and grad_u are added in one order, in float64.
    """
    from lalic_kernels.biwkv import kernels, kernels_backward

    w, u = w.float().contiguous(), u.float().contiguous()
    k, v, grad = k.contiguous(), v.contiguous(), grad.contiguous()
    gate = None if gate is None else gate.contiguous()
    batch, tokens, channels = k.shape
    choice = choose_backward(architecture(k.device), tokens, channels, k.element_size())
    length, block_c, per = choice.chunk, choice.rows["BLOCK_C"], PER_GROUP
    chunks, across = blocks(tokens, length), blocks(channels, block_c)
    plane = batch * chunks * channels

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=k.device)

    grouped, single = floats(2 * (length // per) + 4, channels), floats(2 * length + 4, channels)
    sums, entering, own, transposed, running = floats(5, 6, batch, chunks, channels)
    constants, parts = floats(18, batch, chunks, channels), floats(2, batch * chunks, channels)
    log_den, y = floats(2, batch, tokens, channels)
    peaks, centre = floats(batch, chunks, channels), floats(batch, channels)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    gated = gate is not None
    # Without a gate nothing is read or written through its pointers.
    gates, grad_gate = (gate, torch.empty_like(k)) if gate is not None else (k, grad_k)
    sizes = (tokens, channels, chunks, plane)
    rows = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False, "GATED": gated}
    of_sums = {"GROUPS": length // per, "BLOCK_C": block_c, "VEC": choice.vec, "FAST_ONLY": False, "CENTRED": True}
    scan = choice.scan.options()
    by_chunk, by_item = (across, batch * chunks), (batch, blocks(channels, choice.scan["BLOCK_C"]))
    with on(k.device):
        for factors, groups, tokens_each in ((grouped, length // per, per), (single, length, 1)):
            kernels.factors_kernel[(across,)](
                w, u, factors, channels, GROUPS=groups, PER_GROUP=tokens_each, BLOCK_C=block_c, num_warps=4
            )
        kernels.chunk_sums_kernel[by_chunk](
            w, k, v, grouped, sums, peaks, *sizes, **of_sums,
            num_warps=sums_of(choice.rows, k.element_size()).num_warps,
        )  # fmt: skip
        kernels.chunk_scan_kernel[by_item](
            w, u, grouped, sums, entering, own, peaks, centre, *sizes[1:],
            GROUPS=length // per, PER_GROUP=per, FOLDED=1, BACKWARD=True, **scan,
        )  # fmt: skip
        kernels_backward.grad_sums_kernel[by_chunk](
            w, u, k, v, gates, grad, centre, single, entering, transposed, log_den, y, *sizes, **rows
        )
        kernels_backward.grad_scan_kernel[(*by_item, 2)](
            w, single, transposed, running, *sizes[1:], LENGTH=length, **scan
        )
        kernels_backward.grad_join_kernel[(blocks(plane, JOIN["BLOCK"]), 2)](
            w, sums, own, transposed, running, constants, channels, plane, LENGTH=length, **JOIN.options()
        )
        kernels_backward.grad_rows_kernel[by_chunk](
            w, u, k, v, gates, grad, centre, single, constants, log_den, y, grad_k, grad_v, grad_gate, parts,
            *sizes, **rows,
        )  # fmt: skip
    grad_w, grad_u = parts.sum(1, dtype=torch.float64).to(torch.float32)
    return grad_w, grad_u, grad_k, grad_v, grad_gate if gated else None
