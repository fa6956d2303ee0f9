"""Counters that need no GPU: operations, memory, launches, compiled code; one for each.

A counter keeps its figures by part: what runs inside `with counter.part("g_s")`, or in a function that `labelled` names
so, belongs to that part, and the rest to "rest".
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

Place = tuple[Any, str, str]  # an object, the name of its function, the part that the function is


class Parts:
    """Which part runs now: the innermost that was entered. `current` is its name, "rest" outside all."""

    def __init__(self) -> None:
        self._open = ["rest"]

    @property
    def current(self) -> str:
        return self._open[-1]

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()


@contextlib.contextmanager
def labelled(part: Callable[[str], AbstractContextManager[Any]], places: Iterable[Place]) -> Iterator[None]:
    """Inside, each function of `places` runs in the context that `part` gives for its part."""

    def around(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with part(name):
                return function(*args, **kwargs)

        return run

    with contextlib.ExitStack() as stack:
        for owner, function, name in places:
            stack.enter_context(mock.patch.object(owner, function, around(getattr(owner, function), name)))
        yield
