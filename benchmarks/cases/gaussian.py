"""Cases of the Gaussian likelihood, at a pass of the slices and at a training batch, beside torch's composition.

Scales and means are halves of one tensor, as a network gives them. On CUDA the yardstick to look at is the share of the
copy bandwidth; on a CPU it is what autograd makes of the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import lalic_kernels
from benchmarks.cases import HEIGHT, WIDTH, case_name, forward_call, generator_of
from benchmarks.measure import Call, Case, Setting, WrongResult, bandwidth_metrics, within
from lalic.config import FULL
from lalic_kernels.gaussian.reference import gaussian_likelihood as reference
from lalic_kernels.op import bytes_of, nbytes

Arguments = tuple[Tensor, Tensor, Tensor]


def cases(setting: Setting) -> Iterator[Case]:
    """Forward and backward; the last slice's pass of a 768x512 picture, and all latents of 16 crops of 256x256."""
    last_pass = (1, HEIGHT // 16, WIDTH // 32, FULL.groups[-1])
    for size in ((1, 2, 3, 5),) if setting.quick else (last_pass, (16, 16, 16, FULL.M)):
        arguments = _arguments(size, setting)
        upstream = torch.randn(*size, generator=generator_of(setting), device=setting.device)
        ours = forward_call("gaussian_likelihood", reference, arguments)
        theirs = Call("torch's composition", partial(reference, *arguments))
        yield Case(case_name("forward", size, torch.float32), (ours, theirs))
        one, two, three = (x.detach().requires_grad_() for x in arguments)
        leaves = (one, two, three)
        # The forward's traffic, then the arguments and the upstream read, and three gradients written.
        moved = bytes_of(ours.name, *arguments) + nbytes(upstream) + 2 * nbytes(*arguments)
        run = partial(gradients_of, lalic_kernels.gaussian_likelihood, leaves, upstream)
        check, metrics = partial(check_gradients, arguments, upstream), bandwidth_metrics(moved, setting.device)
        theirs = Call(theirs.name, partial(gradients_of, reference, leaves, upstream))
        yield Case(
            case_name("forward and backward", size, torch.float32), (Call(ours.name, run, check, metrics), theirs)
        )


def _arguments(size: tuple[int, ...], setting: Setting) -> Arguments:
    """y, scales, means: scales as of a trained model, from below the bound to a few units."""
    generator = generator_of(setting)
    normal = torch.randn(*size[:-1], 3 * size[-1], generator=generator, device=setting.device)
    parameters = normal[..., : 2 * size[-1]].contiguous()
    scales, means = parameters.chunk(2, dim=-1)
    scales.mul_(0.75).sub_(1).exp_().sub_(0.02)
    return (means + scales * normal[..., 2 * size[-1] :]).contiguous(), scales, means


def gradients_of(function: Callable[..., Tensor], leaves: Arguments, upstream: Tensor) -> tuple[Tensor, ...]:
    """Forward and backward."""
    return torch.autograd.grad(function(*leaves), leaves, upstream)


def check_gradients(arguments: Arguments, upstream: Tensor, got: tuple[Tensor, ...]) -> None:
    """Each gradient against float64's: twice what the definition is off in float32, and a few roundings."""

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = tuple(x.detach().to(dtype).requires_grad_() for x in arguments)
        return torch.autograd.grad(reference(*leaves), leaves, upstream.to(dtype))

    if len(got) != 3:
        raise WrongResult(f"gradients: there are {len(got)}, expected 3")
    for name, found, want, own in zip(
        ("y", "scales", "means"), got, gradients(torch.float64), gradients(torch.float32), strict=True
    ):
        error = (own.double() - want).abs().max().item()
        floor = 4 * torch.finfo(torch.float32).eps * want.abs().max().item()
        within(f"gradient of {name}", found, want, max(2 * error, floor))
