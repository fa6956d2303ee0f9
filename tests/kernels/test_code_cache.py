"""Where compiled code is kept: it is found again, never stale, never trusted when damaged, and never needed."""

from __future__ import annotations

import ast
import errno
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import lalic_kernels
from lalic_kernels import code_cache, info, installed

pytest.importorskip("numba")
from lalic_kernels import numba_math

PACKAGE = Path(lalic_kernels.__file__).parent
TEXT = "from lalic_kernels.numba_math import EXACT, njit\n@njit(**EXACT)\ndef plus(x):\n    return x + {number}\n"
POSIX = pytest.mark.skipif(not hasattr(os, "getuid"), reason="users and permission bits of POSIX")


@pytest.fixture
def kept(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    return next(iter(code_cache.folders()))


@pytest.fixture
def begin(tmp_path, monkeypatch) -> Callable[..., ModuleType]:
    """Import a module of one compiled function, as a new process would."""

    def call(text: str = TEXT.format(number=1)) -> ModuleType:
        path = tmp_path / "loops_of_a_test.py"
        path.write_text(text)
        spec = importlib.util.spec_from_file_location("loops_of_a_test", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "loops_of_a_test", module)
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            spec.loader.exec_module(module)
        finally:
            sys.dont_write_bytecode = before
        code_cache.source_hash.cache_clear()
        return module

    yield call
    code_cache.source_hash.cache_clear()


def found(module: ModuleType) -> bool:
    """Call the function. Returns whether its code was on disk."""
    assert module.plus(2) == 3
    return bool(module.plus.stats.cache_hits)


def test_the_next_process_finds_the_code(begin, kept):
    assert not found(begin()) and found(begin())
    (path,) = kept.iterdir()
    assert path.name.startswith("loops_of_a_test-plus.") and path.name.endswith(".nbc")


@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "one bit", "another's", "a folder"])
def test_a_damaged_file_is_compiled_anew_and_replaced(begin, kept, damage):
    found(begin())
    (path,) = kept.iterdir()
    good = path.read_bytes()
    contents = {
        "empty": b"",
        "half": good[: len(good) // 2],
        "garbage": bytes(range(256)) * 9,
        "one bit": good[:-99] + bytes([good[-99] ^ 4]) + good[-98:],
    }
    if damage in contents:
        path.write_bytes(contents[damage])
    elif damage == "another's":  # intact, but what numba makes of it raises
        path.unlink()
        code_cache.write(path.name, b"not a pickle")
    else:
        path.unlink()
        path.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_cache, "_tell", lambda sentence: None)
        assert not found(begin())
        assert damage == "a folder" or found(begin())


def test_a_full_disk(begin, kept, monkeypatch):
    said, write = [], Path.write_bytes

    def fail(path: Path, content: bytes) -> None:
        write(path, content[:10])
        raise OSError(errno.ENOSPC, "No space left on device", os.fspath(path))

    monkeypatch.setattr(code_cache, "_told", False)
    monkeypatch.setattr(code_cache, "_tell", said.append)
    monkeypatch.setattr(Path, "write_bytes", fail)
    for _ in range(2):
        assert not found(begin())
    (sentence,) = said
    assert sentence.startswith(f"compiled code is not kept on disk ({kept}: No space left on device), so each process")
    assert list(kept.iterdir()) == []


def test_code_is_written_to_the_first_folder_that_takes_it(begin, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    folders = [tmp_path / "file" / "below", tmp_path / "kept", tmp_path / "other"]
    monkeypatch.setattr(code_cache, "folders", lambda make=False: iter(folders))
    assert not found(begin()) and found(begin())
    assert len(list(folders[1].iterdir())) == 1 and not folders[2].exists()
    folders[1].rename(folders[2])  # a folder that can be read and not written to, as in a container's image
    folders[1].touch()
    assert found(begin()) and code_cache.kept_in() == folders[2]


def test_code_of_other_sources_and_versions_is_not_taken(begin, kept, monkeypatch):
    found(begin())
    (old,) = kept.iterdir()
    assert begin(TEXT.format(number=40)).plus(2) == 42
    (new,) = kept.iterdir()
    assert new.name != old.name  # the old one has gone
    monkeypatch.setattr(numba_math, "_VERSIONS", ("0.1",))
    assert begin(TEXT.format(number=40)).plus.stats.cache_hits == {}
    assert begin(TEXT.format(number=40)).plus(2) == 42
    assert len(list(kept.iterdir())) == 2  # two versions of numba beside each other


def test_a_release_that_is_installed_meanwhile_does_not_get_the_code(begin, kept):
    module = begin()
    Path(module.__file__).write_text(TEXT.format(number=40))
    code_cache.source_hash.cache_clear()
    assert module.plus(2) == 3
    assert begin(TEXT.format(number=40)).plus(2) == 42


def test_the_hash_is_of_all_sources_that_compiled_code_depends_on(monkeypatch):
    """Of each module with compiled loops, and of each that it imports a constant or a function from."""
    from lalic_kernels.exact import numbers

    loops = {path.parent.name: path for path in PACKAGE.glob("*/cpu_loops.py")}
    assert {"biwkv", "exact", "gaussian", "mix", "rans", "shift"} <= loops.keys()
    for path in (*loops.values(), PACKAGE / "numba_math.py", PACKAGE / "exact" / "cpu_product.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lalic_kernels"):
                line = path.read_text().splitlines()[node.lineno - 1]
                assert code_cache._IMPORT.match(line), line
            assert not isinstance(node, ast.Import) or not any("lalic" in name.name for name in node.names)
    for name in loops:
        importlib.import_module(f"lalic_kernels.{name}.cpu_loops")
    before = {name: code_cache.source_hash.__wrapped__(f"lalic_kernels.{name}.cpu_loops") for name in loops}
    assert None not in before.values() and len(set(before.values())) == len(loops)
    loader = numbers.__spec__.loader
    monkeypatch.setattr(loader, "get_source", lambda name: "BITS = 1", raising=False)
    after = {name: code_cache.source_hash.__wrapped__(f"lalic_kernels.{name}.cpu_loops") for name in loops}
    assert [name for name in loops if before[name] != after[name]] == ["exact"]


def test_every_compiled_function_goes_through_one_place():
    for path in (*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "lalic").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name not in ("numba_math.py", "test_code_cache.py"):
            assert (
                "numba.njit" not in text
                and "numba.jit" not in text
                and "import njit" not in text.replace("numba_math import njit", "")
            ), path
            assert "enable_caching" not in text, path
    from lalic_kernels.biwkv import cpu_loops

    assert type(cpu_loops.chain._cache).__name__ == "_Kept"


def test_without_sources_nothing_is_kept(begin, kept, monkeypatch):
    from importlib.machinery import SourceFileLoader

    monkeypatch.setattr(SourceFileLoader, "get_source", lambda loader, name: None)
    assert not found(begin()) and not found(begin()) and not kept.exists()
    assert code_cache.source_hash.__wrapped__("no_such_module") is None


# Folders


@POSIX
def test_the_order_of_folders(tmp_path, monkeypatch):
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(code_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(code_cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    name = f"lalic-{os.getuid()}"
    first, second = code_cache.folders()
    assert first == PACKAGE / "__pycache__" and second.parent == Path("/xdg/lalic")
    assert [folder.parent for folder in code_cache.folders(make=True)][2] == tmp_path / name
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert [*code_cache.folders()][1].parent == Path("/home/somebody/.cache/lalic")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without a home
    assert [folder.parent for folder in code_cache.folders()] == [PACKAGE, tmp_path / name]


@POSIX
@pytest.mark.parametrize("trap", ["writable", "foreign", "link", "file"])
def test_a_temporary_folder_that_others_can_write_to_is_not_used(tmp_path, monkeypatch, trap):
    monkeypatch.setattr(code_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = code_cache._temporary_folder(make=True)
    assert folder == tmp_path / f"lalic-{os.getuid()}" and folder.stat().st_mode & 0o777 == 0o700
    assert code_cache._temporary_folder(make=False) == folder
    if trap == "writable":
        folder.chmod(0o777)
    elif trap == "foreign":
        found = folder.lstat()
        monkeypatch.setattr(Path, "lstat", lambda path: os.stat_result((*found[:4], found.st_uid + 1, *found[5:])))
    else:
        folder.rmdir()
        folder.symlink_to(tmp_path) if trap == "link" else folder.touch()
    assert code_cache._temporary_folder(make=True) is None


def test_no_temporary_folder_at_all(monkeypatch):
    def fail() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(code_cache.tempfile, "gettempdir", fail)
    assert code_cache._temporary_folder(make=True) is None


def test_the_report_says_where_or_that_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert f"compiled code for the CPU is kept in\n  {tmp_path}" in info.report()
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "file"))
    assert "each process compiles for the CPU anew" in info.report()


def test_triton_gets_a_folder_where_its_own_cannot_be_written_to(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setattr(code_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "home"))
    assert code_cache.triton_folder() is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "file"))
    folder = code_cache.triton_folder()
    assert folder is not None and folder.parent.parent == tmp_path and folder.name == "triton"
    monkeypatch.setenv("TRITON_CACHE_DIR", "/of/the/user")
    assert code_cache.triton_folder() is None


@pytest.mark.skipif(not installed.TRITON, reason="triton is not installed")
def test_triton_takes_the_folder(tmp_path, monkeypatch):
    from triton.runtime import driver
    from triton.runtime.cache import get_cache_manager

    class Driver:
        def get_current_device(self) -> int:
            return 0

    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.setattr(code_cache, "triton_folder", lambda: tmp_path / "triton")
    monkeypatch.setattr(driver, "_active" if "_active" in vars(driver) else "active", Driver())
    installed.start_triton.cache_clear()
    installed.start_triton()
    installed.start_triton.cache_clear()
    assert Path(get_cache_manager("0f").put("text", "name", binary=False)).is_relative_to(tmp_path / "triton")


NO_JIT = """
import numpy as np, torch
import lalic_kernels
from lalic_kernels import exact, info, installed, rans
assert not installed.NUMBA and rans.available_backends() == ("numpy",) and exact.op.backend_of("cpu") == "reference"
w, u, k, v = torch.rand(4), torch.rand(4), torch.randn(1, 9, 4), torch.randn(1, 9, 4)
assert torch.equal(lalic_kernels.biwkv(w, u, k, v), lalic_kernels.biwkv(w, u, k, v, backend="torch"))
lalic_kernels.token_shift(torch.randn(1, 3, 3, 2), torch.randn(2, 5, 5))
exact.linear(torch.randn(3, 4), exact.prepare_linear(torch.randn(2, 4)))
try:
    lalic_kernels.biwkv(w, u, k, v, backend="cpu")
except lalic_kernels.BackendUnavailable as error:
    print(error)
print(info.report())
"""


def test_numba_may_be_switched_off():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", NO_JIT], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "cannot be used: NUMBA_DISABLE_JIT is set, so numba compiles nothing" in done.stdout
    assert "no compiled code for the CPU (NUMBA_DISABLE_JIT is set, so numba compiles nothing)" in done.stdout
