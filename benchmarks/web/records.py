"""The results files, and which of their records count: the latest of each kind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def load(folder: Path) -> list[Record]:
    """All records of a folder of results, oldest first. Raises ``ValueError`` naming a line that is none."""
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                record["date"], record["device"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path.name}:{number} is no record of a run") from None
            found.append(record)
    return sorted(found, key=lambda record: record["date"])


def latest(records: Iterable[Record], key: Callable[[Record], Any]) -> list[Record]:
    """The last record for each value of `key`, in the order in which the values first came."""
    return list({key(record): record for record in records}.values())


def with_key(records: Sequence[Record], name: str) -> list[Record]:
    """Those that hold something under a name."""
    return [record for record in records if record.get(name)]


def latest_rows(records: Sequence[Record]) -> list[tuple[Record, list[Record]]]:
    """Timed rows by record: those that no later run of the same device, threads, entry and memory state replaced."""
    kept: dict[Any, tuple[int, list[Record]]] = {}
    for place, record in enumerate(records):
        if record.get("entry") or not isinstance(record.get("rows"), list):
            continue  # what `benchmarks.tune` leaves is about launches, not about operations
        for key in {(row["entry"], row["memory"]) for row in record["rows"]}:
            rows = [row for row in record["rows"] if (row["entry"], row["memory"]) == key]
            kept[(record["device"], record["threads"], *key)] = place, rows
    places = sorted({place for place, _ in kept.values()})
    return [(records[p], [row for place, rows in kept.values() if place == p for row in rows]) for p in places]
