"""Writing files whole or not at all, and the plan of what is written where."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys

import pytest

from lalic.batch import Job, plan
from lalic.errors import RequestError
from lalic.files import STREAM, FileBytes, read, write, write_atomic

PICTURES = [".png", ".jpg"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_write_and_replace(tmp_path):
    path = tmp_path / "größe 文.bin"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two" and names(tmp_path) == [path.name]


def test_an_existing_file_stays_without_overwrite(tmp_path):
    path = tmp_path / "a"
    write_atomic(path, b"one", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomic(path, b"two", overwrite=False)
    assert path.read_bytes() == b"one" and names(tmp_path) == ["a"]


def test_an_existing_file_stays_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def no_link(*_):
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", no_link)
    test_an_existing_file_stays_without_overwrite(tmp_path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_error_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    seen = []

    def fail(*_):
        seen.append(names(tmp_path))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert len(seen[0]) == 2  # the temporary file was there
    assert path.read_bytes() == b"old" and names(tmp_path) == ["a"]


def test_an_error_names_the_target_and_not_the_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "a"

    def fail(name, *_):
        raise OSError(errno.EROFS, "Read-only file system", name)

    for step in ("open", "replace"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Read-only") as caught:
            patch.setattr(os, step, fail)
            write_atomic(path, b"new")
        assert caught.value.filename == str(path)
    assert names(tmp_path) == []


def test_a_file_where_a_folder_belongs(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        write(str(tmp_path / "a" / "b"), b"y")


@pytest.mark.skipif(sys.platform == "win32", reason="permission bits and links of POSIX")
def test_permissions_follow_the_umask_and_links_are_followed(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to("a")
    write_atomic(tmp_path / "link", b"y")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "a").read_bytes() == b"y"


@pytest.mark.skipif(sys.platform == "win32", reason="devices of POSIX")
def test_a_device_is_written_to_and_not_replaced(tmp_path):
    write_atomic("/dev/null", b"x", overwrite=False)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_folder_is_no_target(tmp_path):
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path, b"x")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = ("b.JPG", "sub/c.png", "notes.txt", ".hidden.png", ".cache/d.png", "e.lalic")
    for name in ("a.png", *(f"in/{name}" for name in inside)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path


def pairs(jobs):
    return [(job.source, job.target) for job in jobs]


def test_one_file(tree):
    assert plan(["a.png"], None, ".lalic", PICTURES) == [Job("a.png", "a.lalic")]
    assert plan(["a.png"], "x/y.bin", ".lalic", PICTURES) == [Job("a.png", "x/y.bin")]
    assert plan(["a.png"], "in", ".lalic", PICTURES) == [Job("a.png", "in/a.lalic")]
    assert plan(["a.png"], "new/", ".lalic", PICTURES) == [Job("a.png", "new/a.lalic")]
    assert plan(["in/notes.txt"], None, ".lalic", PICTURES) == [Job("in/notes.txt", "in/notes.txt.lalic")]  # by name


def test_a_folder_is_searched_and_mirrored(tree):
    inside = [("in/b.JPG", "in/b.lalic"), ("in/sub/c.png", "in/sub/c.lalic")]
    assert pairs(plan(["in"], None, ".lalic", PICTURES)) == inside
    mirrored = [("in/b.JPG", "out/b.lalic"), ("in/sub/c.png", "out/sub/c.lalic"), ("a.png", "out/a.lalic")]
    assert pairs(plan(["in/", "a.png"], "out", ".lalic", PICTURES)) == mirrored
    assert len(plan(["in/.cache", "in/sub"], None, ".lalic", PICTURES)) == 2


def test_streams(tree):
    assert plan(["-"], None, ".lalic", PICTURES) == [Job(STREAM, STREAM)]
    assert plan(["-"], "a.lalic", ".lalic", PICTURES) == [Job(STREAM, "a.lalic")]
    assert plan(["a.png"], "-", ".lalic", PICTURES) == [Job("a.png", STREAM)]


@pytest.mark.parametrize(
    ("sources", "out", "match"),
    [
        (["none.png"], None, "none.png: there is no such file"),
        (["a.png", "-"], None, "cannot be combined"),
        (["in"], "-", "takes exactly one input"),
        (["a.png", "in"], "-", "takes exactly one input"),
        (["in"], "a.png", "is a file, expected a folder"),
        (["a.png"], "a.png", "itself an input"),
        (["a.png"], "./in/../a.png", "itself an input"),
        (["a.png", "a.png"], None, "a.png is named twice"),
        (["in", "in/sub/c.png"], None, "c.png is named twice"),
        ([""], None, "an input is an empty name"),  # of a shell's variable that is not set
        (["a.png"], "", "-o is an empty name"),
        (["-"], "", "-o is an empty name"),
    ],
)
def test_what_is_refused(tree, sources, out, match):
    with pytest.raises(RequestError, match=match):
        plan(sources, out, ".lalic", PICTURES)


def test_a_file_of_the_name_of_standard_input(tree, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "-").write_bytes(b"x")
    assert plan(["./-"], None, ".lalic", PICTURES) == [Job("./-", "-.lalic")]
    assert plan(["-"], None, ".lalic", PICTURES) == [Job(STREAM, STREAM)]


@pytest.mark.parametrize("sources", ["a.png", b"a.png"])
def test_one_name_is_no_list_of_names(sources):
    with pytest.raises(TypeError, match=r"sources is of type (str|bytes), expected a list of names"):
        plan(sources, None, ".lalic", PICTURES)


def test_two_sources_of_one_target(tree):
    (tree / "a.jpg").touch()
    with pytest.raises(RequestError, match=r"a\.png and a\.jpg would both be written to a\.lalic"):
        plan(["a.png", "a.jpg"], None, ".lalic", PICTURES)
    (tree / "in/sub/b.png").touch()
    with pytest.raises(RequestError, match="would both be written"):
        plan(["in", "in/sub"], "out", ".lalic", PICTURES)


def test_a_target_that_is_another_source(tree):
    (tree / "a.lalic").touch()
    with pytest.raises(RequestError, match=r"a\.png would be written to a\.lalic, which is itself an input"):
        plan(["a.png", "a.lalic"], None, ".lalic", PICTURES)


def test_an_empty_folder(tree):
    (tree / "empty").mkdir()
    with pytest.raises(RequestError, match=r"empty: this folder holds no file"):
        plan(["empty"], None, ".lalic", PICTURES)
    with pytest.raises(RequestError, match=r"sub: this folder holds no file that ends in \.lalic"):
        plan(["in/sub"], None, ".png", [".lalic"])


def test_a_stream_of_text_in_place_of_a_standard_stream(monkeypatch):
    """As in a notebook."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stdin", io.StringIO("text"))
    with pytest.raises(OSError, match="holds text only in this program") as caught:
        write(STREAM, b"bytes")
    assert caught.value.filename == "standard output"
    with pytest.raises(OSError, match="holds text only in this program"):
        read(STREAM)


def test_bytes_of_a_file_are_like_bytes():
    data = bytes(range(100))
    whole = FileBytes(io.BytesIO(data))
    part, same = whole[10:90][5:50], data[10:90][5:50]
    assert bytes(whole) == data and bytes(part) == same and len(part) == len(same) == 45
    assert part[0] == same[0] and part[-1] == same[-1] and list(part) == list(same)
    assert bytes(whole[90:200]) == data[90:200] and bytes(whole[200:]) == b"" and not whole[5:5]
    with pytest.raises(IndexError):
        part[45]
    with pytest.raises(ValueError, match="step 2, expected 1"):
        part[::2]
