"""Checkpoints: key names and wrappers of published files, the configuration of a state dict, converted checkpoints.

A converted checkpoint has the matrices of the entropy model (h_s, slices, channel contexts) as the integers that coding
computes with, a matrix `name` as three entries:

    name.integers    int16, the matrix's shape, within +-8191
    name.exponents   int8 (outputs, parts): a weight is integer 2^(exponent - 12)
    name.widths      int32 (parts,): number of inputs of each part

A part is what coding multiplies by itself (`lalic.coder.schedule`); most matrices have one. A folded 5x5 shift has the
name of its 5x5 branch; the other branches are left out. Everything else is plain: vectors and the prior float32, tables
int32, and g_a, h_a, g_s in half precision if that loses nothing. `entropy_digest` is the SHA-256 of the exact entropy
model, which loading compares.

The integers convert to floats exactly, and these give the same integers again. So a converted file and its original
code the same files, and differ in `forward` by the rounding to 13 bits.
"""

from __future__ import annotations

import itertools
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lalic.config import FULL, SLIM, Config
from lalic.errors import CheckpointError
from lalic.files import LFS_POINTER, LFS_WORDS, write_atomic
from lalic.nn.blocks import OmniShift
from lalic.nn.context import aggregation_ramp
from lalic_kernels import exact

if TYPE_CHECKING:
    from lalic.model import LALIC

DIGEST = "entropy_digest"  # entry of a converted checkpoint
PRIOR_TABLES = ("_offset", "_quantized_cdf", "_cdf_length")
TABLE_BUFFERS = (*PRIOR_TABLES, "scale_table")
_PRIOR = "latent_codec.hyper.entropy_bottleneck."
_ALIASED = "latent_codec.hyper."  # h_a and h_s have names with this prefix and without
_WRAPPERS = (
    "state_dict", "model_state_dict", "model", "network", "net", "module", "params", "weights",
    "ema", "state_dict_ema", "ema_model", "params_ema",
)  # fmt: skip
_COUNTER = "n_averaged"  # torch.optim.swa_utils.AveragedModel has it beside the model
_MARK = "g_a.0.weight"  # what every LALIC state dict has
_RENAMES = (
    # Of torch.compile, DataParallel and its kin, and wrappers for checkpointing and sharding, around a model or a part.
    (re.compile(r"(?<![^.])(_orig_mod|module|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."), ""),
    (re.compile(r"\.downsample\."), ".skip."),
    (re.compile(r"entropy_bottleneck\.matrices\.(\d+)$"), r"entropy_bottleneck._matrix\1"),
    (re.compile(r"entropy_bottleneck\.biases\.(\d+)$"), r"entropy_bottleneck._bias\1"),
    (re.compile(r"entropy_bottleneck\.factors\.(\d+)$"), r"entropy_bottleneck._factor\1"),
)

SUFFIXES = (".integers", ".exponents", ".widths")
_ENTROPY = ("latent_codec.y.", "latent_codec.hyper.h_s.")
_TRANSFORMS = ("g_a.", "g_s.", "latent_codec.hyper.h_a.")
_TRANSPOSED = re.compile(r"latent_codec\.hyper\.h_s\.\d+\.weight")
_CONTEXT = re.compile(r"latent_codec\.y\.channel_context\.y(\d+)\.0\.weight")
_MIX = re.compile(r"latent_codec\.y\.latent_codec\.y(\d+)\.entropy_parameters\.0\.mix\.weight")
_BRANCH = re.compile(r"(.*\.omni_shift\.)(alpha|conv1x1\.weight|conv3x3\.weight)")


def normalise(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a checkpoint, without wrappers of training scripts and with this package's key names.

    Integers of a converted checkpoint become floats, exactly. Raises ``CheckpointError`` if it has no state dict.
    """
    sd = _unpacked(unwrap(checkpoint))
    return sd | {other: sd[name] for other, name in second_names(sd).items() if other.startswith(_ALIASED)}


def second_names(sd: Mapping[str, Any]) -> dict[str, str]:
    """Names of h_a and h_s that a state dict leaves out, and the name under which it has the same tensor."""
    names = {}
    for name in sd:
        if name.startswith(("h_a.", "h_s.")):
            names[_ALIASED + name] = name
        elif name.startswith((_ALIASED + "h_a.", _ALIASED + "h_s.")):
            names[name[len(_ALIASED) :]] = name
    return {other: name for other, name in names.items() if other not in sd}


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, with this package's key names.

    Around it there may be dicts, as training scripts write them (`_WRAPPERS`, the first that has a model; averaged
    weights come last), and in front of each name a prefix, such as that of a module which holds the model: then other
    names are not the model's. Raises ``CheckpointError`` if it has no state dict.
    """
    checkpoint = _state_dict_in(checkpoint) or checkpoint
    result: dict[str, Tensor] = {}
    for name, value in checkpoint.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"not a state dict: {str(name)[:60]!r} holds {type(value).__name__}, expected a tensor"
            )
        if name != _COUNTER:
            result[_plain(name)] = value
    prefixes = [name.removesuffix(_MARK) for name in result if name.endswith("." + _MARK)]
    if _MARK in result or not prefixes:
        return result
    prefix = min(prefixes, key=lambda p: ("ema" in p, "avg" in p, len(p)))
    return {name.removeprefix(prefix): value for name, value in result.items() if name.startswith(prefix)}


def _plain(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _state_dict_in(checkpoint: Mapping[str, Any], depth: int = 3) -> Mapping[str, Any] | None:
    """The mapping itself if it has a model's weights, else the first inside it, by the order of `_WRAPPERS`."""
    if any("g_a." in str(name) and _plain(str(name)).endswith(_MARK) for name in checkpoint):
        return checkpoint
    inner = [name for name in _WRAPPERS if isinstance(checkpoint.get(name), Mapping)]
    found = (_state_dict_in(checkpoint[name], depth - 1) for name in inner if depth)
    return next((each for each in found if each is not None), None)


def matters(name: str) -> bool:
    """Whether a state-dict entry is a weight: not a second name, a derived kernel or a published constant."""
    derived = (
        "conv5x5_reparam" in name or "gaussian_conditional" in name or name.endswith((".mask", ".bound", ".target"))
    )
    return not derived and not name.startswith(("h_a.", "h_s."))


def complete(sd: dict[str, Tensor], model: LALIC) -> dict[str, Tensor]:
    """``sd`` with the entries that files may leave out: one copy of h_a and h_s, derived kernels, constants, tables.

    Its ``conv5x5_reparam`` kernels are replaced by the model's: they can be out of date, and are never used.
    """
    full = sd | {other: sd[name] for other, name in second_names(sd).items()}
    own = model.state_dict()
    if any(
        value.is_meta and not matters(name) for name, value in own.items()
    ):  # what is to be loaded has no such value
        with torch.device("cpu"):
            own = type(model).from_config(model.config).state_dict()
    for name, value in own.items():
        table = name.rsplit(".", 1)[-1] in TABLE_BUFFERS
        if "conv5x5_reparam" in name:
            full[name] = value
        elif name not in full and (table or not matters(name)) and not name.startswith(("h_a.", "h_s.")):
            full[name] = value.new_empty(0) if table else value
    return full


def infer_config(sd: Mapping[str, Tensor]) -> Config:
    """The configuration with these shapes. sd: from `normalise`. Raises ``CheckpointError`` if there is none."""
    try:
        return _infer(sd)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"not a LALIC state dict: {error}") from error


def _infer(sd: Mapping[str, Tensor]) -> Config:
    def convolutions(prefix: str) -> list[int]:
        matches = [re.fullmatch(rf"{re.escape(prefix)}(\d+)\.bias", name) for name in sd]
        return sorted(int(m[1]) for m in matches if m)

    g_a, h_a = convolutions("g_a."), convolutions(_ALIASED + "h_a.")
    if len(g_a) != 4 or len(h_a) != 2:
        raise ValueError(f"expected 4 convolutions in g_a and 2 in h_a, found {len(g_a)} and {len(h_a)}")
    dims = [sd[f"g_a.{i}.weight"].shape[0] for i in g_a] + [sd[f"{_ALIASED}h_a.{i}.weight"].shape[0] for i in h_a]
    depths = [b - a - 1 for a, b in itertools.pairwise(g_a)] + [h_a[1] - h_a[0] - 1]
    groups: list[int] = []
    while (name := f"latent_codec.y.latent_codec.y{len(groups)}.context_prediction.weight") in sd:
        groups.append(sd[name].shape[1])
    context_depth, context_rate = 2, 8
    if len(groups) > 1:
        prefix = "latent_codec.y.channel_context.y1."
        context_depth = convolutions(prefix)[-1] - 1
        hidden = sd[f"{prefix}1.ffn.key.weight"].shape
        context_rate = hidden[0] // hidden[1]
    gains = sd.get("gains.log_gains")
    width = sd[f"{_ALIASED}h_s.{h_a[1]}.bias"].shape[0]  # h_s has its convolutions where h_a has them
    shape: dict[str, Any] = {
        "M": dims[3], "dims": tuple(dims), "depths": tuple(depths), "groups": tuple(groups),
        "context_depth": context_depth, "context_rate": context_rate, "qualities": 0 if gains is None else len(gains),
        "context_width": 0 if width == dims[3] else width,
        "kernels": tuple(sd[f"g_a.{i}.weight"].shape[3] for i in g_a),
    }  # fmt: skip
    networks = [_aggregation(sd, k) for k in range(len(groups))]
    for config in _candidates(shape, networks):
        if all(widths == aggregation_ramp(config, widths[0], widths[-1]) for widths in networks):
            return config
    raise ValueError(f"no configuration gives the widths of the entropy-parameter networks: {networks}")


def _aggregation(sd: Mapping[str, Tensor], k: int) -> list[int]:
    """Widths of slice k's entropy-parameter network: inputs, between its blocks, outputs."""
    name = f"latent_codec.y.latent_codec.y{k}.entropy_parameters.{{}}.mix.weight"
    widths = [sd[name.format(0)].shape[1]]
    while (weight := sd.get(name.format(2 * (len(widths) - 1)))) is not None:
        widths.append(weight.shape[0])
    return widths


def _candidates(shape: Mapping[str, Any], networks: list[list[int]]) -> Iterator[Config]:
    """Configurations that may have these networks: the named ones, then ramps for each N, then given widths.

    N is half of a width, the smallest first: of the width that a ramp was raised to, or, if none was raised, the
    largest N that raises none.
    """
    for named in (FULL, SLIM):
        config = Config(name="custom", N=named.N, aggregation_widths=named.aggregation_widths, **shape).named()
        if config.name == named.name:
            yield config
    for N in sorted({w // 2 for widths in networks for w in widths[1:-1] if w > 1}):
        yield Config(name="custom", N=N, **shape)
    if networks and (inner := tuple(networks[0][1:-1])):
        yield Config(name="custom", N=max(1, min(inner) // 2), aggregation_widths=inner, **shape)


class Uninitialised(TorchFunctionMode):
    """In this context modules are made without drawing initial weights, for a model that is loaded next.

    The numbers that torch draws after it are those it would have drawn before.
    """

    def __enter__(self) -> Uninitialised:
        self._generator = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        torch.set_rng_state(self._generator)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def load_into(model: LALIC, sd: Mapping[str, Tensor], strict: bool = True) -> None:
    """``model.load_state_dict`` that raises ``CheckpointError``, one sentence, in place of torch's list."""
    try:
        model.load_state_dict(sd, strict=strict)
    except RuntimeError as error:
        first = " ".join(str(error).split("\n", 2)[1:2]).strip()[:300]
        raise CheckpointError(f"the state dict does not fit the model: {first}") from error


def read(path: str | os.PathLike[str], *, mapped: bool = False) -> dict[str, Any]:
    """Contents of a .pth or .safetensors checkpoint, on the CPU. No code in the file is run.

    mapped: tensors may lie in the file, not in memory of the process: to be copied soon, and then dropped.
    Raises ``CheckpointError`` when the file is missing, is no checkpoint, or holds pickled objects beyond tensors.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            raise CheckpointError(f"{path}: this is no checkpoint, but {LFS_WORDS}")
        if start[8:9] == b"{" or os.fspath(path).endswith(".safetensors"):  # the name may have the wrong ending
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipfile.is_zipfile(path))
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # torch and safetensors raise many types for a damaged or foreign file
        reason = str(error).strip().split("\n")[0][:200]
        if isinstance(
            error, pickle.UnpicklingError
        ):  # torch's words are many, and name the way to load it nevertheless
            if found := re.search(r"(?:GLOBAL|but got|function|class) (?:<class ')?([\w.]+)", str(error)):
                raise CheckpointError(
                    f"{path}: cannot be read as a checkpoint: it holds an object of Python, {found[1]}, which could "
                    f"run code when it is loaded; save the state dict alone: torch.save(model.state_dict(), path)"
                ) from error
            reason = "it is none, or holds more than tensors"
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {reason})") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path}: expected a dict with a state dict, got {type(loaded).__name__}")
    return dict(loaded)


def save_weights(model: LALIC, path: str | os.PathLike[str]) -> None:
    """Write the weights as safetensors: matrices in half precision, vectors, prior and gains in float32, tables int32.

    `lalic.load` reads the file. It is written whole or not at all.
    """
    tensors = {}
    for name, value in model.state_dict().items():
        if matters(name):
            value = value.detach().cpu()
            half = value.is_floating_point() and value.ndim >= 2 and not name.startswith((_PRIOR, "gains."))
            tensors[name] = (value.half() if half else value).contiguous()
    save_tensors(tensors, path)


def save_tensors(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], overwrite: bool = True) -> None:
    """Write a safetensors file, whole or not at all. Raises ``FileExistsError`` for one that must not be replaced."""
    from safetensors.torch import save

    write_atomic(path, save(dict(tensors)), overwrite=overwrite)


# Converted checkpoints


def convert(model: LALIC, digest: str) -> dict[str, Tensor]:
    """State dict of a converted checkpoint. digest: of the model's exact entropy model, hex."""
    shifts = {f"{name}.conv5x5.weight": m.kernel() for name, m in model.named_modules() if isinstance(m, OmniShift)}
    converted: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in model.state_dict().items():
            entropy = name.startswith(_ENTROPY)
            if not matters(name) or (entropy and _BRANCH.fullmatch(name)):
                continue
            value = value.detach().cpu()
            if value.is_floating_point():
                value = value.float()
            if not entropy:
                half = value.half() if value.is_floating_point() and name.startswith(_TRANSFORMS) else value
                converted[name] = half if torch.equal(half.to(value.dtype), value) else value
            elif value.ndim < 2:
                converted[name] = value
            else:
                if name in shifts:
                    value = shifts[name].detach().cpu().float().unsqueeze(1)
                elif name.endswith("context_prediction.weight"):
                    value = value * model.get_buffer(name.removesuffix("weight") + "mask").cpu()
                entries = _integers(name, value, model.config)
                converted |= dict(zip((name + s for s in SUFFIXES), entries, strict=True))
    converted[DIGEST] = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8)
    return {name: value.contiguous() for name, value in converted.items()}


def _widths(name: str, value: Tensor, config: Config) -> Sequence[int]:
    """Numbers of inputs of the matrix's parts."""
    if match := _CONTEXT.fullmatch(name):
        return config.groups[: int(match[1])]
    if match := _MIX.fullmatch(name):
        spatial = channel = 2 * config.groups[int(match[1])]
        return (spatial, channel, config.hyper_width) if int(match[1]) else (spatial, config.hyper_width)
    return (value.shape[1],)


def _integers(name: str, value: Tensor, config: Config) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, exponents and widths of a matrix."""
    rows = value.transpose(0, 1) if _TRANSPOSED.fullmatch(name) else value
    widths = _widths(name, rows, config)
    parts = [exact.quantise(part, range(1, value.ndim)) for part in rows.split(list(widths), dim=1)]
    q = torch.cat([q for q, _ in parts], dim=1).to(torch.int16)
    exponents = torch.cat([e.flatten(1) for _, e in parts], dim=1).to(torch.int8)
    return (
        (q.transpose(0, 1) if rows is not value else q),
        exponents,
        torch.tensor(widths, dtype=torch.int32, device="cpu"),
    )


def _unpacked(sd: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A converted state dict with floats in place of integers; any other unchanged.

    Raises ``CheckpointError`` if integers, exponents and widths do not fit together.
    """
    plain = {name: value for name, value in sd.items() if not name.endswith(SUFFIXES) and name != DIGEST}
    for name in sd:
        if name.endswith(SUFFIXES[0]):
            name = name.removesuffix(SUFFIXES[0])
            try:
                plain[name] = _floats(name, *(sd[name + suffix] for suffix in SUFFIXES))
            except (KeyError, RuntimeError, IndexError) as error:
                raise CheckpointError(
                    f"the integers of {name} cannot be read: {' '.join(str(error).split())}"
                ) from error
            if name.endswith(".omni_shift.conv5x5.weight"):
                prefix, channels = name.removesuffix("conv5x5.weight"), plain[name].shape[0]
                plain[prefix + "alpha"] = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float32, device="cpu")
                plain[prefix + "conv1x1.weight"] = torch.zeros(channels, 1, 1, 1, dtype=torch.float32, device="cpu")
                plain[prefix + "conv3x3.weight"] = torch.zeros(channels, 1, 3, 3, dtype=torch.float32, device="cpu")
    return plain


def _floats(name: str, integers: Tensor, exponents: Tensor, widths: Tensor) -> Tensor:
    rows = integers.transpose(0, 1) if _TRANSPOSED.fullmatch(name) else integers
    scales = exact.power_of_two(exponents.to(torch.int32) - (exact.BITS - 1)).repeat_interleave(widths.long(), dim=1)
    # A product with a power of two is exact.
    value = rows.float() * scales.reshape(*scales.shape, *[1] * (rows.ndim - 2))
    return value.transpose(0, 1).contiguous() if rows is not integers else value
