"""Standard streams that are closed, full or gone, and the exit codes of wrong requests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import noise as picture
from tiny import save, tiny

import lalic
from lalic import cli, codec, files
from lalic.container import MAGIC, parse
from lalic.errors import BitstreamError, LalicError, RequestError, RunError, as_request, is_out_of_memory, sentence

ROOT = Path(__file__).parents[2]
POSIX = pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX")


@pytest.fixture
def shell(tmp_path):
    """Runs a line of a shell, in which `lalic` is the command, in a folder with a picture and a .lalic file."""
    picture().save(tmp_path / "a.png")
    (tmp_path / "a.lalic").write_bytes(codec.encode(picture(), tiny()))

    def call(line):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        line = f'lalic() {{ "{sys.executable}" -m lalic "$@"; }}; {line}; echo $? > code'
        done = subprocess.run(
            ["sh", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
        return int((tmp_path / "code").read_text()), done.stdout, done.stderr

    return call


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="a device of POSIX")
def test_what_has_no_end_is_not_read_to_it(run, monkeypatch):
    """What does not begin as a .lalic file is not read further."""
    endless = f"this is not a .lalic file: it does not begin with the bytes {MAGIC.hex(' ').upper()}"
    for words in (["decompress", "/dev/zero", "-o", "a.png"], ["info", "/dev/zero"]):
        done = run(*words)
        assert done.code == 1 and done.err == [f"lalic: /dev/zero: {endless}"]
    with open("/dev/zero", "rb") as zeros, pytest.raises(BitstreamError, match=r"not a \.lalic file"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=zeros))
        parse(files.read(files.STREAM, MAGIC))
    with pytest.raises(BitstreamError, match=r"not a \.lalic file"):
        lalic.decode("/dev/zero", tiny())


@POSIX
def test_closed_streams_of_a_light_command(shell):
    assert shell("lalic info a.lalic 2>&-")[0] == 0
    assert shell("lalic info none.lalic 2>&-") == (1, "", "")
    assert shell("lalic info a.lalic >&- 2>&- <&-") == (0, "", "")
    code, _, err = shell("lalic info - <&-")
    assert code == 1 and "standard input: is closed" in err


@POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_streams_of_a_light_command(shell):
    code, _, err = shell("lalic info a.lalic > /dev/full")
    assert code == 1 and err in (
        "lalic: standard output: No space left on device\n",
        "lalic: No space left on device\n",
    )
    code, _, err = shell(f"lalic info {'a.lalic ' * 99} > /dev/full")
    assert code == 1 and err.endswith("No space left on device\n") and err.count("\n") == 1
    assert shell("lalic info none.lalic 2> /dev/full")[0] == 1


@POSIX
@pytest.mark.slow
def test_files_are_coded_without_standard_streams(shell, tmp_path):
    save(tmp_path / "w.pth", tiny())
    (tmp_path / "in").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / f"in/{i}.png")
    assert shell("lalic compress a.png -o b.lalic --checkpoint w.pth 2>&-")[0] == 0
    assert shell("lalic compress in -o out --checkpoint w.pth 2>&- >&-")[0] == 0
    assert shell("lalic compress in -o again --checkpoint w.pth 2>/dev/full")[0] == 0
    assert len(list((tmp_path / "out").iterdir())) == len(list((tmp_path / "again").iterdir())) == 3
    code, _, err = shell("lalic compress a.png -o - --checkpoint w.pth >&-")
    assert code == 2 and "standard output: is closed" in err
    for path in tmp_path.glob("*.lalic"):
        assert path.read_bytes().startswith(b"\x89LAL")


def test_a_closed_stream_is_the_null_device(monkeypatch):
    """Also its number: the next file would get it, and with it whatever libraries write to standard error."""
    opened, closed, fstat = [], set(), os.fstat

    def look(number):
        if number == 2:
            raise OSError(9, "Bad file descriptor")
        return fstat(number)

    monkeypatch.setattr(files, "_closed", closed)
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(os, "fstat", look)
    monkeypatch.setattr(os, "open", lambda name, flags: opened.append(name))
    files.open_standard_streams()
    assert closed == {"stderr"} and opened == [os.devnull] and sys.stderr.writable()
    sys.stderr.close()


# Exit codes


@pytest.mark.parametrize(
    "words",
    [
        "compress a.png --device cuda:99",
        "compress a.png --device foo",
        "compress a.png --checkpoint none.pth",
        "compress a.png --checkpoint a.png",
        "compress a.png --target-bpp 0",
        "decompress a.png --device foo",
        "decompress a.png --checkpoint none.pth",
        "info a.png --symbols --checkpoint none.pth",
        "bulk in out --device foo --workers 1",
        "bulk in out --checkpoint none.pth --workers 1",
        "convert none.pth b.safetensors",
        "demo --device foo",
        "warmup --device foo",
        "warmup --checkpoint none.pth",
        "eval none.png",
        "eval a.png --codecs fly",
        "compare a.png jpeg fly",
        "train in -o run --device foo",
        "train in -o run --patch 100",
        "train in -o run --save-every 0",
        "train in -o run --init none.pth",
        "train none -o run",
        "train empty -o run",
    ],
)
def test_a_wrong_request_gives_2(run, here, words):
    for name in ("in", "empty"):
        Path(name).mkdir()
    for name in ("a.png", "in/a.png", "in/b.png"):
        picture().save(name)
    done = run(*words.split())
    assert done.code == 2 and len(done.err) == 1 and done.err[0].startswith("lalic"), done.err


@pytest.mark.parametrize("words", ["compress bad.png", "info bad.png", "decompress bad.lalic"])
def test_a_bad_file_gives_1(run, here, words):
    for name in ("bad.png", "bad.lalic"):
        Path(name).write_bytes(b"nothing")
    assert run(*words.split()).code == 1


def test_a_run_that_is_given_up_gives_1(monkeypatch, capsys):
    def fail(args):
        raise RunError("10 shards could not be done")

    monkeypatch.setattr(cli, "_demo", fail)
    assert cli.main(["demo"]) == 1


def test_what_is_wrong_before_any_work_is_a_request():
    for error in (LalicError("no"), PermissionError(13, "Permission denied", "w.pth")):
        with pytest.raises(RequestError, match=r"no|w\.pth: Permission denied"), as_request():
            raise error


# Memory


class OutOfMemoryError(RuntimeError):
    pass


TOO_LITTLE = [
    MemoryError(),
    OSError(12, "Cannot allocate memory", "a.png"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] data. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: not enough memory: you tried"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    OutOfMemoryError("HIP"),
    OSError("image file is truncated: out of memory error when reading image file"),  # Pillow's
]


@pytest.mark.parametrize("error", TOO_LITTLE, ids=str)
def test_too_little_memory_is_one_sentence(error):
    assert is_out_of_memory(error) and sentence(error) == "there is not enough memory for this picture"
    assert not is_out_of_memory(RuntimeError("memory format"))


@pytest.mark.parametrize("error", TOO_LITTLE, ids=str)
def test_too_little_memory_is_not_said_to_be_a_damaged_picture(run, here, monkeypatch, error):
    from PIL import PngImagePlugin

    picture().save("a.png")

    def fail(image):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    done = run("compress", "a.png")
    assert (done.code, done.err) == (1, ["lalic: a.png: there is not enough memory for this picture"])
