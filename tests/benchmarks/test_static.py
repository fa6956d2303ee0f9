"""BiWKV's compiled code for sm_90 holds the bounds of its README: widths, exponentials, spills, bytes moved."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the static report needs triton, which is not installed")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    words = [sys.executable, "-m", "benchmarks.counting.static", "biwkv", "--architecture", "90"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def kernels(rows: list[dict]) -> list[dict]:
    found = [row for row in rows if "kernel" in row]
    names = {"chunk_sums_kernel", "rows_kernel", "grad_sums_kernel", "grad_rows_kernel"}
    assert {row["function"] for row in found} == names
    return found


def test_nothing_spills(kernels: list[dict]) -> None:
    assert not [row for row in kernels if row["spills"]]


def test_every_access_is_as_wide_as_four_channels(kernels: list[dict]) -> None:
    for row in kernels:
        itemsize = 4 if row["dtype"] == "fp32" else 2
        launch, width = row["launch"], 4 * itemsize * 8
        tokens = launch["LENGTH"] if "LENGTH" in launch else 4 * launch["GROUPS"]
        each = tokens * launch["BLOCK_C"] // (32 * launch["num_warps"]) * itemsize * 8 // width
        kinds = {name: set(found) for name, found in row["accesses"].items()}
        assert set.union(*kinds.values()) <= {f"load {width}", f"store {width}"}, row
        # As many as a thread's share of the block has vectors: every element is read, and none of them twice. But the
        # gate's gradient reads the gate and the upstream gradient once more, at the end; newer compilers keep them.
        again = {"gate_ptr", "grad_ptr"} if row["function"] == "grad_rows_kernel" and row["gated"] else set()
        for name, found in row["accesses"].items():
            assert list(found.values()) in ([each], [2 * each if name in again else each]), row
        expected = {
            "chunk_sums_kernel": {"k_ptr", "v_ptr"},
            "rows_kernel": {"k_ptr", "v_ptr", "y_ptr"} | ({"gate_ptr"} if row["gated"] else set()),
            "grad_sums_kernel": {"k_ptr", "v_ptr", "grad_ptr"} | ({"gate_ptr"} if row["gated"] else set()),
            "grad_rows_kernel": {"k_ptr", "v_ptr", "grad_ptr", "grad_k_ptr", "grad_v_ptr"}
            | ({"gate_ptr", "grad_gate_ptr"} if row["gated"] else set()),
        }
        assert expected[row["function"]] <= set(kinds), row


def test_sixteen_warps_a_processor(kernels: list[dict]) -> None:
    """Loads of some programs overlap with the arithmetic of others: 65536 registers hold at least 16 warps."""
    for row in kernels:
        warps = row["launch"]["num_warps"]
        program = -(-row["registers"] // 8) * 8 * 32 * warps
        assert 65536 // program * warps >= 16, row


def test_one_exponential_an_element_and_pass(kernels: list[dict]) -> None:
    # 1.25 is the bar, which leaves gates aside: one exponential more, and two more for the gate's own gradient. A
    # program that adds the sums of chunks itself has one more for each of them.
    for row in kernels:
        of_gate = row["gated"] * (2 if row["function"] == "grad_rows_kernel" else 1)
        of_chunks = row["folds"] / (4 * row["launch"]["GROUPS"]) if row["folds"] else 0
        assert row["exponentials"] is not None and row["exponentials"] <= 1.25 + of_gate + of_chunks, row


def test_bytes_moved(rows: list[dict]) -> None:
    """At most 1.75 times the minimum from 2^20 elements on, 1.9 below: there more states make more programs."""
    traffic = [row for row in rows if "traffic" in row]
    assert {row["tokens"] for row in traffic} >= {64, 240, 384, 1024, 1025, 98304}
    few, many = sorted({row["states"] for row in traffic})  # the chunks' sums alone, and their running sums too
    # Between the lengths of the report, by the launch table: the worst is just after a chunk was begun.
    from lalic_kernels.biwkv import gpu as launches

    found = [(row["tokens"], row["over the minimum"]) for row in traffic]
    for itemsize in (2, 4):
        for tokens in range(64, 40_000):
            choice = launches.choose("forward", "any", tokens, 96, itemsize)
            states = few if choice.scan is None else many
            moved = 5 * itemsize + 4 * states * -(-tokens // choice.chunk) / tokens
            found.append((tokens, moved / (3 * itemsize)))
    assert not [(tokens, over) for tokens, over in found if over > (1.75 if tokens * 96 >= 1 << 20 else 1.9)]


def test_a_narrow_access_is_seen() -> None:
    """The trace of addresses tells widths and arguments apart."""
    code = """
    from benchmarks.compiled import core
    from types import SimpleNamespace
    job = SimpleNamespace(kernel=SimpleNamespace(arg_names=["k_ptr", "N", "tokens", "v_ptr"]), constants={"N": 1},
                          launch=SimpleNamespace(constants=()))
    ptx = '''
    ld.param.b64 %rd1, [f_param_0];
    ld.param.b64 %rd2, [f_param_2];
    mad.wide.s32 %rd3, %r1, 4, %rd1;
    add.s64 %rd4, %rd2, 16;
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd3 + 0 ];
    @%p1 ld.global.b16 { %rs1 }, [ %rd4 + 0 ];
    st.global.v2.b32 [ %rd4 + 0 ], { %r1, %r2 };
    '''
    found = core.accesses(ptx, job)
    assert found == {"k_ptr": {"load 128": 1}, "v_ptr": {"load 16": 1, "store 64": 1}}, found
    sass = '''
        /*0010*/                   LDG.E.128.CONSTANT R4, [R2] ;
        /*0020*/              @!P0 LDG.E.U16 R4, [R2] ;
        /*0030*/                   MUFU.EX2 R0, R1 ;
        /*0040*/                   MUFU.RCP R0, R1 ;
        /*0050*/                   STL [R1], R0 ;
        /*0060*/               @P0 BRA 0x10 ;
        /*0070*/                   BRA 0x70 ;
    '''
    found = core.count_instructions(sass)
    assert found == {"LDG.128": 1, "LDG.16": 1, "MUFU": 2, "MUFU.EX2": 1, "STL": 1, "all": 7, "loops": 1}, found
    """
    import textwrap

    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
