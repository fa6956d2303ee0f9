"""What browsers have sent and may ask for: bytes in this process, each at an address of 128 random bits."""

from __future__ import annotations

import secrets
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterable

from lalic.errors import LalicError

__all__ = ["Shelf"]

_HELD_BYTES = 1 << 28  # of all that browsers may ask for
_WAITING = 4  # uploads that no page has opened yet,
_WAITING_BYTES = 1 << 29  # and their bytes


class Shelf:
    """Files for browsers, by addresses that nobody can guess. Thread-safe; the oldest go when there are too many."""

    def __init__(self, most: int = _HELD_BYTES) -> None:
        self._most = most
        self._files: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._uploads: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, data: bytes, media: str, name: str) -> str:
        """Keep a file, and return its address, relative to the page."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._files[key] = data, media
            while len(self._files) > 1 and sum(len(each) for each, _ in self._files.values()) > self._most:
                self._files.popitem(last=False)
        return f"lalic/file/{key}/{urllib.parse.quote(name, safe='')}"

    def get(self, key: str) -> tuple[bytes, str] | None:
        """A file and its media type."""
        with self._lock:
            return self._files.get(key)

    def has(self, address: str) -> bool:
        """Whether the file of an address is still here; it counts as asked for."""
        key = address.split("/")[2]
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
            return key in self._files

    def drop(self, addresses: Iterable[str]) -> None:
        """Forget files that nobody will ask for any more."""
        with self._lock:
            for address in addresses:
                self._files.pop(address.split("/")[2], None)

    def receive(self, data: bytes, name: str) -> str:
        """Keep an upload until a page opens it, and return its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._uploads[key] = data, name
            held = [len(each) for each, _ in self._uploads.values()]
            while len(held) > 1 and (len(held) > _WAITING or sum(held) > _WAITING_BYTES):
                held.pop(0)
                self._uploads.popitem(last=False)
        return key

    def take(self, key: str) -> tuple[bytes, str]:
        """An upload and its name, once. Raises `LalicError`."""
        with self._lock:
            if key not in self._uploads:
                raise LalicError("the upload is gone; drop the file again")
            return self._uploads.pop(key)
