"""Cases of loading training data: .lalic files beside JPEG and WebP files of equal PSNR, under torch's `DataLoader`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Call, Case, Setting, WrongResult
from lalic.data import Pictures
from lalic.eval.codecs import open_codecs
from lalic.eval.side_by_side import Match, coded_at, nearest

QUALITY = 50
PICTURES = 4


class Files(Dataset):
    """Picture files as Pillow opens them: uint8 (3, H, W)."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()


def cases(setting: Setting) -> Iterator[Case]:
    """The photo that ships, mirrored and turned, in each format; one process loads all in one batch."""
    from benchmarks.codec import photo

    height, width = (64, 96) if setting.quick else (512, 768)
    upright = photo(height, width)
    turns = (None, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
    pictures = [upright if turn is None else upright.transpose(turn) for turn in turns[:PICTURES]]
    codecs, _ = open_codecs(["lalic", "jpeg", "webp"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calls, target = [], 0.0
        for codec in codecs:
            if codec is codecs[0]:
                matches = [coded_at(codec, picture, QUALITY) for picture in pictures]
                target = matches[0].psnr
            else:
                matches = [nearest(codec, pictures[0], "psnr", target)]
                matches += [coded_at(codec, picture, matches[0].quality) for picture in pictures[1:]]
            paths = _written(matches, folder)
            dataset = Pictures(paths) if codec is codecs[0] else Files(paths)
            calls.append(_call(dataset, matches, pictures))
        yield Case(f"{PICTURES} of {width}x{height}, {target:.2f} dB", tuple(calls), wall_clock=True)


def _written(matches: list[Match], folder: Path) -> list[Path]:
    paths = []
    for number, match in enumerate(matches):
        paths.append(folder / f"{number}.{match.codec.name}")
        assert match.coded.data is not None
        paths[-1].write_bytes(match.coded.data)
    return paths


def _call(dataset: Dataset, matches: list[Match], pictures: list[Image.Image]) -> Call:
    codec, size = matches[0].codec, sum(match.coded.size for match in matches)

    def run() -> torch.Tensor:
        (batch,) = DataLoader(dataset, batch_size=len(matches))
        return batch

    def check(batch: torch.Tensor) -> None:
        """Pixels of the codec's own decoder, but for the rounding of another batch."""
        for pixels, match in zip(batch, matches, strict=True):
            wanted = torch.from_numpy(np.array(match.coded.picture)).permute(2, 0, 1)
            if (apart := (pixels.short() - wanted.short()).abs().max().item()) > 1:
                raise WrongResult(f"loading {codec.name}: a pixel is {apart} of 255 off")

    if isinstance(dataset, Files):
        check(run())
    psnr = sum(match.psnr for match in matches) / len(matches)
    pixels = sum(picture.width * picture.height for picture in pictures)
    return Call(
        codec.title,
        run,
        check if isinstance(dataset, Pictures) else None,
        lambda seconds: {"pictures/s": len(matches) / seconds, "bits per pixel": 8 * size / pixels, "PSNR": psnr},
    )
