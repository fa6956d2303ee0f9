"""Between a model and bytes: `coder_for` gives the coder that turns pictures into streams and back."""

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
    """Turns pictures into streams and back, on the host or on a GPU.

    Pictures x are (1, 3, H, W) float in [0, 1], latents y (1, M, H / 16, W / 16) before gains. A size is (h, w) of the
    hyper latents, (H / 64, W / 64).
    """

    def encode(self, x: Tensor, quality: float | None) -> Stream:
        """The stream of one picture. Raises ``LalicError`` if it cannot be coded with these weights."""

    def encode_latents(self, y: Tensor, quality: float | None) -> Stream:
        """The stream of one picture, from its latents. Raises ``LalicError`` like `encode`."""

    def decode(
        self, streams: Sequence[Stream], size: tuple[int, int], qualities: Sequence[float | None]
    ) -> list[Tensor | BitstreamError]:
        """Pictures of one size. For a stream that is damaged the list has its error in place of a picture."""

    def read_latents(self, streams: Sequence[Stream], size: tuple[int, int]) -> list[Tensor | BitstreamError]:
        """y_hat (1, M, h, w) of tiles of one size; for a damaged stream its error."""

    def latents(self, x: Tensor) -> Tensor:
        """Latents y (B, M, h, w) of a batch of pictures."""

    def synthesise(self, y_hat: Tensor, qualities: Tensor | None) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] of a batch of decoded latents. qualities: from `LALIC.as_qualities`."""

    def read(self, stream: Stream, size: tuple[int, int]) -> Decoded:
        """Decode without the synthesis transform. Raises ``BitstreamError`` for a damaged stream."""


def coder_for(model: LALIC, graph: bool | None = None) -> Coder:
    """The coder for a model: `GpuCoder` for a model on a GPU if Triton is installed, else `HostCoder`.

    graph: on a GPU, True to capture the launches as a CUDA graph, False to launch one by one, None for a graph from the
    second picture of a size on. Raises ``ValueError`` for True with a `HostCoder`.
    """
    if codes_on_gpu(model.device):
        from lalic.coder.gpu import GpuCoder

        return GpuCoder(model, graph)
    if graph:
        raise ValueError("graph: expected None or False where symbols are not coded on a GPU, got True")
    from lalic.coder.host import HostCoder

    return HostCoder(model)


def codes_on_gpu(device: torch.device) -> bool:
    """Whether symbols of a model on this device are coded on the device, not on the host."""
    return device.type == "cuda" and installed.TRITON
