"""Where compiled code is kept on disk: numba's for the CPU, and Triton's if its own folder cannot be written to.

    NUMBA_CACHE_DIR                     if it is set, this folder alone
    __pycache__ of this package         next to the sources
    the user's cache folder             XDG_CACHE_HOME or ~/.cache; ~/Library/Caches; %LOCALAPPDATA%
    the folder for temporary files      lalic-UID in it, which is the user's own and closed to others

Code is read from the first folder that has it and written to the first that takes it. If none does, each process
compiles anew. A file that is damaged, cut off or not readable counts as absent, and is written again.

A file holds one function for one signature. Its name has a hash of all that the machine code depends on: the source of
the function and of what it imports, the versions of numba, LLVM and Python, and the processor. So no process can get
code of another release. Files are renamed into place in one step; there are no locks.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parent
_CHECKSUM = hashlib.sha256().digest_size


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)


_tell: Callable[[str], None] = _warn
_told = False


def on_not_kept(tell: Callable[[str], None]) -> None:
    """Call `tell` with a sentence, once in the process, if compiled code cannot be kept. The default is a warning."""
    global _tell
    _tell = tell


def folders(*, make: bool = False) -> Iterator[Path]:
    """Folders where code of numba may be, in order. make: that of the user among the temporary files is made."""
    installation = f"lalic_kernels-{hashlib.sha256(os.fsencode(_PACKAGE)).hexdigest()[:16]}"
    if given := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(given, installation)
        return
    yield _PACKAGE / "__pycache__"
    if root := _user_folder():
        yield root / "lalic" / installation
    if root := _temporary_folder(make):
        yield root / installation


def triton_folder() -> Path | None:
    """The folder for what Triton compiles, if the user names none and Triton's own cannot be written to."""
    if os.environ.get("TRITON_CACHE_DIR"):
        return None
    own = Path(os.environ.get("TRITON_HOME") or os.path.expanduser("~"), ".triton", "cache")
    root = None if _takes_files(own) else _temporary_folder(make=True)
    return root and root / "triton"


def kept_in() -> Path | None:
    """The folder that takes code of numba now; None if there is none."""
    return next(filter(_takes_files, folders(make=True)), None)


def _takes_files(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _user_folder() -> Path | None:
    if sys.platform == "win32":
        named = os.environ.get("LOCALAPPDATA", "")
    elif sys.platform == "darwin":
        named = os.path.expanduser("~/Library/Caches")
    else:
        named = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(named) if os.path.isabs(named) else None


def _temporary_folder(make: bool) -> Path | None:
    """The folder, if no other user can write to it: what is read from it is executed."""
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"  # on Windows each user has another temporary folder
    try:
        folder = Path(tempfile.gettempdir(), f"lalic-{user}")
        if make:
            folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o022):
        return None
    return folder


# Files


def read(name: str) -> Iterator[bytes]:
    """The intact contents of the file in each folder that has it."""
    for folder in folders():
        with contextlib.suppress(OSError):
            content = (folder / name).read_bytes()
            if hashlib.sha256(content[_CHECKSUM:]).digest() == content[:_CHECKSUM]:
                yield content[_CHECKSUM:]


def write(name: str, data: bytes) -> None:
    """Write the file to the first folder that takes it, and remove those of older sources of the function there.

    name: FUNCTION.SOURCE.KEY.nbc: the function's name, `source_hash`, and a hash of all else.
    """
    problem: OSError | None = None
    for folder in folders(make=True):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(folder / name, hashlib.sha256(data).digest() + data)
        except OSError as error:
            problem = problem or error
            continue
        _remove_older(folder, name)
        return
    global _told
    if not _told:
        _told = True
        reason = f" ({problem.filename}: {problem.strerror})" if problem else ""
        _tell(
            f"compiled code is not kept on disk{reason}, so each process compiles it anew; NUMBA_CACHE_DIR names a "
            "folder for it"
        )


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename = os.fspath(path.parent)
        raise


def _remove_older(folder: Path, name: str) -> None:
    function, source, _ = name.split(".", 2)
    for path in folder.glob(f"{function}.*.nbc*"):
        if path.name.split(".")[1] != source:
            with contextlib.suppress(OSError):
                path.unlink()


_IMPORT = re.compile(r"^from (lalic_kernels[\w.]*) import (\w*)", re.MULTILINE)


@functools.cache
def source_hash(module: str) -> str | None:
    """Of the source of a module and of those of this package that it imports; None if a source is not there.

    Taken when the module is imported: files on disk may be of another release later.
    """
    sources: dict[str, str | None] = {}

    def add(name: str) -> None:
        found = sys.modules.get(name)
        if found is None or name in sources or hasattr(found, "__path__"):
            return
        read = getattr(getattr(found.__spec__, "loader", None), "get_source", None)
        sources[name] = source = read(name) if read else None
        for package, word in _IMPORT.findall(source or ""):
            add(package)
            add(f"{package}.{word}")

    add(module)
    if not sources or None in sources.values():
        return None
    return hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:16]
