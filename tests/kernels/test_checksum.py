"""The checksum of symbols: every implementation equals its definition in Python's integers."""

from __future__ import annotations

import pytest
import torch
from op_specs import INTERPRETER, WHY_NO_INTERPRETER

from lalic_kernels import installed
from lalic_kernels.rans import checksum

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # of the kernel
IMPLEMENTATIONS = {
    "torch": checksum.by_torch,
    "numba": checksum._by_numba,
    "triton": checksum._by_triton,
}


def by_hand(symbols: list[int], first: int) -> int:
    total = 0
    for i, s in enumerate(symbols, first):
        x = (i << 32) + s % 2**32
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        total += x ^ (x >> 31)
    return total % 2**64


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request):
    if request.param == "numba" and not installed.NUMBA:
        pytest.skip("numba is not installed")
    if request.param == "triton" and not INTERPRETER and DEVICE == "cpu":
        pytest.skip(WHY_NO_INTERPRETER)
    computed, device = IMPLEMENTATIONS[request.param], DEVICE if request.param == "triton" else "cpu"
    return lambda symbols, first: computed(symbols.to(device), first).cpu()


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 40000])
def test_equals_the_definition(implementation, count: int) -> None:
    symbols = torch.randint(-(2**31), 2**31 - 1, (2, count), dtype=torch.int32, generator=torch.manual_seed(count))
    sums = [value % 2**64 for value in implementation(symbols, 12345).tolist()]
    assert sums == [by_hand(row, 12345) for row in symbols.tolist()]


def test_parts_add_up_and_indices_matter(implementation) -> None:
    symbols = torch.tensor([[0, 1, -1, 7, 7, 0, 2**31 - 1, -(2**31)]], dtype=torch.int32)
    whole = implementation(symbols, 3)
    assert torch.equal(whole, implementation(symbols[:, :5], 3) + implementation(symbols[:, 5:], 8))
    swapped = symbols[:, [1, 0, *range(2, 8)]]
    assert not torch.equal(whole, implementation(swapped, 3))
    assert not torch.equal(whole, implementation(symbols, 4))


def test_one_bit_of_one_symbol_changes_the_lower_half() -> None:
    """Files store 32 bits of the sum: each must depend on every bit of a symbol."""
    symbols = torch.zeros((1, 1), dtype=torch.int32)
    base = int(checksum.by_torch(symbols, 99))
    changed = 0
    for bit in range(31):
        changed |= (base ^ int(checksum.by_torch(symbols + (1 << bit), 99))) & 0xFFFFFFFF
    assert changed == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("symbols", "first", "error", "message"),
    [
        (torch.zeros(1, 2), 0, TypeError, "symbols must be int32, but is float32"),
        (torch.zeros(2, dtype=torch.int32), 0, ValueError, r"shape \(B, n\), but has \(2,\)"),
        (torch.zeros(1, 2, dtype=torch.int32), -1, ValueError, "first must be in .* but is -1"),
        (torch.zeros(1, 2, dtype=torch.int32), 2**31 - 2, ValueError, "first must be in .* but is 2147483646"),
    ],
)
def test_bad_arguments(symbols, first, error, message) -> None:
    with pytest.raises(error, match=message):
        checksum.symbol_checksum(symbols, first)
