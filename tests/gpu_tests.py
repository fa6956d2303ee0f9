"""Tests that have no `gpu` mark of their own because they run everywhere: kernels on a GPU, or in Triton's interpreter.

Where there is a GPU they are GPU tests (`conftest.py`). A file, and a part of the names of its tests.
"""

EITHER = (
    ("tests/benchmarks/test_baselines.py", ""),
    ("tests/benchmarks/test_tune.py", "test_a_candidate_runs"),
    ("tests/codec/test_golden_streams.py", "test_kernels_decode"),
    ("tests/codec/test_golden_streams.py", "test_symbols_that_stay_on_the_device"),
    ("tests/coder/test_exact_model.py", "test_one_look"),
    ("tests/exact/test_paths.py", "triton"),
    ("tests/exact/test_triton.py", ""),
    ("tests/exact/test_triton_slices.py", ""),
    ("tests/kernels/test_biwkv.py", ""),
    ("tests/kernels/test_checksum.py", "triton"),
    ("tests/kernels/test_rans_gpu.py", ""),
    ("tests/kernels/test_rwkv_block.py", ""),
)


def runs_on_either(place: str, name: str) -> bool:
    """Whether a test is one of these. place: its file, from the root; name: its own, with parameters."""
    return any(place == file and part in name for file, part in EITHER)
