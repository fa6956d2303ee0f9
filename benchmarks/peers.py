"""Other people's codecs, as yardsticks where they happen to be installed. Never a dependency.

`pip install --no-deps compressai` into an environment that has torch builds it without replacing torch.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import peer_worker


@dataclass(frozen=True)
class Peer:
    """A codec of somebody else's: tensors (1, 3, H, W) to streams and back."""

    name: str
    model: Any

    @torch.inference_mode()
    def encode(self, x: Tensor) -> dict[str, Any]:
        """Streams of a picture."""
        return self.model.compress(x)

    @torch.inference_mode()
    def decode(self, streams: dict[str, Any]) -> Tensor:
        """The picture of streams."""
        return self.model.decompress(streams["strings"], streams["shape"])["x_hat"]


def installed(device: torch.device) -> list[Peer]:
    """CompressAI's mean-scale hyperprior, quality 6 (N = 192, M = 320), and ELIC, random weights; [] if not installed.

    Raises ImportError if it is installed but does not import, rather than leaving its rows out silently.
    """
    if importlib.util.find_spec("compressai") is None:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its own, about torch's old names
        found = [Peer(name, model.eval().to(device)) for name, model, _ in peer_worker.NETWORKS["CompressAI"]()]
    for peer in found:
        peer.model.update()
    return found
