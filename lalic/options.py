"""Options that several commands share. Imports no torch, so that `lalic --help` is fast."""

from __future__ import annotations

import argparse
import gc
import os
import sys

from lalic.memory import keep_memory

__all__ = [
    "EXECUTORS",
    "FORMATS",
    "add_checkpoint_option",
    "add_existing_options",
    "add_force_option",
    "add_machine_options",
    "add_precision_option",
    "positive",
    "set_up_process",
]

MAX_THREADS = 1024
EXECUTORS = ("local", "ray")  # of `lalic bulk`, whose module needs more imports than `lalic --help` should wait for
FORMATS = ("files", "webdataset", "parquet")


def positive(text: str) -> int:
    """Type for argparse: a whole number above 0."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _threads(text: str) -> int:
    """Type for argparse: a number of threads, which libraries start without asking whether there is memory."""
    if positive(text) > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_THREADS}, got {text}")
    return int(text)


def add_machine_options(parser: argparse._ActionsContainer) -> None:
    """--device and --threads."""
    parser.add_argument("--device", metavar="DEVICE", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=_threads, metavar="N", help="CPU threads (default: as torch chooses)")


def add_checkpoint_option(parser: argparse._ActionsContainer) -> None:
    """--checkpoint."""
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        help="weights to use instead of those that ship: a file, a folder, or user/model of the Hugging Face Hub",
    )


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """--precision."""
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="of the transforms between picture and latents; a file is read with any of them (default float32)",
    )


def add_existing_options(parser: argparse.ArgumentParser) -> None:
    """-f, --force, or --skip-existing."""
    either = parser.add_mutually_exclusive_group()
    add_force_option(either)
    either.add_argument("--skip-existing", action="store_true", help="leave out inputs whose output exists")


def add_force_option(parser: argparse._ActionsContainer) -> None:
    """-f, --force."""
    parser.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")


def set_up_process(threads: int | None) -> None:
    """Set up a process of the command line: memory allocator, CPU threads, garbage collector. Imports torch.

    threads: None for torch's default. Environment variables are read when a library is imported, so they are set only
    for libraries that are not imported yet.
    """
    keep_memory()
    # Otherwise torch's OpenMP threads (libgomp) spin for milliseconds after each operation and block other threads.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for library, variable in (("torch", "OMP_NUM_THREADS"), ("numba", "NUMBA_NUM_THREADS")):
        if threads is not None and library not in sys.modules:
            os.environ[variable] = str(threads)
    first = "torch" not in sys.modules
    if first:
        # The imports make half a million objects that stay. Python's garbage collector would go through them many
        # times, and once more at the end of the process.
        gc.disable()
    import torch

    import lalic_kernels  # noqa: F401

    if first:
        gc.freeze()
        gc.enable()
    if threads is not None:
        torch.set_num_threads(threads)
