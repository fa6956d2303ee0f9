"""`lalic bulk` in one process: sources, what is written, what is done again."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from tiny import astronaut, save, tiny

from lalic import bulk, codec, hub
from lalic.errors import LalicError, RequestError
from lalic.metrics import psnr

fsspec = pytest.importorskip("fsspec", reason="needs the package fsspec")

slow = pytest.mark.slow
FORMATS = ["files", *(pytest.param(form, marks=slow) for form in ("webdataset", "parquet"))]
SIZES = [(64, 64), (128, 96), (64, 64), (96, 64)]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder with tiny.pth, a model of every quality, and photos/: 8 pictures, one in a folder."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "tiny.pth", tiny(qualities=4))
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i in range(8):
        picture(i).save(tmp_path / "photos" / ("more" if i == 3 else "") / f"{i}.png")
    return tmp_path


def picture(i: int) -> Image.Image:
    return astronaut(30 * i, 20 * i, *SIZES[i % len(SIZES)])


def compress(source="photos", target="out", **options):
    return bulk.compress(source, target, **{"checkpoint": "tiny.pth", "workers": 1, "shard": 3} | options)


def expected(i: int, **options) -> bytes:
    return codec.encode(png(i), hub.load_checkpoint("tiny.pth"), **options)


def tree(folder="out") -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def rows(folder="out") -> list[dict]:
    files = sorted(Path(folder, "_bulk").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def tar_of(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def png(i: int) -> bytes:
    out = io.BytesIO()
    picture(i).save(out, "PNG")
    return out.getvalue()


# What is written


def test_files_and_their_manifest(here):
    done = compress(quality=30, psnr=True)
    assert [each.pictures for each in done] == [3, 3, 2] and all(each.coded == each.pictures for each in done)
    written = tree()
    names = ["0", "1", "2", "4", "5", "6", "7", "more/3"]
    assert sorted(name for name in written if not name.startswith("_bulk")) == [f"{name}.lalic" for name in names]
    assert [row["path"] for row in rows()] == [f"{name}.png" for name in names]
    model = hub.load_checkpoint("tiny.pth")
    for name, row in zip(names, rows(), strict=True):
        i = int(name[-1])
        data = expected(i, quality=30)
        assert written[f"{name}.lalic"] == data
        assert row == {
            "path": f"{name}.png",
            "output": f"{name}.lalic",
            "status": "ok",
            "width": picture(i).width,
            "height": picture(i).height,
            "bytes_in": len(png(i)),
            "bytes_out": len(data),
            "psnr": round(psnr(picture(i), codec.decode(data, model)), 4),
            "sha256": hashlib.sha256(data).hexdigest(),
            "warnings": [],
            "error": None,
        }


@slow
def test_tars_are_read_by_webdataset(here):
    webdataset = pytest.importorskip("webdataset", reason="needs the package webdataset")
    Path("photos/7.png").rename("photos/a.b.png")
    compress(form="webdataset")
    urls = sorted(str(path) for path in Path("out").glob("*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["0", "1", "2", "4", "5", "6", "a_b", "more/3"]
    assert [sample["lalic"] for sample in samples] == [expected(i) for i in (0, 1, 2, 4, 5, 6, 7, 3)]


@slow
def test_tables_are_read_by_pyarrow(here):
    dataset = pytest.importorskip("pyarrow.dataset", reason="needs the package pyarrow")
    compress(form="parquet")
    table = dataset.dataset("out").to_table().sort_by("path")  # ignores _bulk
    assert table["path"].to_pylist() == [row["path"] for row in rows()]
    assert [hashlib.sha256(data).hexdigest() for data in table["lalic"].to_pylist()] == [r["sha256"] for r in rows()]


@pytest.mark.parametrize("form", FORMATS)
def test_samples_of_tars_keep_their_labels(here, form):
    if form == "parquet":
        dataset = pytest.importorskip("pyarrow.dataset", reason="needs the package pyarrow")
    Path("set").mkdir()
    good = {"./a.png": png(0), "./a.json": b"{}", "b.cls": b"7", "b.left.png": png(1), "b.right.png": png(2)}
    tar_of("set/x.tar", good | {"c.png": b"no picture", "c.cls": b"1", ".hidden.png": b"", "../d.png": png(3)})
    tar_of("set/y.tar", {"a.png": png(4), "a.cls": b"4"})
    done = compress("set/*.tar", form=form)
    assert [(each.pictures, each.failed) for each in done] == [(5, 2), (1, 0)]
    assert [path for path, _ in done[0].failures] == ["x.tar/c.png", "x.tar/../d.png"]
    names = ["a.lalic", "a.json", "b.cls", "b.left.lalic", "b.right.lalic"]
    if form == "files":
        assert sorted(name for name in tree("out/x.tar")) == sorted(names)
        assert tree("out/y.tar") == {"a.lalic": expected(4), "a.cls": b"4"}
    elif form == "webdataset":
        with tarfile.open("out/000000.tar") as tar:
            assert tar.getnames() == names
            assert tar.extractfile("b.left.lalic").read() == expected(1)
    else:
        table = dataset.dataset("out").to_table().sort_by("path").to_pylist()
        assert [row["path"][6:] for row in table] == ["a.png", "b.left.png", "b.right.png", "a.png"]
        assert [dict(row["labels"]) for row in table] == [{"json": b"{}"}, *[{"cls": b"7"}] * 2, {"cls": b"4"}]
    before = tree()
    assert [each.coded for each in compress("set/*.tar", form=form)] == [2, 0] and tree() == before


def test_a_damaged_tar_keeps_what_was_read(here):
    tar_of("cut.tar", {"a.png": png(0), "b.png": png(1), "b2.png": png(2)})
    Path("cut.tar").write_bytes(Path("cut.tar").read_bytes()[: 2048 + len(png(0)) + 3000])
    compress("cut.tar")
    assert [(row["path"], row["status"]) for row in rows()] == [("cut.tar/a.png", "ok"), ("cut.tar", "failed")]
    assert "the tar is damaged" in rows()[1]["error"]


def test_the_second_name_of_a_file_in_a_tar(here):
    """tar writes a file with two names once, and a link for the second."""
    Path("photos/more/second.png").hardlink_to("photos/0.png")
    with tarfile.open("a.tar", "w") as tar:
        tar.add("photos", ".")
        dangling = tarfile.TarInfo("third.png")
        dangling.type, dangling.linkname = tarfile.LNKTYPE, "absent.png"
        tar.addfile(dangling)
    (done,) = compress("a.tar")
    assert (done.pictures, done.failed) == (10, 1)
    written = tree()
    names = sorted(name for name in written if name.startswith("a.tar/"))
    assert len(names) == 9 and written["a.tar/more/second.lalic"] == written["a.tar/0.lalic"] == expected(0)
    assert done.failures == (("a.tar/third.png", "it is a link to absent.png, which the tar does not hold"),)


@pytest.mark.parametrize("name", ["a::b", "c#d", "e [2020]", "f*?", "g%20h", "i{j}", "~k", "l:m", "m\\n"])
def test_folders_with_names_that_mean_something_in_urls(here, name):
    Path(name).mkdir()
    Path(name, f"{name}.png").write_bytes(png(0))
    (done,) = compress(name, f"out {name}")
    assert (done.pictures, done.failed) == (1, 0)
    assert tree(f"out {name}")[f"{name}.lalic"] == expected(0)
    Path("list.txt").write_text(f"{name}/{name}.png\n")
    (done,) = compress("list.txt", "out list")
    assert (done.pictures, done.failed) == (1, 0)


@pytest.mark.parametrize("form", FORMATS)
def test_names_that_are_no_text(here, form):
    """A file of another encoding's name, among others; the manifest is JSON all the same, and is read again."""
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="needs the package pyarrow")
    name = os.fsdecode(b"photos/caf\xe9.png")
    try:
        Path(name).write_bytes(png(0))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names of UTF-8 only")
    done = compress(form=form)
    assert sum(each.coded for each in done) == 9 and not any(each.failed or each.error for each in done)
    assert os.path.basename(name) in {row["path"] for row in rows()}
    if form == "files":
        assert tree()[os.path.basename(name).replace(".png", ".lalic")] == expected(0)
    assert sum(each.coded for each in compress(form=form)) == 0
    for manifest in Path("out", "_bulk").glob("*.jsonl"):
        manifest.write_text(manifest.read_text().replace('"ok"', '"failed"', 1))
    assert sum(each.coded for each in compress(form=form)) == len(list(Path("out", "_bulk").glob("*.jsonl")))


def test_lists_of_any_editor_and_any_names(here):
    """A byte order mark, line ends of Windows, names that are no text, and characters that some call line ends."""
    names = [b"photos/0.png", b"photos/caf\xe9.png", "photos/a\x85b\u2028c.png".encode()]
    try:
        for name in names[1:]:
            Path(os.fsdecode(name)).write_bytes(png(0))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes names of UTF-8 only")
    Path("list.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(names) + b"\r\n\r\n")
    (done,) = compress("list.txt")
    assert (done.pictures, done.failed) == (3, 0)
    assert [row["path"] for row in rows()] == [os.fsdecode(name).removeprefix("photos/") for name in names]


def test_memory_and_lists_of_urls(here):
    memory = fsspec.filesystem("memory")
    for i in range(3):
        memory.pipe_file(f"/lists/deep/{i}.png", png(i))
    memory.pipe_file("/lists/all.txt", b"deep/2.png\nmemory://lists/deep/0.png\n\n")
    compress("memory://lists/all.txt", "memory://there/out")
    assert memory.cat_file("/there/out/2.lalic") == expected(2)
    lines = memory.cat_file("/there/out/_bulk/000000.jsonl").splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["2.png", "0.png"]  # in the list's order
    assert [each.coded for each in compress("memory://lists/all.txt", "memory://there/out")] == [0]
    with pytest.raises(RequestError, match="memory of one process"):
        compress("memory://lists/deep", "memory://there/more", workers=2, shard=1)


def test_equal_sizes_are_coded_together(here, monkeypatch):
    from lalic import shards

    sizes = []
    encode = codec.encode
    monkeypatch.setattr(codec, "encode", lambda p, *a, **k: sizes.append(p.image.size) or encode(p, *a, **k))
    compress(shard=8)
    assert sizes == sorted(sizes) and len(sizes) == 8
    assert [row["path"] for row in rows()] == sorted(row["path"] for row in rows())
    monkeypatch.setattr(shards, "WINDOW", 30000)  # bytes: the shard is read in several parts, and written as before
    compress(target="parts", shard=8)
    assert sizes[8:] != sizes[:8] and sorted(sizes[8:]) == sizes[:8] and tree("parts") == tree()


# What is done again


@pytest.mark.parametrize("form", FORMATS)
def test_a_second_run_tries_what_failed_and_nothing_else(here, form, monkeypatch):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="needs the package pyarrow")
    compress(target="never-failed", form=form)
    Path("photos/2.png").write_bytes(png(2)[:300])
    Path("photos/5.png").rename("5.png")
    Path("photos/5.png").mkdir()  # cannot be read
    Path("list.txt").write_text("".join(f"photos/{name}.png\n" for name in [0, 1, 2, 4, 5, 6, 7, "more/3"]))
    done = compress("list.txt", form=form)
    assert sum(each.failed for each in done) == 2
    errors = {row["path"]: row["error"] for row in rows() if row["status"] == "failed"}
    assert set(errors) == {"2.png", "5.png"} and "damaged or truncated" in errors["2.png"]
    before = tree()
    done = compress("list.txt", form=form)
    assert [each.coded for each in done] == [1, 1, 0] and tree() == before
    Path("photos/2.png").write_bytes(png(2))
    Path("photos/5.png").rmdir()
    Path("5.png").rename("photos/5.png")
    done = compress("list.txt", form=form)
    assert [each.coded for each in done] == [1, 1, 0] and sum(each.failed for each in done) == 0
    assert tree() == tree("never-failed")
    monkeypatch.setattr(codec, "encode", None)
    assert [each.coded for each in compress("list.txt", form=form)] == [0, 0, 0]


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_without_a_manifest_is_done_again(here, form):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="needs the package pyarrow")
    compress(form=form)
    before = tree()
    Path("out/_bulk/000001.jsonl").unlink()
    manifest = Path("out/_bulk/000002.jsonl")
    manifest.write_bytes(manifest.read_bytes()[:-20])  # as a file system without atomic writes may leave it
    assert [each.coded for each in compress(form=form)] == [0, 3, 2] and tree() == before


def test_a_machine_with_other_weights_does_nothing(here, monkeypatch):
    monkeypatch.setattr(bulk, "_begin", lambda *_: "00")
    done = compress()
    assert all("this machine has other weights" in each.error for each in done) and tree() == {}


@pytest.mark.parametrize("at", [0, 4])
def test_an_interrupt_leaves_nothing_half_written(here, monkeypatch, at):
    compress(target="whole")
    calls = []
    encode = codec.encode

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) > at:
            raise KeyboardInterrupt
        return encode(*args, **kwargs)

    monkeypatch.setattr(codec, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress()
    whole = tree("whole")
    assert tree().items() <= whole.items() and len(list(Path("out/_bulk").glob("*.jsonl"))) == at // 3
    monkeypatch.setattr(codec, "encode", encode)
    compress()
    assert tree() == whole


@slow
def test_a_target_that_cannot_be_written_is_no_failure_of_pictures(here, monkeypatch):
    from lalic import shards

    def full(self, name, data):
        raise OSError(28, "No space left on device", name)

    compress()
    Path("out/_bulk/000000.jsonl").unlink()
    Path("out/_bulk/000002.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shards.Target, "put", full)
        done = compress()
        assert [each.error is None for each in done] == [False, True, False]
        assert "No space left on device" in done[0].error and done[0].pictures == 0
        patch.setattr(bulk, "LOST", 2)
        with pytest.raises(LalicError, match="2 shards could not be done"):
            compress()
    assert [each.coded for each in compress()] == [3, 0, 2]


# What is refused


@slow
def test_other_options_for_a_target_are_refused(here):
    Path("others.txt").write_text("".join(f"photos/{name}.png\n" for name in [1, 0, 2, 4, 5, 6, 7, "more/3"]))
    compress(quality=50)
    before = tree()
    for options, words in [
        ({"quality": 51}, "was begun with quality 50.0, and now it is 51"),
        ({"form": "webdataset"}, "format files"),
        ({"shard": 4}, "pictures of a shard 3"),
        ({"psnr": True}, "psnr False"),
        ({"strip": True}, "strip False"),
        ({"background": "white"}, "background None"),
        ({"precision": "bfloat16"}, "precision float32"),
        ({"source": "photos/?.png"}, "files of the source 8"),
        ({"source": "others.txt"}, "sha256"),
        ({"checkpoint": None}, "model custom"),
    ]:
        with pytest.raises(RequestError, match=words) as caught:
            compress(**{"quality": 50} | options)
        assert "\n" not in str(caught.value) and tree() == before


@pytest.mark.parametrize(
    ("source", "target", "options", "words"),
    [
        ("none", "out", {}, "none: there is no such file or folder"),
        ("photos", "tiny.pth", {}, "tiny.pth: is a file, expected a folder"),
        ("none.txt", "out", {}, "none.txt: there is no such file"),
        ("tiny.pth*", "out", {}, "there are no pictures"),
        ("photos", "photos/out", {}, "is inside the source"),
        ("photos", "photos", {}, "is inside the source"),
        ("photos", ".", {}, "holds other files"),
        ("photos", "nope://x", {}, "nope"),
        ("photos", "out", {"quality": 0}, "quality"),
        ("photos", "out", {"background": "greenish"}, "greenish"),
        ("photos", "out", {"workers": 0}, "workers is 0"),
        ("photos", "out", {"form": "zip"}, "expected one of files, webdataset, parquet"),
        ("photos", "out", {"executor": "dask"}, "expected one of local, ray"),
        ("photos", "out", {"executor": "ray", "device": "cuda:1"}, "Ray gives each worker its GPU"),
    ],
)
def test_bad_requests_are_refused_before_any_work(here, source, target, options, words):
    before = tree(".")
    if options.get("executor") == "ray":
        pytest.importorskip("ray", reason="needs the package ray")
    with pytest.raises(RequestError, match=words) as caught:
        compress(source, target, **options)
    assert "\n" not in str(caught.value) and tree(".") == before


def test_names_that_clash_are_refused(here):
    picture(0).save("photos/0.jpg")
    with pytest.raises(RequestError, match="would both be written to 0"):
        compress()


@pytest.mark.parametrize(("name", "options", "extra"), [
    ("fsspec", {}, "bulk"), ("pyarrow", {"form": "parquet"}, "bulk"), ("ray", {"executor": "ray"}, "ray"),
])  # fmt: skip
def test_a_missing_package_is_named_with_its_extra(here, monkeypatch, name, options, extra):
    import sys

    for module in [name, "fsspec.core"] if name == "fsspec" else [name]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LalicError, match=rf"{name}.* is needed and not installed: pip install \"lalic\[{extra}\]\""):
        compress(**options)


def test_a_model_of_the_hub_goes_to_the_workers_by_its_name(here, monkeypatch):
    asked = []

    def load_model(checkpoint, **options):
        asked.append(checkpoint)
        raise LalicError("found nothing")

    monkeypatch.setattr(hub, "load_model", load_model)
    for checkpoint in ("user/model", "tiny.pth"):
        with pytest.raises(LalicError, match="found nothing"):
            compress(checkpoint=checkpoint)
    assert asked == ["user/model", str(Path("tiny.pth").absolute())]


# The command


def test_names_do_not_reach_the_terminal_as_codes(here, run_here):
    Path("photos/\x1b[31m.png").write_bytes(b"no picture")
    done = run_here("bulk", "photos", "out", "--checkpoint", "tiny.pth", "--workers", "1")
    assert done.code == 1 and "\\x1b[31m.png" in done.err[0] and not any("\x1b" in line for line in done.err)


def test_the_command(here, run_here):
    Path("photos/8.png").write_bytes(b"no picture")
    words = ("bulk", "photos", "out", "--checkpoint", "tiny.pth", "--workers", "1", "--shard", "3", "-q", "30")
    done = run_here(*words)
    assert done.code == 1
    assert done.err[0] == "lalic: 8.png: this is not a picture in a format that Pillow reads"
    assert done.err[-1].endswith("1 pictures failed, 0 shards were not done; the same command tries them again")
    assert done.out[0].startswith("9 pictures, 9 of them coded now in ")
    Path("photos/8.png").write_bytes(png(0))
    done = run_here(*words)
    assert done.code == 0 and done.err == [] and done.out[0].startswith("9 pictures, 1 of them coded now in ")
    done = run_here(*words[:-1], "31")
    assert done.code == 2 and "was begun with quality 30.0, and now it is 31" in done.err[0] and len(done.err) == 1


@pytest.fixture
def run_here(here, capfd):
    from types import SimpleNamespace

    from lalic import cli

    def call(*words):
        code = cli.main([*words])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out.splitlines(), err=err.splitlines())

    return call
