"""Ahead-of-time compilation of one kernel for one architecture, and what can be read from the machine code.

Triton must not be in interpreter mode, so this runs in a process of its own. No GPU is needed.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.compiled import OPS
from lalic_kernels.launch import Launch


@dataclass(frozen=True)
class Job:
    """One kernel in one launch configuration, for one dtype ("fp32", "bf16", "fp16") of the op's tensors.

    `constants` are compile-time constants besides the launch's. `float32` names the pointers that are float32 whatever
    the dtype, `types` has Triton's types of other arguments ("*i8", "fp32"). `options` are the compiler's besides the
    launch's. `facts` is printed along, for reports. What is `minor` differs little from another job, and is compiled
    for one architecture only, unless all is asked for.
    """

    label: str
    kernel: Any
    launch: Launch
    dtype: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    float32: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)
    minor: bool = False
    types: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def target_of(backend: str, architecture: str) -> GPUTarget:
    """The target of "cuda 90" or "hip gfx942"."""
    return GPUTarget("hip", architecture, 64) if backend == "hip" else GPUTarget("cuda", int(architecture), 32)


def jobs_for(backend: str, architecture: str, ops: Sequence[str] = OPS, everything: bool = False) -> Iterator[Job]:
    """Jobs of some ops on one architecture: all for sm_90 or if `everything` is asked for, else the ones not minor.

    float16 counts as minor: it differs from bfloat16 in conversions only.
    """
    everything = everything or (backend, architecture) == ("cuda", "90")
    dtypes = ("fp32", "bf16", "fp16") if everything else ("fp32", "bf16")
    for op in ops:
        module = importlib.import_module(f"benchmarks.compiled.{op}")
        for job in module.jobs(dtypes, f"{backend} {architecture}"):
            if everything or not job.minor:
                yield job


def itemsize(dtype: str) -> int:
    """Bytes an element."""
    return 4 if dtype == "fp32" else 2


def compile_job(job: Job, target: GPUTarget) -> Any:
    """Triton's compiled kernel, with the machine code in `.asm`."""
    constants = {**dict(job.launch.constants), **job.constants}
    options = job.launch.compiler() | dict(job.options)
    return triton.compile(_source(job, constants), target=target, options=options)


def describe(job: Job, target: GPUTarget) -> dict[str, Any]:
    """One line of the report: the kernel, its configuration, and what `resources` and `instructions` find."""
    compiled = compile_job(job, target)
    found = {
        "kernel": job.label,
        "function": job.kernel.__name__,
        "dtype": job.dtype,
        "launch": job.launch.options(),
        "constants": dict(job.constants),
        **job.facts,
        "shared": compiled.metadata.shared,
        **resources(compiled),
    }
    if "cubin" in compiled.asm:
        found |= {"instructions": instructions(compiled), "accesses": accesses(compiled.asm["ptx"], job)}
    return found


def _source(job: Job, constants: Mapping[str, Any]) -> ASTSource:
    """The kernel with the types that its launch gives: pointers aligned to 16 bytes, sizes int32."""
    signature: dict[str, str] = {}
    attributes: dict[tuple[int, ...], list] = {}
    for place, name in enumerate(job.kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = job.types.get(name, "*fp32" if name in job.float32 else f"*{job.dtype}")
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = job.types.get(name, "fp32" if name == "eps" else "i32")
    return ASTSource(job.kernel, signature, constexprs=dict(constants), attrs=attributes)


def _cuobjdump(cubin: bytes, option: str) -> str:
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        raise RuntimeError("cuobjdump is neither beside triton nor on the path, so machine code cannot be read")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def resources(compiled: Any) -> dict[str, int]:
    """Registers, and the bytes or counts that mean a spill to memory, read from the machine code's own tables.

    AMD's scalar registers are not counted: they spill into lanes of vector registers, and where those run out too, the
    private segment shows it.
    """
    if "amdgcn" in compiled.asm:
        found = dict(re.findall(r"\.(\w*(?:spill_count|fixed_size|vgpr_count)):\s+(\d+)", compiled.asm["amdgcn"]))
        spills = ("vgpr_spill_count", "private_segment_fixed_size")
        return {"registers": int(found["vgpr_count"]), "spills": sum(int(found[name]) for name in spills)}
    text = _cuobjdump(compiled.asm["cubin"], "-res-usage")
    numbers = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": numbers["REG"], "spills": numbers["STACK"] + numbers["LOCAL"]}


def instructions(compiled: Any) -> dict[str, int]:
    """How often each kind stands in a thread's machine code: static, so an instruction in a loop counts once."""
    return count_instructions(machine_code(compiled))


def machine_code(compiled: Any) -> str:
    """SASS of a kernel compiled for NVIDIA."""
    return _cuobjdump(compiled.asm["cubin"], "-sass")


# An instruction's line: its address in a comment, a guard, then the name with its suffixes.
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")
_WIDTHS = {"64": 64, "128": 128, "U8": 8, "S8": 8, "U16": 16, "S16": 16}


def count_instructions(sass: str) -> dict[str, int]:
    """Counts by name: LDG.32, STG.128 (by width in bits), LDL, STL, MUFU, MUFU.EX2, backward branches ("loops")."""
    counts: Counter[str] = Counter()
    for line in sass.splitlines():
        match = _INSTRUCTION.search(line)
        if match is None:
            continue
        name, *suffixes = match[1].split(".")
        counts["all"] += 1
        if name in ("LDG", "STG"):
            counts[f"{name}.{next((_WIDTHS[s] for s in suffixes if s in _WIDTHS), 32)}"] += 1
        elif name in ("LDL", "STL", "MUFU", "DFMA", "DADD", "DMUL"):
            counts[name] += 1
            if name == "MUFU" and "EX2" in suffixes:
                counts["MUFU.EX2"] += 1
        elif name == "BRA":
            goal = re.search(r"BRA\S*\s+(?:`\()?(?:.*?)(0x[0-9a-f]+)", line)
            here = re.search(r"/\*([0-9a-f]{4,})\*/", line)
            # A branch onto itself pads the end of every kernel.
            if goal and here and int(goal[1], 16) < int(here[1], 16):
                counts["loops"] += 1
    return dict(sorted(counts.items()))


_PARAMETER = re.compile(r"ld\.param\.[ub]64\s+(%rd\d+), \[\w+_param_(\d+)\]")
_GLOBAL = re.compile(r"\b(ld|st)\.global\S*?(?:\.v(\d))?\.[bus](\d+)\s.*?\[ ?(%rd\d+)")
_REGISTERS = re.compile(r"%rd\d+")


def accesses(ptx: str, job: Job) -> dict[str, dict[str, int]]:
    """How many loads and stores a thread has for each pointer, by width in bits: {"k_ptr": {"load 128": 4}}.

    Which argument an address comes from is followed through the arithmetic on 64-bit registers; the assembler keeps the
    widths. Static, as all here: an instruction in a loop counts once.
    """
    names = [name for name in job.kernel.arg_names if name not in {**dict(job.launch.constants), **job.constants}]
    roots: dict[str, set[str]] = {}
    for register, place in _PARAMETER.findall(ptx):
        name = names[int(place)] if int(place) < len(names) else ""
        roots[register] = {name} if name.endswith("_ptr") else set()
    steps = [found for line in ptx.splitlines() if "ld." not in line and (found := _REGISTERS.findall(line))[1:]]
    changed = True
    while changed:
        changed = False
        for target, *sources in steps:
            known = roots.setdefault(target, set())
            more = set().union(*(roots.get(source, set()) for source in sources)) - known
            known |= more
            changed |= bool(more)
    counts: dict[str, Counter[str]] = {}
    for kind, vector, bits, address in _GLOBAL.findall(ptx):
        for name in roots.get(address, set()):
            word = "load" if kind == "ld" else "store"
            counts.setdefault(name, Counter())[f"{word} {int(vector or 1) * int(bits)}"] += 1
    return {name: dict(sorted(found.items())) for name, found in sorted(counts.items())}
