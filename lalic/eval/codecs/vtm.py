"""VTM, the reference software of VVC, built by the user, with the exact command of LALIC's supplement:

    EncoderAppStatic -i input.yuv -c encoder_intra_vtm.cfg -o output.yuv -b output.bin -wdt W -hgt H -q QP
        --InputBitDepth=8 -fr 1 -f 1 --InputChromaFormat=444              QP 22 27 32 37 42 47

The supplement gives no details of the YUV space. This module uses BT.709 in full range at 8 bits, one plane after the
other, like CompressAI's script for this encoder, from which the published Kodak points come; but it rounds to the
nearest, with grey at 128 (H.273), where that script truncates. VTM takes only sides that are multiples of 8, so for
other sides `--ConformanceWindowMode=1` is added, with which the encoder pads and the file crops.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from lalic.errors import LalicError
from lalic.eval.codecs.base import Codec, Coded, Quality
from lalic.files import Name

__all__ = ["Vtm", "to_rgb", "to_yuv"]

_SMALLEST_UNIT = 8  # side of VTM's smallest coding unit, in pixels
_KR, _KB = 0.2126, 0.0722  # BT.709


def to_yuv(picture: Image.Image) -> np.ndarray:
    """RGB picture (H, W) -> uint8 (3, H, W): Y, Cb, Cr of BT.709 in full range."""
    r, g, b = np.asarray(picture, dtype=np.float64).transpose(2, 0, 1)
    y = _KR * r + (1 - _KR - _KB) * g + _KB * b
    planes = np.stack([y, (b - y) / (2 * (1 - _KB)) + 128, (r - y) / (2 * (1 - _KR)) + 128])
    return np.floor(planes + 0.5).clip(0, 255).astype(np.uint8)


def to_rgb(planes: np.ndarray, depth: int = 8) -> Image.Image:
    """Integers (3, H, W), BT.709 in full range, 8 bits scaled by 2^(depth - 8), VTM's scaling -> RGB picture."""
    y, cb, cr = planes.astype(np.float64) / 2 ** (depth - 8)
    r = y + 2 * (1 - _KR) * (cr - 128)
    b = y + 2 * (1 - _KB) * (cb - 128)
    g = (y - _KR * r - _KB * b) / (1 - _KR - _KB)
    rgb = np.floor(np.stack([r, g, b], axis=-1) + 0.5).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(rgb))


class Vtm(Codec):
    """VTM's encoder at each QP. The picture is the encoder's reconstruction; decoding is not timed.

    encoder: EncoderAppStatic. config: cfg/encoder_intra_vtm.cfg of the same release; None: searched in ../cfg of the
    binary's folder. Raises `LalicError` if either file is missing.
    """

    name, title = "vtm", "VTM"
    qualities = (22, 27, 32, 37, 42, 47)
    bounds = (0, 63)
    increasing = False

    def __init__(self, encoder: Name, config: Name | None = None) -> None:
        self.encoder = Path(encoder)
        self.config = self.encoder.parent.parent / "cfg" / "encoder_intra_vtm.cfg" if config is None else Path(config)
        for what, path in (("encoder", self.encoder), ("configuration", self.config)):
            if not path.is_file():
                raise LalicError(f"vtm: there is no {what} {path}; build VTM, and name it with --vtm and --vtm-config")
        # Started alone it prints "VVCSoftware: VTM Encoder Version 9.1 ...", and fails.
        match = re.search(r"Version\s+\[?([\w.\-]+)", self._run().stdout)
        self.version = f"VTM {match[1]}" if match else "VTM, version unknown"

    def code(self, picture: Image.Image, quality: Quality) -> Coded:
        """Encode in a temporary folder. Raises `LalicError` with VTM's last line of output if it fails."""
        assert quality is not None
        width, height = picture.size
        with tempfile.TemporaryDirectory(prefix="lalic-vtm-") as folder:
            source, decoded, stream = (Path(folder, name) for name in ("input.yuv", "output.yuv", "output.bin"))
            source.write_bytes(to_yuv(picture).tobytes())
            arguments = [
                "-i", source, "-c", self.config, "-o", decoded, "-b", stream, "-wdt", width, "-hgt", height,
                "-q", int(quality), "--InputBitDepth=8", "-fr", 1, "-f", 1, "--InputChromaFormat=444",
            ]  # fmt: skip
            if width % _SMALLEST_UNIT or height % _SMALLEST_UNIT:
                arguments.append("--ConformanceWindowMode=1")
            start = time.perf_counter()
            done = self._run(*arguments)
            seconds = time.perf_counter() - start
            if done.returncode:
                printed = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
                raise LalicError(f"vtm: the encoder failed ({printed[-1]})")
            data = stream.read_bytes()
            return Coded(self._read(decoded, width, height), len(data), seconds, None, data)

    def _run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                [str(self.encoder), *map(str, arguments)], capture_output=True, text=True, errors="replace"
            )
        except OSError as error:
            raise LalicError(f"vtm: {self.encoder} cannot be run ({error.strerror})") from None

    def _read(self, path: Path, width: int, height: int) -> Image.Image:
        """The reconstruction, which has 8 or 16 bits per sample, depending on the configuration."""
        count = 3 * width * height
        size = path.stat().st_size if path.exists() else 0
        if size == count:
            return to_rgb(np.fromfile(path, np.uint8).reshape(3, height, width))
        if size == 2 * count:
            return to_rgb(np.fromfile(path, "<u2").reshape(3, height, width), self._depth())
        raise LalicError(f"vtm: the reconstruction has {size} bytes, expected {count} or {2 * count}")

    def _depth(self) -> int:
        """Bits of the reconstruction's samples: the output depth of the configuration, or else its internal depth."""
        text = self.config.read_text(errors="replace")
        for key in ("OutputBitDepth", "InternalBitDepth"):
            match = re.search(rf"^\s*{key}\s*:\s*(\d+)", text, re.MULTILINE)
            if match and int(match[1]):
                return int(match[1])
        raise LalicError(f"vtm: {self.config} has no InternalBitDepth, expected a number of bits")
