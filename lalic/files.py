"""Reading and writing bytes. Files are written whole or not at all; `STREAM` is standard input or output."""

from __future__ import annotations

import contextlib
import copy
import errno
import io
import mimetypes
import os
import secrets
import stat
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, overload

from lalic.errors import BitstreamError, ImageWarning, RequestError

__all__ = [
    "LFS_POINTER",
    "LFS_WORDS",
    "PACKAGES",
    "STREAM",
    "FileBytes",
    "Found",
    "Name",
    "WouldOverwrite",
    "check_folder",
    "check_standard_stream",
    "make_folder_of",
    "open_standard_streams",
    "read",
    "read_stream",
    "replacing",
    "search",
    "temporary_beside",
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


PACKAGES = {  # with which Pillow opens more formats
    ".heic": "pillow-heif",
    ".heif": "pillow-heif",
    ".hif": "pillow-heif",
    ".jxl": "pillow-jxl-plugin",
}


@dataclass
class Found:
    """What a folder holds, in order.

    files: those that are taken. unreadable: a reason for each folder in it that cannot be listed. links: to folders.
    special: what has the name of such a file and is none. others: where pictures are taken, the number of other files
    by extension, without what is surely no picture.
    """

    folder: str
    files: list[Path] = field(default_factory=list)
    unreadable: list[OSError] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def left_out(self) -> str:
        """A sentence about what is left out and why; empty if there is nothing to say."""
        reasons = []
        for paths, what, why in (
            (self.links, "link", "to a folder, which is not followed"),
            (self.special, "name", "of a pipe, a socket or a device, which is not opened"),
        ):
            if paths:
                named = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
                reasons.append(f"{_count(len(paths), what)} {why} ({named})")
        for package in (*sorted(set(PACKAGES.values())), None):
            endings = sorted(ending for ending in self.others if PACKAGES.get(ending) == package)
            if endings:
                why = f"which Pillow reads with the package {package}" if package else "which is not read"
                count = _count(sum(self.others[ending] for ending in endings), "file")
                named = ", ".join(ending or "no extension" for ending in endings[:5])
                reasons.append(f"{count} of a format {why} ({named}{', ...' if len(endings) > 5 else ''})")
        return f"{self.folder}: left out: {'; '.join(reasons)}" if reasons else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


LFS_POINTER = b"version https://git-lfs"
LFS_WORDS = "a pointer of Git LFS to a file that was not fetched: git lfs pull"

_TYPES = mimetypes.MimeTypes()  # without the lists of this machine
_NO_PICTURES = {".lalic", ".db", ".ini", ".log", ".md", ".toml", ".xmp", ".yaml", ".yml"}  # beside those of `_TYPES`


def search(folder: Name, extensions: Collection[str]) -> Found:
    """Search a folder and its folders for files that end in one of `extensions`; hidden names do not count.

    extensions: lower case, such as ".png"; names may be in upper case.
    """
    found = Found(os.fspath(folder))
    pictures = ".lalic" not in extensions
    for parent, folders, names in os.walk(folder, onerror=found.unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found.links += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
        for name in names:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if ending in extensions:
                path = os.path.join(parent, name)
                if _is_special(path):
                    found.special.append(path)
                else:
                    found.files.append(Path(path))
            elif (
                pictures and ending not in _NO_PICTURES and (_TYPES.guess_type(name)[0] or "image").startswith("image")
            ):
                found.others[ending] += 1
    found.files.sort()
    found.special.sort()
    return found


def _is_special(path: str) -> bool:
    """Whether a path leads to what is no file: opening a pipe waits for a writer, and a device may have no end."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:  # such as a link to nothing, which fails when it is read, and is named
        return False


def walk(folder: Name, extensions: Collection[str]) -> list[Path]:
    """The files of `search`. Raises `OSError` for a folder that cannot be read, warns about what is left out."""
    found = search(folder, extensions)
    if found.unreadable:
        raise found.unreadable[0]
    if words := found.left_out():
        warnings.warn(words, ImageWarning, stacklevel=2)
    return found.files


_closed: set[str] = set()


def open_standard_streams() -> None:
    """Let what is closed of standard input, output and error (2>&-) be the null device.

    Otherwise the next file that is opened, such as a result, would get the number of standard error, and so whatever
    libraries write there. `read` and `write` still refuse a closed stream.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        _closed.add(name)
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
        setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def check_standard_stream(name: str) -> None:
    """Raise `OSError` if the process was started without this standard stream, "stdin" or "stdout", or if what a
    program has put in its place, as notebooks do, takes text alone."""
    words = {"stdin": "standard input", "stdout": "standard output"}[name]
    if name in _closed:
        raise OSError(errno.EBADF, "is closed", words)
    if not hasattr(getattr(sys, name), "buffer"):
        raise OSError(errno.EBADF, "holds text only in this program, expected bytes; give the name of a file", words)


def read(source: str, start: bytes = b"") -> bytes:
    """The bytes of a file, or of standard input. start: as of `read_stream`."""
    if source == STREAM:
        check_standard_stream("stdin")
        return read_stream(sys.stdin.buffer, start)
    with open(source, "rb") as stream:
        return read_stream(stream, start)


def read_stream(stream: IO[bytes], start: bytes) -> bytes:
    """The rest of a stream that begins with `start`; of another one a few bytes, as it may have no end."""
    first = stream.read(len(start)) if start else b""
    return first + stream.read() if first == start else first


class FileBytes:
    """The bytes of an open file, read when they are needed: `bytes(part)`, `part[5]`. A slice, such as `part[5:9]`,
    reads nothing. What is read of a file that was cut meanwhile raises `BitstreamError`.

    file: seekable and binary; it may be used from several threads, if by objects of this class alone.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._lock = file, threading.Lock()
        self._begin, self._length = 0, file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> FileBytes: ...

    def __getitem__(self, at: int | slice) -> int | FileBytes:
        if isinstance(at, int):
            at = range(self._length)[at]
            return bytes(self[at : at + 1])[0]
        part = copy.copy(self)
        places = range(self._begin, self._begin + self._length)[at]
        if places.step != 1:
            raise ValueError(f"the slice has step {places.step}, expected 1")
        part._begin, part._length = places.start, len(places)
        return part

    def __bytes__(self) -> bytes:
        with self._lock:
            self._file.seek(self._begin)
            data = self._file.read(self._length)
        if len(data) < self._length:
            raise BitstreamError(f"the file was cut while it was read: {self._length - len(data)} bytes are missing")
        return data


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
    check_standard_stream("stdout")
    held = io.BytesIO()
    yield held
    sys.stdout.buffer.write(held.getbuffer())
    sys.stdout.buffer.flush()


def check_folder(name: Name) -> None:
    """Raise `RequestError`, before any work, for a folder to write to that is a file, or would be in one."""
    for place in (Path(name), *Path(name).parents):
        if place.exists() and not place.is_dir():
            raise RequestError(f"{place}: is a file, expected a folder")


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
    with temporary_beside(path) as temporary:
        yield temporary
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:
            _rename_new(temporary, path)


@contextlib.contextmanager
def temporary_beside(path: str) -> Iterator[str]:
    """The name of an empty hidden file in the folder of `path`, with its extension. It is removed at the end; if the
    process is killed, by the next one that writes there. An `OSError` about it names `path`.
    """
    folder, ending = os.path.dirname(path) or ".", os.path.splitext(path)[1]
    _remove_parts(folder)
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}{_PART}{ending}")
    try:
        with _locked(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)):
            yield temporary
    except OSError as error:
        if error.filename == temporary:
            error.filename = path
        raise
    finally:
        with contextlib.suppress(OSError):  # it may have become `path`
            os.unlink(temporary)


_PART = ".lalic-part"
_swept: set[str] = set()


def _remove_parts(folder: str) -> None:
    """Remove temporary files of processes that were killed: nobody has them locked. Once for a folder."""
    if folder in _swept:
        return
    _swept.add(folder)
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and _PART in entry.name:
                with contextlib.suppress(OSError):
                    # One that was made just now may not be locked yet.
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > 1 and _is_free(entry.path):
                        os.unlink(entry.path)


def _is_free(path: str) -> bool:
    with _locked(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))) as locked:
        return locked


@contextlib.contextmanager
def _locked(file: int) -> Iterator[bool]:
    """Lock an open file, and close it at the end. Gives False if another process has it locked, or nothing can be."""
    try:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except (ImportError, OSError):
            locked = False
        yield locked
    finally:
        os.close(file)


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
