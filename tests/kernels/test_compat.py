"""The calling forms of published code give the op's results, in k's dtype, and are differentiable."""

from __future__ import annotations

import pytest
import torch
from op_specs import BIWKV
from test_contract import make
from torch import Tensor

import lalic_kernels
from lalic_kernels.biwkv import reference
from lalic_kernels.compat import RUN_CUDA, RUN_BiWKV4, load_biwkv4

B, T, C = 2, 19, 7


def arguments() -> list[Tensor]:
    return list(make(BIWKV, (B, T, C), torch.float32, "cpu").values())


FORMS = {
    "RUN_BiWKV4": RUN_BiWKV4,
    "RUN_CUDA": RUN_CUDA,
    "RUN_CUDA with sizes": lambda *tensors: RUN_CUDA(B, T, C, *tensors),
}
FORM = pytest.mark.parametrize("form", FORMS)


@FORM
def test_is_the_op(form: str) -> None:
    leaves = [x.requires_grad_() for x in arguments()]
    y, expected = FORMS[form](*leaves), lalic_kernels.biwkv(*leaves)
    assert torch.equal(y, expected)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = torch.autograd.grad(y, leaves, upstream), torch.autograd.grad(expected, leaves, upstream)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@FORM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("mixed", ["all", "w, u", "k", "v"])
def test_any_floating_dtypes(form: str, dtype: torch.dtype, mixed: str) -> None:
    narrow = {"all": (0, 1, 2, 3), "w, u": (0, 1), "k": (2,), "v": (3,)}[mixed]
    leaves = [(x.to(dtype) if i in narrow else x).requires_grad_() for i, x in enumerate(arguments())]
    y = FORMS[form](*leaves)
    assert y.dtype == leaves[2].dtype and y.shape == (B, T, C)
    truth = reference.biwkv(*(x.detach().double() for x in leaves))
    # One rounding of the result to k's dtype, and a few float32 roundings before.
    limit = (torch.finfo(y.dtype).eps + 4 * torch.finfo(torch.float32).eps) * truth.abs().max()
    assert (y.double() - truth).abs().max() <= limit
    grads = torch.autograd.grad(y.sum(), leaves)
    assert [g.dtype for g in grads] == [x.dtype for x in leaves]
    assert all(g.isfinite().all() and g.any() for g in grads)


@pytest.mark.parametrize(("name", "sizes"), [("B", (3, T, C)), ("T", (B, T + 1, C)), ("C", (B, T, 1))])
def test_sizes_that_differ_from_ks(name: str, sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=rf"RUN_CUDA: {name} must be \d+, as k has shape \(2, 19, 7\), but is"):
        RUN_CUDA(*sizes, *arguments())
    with pytest.raises(TypeError, match="RUN_CUDA: T must be an integer, but is a float"):
        RUN_CUDA(B, 19.0, C, *arguments())


def test_another_number_of_arguments() -> None:
    for wrong in (arguments()[:3], [B, T, *arguments()], []):
        with pytest.raises(
            TypeError, match=rf"RUN_CUDA: expected \(w, u, k, v\) or .*, but got {len(wrong)} arguments"
        ):
            RUN_CUDA(*wrong)


def test_the_published_constructor_finds_nothing_to_load() -> None:
    assert load_biwkv4() is None  # type: ignore[func-returns-value]


@FORM
def test_errors_name_the_called_function(form: str) -> None:
    w, u, k, v = arguments()
    for bad, error, message in (
        ((w, u, k[0], v), ValueError, "k must have 3 dimensions"),
        ((w, u, k, v[:, 1:]), ValueError, "v must have shape"),
        ((w[1:], u, k, v), ValueError, "w must have shape"),
        ((w, u.long(), k, v), TypeError, "u must be float16"),
        ((w, u, k, v.int()), TypeError, "v must be float16"),
        ((w, u, k.to("meta"), v), ValueError, "v must be on meta"),
    ):
        with pytest.raises(error, match=f"^{form.split()[0]}: {message}"):
            FORMS[form](*bad)


@FORM
def test_compiles(form: str) -> None:
    compiled = torch.compile(lambda *a: FORMS[form](*a) * 2, fullgraph=True, backend="aot_eager")
    tensors = arguments()
    assert torch.equal(compiled(*tensors), FORMS[form](*tensors) * 2)
    torch.compiler.reset()
