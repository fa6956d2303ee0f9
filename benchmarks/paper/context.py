"""What predicting the latents costs, slice by slice, by each context model. `python -m benchmarks.paper.context`.

Counted, on tensors without memory, for the latents of one 768x512 picture: parameters, multiply-adds (half of what
torch's counter and our ops' formulas say), ATen calls (views left out, an op of ours is one). A slice is its channel
context, its spatial context and its two aggregations at half the positions; hyper parameters' part is in slice 0.

The published network's size (`FAT`) alone as well: with the cache, recomputing the slices so far, and recomputing all
slices each time, as the published decoder does. `python -m benchmarks.run context` times each slice of
each model, and the cache against recomputing; results are compared before.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import records
from benchmarks.counting import operations
from benchmarks.counting.operations import parameters, without_memory
from benchmarks.measure import Call, Case, Setting, within
from benchmarks.paper.channel_transformer import FAT, ChannelTransformer, TransformerState
from benchmarks.paper.context_models import CONTEXT_MODELS, ContextModel, TransformerContext
from lalic.config import FULL, SLIM, Config
from lalic.nn.context import pack, unpack

SIZE = (32, 48)  # latents of 768x512 pixels, landscape
MODELS: tuple[tuple[str, dict[str, int]], ...] = (
    ("conv", {}), ("conv-plus", {"kernel": 3}), ("conv-plus", {"kernel": 5}), ("conv-plus", {"kernel": 7}),
    ("rwkv", {}), ("transformer", {}),
)  # fmt: skip

Counted = dict[str, Any]


def count(call: Callable[[], Any]) -> tuple[int, int, Any]:
    """Multiply-adds, ATen calls, and the result of a call."""
    found, result = operations.count(call)
    return found.formula // 2, found.calls, result


def count_slices(model: Any, hyper: Tensor, y: Tensor, step: Callable[..., Any]) -> tuple[list[tuple[int, int]], Any]:
    """Counts of step(state, k, slice k - 1, slice k), those of the start in the first; and the state at the end."""
    macs, calls, state = count(lambda: model.start(hyper))
    slices, previous = [], None
    for k, part in enumerate(y.split(list(model.groups), dim=1)):
        slices.append(count(functools.partial(step, state, k, previous, part))[:2])
        previous = part
    return [(slices[0][0] + macs, slices[0][1] + calls), *slices[1:]], state


def predict(
    model: ContextModel, hyper: Tensor, state: Any, k: int, previous: Tensor | None, latents: Tensor
) -> list[Tensor]:
    """What a decoder computes for slice k, its symbols known: latents (B, g, h, w). Parameters of both passes."""
    context = model.channel(state, previous)
    rest = [*([] if context is None else [context]), hyper]
    anchors = unpack(pack(latents.permute(0, 2, 3, 1), 0), 0).permute(0, 3, 1, 2)
    found = []
    for parity, inputs in ((0, rest), (1, [model.spatial(k, anchors), *rest])):
        packed = torch.cat([pack(part.permute(0, 2, 3, 1), parity) for part in inputs], dim=3)
        found.append(model.aggregate(k, packed.flatten(1, 2)))
    return found


def count_model(name: str, options: dict[str, int]) -> Counted:
    """A context model of the full configuration."""
    with torch.device("meta"):
        model = CONTEXT_MODELS[name](FULL, **options)
    with FakeTensorMode(), torch.no_grad():
        without_memory(model)
        hyper, y = torch.empty(1, FULL.M, *SIZE), torch.empty(1, FULL.M, *SIZE)
        step = functools.partial(predict, model, hyper)
        slices, state = count_slices(model, hyper, y, step)
    found = row(label_of(name, options), parameters(model), slices)
    if isinstance(state, TransformerState):
        found["cache MiB"] = state.bytes() / 2**20
    return found


def label_of(name: str, options: dict[str, int]) -> str:
    """The name of a context model with its options."""
    return " ".join([name, *(f"{key} {value}" for key, value in options.items())])


def row(label: str, held: int, slices: Sequence[tuple[int, int]]) -> Counted:
    """A line of the table."""
    return {
        "model": label,
        "parameters": held,
        "macs": [macs for macs, _ in slices],
        "calls": [calls for _, calls in slices],
    }


def count_transformer() -> list[Counted]:
    """The published size alone, scales and means and correction of five slices."""
    with torch.device("meta"):
        model = ChannelTransformer(FAT)
    with FakeTensorMode(), torch.no_grad():
        without_memory(model)
        hyper, y = torch.empty(1, FAT.hyper, *SIZE), torch.empty(1, sum(FAT.groups), *SIZE)
        cached, state = count_slices(model, hyper, y, lambda state, k, previous, part: model.step(state, previous))
        prefix = [count(lambda k=k: model(y, hyper, slices=k + 1))[:2] for k in range(len(FAT.groups))]  # type: ignore[misc]
        whole = count(lambda: model(y, hyper))[:2]
    held = parameters(model)
    return [
        row("ChannelTransformer, FAT's size, cached", held, cached) | {"cache MiB": state.bytes() / 2**20},
        row("recomputing the slices so far", held, prefix),
        row("recomputing all slices each time", held, [whole] * len(FAT.groups)),
    ]


# Timing


class Subject:
    """A context model with latents to predict, each slice as often as wanted."""

    def __init__(self, name: str, options: dict[str, int], config: Config, size: tuple[int, int], device: torch.device):
        torch.manual_seed(0)
        self.label = label_of(name, options)
        self.model = CONTEXT_MODELS[name](config, **options).to(device).eval().requires_grad_(False)
        self.hyper = torch.randn(1, config.hyper_width, *size, device=device)
        self.slices = torch.randn(1, config.M, *size, device=device).split(list(config.groups), dim=1)
        self.state = self.model.start(self.hyper)
        for k in range(len(self.slices)):  # so that caches are full
            self.predict(k)

    @torch.no_grad()
    def predict(self, k: int) -> list[Tensor]:
        """Slice k, as if it were the next."""
        self.state.next = k
        if isinstance(self.state, TransformerState):
            for cache in self.state.caches:
                cache.filled = k
        else:
            self.state.slices[:] = self.slices[: max(0, k - 1)]
        return predict(self.model, self.hyper, self.state, k, self.slices[k - 1] if k else None, self.slices[k])

    @functools.cached_property
    def truth(self) -> list[list[Tensor]]:
        """The same in float64, slice by slice from the start, a transformer's channel contexts all at once, masked."""
        model, hyper = copy.deepcopy(self.model).double(), self.hyper.double()
        parts = [part.double() for part in self.slices]
        state = model.start(hyper)
        if isinstance(model, TransformerContext):
            whole = [x.split(list(model.groups), dim=1) for x in model.transformer(torch.cat(parts, dim=1), hyper)[:2]]
            contexts = iter([torch.cat(pair, dim=1) for pair in zip(*whole, strict=True)])
            model.channel = lambda state, previous: next(contexts)  # type: ignore[method-assign]
        return [predict(model, hyper, state, k, parts[k - 1] if k else None, part) for k, part in enumerate(parts)]

    def check(self, k: int, found: list[Tensor]) -> None:
        """Raises ``WrongResult``: float32 through a few dozen products; parameters are near 0.2."""
        for one, want in zip(found, self.truth[k], strict=True):
            within(self.label, one, want, 1e-4)


def model_cases(setting: Setting) -> Iterator[Case]:
    """A case a slice: its prediction by each context model; the convolutions, which are torch's, are the yardstick."""
    config, size = (SLIM, (8, 12)) if setting.quick else (FULL, SIZE)
    subjects = [Subject(name, options, config, size, setting.device) for name, options in MODELS]
    for k in range(len(config.groups)):
        calls = [
            Call(
                subject.label,
                functools.partial(subject.predict, k),
                None if subject.label == "conv" else functools.partial(subject.check, k),
            )
            for subject in subjects
        ]
        yield Case(f"prediction of slice {k}", tuple(calls))


def cases(setting: Setting) -> Iterator[Case]:
    """The prediction of each slice by each model, then each step of the transformer."""
    yield from model_cases(setting)
    yield from transformer_cases(setting)


def transformer_cases(setting: Setting) -> Iterator[Case]:
    """A case a slice: a step with the cache against recomputing; the published size, or a tiny one if quick."""
    config = replace(FAT, width=32, heads=2, depth=2, hyper=16) if setting.quick else FAT
    size = (8, 12) if setting.quick else SIZE
    torch.manual_seed(0)
    model = ChannelTransformer(config).to(setting.device).requires_grad_(False)
    hyper = torch.randn(1, config.hyper, *size, device=setting.device)
    y = torch.randn(1, sum(config.groups), *size, device=setting.device)
    parts: list[Tensor | None] = [None, *y.split(list(config.groups), dim=1)]
    state = model.start(hyper)
    for k, g in enumerate(config.groups):
        first = sum(config.groups[:k])

        def step(k: int = k) -> tuple[Tensor, ...]:
            state.next = k  # the same step again, into the same places of the cache
            for cache in state.caches:
                cache.filled = k
            return model.step(state, parts[k])

        def check(got: tuple[Tensor, ...], first: int = first, g: int = g) -> None:
            for one, want in zip(got, model(y, hyper), strict=True):
                # float32 through a few dozen products; outputs are near 0.2, so an error in the cache is far above.
                within("a step with the cache", one, want[:, first : first + g], 1e-4)

        yield Case(
            f"slice {k}",
            (
                Call("step with the cache", step, check),
                Call("recomputing the slices so far", lambda k=k: model(y, hyper, slices=k + 1)),  # type: ignore[misc]
                Call("recomputing all slices", lambda: model(y, hyper)),
            ),
        )


# The command


def markdown(counted: Sequence[Counted]) -> str:
    """The counts as the table of docs/paper.md."""
    table = ["| model | M parameters | GMAC | by slice | calls | cache MiB |", "|---|---|---|---|---|---|"]
    for found in counted:
        macs = [f"{x / 1e9:.2f}" for x in (sum(found["macs"]), *found["macs"])]
        cache = f"{found['cache MiB']:.0f}" if "cache MiB" in found else ""
        figures = [found["model"], f"{found['parameters'] / 1e6:.2f}", macs[0], " ".join(macs[1:])]
        table.append(f"| {' | '.join([*figures, str(sum(found['calls'])), cache])} |".replace("|  |", "| |"))
    return "\n".join(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table. Returns 0; usage errors exit with 2."""
    options = records.parser("paper.context", "Cost of the context models.", where=False).parse_args(argv)
    counted = [count_model(*model) for model in MODELS] + count_transformer()
    print(markdown(counted))
    records.keep(records.counted(op="context", counted=counted), options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
