"""The commands with a tiny model: what they print, what they write, and how they exit."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import noise as picture
from tiny import save, tiny

import lalic
from lalic import cli, codec, pretrained
from lalic.container import parse

ROOT = Path(__file__).parents[2]


def same(path, image):
    with Image.open(path) as found:
        return found.mode == "RGB" and (np.asarray(found) == np.asarray(image)).all()


def decoded(path, model=None):
    """The picture that a .lalic file of the tiny model stands for."""
    return codec.decode(Path(path).read_bytes(), model or tiny())


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# compress and decompress


def test_there_and_back(run, here):
    picture().save("photo.png")
    done = run("compress", "photo.png")
    assert done.code == 0 and done.err == []
    size = (here / "photo.lalic").stat().st_size
    assert len(done.out) == 1
    assert done.out[0].startswith(
        f"photo.png -> photo.lalic: 40x30, {size} bytes, {8 * size / 1200:.3f} bits per pixel, "
    )
    done = run("decompress", "photo.lalic", "-o", "again.png")
    assert done.code == 0 and done.err == [] and done.out[0].startswith("photo.lalic -> again.png: 40x30, ")
    assert same("again.png", decoded("photo.lalic"))
    assert listing(here) == ["again.png", "photo.lalic", "photo.png"]


@pytest.mark.parametrize("extension", [".png", ".bmp", ".TIFF", ".webp"])
def test_the_extension_chooses_the_format(run, here, extension):
    picture().save("a.png")
    assert run("compress", "a.png").code == 0
    assert run("decompress", "a.lalic", "-o", f"b{extension}").code == 0
    assert same(f"b{extension}", decoded("a.lalic"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        *((f"decompress old.lalic -o {name}", "no picture format") for name in ("b.xyz", "b", "b.lalic2", "b.docx")),
        ("decompress none.lalic", "none.lalic: there is no such file or folder"),
        ("compress a.png -o a.png --force", "itself an input"),
        ("compress a.png -o x.PNG", "-o x.PNG ends as a picture does, expected the name of a .lalic file"),
        ("compress a.png -o x.jpg --keep-extension", "ends as a picture does"),
        ("compress a.png a.jpg", "would both be written to a.lalic"),
        ("compress a.png --background greenish", "greenish"),
        ("compress a.png --precision int8", "int8"),
        ("compress a.png -q x", "invalid float"),
        ("compress a.png -q 5 --target-bpp 1", "not allowed"),
        ("compress a.png -q 50", "trained for one quality"),
        ("compress a.png --target-bpp nan", "expected more than 0"),
        ("compress a.png --target-psnr -1", "expected more than 0"),
        ("compress a.png --effort nan", "expected more than 0"),
        ("compress a.png --effort 60", "trained for one quality"),
        ("compress a.png --effort 60 --target-bpp 1", "with a quality"),
        ("compress a.png --threads 1025", "expected at most 1024"),
        ("decompress old.lalic -o b.ico", "icons of fixed sizes"),
    ],
)
def test_a_request_that_cannot_be_starts_nothing(run, here, monkeypatch, words, sentence):
    for name in ("a.png", "a.jpg"):
        picture().save(name)
    Path("old.lalic").touch()
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    for name in ("encode", "decode"):
        monkeypatch.setattr(codec, name, lambda *_, **__: pytest.fail("started"))
    done = run(*words.split())
    assert done.code == 2 and done.out == [] and len(done.err) == 1 and sentence in done.err[0]
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_unicode_and_odd_names(run, here):
    for name in ("Füße 写真 🐦.png", "-dash.png", " leading space.png", "two.dots.png"):
        picture().save(name)
        # argparse takes arguments after -- as names
        assert run("compress", "--", name).code == 0
        assert (here / name).with_suffix(".lalic").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 exist on Linux")
def test_a_name_that_is_no_utf_8(run, here):
    name = os.fsdecode(b"caf\xe9.png")
    picture().save(name)
    assert run("compress", name).code == 0
    assert run("compress", name).code == 1  # the message holds the name too


def test_nothing_is_overwritten_without_force(run, here):
    picture().save("a.png")
    (here / "a.lalic").write_bytes(b"precious")
    done = run("compress", "a.png")
    assert done.code == 1 and done.err == ["lalic: a.png: a.lalic exists already, --force overwrites it"]
    assert (here / "a.lalic").read_bytes() == b"precious"
    assert run("compress", "a.png", "--force").code == 0
    assert parse((here / "a.lalic").read_bytes()).width == 40
    before = (here / "a.png").read_bytes()
    assert run("decompress", "a.lalic").code == 1  # would replace the original
    assert (here / "a.png").read_bytes() == before


def test_many_files_and_folders(run, here):
    for i, name in enumerate(["one.png", "in/two.jpg", "in/deep/three.png", "in/.hidden.png", "in/readme.txt"]):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            Path(name).write_text("no picture")
        else:
            picture(i).save(name)
    done = run("compress", "one.png", "in", "-o", "out")
    assert done.code == 0 and len(done.out) == 4 and done.out[3].startswith("3 pictures in ")
    assert listing(here / "out") == ["deep/three.lalic", "one.lalic", "two.lalic"]
    done = run("decompress", "out", "-o", "back", "--quiet")
    assert (done.code, done.out, done.err) == (0, [], [])
    assert listing(here / "back") == ["deep/three.png", "one.png", "two.png"]
    for name in ("one", "two", "deep/three"):
        assert same(f"back/{name}.png", decoded(f"out/{name}.lalic"))
    assert not same("back/one.png", decoded("out/two.lalic"))


def test_one_bad_file_does_not_stop_the_rest(run, here):
    picture(1).save("a.png")
    Path("b.png").write_bytes(b"this is no picture")
    Image.new("F", (9, 9)).save("c.tif")
    picture(3).save("d.png")
    Path("d.png").write_bytes(Path("d.png").read_bytes()[:500])
    picture(4).save("e.png")
    done = run("compress", "a.png", "b.png", "c.tif", "d.png", "e.png")
    assert done.code == 1 and len(done.out) == 3 and done.out[2].startswith("2 pictures in ")
    assert [line.split(": ")[1] for line in done.err] == ["b.png", "c.tif", "d.png", "3 of 5 files failed"]
    assert listing(here) == ["a.lalic", "a.png", "b.png", "c.tif", "d.png", "e.lalic", "e.png"]


def test_background(run, here):
    Image.new("RGBA", (3, 3), (0, 0, 0, 0)).save("a.png")
    assert run("compress", "a.png", "--background", "#00ff00").code == 0
    assert Path("a.lalic").read_bytes() == codec.encode(Image.new("RGB", (3, 3), (0, 255, 0)), tiny())


def test_alpha_and_metadata_come_back_unless_stripped(run, here):
    clear = picture().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save("a.png", dpi=(72, 72))
    assert run("compress", "a.png").code == 0 and run("decompress", "a.lalic", "-o", "b.png").code == 0
    back = Image.open("b.png")
    assert back.getchannel("A").tobytes() == clear.getchannel("A").tobytes()
    assert back.info["dpi"][0] == pytest.approx(72, abs=0.02)  # a PNG has pixels a metre
    described = run("info", "a.lalic").out
    assert any("with alpha" in line for line in described) and any("dpi" in line for line in described)
    run("compress", "a.png", "-o", "c.lalic", "--strip", "--background", "white")
    stripped = json.loads("".join(run("info", "--json", "c.lalic").out))[0]
    assert (stripped["metadata"], stripped["alpha"]) == ({}, False)


def test_a_region_and_a_smaller_picture(run, here):
    picture().save("a.png")
    run("compress", "a.png")
    run("decompress", "a.lalic", "-o", "whole.png")
    whole = Image.open("whole.png")
    assert run("decompress", "a.lalic", "-o", "part.png", "--region", "3,4,20,30").code == 0
    assert Image.open("part.png").tobytes() == whole.crop((3, 4, 20, 30)).tobytes()
    assert run("decompress", "a.lalic", "-o", "small.png", "--scale", "1/8").code == 0
    assert Image.open("small.png").tobytes() == whole.reduce(8).tobytes()
    done = run("decompress", "a.lalic", "-o", "no.png", "--region", "0,0,1000,3")
    assert done.code == 1 and "region is (0, 0, 1000, 3), expected (left, top, right, bottom) inside of" in done.err[0]
    for option, words in (("--scale", "1/3"), ("--scale", "8"), ("--region", "0,0,5"), ("--region", "a,0,5,5")):
        done = run("decompress", "a.lalic", option, words)
        assert done.code == 2 and "expected" in done.err[0]


def test_warnings_about_a_picture_are_shown(run, here):
    picture().save("a.png", icc_profile=b"junk" * 40)
    done = run("compress", "a.png")
    assert done.code == 0 and len(done.err) == 1
    assert done.err[0].startswith("lalic: a.png: warning: the ICC profile is ignored")


def test_max_pixels(run, here):
    picture().save("a.png")
    done = run("compress", "a.png", "--max-pixels", "1199")
    assert done.code == 1 and "limit is 1199" in done.err[0] and "--max-pixels" in done.err[0]
    run("compress", "a.png")
    done = run("decompress", "a.lalic", "-o", "b.png", "--max-pixels", "1199")
    assert done.code == 1 and "limit is 1199" in done.err[0] and "--max-pixels" in done.err[0]


def test_checkpoint(run, here, monkeypatch):
    picture().save("a.png")
    save(Path("weights.pth"), tiny(lmbda=0.002))
    assert run("compress", "a.png", "--checkpoint", "weights.pth").code == 0
    assert parse(Path("a.lalic").read_bytes()).model_name == "custom"
    done = run("decompress", "a.lalic", "-o", "b.png")
    assert done.code == 1 and "does not ship" in done.err[0] and "--checkpoint" in done.err[0]
    assert run("decompress", "a.lalic", "-o", "b.png", "--checkpoint", "weights.pth").code == 0
    assert same("b.png", decoded("a.lalic", tiny("custom", lmbda=0.002)))
    done = run("compress", "a.png", "--checkpoint", "none.pth", "--force")
    assert (done.code, done.err) == (2, ["lalic: none.pth: no such file"])  # nothing was started
    with monkeypatch.context() as patch:
        pretrained._mixin.cache_clear()
        patch.setitem(sys.modules, "huggingface_hub", None)
        done = run("compress", "a.png", "--checkpoint", "runs/slim", "--force")
    assert done.code == 2 and done.err[0].startswith(
        "lalic: runs/slim: no such file or folder, and models of the Hugging"
    )
    done = run("compress", "a.png", "--checkpoint", "a.png", "--force")
    assert done.code == 2 and "cannot be read as a checkpoint" in done.err[0] and "weights_only" not in done.err[0]


def test_damaged_files(run, here):
    picture().save("a.png")
    run("compress", "a.png")
    data = bytearray(Path("a.lalic").read_bytes())
    data[100] ^= 1
    Path("bad.lalic").write_bytes(data)
    done = run("decompress", "bad.lalic")
    assert (done.code, done.err) == (
        1,
        ["lalic: bad.lalic: tile 0 of the picture is damaged: its checksum does not match"],
    )
    assert not Path("bad.png").exists()
    done = run("decompress", "a.png", "-o", "c.png")
    assert done.code == 1 and "not a .lalic file" in done.err[0]


def test_a_target_that_cannot_be_written(run, here):
    picture().save("a.png")
    Path("file").touch()
    done = run("compress", "a.png", "-o", "file/a.lalic")
    assert done.code == 1 and len(done.err) == 1 and done.err[0].startswith("lalic: a.png: file: ")
    Path("folder.lalic").mkdir()
    picture().save("folder.png")
    done = run("compress", "folder.png")
    assert done.code == 1 and len(done.err) == 1 and "folder.lalic" in done.err[0]


def test_a_full_disk_leaves_nothing_behind(run, here, monkeypatch):
    picture().save("a.png")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    done = run("compress", "a.png")
    assert (done.code, done.err) == (1, ["lalic: a.png: No space left on device"])
    assert listing(here) == ["a.png"]


def test_an_unexpected_error_is_one_line(run, here, monkeypatch):
    picture().save("a.png")

    def broken(*_, **__):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(codec, "encode", broken)
    done = run("compress", "a.png")
    assert (done.code, done.err) == (1, ["lalic: a.png: unexpected RuntimeError: first line second line"])
    monkeypatch.setenv("LALIC_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        cli.main(["compress", "a.png"])


def test_interrupting_leaves_no_file(run, here, monkeypatch):
    picture().save("a.png")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    done = run("compress", "a.png", "--force")
    assert (done.code, done.err) == (130, ["lalic: interrupted"])
    assert listing(here) == ["a.png"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_terminating_leaves_no_file(run, here, monkeypatch, number, code):
    picture().save("a.png")
    before = signal.signal(number, signal.SIG_DFL)
    try:
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), number))
        done = run("compress", "a.png", "--force")
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert (done.code, done.err) == (code, ["lalic: terminated"])
    assert listing(here) == ["a.png"]


def test_libraries_print_nothing_about_a_damaged_picture(run, here):
    picture().save("a.tif")
    data = Path("a.tif").read_bytes()
    number = data.index(struct.pack("<HHI", 277, 3, 1)) + 8  # of samples a pixel
    Path("a.tif").write_bytes(data[:number] + b"\0\1" + data[number + 2 :])
    done = run("compress", "a.tif")
    assert done.code == 1 and len(done.err) == 1 and done.err[0].startswith("lalic: a.tif: ")


def test_names_with_control_characters_are_one_line(run, here):
    name = "line\nbreak \x1b[31mred.png"
    picture().save(name)
    done = run("compress", name)
    assert done.code == 0 and len(done.out) == 1 and done.out[0].startswith(r"line\nbreak \x1b[31mred.png -> line\n")
    done = run("compress", name)
    assert done.code == 1 and done.err == [
        r"lalic: line\nbreak \x1b[31mred.png: line\nbreak \x1b[31mred.lalic exists already, --force overwrites it"
    ]
    done = run("info", "line\nbreak \x1b[31mred.lalic")
    assert done.code == 0 and done.out[0] == r"line\nbreak \x1b[31mred.lalic"
    assert run("compress", "no\nfile").err == [r"lalic: no\nfile: there is no such file or folder"]
    done = run("eval", name, "--codecs", "jpeg:50", "--each", "-o", "out\x1b[31m")
    assert done.code == 0 and any(r"  line\nbreak \x1b[31mred " in line for line in done.out)
    assert not any("\x1b" in line for line in done.out + done.err)
    assert any(r"wrote out\x1b[31m" in line for line in done.err)


def test_memory_that_torch_cannot_get(run, here, monkeypatch):
    picture().save("a.png")
    monkeypatch.setattr(codec, "encode", lambda *_, **__: torch.empty(2**60))
    done = run("compress", "a.png")
    assert (done.code, done.err) == (1, ["lalic: a.png: there is not enough memory for this picture"])


def test_standard_input_and_output(run, here, monkeypatch):
    data = io.BytesIO()
    picture().save(data, "PNG")

    def feed(content):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    def collect(*words):
        out = io.TextIOWrapper(io.BytesIO())
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            code = cli.main(list(words))
        return code, out.buffer.getvalue()

    feed(data.getvalue())
    code, packed = collect("compress", "-")
    assert code == 0 and parse(packed).width == 40
    feed(packed)
    code, png = collect("decompress", "-", "-o", "-")
    shown = codec.decode(packed, tiny())
    assert code == 0 and png.startswith(b"\x89PNG") and same(io.BytesIO(png), shown)
    feed(packed)
    assert run("decompress", "-", "-o", "b.bmp").code == 0 and same("b.bmp", shown)
    feed(packed)
    assert run("info", "-").code == 0
    Path("a.png").write_bytes(data.getvalue())
    code, again = collect("compress", "a.png", "-o", "-")
    assert code == 0 and again == packed
    Path("-").touch()  # a file of this name is another thing
    assert collect("compress", "a.png", "-o", "-", "--skip-existing") == (0, packed)
    feed(b"nothing")
    code, nothing = collect("decompress", "-")
    assert (code, nothing) == (1, b"")


def test_bytes_are_not_sent_to_a_terminal(run, here, monkeypatch):
    picture().save("a.png")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    done = run("compress", "a.png", "-o", "-")
    assert done.code == 2 and "terminal" in done.err[0]


def test_a_progress_bar_on_a_terminal(run, here, monkeypatch):
    for name in ("a.png", "b.png"):
        picture().save(name)
    assert not any("file" in line for line in run("compress", "a.png", "b.png").err)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    done = run("compress", "a.png", "b.png", "--force")
    assert any("2/2" in line for line in done.err)
    assert run("compress", "a.png", "--force").err == []  # one file: no bar


# info, demo, and the parser


def test_info(run, here):
    picture().save("a.png")
    run("compress", "a.png")
    done = run("info", "a.lalic")
    assert done.code == 0 and done.err == []
    text = "\n".join(done.out)
    for part in ("a.lalic", "version 1", "slim", tiny().weights_hash().hex(), "40x30", "bits per pixel", "streams "):
        assert part in text
    Path("b.lalic").write_bytes(b"nonsense")
    done = run("info", "a.lalic", "b.lalic", "c.lalic", "--json")
    assert done.code == 1 and len(done.err) == 2 and "No such file" in done.err[1]
    (entry,) = json.loads("\n".join(done.out))
    size = os.path.getsize("a.lalic")
    assert (entry["width"], entry["height"], entry["file_bytes"], entry["model"]) == (40, 30, size, "slim")
    assert entry["stream_bytes"] + entry["overhead_bytes"] == size
    assert entry["bits_per_pixel"] == 8 * size / 1200


def test_symbols_of_a_large_picture(run, here, monkeypatch):
    """No picture is made, so there is no limit on its size."""
    picture().save("a.png")
    run("compress", "a.png")
    monkeypatch.setattr(codec, "MAX_PIXELS", 100)
    monkeypatch.setattr(
        codec.symbol_hashes, "__kwdefaults__", {**codec.symbol_hashes.__kwdefaults__, "max_pixels": 100}
    )
    done = run("info", "a.lalic", "--symbols")
    assert (done.code, done.err) == (0, []) and "symbols   sha256" in "\n".join(done.out)


@pytest.mark.parametrize(
    "words", [[], ["--nonsense"], ["compress"], ["fly", "a.png"], ["compress", "a", "--threads", "0"]]
)
def test_wrong_usage(run, words):
    done = run(*words)
    assert done.code == 2 and done.out == [] and len(done.err) == 1 and "--help" in done.err[0]


COMMANDS = ["compress", "decompress", "bulk", "info", "convert", "demo", "warmup", "eval", "compare", "web", "train"]


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)])
def test_help(run, words):
    done = run(*words, "--help")
    assert done.code == 0 and done.out[0].startswith("usage: lalic") and done.err == []
    assert any(line.startswith("exit codes: ") for line in done.out)


def test_train_hands_its_arguments_on(run, monkeypatch):
    from lalic.train import cli as training

    seen = []
    monkeypatch.setattr(training, "run", lambda args: seen.append(args) or 3)
    assert run("train", "pictures", "-o", "runs/1").code == 3
    assert seen[0].data == ["pictures"]
    assert run("train", "--help").code == 0
    done = run("train")
    assert done.code == 2 and len(done.err) == 1 and done.err[0].startswith("lalic train: ")


def test_a_device_that_is_not_there_is_said_once(run, here):
    for name in ("a.png", "b.png"):
        picture().save(name)
    for words in (["compress"], ["info", "--symbols"]):
        done = run(*words, "a.png", "b.png", "--device", "cuda:99")
        assert done.code == 2 and len(done.err) == 1 and "cuda:99" in done.err[0]


def test_threads(run, here, threads):
    picture().save("a.png")
    with mock.patch.dict(os.environ):  # the command sets some
        assert run("compress", "a.png", "--threads", "1").code == 0
    assert torch.get_num_threads() == 1


def in_a_new_process(*words, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, timeout=120, **options)


def test_the_light_commands_do_not_wait_for_torch(tmp_path):
    picture().save(tmp_path / "ü.png")
    (tmp_path / "ü.lalic").write_bytes(codec.encode(tmp_path / "ü.png", tiny()))
    check = (
        "import sys; from lalic.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or 9 * bool({'torch', 'numpy', 'lalic.bulk', 'gradio'} & set(sys.modules)))"
    )
    for words in (["--help"], ["--version"], ["compress", "--help"], ["web", "--help"], ["info", "ü.lalic"]):
        done = in_a_new_process("-c", check, *words, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == b"" and done.stdout


def test_the_collector_leaves_what_is_imported_out():
    check = (
        "import gc, sys; from lalic.options import set_up_process; set_up_process(1);"
        "first = gc.get_freeze_count(); set_up_process(1);"
        "sys.exit(not (gc.isenabled() and first == gc.get_freeze_count() > 100_000 and 'triton' not in sys.modules))"
    )
    assert in_a_new_process("-c", check).returncode == 0


def test_as_a_module(tmp_path):
    done = in_a_new_process("-m", "lalic.cli", "info", "none.lalic", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.decode().strip() == "lalic: none.lalic: No such file or directory"


def test_a_reader_that_goes_away(tmp_path):
    (tmp_path / "a.lalic").write_bytes(codec.encode(picture(), tiny()))
    command = f"'{sys.executable}' -m lalic.cli info {'a.lalic ' * 4000} | head -n 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", command], env=environment, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.stdout.strip() == b"a.lalic" and done.stderr == b""


@pytest.mark.slow
def test_another_process_makes_the_same_bytes_and_pixels(tmp_path):
    weights = save(tmp_path / "weights.pth", tiny())
    model, image = lalic.load_checkpoint(weights), picture(size=(130, 65))
    image.save(tmp_path / "in.png")
    # The analysis and synthesis transforms are floating point: equal bytes and pixels need equal thread counts.
    options = ["--checkpoint", str(weights), "--threads", str(torch.get_num_threads())]
    for words in (["compress", "in.png"], ["decompress", "in.lalic", "-o", "out.png"]):
        done = in_a_new_process("-m", "lalic.cli", *words, *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "in.lalic").read_bytes() == codec.encode(image, model)
    assert same(tmp_path / "out.png", decoded(tmp_path / "in.lalic", model))
