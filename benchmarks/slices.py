"""What keeping results between slices is worth: multiply-adds, calls, time. `python -m benchmarks.slices`.

Counted for the full model and a 768x512 picture, on tensors without memory: multiply-adds of products and
convolutions (BiWKV's scans, norms and elementwise work left out, as in the published count), and calls of ATen that
compute or move something (views left out; an op of ours is one call, whatever it launches). Each thing kept is switched
off by a subclass of `SliceState` here that does without it. `python -m benchmarks.run slices` times the same variants,
each one's result compared with the published schedule's before.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import records
from benchmarks.counting import Place, labelled
from benchmarks.counting.operations import Operations, without_memory
from benchmarks.measure import Call, Case, Setting, within
from benchmarks.peers import slices as published
from lalic.coder import schedule
from lalic.coder.engines import FLOAT
from lalic.coder.schedule import Engine, PassCoder, SliceState, code_slices
from lalic.config import FULL, SLIM, Config
from lalic.model import LALIC
from lalic.nn.context import SliceStack, pack, unpack

HEIGHT, WIDTH = 512, 768

# Without one thing that is kept


class _Uncached(SliceState):
    """Remembers the modules and the hyper parameters, for what has to be computed from them again."""

    def __init__(self, stack: SliceStack, params: Tensor, engine: Engine = FLOAT):
        self.stack = stack
        super().__init__(stack, params, engine)


class HyperEachPass(_Uncached):
    """A slice's hyper part by itself, once a pass: ten products in place of one."""

    def hyper_parts(self, hyper: Tensor) -> tuple[Tensor, ...]:
        self.hyper = hyper
        return ()

    def hyper_part(self) -> Tensor:
        widths = [own.width for own in self.weights.slices]
        own = self.weights.hyper.weight.split(widths)[self.k]
        return torch.stack([F.linear(colour, own) for colour in self.hyper])


class ChannelEachPass(_Uncached):
    """The channel context's part of the first product once a pass."""

    def hyper_and_channel(self) -> Tensor:
        hyper = self.hyper_part()
        if self.k == 0:
            return hyper
        own = self.weights.slices[self.k].channel
        context = self._by_parity(self.channel_context())
        return hyper + torch.stack([self.engine.linear(colour, own) for colour in context])


class ConvolveAllSlices(_Uncached):
    """A channel context's first convolution over all earlier slices when its turn comes."""

    def add_to_later_contexts(self) -> None:
        pass

    def context_input(self) -> Tensor:
        first = self.stack.channel_context[f"y{self.k}"][0]  # type: ignore[index]
        return first(torch.cat(self._slices, dim=3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DenseSpatial(_Uncached):
    """The spatial context over the full grid and all 25 taps."""

    def spatial_context(self) -> Tensor:
        assert self._anchors is not None
        return self._dense(unpack(self._anchors, 0))

    def _dense(self, image: Tensor) -> Tensor:
        own = self.stack.latent_codec[f"y{self.k}"].context_prediction
        return pack(own(image.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), 1).flatten(1, 2)  # type: ignore[operator]


class SpatialForAnchors(DenseSpatial):
    """That, and as well for the anchors, of zeros, its result replaced by zeros and multiplied."""

    def aggregation(self, x: Tensor, hyper_and_channel: Tensor) -> Tensor:
        if self.parity == 0:
            g = self.stack.groups[self.k]
            x = torch.zeros_like(self._dense(x.new_zeros((self.batch, self.height, self.width, g))))
        return super().aggregation(x, hyper_and_channel)


class FullGrid(_Uncached):
    """The aggregation of both colours in both passes, as the published forward() has it."""

    def aggregation(self, x: Tensor, hyper_and_channel: Tensor) -> Tensor:
        both = torch.cat((hyper_and_channel, self._hyper_and_channel[1 - self.parity]))
        return super().aggregation(torch.cat((x, x)), both)[: self.batch]


class WeightsEachTime(_Uncached):
    """Cut and joined weights made for every picture."""

    def __init__(self, stack: SliceStack, params: Tensor, engine: Engine = FLOAT):
        with mock.patch.object(schedule, "stack_weights", schedule.make_weights):
            super().__init__(stack, params, engine)


VARIANTS: dict[str, type[SliceState]] = {
    "all kept": SliceState,
    "hyper part once a pass": HyperEachPass,
    "channel part once a pass": ChannelEachPass,
    "all earlier slices convolved at once": ConvolveAllSlices,
    "spatial context on the full grid, 25 taps": DenseSpatial,
    "that, and for anchors as well": SpatialForAnchors,
    "aggregation of both colours in both passes": FullGrid,
    "weights prepared for every picture": WeightsEachTime,
}
PUBLISHED, PUBLISHED_FORWARD = "the published schedule", "the published schedule of forward()"


def loop_of(variant: str) -> Callable[..., Tensor]:
    """`code_slices` of a variant, by name."""
    if variant == PUBLISHED:
        return published.code_slices
    if variant == PUBLISHED_FORWARD:
        return partial(published.code_slices, full_grid=True)

    def loop(stack: SliceStack, params: Tensor, coder: PassCoder) -> Tensor:
        return code_slices(VARIANTS[variant](stack, params, FLOAT), coder)

    return loop


# Counting


STEPS = {
    "hyper_parts": "hyper part of the first products",
    "hyper_part": "hyper part of the first products",
    "hyper_and_channel": "channel part of the first products",
    "channel_context": "channel contexts",
    "add_to_later_contexts": "channel contexts",
    "spatial_context": "spatial contexts",
    "aggregation": "aggregation",
}


def _places(model: LALIC, steps: type[SliceState]) -> Iterator[Place]:
    """Parts of the model, and the steps of a variant, as what they count is named."""
    for name in ("g_a", "g_s", "h_a", "h_s"):
        yield getattr(model, name), "forward", name
    stack = model.latent_codec.y
    for module in stack.channel_context.values():  # as the published schedule runs them
        yield module, "forward", "channel contexts"
    for part in stack.latent_codec.values():
        yield part.context_prediction, "forward", "spatial contexts"
        yield part.entropy_parameters, "forward", "aggregation"
    for name, step in STEPS.items():
        yield steps, name, step


@contextlib.contextmanager
def full_model() -> Iterator[LALIC]:
    """The full model without memory, to use inside: its tensors are as on a CPU, which decides how our ops compute."""
    with torch.device("meta"):
        model = LALIC.from_config(FULL).eval()
    with FakeTensorMode(), torch.no_grad():
        without_memory(model)
        yield model


def means_only(k: int, parity: int, scales: Tensor, means: Tensor) -> Tensor:
    """A coder whose symbols are all zero."""
    return means


Counted = dict[str, Any]


def count(what: str, variant: str = "all kept") -> Counted:
    """Multiply-adds and calls of "decompress", "forward" or "slices" (from hyper parameters to y_hat), by part.

    Entropy coding itself, which is no tensor operation, is left out.
    """
    seen, loop = Operations(), loop_of(variant)
    with full_model() as model:
        z = torch.empty(1, FULL.dims[5], HEIGHT // 64, WIDTH // 64)
        params = torch.empty(1, FULL.M, HEIGHT // 16, WIDTH // 16).contiguous(memory_format=torch.channels_last)
        stack = model.latent_codec.y
        if variant != "weights prepared for every picture":
            schedule.stack_weights(stack, FLOAT)
        places = _places(model, VARIANTS.get(variant, SliceState))
        with (
            seen,
            labelled(seen.part, places),
            mock.patch("lalic.model.float_state", lambda stack, params: (stack, params)),
            mock.patch("lalic.model.code_slices", lambda given, coder: loop(*given, coder)),
        ):
            if what == "decompress":
                model.g_s(loop(stack, model.h_s(z), means_only))
            elif what == "forward":
                model(torch.empty(1, 3, HEIGHT, WIDTH))
            else:
                loop(stack, params, means_only)
    whole = seen.sum()
    names = {part: "packing and the rest" if part == "rest" else part for part in seen.parts}
    parts = {names[part]: [found.layers, found.calls] for part, found in seen.parts.items()}
    found = {"what": what, "variant": variant, "macs": whole.layers, "calls": whole.calls}
    return found | {"parts": dict(sorted(parts.items()))}


def count_all() -> list[Counted]:
    """Every row of the table."""
    rows = [count("slices", variant) for variant in (*VARIANTS, PUBLISHED, PUBLISHED_FORWARD)]
    whole = {"decompress": ("all kept", PUBLISHED), "forward": ("all kept", PUBLISHED_FORWARD)}
    return rows + [count(what, variant) for what, variants in whole.items() for variant in variants]


# Timing


@torch.no_grad()
def cases(setting: Setting) -> Iterator[Case]:
    """From hyper parameters to y_hat, symbols known: slim at 768x512, the full model at 256x256 and 768x512."""
    sizes: list[tuple[Config, int, int]] = [(SLIM, HEIGHT, WIDTH), (FULL, 256, 256), (FULL, HEIGHT, WIDTH)]
    for config, height, width in [(SLIM, 64, 128)] if setting.quick else sizes:
        torch.manual_seed(0)
        model = LALIC.from_config(config).eval().to(setting.device)
        stack = model.latent_codec.y
        params = torch.randn(1, config.hyper_width, height // 16, width // 16, device=setting.device)
        params = params.contiguous(memory_format=torch.channels_last)
        expected = published.code_slices(stack, params, means_only)

        def check(got: Tensor, expected: Tensor = expected) -> None:
            # float32 through some dozen layers, five slices deep; means are of order one: 1e-6 as measured.
            within("y_hat", got, expected, 1e-4 * max(1.0, float(expected.abs().max())))

        def call(variant: str, stack: SliceStack = stack, params: Tensor = params) -> Callable[[], Tensor]:
            loop = loop_of(variant)
            return torch.no_grad()(lambda: loop(stack, params, means_only))

        yield Case(
            f"{config.name} {width}x{height}",
            (
                *(Call(variant, call(variant), check) for variant in VARIANTS),
                Call(PUBLISHED_FORWARD, call(PUBLISHED_FORWARD), check),
                Call(PUBLISHED, call(PUBLISHED)),
            ),
        )


# The command


def table(rows: Sequence[Counted]) -> Iterator[str]:
    """The counts as Markdown, as lalic/coder/README.md has them."""
    yield "| from hyper parameters to latents | GMAC | ATen calls |"
    yield "|---|---|---|"
    for row in rows:
        if row["what"] == "slices":
            yield f"| {row['variant']} | {row['macs'] / 1e9:.3f} | {row['calls']} |"
    yield ""
    for what in ("decompress", "forward"):
        ours, published = (row for row in rows if row["what"] == what)
        yield f"| {what}, by part | GMAC | published | ATen calls | published |"
        yield "|---|---|---|---|---|"
        for part in sorted(set(ours["parts"]) | set(published["parts"])):
            (a, b), (c, d) = (row["parts"].get(part, (0, 0)) for row in (ours, published))
            yield f"| {part} | {a / 1e9:.3f} | {c / 1e9:.3f} | {b} | {d} |"
        yield (
            f"| **all** | **{ours['macs'] / 1e9:.2f}** | **{published['macs'] / 1e9:.2f}** "
            f"| **{ours['calls']}** | **{published['calls']}** |"
        )
        yield ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns 0; usage errors exit with 2."""
    options = records.parser("slices", "What keeping results is worth.", where=False).parse_args(argv)
    counted = count_all()
    print("\n".join(table(counted)))
    records.keep(records.counted(op="slices", counted=counted), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
