"""Files in a row: stages overlap, the order stays, few are under way, an interrupt leaves whole files."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest

from lalic import folder
from lalic.files import Job
from lalic.images import ImageWarning


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    made = []
    for i in range(12):
        (tmp_path / f"{i:02}.in").write_bytes(b"%d" % i)
        made.append(Job(str(tmp_path / f"{i:02}.in"), str(tmp_path / "out" / f"{i:02}.out")))
    return made


def steps(**changed: Any) -> folder.Steps:
    plain: dict[str, Any] = {
        "open": lambda job, data: int(data),
        "code": lambda values: [10 * value for value in values],
        "pack": lambda job, value: (b"%d" % value, f"value {value}"),
    }
    return folder.Steps(**plain | changed)


def run(jobs: list[Job], what: folder.Steps, **options: Any) -> int:
    return folder.run(jobs, what, lambda job, error: f"{job.source}: {error}", **options)


def contents(jobs: list[Job]) -> list[str]:
    return [Path(job.target).read_text() for job in jobs if os.path.exists(job.target)]


@pytest.mark.parametrize("together", [1, 5])
def test_results_and_messages_in_order(jobs: list[Job], capsys: pytest.CaptureFixture[str], together: int) -> None:
    given: list[int] = []

    def code(values: list[int]) -> list[Any]:
        given.append(len(values))
        return [ValueError("seven") if value == 7 else 10 * value for value in values]

    Path(jobs[3].source).write_bytes(b"three")
    assert run(jobs, steps(code=code, together=together)) == 2
    lines, errors = (text.splitlines() for text in capsys.readouterr())
    assert contents(jobs) == [str(10 * i) for i in range(12) if i not in (3, 7)]
    assert [line.split(": ")[1].split(",")[0] for line in lines[:-1]] == [
        f"value {10 * i}" for i in range(12) if i not in (3, 7)
    ]
    assert lines[-1].startswith("10 pictures in ") and lines[-1].endswith(" a second")
    assert "03.in: invalid literal" in errors[0] and errors[1].endswith("07.in: seven") and len(errors) == 2
    assert max(given) == together


def test_writing_overlaps_with_coding(jobs: list[Job]) -> None:
    """The first file's writing waits until the third has been coded: one after the other, that would never end."""
    third = threading.Event()

    def code(values: list[int]) -> list[int]:
        if values == [2]:
            third.set()
        return values

    def pack(job: Job, value: int) -> tuple[bytes, str]:
        if value == 0:
            assert third.wait(60)
        return b"%d" % value, ""

    assert run(jobs, steps(code=code, pack=pack), quiet=True) == 0
    assert contents(jobs) == [str(i) for i in range(12)]


def test_few_files_are_under_way(jobs: list[Job]) -> None:
    lock = threading.Lock()
    now = [0, 0]

    def opened(job: Job, data: bytes) -> int:
        with lock:
            now[0] += 1
            now[1] = max(now)
        return int(data)

    def pack(job: Job, value: int) -> tuple[bytes, str]:
        threading.Event().wait(0.02)
        with lock:
            now[0] -= 1
        return b"", ""

    assert run(jobs, steps(open=opened, pack=pack), quiet=True) == 0
    # those ahead, the one that is read, the one that is coded, those behind, and one more before they are waited for
    assert now[0] == 0 and now[1] <= folder.AHEAD + 3 + folder.BEHIND + 1 < len(jobs)


def test_an_interrupt_leaves_whole_files(jobs: list[Job]) -> None:
    def code(values: list[int]) -> list[int]:
        if values == [6]:
            raise KeyboardInterrupt
        return values

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(jobs, steps(code=code), quiet=True)
    assert threading.active_count() == before
    assert contents(jobs) == [str(i) for i in range(len(contents(jobs)))]
    assert all(name.endswith(".out") for name in os.listdir(Path(jobs[0].target).parent))
    assert run(jobs, steps(), quiet=True, force=True) == 0


def test_warnings_belong_to_their_file(jobs: list[Job], capsys: pytest.CaptureFixture[str]) -> None:
    def opened(job: Job, data: bytes) -> int:
        if int(data) % 4 == 1:
            warnings.warn(f"of {int(data)}", ImageWarning, stacklevel=1)
        warnings.warn("for programmers", DeprecationWarning, stacklevel=1)
        return int(data)

    assert run(jobs, steps(open=opened), quiet=True) == 0
    assert [line.split("/")[-1] for line in capsys.readouterr().err.splitlines()] == [
        f"{i:02}.in: warning: of {i}" for i in (1, 5, 9)
    ]


def test_files_that_exist_are_kept(jobs: list[Job]) -> None:
    os.makedirs(Path(jobs[0].target).parent)
    Path(jobs[4].target).write_text("mine")
    assert run(jobs, steps(), quiet=True) == 1
    assert Path(jobs[4].target).read_text() == "mine" and len(contents(jobs)) == 12
