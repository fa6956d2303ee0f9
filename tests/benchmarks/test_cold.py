"""From process start to a picture: parts are those of the command, each state is measured, failures are said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import lalic
from benchmarks import cold
from benchmarks.codec import picture
from benchmarks.measure import WrongResult
from lalic import images

ROOT = Path(__file__).parents[2]


def test_the_program_reads_its_clock_round_every_part(tmp_path: Path) -> None:
    path = tmp_path / "picture.lalic"
    path.write_bytes(lalic.encode(images.from_tensor(picture(64, 64))))
    words = [sys.executable, "-c", cold._PICTURE, str(path), "1", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout)
    assert len(times) == len(cold.PARTS) and min(times) > 0


def _fake(calls: list[tuple[list[str], str]], code: int):
    def run(words, *, env, **more):
        calls.append((words, env["NUMBA_CACHE_DIR"]))
        if "decompress" in words:
            Path(words[words.index("-o") + 1]).write_bytes(b"picture")
        return SimpleNamespace(returncode=code, stdout=json.dumps([1.0] * len(cold.PARTS)), stderr="what went wrong")

    return run


def test_each_state_has_its_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[list[str], str]] = []
    monkeypatch.setattr(cold.subprocess, "run", _fake(calls, 0))
    found = cold.first_picture("cpu", 2, (64, 64))
    caches = [cache for _, cache in calls]
    parts, commands = 2, 2 * len(cold.PROCESSES)
    assert len(set(caches)) == 4 and len(caches) == 2 * (parts + commands)
    assert len(set(caches[:parts])) == len(set(caches[parts : parts + commands])) == 1
    for state in ("nothing cached", "code cached"):
        assert all(found[state][name] == [1.0, 1.0] for name in cold.PARTS)
        assert all(len(found[state][name]) == 2 for name in cold.PROCESSES)


def test_a_process_that_fails_is_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold.subprocess, "run", _fake([], 1))
    with pytest.raises(WrongResult, match="cold start: what went wrong"):
        cold.first_picture("cpu", 1, (64, 64))
