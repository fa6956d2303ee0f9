"""What a run says of itself: a line a row on the terminal, `log.csv`, and TensorBoard's files where they are wanted."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lalic.errors import LalicError
from lalic.files import write_atomic


class Log:
    """Rows of a run in its folder, by step.

    Args:
        folder: of the run. columns: of ``log.csv``, beginning with ``step``. tensorboard: write its files too, in
            ``folder/tensorboard``; raises ``LalicError`` if the package is not installed.
    """

    def __init__(self, folder: Path, columns: list[str], tensorboard: bool = False):
        self.path, self.columns = folder / "log.csv", columns
        self._writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise LalicError("--tensorboard needs the package tensorboard (pip install tensorboard)") from None
            self._writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def rewind(self, step: int) -> None:
        """Drop rows behind `step`: a run that was killed may have logged more than it saved."""
        if not self.path.exists():
            return
        with self.path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= step]
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, extrasaction="ignore", restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue().encode())

    def add(self, row: Mapping[str, Any]) -> None:
        """Write a row everywhere. It has ``step``; what is no column is shown on the terminal only."""
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        if self._writer is not None:
            for name, value in row.items():
                if name in self.columns and name != "step":
                    self._writer.add_scalar(name, value, row["step"])
            self._writer.flush()
