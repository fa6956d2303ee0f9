"""Models by name or by file."""

from __future__ import annotations

import os

import torch

from lalic import pretrained, weights
from lalic.config import SLIM
from lalic.errors import CheckpointError
from lalic.files import WouldOverwrite
from lalic.model import LALIC
from lalic.nn import checkpoints


def slim(pretrained: bool = True) -> LALIC:
    """The small model, in eval mode: 256 latent channels in five slices, 11.1 M parameters; `lalic.config.SLIM`.

    pretrained: True for the weights that ship, ready to code; False for random weights: train the model, then call
    ``update()``.
    """
    if not pretrained:
        return LALIC.from_config(SLIM).eval()
    return LALIC.from_state_dict(weights.load(SLIM.name))


def load(source: str | os.PathLike[str]) -> LALIC:
    """A model in eval mode, ready to code.

    source: a .pth file (published or trained) or a .safetensors file; a folder of `LALIC.save_pretrained` or of a
    training run; or "user/model", perhaps with "@revision", of the Hugging Face Hub (`pip install lalic[hub]`).

    The configuration follows from the shapes of the tensors. Pickled code is never run (``weights_only=True``). Raises
    ``CheckpointError`` if there is none, it cannot be read or is not a LALIC checkpoint.
    """
    if os.path.isdir(source) or (not os.path.exists(source) and pretrained.looks_like_an_id(source)):
        return LALIC.from_pretrained(source)
    return LALIC.from_state_dict(checkpoints.read(source, mapped=True))


load_checkpoint = load  # the older name


def load_model(
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    precision: str | None = None,
) -> LALIC:
    """A new model in eval mode, ready to code: from what `load` takes, or the slim one that ships (None).

    device: of the model. precision: of its transforms (`LALIC.set_precision`), None for float32. Raises
    ``CheckpointError`` if the file cannot be read or is not a LALIC checkpoint.
    """
    model = slim(pretrained=True) if checkpoint is None else load(checkpoint)
    model = model.to(device).eval()
    return model if precision is None else model.set_precision(precision)


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False) -> LALIC:
    """Write the checkpoint `source` to `target` (.safetensors) with its entropy model as integers. Returns the model.

    Coding tables of z are made once, if the checkpoint has none, and written too: machines that make them from weights
    may differ in the last bit, and then cannot read each other's files. Raises ``CheckpointError`` if the source cannot
    be read or is no LALIC checkpoint, or the target's name has another ending; ``FileExistsError`` if the target exists
    and `overwrite` is false.
    """
    if not os.fspath(target).endswith(".safetensors"):
        raise CheckpointError(f"{os.fspath(target)}: a converted checkpoint's name must end in .safetensors")
    if not overwrite and os.path.exists(target):
        raise WouldOverwrite(os.fspath(target))
    model = load(source)
    checkpoints.save_tensors(model.converted(), target, overwrite)
    return model
