"""Files on disk: writing whole files or none, and finding out what is to be read and written before work starts."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lalic.errors import LalicError

__all__ = ["STREAM", "Job", "PlanError", "plan", "write_atomic"]

STREAM = "-"  # stands for standard input or standard output


class PlanError(LalicError):
    """What was asked cannot be done without losing a file or guessing: said before any work starts."""


@dataclass(frozen=True)
class Job:
    """One file to read and one to write; either may be `STREAM`."""

    source: str
    target: str


def write_atomic(path: str | os.PathLike, data: bytes, *, overwrite: bool = True) -> None:
    """Write `data` to `path` so that nobody ever sees half of it, whatever happens in between.

    The bytes go to a temporary name in the same folder, are flushed to the disk, and the file is renamed; on any error
    the temporary file is removed. With `overwrite=False` an existing file stays, and `FileExistsError` is raised even
    if it appeared a moment ago. Permissions are those of a newly created file (0666 less the umask).
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
        raise FileExistsError(errno.EEXIST, "exists already", path) from None
    except OSError:  # a file system without hard links (FAT, some network mounts): a short race remains
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "exists already", path) from None
        os.replace(temporary, path)
        return
    os.unlink(temporary)


def plan(sources: Sequence[str], out: str | None, suffix: str, take: Collection[str]) -> list[Job]:
    """Which file is read and which is written, all of it before any work starts.

    sources: files, folders (searched recursively for the extensions in `take`, hidden names left out) or `STREAM`.
    out: None: next to each source, with `suffix` (such as ".lalic") for its own. A name, when there is one source that
    is a file and `out` is no folder: written there. Otherwise a folder, made if need be, in which the structure below
    each source folder is mirrored. `STREAM`: standard output; it is also the default when the source is `STREAM`.

    Raises `PlanError` if a source is missing, nothing is found, two sources share a target, or a target is a source.
    Whether a target exists already is not looked at here.
    """
    if STREAM in sources:
        if len(sources) > 1:
            raise PlanError(f"{STREAM} (standard input) cannot be combined with other inputs")
        return [Job(STREAM, STREAM if out is None else out)]
    for source in sources:
        if not os.path.exists(source):
            raise PlanError(f"{source}: there is no such file or folder")
    single = len(sources) == 1 and not os.path.isdir(sources[0])
    if out == STREAM and not single:
        raise PlanError(f"-o {STREAM} (standard output) takes exactly one input file")
    if out is not None and single and not os.path.isdir(out) and not out.endswith(("/", os.sep)):
        jobs = [Job(sources[0], out)]
    else:
        if out is not None and os.path.exists(out) and not os.path.isdir(out):
            raise PlanError(f"-o {out} is a file, expected a folder for several inputs")
        jobs = []
        for source in sources:
            root = Path(source)
            found = _walk(root, take) if root.is_dir() else [root]
            if not found:
                raise PlanError(f"{source}: this folder holds no file that ends in {_list(take)}")
            for file in found:
                inside = file.relative_to(root) if root.is_dir() else Path(file.name)
                target = file if out is None else Path(out) / inside
                jobs.append(Job(str(file), str(target.with_suffix(suffix))))
    _refuse_clashes(jobs)
    return jobs


def _walk(root: Path, take: Collection[str]) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.suffix.lower() in take)


def _list(take: Collection[str]) -> str:
    return f"one of {len(take)} picture extensions" if len(take) > 1 else ", ".join(take)


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    sources = {_identity(job.source): job.source for job in jobs}
    targets: dict[str, Job] = {}
    for job in jobs:
        if job.target == STREAM:
            continue
        key = _identity(job.target)
        if key in sources:
            raise PlanError(f"{job.source} would be written to {job.target}, which is itself an input")
        if key in targets:
            first = targets[key].source
            if _identity(first) == _identity(job.source):
                raise PlanError(f"{job.source} is named twice")
            raise PlanError(
                f"{first} and {job.source} would both be written to {job.target}; run them one by one with -o"
            )
        targets[key] = job


def _identity(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))
