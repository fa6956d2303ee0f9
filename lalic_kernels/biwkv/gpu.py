"""BiWKV on a GPU: the launches of its Triton kernels, forward and backward, and their table, launches.json.

The choice of a launch depends on device, dtype and shape only, so results are the same from run to run.
`python -m benchmarks.tune biwkv` measures rows for an architecture; without such rows those of "any" are used.

A row of the table has one of three uses:

* "forward": chunk_sums and rows. A chunk has GROUPS groups of four tokens. Sizes are T * C.
* "backward": chunk_sums and the gradient kernels. A chunk has LENGTH tokens. Sizes are T * C.
* "scan": PIECE chunks at a time. Sizes are chunks. For every dtype, because states are float32.

A row is used for sizes from its `start` up to the next row's start. T * C over a program's block is the number of
programs: few elements take small blocks, so that there is work for every processor. The batch does not count, so the
result for a sequence does not depend on its company.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lalic_kernels.launch import Launch, architecture, blocks, on, vector

PER_GROUP = 4
CONSTANT_ROWS = 10  # of the factors: kernels.py names them
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
    """The launches of one call, tokens per chunk, and channels in a 16-byte vector (1 if C is not a multiple).

    scan: None in a forward of few chunks, where each program of `rows` adds their sums itself.
    """

    rows: Launch
    scan: Launch | None
    chunk: int
    vec: int


class States(NamedTuple):
    """What the backward needs of a forward: the layouts are in kernels.py."""

    factors: Tensor
    entering: Tensor
    centre: Tensor


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


TABLE = parse(json.loads(resources.files(__package__).joinpath(FILE.name).read_text(encoding="utf-8")))
FACTORS = Launch((("BLOCK_T", 64), ("BLOCK_C", 16)), num_warps=4)
# The logarithmic form, in at most this many programs: where it is not needed, its launch must cost little.
LOG = Launch((("LENGTH", 64), ("BLOCK_C", 16)), num_warps=8)
LOG_PROGRAMS = 264


def rows_of(use: str, arch: str, itemsize: int | None) -> list[Row]:
    """The rows of the architecture if there are any, else of "any", by their start."""
    fitting = sorted((row for row in TABLE if row.use == use and row.itemsize == itemsize), key=lambda row: row.start)
    return [row for row in fitting if row.architecture == arch] or [row for row in fitting if row.architecture == "any"]


def find(use: str, arch: str, itemsize: int | None, size: int) -> Launch:
    """The launch for a size: T * C, or chunks."""
    return [row.launch for row in rows_of(use, arch, itemsize) if row.start <= size][-1]


def folds(rows: Launch) -> int:
    """The most chunks whose sums a program of "forward" adds itself: eight states for each of its threads."""
    return 8 * 32 * rows.num_warps // rows["BLOCK_C"]


def choose(use: str, arch: str, tokens: int, channels: int, itemsize: int) -> Choice:
    """The configuration of the "forward" or "backward" for T tokens and C channels of `itemsize` bytes."""
    rows, vec = find(use, arch, itemsize, tokens * channels), vector(itemsize, channels)
    if use == "backward":
        return Choice(rows, find("scan", arch, None, blocks(tokens, rows["LENGTH"])), rows["LENGTH"], vec)
    if blocks(tokens, PER_GROUP * rows["GROUPS"]) > folds(rows):  # many small chunks: the table's last row instead
        rows = rows_of(use, arch, itemsize)[-1].launch
    chunk = PER_GROUP * rows["GROUPS"]
    chunks = blocks(tokens, chunk)
    return Choice(rows, None if chunks <= folds(rows) else find("scan", arch, None, chunks), chunk, vec)


def sums_of(rows: Launch) -> Launch:
    """The "forward" launch with the blocks of a "backward" one: each thread has a group of tokens and four channels."""
    groups, block_c = rows["LENGTH"] // PER_GROUP, rows["BLOCK_C"]
    return Launch((("GROUPS", groups), ("BLOCK_C", block_c)), num_warps=max(1, groups * block_c // (4 * 32)))


def make_factors(w: Tensor, u: Tensor, chunk: int) -> Tensor:
    """The powers of exp(w) for chunks, (2 chunk + 10, C) float32; w, u (C,) contiguous float32."""
    from lalic_kernels.biwkv import kernels

    channels = w.shape[0]
    factors = torch.empty((2 * chunk + CONSTANT_ROWS, channels), dtype=torch.float32, device=w.device)
    with on(w.device):
        kernels.factors_kernel[(blocks(channels, FACTORS["BLOCK_C"]), blocks(chunk, FACTORS["BLOCK_T"]))](
            w, u, factors, channels, chunk, **FACTORS.options()
        )
    return factors


_compiled: set[tuple[Any, ...]] = set()  # device, dtype, vector, and whether gated


def compile_forward(k: Tensor, arch: str, vec: int, gated: bool) -> None:
    """At the first call of a kind: every launch that a size can need, so that no later one has to compile."""
    kind = (k.device, k.dtype, vec, gated)
    if kind in _compiled or arch == "any":  # "any": the interpreter, which compiles nothing
        return
    _compiled.add(kind)
    w, x = (
        torch.zeros(vec, device=k.device, dtype=torch.float32),
        torch.zeros(1, 1, vec, dtype=k.dtype, device=k.device),
    )
    rows = [row.launch for row in rows_of("forward", arch, k.element_size())]
    starts = [max(row.start, folds(rows[-1]) + 1) for row in rows_of("scan", arch, None)]
    scans = dict.fromkeys(find("scan", arch, None, start) for start in starts)
    for launch, scan in (*((row, None) for row in rows), *((rows[-1], scan) for scan in scans)):
        _forward(w, w, x, x, x if gated else None, None, Choice(launch, scan, PER_GROUP * launch["GROUPS"], vec))


def forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None, factors: Tensor | None = None
) -> Tensor:
    """y, or sigmoid(gate) * y, (B, T, C) in k's dtype; w, u (C,) in any dtype, k, v and gate (B, T, C) in one.

    factors: the result of `make_factors` for w, u and these sizes, which saves a launch; or None.
    """
    w, u, k, v = w.float().contiguous(), u.float().contiguous(), k.contiguous(), v.contiguous()
    arch = architecture(k.device)
    choice = choose("forward", arch, k.shape[1], k.shape[2], k.element_size())
    compile_forward(k, arch, choice.vec, gate is not None)
    return _forward(w, u, k, v, None if gate is None else gate.contiguous(), factors, choice)


def _sizes(k: Tensor, chunk: int) -> tuple[int, int, int, int]:
    """T, C, chunks, B * chunks * C."""
    batch, tokens, channels = k.shape
    chunks = blocks(tokens, chunk)
    return tokens, channels, chunks, batch * chunks * channels


def _by_chunk(k: Tensor, chunk: int, rows: Launch) -> tuple[int]:
    """The grid of a kernel whose programs take a chunk and a block of channels each."""
    return (k.shape[0] * blocks(k.shape[1], chunk) * blocks(k.shape[2], rows["BLOCK_C"]),)


def _sums(k: Tensor, v: Tensor, factors: Tensor, rows: Launch, chunk: int, vec: int, centred: bool) -> Tensor:
    """The sums of chunks, (6 if centred else 5, B, chunks, C) float32; rows: a "forward" launch."""
    from lalic_kernels.biwkv import kernels

    sizes = _sizes(k, chunk)
    sums = torch.empty((6 if centred else 5, k.shape[0], sizes[2], sizes[1]), dtype=torch.float32, device=k.device)
    kernels.chunk_sums_kernel[_by_chunk(k, chunk, rows)](
        k, v, factors, sums, *sizes, **rows.options(), VEC=vec, CENTRED=centred
    )
    return sums


def _scan(k: Tensor, factors: Tensor, sums: Tensor, scan: Launch, chunk: int, centre: Tensor | None) -> Tensor:
    """The sums that enter each chunk, (5, B, chunks, C) float32; also writes `centre`, if the sums are centred."""
    from lalic_kernels.biwkv import kernels

    entering = torch.empty_like(sums[:5])
    kernels.chunk_scan_kernel[(k.shape[0] * blocks(k.shape[2], scan["BLOCK_C"]),)](
        factors, sums, entering, centre, *_sizes(k, chunk)[1:], chunk, CENTRED=centre is not None, **scan.options()
    )
    return entering


def _rows(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, factors: Tensor, states: Tensor,
    centre: Tensor | None, rows: Launch, chunk: int, vec: int, fold: int,
) -> Tensor:  # fmt: skip
    """y from the sums that enter each chunk or, if `fold`, from those of at most so many chunks."""
    from lalic_kernels.biwkv import kernels, kernels_log

    gated, y = gate is not None, torch.empty_like(k)
    kernels.rows_kernel[_by_chunk(k, chunk, rows)](
        k, v, gate, factors, states, centre, y, *_sizes(k, chunk), **rows.options(),
        VEC=vec, FOLD=fold, GATED=gated, CENTRED=centre is not None,
    )  # fmt: skip
    grid, pieces = _log_grid(k, LOG)
    kernels_log.log_rows_kernel[grid](w, u, k, v, gate, factors, y, *pieces, chunk, **LOG.options(), GATED=gated)
    return y


def _log_grid(k: Tensor, launch: Launch) -> tuple[tuple[int], tuple[int, int, int]]:
    """The grid of a kernel of the logarithmic form, and its sizes: T, C, pieces of all sequences."""
    batch, tokens, channels = k.shape
    items, across = batch * blocks(tokens, launch["LENGTH"]), blocks(channels, launch["BLOCK_C"])
    return (across * max(1, min(items, LOG_PROGRAMS // across)),), (tokens, channels, items)


def _forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None, factors: Tensor | None, choice: Choice
) -> Tensor:
    """`forward` of contiguous tensors."""
    chunk, rows = choice.chunk, choice.rows
    with on(k.device):
        if factors is None:
            factors = make_factors(w, u, chunk)
        states = _sums(k, v, factors, rows, chunk, choice.vec, centred=False)
        if choice.scan is not None:
            states = _scan(k, factors, states, choice.scan, chunk, None)
        fold = folds(rows) if choice.scan is None else 0
        return _rows(w, u, k, v, gate, factors, states, None, rows, chunk, choice.vec, fold)


def _states(w: Tensor, u: Tensor, k: Tensor, v: Tensor, choice: Choice) -> States:
    """What the backward needs of the forward, from contiguous tensors."""
    factors = make_factors(w, u, choice.chunk)
    sums = _sums(k, v, factors, sums_of(choice.rows), choice.chunk, choice.vec, centred=True)
    centre = torch.empty((k.shape[0], k.shape[2]), dtype=torch.float32, device=k.device)
    assert choice.scan is not None  # of a backward
    return States(factors, _scan(k, factors, sums, choice.scan, choice.chunk, centre), centre)


def shapes_of_states(k: Tensor) -> tuple[tuple[int, ...], ...]:
    """The shapes of `States` for keys k."""
    batch, tokens, channels = k.shape
    chunk = choose("backward", architecture(k.device), tokens, channels, k.element_size()).chunk
    rows = 2 * chunk + CONSTANT_ROWS
    return (rows, channels), (5, batch, blocks(tokens, chunk), channels), (batch, channels)


def forward_for_backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, gate: Tensor | None = None
) -> tuple[Tensor, States]:
    """`forward`, and what `backward` then need not compute again: 20 bytes for each chunk and channel."""
    w, u, k, v = w.float().contiguous(), u.float().contiguous(), k.contiguous(), v.contiguous()
    gate = None if gate is None else gate.contiguous()
    choice = choose("backward", architecture(k.device), k.shape[1], k.shape[2], k.element_size())
    with on(k.device):
        states = _states(w, u, k, v, choice)
        rows = sums_of(choice.rows)
        y = _rows(w, u, k, v, gate, *states, rows, choice.chunk, choice.vec, 0)
    return y, states


def backward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, grad: Tensor, gate: Tensor | None = None, states: States | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """(grad_w, grad_u (C,) float32; grad_k, grad_v, grad_gate or None, as k) from `forward`'s arguments and grad.

    states: of `forward_for_backward` for the same arguments; or None, to compute them again. Work space: two float32
    tensors of k's shape, used only by the logarithmic form, and 8 floats per chunk and channel. Bit-identical from run
    to run: partial sums of grad_w and grad_u are added in a fixed order in float64.
    """
    from lalic_kernels.biwkv import kernels_backward, kernels_log

    w, u = w.float().contiguous(), u.float().contiguous()
    k, v, grad = k.contiguous(), v.contiguous(), grad.contiguous()
    gate = None if gate is None else gate.contiguous()
    batch, tokens, channels = k.shape
    choice = choose("backward", architecture(k.device), tokens, channels, k.element_size())
    sizes, grid = _sizes(k, choice.chunk), _by_chunk(k, choice.chunk, choice.rows)
    options = choice.rows.options() | {"VEC": choice.vec, "GATED": gate is not None}

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=k.device)

    transposed, running = floats(2, 4, batch, sizes[2], channels)
    parts = floats(2, batch * sizes[2], channels)
    log_den, y = floats(2, batch, tokens, channels)
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
    grad_gate = None if gate is None else torch.empty_like(k)
    with on(k.device):
        factors, entering, centre = states or _states(w, u, k, v, choice)
        kernels_backward.grad_sums_kernel[grid](
            k, v, gate, grad, centre, factors, entering, transposed, *sizes, **options
        )
        scan = choice.scan
        assert scan is not None  # of a backward
        kernels_backward.grad_scan_kernel[(batch * blocks(channels, scan["BLOCK_C"]), 2)](
            factors, entering, transposed, running, *sizes[1:], choice.chunk, **scan.options()
        )
        kernels_backward.grad_rows_kernel[grid](
            k, v, gate, grad, centre, factors, entering, running, grad_k, grad_v, grad_gate, parts, *sizes, **options
        )
        # The logarithmic form in pieces of a chunk, whose parts it replaces.
        grid, pieces = _log_grid(k, choice.rows)
        kernels_log.log_denominators_kernel[grid](
            w, u, k, v, factors, centre, log_den, y, *pieces, choice.chunk, **choice.rows.options()
        )
        kernels_log.log_grads_kernel[grid](
            w, u, k, v, gate, grad, factors, centre, log_den, y, grad_k, grad_v, grad_gate, parts,
            *pieces, choice.chunk, **choice.rows.options(), GATED=gate is not None,
        )  # fmt: skip
    grad_w, grad_u = parts.sum(1, dtype=torch.float64).to(torch.float32)
    return grad_w, grad_u, grad_k, grad_v, grad_gate
