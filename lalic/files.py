"""Bytes in and out: files on disk are written whole or not at all, and `STREAM` is standard input or output."""

from __future__ import annotations

import errno
import os
import secrets
import sys

__all__ = ["STREAM", "Name", "WouldOverwrite", "read", "write", "write_atomic"]

Name = str | os.PathLike[str]
STREAM = "-"  # stands for standard input or standard output


class WouldOverwrite(FileExistsError):
    """A file exists already, and nobody said that it may be overwritten."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EEXIST, "exists already", path)


def read(source: str) -> bytes:
    """The bytes of a file, or of standard input."""
    if source == STREAM:
        return sys.stdin.buffer.read()
    with open(source, "rb") as stream:
        return stream.read()


def write(target: str, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to standard output, or to a file as `write_atomic` does; the file's folder is made if need be."""
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    write_atomic(target, data, overwrite=overwrite)


def write_atomic(path: str | os.PathLike, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `path` so that nobody ever sees half of it, whatever happens in between.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and the file is renamed; on any error
    the temporary file is removed. With `overwrite=False` an existing file stays, and `WouldOverwrite` is raised even if
    it appeared a moment ago. Permissions are those of a newly created file (0666 less the umask).
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder", path)
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe (/dev/null, /dev/stdout): nothing there to lose, and renaming over it would destroy it.
        with open(path, "wb") as stream:
            stream.write(data)
        return
    # A link is followed, so that the file it points to is replaced and not the link.
    path = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.lalic-part")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_new(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _rename_new(temporary: str, path: str) -> None:
    """Rename, failing if `path` exists. A hard link does both in one step where the file system has them."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise WouldOverwrite(path) from None
    except OSError:  # a file system without hard links (FAT, some network mounts): a short race remains
        if os.path.lexists(path):
            raise WouldOverwrite(path) from None
        os.replace(temporary, path)
        return
    os.unlink(temporary)
