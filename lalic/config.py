"""Model configurations: the shape of a `lalic.LALIC`, and the two named ones, FULL and SLIM."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

DEFAULT_QUALITY = 50.0  # of a model with gains, if none is given


def stride(kernel: int) -> int:
    """The number by which a convolution of the transforms with this side divides H and W."""
    return 2 if kernel in (3, 5) else kernel


@dataclass(frozen=True)
class Config:
    """Shape of a LALIC model.

    Attributes:
        name: name of the model in a file's header; at most 8 characters.
        N: half of the smallest width inside the entropy-parameter networks.
        M: latent channels; equals ``dims[3]`` and the sum of ``groups``.
        dims: channels of the three analysis stages, the latents, the hyper transform and the hyper latents.
        depths: RWKV blocks of the three analysis stages and of the hyper transform.
        groups: latent channels of each slice, in coding order.
        kernels: side of the convolution in front of each analysis stage and of the latents. 3 and 5 overlap and halve
            H and W, as published. 1, 2, 4 and 8 are patches without overlap and divide H and W by the side. The product
            of all four divisors is 16. The synthesis has them in reverse order.
        context_depth: RWKV blocks in each channel context (published: 2).
        context_rate: hidden width of their channel mix, in multiples of their width (published: 8).
        context_width: channels of the hyper parameters and inside the channel contexts; 0 (published): M.
        aggregation_widths: widths between the blocks of each entropy-parameter network; () (published): two widths in
            even steps between its inputs and its outputs, each at least 2 N. If given, N is half of the smallest.
        qualities: anchors of the gains (`lalic.nn.gains`), with which one model has every quality; 0 (published): none.
    """

    name: str
    N: int
    M: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    groups: tuple[int, ...]
    context_depth: int = 2
    context_rate: int = 8
    qualities: int = 0
    context_width: int = 0
    kernels: tuple[int, ...] = (5, 3, 3, 3)
    aggregation_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            wrong = [v for v in (value if isinstance(value, tuple) else (value,)) if type(v) is not int]
            if field.name != "name" and (wrong or isinstance(value, tuple) != field.type.startswith("tuple")):
                kind = "whole numbers" if field.type.startswith("tuple") else "a whole number"
                raise ValueError(f"{field.name}: expected {kind}, got {value!r}")
        for name, length in (("dims", 6), ("depths", 4), ("kernels", 4)):
            value = getattr(self, name)
            if len(value) != length:
                raise ValueError(f"{name}: expected {length} numbers, got {len(value)}: {value}")
        for name in ("N", "M", "context_depth", "context_rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.context_width < 0 or self.context_width == self.M:
            raise ValueError(
                f"context_width: expected 0 for M, or another number than M = {self.M}, got {self.context_width}"
            )
        if self.qualities < 0 or self.qualities == 1:
            raise ValueError(f"qualities: expected 0 for no gains, or at least 2 anchors, got {self.qualities}")
        if min(self.dims) < 1 or min(self.groups, default=0) < 1 or min(self.depths) < 0:
            raise ValueError(
                f"dims, groups: expected positive numbers, depths: non-negative ones; "
                f"got {self.dims}, {self.groups}, {self.depths}"
            )
        if not set(self.kernels) <= {1, 2, 3, 4, 5, 8} or math.prod(map(stride, self.kernels)) != 16:
            raise ValueError(
                "kernels: expected four of 3 and 5, which divide by 2, and 1, 2, 4 and 8, which divide by themselves, "
                f"with a product of 16; got {self.kernels}"
            )
        widths = self.aggregation_widths
        if widths and (min(widths) < 1 or max(1, min(widths) // 2) != self.N):
            raise ValueError(
                f"aggregation_widths: expected positive numbers, the smallest 2 N = {2 * self.N}, or one more, "
                f"got {widths}"
            )
        if self.dims[3] != self.M:
            raise ValueError(f"M: expected dims[3] = {self.dims[3]}, the number of latent channels, got {self.M}")
        if sum(self.groups) != self.M:
            raise ValueError(f"groups: expected a sum of M = {self.M}, got {self.groups} with sum {sum(self.groups)}")

    @property
    def hyper_width(self) -> int:
        """Channels of the hyper parameters and inside the channel contexts."""
        return self.context_width or self.M

    def named(self) -> Config:
        """This configuration named "full" or "slim" if it equals that one but for `qualities`, else "custom"."""
        for config in (FULL, SLIM):
            if replace(config, qualities=self.qualities) == replace(self, name=config.name):
                return replace(self, name=config.name)
        return replace(self, name="custom")


FULL = Config(
    name="full", N=128, M=320, dims=(96, 144, 256, 320, 256, 192), depths=(2, 4, 6, 6), groups=(16, 16, 32, 64, 192)
)
"""The published model: 66.1 M parameters."""

SLIM = Config(
    name="slim",
    N=64,
    M=256,
    dims=(48, 160, 256, 256, 64, 48),
    depths=(1, 2, 3, 2),
    groups=(16, 16, 32, 64, 128),
    context_depth=1,
    context_rate=4,
    qualities=6,
    context_width=96,
    kernels=(4, 2, 2, 1),
    aggregation_widths=(128,),
)
"""The small model whose weights ship, for use without a GPU; its first stage has H / 4 and W / 4. 11.1 M parameters."""
