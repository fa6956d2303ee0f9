"""What a figure's caption must say: the device and the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

__all__ = ["caption", "device_name"]


def device_name(device: torch.device) -> str:
    """Model of the processor with the cores this process may use, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_cpu_model()}, {cores} core{'s' if cores > 1 else ''}"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def caption(device: torch.device) -> str:
    """One line: device, threads, Python, lalic and torch."""
    try:
        release = f"lalic {importlib.metadata.version('lalic')}, "
    except importlib.metadata.PackageNotFoundError:
        release = ""
    threads = torch.get_num_threads()
    return (
        f"{device_name(device)}, {threads} thread{'s' if threads > 1 else ''}; {release}torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
