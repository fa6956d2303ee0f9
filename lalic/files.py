"""Reading and writing bytes. Files are written whole or not at all; `STREAM` is standard input or output."""

from __future__ import annotations

import errno
import os
import secrets
import sys
from collections.abc import Collection
from pathlib import Path

__all__ = ["STREAM", "Name", "WouldOverwrite", "read", "walk", "write", "write_atomic"]

Name = str | os.PathLike[str]
STREAM = "-"  # stands for standard input or standard output


class WouldOverwrite(FileExistsError):
    """A file exists already and must not be overwritten."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EEXIST, "exists already", path)


def walk(folder: Name, extensions: Collection[str]) -> list[Path]:
    """The files in a folder and its folders that end in one of `extensions`, in order; without hidden names.

    extensions: lower case, such as ".png"; names may be in upper case.
    """
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(file for file in files if file.suffix.lower() in extensions)


def read(source: str) -> bytes:
    """The bytes of a file, or of standard input."""
    if source == STREAM:
        return sys.stdin.buffer.read()
    with open(source, "rb") as stream:
        return stream.read()


def write(target: str, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to standard output, or to a file by `write_atomic`; makes the folder if it does not exist."""
    if target == STREAM:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    os.makedirs(os.path.dirname(target) or ".", exist_ok=True)
    write_atomic(target, data, overwrite=overwrite)


def write_atomic(path: str | os.PathLike, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `path`, whole or not at all.

    The bytes are written to a temporary file in the same folder and flushed to the disk, then the file is renamed; on
    an error the temporary file is removed. overwrite: False raises `WouldOverwrite` if the file exists, also if it was
    created meanwhile. Permissions are those of a new file (0666 less the umask).
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder", path)
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe (/dev/null, /dev/stdout): there is no content to lose, and renaming would replace it.
        with open(path, "wb") as stream:
            stream.write(data)
        return
    # Follow links, so that the file is replaced and not the link.
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
    """Rename, or raise `WouldOverwrite` if `path` exists. A hard link does both in one step."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise WouldOverwrite(path) from None
    except OSError:  # a file system without hard links (FAT, some network mounts): not in one step
        if os.path.lexists(path):
            raise WouldOverwrite(path) from None
        os.replace(temporary, path)
        return
    os.unlink(temporary)
