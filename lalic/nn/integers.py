"""Converted checkpoints: the entropy model's matrices as the integers that coding computes with.

A matrix `name` of the entropy model (h_s, slices, channel contexts) is kept as three entries:

    name.integers    int16, the matrix's shape, within +-8191
    name.exponents   int8 (outputs, parts): a weight is integer 2^(exponent - 12)
    name.widths      int32 (parts,): how many inputs each part has

Parts are what is a product by itself (`lalic.coder.weights`); most matrices have one. A folded 5x5 shift stands under
the name of its 5x5 branch, for its branches are not needed any more. Everything else is plain: vectors and the prior
float32, tables int32, and g_a, h_a, g_s in half precision where that loses nothing. `entropy_digest` holds the SHA-256
of the exact entropy model, which a reader compares.

Written back to floats, which is exact, such weights give the same integers again: a converted file and its original
make the same model of what is coded, and differ in `forward` by the rounding to 13 bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lalic.config import Config
from lalic.errors import CheckpointError
from lalic.nn.blocks import OmniShift
from lalic.nn.checkpoints import DIGEST, matters
from lalic_kernels.exact.numbers import BITS
from lalic_kernels.exact.quantise import power_of_two, quantise

SUFFIXES = (".integers", ".exponents", ".widths")
_ENTROPY = ("latent_codec.y.", "latent_codec.hyper.h_s.")
_TRANSFORMS = ("g_a.", "g_s.", "latent_codec.hyper.h_a.")
_TRANSPOSED = re.compile(r"latent_codec\.hyper\.h_s\.\d+\.weight")
_CONTEXT = re.compile(r"latent_codec\.y\.channel_context\.y(\d+)\.0\.weight")
_MIX = re.compile(r"latent_codec\.y\.latent_codec\.y(\d+)\.entropy_parameters\.0\.mix\.weight")
_BRANCH = re.compile(r"(.*\.omni_shift\.)(alpha|conv1x1\.weight|conv3x3\.weight)")


def pack(model: nn.Module, config: Config, digest: str) -> dict[str, Tensor]:
    """State dict of a converted checkpoint. digest: hex, of the model's exact entropy model."""
    shifts = {f"{name}.conv5x5.weight": m.kernel() for name, m in model.named_modules() if isinstance(m, OmniShift)}
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not matters(name):
                continue
            value = value.detach().cpu()
            if value.is_floating_point():
                value = value.float()
            if not name.startswith(_ENTROPY):
                half = value.half() if value.is_floating_point() and name.startswith(_TRANSFORMS) else value
                found[name] = half if torch.equal(half.to(value.dtype), value) else value
            elif value.ndim < 2 and not _BRANCH.fullmatch(name):
                found[name] = value
            elif not _BRANCH.fullmatch(name):
                if name in shifts:
                    value = shifts[name].detach().cpu().float().unsqueeze(1)
                elif name.endswith("context_prediction.weight"):
                    value = value * model.get_buffer(name.removesuffix("weight") + "mask").cpu()
                found |= dict(zip((name + s for s in SUFFIXES), _integers(name, value, config), strict=True))
    found[DIGEST] = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)
    return {name: value.contiguous() for name, value in found.items()}


def _widths(name: str, value: Tensor, config: Config) -> Sequence[int]:
    if match := _CONTEXT.fullmatch(name):
        return config.groups[: int(match[1])]
    if match := _MIX.fullmatch(name):
        seen = 2 * config.groups[int(match[1])]
        return (seen, seen, config.hyper_width) if int(match[1]) else (seen, config.hyper_width)
    return (value.shape[1],)


def _integers(name: str, value: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    rows = value.transpose(0, 1) if _TRANSPOSED.fullmatch(name) else value
    widths = _widths(name, rows, config)
    parts = [quantise(part, range(1, value.ndim)) for part in rows.split(list(widths), dim=1)]
    q = torch.cat([q for q, _ in parts], dim=1).to(torch.int16)
    exponents = torch.cat([e.flatten(1) for _, e in parts], dim=1).to(torch.int8)
    return (q.transpose(0, 1) if rows is not value else q), exponents, torch.tensor(widths, dtype=torch.int32)


def unpack(sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The float state dict behind a converted one; any other is returned as it is.

    Raises ``CheckpointError`` where integers, exponents and widths do not belong together.
    """
    found = {name: value for name, value in sd.items() if not name.endswith(SUFFIXES) and name != DIGEST}
    for name in sd:
        if name.endswith(SUFFIXES[0]):
            name = name.removesuffix(SUFFIXES[0])
            try:
                found[name] = _floats(name, *(sd[name + suffix] for suffix in SUFFIXES))
            except (KeyError, RuntimeError, IndexError) as error:
                raise CheckpointError(
                    f"the integers of {name} cannot be read: {' '.join(str(error).split())}"
                ) from error
            if name.endswith(".omni_shift.conv5x5.weight"):
                prefix, channels = name.removesuffix("conv5x5.weight"), found[name].shape[0]
                found[prefix + "alpha"] = torch.tensor([0.0, 0.0, 0.0, 1.0])
                found[prefix + "conv1x1.weight"] = torch.zeros(channels, 1, 1, 1)
                found[prefix + "conv3x3.weight"] = torch.zeros(channels, 1, 3, 3)
    return found


def _floats(name: str, integers: Tensor, exponents: Tensor, widths: Tensor) -> Tensor:
    rows = integers.transpose(0, 1) if _TRANSPOSED.fullmatch(name) else integers
    scales = power_of_two(exponents.to(torch.int32) - (BITS - 1)).repeat_interleave(widths.long(), dim=1)
    # A product with a power of two: exact.
    value = rows.float() * scales.reshape(*scales.shape, *[1] * (rows.ndim - 2))
    return value.transpose(0, 1).contiguous() if rows is not integers else value
