"""Long use: the pictures are of every kind, memory is noted as work is done, and a file that differs is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image
from tiny import save, tiny

import lalic
from benchmarks import load
from benchmarks.measure import WrongResult
from lalic_kernels import installed


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Triton's interpreter, which holds one launch at a time."""
    monkeypatch.setattr(installed, "interpreting", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    load.write_pictures(tmp_path / "in", 12)
    return tmp_path / "in"


@pytest.fixture
def weights(tmp_path: Path) -> str:
    return str(save(tmp_path / "weights.pth", tiny()))


def test_pictures_are_of_every_kind_and_of_many_sizes(pictures: Path) -> None:
    modes, sizes = set(), set()
    for path in load._paths(pictures):
        with Image.open(path) as picture:
            modes.add(picture.mode)
            sizes.add(picture.size)
    assert modes == {"RGB", "L", "RGBA", "I;16", "P"} and len(sizes) == 12


def test_memory_is_noted_at_each_tenth() -> None:
    memory = load.Memory()
    for done in (0.05, 0.1, 0.12, 0.5, 1.0):
        memory.note(done)
    assert len(memory.mib) == 10 and all(10 < size < 1 << 20 for size in memory.mib)
    assert load.Memory(os.getppid())._path != memory._path


def test_threads_give_the_files_of_one(pictures: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "THREADS", 3)
    _, hashes = load.alone(pictures, weights)
    row, differing = load.threads(pictures, weights, hashes, 0)
    assert row["pictures"] == 12 and differing == []
    row, differing = load.threads(pictures, weights, hashes, 1 / 120)  # half a second
    assert row["pictures"] > 0 and differing == []
    name = "0/0003"
    _, differing = load.threads(pictures, weights, hashes | {name: ("", "")}, 0)
    assert [Path(each).stem for each in differing] == ["0003"]


def test_a_file_that_differs_is_named(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands stand in; a wrong picture is found among what they write."""

    def command(name: str, source: Path, target: Path, checkpoint: str | None) -> load.Row:
        model = lalic.load(checkpoint)
        for path in load._paths(source):
            data = lalic.encode(path, model, quality=None) if name == "compress" else b"wrong"
            written = (target / path.relative_to(source)).with_suffix(".lalic" if name == "compress" else ".png")
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_bytes(data)
        return {"process": name, "pictures": 2}

    class Here:
        """A pool of processes that is none."""

        def __init__(self, *_: object) -> None: ...

        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, function, *arguments):  # type: ignore[no-untyped-def]
            self.value = function(*arguments)
            return self

        def result(self):  # type: ignore[no-untyped-def]
            return self.value

    monkeypatch.setattr(load, "command", command)
    monkeypatch.setattr(load, "ProcessPoolExecutor", Here)
    said: list[str] = []
    with pytest.raises(WrongResult, match=r"decompress: 2 pictures differ, such as 0/0000"):
        load.measure(2, checkpoint=weights, say=said.append)
    assert said[1] == "process compress, pictures 2, 0 differ"


@pytest.mark.slow
def test_all_rows(weights: str) -> None:
    rows = load.measure(12, checkpoint=weights, say=lambda message: None)
    assert [row["process"] for row in rows] == ["one by one", "lalic compress", "lalic decompress", "8 threads"]
    assert all(row["end MiB"] >= row["tenth MiB"] / 2 > 0 for row in rows)
