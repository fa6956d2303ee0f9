"""Work in a thread of its own, followed by what it says of its progress."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from lalic.web.desk import Report, Superseded

__all__ = ["Step", "follow"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Step:
    """What is being done, the share that is done (None: unknown), and the seconds that this step has taken."""

    text: str
    share: float | None
    seconds: float

    @property
    def left(self) -> float | None:
        """Seconds that are left, None as long as that is a guess."""
        if not self.share or self.seconds < 2:
            return None
        return self.seconds * (1 - self.share) / self.share


def follow(work: Callable[[Report], Iterator[_T]]) -> Iterator[_T | Step]:
    """The results of `work(report)` as they come, and between them its newest steps; its error is raised here.

    If this iterator is closed early, `report` raises `Superseded`, and so ends the work.
    """
    messages: queue.Queue[_T | Step | Exception | None] = queue.Queue()
    closed = threading.Event()
    begun: dict[str, float] = {}

    def report(text: str, share: float | None = None) -> None:
        if closed.is_set():
            raise Superseded
        now = time.perf_counter()
        if text not in begun or not share:
            begun[text] = now
        messages.put(Step(text, share, now - begun[text]))

    def run() -> None:
        try:
            for result in work(report):
                messages.put(result)
        except Exception as error:
            messages.put(error)
        finally:
            messages.put(None)

    threading.Thread(target=run, daemon=True).start()
    try:
        while (message := messages.get()) is not None:
            while isinstance(message, Step) and not messages.empty():
                newer = messages.get()
                if newer is None:
                    return
                message = newer
            if isinstance(message, Exception):
                raise message
            yield message
    finally:
        message = None  # an error holds the frames that it went through, this one too
        closed.set()
