"""The exact kernels, as their launch table has them: with the options that keep each float operation by itself.

`python -m benchmarks.compiled.exact cuda 90` prints what in the code would round otherwise than the definition says.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from triton.backends.compiler import GPUTarget

from benchmarks.compiled.core import Job, compile_job, machine_code, target_of
from lalic_kernels.exact import kernels
from lalic_kernels.exact import kernels_wkv as wkv
from lalic_kernels.exact.gpu import LAUNCHES, OPTIONS

_BYTES = ("high_ptr", "low_ptr", "x_high_ptr", "x_low_ptr", "w_high_ptr", "w_low_ptr")
_DOUBLES = ("weights_ptr", "sums_ptr", "entering_ptr", "boost_ptr", "states_ptr")
_INTEGERS = (
    "status_ptr",
    "absmax_ptr",
    "max_key_ptr",
    "counter_ptr",
    "index_ptr",
    "offsets_ptr",
    "phases_ptr",
    "taps_ptr",
)
TYPES = {
    **dict.fromkeys(_BYTES, "*i8"),
    **dict.fromkeys(_DOUBLES, "*fp64"),
    **dict.fromkeys(_INTEGERS, "*i32"),
    "eps_area": "fp32",
}
SHIFT = {"taps_ptr": "*i16"}  # the integers of a shift; elsewhere taps are offsets


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and variant, once: they know float32 alone."""
    if "fp32" not in dtypes:
        return

    def job(label: str, kernel: Any, launch: str, types: dict[str, str] | None = None, /, **constants: Any) -> Job:
        return Job(
            f"exact {label}", kernel, LAUNCHES[launch], "fp32", constants, types=TYPES | (types or {}),
            options=OPTIONS,
        )  # fmt: skip

    for width in (512, 1024, 4096):
        launch = f"rows of {width}"
        label = "" if width == 512 else f" {width}"
        yield job(f"layer_norm{label}", kernels.exact_layer_norm_kernel, launch)
        yield job(f"norm digits{label}", kernels.exact_norm_digits_kernel, launch)
        for source in ("rows", "image", "by_colour", "neighbours"):
            yield job(f"digits {source}{label}", kernels.exact_digits_kernel, launch, SOURCE=source)
    yield job("absmax", kernels.exact_absmax_kernel, "absmax")
    yield job("head", kernels.exact_head_kernel, "head")
    for label, on in (
        ("", "bias"), (" hidden", "squared"), (" gated", "gate residual"), (" gamma", "residual gamma"),
        (" gated gamma", "gate residual gamma"), (" partial", "partial"), (" bias partial", "bias partial"),
        (" max_key", "max_key"),
    ):  # fmt: skip
        unused = {"bias", "gate", "residual", "gamma", "partial", "max_key"}.difference(on.split())
        constants = {f"{name}_ptr": None for name in unused} | {"HAS_SQUARED": on == "squared"}
        yield job(f"linear{label}", kernels.exact_linear_kernel, "linear", **constants)
    for other in ("previous", "bias"):
        yield job(f"conv without {other}", kernels.exact_conv_kernel, "conv", **{f"{other}_ptr": None})
    yield job("shift digits", kernels.exact_shift_digits_kernel, "shift of 128", SHIFT, SIZE=5)
    for channels in (128, 512):
        launch = f"shift of {channels}"
        yield job(f"shift digits {channels}", kernels.exact_shift_digits_kernel, launch, SHIFT, SIZE=5, y_ptr=None)
    yield job("wkv sums", wkv.exact_wkv_sums_kernel, "wkv_sums")
    yield job("wkv digits", wkv.exact_wkv_digits_kernel, "wkv of 128")
    yield job("wkv states", wkv.exact_wkv_states_kernel, "wkv_states")
    for channels in (128, 512):
        yield job(f"wkv digits {channels}", wkv.exact_wkv_digits_kernel, f"wkv of {channels}", y_ptr=None)


# What rounds twice or not correctly: contracted products, approximate functions and divisions, flushed subnormals. A
# correctly rounded division is one instruction of PTX, which the assembler turns into fused steps of its own.
_PTX_FAULTS = re.compile(
    r"\b(?:fma|mad)(?:\.\w+)*\.f(?:32|64)\b|\b\w+(?:\.\w+)*\.(?:approx|full|ftz)(?:\.\w+)*|\b(?:ex2|lg2|tanh)\.\S+|\bcall\b.*"
)
_AMD_FAULTS = re.compile(r"\bv_(?:pk_)?(?:fma\w*|mad\w*|fmac\w*)_f(?:32|64)\b|\bv_(?:exp|log|sqrt|rsq)_f\d+\b")


def float_faults(assembly: str, amd: bool = False) -> list[str]:
    """Instructions of PTX (or AMD's assembly) that the definition does not allow, each once."""
    code = "\n".join(line.partition("//")[0].partition(";;")[0] for line in assembly.splitlines())
    return list(dict.fromkeys((_AMD_FAULTS if amd else _PTX_FAULTS).findall(code)))


def report(target: GPUTarget, contract: bool = False, ones: bool = False) -> Iterator[dict[str, Any]]:
    """For each kernel: its forbidden instructions, its divisions, and the machine code's fused ones.

    With `contract` compiled as it must not be, to see that the search finds something. With `ones` all sizes are 1,
    which Triton makes constants of its compilation when a launch has them.
    """
    for job in jobs(("fp32",), ""):
        if ones:
            sizes = (name for name in job.kernel.arg_names if name.islower() and not name.endswith("_ptr"))
            job = replace(job, constants={**job.constants, **{name: 1 for name in sizes if name not in TYPES}})
        compiled = compile_job(replace(job, options={"enable_fp_fusion": contract}), target)
        line: dict[str, Any] = {"kernel": job.label}
        if "ptx" in compiled.asm:
            ptx = compiled.asm["ptx"]
            sass = machine_code(compiled)
            line |= {"faults": float_faults(ptx), "divisions": len(re.findall(r"\bdiv\.rn\.f", ptx))}
            line["fused"] = sorted(set(re.findall(r"\b(?:FFMA|DFMA|MUFU\.EX2|MUFU\.LG2)\b", sass)))
        else:
            text = compiled.asm["amdgcn"]
            line |= {"faults": float_faults(text, amd=True), "divisions": len(re.findall(r"\bv_div_fixup_f", text))}
        yield line


if __name__ == "__main__":
    for found in report(target_of(*sys.argv[1:3]), "contract" in sys.argv[3:], "ones" in sys.argv[3:]):
        print(json.dumps(found), flush=True)
