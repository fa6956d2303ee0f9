"""Training pictures from folders and tar files, as random crops in an order that a seed fixes."""

from __future__ import annotations

import contextlib
import itertools
import lzma
import os
import posixpath
import shutil
import tarfile
import tempfile
import warnings
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lalic import images
from lalic.errors import ImageError, ImageWarning, sentence
from lalic.files import Name, walk
from lalic.memory import KEEP_MIB, Kept
from lalic.nn.noise import ALL, Share

LINKS = 8  # in a row
THREADS = 4  # that decode pictures of one batch


@dataclass(frozen=True)
class Source:
    """An encoded picture: a file, or `size` bytes of one from `start`.

    name: for people. path: of the file.
    """

    name: str
    path: Path
    start: int = 0
    size: int = -1  # up to the end

    def open(self) -> Image.Image:
        """The RGB picture, as `lalic.encode` takes its colours. Raises `ImageError` or `OSError`."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = file.read(self.size)
        picture = images.open_picture(data, strip=True).image
        assert isinstance(picture, Image.Image)  # as larger ones are refused
        return picture.convert("RGB")


def _sources(paths: Iterable[Name], owner: object) -> list[Source]:
    """Every picture in ``paths``, in order of name within each path.

    owner: as long as it is there, so are the temporary files with the pictures of compressed tars.
    """
    extensions = images.readable_extensions()
    sources: list[Source] = []
    for path in map(Path, paths):
        if path.is_dir():
            sources += [Source(str(file), file) for file in walk(path, extensions)]
        elif path.is_file() and tarfile.is_tarfile(path):
            sources += _members(path, extensions, owner)
        elif path.suffix.lower() in extensions and path.is_file():
            sources.append(Source(str(path), path))
        else:
            raise ImageError(f"{path}: expected a folder, a tar file or a picture")
    return sources


def _members(path: Path, extensions: Iterable[str], owner: object) -> list[Source]:
    """The pictures of a tar, links followed. They stay in it; those of a compressed tar are unpacked to one file."""
    try:
        with tarfile.open(path) as tar:
            members = {posixpath.normpath(m.name): m for m in tar}  # the last of a name counts
            taken = sorted((m.name, m) for m in members.values() if _is_taken(m.name, extensions) and not m.isdir())
            files = {name: target for name, member in taken if (target := _target(member, members, path))}
            if _is_plain(path) and not any(m.issparse() for m in files.values()):
                return [Source(f"{path}/{name}", path, m.offset_data, m.size) for name, m in files.items()]
            descriptor, unpacked = tempfile.mkstemp(prefix="lalic-")
            weakref.finalize(owner, os.unlink, unpacked)
            starts: dict[int, int] = {}  # by the place in the tar
            with open(descriptor, "wb") as out:
                for member in sorted(files.values(), key=lambda m: m.offset):  # in its order: it is read once
                    if member.offset not in starts:
                        starts[member.offset] = out.tell()
                        shutil.copyfileobj(tar.extractfile(member), out)  # type: ignore[arg-type]
            return [Source(f"{path}/{name}", Path(unpacked), starts[m.offset], m.size) for name, m in files.items()]
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ImageError(f"{path}: the tar is damaged ({error})") from None


def _target(member: tarfile.TarInfo, members: Mapping[str, tarfile.TarInfo], path: Path) -> tarfile.TarInfo | None:
    """The file that a member of a tar is, or a hard or symbolic link to. None, with a warning, if there is none."""
    found: tarfile.TarInfo | None = member
    for _ in range(LINKS):
        if found is None or found.isfile():
            break
        folder = posixpath.dirname(found.name) if found.issym() else ""
        found = members.get(posixpath.normpath(posixpath.join(folder, found.linkname)))
    if found is None or not found.isfile():
        _warn(f"{path}/{member.name}", ImageError("it is no file in the tar, and no link to one"))
        return None
    return found


def _is_taken(name: str, extensions: Iterable[str]) -> bool:
    """Whether `walk` would take a file of this name: a picture without hidden names."""
    parts = PurePosixPath(name).parts
    return PurePosixPath(name).suffix.lower() in extensions and not any(p.startswith(".") for p in parts)


def _is_plain(path: Path) -> bool:
    """Whether a tar is not compressed."""
    with contextlib.suppress(tarfile.TarError), tarfile.open(path, "r:"):
        return True
    return False


def _enlarged(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) with H and W at least `side`, by repeating the last row and column."""
    missing = [(0, max(0, side - n)) for n in pixels.shape[:2]]
    return np.pad(pixels, [*missing, (0, 0)], mode="edge") if any(more for _, more in missing) else pixels


class Crops:
    """Random square crops of all pictures, flipped left to right and transposed with a probability of one half each.

    Every epoch uses each picture once, in an order drawn from ``seed`` and the epoch. So batch ``i`` depends on the
    seed and ``i`` only, and a resumed run gets the batches of an uninterrupted one. A batch of large crops uses the
    first quarter of its pictures. Pictures are opened by the rules of `lalic.images`, as for coding.

    Args:
        paths: folders, tar files or pictures. patch: side of a crop in pixels. batch: crops a batch. seed: of order
            and crops.
        hold_out: every ``hold_out``-th picture is not trained on but returned by `held_out`; a single one is trained
            on.
        shrink: crops are taken up to this many times larger, if the picture is large enough, and scaled down.
        keep_mib: MiB of decoded pictures, 3 bytes a pixel, that stay in memory; others are decoded for each crop.

    Pictures smaller than a crop are enlarged by repeating their edges. In place of a picture that cannot be read the
    next one in order is used, and an `ImageWarning` names it. Raises ``ImageError`` if there are no pictures, and if
    none can be read.
    """

    def __init__(
        self,
        paths: Iterable[Name],
        patch: int,
        batch: int,
        seed: int,
        hold_out: int = 50,
        shrink: float = 1.0,
        keep_mib: int = KEEP_MIB,
    ):
        sources = _sources(paths, self)
        if not sources:
            raise ImageError(f"no pictures to train on in {[str(p) for p in paths]}")
        self._train = [source for i, source in enumerate(sources) if i % hold_out] or sources
        self._held_out = sources[::hold_out] if len(sources) > 1 else []
        self._kept: Kept[Source, NDArray[np.uint8]] = Kept(keep_mib << 20, lambda pixels: pixels.nbytes)
        self._damaged: set[Source] = set()
        self._pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "lalic-crop")
        self.patch, self.batch, self.seed, self.shrink = patch, batch, seed, shrink

    def __len__(self) -> int:
        return len(self._train)

    def _picture(self, source: Source) -> NDArray[np.uint8]:
        return self._kept.get(source, lambda: np.asarray(source.open()))

    def _readable(self, sources: Iterable[Source]) -> Iterator[NDArray[np.uint8]]:
        """The pixels (H, W, 3) of those that can be read, each when it is asked for. Others are named once."""
        for source in sources:
            if source in self._damaged:
                continue
            try:
                yield self._picture(source)
            except ImageError as error:
                self._damaged.add(source)
                _warn(source.name, error)
            except OSError as error:  # perhaps readable later
                _warn(source.name, error)

    def __getitem__(self, index: int) -> Tensor:
        """Batch ``index``: float32 (batch, 3, patch, patch) in [0, 1]."""
        return self.part(index, ALL)

    def part(self, index: int, share: Share, large: bool = False) -> Tensor:
        """One process's part of batch ``index``, float32 (n, 3, side, side) in [0, 1]; others are not decoded.

        large: crops of twice the side, a quarter as many.
        """
        side, count = (2 * self.patch, self.batch // 4) if large else (self.patch, self.batch)
        count //= share.parts
        return self._crops(index * self.batch + share.number * count, count, side)

    def first(self, count: int) -> Tensor:
        """The first crops of training: float32 (count, 3, patch, patch) in [0, 1]."""
        return self._crops(0, count, self.patch)

    def _crops(self, first: int, count: int, side: int) -> Tensor:
        crops = np.stack(list(self._pool.map(lambda number: self._crop(number, side), range(first, first + count))))
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float().div_(255)

    def _crop(self, number: int, patch: int) -> NDArray[np.uint8]:
        """Crop ``number``, counted from the start of training: uint8 (patch, patch, 3)."""
        epoch, position = divmod(number, len(self._train))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self._train))
        draw = np.random.default_rng((self.seed, epoch, position))
        then = (self._train[order[(position + i) % len(order)]] for i in range(len(order)))
        pixels = next(self._readable(then), None)
        if pixels is None:
            raise ImageError(f"none of {len(self._train)} pictures to train on can be read")
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

    def held_out_sources(self) -> list[Source]:
        """Every held-out picture."""
        return list(self._held_out)

    def held_out(self, count: int, side: int = 256) -> list[Tensor]:
        """Centres of the first ``count`` held-out pictures, each float32 (1, 3, h, w) in [0, 1].

        h and w are ``side``, or the largest multiple of 64 in a smaller picture.
        """
        result = []
        for readable in itertools.islice(self._readable(self._held_out), count):
            pixels = _enlarged(readable, 64)
            h, w = (min(side, n // 64 * 64) for n in pixels.shape[:2])
            top, left = (pixels.shape[0] - h) // 2, (pixels.shape[1] - w) // 2
            crop = pixels[top : top + h, left : left + w].copy()  # which torch may write to
            result.append(torch.from_numpy(crop).permute(2, 0, 1)[None].float().div_(255))
        return result


def _warn(name: str, error: Exception) -> None:
    warnings.warn(f"{name} is left out: {sentence(error)}", ImageWarning, stacklevel=2)
