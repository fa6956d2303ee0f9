"""What the compiled code says about an op, without a GPU: `python -m benchmarks.counting.static biwkv`.

For each kernel whose programs take a chunk of tokens, in each launch configuration: registers, spills, shared memory,
the width of each load and store of a tensor of the op, and exponentials (MUFU.EX2) an element. These are counts of what
stands in the machine code, so they are per execution only where there is no loop; a count with a loop in it is not
given. Counted per thread, times threads, over the elements of the program's block: what threads compute twice counts
twice.

Then the bytes that a forward moves, over the minimum (k, v read, y written, once each): k and v are read twice, and the
floats of states that a chunk and channel cost are counted in the same code. Reads that the L2 cache serves count too,
except that where each program adds the sums of all chunks itself, these are taken to be read once, and the rest stands
in a figure of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import records
from lalic_kernels.biwkv import gpu as launches
from lalic_kernels.launch import blocks

ARCHITECTURES = ("80", "90", "100", "120")
# Tensors of the op's own shape: all of an element's traffic but states.
MAIN = ("k_ptr", "v_ptr", "y_ptr", "gate_ptr", "grad_ptr", "grad_k_ptr", "grad_v_ptr", "grad_gate_ptr")
READS, WRITES = 4, 1  # of an element by the forward: k and v by chunk_sums and by rows, y by rows
SUMS = 5  # floats of a chunk and channel that chunk_sums writes
PER_THREAD = 4  # channels
LENGTHS = (64, 239, 240, 384, 512, 1024, 1025, 2040, 4096, 6144, 8160, 24576, 98304, 1 << 20)


def biwkv(architecture: str) -> list[dict[str, Any]]:
    """A dictionary for each kernel and launch of "any" or this architecture, then one for each length in LENGTHS."""
    from benchmarks.compiled import biwkv as ours
    from benchmarks.compiled import core

    target, name = core.target_of("cuda", architecture), f"cuda {architecture}"
    table = [row for row in launches.TABLE if row in launches.rows_of(row.use, name, row.itemsize)]
    kernels: list[dict[str, Any]] = []
    for row in table:
        dtype = {2: "bf16", 4: "fp32"}.get(row.itemsize or 0, "")
        for kernel, launch, ending, more in ours.variants(row):
            job = ours.by_chunk(kernel, launch, dtype, f"from {row.start}{ending}", more, 16 // core.itemsize(dtype))
            kernels.append(_kernel(core.describe(job, target)))
    any_scan = next(row.launch for row in table if row.use == "scan")
    scan = core.describe(next(iter(ours.scans(any_scan))), target)
    shared = any_scan["PIECE"] * any_scan["BLOCK_C"] // (32 * any_scan.num_warps)  # elements a thread
    per_scan = _floats(scan["accesses"], ("sums_ptr", "entering_ptr")) // shared
    return [{"architecture": architecture, **found} for found in kernels + list(_traffic(name, kernels, per_scan))]


def _kernel(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of one kernel from what `core.describe` found."""
    launch, counts = found["launch"], found["instructions"]
    tokens = launch["LENGTH"] if "LENGTH" in launch else launches.PER_GROUP * launch["GROUPS"]
    elements, threads = tokens * launch["BLOCK_C"], 32 * launch["num_warps"]
    main = {name: found["accesses"][name] for name in MAIN if name in found["accesses"] and name not in _fixed(found)}
    widths = [(int(kind.split()[1]), number) for kinds in main.values() for kind, number in kinds.items()]
    states = 0
    if found["function"] == "chunk_sums_kernel":
        states = _floats(found["accesses"], ("sums_ptr",))  # a state is stored by one thread
    elif found["function"] == "rows_kernel":
        # Loaded for each of a thread's channels: four, of each group of tokens one.
        states = _floats(found["accesses"], ("states_ptr",)) // PER_THREAD
    return {
        "kernel": found["kernel"],
        "function": found["function"],
        "dtype": found["dtype"],
        "launch": launch,
        "registers": found["registers"],
        "spills": found["spills"],
        "shared": found["shared"],
        "accesses": main,
        "share of 128 bits": sum(number for bits, number in widths if bits == 128)
        / sum(number for _, number in widths),
        "exponentials": None if counts.get("loops") else counts["MUFU.EX2"] * threads / elements,
        "states": states,
        "gated": bool(found["constants"].get("GATED")),
        "folds": found["constants"].get("FOLD", 0),
        "centred": bool(found["constants"].get("CENTRED")),
    }


def _fixed(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Pointers that are work space in a kernel though named as a tensor of the op is elsewhere."""
    return ("y_ptr",) if found["function"].startswith("grad_") else ()


def _floats(accesses: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> int:
    """32-bit numbers that a thread reads and writes through some pointers."""
    found = [pair for name in names for pair in accesses.get(name, {}).items()]
    return sum(int(kind.split()[1]) // 32 * number for kind, number in found)


def _traffic(architecture: str, kernels: Sequence[Mapping[str, Any]], per_scan: int) -> Iterator[dict[str, Any]]:
    for dtype, itemsize in (("bf16", 2), ("fp32", 4)):
        for tokens in LENGTHS:
            choice = launches.choose("forward", architecture, tokens, 96, itemsize)
            forward = [k for k in kernels if k["dtype"] == dtype and not k["gated"] and not k["centred"]]
            own = [k for k in forward if k["launch"] == choice.rows.options() and not k["folds"]]
            chunks, folds = blocks(tokens, choice.chunk), choice.scan is None
            # Of a chunk's five floats that are written, three are of use to another chunk.
            states = 2 * SUMS if folds else per_scan + sum(k["states"] for k in own)
            moved = (READS + WRITES) * itemsize + 4 * states * chunks / tokens
            yield {
                "traffic": f"forward {dtype}",
                "tokens": tokens,
                "chunk": choice.chunk,
                "states": states,
                "bytes": moved,
                "more from the L2 cache": max(0, 3 * chunks - SUMS) * 4 * chunks / tokens if folds else 0.0,
                "minimum": 3 * itemsize,
                "over the minimum": moved / (3 * itemsize),
            }


OPS = {"biwkv": biwkv}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a JSON line a row. Returns 0; usage errors exit with 2."""
    parser = records.parser("counting.static", "Compiled code, counted.", where=False)
    parser.add_argument("op", choices=OPS)
    parser.add_argument("--architecture", nargs="+", default=ARCHITECTURES, metavar="90", help="CUDA, as 90")
    options = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set, and interpreted kernels are not compiled: unset it")
    rows = [row for architecture in options.architecture for row in OPS[options.op](architecture)]
    print("\n".join(map(json.dumps, rows)))
    records.keep(records.counted(op=options.op, compiled=rows), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
