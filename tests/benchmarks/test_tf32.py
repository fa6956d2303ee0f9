"""The benchmarks' checks where torch computes in TF32, as it does with cuDNN by default: emulated on the CPU.

Operands of convolutions and matrix products are rounded to 10 bits of mantissa wherever torch's flags allow it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import codec, measure, registry
from benchmarks.measure import Setting, WrongResult
from benchmarks.registry import ENTRIES, measure_entry

CONVOLUTIONS = {"convolution", "convolution_backward", "_convolution", "mkldnn_convolution"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}
QUICK = Setting(torch.device("cpu"), quick=True)


def rounded(x: Any) -> Any:
    """float32 to the nearest TF32, ties to even."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return x
    bits = x.clone().view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class TF32(TorchDispatchMode):
    """Inside, torch's own convolutions and products compute as tensor cores do. rounded: how many of them did."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # without autograd, layers come here whole
            result = func.decompose(*args, **(kwargs or {}))
        if result is not NotImplemented:
            return result
        name = func._schema.name.removeprefix("aten::")
        allowed = (name in CONVOLUTIONS and torch.backends.cudnn.allow_tf32) or (
            name in PRODUCTS and torch.backends.cuda.matmul.allow_tf32
        )
        if allowed:
            self.rounded += 1
            args = tuple(map(rounded, args))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def allowed(products: bool = False) -> Iterator[TF32]:
    """torch's defaults; products: TF32 for matrix products too, as many programs set it."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, True  # `conftest.py` says no
    try:
        with TF32() as mode:
            yield mode
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_the_emulation() -> None:
    x, y = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(0)), torch.eye(64)
    assert torch.equal(rounded(torch.tensor([1 + 2.0**-10, 1 + 2.0**-11, 1 + 3 * 2.0**-11])),
                       torch.tensor([1 + 2.0**-10, 1.0, 1 + 2.0**-9]))  # fmt: skip
    with allowed(products=True) as mode:
        assert torch.equal(x[0] @ y, rounded(x[0])) and mode.rounded == 1
    with allowed() as mode:
        assert torch.equal(x[0] @ y, x[0]) and mode.rounded == 0
        torch.nn.functional.conv1d(x, torch.randn(3, 8, 3))
        assert mode.rounded == 1


@pytest.mark.parametrize("name", ENTRIES)
def test_checks_of_operations_hold(name: str) -> None:
    with allowed(products=True):
        rows = measure_entry(name, QUICK)
    assert rows


def test_they_hold_because_tf32_is_off_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "without_tf32", contextlib.nullcontext)
    with pytest.raises(WrongResult, match=r"g_s in float32: the relative error is"), allowed() as mode:
        measure_entry("transforms", QUICK)
    assert mode.rounded


def test_the_codecs_checks_hold() -> None:
    """Both sides of the comparison run with what torch allows; a batch has its own bound."""
    with allowed(products=True) as mode, torch.inference_mode():
        subject = codec.Subject("tiny", 64, 128, 2, torch.device("cpu")).start()
        subject.check(subject.decode())
        subject.check_streams(subject.encode())
        y = torch.cat([subject.model.read(stream, 64, 128).y_hat for stream in subject.streams])
        subject.check_batch([x[None] for x in subject.model.synthesise(y, None).clamp(0, 1)])
        assert mode.rounded
        with pytest.raises(WrongResult):
            subject.check_batch([x.roll(8, 3) for x in subject.expected])


def test_the_flags_are_put_back() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with measure.without_tf32():
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
    assert before == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)
