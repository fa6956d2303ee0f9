"""How much memory this machine has left, and what a call takes of it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SHARE = 0.7  # of the memory that is free: estimates are rough, and what is freed may not come back at once


def free_bytes(device: torch.device) -> int:
    """Memory that a process may take now: a GPU's free memory, or what Linux calls available; elsewhere half of all."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if info.is_file() and (found := re.search(r"^MemAvailable:\s*(\d+) kB", info.read_text(), re.MULTILINE)):
        return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def too_large(needed: int, device: torch.device) -> str | None:
    """Why a call that needs so many bytes cannot run here, in words; None if it can."""
    free = int(SHARE * free_bytes(device))
    if needed <= free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB may be used"


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that one call adds at its peak to what the process holds before it; the result is dropped.

    On CUDA what torch's allocator hands out. On Linux the largest resident set, which is set back before the call; it
    is exact to some hundred KiB, and means something where memory goes back at once (`measure.MEMORY["fresh"]`). None
    where neither can be read.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:  # no Linux, or a container that hides it
        return None


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if not found:
        raise OSError(f"/proc/self/status has no {key}")
    return 1024 * int(found[1])
