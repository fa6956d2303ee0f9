"""One benchmark an operation and direction, for pytest-benchmark: `pytest benchmarks [--device cuda] [--quick]`.

Inputs, checks and yardsticks are the first case of each kind in `benchmarks.cases`; a wrong result fails and is not
timed. Two versions of the code: `pytest benchmarks --benchmark-save=before`, then `--benchmark-compare`. The figures of
the documents come from `python -m benchmarks.run`, which takes turns between a call and its yardsticks.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.measure import Call, Setting, without_tf32
from benchmarks.registry import ENTRIES

# Entry, the beginning of a case's name, number of calls of the case.
KINDS = (
    ("biwkv", "forward (", 2),
    ("biwkv", "backward (", 3),
    ("token_shift", "forward (", 2),
    ("token_shift", "backward (", 2),
    ("norm_shift", "forward (", 2),
    ("norm_shift", "backward (", 2),
    ("spatial_mix", "forward (", 2),
    ("spatial_mix", "forward and backward (", 2),
    ("channel_mix", "forward (", 2),
    ("channel_mix", "forward and backward (", 2),
    ("rwkv_block", "forward (", 2),
    ("rwkv_block", "forward and backward (", 2),
    ("transforms", "g_s (", 2),
    ("transforms", "g_a (", 2),
    ("entropy_params", "forward (", 2),
    ("gaussian_likelihood", "forward (", 2),
    ("gaussian_likelihood", "forward and backward (", 2),
    ("rans", "", 2),
)


@pytest.mark.parametrize(
    ("entry", "kind", "number"),
    [
        pytest.param(entry, kind, number, id=f"{entry}-{kind.strip(' (') or 'coder'}-{number}")
        for entry, kind, calls in KINDS
        for number in range(calls)
    ],
)
def test_operation(benchmark: Any, setting: Setting, entry: str, kind: str, number: int) -> None:
    if setting.device.type not in ENTRIES[entry].devices:
        pytest.skip(f"{entry} does not run on {setting.device.type}")
    with without_tf32():
        case = next(case for case in ENTRIES[entry].cases(setting) if case.name.startswith(kind))
        call = case.calls[number]
        if call.check is not None:
            call.check(call.run())
        benchmark.group = f"{entry} {case.name}"
        benchmark.name = f"{call.name} (yardstick)" if call.is_yardstick else call.name
        benchmark(_waiting, call, setting.device)


def _waiting(call: Call, device: torch.device) -> None:
    call.run()
    if device.type == "cuda":
        torch.cuda.synchronize()
