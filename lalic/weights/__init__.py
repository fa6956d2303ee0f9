"""Weights that ship with the package, by model name."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from lalic.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def load(name: str) -> dict[str, Tensor]:
    """State dict of the model ``name`` that ships. Raises ``CheckpointError`` if there are no such weights."""
    import safetensors.torch

    file = resources.files(__name__).joinpath(f"{name}.safetensors")
    if not file.is_file():
        raise CheckpointError(f"name: no weights named {name!r} ship with this package, expected one of {shipped()}")
    with resources.as_file(file) as path:
        return safetensors.torch.load_file(path)


@cache
def shipped() -> list[str]:
    """Names of the models whose weights ship."""
    names = (file.name for file in resources.files(__name__).iterdir())
    return sorted(n.removesuffix(".safetensors") for n in names if n.endswith(".safetensors"))
