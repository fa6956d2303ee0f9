"""Compile every kernel ahead of time for one GPU architecture and report registers and spills, one JSON line each.

Run as a program in a process of its own, because Triton must not be in interpreter mode: `python aot.py cuda 90`. No
GPU is needed. `test_aot.py` runs it.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lalic_kernels._core.launch import Launch
from lalic_kernels.biwkv import kernels as biwkv
from lalic_kernels.biwkv import kernels_backward as biwkv_backward
from lalic_kernels.biwkv import launches as biwkv_launches
from lalic_kernels.entropy_params import kernels as entropy
from lalic_kernels.entropy_params import op as entropy_op
from lalic_kernels.token_shift import kernels as shift
from lalic_kernels.token_shift import op as shift_op

# Pointers that are float32 whatever the op's dtype.
ALWAYS_FLOAT32 = {
    biwkv: {"w_ptr", "u_ptr", "factors_ptr", "sums_ptr", "entering_ptr", "own_ptr"},
    biwkv_backward: {
        *("w_ptr", "u_ptr", "factors_ptr", "entering_ptr", "sums_ptr", "x_sums_ptr", "x_own_ptr", "constants_ptr"),
        "running_ptr",
        *("log_den_ptr", "y_ptr", "parts_ptr"),
    },
    shift: {"weight_ptr"},
    entropy: {"m_ptr"},
}


def jobs(dtypes, target):
    """(label, kernel, its module, launch, further constants, dtype) for every kernel and launch configuration."""
    for dtype in dtypes:
        size = 4 if dtype == "fp32" else 2
        for (arch, name, itemsize), launch in biwkv_launches.TABLE.items():
            if itemsize != size or arch not in ("any", target):
                continue
            for vec in (16 // size, 1):
                more = {"VEC": vec, "FAST_ONLY": False}
                label = f"{name} {dtype} vectors of {vec}"
                yield f"chunk_sums {label}", biwkv.chunk_sums_kernel, biwkv, launch, more, dtype
                yield f"rows {label}", biwkv.rows_kernel, biwkv, launch, more, dtype
        for (arch, name, itemsize), launch in biwkv_launches.BACKWARD.items():
            if itemsize != size or arch not in ("any", target):
                continue
            # chunk_sums is the forward's, of which the table above has wider blocks on as many threads.
            for vec in (16 // size, 1):
                more = {"VEC": vec, "FAST_ONLY": False}
                label = f"{name} {dtype} vectors of {vec}"
                yield f"grad_sums {label}", biwkv_backward.grad_sums_kernel, biwkv_backward, launch, more, dtype
                yield f"grad_rows {label}", biwkv_backward.grad_rows_kernel, biwkv_backward, launch, more, dtype
        for name, launch in shift_op.LAUNCHES.items():
            yield f"token_shift {name} {dtype}", shift.token_shift_kernel, shift, launch, {}, dtype
        launch = entropy_op.LAUNCHES["float32" if dtype == "fp32" else "float16"]
        mix = {"HAS_BIAS": True, "SQUARED_RELU": False}
        hidden = {"HAS_BIAS": False, "SQUARED_RELU": True}
        yield f"linear mix {dtype}", entropy.linear_kernel, entropy, launch, mix, dtype
        yield f"linear hidden {dtype}", entropy.linear_kernel, entropy, launch, hidden, dtype
        yield f"layer_norm {dtype}", entropy.layer_norm_kernel, entropy, entropy_op.NORM_LAUNCH, {}, dtype
        yield f"gated_sum {dtype}", entropy.gated_sum_kernel, entropy, launch, {}, dtype
    tables = {(launch["GROUPS"], launch["BLOCK_C"]) for launch in biwkv_launches.TABLE.values()}
    for length in sorted({launch["LENGTH"] for launch in biwkv_launches.BACKWARD.values()}):
        more = {"LENGTH": length}
        yield "grad_join", biwkv_backward.grad_join_kernel, biwkv_backward, biwkv_launches.JOIN, more, "fp32"
        for name, launch in biwkv_launches.SCANS.items():
            more = {"LENGTH": length}
            yield f"grad_scan {name}", biwkv_backward.grad_scan_kernel, biwkv_backward, launch, more, "fp32"
    for groups, block_c in sorted(tables):
        more = {"GROUPS": groups, "PER_GROUP": biwkv_launches.PER_GROUP}
        for name, launch in biwkv_launches.SCANS.items():
            scan = more | {"FOLDED": biwkv_launches.PER_GROUP, "KEEP_OWN": False}
            yield f"chunk_scan {name} {groups}", biwkv.chunk_scan_kernel, biwkv, launch, scan, "fp32"
            scan = more | {"FOLDED": 1, "KEEP_OWN": True}
            yield f"chunk_scan {name} {groups} backward", biwkv.chunk_scan_kernel, biwkv, launch, scan, "fp32"
        launch = Launch((("BLOCK_C", block_c),), num_warps=4)  # as op.py has it
        yield f"factors {groups}", biwkv.factors_kernel, biwkv, launch, more, "fp32"


def source(kernel, module, constants, dtype, label):
    """The kernel with the types that its launch gives: pointers aligned to 16 bytes, sizes int32."""
    fixed = ALWAYS_FLOAT32[module] | ({"y_ptr"} if label.startswith("linear mix") else set())
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*fp32" if name in fixed else f"*{dtype}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "eps" else "i32"
    if (
        "constexprs" not in inspect.signature(ASTSource.__init__).parameters
    ):  # Triton 3.2: another name, other attributes
        signature = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        return ASTSource(kernel, signature, constants=constants)
    return ASTSource(kernel, signature, constexprs=constants, attrs=attributes)


def resources(compiled) -> dict[str, int]:
    """Registers, and the bytes or counts that mean a spill, read from the machine code's own tables."""
    if "amdgcn" in compiled.asm:
        found = dict(re.findall(r"\.(\w*(?:spill_count|fixed_size|vgpr_count)):\s+(\d+)", compiled.asm["amdgcn"]))
        spills = ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
        return {"registers": int(found["vgpr_count"]), "spills": sum(int(found[name]) for name in spills)}
    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    tool = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    if tool is None:
        raise RuntimeError("cuobjdump is neither beside triton nor on the path, so spills cannot be read")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return {"registers": found["REG"], "spills": found["STACK"] + found["LOCAL"]}


def main(backend: str, architecture: str) -> None:
    target = GPUTarget("hip", architecture, 64) if backend == "hip" else GPUTarget("cuda", int(architecture), 32)
    # float16 and bfloat16 differ in conversions only, so one architecture answers for float16.
    dtypes = ("fp32", "bf16", "fp16") if architecture == "90" else ("fp32", "bf16")
    for label, kernel, module, launch, further, dtype in jobs(dtypes, f"{backend} {architecture}"):
        constants = dict(launch.constants) | further
        options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
        compiled = triton.compile(source(kernel, module, constants, dtype, label), target=target, options=options)
        print(json.dumps({"kernel": label, "shared": compiled.metadata.shared, **resources(compiled)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
