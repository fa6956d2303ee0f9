"""Codecs: installed ones write files of their formats, others name what they need."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, features
from tiny import astronaut, tiny

import lalic
import lalic.codec
from lalic import images
from lalic.errors import LalicError
from lalic.eval.codecs import Codec, LalicCodec, NotInstalled, make, open_codecs, parse, vtm
from lalic.metrics import psnr

PILLOW = ["jpeg", "jpeg-444", "webp", "avif", "avif-psnr", "jxl", "heic"]
MAGIC = {"jpeg": (0, b"\xff\xd8\xff"), "webp": (8, b"WEBP"), "avif": (4, b"ftypavif"), "heic": (4, b"ftyp")}


def installed(name: str) -> Codec:
    try:
        return make(name)
    except NotInstalled as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", PILLOW)
def test_more_quality_is_a_larger_and_better_file(name: str) -> None:
    codec, picture = installed(name), astronaut(150, 20, 192, 176)
    coded = [codec.code(picture, quality) for quality in (codec.qualities[1], codec.qualities[-2])]
    for each in coded:
        assert each.data is not None and each.size == len(each.data)
        assert each.picture.mode == "RGB" and each.picture.size == picture.size
        assert each.encode_seconds > 0 and each.decode_seconds > 0
        at, magic = MAGIC.get(name.partition("-")[0], (0, b""))
        assert each.data[at : at + len(magic)] == magic
    assert coded[0].size < coded[1].size
    low, high = (psnr(picture, each.picture) for each in coded)
    assert 18 < low < high - 3
    assert re.search(r" \d+\.\d+", codec.version) and list(codec.qualities) == sorted(codec.qualities)


def test_files_with_effort_are_another_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lalic.codec, "_cache", {("slim", "cpu"): tiny(qualities=3)})
    (plain, refined), _ = open_codecs(["lalic", "lalic-effort"], qualities=[30], effort=0.5)
    assert (refined.name, refined.title, refined.qualities) == ("lalic-effort", "lalic, effort 0.5 s", (30,))
    coded = [codec.code(astronaut(150, 20, 64, 64), 30) for codec in (plain, refined)]
    assert all(each.data is not None and each.data[:4] == coded[0].data[:4] for each in coded)
    with pytest.raises(LalicError, match="lalic: effort is 0 seconds, expected more than 0"):
        open_codecs(["lalic-effort"], effort=0)
    with pytest.raises(LalicError, match="lalic: effort: expected a model of every quality"):
        LalicCodec(tiny(), effort=9)


@pytest.mark.parametrize(
    ("option", "value", "codec"),
    [
        ("effort", 60.0, "lalic-effort"),
        ("qualities", [30.0], "lalic or lalic-effort"),
        ("checkpoints", ["a.pth"], "lalic or lalic-effort"),
        ("precision", "bfloat16", "lalic or lalic-effort"),
        ("vtm", "EncoderAppStatic", "vtm"),
        ("vtm_config", "intra.cfg", "vtm"),
    ],
)
def test_an_option_of_a_codec_that_is_not_named_is_refused(option: str, value: object, codec: str) -> None:
    with pytest.raises(LalicError) as caught:
        open_codecs(["jpeg"], **{option: value})  # type: ignore[misc]
    assert str(caught.value) == f"{option} is {value}, expected none without the codec {codec}, which is not asked for"


@pytest.mark.parametrize("name", ["jpeg", "webp", "avif"])
def test_a_files_metadata_is_no_codecs_cost(name: str, tmp_path: Path) -> None:
    """A colour profile that a picture brings would make the file of a codec that keeps it some kilobytes larger."""
    codec, pixels = installed(name), astronaut(150, 20, 64, 64)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels.save(tmp_path / "with.png", icc_profile=profile)
    pixels.save(tmp_path / "without.png")
    with_profile, without = (images.load(tmp_path / file) for file in ("with.png", "without.png"))
    quality = codec.qualities[2]
    assert codec.code(with_profile, quality).data == codec.code(without, quality).data


def test_subsampling_is_as_the_name_says() -> None:
    """Red and blue rows of one pixel are preserved only at 4:4:4."""
    rows = np.zeros((64, 64, 3), np.uint8)
    rows[::2, :, 0] = rows[1::2, :, 2] = 255
    picture = Image.fromarray(rows)
    for name, kept in (("jpeg", False), ("jpeg-444", True), ("webp", False), ("avif", True), ("heic", True)):
        try:
            codec = make(name)
        except NotInstalled:
            continue
        decoded = np.asarray(codec.code(picture, 90).picture, dtype=int)
        assert bool(abs(decoded[0, 32] - decoded[1, 32]).max() > 150) is kept, name


def test_a_format_pillow_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    with pytest.raises(NotInstalled, match="avif needs libavif, which this Pillow was built without"):
        make("avif")
    make("jpeg")


@pytest.mark.parametrize(
    ("name", "module", "what"),
    [
        ("jxl", "pillow_jxl", "pillow-jxl-plugin"),
        ("heic", "pillow_heif", "pillow-heif"),
        ("compressai-mbt2018-mean", "compressai", "compressai"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, name: str, module: str, what: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotInstalled, match=f"{name} needs {what}, which is not installed"):
        make(name)


def test_words() -> None:
    assert parse("webp") == ("webp", ()) and parse("webp:20,40.5") == ("webp", (20, 40.5))
    assert make("jpeg", (7, 50)).qualities == (7, 50)
    for word, sentence in (("webp:", "CODEC:QUALITY"), ("webp:a", "CODEC:QUALITY")):
        with pytest.raises(LalicError, match=sentence):
            parse(word)
    with pytest.raises(LalicError, match="no codec 'gif'"):
        make("gif")
    with pytest.raises(LalicError, match="jpeg: quality is 0, expected 1 to 95"):
        make("jpeg", (50, 0))
    with pytest.raises(LalicError, match=r"webp: quality is 40\.5, expected a whole number"):
        make("webp", (40.5,))


def test_lalic_files() -> None:
    picture = astronaut(150, 20, 192, 176)
    codec = LalicCodec(tiny())
    coded = codec.code(picture, None)
    assert codec.qualities == (None,) and coded.data[:4] == b"\x89LAL"
    assert coded.picture == lalic.decode(coded.data, tiny()) and 20 < psnr(picture, coded.picture) < 40
    with pytest.raises(LalicError, match=r"lalic: quality is 50, expected none: .* trained for one quality"):
        LalicCodec(tiny(), (50,))


def fake_compressai(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A double of the package, whose only model halves pictures."""
    asked: list[dict] = []

    class Model(torch.nn.Module):
        def compress(self, x: torch.Tensor) -> dict:
            assert x.shape[2] % 64 == 0 and x.shape[3] % 64 == 0
            small = torch.nn.functional.avg_pool2d(x, 2)
            return {"strings": [[images.from_tensor(small).tobytes()], [b"12345"]], "shape": small.shape[2:]}

        def decompress(self, strings: list, shape: tuple) -> dict:
            data = np.frombuffer(strings[0][0], np.uint8).reshape(*shape, 3)
            x = torch.from_numpy(data.copy()).permute(2, 0, 1)[None] / 255
            return {"x_hat": torch.nn.functional.interpolate(x, scale_factor=2)}

    zoo = ModuleType("compressai.zoo")

    def build(quality: int, **options: object) -> Model:
        if quality > 6:
            raise ValueError("Invalid quality")
        asked.append({"quality": quality, **options})
        return Model()

    zoo.image_models = {"mbt2018-mean": build, "mbt2018-vbr": build}
    package = ModuleType("compressai")
    package.zoo = zoo
    monkeypatch.setitem(sys.modules, "compressai", package)
    monkeypatch.setitem(sys.modules, "compressai.zoo", zoo)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2" if name == "compressai" else version(name))
    return asked


def test_compressai_models(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fake_compressai(monkeypatch)
    codec, picture = make("compressai-mbt2018-mean", (3,)), astronaut(150, 20, 100, 70)
    coded, _ = (codec.code(picture, 3) for _ in range(2))
    assert asked == [{"quality": 3, "metric": "mse", "pretrained": True}]  # loaded once
    assert coded.size == 3 * 64 * 64 + 5  # padded to 128 x 128 and halved both ways; and the 5
    assert coded.picture.size == picture.size and psnr(picture, coded.picture) > 20
    with pytest.raises(LalicError, match=r"expected compressai- and one of mbt2018-mean$"):
        make("compressai-vgg")
    with pytest.raises(LalicError, match="cannot be loaded at quality 8"):
        codec.code(picture, 8)


# VTM

FAKE_VTM = '''#!{python}
"""A double of EncoderAppStatic: logs its arguments, and returns its input, at 10 bits as VTM does."""
import json, sys
from pathlib import Path

words = sys.argv[1:]
print("VVCSoftware: VTM Encoder Version 9.1 [Linux]")
if not words:
    sys.exit(1)
Path({log!r}).open("a").write(json.dumps(words) + chr(10))
value = lambda key: words[words.index(key) + 1]
if value("-q") == "47":
    print("something is wrong", file=sys.stderr)
    sys.exit(3)
data = Path(value("-i")).read_bytes()
wide = b"".join((4 * v).to_bytes(2, "little") for v in data)
Path(value("-o")).write_bytes(wide if {wide} else data)
Path(value("-b")).write_bytes(bytes(1000 - int(value("-q"))))
'''


def fake_vtm(tmp_path: Path, wide: bool = True) -> tuple[Path, Path]:
    """A build of VTM with its folders, and the file with its arguments."""
    encoder, log = tmp_path / "VTM" / "bin" / "EncoderAppStatic", tmp_path / "log.jsonl"
    encoder.parent.mkdir(parents=True)
    encoder.write_text(FAKE_VTM.format(python=sys.executable, log=str(log), wide=wide))
    encoder.chmod(0o755)
    config = tmp_path / "VTM" / "cfg" / "encoder_intra_vtm.cfg"
    config.parent.mkdir()
    config.write_text(
        "#======== Coding tools ======\nInternalBitDepth              : 10   # codec operating bit-depth\n"
    )
    return encoder, log


@pytest.mark.parametrize("wide", [True, False])
def test_vtm_gets_the_supplements_command(tmp_path: Path, wide: bool) -> None:
    encoder, log = fake_vtm(tmp_path, wide)
    codec, picture = vtm.Vtm(encoder), astronaut(150, 20, 192, 176)
    assert codec.version == "VTM 9.1" and codec.qualities == (22, 27, 32, 37, 42, 47)
    coded = codec.code(picture, 32)
    words = json.loads(log.read_text().splitlines()[-1])
    places = {words[i + 1]: name for i, name in ((0, "IN"), (4, "OUT"), (6, "BIN"))}
    config = str(tmp_path / "VTM" / "cfg" / "encoder_intra_vtm.cfg")
    wanted = f"-i IN -c {config} -o OUT -b BIN -wdt 192 -hgt 176 -q 32 --InputBitDepth=8 -fr 1 -f 1"
    assert " ".join(places.get(word, word) for word in words) == f"{wanted} --InputChromaFormat=444"
    assert coded.size == 968 == len(coded.data) and coded.decode_seconds is None
    # Nothing is lost but rounding to 8-bit YUV and back, at most one level in Y and about one in each colour.
    assert psnr(picture, coded.picture) > 50
    assert not list(tmp_path.glob("*.yuv"))


def test_vtm_pads_odd_sizes_alone(tmp_path: Path) -> None:
    encoder, log = fake_vtm(tmp_path)
    picture = astronaut(150, 20, 33, 24)
    assert vtm.Vtm(encoder).code(picture, 22).picture.size == (33, 24)
    assert json.loads(log.read_text())[-1] == "--ConformanceWindowMode=1"


def test_vtm_that_fails_says_why(tmp_path: Path) -> None:
    encoder, _ = fake_vtm(tmp_path)
    with pytest.raises(LalicError, match=r"the encoder failed \(something is wrong\)"):
        vtm.Vtm(encoder).code(astronaut(150, 20, 16, 16), 47)
    with pytest.raises(LalicError, match="there is no encoder"):
        vtm.Vtm(tmp_path / "nothing", None)
    with pytest.raises(LalicError, match="there is no configuration"):
        vtm.Vtm(encoder, tmp_path / "nothing.cfg")


def test_yuv_is_bt709_in_full_range() -> None:
    colours = np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [100, 100, 100]]], np.uint8)
    planes = vtm.to_yuv(Image.fromarray(colours))[:, 0].T
    # Y = 0.2126 R + 0.7152 G + 0.0722 B; Cb = (B - Y) / 1.8556 + 128; Cr = (R - Y) / 1.5748 + 128 (H.273, BT.709)
    assert planes.tolist() == [
        [255, 128, 128], [0, 128, 128], [54, 99, 255], [182, 30, 12], [18, 255, 116], [100, 128, 128]
    ]  # fmt: skip
    grey = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(1, 256, 3))
    for depth in (8, 10):
        wide = vtm.to_yuv(grey).astype(np.uint16) * 2 ** (depth - 8)
        assert np.array_equal(np.asarray(vtm.to_rgb(wide, depth)), np.asarray(grey))
