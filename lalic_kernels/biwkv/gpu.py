"""BiWKV on a GPU: the launches of its Triton kernels, forward and backward, and their table, launches.json.

The choice of a launch depends on device, dtype and shape only, so results are the same from run to run.
`python -m benchmarks.tune biwkv` measures rows for an architecture; without such rows those of "any" are used.

A row of the table has one of three uses:

* "forward": chunk_sums and rows. A chunk has GROUPS groups of four tokens. Sizes are tokens.
* "backward": chunk_sums and the gradient kernels. A chunk has LENGTH tokens. Sizes are tokens.
* "scan": PIECE chunks at a time. Sizes are chunks. For every dtype, because states are float32.

A row is used for sizes from its `start` up to the next row's start.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, architecture, blocks, on, vector

PER_GROUP = 4
FILE = Path(__file__).with_name("launches.json")
CONSTANTS = {"forward": ("GROUPS", "BLOCK_C"), "backward": ("LENGTH", "BLOCK_C"), "scan": ("PIECE", "BLOCK_C")}


@dataclass(frozen=True)
class Row:
    """A row of the table. architecture: "any", "cuda 90", "hip gfx942", ...; itemsize: None for "scan"."""

    use: str
    architecture: str
    itemsize: int | None
    start: int
    launch: Launch


@dataclass(frozen=True)
class Choice:
    """The launches of one call, tokens per chunk, and channels in a 16-byte vector (1 if C is not a multiple)."""

    rows: Launch
    scan: Launch
    chunk: int
    vec: int


def parse(table: Iterable[dict[str, Any]]) -> tuple[Row, ...]:
    """The rows of the file's content.

    Raises:
        ValueError: a size is not a power of two, a row appears twice, or sizes from 0 on are not covered.
    """
    rows = []
    for entry in table:
        use, constants = entry["use"], tuple((name, entry[name]) for name in CONSTANTS[entry["use"]])
        sizes = [*(number for _, number in constants), entry["num_warps"]]
        if any(number < 1 or number & (number - 1) for number in sizes):
            raise ValueError(f"launches.json: sizes and num_warps must be powers of two, but one is not in {entry}")
        launch = Launch(constants, num_warps=entry["num_warps"])
        rows.append(Row(use, entry["architecture"], entry["itemsize"], entry["start"], launch))
    keys = [(row.use, row.architecture, row.itemsize, row.start) for row in rows]
    if len(set(keys)) < len(keys):
        raise ValueError("launches.json: there are two rows for one use, architecture, itemsize and start")
    at_zero = {(row.use, row.architecture, row.itemsize) for row in rows if row.start == 0}
    if {key[:3] for key in keys} != at_zero:
        raise ValueError("launches.json: one row of each use, architecture and itemsize must have start 0")
    return tuple(rows)


TABLE = parse(json.loads(FILE.read_text(encoding="utf-8")))
JOIN = Launch((("BLOCK", 256),), num_warps=4)


def rows_of(use: str, arch: str, itemsize: int | None) -> list[Row]:
    """The rows of the architecture if there are any, else of "any"."""
    fitting = [row for row in TABLE if row.use == use and row.itemsize == itemsize]
    return [row for row in fitting if row.architecture == arch] or [row for row in fitting if row.architecture == "any"]


def find(use: str, arch: str, itemsize: int | None, size: int) -> Launch:
    """The launch for `size` tokens or chunks."""
    fitting = [row for row in rows_of(use, arch, itemsize) if row.start <= size]
    return max(fitting, key=lambda row: row.start).launch


def choose(use: str, arch: str, tokens: int, channels: int, itemsize: int) -> Choice:
    """The configuration of the "forward" or "backward" for T tokens and C channels of `itemsize` bytes."""
    rows = find(use, arch, itemsize, tokens)
    chunk = rows["LENGTH"] if use == "backward" else PER_GROUP * rows["GROUPS"]
    return Choice(rows, find("scan", arch, None, blocks(tokens, chunk)), chunk, vector(itemsize, channels))


def sums_of(rows: Launch, itemsize: int) -> Launch:
    """The backward's launch of chunk_sums: each thread has a group of tokens and 16 bytes of channels."""
    groups, block_c = rows["LENGTH"] // PER_GROUP, rows["BLOCK_C"]
    warps = max(1, groups * block_c * itemsize // (16 * 32))
    return Launch((("GROUPS", groups), ("BLOCK_C", block_c)), num_warps=warps)


def make_factors(w: Tensor, u: Tensor, choice: Choice, per_group: int = PER_GROUP) -> Tensor:
    """The powers of exp(w) for groups of a chunk, (2 GROUPS + 4, C) float32; w, u (C,) contiguous float32."""
    from lalic_kernels.biwkv import kernels

    channels, groups = w.shape[0], choice.chunk // per_group
    launch = Launch((("BLOCK_C", choice.rows["BLOCK_C"]),), num_warps=4)
    factors = torch.empty((2 * groups + 4, channels), dtype=torch.float32, device=w.device)
    with on(w.device):
        kernels.factors_kernel[(blocks(channels, launch["BLOCK_C"]),)](
            w, u, factors, channels, GROUPS=groups, PER_GROUP=per_group, **launch.options()
        )
    return factors


_compiled: set[tuple[Any, ...]] = set()  # device, dtype, vector, and whether gated


def compile_forward(k: Tensor, arch: str, vec: int, gated: bool) -> None:
    """At the first call of a kind: one launch with each row of the table, so that no later length has to compile."""
    kind = (k.device, k.dtype, vec, gated)
    if kind in _compiled or arch == "any":  # "any": the interpreter, which compiles nothing
        return
    _compiled.add(kind)
    w, x = torch.zeros(vec, device=k.device), torch.zeros(1, 1, vec, dtype=k.dtype, device=k.device)
    rows = [row.launch for row in rows_of("forward", arch, k.element_size())]
    scans = [row.launch for row in rows_of("scan", arch, None)]
    for row, scan in itertools.zip_longest(rows, scans):
        choice = Choice(row or rows[0], scan or scans[0], PER_GROUP * (row or rows[0])["GROUPS"], vec)
        _forward(w, w, x, x, x if gated else None, None, choice)


def forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None, factors: Tensor | None = None
) -> Tensor:
    """y, or sigmoid(gate) * y, (B, T, C) in k's dtype; w, u (C,) in any dtype, k, v and gate (B, T, C) in one.

    factors: the result of `make_factors` for w, u and these sizes, which saves one of four launches; or None.
    """
    w, u, k, v = w.float().contiguous(), u.float().contiguous(), k.contiguous(), v.contiguous()
    arch = architecture(k.device)
    choice = choose("forward", arch, k.shape[1], k.shape[2], k.element_size())
    compile_forward(k, arch, choice.vec, gate is not None)
    return _forward(w, u, k, v, None if gate is None else gate.contiguous(), factors, choice)


def _forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, factors: Tensor | None, choice: Choice
) -> Tensor:
    """`forward` of contiguous tensors."""
    from lalic_kernels.biwkv import kernels

    batch, tokens, channels = k.shape
    gates = k if gate is None else gate  # without a gate its pointer is not read
    chunks = blocks(tokens, choice.chunk)
    plane, by_chunk = batch * chunks * channels, (batch * chunks * blocks(channels, choice.rows["BLOCK_C"]),)
    if factors is None:
        factors = make_factors(w, u, choice)
    sums, entering = torch.empty((2, 6, batch, chunks, channels), dtype=torch.float32, device=k.device)
    y = torch.empty_like(k)
    options = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False}
    with on(k.device):
        kernels.chunk_sums_kernel[by_chunk](
            w, k, v, factors, sums, w, tokens, channels, chunks, plane, **options, CENTRED=False
        )
        kernels.chunk_scan_kernel[(batch * blocks(channels, choice.scan["BLOCK_C"]),)](
            w, u, factors, sums, entering, entering, w, w, channels, chunks, plane,
            choice.rows["GROUPS"], BACKWARD=False, **choice.scan.options(),
        )  # fmt: skip
        kernels.rows_kernel[by_chunk](
            w, u, k, v, gates, factors, entering, y, tokens, channels, chunks, plane, **options, GATED=gate is not None
        )
    return y


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(grad_w, grad_u (C,) float32; grad_k, grad_v, grad_gate or None, as k) from `forward`'s arguments and grad.

    The forward's intermediate results are computed again. Work space: two float32 tensors of k's shape, used only by
    the logarithmic form, and 50 floats per chunk and channel. Bit-identical from run to run: partial sums of grad_w and
    grad_u are added in a fixed order in float64.
    """
    from lalic_kernels.biwkv import kernels, kernels_backward

    w, u = w.float().contiguous(), u.float().contiguous()
    k, v, grad = k.contiguous(), v.contiguous(), grad.contiguous()
    gate = None if gate is None else gate.contiguous()
    batch, tokens, channels = k.shape
    choice = choose("backward", architecture(k.device), tokens, channels, k.element_size())
    length, chunks = choice.chunk, blocks(tokens, choice.chunk)
    plane = batch * chunks * channels

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=k.device)

    grouped, single = make_factors(w, u, choice), make_factors(w, u, choice, 1)
    sums, entering, own, transposed, running = floats(5, 6, batch, chunks, channels)
    constants, parts = floats(18, batch, chunks, channels), floats(2, batch * chunks, channels)
    log_den, y = floats(2, batch, tokens, channels)
    peaks, centre = floats(batch, chunks, channels), floats(batch, channels)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    gated = gate is not None
    # Without a gate its pointers are not used.
    gates, grad_gate = (gate, torch.empty_like(k)) if gate is not None else (k, grad_k)
    sizes = (tokens, channels, chunks, plane)
    rows = choice.rows.options() | {"VEC": choice.vec, "FAST_ONLY": False, "GATED": gated}
    scan = choice.scan.options()
    by_chunk = (batch * chunks * blocks(channels, choice.rows["BLOCK_C"]),)
    by_item = batch * blocks(channels, choice.scan["BLOCK_C"])
    with on(k.device):
        kernels.chunk_sums_kernel[by_chunk](
            w, k, v, grouped, sums, peaks, *sizes, **sums_of(choice.rows, k.element_size()).options(),
            VEC=choice.vec, FAST_ONLY=False, CENTRED=True,
        )  # fmt: skip
        kernels.chunk_scan_kernel[(by_item,)](
            w, u, grouped, sums, entering, own, peaks, centre, *sizes[1:],
            length // PER_GROUP, BACKWARD=True, **scan,
        )  # fmt: skip
        kernels_backward.grad_sums_kernel[by_chunk](
            w, u, k, v, gates, grad, centre, single, entering, transposed, log_den, y, *sizes, **rows
        )
        kernels_backward.grad_scan_kernel[(by_item, 2)](
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
