"""The seam between a model and bytes: `coder_for` gives what turns pictures into streams and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from lalic.coder.stream import Decoded, Stream
from lalic.errors import BitstreamError
from lalic_kernels import installed

if TYPE_CHECKING:
    from lalic.model import LALIC

__all__ = ["Coder", "Decoded", "Stream", "coder_for"]


class Coder(Protocol):
    """Pictures x are (1, 3, H, W) in [0, 1], latents y (1, M, H / 16, W / 16); a size is that of the hyper latents."""

    def encode(self, x: Tensor, quality: float | None) -> Stream:
        """The stream of one picture. Raises ``LalicError`` for one that cannot be coded with these weights."""

    def encode_latents(self, y: Tensor, quality: float | None) -> Stream:
        """The same of a picture whose latents are known."""

    def decode(
        self, streams: Sequence[Stream], size: tuple[int, int], qualities: Sequence[float | None]
    ) -> list[Tensor | BitstreamError]:
        """Pictures of one size, or what is wrong with a stream in its place."""

    def read(self, stream: Stream, size: tuple[int, int]) -> Decoded:
        """Latents alone. Raises ``BitstreamError``."""


def coder_for(model: LALIC, graph: bool | None = None) -> Coder:
    """What codes with a model where it is: on a GPU where Triton is installed, else through the host.

    graph: on a GPU, True for launches captured as a CUDA graph, False for plain ones, None for a graph from the second
    picture of a size on. Raises ``ValueError`` for a graph where there is none.
    """
    if codes_on_gpu(model.device):
        from lalic.coder.gpu import GpuCoder

        return GpuCoder(model, graph)
    if graph:
        raise ValueError("graph: expected None or False where symbols are not coded on a GPU, got True")
    from lalic.coder.host import HostCoder

    return HostCoder(model)


def codes_on_gpu(device: torch.device) -> bool:
    """Whether symbols are coded where the model is, and not on the host."""
    return device.type == "cuda" and installed.TRITON
