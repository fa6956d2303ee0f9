"""Many files: steps overlap, outcomes are in order, few files are in memory, an interrupt leaves whole files."""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from tiny import noise, tiny

from lalic import batch, codec
from lalic.batch import Job, Outcome, Saved, compress_files, decompress_files
from lalic.errors import LalicError, RequestError
from lalic.files import WouldOverwrite, read, write
from lalic.images import ImageWarning


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    made = []
    for i in range(12):
        (tmp_path / f"{i:02}.in").write_bytes(b"%d" % i)
        made.append(Job(str(tmp_path / f"{i:02}.in"), str(tmp_path / "out" / f"{i:02}.out")))
    return made


def save(target: str, value: int) -> Saved:
    write(target, b"%d" % value, overwrite=False)
    return Saved(len(str(value)), value, 1)


def opened(source: str) -> int:
    return int(read(source))


def steps(**changed: Any) -> batch.Steps:
    plain: dict[str, Any] = {"open": opened, "code": lambda values: [10 * value for value in values], "save": save}
    return batch.Steps(**plain | changed)


def run(jobs: list[Job], what: batch.Steps, **options: Any) -> list[Outcome]:
    return batch.run(jobs, what, **options)


def failed(outcomes: list[Outcome]) -> int:
    return sum(outcome.error is not None for outcome in outcomes)


def contents(jobs: list[Job]) -> list[str]:
    return [Path(job.target).read_text() for job in jobs if os.path.exists(job.target)]


@pytest.mark.parametrize("size", [1, 5])
def test_outcomes_in_order(jobs: list[Job], size: int) -> None:
    given: list[int] = []

    def code(values: list[int]) -> list[Any]:
        given.append(len(values))
        return [ValueError("seven") if value == 7 else 10 * value for value in values]

    Path(jobs[3].source).write_bytes(b"three")
    outcomes = run(jobs, steps(code=code, batch=size))
    assert [(o.source, o.target) for o in outcomes] == [(job.source, job.target) for job in jobs]
    good = [i for i in range(12) if i not in (3, 7)]
    assert contents(jobs) == [str(10 * i) for i in good]
    assert [(o.width, o.height, o.size) for o in outcomes if o.error is None] == [
        (10 * i, 1, len(str(10 * i))) for i in good
    ]
    assert "invalid literal" in str(outcomes[3].error) and str(outcomes[7].error) == "seven" and failed(outcomes) == 2
    assert all(o.seconds > 0 for o in outcomes) and max(given) == size


def test_writing_overlaps_with_coding(jobs: list[Job]) -> None:
    """Writing of the first file waits until the third is coded, which would never end without overlap."""
    third = threading.Event()

    def code(values: list[int]) -> list[int]:
        if values == [2]:
            third.set()
        return values

    def late(target: str, value: int) -> Saved:
        if value == 0:
            assert third.wait(60)
        return save(target, value)

    assert failed(run(jobs, steps(code=code, save=late))) == 0
    assert contents(jobs) == [str(i) for i in range(12)]


def test_few_files_are_under_way(jobs: list[Job]) -> None:
    lock = threading.Lock()
    now = [0, 0]

    def counted(source: str) -> int:
        with lock:
            now[0] += 1
            now[1] = max(now)
        return opened(source)

    def slow(target: str, value: int) -> Saved:
        threading.Event().wait(0.02)
        with lock:
            now[0] -= 1
        return Saved(0, 1, 1)

    assert failed(run(jobs, steps(open=counted, save=slow))) == 0
    # read ahead, being read, being coded, waiting to be written, and one more before the wait
    assert now[0] == 0 and now[1] <= batch.READ_AHEAD + 3 + batch.WRITE_BEHIND + 1 < len(jobs)


def test_an_interrupt_leaves_whole_files(jobs: list[Job]) -> None:
    def code(values: list[int]) -> list[int]:
        if values == [6]:
            raise KeyboardInterrupt
        return values

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run(jobs, steps(code=code))
    assert threading.active_count() == before
    assert contents(jobs) == [str(i) for i in range(len(contents(jobs)))]
    assert all(name.endswith(".out") for name in os.listdir(Path(jobs[0].target).parent))
    for job in jobs:
        Path(job.target).unlink(missing_ok=True)
    assert failed(run(jobs, steps(), overwrite=True)) == 0


def test_warnings_belong_to_their_file(jobs: list[Job]) -> None:
    def warned(source: str) -> int:
        value = opened(source)
        if value % 4 == 1:
            warnings.warn(f"of {value}", ImageWarning, stacklevel=1)
        warnings.warn("for programmers", DeprecationWarning, stacklevel=1)
        return value

    found = {i: outcome.warnings for i, outcome in enumerate(run(jobs, steps(open=warned))) if outcome.warnings}
    assert found == {i: [f"of {i}"] for i in (1, 5, 9)}


def test_files_that_exist_are_kept(jobs: list[Job]) -> None:
    os.makedirs(Path(jobs[0].target).parent)
    Path(jobs[4].target).write_text("mine")
    outcomes = run(jobs, steps())
    assert isinstance(outcomes[4].error, WouldOverwrite) and failed(outcomes) == 1
    assert Path(jobs[4].target).read_text() == "mine" and len(contents(jobs)) == 12


# Pictures from Python


def test_there_and_back_from_python(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Plain arguments, outcomes as result, nothing printed; one bad file does not stop the others."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        noise(i).save(folder / f"{i}.png")
    (folder / "1.png").write_bytes(b"no picture")
    heard: list[tuple[str, int]] = []
    outcomes = compress_files(
        [folder],
        tmp_path / "out",
        tiny(qualities=3),
        quality=100,
        progress=lambda o, n: heard.append((o.source, n)),
    )
    assert [Path(o.target).name for o in outcomes] == ["0.lalic", "1.lalic", "2.lalic"]
    assert heard == [(o.source, 3) for o in outcomes]
    assert isinstance(outcomes[1].error, LalicError) and failed(outcomes) == 1
    first = outcomes[0]
    assert (first.width, first.height, first.quality) == (40, 30, 100) and first.warnings == []
    assert first.size == os.path.getsize(first.target)
    back = decompress_files([str(tmp_path / "out")], str(tmp_path / "back"), tiny(qualities=3))
    assert [(Path(o.target).name, o.width, o.height, o.error) for o in back] == [
        ("0.png", 40, 30, None), ("2.png", 40, 30, None)
    ]  # fmt: skip
    for i in (0, 2):
        decoded = codec.decode((tmp_path / "out" / f"{i}.lalic").read_bytes(), tiny(qualities=3))
        with Image.open(tmp_path / "back" / f"{i}.png") as image:
            assert (np.asarray(image) == np.asarray(decoded)).all()
    assert capfd.readouterr() == ("", "")
    again = compress_files([folder / "0.png"], tmp_path / "out", tiny(qualities=3))
    assert isinstance(again[0].error, WouldOverwrite)
    assert failed(compress_files([folder / "0.png"], tmp_path / "out", tiny(qualities=3), overwrite=True)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": 0}, "quality is 0, expected 1 to 100"),
        ({"quality": 50, "target_bpp": 1.0}, "expected at most one of them, got 2"),
        ({"effort": -1.0}, "effort is -1 seconds, expected more than 0"),
        ({"effort": 9.0, "target_psnr": 30.0}, "expected with a quality, not with a target"),
        ({"background": "greenish"}, "background is 'greenish'"),
    ],
)
def test_a_request_that_cannot_be_starts_nothing(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    noise().save(tmp_path / "a.png")
    with pytest.raises(RequestError, match=message):
        compress_files([tmp_path / "a.png"], model=tiny(qualities=3), **options)
    with pytest.raises(RequestError, match="no picture format"):
        decompress_files([tmp_path / "a.png"], tmp_path / "a.xyz", tiny(qualities=3))
    with pytest.raises(LalicError, match="device is 'tpu'"):
        compress_files([tmp_path / "a.png"], device="tpu")
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_picture_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its profile is applied when it is loaded, and not again when it is coded."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (40, 30), (9, 8, 7)).save(tmp_path / "a.png", icc_profile=profile)
    seen: list[Any] = []
    inner = ImageCms.ImageCmsProfile
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda given: seen.append(given) or inner(given))
    assert failed(compress_files([tmp_path / "a.png"], model=tiny())) == 0
    assert sum(isinstance(given, io.BytesIO) for given in seen) == 1


def test_a_damaged_file_fails_alone_where_several_are_decoded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):
        noise(i).save(tmp_path / f"{i}.png")
    compress_files([tmp_path], tmp_path / "out", tiny())
    (tmp_path / "out" / "0.lalic").write_bytes(b"damaged")
    monkeypatch.setattr(codec, "resolve_device", lambda device: torch.device("cuda"))
    outcomes = decompress_files([tmp_path / "out"], tmp_path / "back", tiny())
    assert [outcome.error is None for outcome in outcomes] == [False, True, True]


def test_runs_that_overlap_give_the_callers_warnings_back(jobs: list[Job]) -> None:
    shown, filters = warnings.showwarning, list(warnings.filters)
    begun, first_done = threading.Barrier(2), threading.Event()

    def first(values: list[int]) -> list[Any]:
        begun.wait(10)
        return [10 * value for value in values]

    def second(values: list[int]) -> list[Any]:
        begun.wait(10)
        first_done.wait(10)
        warnings.warn("of a picture", ImageWarning, stacklevel=1)
        return [10 * value for value in values]

    outcomes: list[Outcome] = []
    other = threading.Thread(target=lambda: outcomes.extend(run(jobs[1:2], steps(code=second))))
    other.start()
    run(jobs[:1], steps(code=first))
    first_done.set()
    other.join()
    assert outcomes[0].warnings == ["of a picture"]
    assert warnings.showwarning is shown and list(warnings.filters) == filters
