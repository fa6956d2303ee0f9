"""The same files decoded under many settings of one machine: `python -m benchmarks.portability FOLDER [--save]`.

Every picture of the folder goes to a file, once with the exact entropy model and once with the floating-point one. Then
a fresh process for each setting of `SETTINGS` decodes the files alone, and pictures of equal size in batches of four,
and prints SHA-256 of the symbols and of the latents (symbols plus predicted means). With exact arithmetic all of them
must be the encoder's; how many of the floating-point model's are is counted beside them.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lalic
from benchmarks import records
from lalic import images
from lalic.codec import pad
from lalic.coder import Stream
from lalic.coder.host import symbols_of
from lalic.coder.tables import gaussian_tables
from lalic.errors import LalicError
from lalic.model import LALIC
from lalic_kernels.rans import ideal_bits

ENTROPIES = ("exact", "float")
BATCH = 4


def _setting(aten: str, dnnl: str, numba: str, threads: int) -> dict[str, str]:
    chosen = {"ATEN_CPU_CAPABILITY": aten, "DNNL_MAX_CPU_ISA": dnnl, "NUMBA_CPU_NAME": numba}
    if numba:
        chosen["NUMBA_CPU_FEATURES"] = ""
    count = {name: str(threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
    return {name: value for name, value in chosen.items() if value or name == "NUMBA_CPU_FEATURES"} | count


# ATen's, oneDNN's and numba's processor, threads.
SETTINGS = tuple(_setting(*row) for row in (
    ("", "", "", 1), ("", "", "", 2),
    ("default", "", "", 1), ("default", "", "", 2), ("avx2", "", "", 1), ("avx2", "", "", 2), ("avx512", "", "", 1),
    ("", "SSE41", "", 1), ("", "SSE41", "", 2), ("", "AVX2", "", 1), ("", "AVX512_CORE", "", 2),
    ("", "", "generic", 1), ("default", "SSE41", "generic", 2), ("avx2", "AVX2", "generic", 1),
    ("avx512", "SSE41", "", 2), ("default", "AVX512_CORE", "", 1),
))  # fmt: skip
FEW = tuple(_setting(*row) for row in (
    ("default", "SSE41", "generic", 2), ("avx2", "AVX2", "generic", 1), ("avx512", "AVX512_CORE", "", 2),
    ("default", "", "", 1), ("", "SSE41", "", 1),
))  # fmt: skip
"""Enough for continuous integration: each value once, both ways of multiplying integers, both thread counts."""


def runs_here(setting: dict[str, str]) -> bool:
    """Whether this processor has the instructions that a setting asks for; where not, the process would be killed."""
    wants = any("avx512" in value.lower() for value in setting.values())
    return not wants or _has_avx512()


@functools.cache
def _has_avx512() -> bool:
    from llvmlite import binding

    return bool(binding.get_host_cpu_features().get("avx512f"))


def ideal_code_length(model: LALIC, x: Tensor) -> float:
    """Bits that x (1, 3, H, W) needs under the shipped integer tables, were the coder perfect."""
    with torch.no_grad():
        (z, rows), passes, _ = symbols_of(model, model.latents(x), None)
    y_bits = sum(ideal_bits(symbols[0], indexes[0], gaussian_tables()) for symbols, indexes in passes)
    return y_bits + ideal_bits(z[0], rows[0], model.prior_tables())


def prepare(folder: Path, model: LALIC, pictures: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """Write a model and the streams of pictures (1, 3, H, W), sides multiples of 64; returns the encoder's hashes.

    The result is as `decode` gives it: {"exact": {picture: [symbols, latents]}, "float": ...}, without batches.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), folder / "weights.pth")
    found: dict[str, Any] = {entropy: {} for entropy in ENTROPIES}
    work = []
    for name, x in pictures:
        item: dict[str, Any] = {"name": name, "size": list(x.shape[2:])}
        for entropy in ENTROPIES:
            model.entropy = entropy
            stream, packed = model.encode(x), model.compress(x)
            item[entropy] = {
                "stream": b64encode(stream.data).decode(), "checksum": stream.checksum,
                "strings": [b64encode(s[0]).decode() for s in packed["strings"]],
                "hyper": list(packed["shape"]["hyper"]),
            }  # fmt: skip
            symbols = hashlib.sha256()
            (z, _), passes, _ = symbols_of(model, model.latents(x), None)
            for part in [z, *(s for s, _ in passes)]:
                symbols.update(part.numpy().astype("<i4").tobytes())
            found[entropy][name] = [symbols.hexdigest(), _hash(packed["y_hat"])]
        work.append(item)
    (folder / "work.json").write_text(json.dumps(work))
    model.entropy = "exact"
    return found


def decode(folder: Path) -> dict[str, Any]:
    """What this process makes of a prepared folder.

    {entropy: {picture: [symbols, latents] or "refused"}, "batch": {entropy: {picture: latents or "refused"}}}.
    """
    model = lalic.load(folder / "weights.pth")
    work = json.loads((folder / "work.json").read_text())
    found: dict[str, Any] = {entropy: {} for entropy in ENTROPIES} | {"batch": {entropy: {} for entropy in ENTROPIES}}
    for entropy in ENTROPIES:
        model.entropy = entropy
        for item in work:
            own = item[entropy]
            try:
                height, width = item["size"]
                read = model.read(Stream(b64decode(own["stream"]), own["checksum"]), height, width)
                found[entropy][item["name"]] = [read.symbols_sha256, _hash(read.y_hat)]
            except LalicError:
                found[entropy][item["name"]] = "refused"
        for group in _batches(work):
            parts = [item[entropy] for item in group]
            strings = [[b64decode(s) for s in streams] for streams in zip(*(p["strings"] for p in parts), strict=True)]
            try:
                y_hat = model.decode_strings(strings, {"hyper": parts[0]["hyper"]})
                hashes = [_hash(one[None]) for one in y_hat]
            except LalicError:
                hashes = ["refused"] * len(group)
            found["batch"][entropy] |= {item["name"]: h for item, h in zip(group, hashes, strict=True)}
    return found


def _batches(work: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    for size in sorted({tuple(item["size"]) for item in work}):
        alike = [item for item in work if tuple(item["size"]) == size]
        for start in range(0, len(alike) - BATCH + 1, BATCH):
            yield alike[start : start + BATCH]


def in_another_process(folder: Path, setting: dict[str, str]) -> dict[str, dict[str, Any]]:
    """`decode` of each prepared folder in one, by name, under a setting.

    Raises ``RuntimeError`` with what the process said if it fails.
    """
    root = Path(__file__).parents[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ATEN_", "DNNL_", "NUMBA_CPU"))}
    command = [sys.executable, "-m", "benchmarks.portability", str(folder), "--decode"]
    environment = {**clean, **setting, "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"under {setting}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def compare(expected: dict[str, Any], got: dict[str, Any]) -> dict[str, dict[str, int]]:
    """How many pictures each entropy model decoded, and how many of them as the encoder did, alone and in batches."""
    counts = {}
    for entropy in ENTROPIES:
        alone, batch = got[entropy], got["batch"][entropy]
        counts[entropy] = {
            "pictures": len(alone),
            "equal": sum(alone[name] == expected[entropy][name] for name in alone),
            "in_batches": len(batch),
            "equal_in_batches": sum(batch[name] == expected[entropy][name][1] for name in batch),
        }
    return counts


def _hash(y_hat: Tensor) -> str:
    return hashlib.sha256(y_hat[0].contiguous().numpy().astype("<f4").tobytes()).hexdigest()


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """A folder, --checkpoint and --name."""
    parser.add_argument("folder", type=Path, help="pictures, in name order")
    parser.add_argument("--checkpoint", type=Path, help="weights (default: the slim ones that ship)")
    parser.add_argument("--name", help="what to call the set of pictures (default: the folder's name)")


def model_and_pictures(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[LALIC, Iterator[tuple[str, Tensor]]]:
    """The model, and (name, padded picture) of each of the folder."""
    paths = sorted(p for p in options.folder.glob("*") if p.suffix.lower() in images.readable_extensions())
    if not paths:
        parser.error(f"no pictures in {options.folder}")
    model = lalic.slim() if options.checkpoint is None else lalic.load(options.checkpoint)
    return model, ((p.stem, pad(images.to_tensor(images.load(p)), model.downsampling)) for p in paths)


def names(options: argparse.Namespace, model: LALIC) -> dict[str, str]:
    """What a record is of."""
    pictures = options.name or options.folder.name
    return {"pictures": pictures, "model": model.config.name, "weights": model.weights_hash().hex()}


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a setting; with --save append a record to the results. 1 if an exact decoder differed."""
    parser = records.parser("portability", "One file, many settings.", where=False)
    add_pictures(parser)
    parser.add_argument("--decode", action="store_true", help=argparse.SUPPRESS)  # what a fresh process does
    arguments = parser.parse_args(argv)
    if arguments.decode:
        prepared = sorted(path.parent for path in arguments.folder.glob("*/work.json"))
        print(json.dumps({path.name: decode(path) for path in prepared}))
        return 0
    model, pictures = model_and_pictures(parser, arguments)
    record = records.environment(torch.device("cpu"))
    rows = []
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        expected = prepare(Path(scratch) / "all", model, pictures)
        for setting in SETTINGS:
            if not runs_here(setting):
                print(f"left out, because this processor has no AVX-512: {setting}")
                continue
            counts = compare(expected, in_another_process(Path(scratch), setting)["all"])
            rows.append({"setting": setting} | counts)
            print(json.dumps(rows[-1]), flush=True)
    records.keep(record | names(arguments, model) | {"portability": rows}, arguments)
    exact = [row["exact"] for row in rows]
    whole = all(c["equal"] == c["pictures"] and c["equal_in_batches"] == c["in_batches"] for c in exact)
    return 0 if whole else 1


if __name__ == "__main__":
    raise SystemExit(main())
