"""Training pictures from folders and tar files, as random crops in an order that a seed fixes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lalic.errors import ImageError
from lalic.files import Name, walk
from lalic.nn.noise import ALL, Share

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


def _sources(paths: Iterable[Name]) -> list[tuple[str, bytes | Path]]:
    """(name, encoded bytes or path) of every picture in ``paths``, in order of name within each path."""
    sources: list[tuple[str, bytes | Path]] = []
    for path in map(Path, paths):
        if path.is_dir():
            sources += [(str(file), file) for file in walk(path, SUFFIXES)]
        elif path.is_file() and tarfile.is_tarfile(path):
            with tarfile.open(path) as tar:
                members = sorted((m for m in tar if m.isfile()), key=lambda m: m.name)
                for member in members:
                    if Path(member.name).suffix.lower() in SUFFIXES:
                        file = tar.extractfile(member)
                        assert file is not None  # as isfile() is true
                        sources.append((f"{path}/{member.name}", file.read()))
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            sources.append((str(path), path))
        else:
            raise ImageError(f"{path}: expected a folder, a tar file or a picture")
    return sources


def _enlarged(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) with H and W at least `side`, by repeating the last row and column."""
    missing = [(0, max(0, side - n)) for n in pixels.shape[:2]]
    return np.pad(pixels, [*missing, (0, 0)], mode="edge") if any(more for _, more in missing) else pixels


class Crops:
    """Random square crops of all pictures, flipped left to right and transposed with a probability of one half each.

    Every epoch uses each picture once, in an order drawn from ``seed`` and the epoch. So batch ``i`` depends on the
    seed and ``i`` only, and a resumed run gets the batches of an uninterrupted one. A batch of large crops uses the
    first quarter of its pictures. Decoded pictures stay in memory, 3 bytes a pixel.

    Args:
        paths: folders, tar files or pictures. patch: side of a crop in pixels. batch: crops a batch. seed: of order
            and crops.
        hold_out: every ``hold_out``-th picture is not trained on but returned by `held_out`.
        shrink: crops are taken up to this many times larger, if the picture is large enough, and scaled down.

    Pictures smaller than a crop are enlarged by repeating their edges. Raises ``ImageError`` if there are no pictures.
    """

    def __init__(
        self, paths: Iterable[Name], patch: int, batch: int, seed: int, hold_out: int = 50, shrink: float = 1.0
    ):
        sources = _sources(paths)
        chosen = [i for i in range(len(sources)) if i % hold_out]
        if not chosen:
            raise ImageError(f"no pictures to train on in {[str(p) for p in paths]}")
        self._train = [sources[i] for i in chosen]
        self._held_out = [sources[i] for i in range(0, len(sources), hold_out)]
        self._decoded: dict[str, NDArray[np.uint8]] = {}
        self.patch, self.batch, self.seed, self.shrink = patch, batch, seed, shrink

    def __len__(self) -> int:
        return len(self._train)

    def _picture(self, source: tuple[str, bytes | Path]) -> NDArray[np.uint8]:
        name, data = source
        if name not in self._decoded:
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
                self._decoded[name] = np.asarray(image.convert("RGB"))
        return self._decoded[name]

    def __getitem__(self, index: int) -> Tensor:
        """Batch ``index``: float32 (batch, 3, patch, patch) in [0, 1]."""
        return self.part(index, ALL)

    def part(self, index: int, share: Share, large: bool = False) -> Tensor:
        """One process's part of batch ``index``, float32 (n, 3, side, side) in [0, 1]; others are not decoded.

        large: crops of twice the side, a quarter as many.
        """
        side, count = (2 * self.patch, self.batch // 4) if large else (self.patch, self.batch)
        count //= share.parts
        first = index * self.batch + share.number * count
        crops = np.stack([self._crop(number, side) for number in range(first, first + count)])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)

    def _crop(self, number: int, patch: int) -> NDArray[np.uint8]:
        """Crop ``number``, counted from the start of training: uint8 (patch, patch, 3)."""
        epoch, position = divmod(number, len(self._train))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self._train))
        draw = np.random.default_rng((self.seed, epoch, position))
        pixels = self._picture(self._train[order[position]])
        pixels = _enlarged(pixels, patch)
        side = patch
        if self.shrink > 1:
            side = min(round(patch * self.shrink ** draw.random()), *pixels.shape[:2])
        top, left = (int(draw.integers(n - side + 1)) for n in pixels.shape[:2])
        crop = pixels[top : top + side, left : left + side]
        if side > patch:
            crop = np.asarray(Image.fromarray(crop).resize((patch, patch), Image.Resampling.LANCZOS))
        crop = crop[:, ::-1] if draw.random() < 0.5 else crop
        return crop.swapaxes(0, 1) if draw.random() < 0.5 else crop

    def held_out_sources(self) -> list[tuple[str, bytes | Path]]:
        """(name, encoded bytes or path) of every held-out picture."""
        return list(self._held_out)

    def held_out(self, count: int, side: int = 256) -> list[Tensor]:
        """Centres of the first ``count`` held-out pictures, each float32 (1, 3, h, w) in [0, 1].

        h and w are ``side``, or the largest multiple of 64 in a smaller picture.
        """
        result = []
        for source in self._held_out[:count]:
            pixels = _enlarged(self._picture(source), 64)
            h, w = (min(side, n // 64 * 64) for n in pixels.shape[:2])
            top, left = (pixels.shape[0] - h) // 2, (pixels.shape[1] - w) // 2
            crop = np.ascontiguousarray(pixels[top : top + h, left : left + w])
            result.append(torch.from_numpy(crop).permute(2, 0, 1)[None].float().div_(255))
        return result
