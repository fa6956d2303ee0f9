"""Models as the Hugging Face Hub keeps them, through its package's own mixin: `pip install lalic[hub]`.

A model is a folder, or a repository of the Hub, with model.safetensors (the state dict, coding tables included),
config.json (the configuration, for readers: loading takes it from the weights' shapes) and a model card.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lalic.errors import CheckpointError
from lalic.nn import checkpoints

if TYPE_CHECKING:
    from lalic.model import LALIC

WEIGHTS = ("model.safetensors", "weights.safetensors")  # the second is in the folder of a training run
_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_CARD = """---
{{ card_data }}
---

A LALIC model: learned image compression with linear attention.

```python
import lalic  # with the extra "hub"

model = lalic.load("user/model")  # this repository, or a folder with its files
data = lalic.encode("photo.jpg", model=model)
lalic.decode(data, model=model).save("back.png")
```
"""
_FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".tar", ".bin", ".ckpt")


def looks_like_an_id(source: str | os.PathLike[str]) -> bool:
    """Whether this may be "user/model" or "user/model@revision": no name of a checkpoint file, nor in a folder here."""
    name = os.fspath(source)
    if not _ID.fullmatch(name) or name[0] == "." or name.endswith(_FILE_ENDINGS):
        return False
    return not os.path.exists(name.split("/")[0])


@functools.cache
def _mixin() -> Any:
    """The package's mixin around one model. Raises ``ImportError`` without the package."""
    try:
        from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"models of the Hugging Face Hub need its package ({error}): pip install lalic[hub]"
        ) from error

    class Pretrained(  # type: ignore[call-arg]
        PyTorchModelHubMixin, library_name="lalic", tags=["image-compression"], model_card_template=_CARD
    ):
        model: LALIC
        path: str

        def __init__(self) -> None:  # without arguments, or the mixin would pass those of config.json
            super().__init__()

        def _save_pretrained(self, save_directory: Path) -> None:
            weights = {
                name: value.detach().cpu().contiguous()
                for name, value in self.model.state_dict().items()
                if checkpoints.matters(name)
            }
            checkpoints.save_tensors(weights, save_directory / WEIGHTS[0])

        @classmethod
        def _from_pretrained(
            cls,
            *,
            model_id: str,
            revision: str | None,
            cache_dir: str | Path | None,
            force_download: bool,
            local_files_only: bool,
            token: str | bool | None,
        ) -> Pretrained:
            found = cls()
            found.path = hf_hub_download(
                model_id, WEIGHTS[0], revision=revision, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, token=token,
            )  # fmt: skip
            return found

    return Pretrained


def save(model: LALIC, folder: str | os.PathLike[str], **options: Any) -> str | None:
    """`PyTorchModelHubMixin.save_pretrained` of the model."""
    return _around(model).save_pretrained(folder, **_configured(model, options))


def push(model: LALIC, repository: str, **options: Any) -> str:
    """`PyTorchModelHubMixin.push_to_hub` of the model. Raises ``CheckpointError`` if the Hub does not take it."""
    holder = _around(model)
    try:
        return holder.push_to_hub(repository, **_configured(model, options))
    except TypeError:
        raise
    except Exception as error:
        raise CheckpointError(f"{repository}: cannot be put on the Hugging Face Hub: {_reason(error)}") from error


def read(source: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """The state dict in a folder, or of a model of the Hub: "user/model" or "user/model@revision".

    options: of `PyTorchModelHubMixin.from_pretrained`, for the Hub. Raises ``CheckpointError`` if there is none, also
    without the package, which a folder does not need.
    """
    if os.path.isdir(source):
        for name in WEIGHTS:
            if os.path.exists(path := os.path.join(source, name)):
                return checkpoints.read(path, mapped=True)
        raise CheckpointError(f"{os.fspath(source)}: the folder has no {' or '.join(WEIGHTS)}")
    try:
        mixin = _mixin()
    except ImportError as error:
        raise CheckpointError(f"{os.fspath(source)}: no such file or folder, and {error}") from error
    name, _, revision = os.fspath(source).partition("@")
    if revision:
        options = {"revision": revision} | options
    try:
        path = mixin.from_pretrained(name, **options).path
    except TypeError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{name}: no such file, and no model of the Hugging Face Hub: {_reason(error)}"
        ) from error
    return checkpoints.read(path, mapped=True)


def _around(model: LALIC) -> Any:
    holder = _mixin()()
    holder.model = model
    return holder


def _configured(model: LALIC, options: dict[str, Any]) -> dict[str, Any]:
    return {"config": asdict(model.config)} | options


def _reason(error: Exception) -> str:
    """Why the Hub fails, in a few words: its package raises errors of many kinds, and long ones."""
    from huggingface_hub import errors

    unreachable = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    if isinstance(error, unreachable) or type(error).__name__.startswith("Connect"):  # httpx has its own
        return "it cannot be reached"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is none of this name, or it is private and the token does not allow it"
    if isinstance(error, errors.EntryNotFoundError):
        return f"the repository has no {WEIGHTS[0]}"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' + lines[0][:200] if lines else ''}"
