"""`.lalic` files as training data: a map-style data set for `torch.utils.data.DataLoader`.

>>> from torch.utils.data import DataLoader
>>> from lalic.data import Pictures
>>> batches = DataLoader(Pictures("photos/"), batch_size=16, num_workers=4)  # doctest: +SKIP

WebDataset's own image handler reads them too, after `import lalic.pillow`:
``webdataset.WebDataset(urls).decode(webdataset.imagehandler("torchrgb8", ["lalic"]))``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from lalic.codec import decode_many
from lalic.errors import ImageError, LalicError
from lalic.files import walk
from lalic.model import LALIC

__all__ = ["Pictures"]


class Pictures(Dataset):
    """Decoded pictures of .lalic files, by their number.

    files: paths, or one folder: all .lalic files in it and in its folders, in the order of their names. transform:
    called with the decoded `PIL.Image` (RGB, RGBA or L); None for uint8 tensors (3, H, W), alpha being dropped. model,
    device: as of `lalic.decode`.

    A `DataLoader` asks for a whole batch at once. On a GPU its pictures of one size are decoded together; take
    ``num_workers=0`` there. On CPUs take as many workers as there are cores.

    Attributes: files, a list of `Path`. Raises `ImageError` for a folder without .lalic files; on use `OSError` for a
    file that cannot be read, and the error of `lalic.decode`, with the file's name, for one that is damaged.
    """

    def __init__(
        self,
        files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        transform: Callable[[Image.Image], Any] | None = None,
        *,
        model: LALIC | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(files, (str, os.PathLike)):
            folder = files
            files = walk(folder, {".lalic"})
            if not files:
                raise ImageError(f"files is {os.fspath(folder)!r}, expected a folder with .lalic files")
        self.files = [Path(path) for path in files]
        self.transform = _tensor if transform is None else transform
        self._model = model
        self._device = device

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Several pictures; `DataLoader` prefers this to single ones."""
        paths = [self.files[index] for index in indices]
        data = (path.read_bytes() for path in paths)
        pictures = decode_many(data, self._model, device=self._device, batch=max(1, len(paths)))
        items = []
        for path, picture in zip(paths, pictures, strict=True):
            if isinstance(picture, LalicError):
                raise type(picture)(f"{path}: {picture}")
            items.append(self.transform(picture))
        return items


def _tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous()
