"""Shards of a data set: which pictures they hold, and the worker that does one. `lalic.bulk` has the rest.

A shard is N pictures, or one tar. A worker reads it, codes it with one thread, writes its pictures, and last its
manifest, in one step: a shard with a manifest is finished. What is written depends on the source and the options alone,
so a shard that is done twice gives the same bytes in the same place.

A worker holds the model, `READ_AHEAD` + `WINDOW` of source files, one picture in pixels, and what the shard writes.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import itertools
import json
import math
import posixpath
import tarfile
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from glob import has_magic
from typing import TYPE_CHECKING, Any

from lalic import files
from lalic.container import parse
from lalic.errors import LalicError, RequestError, sentence

if TYPE_CHECKING:
    from lalic.batch import Saved
    from lalic.images import Color
    from lalic.model import LALIC

__all__ = ["Done", "Settings", "Shard", "Stopped", "Target", "Worker", "absolute", "package", "shards_of", "utf8"]

SHARD = 1000  # pictures; fewer for a small source, to have 64 shards that workers share
CONNECTIONS = 8  # threads of a worker that read or write files
READ_AHEAD = 16  # files
WINDOW = 1 << 27  # bytes of source files that are sorted by size together
NAMED = 10  # failed pictures of a shard that are named


@dataclass(frozen=True)
class Settings:
    """What a worker is told besides its shards: the arguments of `lalic.bulk.compress`."""

    target: str
    form: str
    quality: float | None
    background: Color | None
    strip: bool
    psnr: bool
    checkpoint: str | None
    precision: str | None
    device: str
    weights: str = ""  # their hash


@dataclass(frozen=True)
class Shard:
    """Pictures by (name below the source, URL); or none, and one tar by name and URL."""

    index: int
    pictures: tuple[tuple[str, str], ...] = ()
    tar: tuple[str, str] | None = None


@dataclass
class Done:
    """What became of a shard.

    pictures: in it, of which were `coded` now and `failed`. failures: path and error of the first that failed.
    error: why nothing was done, else None.
    """

    index: int
    pictures: int = 0
    coded: int = 0
    failed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    failures: tuple[tuple[str, str], ...] = ()
    error: str | None = None


def package(name: str, extra: str) -> Any:
    """A package of an extra. Raises `LalicError` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing = name.partition(".")[0]
        raise LalicError(f'the package {missing} is needed and not installed: pip install "lalic[{extra}]"') from None


# Files by URL


def _filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    core = package("fsspec.core", "bulk")
    if url.startswith("file://") or "://" not in url:  # else fsspec would take :: in a name for a chain of URLs
        fs = package("fsspec", "bulk").filesystem("file")
        return fs, fs._strip_protocol(url)
    try:
        return core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a protocol that is unknown, or whose package is missing
        raise RequestError(" ".join(f"{url}: {error}".split())) from None


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def absolute(name: files.Name) -> str:
    """A path or URL as a URL that is the same for every process."""
    fs, path = _filesystem(str(name))
    return str(fs.unstrip_protocol(posixpath.normpath(path) if _is_local(fs) else path))


class Target:
    """The folder that is written to. A file is written whole or not at all."""

    def __init__(self, url: str) -> None:
        self.fs, self.root = _filesystem(url)
        if _is_local(self.fs):
            files.check_folder(self.root)

    def get(self, name: str) -> bytes | None:
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None

    def put(self, name: str, data: bytes) -> None:
        path = f"{self.root}/{name}"
        if _is_local(self.fs):
            files.write(path, data)  # a temporary file, renamed
            return
        try:
            self.fs.pipe_file(path, data)
        except FileNotFoundError:
            self.fs.makedirs(posixpath.dirname(path), exist_ok=True)
            self.fs.pipe_file(path, data)

    def names(self) -> set[str]:
        """What the folder holds, without hidden names."""
        try:
            names = {posixpath.basename(entry["name"].rstrip("/")) for entry in self.fs.ls(self.root, detail=True)}
        except FileNotFoundError:
            return set()
        return {name for name in names if not name.startswith(".")}


# The source


def shards_of(source: str, settings: Settings, size: int | None) -> list[Shard]:
    """The shards of a source, in order. size: pictures of one. Raises `RequestError` as `lalic.bulk.compress` does."""
    found = _listed(source, settings.target)
    outputs: dict[str, str] = {}
    for name, _ in found:
        output = name if _extension(name) == ".tar" else _output(name, settings.form)
        if output in outputs:
            raise RequestError(f"{outputs[output]} and {name} would both be written to {output}")
        outputs[output] = name
    pictures = [each for each in found if _extension(each[0]) != ".tar"]
    size = size or min(SHARD, max(10, -(-len(pictures) // 64)))
    starts = range(0, len(pictures), size)
    shards = [Shard(i, tuple(pictures[start : start + size])) for i, start in enumerate(starts)]
    tars = [each for each in found if _extension(each[0]) == ".tar"]
    return shards + [Shard(i, tar=tar) for i, tar in enumerate(tars, len(shards))]


def _listed(source: str, target: str) -> list[tuple[str, str]]:
    """(name, URL) of each picture and tar of a source, in order. Names begin below the folder that holds them all."""
    url = absolute(source)
    fs, path = _filesystem(url)
    root = None
    if _extension(path) == ".txt":
        if not fs.exists(path):
            raise RequestError(f"{source}: there is no such file")
        # As names of files are text to Python: any bytes. Some editors put a byte order mark first.
        text = fs.cat_file(path).decode("utf-8-sig", "surrogateescape")
        lines = [line.strip(" \t\r") for line in text.split("\n")]
        folder = posixpath.dirname(url)
        urls = [absolute(a if "://" in a or a.startswith("/") else f"{folder}/{a}") for a in lines if a]
    elif fs.isfile(path):
        urls = [url]
    else:
        if fs.isdir(path):
            root = url
            if f"{target}/".startswith(f"{root}/"):
                raise RequestError(f"the target {target} is inside the source, expected a folder elsewhere")
            paths = [file for file in _all_below(fs, path) if "/." not in file[len(path) :]]  # no hidden names
        else:
            paths = fs.glob(path)
        take = _picture_extensions() | {".tar"}
        urls = [fs.unstrip_protocol(file) for file in sorted(paths) if _extension(file) in take]
    if not urls:
        there = root is not None or has_magic(path)
        raise RequestError(f"{source}: there {'are no pictures' if there else 'is no such file or folder'}")
    folders = [root.split("/")] if root else [url.split("/")[:-1] for url in urls]
    pairs = zip(min(folders), max(folders), strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    found = [("/".join(url.split("/")[common:]), url) for url in urls]
    for name, url in found:
        if not _inside(name):
            raise RequestError(f"{url}: expected all files of a source on one file system, and no .. in their names")
    return found


def _all_below(fs: Any, path: str) -> list[str]:
    """The files of a folder and its folders. Raises `RequestError` for a folder that cannot be read."""
    if not _is_local(fs):
        return list(fs.find(path))
    found = files.search(path, _picture_extensions() | {".tar"})
    if found.unreadable:
        raise RequestError(sentence(found.unreadable[0]))
    if words := found.left_out():
        warnings.warn(words, files.ImageWarning, stacklevel=2)
    return [file.as_posix() for file in found.files]


def _extension(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


@functools.cache
def _picture_extensions() -> frozenset[str]:
    from lalic.images import readable_extensions

    return readable_extensions()


def _is_picture(name: str) -> bool:
    return _extension(name) in _picture_extensions()


def _inside(name: str) -> bool:
    """Whether a name stays in the folder that it is joined to."""
    return not {"", ".", ".."} & set(name.split("/"))


def _output(name: str, form: str) -> str:
    """Name of the .lalic file of a picture."""
    folder, base = posixpath.split(posixpath.splitext(name)[0] if _is_picture(name) else name)
    if form == "webdataset":  # whose readers take all behind the first dot for the extension
        base = base.replace(".", "_")
    return posixpath.join(folder, f"{base}.lalic")


def _sample(name: str) -> str:
    """What the names of the files of one sample of a WebDataset have in common."""
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


# The worker


@dataclass
class Entry:
    """A file of a shard. path: below the source. output: below the target, or in the shard's tar.

    data: what is written. row: of a picture, its line of the manifest. kept: an earlier run wrote it.
    """

    path: str
    output: str
    data: bytes = b""
    row: dict[str, Any] | None = None
    kept: bool = False


class Stopped(BaseException):
    """The run is being stopped; nothing of the shard is written."""


class Worker:
    """Does shards. The model is loaded for the first picture that is coded.

    stopped: asked before each picture; if it returns True, `Stopped` is raised.
    """

    def __init__(
        self, settings: Settings, device: str | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self.settings, self.stopped, self.target = settings, stopped, Target(settings.target)
        self.device = device or settings.device

    def __call__(self, shard: Shard) -> Done:
        try:
            return self._do(shard)
        except Exception as error:  # of the target or the machine: those of pictures go to the manifest
            return Done(shard.index, error=sentence(error))

    @functools.cached_property
    def model(self) -> LALIC:
        from lalic import hub

        settings = self.settings
        model = hub.load_model(settings.checkpoint, device=self.device, precision=settings.precision)
        if model.weights_hash().hex() != settings.weights:
            raise LalicError(f"this machine has other weights: {model.weights_hash().hex()}, not {settings.weights}")
        return model

    def _do(self, shard: Shard) -> Done:
        before = self._manifest(shard)
        good = {path: row for path, row in before.items() if row["status"] == "ok"}
        if before and len(good) == len(before):
            return _done(shard, before, 0)
        stored = _stored(self.target, self.settings.form, shard, good) if good else {}
        kept = {path for path, data in stored.items() if hashlib.sha256(data).hexdigest() == good[path]["sha256"]}
        entries: dict[str, Entry] = {}
        window: dict[str, bytes | Exception] = {}
        coded = 0
        for entry, data in self._contents(shard, kept):
            path = entry.path
            entries[path] = entry
            if path in kept:
                entry.data, entry.row, entry.kept = stored[path], good[path], True
            elif shard.tar and isinstance(data, bytes) and not _is_picture(path):
                entry.data = data
            else:
                window[path] = data
                coded += 1
                if sum(map(_length, window.values())) > WINDOW:
                    self._code(entries, window)
                    window = {}
        self._code(entries, window)
        rows = {path: entry.row for path, entry in entries.items() if entry.row is not None}
        if rows != before or not rows or len(kept) < len(good):
            # Of a sample with a failed picture, the other files are left out.
            bad = {_sample(entries[path].output) for path, row in rows.items() if row["status"] != "ok"}
            written = [
                entry
                for entry in entries.values()
                if (entry.row["status"] == "ok" if entry.row else _sample(entry.output) not in bad)
            ]
            _store(self.target, self.settings.form, shard, written)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
            self.target.put(_manifest_name(shard), utf8("".join(lines)))
        return _done(shard, rows, coded)

    def _manifest(self, shard: Shard) -> dict[str, dict[str, Any]]:
        """The rows of an earlier run by the path of the picture; none if it did not finish the shard."""
        try:
            lines = (self.target.get(_manifest_name(shard)) or b"").splitlines()
            rows = {row["path"]: row for row in map(json.loads, lines)}
        except (ValueError, KeyError):  # cut off, on a file system where a put is not one step
            return {}
        return rows if shard.tar or list(rows) == [name for name, _ in shard.pictures] else {}

    def _contents(self, shard: Shard, kept: Collection[str]) -> Iterator[tuple[Entry, bytes | Exception]]:
        """The files of a shard in order, each with its contents or an error; with nothing for pictures of `kept`."""
        form = self.settings.form
        if shard.tar is None:
            with ThreadPoolExecutor(CONNECTIONS, "lalic-read") as pool:
                reading: deque[tuple[str, Future[bytes | Exception] | None]] = deque()
                remaining = iter(shard.pictures)
                while True:
                    for name, url in itertools.islice(remaining, READ_AHEAD - len(reading)):
                        reading.append((name, None if name in kept else pool.submit(_read, url)))
                    if not reading:
                        return
                    name, future = reading.popleft()
                    yield Entry(name, _output(name, form)), future.result() if future else b""
        tar, url = shard.tar
        outputs = set()
        for name, data in _members(url):
            output = f"{posixpath.splitext(name)[0]}.lalic" if _is_picture(name) else name
            if output in outputs:
                data = LalicError(f"the tar holds two files that would be written to {output}")
            elif name and not _inside(name):
                data = LalicError("the name leads out of the folder")
            outputs.add(output)
            yield Entry(f"{tar}/{name}" if name else tar, output if form == "webdataset" else f"{tar}/{output}"), data

    def _code(self, entries: Mapping[str, Entry], window: Mapping[str, bytes | Exception]) -> None:
        """Code pictures by path, those of one size after another: on a GPU they share one graph."""
        from lalic import batch, codec, images
        from lalic.metrics import psnr

        if not window:
            return
        settings, model = self.settings, self.model
        values: dict[str, float | None] = {}

        def load(path: str) -> images.Picture:
            if self.stopped():
                raise Stopped
            data = window[path]
            if isinstance(data, Exception):
                raise data
            return images.open_picture(data, background=settings.background, strip=settings.strip)

        def code(pictures: list[images.Picture]) -> list[tuple[bytes, float]]:
            (picture,) = pictures
            data = codec.encode(picture, model, quality=settings.quality)
            if not settings.psnr:
                return [(data, 0)]
            original: Any = picture.image  # no `StripImage`: the limit of pixels is the usual one
            return [(data, psnr(original.convert("RGB"), codec.decode(data, model).convert("RGB")))]

        def save(path: str, result: tuple[bytes, float]) -> Saved:
            entries[path].data, value = result
            values[path] = round(value, 4) if math.isfinite(value) else None  # None: equal; JSON has no infinity
            container = parse(entries[path].data, None)
            return batch.Saved(len(entries[path].data), container.width, container.height)

        order = sorted(window, key=lambda path: _size(window[path]))
        for done in batch.run([batch.Job(path, path) for path in order], batch.Steps(load, code, save), overwrite=True):
            entry, ok = entries[done.source], done.error is None
            entry.row = {
                "path": entry.path,
                "output": entry.output if ok else None,
                "status": "ok" if ok else "failed",
                "width": done.width,
                "height": done.height,
                "bytes_in": _length(window[done.source]),
                "bytes_out": done.size,
                **({"psnr": values.get(done.source)} if settings.psnr else {}),
                "sha256": hashlib.sha256(entry.data).hexdigest() if ok else None,
                "warnings": done.warnings,
                "error": None if done.error is None else sentence(done.error),
            }


def _done(shard: Shard, rows: Mapping[str, Mapping[str, Any]], coded: int) -> Done:
    failures = [(path, row["error"]) for path, row in rows.items() if row["status"] != "ok"]
    read, written = (sum(row[name] for row in rows.values()) for name in ("bytes_in", "bytes_out"))
    return Done(shard.index, len(rows), coded, len(failures), read, written, tuple(failures[:NAMED]))


def _manifest_name(shard: Shard) -> str:
    return f"_bulk/{shard.index:06d}.jsonl"


def utf8(text: str) -> bytes:
    r"""UTF-8; what is no text in a file's name becomes an escape such as \udcff, which JSON reads back."""
    return text.encode("utf-8", "backslashreplace")


def _read(url: str) -> bytes | Exception:
    try:
        fs, path = _filesystem(url)
        return bytes(fs.cat_file(path))
    except Exception as error:  # of this picture alone
        return error


def _members(url: str) -> Iterator[tuple[str, bytes | Exception]]:
    """The files of a tar, read as a stream. An error that ends it comes with an empty name."""
    try:
        fs, path = _filesystem(url)
        with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if posixpath.basename(name).startswith(".") or not (member.isfile() or member.islnk()):
                    continue
                data = tar.extractfile(member).read() if member.isfile() else _linked(url, member)  # type: ignore[union-attr]
                yield name, data
    except Exception as error:
        yield "", LalicError(f"the tar is damaged ({error})") if isinstance(error, tarfile.TarError) else error


def _linked(url: str, member: tarfile.TarInfo) -> bytes | Exception:
    """What a hard link in a tar, the second name of a file, stands for. It is read again: the stream has passed it."""
    fs, path = _filesystem(url)
    try:
        with fs.open(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
            for each in tar:
                if each.name == member.linkname and each.isfile():
                    return tar.extractfile(each).read()  # type: ignore[union-attr]
    except Exception as error:  # of this picture alone
        return error
    return LalicError(f"it is a link to {member.linkname}, which the tar does not hold")


def _length(data: bytes | Exception) -> int:
    return len(data) if isinstance(data, bytes) else 0


def _size(data: bytes | Exception) -> tuple[int, int]:
    """Width and height from the header of a picture file; 0, 0 if there is none."""
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as picture:  # type: ignore[arg-type]
            return picture.size
    except Exception:  # found again when the picture is opened
        return 0, 0


# What is written for a shard: files, a tar, or a Parquet table


def _stored(target: Target, form: str, shard: Shard, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, bytes]:
    """The .lalic files of an earlier run that are still there, by path. rows: of the manifest, by path."""
    if form == "files":
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            contents = pool.map(target.get, [row["output"] for row in rows.values()])
            return {path: data for path, data in zip(rows, contents, strict=True) if data is not None}
    data = target.get(_file_name(form, shard))
    if data is None:
        return {}
    if form == "webdataset":
        paths = {row["output"]: path for path, row in rows.items()}
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return {paths[m.name]: tar.extractfile(m).read() for m in tar if m.name in paths}  # type: ignore[union-attr]
    table = package("pyarrow.parquet", "bulk").read_table(io.BytesIO(data), columns=["path", "lalic"])
    paths = {utf8(path).decode(): path for path in rows}
    return {paths[row["path"]]: row["lalic"] for row in table.to_pylist() if row["path"] in paths}


def _store(target: Target, form: str, shard: Shard, entries: Sequence[Entry]) -> None:
    if form == "files":
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            list(pool.map(lambda entry: target.put(entry.output, entry.data), [e for e in entries if not e.kept]))
        return
    out = io.BytesIO()
    (_write_tar if form == "webdataset" else _write_parquet)(out, entries)
    target.put(_file_name(form, shard), out.getvalue())


def _file_name(form: str, shard: Shard) -> str:
    return f"{shard.index:06d}.{'tar' if form == 'webdataset' else 'parquet'}"


def _write_tar(out: io.BytesIO, entries: Sequence[Entry]) -> None:
    with tarfile.open(fileobj=out, mode="w") as tar:
        for entry in entries:
            member = tarfile.TarInfo(entry.output)  # of no owner and time, so that equal files are equal tars
            member.size = len(entry.data)
            tar.addfile(member, io.BytesIO(entry.data))


def _write_parquet(out: io.BytesIO, entries: Sequence[Entry]) -> None:
    """Columns: path; lalic, the file; labels, the other files of the sample by extension."""
    pa, parquet = package("pyarrow", "bulk"), package("pyarrow.parquet", "bulk")
    pictures = [entry for entry in entries if entry.row]
    labels: dict[str, list[tuple[str, bytes]]] = {}
    for entry in entries:
        if not entry.row:
            sample = _sample(entry.output)
            labels.setdefault(sample, []).append((entry.output[len(sample) + 1 :], entry.data))
    columns = {
        "path": pa.array([utf8(entry.path).decode() for entry in pictures], pa.string()),
        "lalic": pa.array([entry.data for entry in pictures], pa.large_binary()),
        "labels": pa.array([labels.get(_sample(e.output), []) for e in pictures], pa.map_(pa.string(), pa.binary())),
    }
    parquet.write_table(pa.table(columns), out, compression="none", use_dictionary=False)
