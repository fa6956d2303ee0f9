"""A callback warns, once, that numba compiles."""

from __future__ import annotations

import pytest

from lalic_kernels import installed

numba = pytest.importorskip("numba")


def test_the_first_compilation_warns() -> None:
    warnings: list[int] = []
    installed.on_compiling(lambda: warnings.append(1))
    compiled = numba.njit(lambda x: x + 1)
    assert not warnings
    assert compiled(1) == 2 and warnings == [1]
    assert compiled(1.5) == 2.5 and warnings == [1]  # compiled again, for another type


def test_without_numba_nothing_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "NUMBA", False)
    installed.on_compiling(lambda: pytest.fail("warned without numba"))
    assert numba.njit(lambda x: x + 2)(1) == 3
