"""The registry: what `python -m benchmarks.run` knows. A new op adds a line here."""

from __future__ import annotations

from benchmarks import exact_model, slices
from benchmarks.cases import biwkv, block, entropy_params, gaussian, loading, rans, shift, transforms
from benchmarks.measure import Entry, Row, Setting, measure, without_tf32
from benchmarks.paper import context

_BOTH = ("fresh", "reused")
_ALL = (
    Entry("biwkv", "bidirectional WKV, forward and backward", biwkv.cases, memory=_BOTH),
    Entry("token_shift", "depth-wise 5x5, channels last", shift.token_shift_cases, memory=_BOTH),
    Entry("norm_shift", "LayerNorm, then depth-wise 5x5", shift.norm_shift_cases, memory=_BOTH),
    Entry("spatial_mix", "products round bidirectional WKV", block.spatial_mix_cases, memory=_BOTH),
    Entry("channel_mix", "gated feed-forward, hidden layer inside", block.channel_mix_cases, memory=_BOTH),
    Entry("rwkv_block", "norm, shift, spatial mix, norm, shift, channel mix", block.block_cases, memory=_BOTH),
    Entry("transforms", "g_s and g_a of the full model", transforms.cases),
    Entry("entropy_params", "the entropy-parameter block", entropy_params.cases, memory=_BOTH),
    Entry("gaussian_likelihood", "the latents' likelihoods, forward and backward", gaussian.cases, memory=_BOTH),
    Entry("rans", "the entropy coder, one core", rans.cases, devices=("cpu",)),
    Entry("loading", "training data beside JPEG and WebP of equal PSNR", loading.cases, devices=("cpu",), by_name=True),
    Entry("slices", "the slice loop without one thing or another that is kept", slices.cases, by_name=True),
    Entry("exact_model", "the exact entropy model", exact_model.cases, devices=("cpu",), by_name=True),
    Entry("context", "the context models, slice by slice", context.cases, by_name=True),
)
ENTRIES = {entry.name: entry for entry in _ALL}


def measure_entry(name: str, setting: Setting) -> list[Row]:
    """All rows of an entry. Raises `WrongResult` at the first result that is wrong; then there are none.

    Without TF32, whose rounding is above the tolerances: what is timed is what was checked.
    """
    with without_tf32():
        return [row for case in ENTRIES[name].cases(setting) for row in measure(name, case, setting)]
