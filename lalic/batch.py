"""Many files: `compress_files` and `decompress_files`, which return an `Outcome` for each.

One thread reads the next files, the caller's thread codes, and other threads write results. Few files are in memory at
a time, whatever their number. Files are written whole or not at all; after an interrupt, files that are being written
are finished, and no other is begun. Meanwhile the process shows no warnings: those about pictures go to the outcomes.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from lalic import codec, images, search
from lalic.container import MAGIC, MAX_PIXELS, parse
from lalic.errors import LalicError, RequestError, as_request
from lalic.files import STREAM, FileBytes, Name, WouldOverwrite, make_folder_of, read, replacing, write, writing
from lalic.files import search as search_folder
from lalic.images import Color, ImageWarning, Picture
from lalic.model import LALIC
from lalic.refine import check_effort
from lalic.strips import needs_strips, write_strips
from lalic_kernels.threads import submit

__all__ = ["Job", "Outcome", "Saved", "Steps", "compress_files", "decompress_files", "plan", "run"]

READ_AHEAD = 2  # files that are read in advance, beyond one batch
WRITERS = 2  # threads
WRITE_BEHIND = 3  # files that wait to be written
GPU_BATCH = 8  # files that a GPU decodes at once
LARGE_FILE = 1 << 24  # bytes from which a .lalic file is read part by part, while it is decoded


@dataclass
class Outcome:
    """Result of one file.

    Attributes:
        source, target: names; "-" is standard input or output.
        width, height: of the picture in pixels; 0 if the file failed. size: bytes written.
        quality: of the .lalic file; None for a model of one quality and for decompressed files.
        seconds: of work on this file, without waiting.
        warnings: one sentence for each part of the picture file that was ignored.
        error: why the file failed; None if it was written, or skipped.
        skipped: the target existed, and `skip_existing` was asked for.
    """

    source: str
    target: str
    width: int = 0
    height: int = 0
    size: int = 0
    quality: float | None = None
    seconds: float = 0.0
    warnings: list[str] = field(default_factory=list)
    error: Exception | None = None
    skipped: bool = False


def compress_files(
    sources: Sequence[Name],
    output: Name | None = None,
    model: LALIC | None = None,
    *,
    device: str | torch.device | None = None,
    quality: float | None = None,
    target_bpp: float | None = None,
    target_psnr: float | None = None,
    effort: float | None = None,
    background: Color | None = None,
    strip: bool = False,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_extension: bool = False,
    progress: Callable[[Outcome, int], None] | None = None,
    effort_progress: Callable[[float, int], None] | None = None,
) -> list[Outcome]:
    """Compress pictures to .lalic files. A file that fails does not stop the others. Returns the outcomes in order.

    sources, output, keep_extension: arguments of `plan`. model, device, quality, effort (of each picture), background,
    strip, max_pixels, graph: of `lalic.encode`. target_bpp, target_psnr: search the quality for these bits per pixel or
    this PSNR in dB (`lalic.search`), in place of `quality` and without effort. overwrite: replace files that exist.
    skip_existing: leave them, which is then no error. progress: called with each outcome in order, and the number of
    files. effort_progress: called in each picture with effort, as `lalic.codec.Prepared.encode` calls it.

    Raises `RequestError` before any work for names that clash, a device that does not exist, a quality or an effort
    that the model does not have, a target that no file can meet, a background that is no colour, and options that
    contradict.
    """
    given = [value for value in (quality, target_bpp, target_psnr) if value is not None]
    if len(given) > 1:
        raise RequestError(f"quality, target_bpp, target_psnr: expected at most one of them, got {len(given)}")
    if effort is not None and (target_bpp is not None or target_psnr is not None):
        raise RequestError("effort: expected with a quality, not with a target, which the refined file would miss")
    pictures = images.readable_extensions()
    jobs = plan(sources, output, ".lalic", pictures, keep_extension=keep_extension)
    for job in jobs:
        if os.path.splitext(job.target)[1].lower() in pictures:
            raise RequestError(f"-o {job.target} ends as a picture does, expected the name of a .lalic file")
    with as_request():  # once, not for each picture
        codec.resolve_device(device)
        if background is not None:
            images.parse_color(background)
        first = model or codec.shipped_model(device=device)
        codec.coded_quality(first, quality)
        check_effort(first, effort)
        search.check_target(target_bpp, "bits per pixel")
        search.check_target(target_psnr, "dB")
    options: dict[str, Any] = {"device": device, "max_pixels": max_pixels, "graph": graph}

    def load(source: str) -> Picture:
        given = read(source) if source == STREAM else source
        return images.open_picture(given, background=background, strip=strip, max_pixels=max_pixels)

    def encode(picture: Picture) -> bytes:
        if target_bpp is not None:
            return search.encode_to_bpp(picture, target_bpp, model, **options).data
        if target_psnr is not None:
            return search.encode_to_psnr(picture, target_psnr, model, **options).data
        if effort is not None:
            prepared = codec.Prepared(picture, model, **options)
            return prepared.encode(quality, effort=effort, progress=effort_progress)
        return codec.encode(picture, model, quality=quality, **options)

    def save(target: str, data: bytes) -> Saved:
        write(target, data, overwrite=overwrite)
        container = parse(data, None, copy=False)
        return Saved(len(data), container.width, container.height, container.quality)

    steps = Steps(load, lambda pictures: [encode(picture) for picture in pictures], save)
    return run(jobs, steps, overwrite=overwrite, skip_existing=skip_existing, progress=progress)


def decompress_files(
    sources: Sequence[Name],
    output: Name | None = None,
    model: LALIC | None = None,
    *,
    region: Sequence[int] | None = None,
    scale: int = 1,
    device: str | torch.device | None = None,
    max_pixels: int = MAX_PIXELS,
    graph: bool | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    keep_extension: bool = False,
    progress: Callable[[Outcome, int], None] | None = None,
) -> list[Outcome]:
    """Decompress .lalic files to pictures. A file that fails does not stop the others. Returns the outcomes in order.

    Pictures are PNG files; if `output` names one file, its extension decides the format. A GPU decodes several files of
    one size at once. sources, output, keep_extension: arguments of `plan`. model, region, scale, device, max_pixels,
    graph: of `lalic.decode`. overwrite: replace files that exist. skip_existing: leave them, which is then no error.
    progress: called with each outcome in order, and the number of files.

    Raises `RequestError` before any work for names that clash, an extension that Pillow cannot write, a device that
    does not exist, and options that contradict.
    """
    jobs = plan(sources, output, ".png", [".lalic"], keep_extension=keep_extension)
    with as_request():
        for extension in sorted({_extension(job.target) for job in jobs if job.problem is None}):
            images.dump(Image.new("RGB", (1, 1)), extension)  # fails now, not after decoding
        on_gpu = codec.resolve_device(device).type == "cuda"
    part: dict[str, Any] = {"region": region, "scale": scale}
    whole = region is None and scale == 1
    several = on_gpu and whole and max_pixels <= MAX_PIXELS
    options: dict[str, Any] = {"device": device, "max_pixels": max_pixels, "graph": graph}

    def load(source: str) -> bytes | FileBytes:
        if source == STREAM or not os.path.isfile(source) or os.path.getsize(source) < LARGE_FILE:
            return read(source, MAGIC)
        return FileBytes(open(source, "rb"))

    def decode(files: list[bytes | FileBytes]) -> list[Any]:
        if len(files) > 1:
            return list(codec.decode_many(files, model, batch=len(files), **options))
        container = parse(files[0], max_pixels, copy=False)
        if whole and needs_strips(container.width, container.height):
            return files  # `save` decodes it while it writes
        return [codec.decode(files[0], model, **part, **options)]

    def save(target: str, picture: Image.Image | bytes | FileBytes) -> Saved:
        if isinstance(picture, bytes | FileBytes):
            return save_strips(target, picture)
        with writing(target, overwrite=overwrite) as out:
            images.save(picture, _extension(target), out)
            size = out.seek(0, os.SEEK_END)
        return Saved(size, picture.width, picture.height)

    def save_strips(target: str, data: bytes | FileBytes) -> Saved:
        container = parse(data, max_pixels, copy=False)
        if target == STREAM:
            raise LalicError(f"a picture above {MAX_PIXELS} pixels is not written to standard output; give -o OUT")
        make_folder_of(target)
        parts = codec.decode_parts(data, model, **options)
        with replacing(target, overwrite=overwrite) as temporary:
            write_strips(parts, (container.width, container.height), temporary, container.metadata)
        return Saved(os.path.getsize(target), container.width, container.height)

    steps = Steps(load, decode, save, GPU_BATCH if several else 1)
    return run(jobs, steps, overwrite=overwrite, skip_existing=skip_existing, progress=progress)


def _extension(target: str) -> str:
    """Extension of the picture to write; PNG for standard output and a device such as /dev/null."""
    if target == STREAM or (os.path.exists(target) and not os.path.isfile(target)):
        return ".png"
    return os.path.splitext(target)[1]


# Which files are read and written


@dataclass(frozen=True)
class Job:
    """One file to read and one to write; either may be "-", standard input or output.

    problem: why it cannot be done; such a source may be a folder that cannot be read.
    """

    source: str
    target: str
    problem: Exception | None = None


def plan(
    sources: Sequence[Name],
    output: Name | None,
    suffix: str,
    take: Collection[str],
    *,
    keep_extension: bool = False,
) -> list[Job]:
    """Which file is read and which is written, before any work starts.

    sources: files, folders (searched by `lalic.files.search` for the extensions in `take`) or "-", standard input.
    output: None: next to each source, with `suffix` (such as ".lalic") in place of its extension, if this is one of
    `take`, and else behind it. For one source that is a file: the name of the file to write, or a folder. For several:
    a folder, made if it does not exist, with the structure of each source folder. "-": standard output, which is also
    the default for the source "-". keep_extension: `suffix` is always added behind.

    Two files of one folder that would be written to one target are jobs with a problem, and so is a folder in a folder
    that cannot be read. An `ImageWarning` says what is left out of a folder.

    Raises `RequestError` if a source is missing, a folder has no such files, two sources that are named have one
    target, a target is a source, a name is empty, or `output` names a file for several sources. It does not check
    whether targets exist.
    """
    if isinstance(sources, str | bytes | os.PathLike):
        raise TypeError(f"sources is of type {type(sources).__name__}, expected a list of names")
    names = [os.fspath(source) for source in sources]
    out = None if output is None else os.fspath(output)
    if out == "":
        raise RequestError("-o is an empty name, expected that of a file or a folder")
    if STREAM in names:
        if len(names) > 1:
            raise RequestError(f"{STREAM} (standard input) cannot be combined with other inputs")
        return [Job(STREAM, STREAM if out is None else out)]
    for source in names:
        if not source:
            raise RequestError("an input is an empty name, expected that of a file or a folder")
        if not os.path.exists(source):
            raise RequestError(f"{source}: there is no such file or folder")
    single = len(names) == 1 and not os.path.isdir(names[0])
    if out == STREAM and not single:
        raise RequestError(f"-o {STREAM} (standard output) takes exactly one input file")
    if out is not None and not os.path.isdir(out) and not out.endswith(("/", os.sep)):
        if single:
            jobs = [Job(names[0], out)]
            _refuse_clashes(jobs)
            return jobs
        if os.path.exists(out):
            raise RequestError(f"-o {out} is a file, expected a folder for several inputs")
        if os.path.splitext(out)[1].lower() in {".lalic", *images.readable_extensions()}:
            raise RequestError(f"-o {out} is the name of a file, expected a folder for several inputs ({out}/ is one)")
    jobs, named = [], []
    for source in names:
        root = Path(source)
        folder = root.is_dir()
        if folder:
            found = search_folder(root, take)
            if words := found.left_out():
                warnings.warn(words, ImageWarning, stacklevel=3)
            if not found.files and not found.unreadable:
                endings = f"one of {len(take)} picture extensions" if len(take) > 1 else ", ".join(take)
                raise RequestError(f"{source}: this folder holds no file that ends in {endings}")
            jobs += [Job(str(error.filename), "", error) for error in found.unreadable]
            pairs = [(file, file.relative_to(root)) for file in found.files]
        else:
            pairs = [(root, Path(root.name))]
        for file, inside in pairs:
            target = file if out is None else Path(out) / inside
            whole = keep_extension or target.suffix.lower() not in take
            name = str(file) if str(file) != STREAM else os.path.join(".", STREAM)  # "./-" is a file
            target = target.with_name(target.name + suffix) if whole else target.with_suffix(suffix)
            jobs.append(Job(name, str(target)))
            named += [] if folder else jobs[-1:]
    _refuse_clashes(named)
    jobs = _with_clashes(jobs)
    _refuse_clashes([job for job in jobs if job.problem is None])
    return jobs


def _with_clashes(jobs: Sequence[Job]) -> list[Job]:
    """The jobs, with a problem for those of one folder that have one target."""
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((os.path.dirname(job.source), _identity(job.target)), []).append(job)

    def checked(job: Job) -> Job:
        group = groups[os.path.dirname(job.source), _identity(job.target)]
        others = sorted({os.path.basename(other.source) for other in group} - {os.path.basename(job.source)})
        if job.problem is not None or not others:
            return job
        return replace(
            job,
            problem=RequestError(
                f"{' and '.join(others)} beside it would be written to {job.target} too; --keep-extension adds to the "
                "whole name"
            ),
        )

    return [checked(job) for job in jobs]


def _refuse_clashes(jobs: Sequence[Job]) -> None:
    sources = {_identity(job.source): job.source for job in jobs}
    targets: dict[str, Job] = {}
    for job in jobs:
        if job.target == STREAM:
            continue
        key = _identity(job.target)
        if key in sources:
            raise RequestError(f"{job.source} would be written to {job.target}, which is itself an input")
        if key in targets:
            first = targets[key].source
            if _identity(first) == _identity(job.source):
                raise RequestError(f"{job.source} is named twice")
            raise RequestError(
                f"{first} and {job.source} would both be written to {job.target}; run them one by one with -o, or add "
                "to the whole names with --keep-extension"
            )
        targets[key] = job


def _identity(path: str) -> str:
    return os.path.normcase(os.path.realpath(path))


# Reading, coding and writing at once


class Saved(NamedTuple):
    """A file that was written: its bytes, and other entries of its outcome."""

    size: int
    width: int
    height: int
    quality: float | None = None


@dataclass(frozen=True)
class Steps:
    """The steps for each file.

    open: name of the source -> input of `code`, in a thread of its own. code: a list of inputs -> a list of results or
    errors, in the caller's thread. save: writes a result to the target, in any thread. batch: largest number of inputs
    for one call of `code`.
    """

    open: Callable[[str], Any]
    code: Callable[[list[Any]], list[Any]]
    save: Callable[[str, Any], Saved]
    batch: int = 1


def run(
    jobs: Sequence[Job],
    steps: Steps,
    *,
    overwrite: bool = False,
    skip_existing: bool = False,
    progress: Callable[[Outcome, int], None] | None = None,
) -> list[Outcome]:
    """Do every job, and return the outcomes in order.

    overwrite: replace files that exist. skip_existing: leave them, which is then no error. progress: called with each
    outcome in order, and the number of jobs, while threads go on working.
    """
    if overwrite and skip_existing:
        raise RequestError("overwrite and skip_existing contradict: expected one of them")
    outcomes: list[Outcome] = []

    def opened(job: Job) -> tuple[Outcome, Any]:
        def step() -> Any:
            if job.problem is not None:
                raise job.problem
            if job.target != STREAM and not overwrite and os.path.isfile(job.target):
                raise WouldOverwrite(job.target)
            return steps.open(job.source)

        outcome = Outcome(job.source, job.target)
        return outcome, _attempt(outcome, step)

    def written(outcome: Outcome, result: Any) -> Outcome:
        saved = _attempt(outcome, lambda: steps.save(outcome.target, result))
        if saved is not None:
            outcome.size, outcome.width, outcome.height, outcome.quality = saved
        return outcome

    def finish(outcome: Outcome) -> None:
        if skip_existing and isinstance(outcome.error, WouldOverwrite):
            outcome.error, outcome.skipped = None, True
        outcomes.append(outcome)
        if progress is not None:
            progress(outcome, len(jobs))

    with _warnings_by_thread():
        if len(jobs) == 1:
            (file,) = _coded([opened(jobs[0])], steps)
            finish(written(*file))
            return outcomes
        readers = ThreadPoolExecutor(1, "lalic-read")
        writers = ThreadPoolExecutor(WRITERS, "lalic-write")
        reading: deque[Future[tuple[Outcome, Any]]] = deque()
        writing: deque[Future[Outcome]] = deque()
        remaining = iter(jobs)

        def read_ahead() -> None:
            while len(reading) < steps.batch + READ_AHEAD and (job := next(remaining, None)) is not None:
                reading.append(submit(readers, opened, job))

        try:
            read_ahead()
            while reading:
                files = [reading.popleft().result() for _ in range(min(steps.batch, len(reading)))]
                read_ahead()
                writing += [submit(writers, written, *file) for file in _coded(files, steps)]
                while writing and (len(writing) > WRITE_BEHIND or writing[0].done()):
                    finish(writing.popleft().result())
            while writing:
                finish(writing.popleft().result())
        finally:  # also after an interrupt: files that are being written are finished, no other is begun
            readers.shutdown(wait=True, cancel_futures=True)
            writers.shutdown(wait=True, cancel_futures=True)
    return outcomes


def _coded(files: list[tuple[Outcome, Any]], steps: Steps) -> list[tuple[Outcome, Any]]:
    """Code several files at once. They share the time, and an error that is not about one file."""
    good = [outcome for outcome, _ in files if outcome.error is None]
    if not good:
        return files
    values = [value for outcome, value in files if outcome.error is None]
    shared = Outcome("", "", warnings=good[0].warnings)
    coded = _attempt(shared, lambda: steps.code(values))
    results = iter([shared.error] * len(good) if coded is None else coded)
    done = []
    for outcome, _ in files:
        result = None
        if outcome.error is None:
            result = next(results)
            outcome.seconds += shared.seconds / len(good)
            outcome.error = result if isinstance(result, Exception) else None
        done.append((outcome, result))
    return done


def _attempt(outcome: Outcome, step: Callable[[], Any]) -> Any:
    """Do one step for a file, unless an earlier one failed. Its time, warnings and error go to the outcome."""
    if outcome.error is not None:
        return None
    start = time.perf_counter()
    _thread.warnings = outcome.warnings
    try:
        return step()
    except Exception as error:  # one bad file does not stop the others
        outcome.error = error
    finally:
        _thread.warnings = None
        outcome.seconds += time.perf_counter() - start


_thread = threading.local()
_runs, _runs_lock = 0, threading.Lock()  # runs in several threads share the warnings of the process
_callers_warnings = ExitStack()


@contextmanager
def _warnings_by_thread() -> Iterator[None]:
    """Ignore warnings of libraries; those about a picture go to the outcome of the file that the thread works on."""

    global _runs
    with _runs_lock:
        if _runs == 0:
            _callers_warnings.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", ImageWarning)
            warnings.showwarning = _note
        _runs += 1
    try:
        yield
    finally:
        with _runs_lock:
            _runs -= 1
            if _runs == 0:
                _callers_warnings.close()


def _note(message: Warning | str, *_: Any, **__: Any) -> None:
    into = getattr(_thread, "warnings", None)
    if into is not None:
        into.append(str(message))
