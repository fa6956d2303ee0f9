"""Nothing of a folder is left out without a word: folders that cannot be read, links, formats, names that clash."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from pathlib import Path

import pytest
from tiny import noise as picture

from lalic import bulk
from lalic.batch import plan
from lalic.data import Pictures
from lalic.errors import ImageWarning, RequestError
from lalic.eval.measure import load
from lalic.files import search, walk
from lalic.train.data import Crops


@pytest.fixture
def folder(here):
    for number, name in enumerate(("in/a.png", "in/private/b.png", "in/z.png")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(name)
    return here


@pytest.fixture
def private(folder, monkeypatch):
    """`in/private` cannot be listed, as it is for a user without the right (root has every right)."""
    scandir = os.scandir

    def listed(path="."):
        if os.fspath(path).endswith("private"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)


def test_a_folder_that_cannot_be_read_fails_and_the_others_are_done(run, private):
    done = run("compress", "in", "-o", "out")
    assert done.code == 1 and done.err == ["lalic: in/private: Permission denied", "lalic: 1 of 3 files failed"]
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.lalic", "z.lalic"]
    done = run("compress", "in/private", "-o", "out")  # the folder that is named itself
    assert done.code == 1 and done.err == ["lalic: in/private: Permission denied"]


def test_a_folder_that_cannot_be_read_is_never_an_empty_one(run, private):
    """Where all pictures matter, nothing is begun."""
    for read in (lambda: walk("in", {".png"}), lambda: load(["in"]), lambda: Pictures("in")):
        with pytest.raises(OSError, match="Permission denied"):
            read()
    with pytest.raises(RequestError, match=r"in/private: Permission denied"):
        bulk.compress("in", "target", workers=1)
    assert run("eval", "in", "--codecs", "jpeg").code == 1


def test_links_and_formats_that_are_left_out_are_said(run, folder):
    Path("other").mkdir()
    Path("in/album").symlink_to("../other")
    Path("in/none.png").symlink_to("nowhere")
    Path("in/.hidden").symlink_to("../other")
    for name in ("b.HEIC", "c.heic", "d.jxl", "e.dng", "f.svg", "notes.txt", "README.md", "Thumbs.db", "noname"):
        Path("in", name).touch()
    done = run("compress", "in", "-o", "out")
    assert done.code == 1 and len(done.err) == 3 and "in/none.png: No such file" in done.err[1]
    assert done.err[0] == (
        "lalic: warning: in: left out: 1 link to a folder, which is not followed (in/album); 2 files of a format which "
        "Pillow reads with the package pillow-heif (.heic); 1 file of a format which Pillow reads with the package "
        "pillow-jxl-plugin (.jxl); 3 files of a format which is not read (no extension, .dng, .svg)"
    )
    done = run("compress", "in", "-o", "out", "--force", "--quiet")
    assert "left out" in done.err[0]  # it is a warning
    Path("out/album").symlink_to("../other")
    Path("out/e.dng").touch()
    done = run("decompress", "out", "-o", "back", "--quiet")  # where other files are no surprise
    assert done.code == 0 and done.err == [
        "lalic: warning: out: left out: 1 link to a folder, which is not followed (out/album)"
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_sockets_and_devices_are_left_out(run, folder, capfd):
    """Opening a pipe waits until somebody writes to it, and some devices have no end."""
    os.mkfifo("in/pipe.png")
    Path("in/device.PNG").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("in/private/socket.png")
    done = run("compress", "in", "-o", "out", "--quiet")
    assert done.code == 0 and len(list(Path("out").rglob("*.lalic"))) == 3
    assert done.err == [
        "lalic: warning: in: left out: 3 names of a pipe, a socket or a device, which is not opened (in/device.PNG, "
        "in/pipe.png, in/private/socket.png)"
    ]
    os.mkfifo("out/pipe.lalic")
    done = run("decompress", "out", "-o", "back", "--quiet")
    assert done.code == 0 and "1 name of a pipe" in done.err[0]
    with pytest.warns(ImageWarning, match=r"3 names of a pipe"):
        assert len(Crops(["in"], 64, 1, 1)) == 2
    with pytest.warns(ImageWarning, match=r"1 name of a pipe"):
        assert len(Pictures("out")) == 3


def test_a_folder_without_anything_left_out_says_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(walk("in", {".png"})) == 3
    assert search("in", {".png"}).left_out() == ""


def test_many_are_counted_and_few_are_named(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "in").mkdir()
    for i in range(9):
        (tmp_path / f"in/link{i}").symlink_to(tmp_path / "other")
        (tmp_path / f"in/a.raw{i}").touch()
    with pytest.warns(
        ImageWarning, match=r"9 links to a folder.*link0, .*link1, .*link2, \.\.\.\); 9 files.*raw4, \.\.\.\)"
    ):
        walk(tmp_path / "in", {".png"})


# Names


def test_two_pictures_of_one_name_fail_and_the_others_are_done(run, folder):
    picture(7).save("in/a.jpg")
    done = run("compress", "in", "-o", "out")
    assert done.code == 1 and done.err == [
        "lalic: in/a.jpg: a.png beside it would be written to out/a.lalic too; --keep-extension adds to the whole name",
        "lalic: in/a.png: a.jpg beside it would be written to out/a.lalic too; --keep-extension adds to the whole name",
        "lalic: 2 of 4 files failed",
    ]
    assert sorted(path.name for path in Path("out").iterdir()) == ["private", "z.lalic"]
    assert run("compress", "in", "-o", "all", "--keep-extension").code == 0
    names = [str(path.relative_to("all")) for path in sorted(Path("all").rglob("*.lalic"))]
    assert names == ["a.jpg.lalic", "a.png.lalic", "private/b.png.lalic", "z.png.lalic"]
    assert run("decompress", "all", "-o", "back").code == 0  # no two of one name here either
    assert sorted(path.name for path in Path("back").glob("*.png")) == ["a.jpg.png", "a.png.png", "z.png.png"]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("scan.2024.01", "scan.2024.01.lalic"),
        ("scan.2024.01.png", "scan.2024.01.lalic"),
        ("photo.JPEG", "photo.lalic"),
        ("v1.2b", "v1.2b.lalic"),
        ("plain", "plain.lalic"),
        (".hidden", ".hidden.lalic"),
    ],
)
def test_only_the_extension_of_a_picture_is_replaced(here, source, target):
    from lalic.images import readable_extensions

    Path(source).touch()
    assert plan([source], None, ".lalic", readable_extensions())[0].target == target


def test_bulk_replaces_only_the_extension_of_a_picture():
    from lalic.shards import _output

    names = [_output(name, "files") for name in ("x/scan.2024.01", "x/a.png", "a")]
    assert names == ["x/scan.2024.01.lalic", "x/a.lalic", "a.lalic"]


@pytest.mark.parametrize(
    "words", ["compress in -o all.lalic", "compress in/a.png in/z.png -o both.LALIC", "compress in -o x.png"]
)
def test_the_name_of_one_file_for_several_inputs_is_refused(run, folder, words):
    done = run(*words.split())
    output = words.split()[-1]
    assert done.code == 2 and done.err == [
        f"lalic: -o {output} is the name of a file, expected a folder for several inputs ({output}/ is one)"
    ]
    assert not Path(output).exists()
    assert run(*words.split()[:-1], f"{output}/").code == 0 and Path(output).is_dir()
    assert run(*words.split(), "--force").code == 0  # a folder of this name is there


def test_decompressed_pictures_need_a_folder_too(run, folder):
    run("compress", "in", "-o", "out")
    assert run("decompress", "out", "-o", "all.jpg").code == 2
    assert run("decompress", "out", "-o", "release.2").code == 0  # no extension of a picture


# What exists


def test_what_exists_is_skipped(run, folder):
    assert run("compress", "in").code == 0
    Path("in/z.lalic").unlink()
    before = Path("in/a.lalic").stat().st_mtime_ns
    done = run("compress", "in/a.png", "in/private/b.png")
    assert done.code == 1 and done.err[-1] == "lalic: 2 of 2 files failed; --skip-existing leaves out what is done"
    done = run("compress", "in", "--skip-existing")
    assert done.code == 0 and done.err == [] and Path("in/a.lalic").stat().st_mtime_ns == before
    assert done.out[0].startswith("in/z.png -> in/z.lalic") and done.out[1].startswith("1 pictures in ")
    assert done.out[2] == "2 of 3 files skipped, as their outputs exist already" and len(done.out) == 3
    done = run("compress", "in", "--skip-existing", "--quiet")
    assert (done.code, done.out, done.err) == (0, [], [])
    done = run("compress", "in/a.png", "--skip-existing")
    assert (done.code, done.out) == (0, ["in/a.png: skipped, in/a.lalic exists already"])
    assert run("decompress", "in", "-o", "back").code == 0
    assert run("decompress", "in", "-o", "back", "--skip-existing").code == 0
    assert run("decompress", "in", "-o", "back").code == 1
    done = run("compress", "in", "--skip-existing", "--force")
    assert done.code == 2 and "not allowed with" in done.err[0]


def test_a_target_that_is_made_meanwhile_is_skipped_too(run, folder, monkeypatch):
    link = os.link

    def made_before(*names):
        Path("in/a.lalic").write_bytes(b"of another process")
        link(*names)

    monkeypatch.setattr(os, "link", made_before)
    assert run("compress", "in/a.png", "--skip-existing").code == 0
    assert Path("in/a.lalic").read_bytes() == b"of another process"


# Temporary files of processes that were killed


def test_parts_of_killed_processes_are_removed(run, folder):
    fcntl = pytest.importorskip("fcntl")
    Path("out").mkdir()
    left, busy, new = (Path("out", f".{name * 8}.lalic-part.lalic") for name in ("1", "2", "3"))
    for path in (left, busy, new):
        path.write_bytes(b"half")
    for path in (left, busy):
        os.utime(path, (1, 1))
    with busy.open() as used:
        fcntl.flock(used, fcntl.LOCK_EX)
        assert run("compress", "in", "-o", "out").code == 0
    assert not left.exists() and busy.exists()
    assert new.exists()  # a process that made it just now may not have locked it yet


def test_a_file_that_is_written_is_locked_to_its_end(tmp_path, monkeypatch):
    from lalic import files

    pytest.importorskip("fcntl")
    replace, seen = os.replace, []

    def look(temporary, path):
        seen.append(files._is_free(temporary))
        replace(temporary, path)

    monkeypatch.setattr(os, "replace", look)
    files.write_atomic(tmp_path / "a", b"x")
    assert seen == [False]
