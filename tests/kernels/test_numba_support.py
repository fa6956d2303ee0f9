"""Who waits for numba is told why, once."""

from __future__ import annotations

import pytest

from lalic_kernels import installed

numba = pytest.importorskip("numba")


def test_compiling_is_told_once() -> None:
    told: list[int] = []
    installed.on_compiling(lambda: told.append(1))
    compiled = numba.njit(lambda x: x + 1)
    assert not told
    assert compiled(1) == 2 and told == [1]
    assert compiled(1.5) == 2.5 and told == [1]  # compiled again, for another type


def test_nothing_is_told_where_there_is_no_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "NUMBA", False)
    installed.on_compiling(lambda: pytest.fail("there is nothing to tell"))
    assert numba.njit(lambda x: x + 2)(1) == 3
