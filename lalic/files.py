"""Reading and writing bytes. Files are written whole or not at all; `STREAM` is standard input or output."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

__all__ = [
    "STREAM",
    "Name",
    "WouldOverwrite",
    "make_folder_of",
    "read",
    "replacing",
    "walk",
    "write",
    "write_atomic",
    "writing",
]

Name = str | os.PathLike[str]
STREAM = "-"  # stands for standard input or standard output


class WouldOverwrite(FileExistsError):
    """A file exists already and must not be overwritten."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.EEXIST, "exists already", path)

    def __reduce__(self) -> tuple[type[WouldOverwrite], tuple[str]]:
        return WouldOverwrite, (self.filename,)


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
    with writing(target, overwrite=overwrite) as out:
        out.write(data)


@contextlib.contextmanager
def writing(target: str, *, overwrite: bool = True) -> Iterator[IO[bytes]]:
    """A stream, for reading too, whose contents go where `write` would put them if the block ends without an error."""
    if target != STREAM:
        make_folder_of(target)
        with _atomic(target, overwrite) as out:
            yield out
        return
    held = io.BytesIO()
    yield held
    sys.stdout.buffer.write(held.getbuffer())
    sys.stdout.buffer.flush()


def make_folder_of(target: str) -> None:
    """Make the folder of a file to be written, if it does not exist."""
    folder = os.path.dirname(target) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "is a file, expected a folder", folder) from None


def write_atomic(path: str | os.PathLike, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `path`, whole or not at all.

    The bytes are written to a temporary file in the same folder and flushed to the disk, then the file is renamed; on
    an error the temporary file is removed. overwrite: False raises `WouldOverwrite` if the file exists, also if it was
    created meanwhile. Permissions are those of a new file (0666 less the umask).
    """
    with _atomic(os.fspath(path), overwrite) as out:
        out.write(data)


@contextlib.contextmanager
def _atomic(path: str, overwrite: bool) -> Iterator[IO[bytes]]:
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder", path)
    if os.path.exists(path) and not os.path.isfile(path):
        # A device or a pipe (/dev/null, /dev/stdout): there is no content to lose, and renaming would replace it.
        held = io.BytesIO()
        yield held
        with open(path, "wb") as stream:
            stream.write(held.getbuffer())
        return
    with replacing(path, overwrite=overwrite) as temporary, open(temporary, "w+b") as stream:
        yield stream


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[str]:
    """The name of an empty temporary file, which becomes the file `path` if the block ends without an error.

    The name is in the same folder and has the same extension. `write_atomic` says more. Raises `OSError` for a path
    that is there and is no file.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "is not a file", os.fspath(path))
    path = os.path.realpath(path)  # follows links, so that the file is replaced and not the link
    ending = os.path.splitext(path)[1]
    temporary = os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.lalic-part{ending}")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_new(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename == temporary:
            error.filename = path
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
