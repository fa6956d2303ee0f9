"""Serial steps of a decode on a GPU, counted on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("model", "products", "exact"), [("slim", 199, 395), ("full", 766, 1153)])
def test_steps_of_a_decode(model: str, products: int, exact: int, tmp_path: Path) -> None:
    """The bounds only ever go down. In a process of its own, because Triton must not interpret."""
    command = [sys.executable, "-m", "benchmarks.counting.steps", "--model", model]
    command += ["--save", "--results", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "static.jsonl").read_text())["steps"]
    assert found["products"] <= products
    assert found["products"] + found["other loops"] == sum(found["parts"].values()) <= exact
    assert sum(found[kind] for kind in ("products", "other loops", "entropy decoding")) <= 4000
    assert found["parts"].keys() == {"h_s", "contexts", "aggregation", "rest"}
    # All sections of the stream: 491,520 latents of the full model, 393,216 of slim, and hyper latents.
    lanes = 14254 // 64 // 32 * 32
    assert found["entropy decoding"] * lanes == pytest.approx({"full": 491520, "slim": 393216}[model], rel=0.06)
    for kind in ("products", "other loops", "entropy decoding"):
        assert found[kind] == sum(found["kernels"][kind].values())


def test_steps_of_a_launch() -> None:
    """Worked out by hand; a kernel that is not known is an error."""
    from benchmarks.counting.steps import Steps

    def steps(kernel: str, grid: tuple[int, int, int] = (1, 1, 1), lanes: int = 32, **arguments: object) -> int:
        found = Steps()
        found.add(kernel, grid, arguments, lanes)
        return sum(found.totals().values())

    assert steps("exact_linear_kernel", depth=640, BLOCK_K=64) == 10
    # A transposed 5x5 convolution of stride 2: the largest of its four phases has 9 taps. Then a plain one.
    assert steps("exact_conv_kernel", (1, 1, 4), taps=25, depth=192, BLOCK_K=64) == 9 * 3
    assert steps("exact_conv_kernel", taps=9, depth=64, BLOCK_K=64) == 9
    # A row that fits into the block is read once, of a longer one all but the first block twice.
    assert steps("exact_digits_kernel", SOURCE="rows", width=500, depth=512, BLOCK_N=512) == 1
    assert steps("exact_digits_kernel", SOURCE="rows", width=700, depth=704, BLOCK_N=512) == 1 + 2
    assert steps("exact_digits_kernel", SOURCE="image", width=700, depth=704, BLOCK_N=512) == 2
    assert steps("exact_shift_digits_kernel", depth=384, BLOCK_C=128) == 3 + 2
    # Weights of 64 tokens, their sums; 17 chunks.
    assert steps("exact_wkv_sums_kernel", tokens=1030, BLOCK_T=16) == 4 + 4 + 2
    assert steps("exact_wkv_states_kernel", tokens=384) == 4
    assert steps("rans_symbols_kernel", count=1000, lanes=160) == 7
    assert steps("rows_kernel") == 0
    with pytest.raises(KeyError, match="exact_new_kernel: expected its steps"):
        steps("exact_new_kernel")
