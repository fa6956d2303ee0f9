"""`lalic bulk`: a data set compressed by several processes or by a Ray cluster.

    source -> shards (`lalic.shards`) -> workers: processes here, or Ray's -> TARGET

    TARGET/_bulk/options.json       what must not change between runs
    TARGET/_bulk/000000.jsonl       the manifest of shard 0, a line a picture; written last
    TARGET/a/b.lalic                files, or
    TARGET/000000.tar, .parquet     one file a shard

A later run does shards that have no manifest, and pictures that a manifest calls failed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from lalic.container import VERSION
from lalic.errors import RequestError, RunError, as_request, sentence
from lalic.files import Name
from lalic.options import EXECUTORS, FORMATS, set_up_process
from lalic.shards import Done, Settings, Shard, Stopped, Target, Worker, absolute, package, shards_of, utf8

if TYPE_CHECKING:
    from lalic.images import Color

__all__ = ["EXECUTORS", "FORMATS", "compress"]

ATTEMPTS = 3  # at a shard whose worker dies
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LOST = 10  # shards that could not be done, after which a run stops


def compress(
    source: Name,
    target: Name,
    *,
    form: str = "files",
    shard: int | None = None,
    quality: float | None = None,
    background: Color | None = None,
    strip: bool = False,
    psnr: bool = False,
    checkpoint: Name | None = None,
    precision: str | None = None,
    device: str = "cpu",
    executor: str = "local",
    workers: int | None = None,
    progress: Callable[[Done, int], None] | None = None,
) -> list[Done]:
    """Compress a data set. What an earlier run finished is not done again, what failed then is tried again.

    source: a folder (searched recursively), a glob, a .txt file with a path or URL a line, or a tar. Each tar among the
    files is a shard, whose other files are copied beside the pictures. target: a folder. Both are paths or URLs of
    fsspec. form: "files", "webdataset" (tars) or "parquet". shard: pictures of one; None for `lalic.shards.SHARD`.
    quality, background, strip: of `lalic.encode`. psnr: decode each picture, and note its PSNR in the manifest.
    checkpoint, precision: of `lalic.hub.load_model`; every worker reads the checkpoint. device: "cpu", "cuda" (one
    worker a GPU) or "cuda:N". executor: "local", processes of this machine, or "ray", the cluster that Ray finds, or a
    new one on this machine. workers: how many; None for one a core or GPU. One local worker is this process. progress:
    called with each finished shard, and the number of shards. Returns all shards, in the order in which they finished.

    Raises `RequestError` before any work for a source without pictures, names that clash, a bad option, and a target
    that holds other files or was begun with other options; `LalicError` for a missing package;
    `RunError` after `LOST` shards that could not be done.
    """
    from lalic.codec import resolve_device

    for name, value, known in (("form", form, FORMATS), ("executor", executor, EXECUTORS)):
        if value not in known:
            raise RequestError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    for name, count in (("shard", shard), ("workers", workers)):
        if count is not None and count < 1:
            raise RequestError(f"{name} is {count}, expected at least 1")
    if form == "parquet":
        package("pyarrow", "bulk")
    if executor == "ray":
        package("ray", "ray")
        if device not in ("cpu", "cuda"):
            raise RequestError(f"device is {device!r}, expected cpu or cuda: Ray gives each worker its GPU")
    else:
        resolve_device(device)
    if checkpoint is not None:  # workers may have another folder; what is not here may be a model of the Hub
        checkpoint = os.path.abspath(checkpoint) if os.path.exists(checkpoint) else os.fspath(checkpoint)
    settings = Settings(absolute(target), form, quality, background, strip, psnr, checkpoint, precision, device)
    shards = shards_of(os.fspath(source), settings, shard)
    settings = replace(settings, weights=_begin(settings, shards))
    finished, lost = [], 0
    for done in (_ray if executor == "ray" else _local)(settings, shards, workers):
        finished.append(done)
        if progress is not None:
            progress(done, len(shards))
        lost += done.error is not None
        if lost == LOST:
            raise RunError(f"{lost} shards could not be done, the last because: {done.error}")
    return finished


def _begin(settings: Settings, shards: Sequence[Shard]) -> str:
    """Check the options, and compare them with those of an earlier run, or store them. Returns the weights' hash."""
    from lalic import codec, hub, images

    model = hub.load_model(settings.checkpoint, precision=settings.precision)
    with as_request():
        background = None if settings.background is None else list(images.parse_color(settings.background))
        quality = codec.coded_quality(model, settings.quality)
    names = [shard.tar[0] if shard.tar else name for shard in shards for name, _ in shard.pictures or [("", "")]]
    options = {
        "format version": VERSION,
        "model": model.config.name,
        "weights": model.weights_hash().hex(),
        "precision": model.precision,
        "device": settings.device.partition(":")[0],
        "format": settings.form,
        "quality": quality,
        "background": background,
        "strip": settings.strip,
        "psnr": settings.psnr,
        "pictures of a shard": len(shards[0].pictures),
        "files of the source": len(names),
        "sha256 of the source's names": hashlib.sha256(utf8("\n".join(names))).hexdigest(),
    }
    target = Target(settings.target)
    text = target.get("_bulk/options.json")
    if text is None:
        if target.names() - {"_bulk"}:
            raise RequestError(f"the target {settings.target} holds other files, expected a new or an empty folder")
        target.put("_bulk/options.json", json.dumps(options, indent=2).encode())
    for name, before in json.loads(text or b"{}").items():
        if options.get(name) != before:
            raise RequestError(
                f"the target {settings.target} was begun with {name} {before}, and now it is {options.get(name)}: "
                "use the first again, or choose a new target"
            )
    return str(options["weights"])


# Who does the shards


def _local(settings: Settings, shards: Sequence[Shard], workers: int | None) -> Iterator[Done]:
    """Processes of this machine, each with a pipe to this one; one worker is this process itself."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    units = {"cpu": cores, "cuda": torch.cuda.device_count()}.get(settings.device, 1)
    workers = min(len(shards), workers or units)
    if workers == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from map(Worker(settings), shards)
        finally:
            torch.set_num_threads(before)
        return
    if settings.target.startswith("memory:"):
        raise RequestError("memory:// is the memory of one process, expected one local worker")
    context = multiprocessing.get_context("spawn")
    remaining = deque(shards)
    deaths: Counter[int] = Counter()  # by shard
    busy: dict[Any, tuple[Any, str, Shard]] = {}  # process, device and shard by the pipe to the process

    def start(device: str) -> None:
        link, other = context.Pipe()
        process = context.Process(target=_serve, args=(settings, device, other))
        # A worker inherits this, so a signal to the whole group does not meet it while it imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        other.close()
        busy[link] = process, device, remaining[0]
        send(link)

    def send(link: Any) -> None:
        """Give the process at `link` the next shard, or the end."""
        process, device, _ = busy[link]
        if remaining:
            busy[link] = process, device, remaining.popleft()
            with contextlib.suppress(OSError):  # it died: `recv` will say so
                link.send(busy[link][2])
        else:
            close(link)

    def close(link: Any) -> None:
        link.close()
        busy.pop(link)[0].join()

    try:
        for i in range(workers):
            start(f"cuda:{i % units}" if settings.device == "cuda" else settings.device)
        while busy:
            link: Any
            for link in connection.wait(list(busy)):
                _, device, shard = busy[link]
                try:
                    done = link.recv()
                except (EOFError, OSError):
                    close(link)
                    deaths[shard.index] += 1
                    if deaths[shard.index] < ATTEMPTS:
                        remaining.append(shard)
                    else:
                        yield Done(
                            shard.index, error=f"its worker died {ATTEMPTS} times (killed, or too little memory)"
                        )
                    if remaining:
                        start(device)
                else:
                    yield done
                    send(link)
    finally:  # also after an interrupt: a worker sees that its pipe is closed, and stops before its next picture
        for link in busy:
            link.close()
        for process, _, _ in busy.values():
            process.join()


def _serve(settings: Settings, device: str, link: connection.Connection) -> None:
    """A process: does shards from a pipe until it is closed."""
    for number in SIGNALS:  # they reach the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    set_up_process(1)
    with contextlib.suppress(EOFError, OSError, Stopped):
        work = Worker(settings, device, stopped=link.poll)
        while True:
            link.send(work(link.recv()))


def _ray(settings: Settings, shards: Sequence[Shard], workers: int | None) -> Iterator[Done]:
    """Tasks of a Ray cluster. Ray starts a task again, on another machine if need be, when its worker dies."""
    import ray

    if settings.target.startswith("memory:"):
        raise RequestError("memory:// is the memory of one process, expected a target that all machines reach")
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    unit = "GPU" if settings.device == "cuda" else "CPU"
    gpus = 1 if unit == "GPU" else 0
    # max_calls: processes stay, and keep their model, also on a GPU.
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=ATTEMPTS - 1, max_calls=0, scheduling_strategy="SPREAD")(
        _ray_task
    )
    workers = workers or max(1, int(ray.cluster_resources().get(unit, 1)))
    remaining = iter(shards)
    busy: dict[Any, Shard] = {}
    try:
        while True:
            for shard in itertools.islice(remaining, workers - len(busy)):
                busy[task.remote(settings, shard)] = shard
            if not busy:
                return
            (ready,), _ = ray.wait(list(busy))
            shard = busy.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                yield Done(shard.index, error=f"Ray gave it up: {sentence(error)}")
    finally:
        for ready in busy:
            ray.cancel(ready)
        if busy:
            ray.wait(list(busy), num_returns=len(busy), timeout=60)


def _ray_task(settings: Settings, shard: Shard) -> Done:
    set_up_process(1)
    return _ray_worker(settings)(shard)


@functools.lru_cache(maxsize=1)
def _ray_worker(settings: Settings) -> Worker:
    return Worker(settings)
