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
from lalic_kernels.exact import (
    kernels,
    kernels_aggregation,
    kernels_blocks,
    kernels_conv,
    kernels_products,
    kernels_rows,
)
from lalic_kernels.exact import kernels_wkv as wkv
from lalic_kernels.exact.launches import LAUNCHES, OPTIONS

_BYTES = (
    "high_ptr", "low_ptr", "x_high_ptr", "x_low_ptr", "w_high_ptr", "w_low_ptr", "weight_ptr", "key_ptr", "value_ptr",
    "spatial_ptr", "digits_ptr", "first_ptr", "second_ptr",
)  # fmt: skip
_DOUBLES = ("weights_ptr", "sums_ptr", "entering_ptr", "left_ptr")
_INTEGERS = (
    "status_ptr", "maxima_ptr", "next_maxima_ptr", "tops_ptr", "index_ptr", "offsets_ptr", "phases_ptr", "taps_ptr",
    "table_ptr",
)  # fmt: skip
TYPES = {
    **dict.fromkeys(_BYTES, "*i8"),
    **dict.fromkeys(_DOUBLES, "*fp64"),
    **dict.fromkeys(_INTEGERS, "*i32"),
    "eps_area": "fp32",
}
SHIFT = {"taps_ptr": "*i16"}  # the integers of a shift; elsewhere taps are places


def jobs(dtypes: Sequence[str], target: str) -> Iterator[Job]:
    """Every kernel and variant, once: they know float32 alone."""
    if "fp32" not in dtypes:
        return

    def job(label: str, kernel: Any, launch: str, types: dict[str, str] | None = None, /, **constants: Any) -> Job:
        return Job(
            f"exact {label}", kernel, LAUNCHES[launch], "fp32", constants, types=TYPES | (types or {}),
            options=OPTIONS,
        )  # fmt: skip

    for function in ("exp", "sigmoid", "squared_relu", "gate"):
        yield job(function, kernels.exact_pointwise_kernel, "pointwise", FUNCTION=function)
    for gamma in (False, True):
        yield job(f"residual {gamma}", kernels.exact_residual_kernel, "residual", HAS_GAMMA=gamma)
    norm = kernels.exact_layer_norm_kernel
    # Without digits x is in the place of digits and scales, as in the launch.
    floats = {"high_ptr": "*fp32", "low_ptr": "*fp32"}
    yield job("layer_norm", norm, "layer_norm", floats, DIGITS=False, MAXIMA=False)
    yield job("layer_norm maxima", norm, "layer_norm", floats, DIGITS=False, MAXIMA=True)
    yield job("layer_norm digits", norm, "layer_norm", DIGITS=True, MAXIMA=False)
    for means in (False, True):
        yield job(f"head {means}", kernels.exact_head_kernel, "head", MEANS=means)
    for source in ("rows", "shared", "packed", "seen"):
        yield job(f"digits {source}", kernels_products.exact_digits_kernel, "digits", SOURCE=source)
    yield job("image_maximum", kernels_products.exact_image_maximum_kernel, "image_maximum")
    for signed in (False, True):
        maximum = kernels_products.exact_channel_maximum_kernel
        yield job(f"channel_maximum {signed}", maximum, "channel_maximum", SIGNED=signed)
    for label, on in (
        ("", "BIAS"), (" hidden", "SQUARED"), (" gated", "GATE RESIDUAL"), (" gamma", "RESIDUAL GAMMA"),
        (" tops", "TOPS"),
    ):  # fmt: skip
        flags = {f"HAS_{name}": name in on.split() for name in ("BIAS", "SQUARED", "GATE", "RESIDUAL", "GAMMA")}
        yield job(f"linear{label}", kernels_products.exact_linear_kernel, "linear", TOPS="TOPS" in on, **flags)
    for packed, previous in ((False, False), (False, True), (True, False)):
        flags = {"HAS_BIAS": not previous, "HAS_PREVIOUS": previous, "PACKED": packed}
        yield job(f"conv {packed} {previous}", kernels_conv.exact_conv_kernel, "conv", **flags)
    yield job("depthwise", kernels_conv.exact_depthwise_kernel, "depthwise", SHIFT, SIZE=5)
    yield job("depthwise digits", kernels_conv.exact_depthwise_digits_kernel, "depthwise_digits", SHIFT, SIZE=5)
    yield job("wkv sums", wkv.exact_wkv_sums_kernel, "wkv_sums")
    yield job("wkv chain", wkv.exact_wkv_chain_kernel, "wkv_chain")
    for gated, chained in ((False, True), (True, True), (True, False)):
        flags = {"GATED": gated, "CHAINED": chained}
        yield job(f"wkv values {gated} {chained}", wkv.exact_wkv_values_kernel, "wkv_values", **flags)
    for packed in (False, True):
        flags = {"HAS_BIAS": not packed, "HAS_PARTIAL": packed, "PACKED": packed}
        yield job(f"rows linear {packed}", kernels_rows.exact_rows_linear_kernel, "rows_linear", **flags)
    yield job("two products", kernels_rows.exact_two_products_kernel, "two_products")
    for has_x, has_known in ((True, True), (True, False), (False, True)):
        flags = {"HAS_X": has_x, "HAS_KNOWN": has_known}
        yield job(f"mix norm {has_x} {has_known}", kernels_rows.exact_mix_norm_kernel, "mix_norm", **flags)
    yield job("output norm", kernels_blocks.exact_output_norm_kernel, "output_norm")
    yield job("shift mix", kernels_blocks.exact_shift_mix_kernel, "shift_mix", SHIFT, SIZE=5)
    for then in (False, True):
        channel = kernels_blocks.exact_shift_channel_kernel
        yield job(f"shift channel {then}", channel, "shift_channel", SHIFT, SIZE=5, NEXT=then)
    for start in ("known", "seen", "rows"):
        yield job(f"aggregation {start}", kernels_aggregation.exact_aggregation_kernel, "aggregation", START=start)


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
