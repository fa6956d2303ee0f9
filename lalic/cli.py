"""The command `lalic`: compress, decompress, bulk, info, convert, demo, warmup, eval, compare, web,
train.

Exit codes: 0 all done; 1 at least one file failed, the others are done; 2 wrong request, nothing was started: also for
a device, package or checkpoint that is not there; 130 interrupted (SIGINT), 143 or 129 terminated (SIGTERM, SIGHUP):
then no file is left half-written. Standard error has one sentence for each file that failed. With LALIC_TRACEBACK=1 in
the environment an unexpected error shows its traceback.

Each command calls a public function: `lalic.batch`, `lalic.bulk`, `lalic.hub.convert`, `lalic.demo`, `lalic.eval`,
`lalic.train`.
Only commands that need torch import it, so that `lalic --help` and `lalic info` are fast.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from lalic.container import MAGIC, VERSION, parse
from lalic.errors import ImageWarning, LalicError, RequestError, RunError, as_request, one_line, sentence
from lalic.eval import cli as evaluation
from lalic.files import STREAM, WouldOverwrite, check_standard_stream, open_standard_streams, read
from lalic.metadata import describe
from lalic.options import (
    EXECUTORS,
    FORMATS,
    add_checkpoint_option,
    add_existing_options,
    add_force_option,
    add_machine_options,
    add_precision_option,
    positive,
    set_up_process,
)
from lalic.tiles import SCALES
from lalic.train import cli as training
from lalic.web import cli as page

if TYPE_CHECKING:
    from lalic.batch import Outcome
    from lalic.model import LALIC
    from lalic.shards import Done

__all__ = ["main"]

_EXIT_CODES = (
    "exit codes: 0 all done, 1 some file failed (the others are done), 2 wrong request (nothing was started), "
    "130 interrupted, 143 terminated"
)


class _Parser(argparse.ArgumentParser):
    """A parser with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. argv: the arguments of `lalic`, None for those of the process.

    Raises only unexpected errors, and those only with LALIC_TRACEBACK=1.
    """
    open_standard_streams()
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # it would print about damaged pictures
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # for file names that the terminal cannot show
    code = _code(argv)
    try:
        sys.stdout.flush()
    except OSError as error:
        if code == 0 and not isinstance(error, BrokenPipeError):
            _log(f"standard output: {error.strerror}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
        return code or 1
    return code


def _code(argv: Sequence[str] | None) -> int:
    try:
        with _terminated_by_an_exception(), _warnings_in_one_line():
            args = build_parser().parse_args(sys.argv[1:] if argv is None else argv)
            return args.run(args) or 0
    except SystemExit as stop:  # argparse: --help, --version, usage errors
        return stop.code if isinstance(stop.code, int) else 2
    except _Terminated as stop:
        _log("terminated")
        return 128 + stop.number
    except KeyboardInterrupt:
        _log("interrupted")
        return 130
    except BrokenPipeError:  # the reader of the output has closed it
        return 1
    except Exception as error:  # users get one sentence for any error
        _log(str(error) if isinstance(error, RequestError) else _message(error))
        # What is wrong with one file is not raised by a command.
        return 2 if isinstance(error, LalicError | WouldOverwrite) and not isinstance(error, RunError) else 1


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Print warnings about pictures as a sentence, without a line of code."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def line(message: Warning | str, category: type[Warning], *where: Any, **options: Any) -> None:
            if issubclass(category, ImageWarning):
                _log(f"warning: {message}")
            else:
                show(message, category, *where, **options)

        warnings.showwarning = line
        yield


class _Terminated(KeyboardInterrupt):
    """A signal came that ends a process."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


_TERMINATING = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _terminated_by_an_exception() -> Iterator[None]:
    """Raise `_Terminated` where a signal would end the process at once, and leave files half-written."""

    def terminate(number: int, _: object) -> NoReturn:
        raise _Terminated(number)

    ours = [number for number in _TERMINATING if signal.getsignal(number) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # Python allows no other thread to choose
    for number in ours:
        signal.signal(number, terminate)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


# The parser


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands. `parse_args(...).run` is the function of the command."""
    from lalic import __version__

    parser = _Parser(prog="lalic", description="Learned image compression with linear attention.", epilog=_EXIT_CODES)
    parser.add_argument(
        "--version", action="version", version=f"lalic {__version__}", help="print the release and stop"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, description: str) -> _Parser:
        added: _Parser = commands.add_parser(name, help=text, description=description, epilog=_EXIT_CODES)
        added.set_defaults(run=run)
        return added

    compress = command(
        "compress", _compress, "pictures to .lalic files",
        "Compress pictures to .lalic files. Without -o each is written next to its picture.",
    )  # fmt: skip
    compress.add_argument(
        "inputs", nargs="+", metavar="IN", help="picture, folder of pictures, or - for standard input"
    )
    _add_storing_options(compress)
    target = compress.add_mutually_exclusive_group()
    target.add_argument("-q", "--quality", type=float, metavar="Q", help="1 (smallest) to 100 (finest), default 50")
    target.add_argument(
        "--target-bpp", type=float, metavar="X", help="find the quality that gives X bits per pixel, within 1 %%"
    )
    target.add_argument(
        "--target-psnr", type=float, metavar="X", help="find the quality that gives a PSNR of X dB, within 0.05 dB"
    )
    compress.add_argument(
        "--effort", type=float, metavar="SECONDS",
        help="for archives: spend up to so many seconds on each picture for a smaller file of equal PSNR; inf for as "
        "many as all steps take (default: none)",
    )  # fmt: skip

    decompress = command(
        "decompress", _decompress, ".lalic files to pictures",
        "Decompress .lalic files to pictures: PNG, or the format of the extension of -o.",
    )  # fmt: skip
    decompress.add_argument("inputs", nargs="+", metavar="IN", help=".lalic file, folder, or - for standard input")
    decompress.add_argument(
        "--region", type=_region, metavar="L,T,R,B", help="decode this part only: left, top, right, bottom in pixels"
    )
    decompress.add_argument(
        "--scale", type=_scale, default=1, metavar="1/N", help="a smaller picture, 1/2, 1/4, ... 1/64 of each side"
    )

    for each in (compress, decompress):
        each.add_argument(
            "-o", "--output", metavar="OUT", help="file, or - for standard output; a folder for several inputs"
        )
        example = "a.jpg becomes a.jpg.lalic" if each is compress else "a.lalic becomes a.lalic.png"
        each.add_argument("--keep-extension", action="store_true", help=f"add to the whole name: {example}")
        add_existing_options(each)
        each.add_argument(
            "--no-graph", action="store_true", help="on a GPU, make launches one by one instead of as a CUDA graph"
        )
        each.add_argument("--quiet", action="store_true", help="print errors and warnings only")
        each.add_argument(
            "--max-pixels", type=positive, metavar="N", help="refuse pictures of more pixels (default 2^28)"
        )
        add_checkpoint_option(each)
        add_precision_option(each)
        add_machine_options(each)

    bulk = command(
        "bulk", _bulk, "a data set, by many processes or machines, in shards that can be resumed",
        "Compress a data set. Run it again to go on after an interrupt, and to try failed pictures again.",
    )  # fmt: skip
    bulk.add_argument("source", metavar="SOURCE", help="folder, glob, .txt list, or tar; a path or a URL of fsspec")
    bulk.add_argument("target", metavar="TARGET", help="folder to write; a path or a URL")
    bulk.add_argument(
        "--format", dest="form", choices=FORMATS, default="files", help="what is written (default %(default)s)"
    )
    bulk.add_argument(
        "--shard", type=positive, metavar="N", help="pictures in a shard (default 1000, fewer for a small source)"
    )
    bulk.add_argument("-q", "--quality", type=float, metavar="Q", help="1 (smallest) to 100 (finest), default 50")
    _add_storing_options(bulk)
    bulk.add_argument(
        "--psnr", action="store_true", help="decode each picture too, and write its PSNR in dB to the manifest"
    )
    bulk.add_argument(
        "--executor",
        choices=EXECUTORS,
        default="local",
        help="where it runs: processes here, or a Ray cluster (default %(default)s)",
    )
    bulk.add_argument("--workers", type=positive, metavar="N", help="processes (default: one for each core, or GPU)")
    bulk.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), cuda or cuda:N")
    bulk.add_argument("--quiet", action="store_true", help="print errors only")
    add_checkpoint_option(bulk)
    add_precision_option(bulk)

    info = command("info", _info, "contents of .lalic files", "Check .lalic files and describe them.")
    info.add_argument("inputs", nargs="+", metavar="FILE", help=".lalic file, or - for standard input")
    info.add_argument("--json", action="store_true", help="print a JSON list, one object for each readable file")
    info.add_argument(
        "--symbols",
        action="store_true",
        help="decode, and print SHA-256 of the symbols and of the latents: equal on every machine",
    )
    decoding = info.add_argument_group("options of --symbols")
    add_checkpoint_option(decoding)
    add_machine_options(decoding)

    convert = command(
        "convert", _convert, "a checkpoint with its entropy model as integers",
        "Write a checkpoint with the entropy model's weights as integers and its coding tables. It codes the same "
        "files as the original.",
    )  # fmt: skip
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth or .safetensors file")
    convert.add_argument("output", metavar="OUT", help=".safetensors file to write")
    add_force_option(convert)

    demo = command(
        "demo", _demo, "compress and decompress a picture that ships, beside JPEG",
        "Compress and decompress the picture that ships, and compare with a JPEG of equal PSNR.",
    )  # fmt: skip
    demo.add_argument(
        "--out-dir", default="lalic-demo", metavar="DIR",
        help="folder for the pictures; those of an earlier demo are replaced (default %(default)s)",
    )  # fmt: skip
    add_machine_options(demo)

    warmup = command(
        "warmup", _warmup, "compile ahead all that coding needs",
        "Compile all that a model needs to encode and decode on a device, so that the first picture does not wait. "
        "What is compiled is kept for later processes.",
    )  # fmt: skip
    warmup.add_argument(
        "--size", action="append", type=_size, metavar="WxH", help="of a picture to code; repeatable (default 768x512)"
    )
    add_checkpoint_option(warmup)
    add_precision_option(warmup)
    add_machine_options(warmup)

    evaluation.register(commands, _EXIT_CODES)
    page.register(commands, _EXIT_CODES)
    training.register(commands, _EXIT_CODES)
    return parser


def _add_storing_options(parser: argparse.ArgumentParser) -> None:
    """Declare --background and --strip."""
    parser.add_argument(
        "--background",
        metavar="COLOR",
        help="blend transparent pixels with a colour, such as white (default: keep alpha)",
    )
    parser.add_argument("--strip", action="store_true", help="leave out EXIF, XMP, text and resolution")


def _region(text: str) -> tuple[int, ...]:
    sides = text.split(",")
    if len(sides) != 4 or not all(side.strip().isascii() and side.strip().isdigit() for side in sides):
        raise argparse.ArgumentTypeError(f"expected four numbers such as 0,0,640,480, got {text!r}")
    return tuple(int(side) for side in sides)


def _scale(text: str) -> int:
    scales = {"1" if n == 1 else f"1/{n}": n for n in SCALES}
    if text not in scales:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(scales)}, got {text!r}")
    return scales[text]


# Messages


def _log(message: str) -> None:
    with suppress(OSError, ValueError):  # standard error may be a full disk, or have been closed
        print(f"lalic: {one_line(message)}", file=sys.stderr, flush=True)


def _message(error: Exception) -> str:
    """`sentence`; with LALIC_TRACEBACK=1 an unexpected exception is raised."""
    if isinstance(error, WouldOverwrite):
        return f"{error.filename} exists already, --force overwrites it"
    expected = isinstance(error, LalicError) or (isinstance(error, OSError) and error.strerror)
    if not expected and os.environ.get("LALIC_TRACEBACK") == "1":
        raise error
    return sentence(error)


def _message_of(source: str, error: Exception) -> str:
    """The message of an error about a file, with the file's name."""
    message = _message(error)
    return message if message.startswith(f"{source}: ") else f"{source}: {message}"


def _announce_compiling(device: str | None) -> None:
    """On a terminal, print a message when something is compiled for a device, as that takes long.

    Wherever errors go, print one if what is compiled cannot be kept.
    """
    from lalic_kernels import code_cache, compiling, installed

    code_cache.on_not_kept(_log)
    if not sys.stderr.isatty():
        return
    if (device or "cpu") == "cpu":
        often = "once" if code_cache.kept_in() else "in every process, as no folder for it can be written to,"
        installed.on_compiling(
            lambda: _log(f"compiling for this processor; this happens {often} and may take a minute")
        )
    elif installed.TRITON:
        said: list[None] = []

        def say() -> None:
            if not said:
                said.append(None)
                _log("compiling for this GPU; this happens once and may take minutes (lalic warmup is faster)")

        compiling.on_kernel_compiling(say)


# compress and decompress


def _compress(args: argparse.Namespace) -> int:
    def line(done: Outcome) -> str:
        rate = 8 * done.size / (done.width * done.height)
        quality = "" if done.quality is None else f", quality {done.quality:g}"
        return f"{done.width}x{done.height}, {done.size} bytes, {rate:.3f} bits per pixel{quality}"

    options = _options(args)
    from lalic.batch import compress_files

    names = ("quality", "target_bpp", "target_psnr", "effort", "background", "strip")
    options |= {name: getattr(args, name) for name in names}
    if args.effort is None or args.quiet or not sys.stderr.isatty():
        return _run_batch(args, compress_files, options, line)
    from tqdm import tqdm

    with tqdm(
        total=1.0, position=1, leave=False, file=sys.stderr, bar_format="effort {percentage:3.0f} %|{bar}|"
    ) as bar:

        def effort_progress(done: float, count: int) -> None:
            bar.n = done / count
            bar.refresh()

        return _run_batch(args, compress_files, options | {"effort_progress": effort_progress}, line)


def _decompress(args: argparse.Namespace) -> int:
    options = _options(args) | {"region": args.region, "scale": args.scale}
    from lalic.batch import decompress_files

    return _run_batch(args, decompress_files, options, lambda done: f"{done.width}x{done.height}, {done.size} bytes")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Set up the process, and return the options of both commands. Loads the checkpoint, so its errors come once."""
    if args.output == STREAM or (args.output is None and STREAM in args.inputs):
        with as_request():
            check_standard_stream("stdout")
        if sys.stdout.isatty():
            raise RequestError("standard output is a terminal; give -o OUT, or send the output to a file or a program")
    set_up_process(args.threads)
    if not args.quiet:
        _announce_compiling(args.device)
    options: dict[str, Any] = {"model": _given_model(args), "device": args.device, "overwrite": args.force}
    options |= {"skip_existing": args.skip_existing, "keep_extension": args.keep_extension}
    if args.max_pixels is not None:
        options["max_pixels"] = args.max_pixels
    if args.no_graph:
        options["graph"] = False
    return options


def _given_model(args: argparse.Namespace) -> LALIC | None:
    """The model of --checkpoint and --precision; None for the shared one that ships."""
    precision = getattr(args, "precision", None)
    if args.checkpoint is None and precision is None:
        return None
    from lalic.codec import resolve_device
    from lalic.hub import load_model

    with as_request():
        return load_model(args.checkpoint, device=resolve_device(args.device), precision=precision)


def _run_batch(
    args: argparse.Namespace,
    work: Callable[..., list[Outcome]],
    options: dict[str, Any],
    line: Callable[[Outcome], str],
) -> int:
    """Call `work` and print a line for each file, with a progress bar on a terminal. Returns the exit code."""
    from tqdm import tqdm

    start, bar = time.perf_counter(), None

    def progress(done: Outcome, count: int) -> None:
        nonlocal bar
        if bar is None:
            hidden = count == 1 or args.quiet or not sys.stderr.isatty()
            bar = stack.enter_context(tqdm(total=count, unit="file", file=sys.stderr, disable=hidden))
        with bar.external_write_mode(sys.stderr):
            if done.error is not None:
                _log(_message_of(done.source, done.error))
            for warning in done.warnings:
                _log(f"{done.source}: warning: {warning}")
        if done.skipped and count == 1 and not args.quiet:
            bar.write(one_line(f"{done.source}: skipped, {done.target} exists already"), file=sys.stdout)
        elif done.error is None and not done.skipped and not args.quiet and done.target != STREAM:
            words = f"{done.source} -> {done.target}: {line(done)}, {done.seconds:.2f} s"
            bar.write(one_line(words), file=sys.stdout)
        bar.update()

    with ExitStack() as stack:
        outcomes = work(args.inputs, args.output, **options, progress=progress)
    failed = sum(done.error is not None for done in outcomes)
    if len(outcomes) == 1:
        return 1 if failed else 0
    skipped = sum(done.skipped for done in outcomes)
    count, seconds = len(outcomes) - failed - skipped, time.perf_counter() - start
    if count and not args.quiet:
        print(f"{count} pictures in {seconds:.2f} s, {count / seconds:.2f} a second")
    if skipped and not args.quiet:
        print(f"{skipped} of {len(outcomes)} files skipped, as their outputs exist already")
    if failed:
        existed = any(isinstance(done.error, WouldOverwrite) for done in outcomes)
        _log(
            f"{failed} of {len(outcomes)} files failed{'; --skip-existing leaves out what is done' if existed else ''}"
        )
    return 1 if failed else 0


# bulk


def _bulk(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from lalic import bulk

    set_up_process(1)
    hidden = args.quiet or not sys.stderr.isatty()
    pictures = failed = 0
    with tqdm(unit="shard", file=sys.stderr, disable=hidden) as bar:

        def progress(done: Done, count: int) -> None:
            nonlocal pictures, failed
            pictures, failed, bar.total = pictures + done.pictures, failed + done.failed, count
            with bar.external_write_mode(sys.stderr):
                if done.error is not None:
                    _log(f"shard {done.index}: {done.error}")
                for path, error in done.failures:
                    _log(f"{path}: {error}")
                if done.failed > len(done.failures):
                    _log(f"shard {done.index}: {done.failed} pictures failed in all")
            bar.set_postfix(pictures=pictures, failed=failed, refresh=False)
            bar.update()

        options = {name: value for name, value in vars(args).items() if name not in ("run", "quiet")}
        start = time.perf_counter()
        shards = bulk.compress(**options, progress=progress)
    if not args.quiet:
        coded, read, written = (sum(getattr(s, name) for s in shards) for name in ("coded", "bytes_in", "bytes_out"))
        print(
            f"{pictures} pictures, {coded} of them coded now in {time.perf_counter() - start:.1f} s; "
            f"{read} bytes in, {written} out"
        )
    lost = sum(shard.error is not None for shard in shards)
    if failed or lost:
        _log(f"{failed} pictures failed, {lost} shards were not done; the same command tries them again")
    return 1 if failed or lost else 0


# info

_INFO = """{file}
  format    version {format_version}, all checksums match
  model     {model}, hash {model_hash}
  picture   {width}x{height}{kind}{at_quality}, {tiles}
  size      {file_bytes} bytes, {bits_per_pixel:.4f} bits per pixel
  parts     streams {stream_bytes} bytes, alpha {alpha_bytes}, metadata {metadata_bytes}, the rest {overhead_bytes}"""

_SYMBOLS = """
  symbols   sha256 {symbols_sha256}
  latents   sha256 {latents_sha256}"""


def _info(args: argparse.Namespace) -> int:
    if args.symbols:
        set_up_process(args.threads)
        from lalic.codec import resolve_device, symbol_hashes

        with as_request():
            resolve_device(args.device)
        model = _given_model(args)
    entries = []
    for source in args.inputs:
        try:
            data = read(source, MAGIC)
            entry = _entry(source, data)
            if args.symbols:
                entry |= symbol_hashes(data, model, device=args.device, max_pixels=None)
            entries.append(entry)
        except (LalicError, OSError) as error:
            _log(_message_of(source, error))
    if args.json:
        print(json.dumps(entries, indent=2))
    else:
        for entry in entries:
            print(_described(entry, args.symbols))
    return 1 if len(entries) < len(args.inputs) else 0


def _entry(file: str, data: bytes) -> dict[str, Any]:
    """One file as a dict for JSON."""
    container = parse(data, None)
    sizes = {name: getattr(container, name) for name in ("stream_bytes", "alpha_bytes", "metadata_bytes")}
    return {
        "file": file,
        "format_version": VERSION,
        "model": container.model_name,
        "model_hash": container.model_hash.hex(),
        "width": container.width,
        "height": container.height,
        "grey": container.grey,
        "alpha": container.alpha is not None,
        "quality": container.quality,
        "tiles": len(container.grid),
        "tile": container.grid.tile or None,
        "file_bytes": len(data),
        **sizes,
        "overhead_bytes": len(data) - sum(sizes.values()),
        "bits_per_pixel": 8 * len(data) / (container.width * container.height),
        "metadata": describe(container.metadata),
    }


def _described(entry: Mapping[str, Any], symbols: bool) -> str:
    """One file in lines for people."""
    kind = f"{', grey' if entry['grey'] else ''}{', with alpha' if entry['alpha'] else ''}"
    at_quality = "" if entry["quality"] is None else f", quality {entry['quality']:g}"
    tiles = "one tile" if entry["tile"] is None else f"{entry['tiles']} tiles of {entry['tile']} pixels"
    text = (_INFO + _SYMBOLS if symbols else _INFO).format(
        **{**entry, "file": one_line(entry["file"]), "tiles": tiles}, kind=kind, at_quality=at_quality
    )
    for name, value in entry["metadata"].items():
        for key, word in value.items() if isinstance(value, dict) else ((name.replace("_", " "), value),):
            text += f"\n  {key:<9} {'yes' if word is True else 'no' if word is False else word}"
    return text


# convert, demo and warmup


def _convert(args: argparse.Namespace) -> int:
    from lalic import hub

    model = hub.convert(args.checkpoint, args.output, overwrite=args.force)
    size = os.path.getsize(args.output)
    names = one_line(f"{args.checkpoint} -> {args.output}")
    print(f"{names}: {model.config.name}, hash {model.weights_hash().hex()}, {size} bytes")
    return 0


def _demo(args: argparse.Namespace) -> int:
    set_up_process(args.threads)
    _announce_compiling(args.device)
    from lalic import demo

    demo.run(args.out_dir, device=args.device)
    return 0


def _size(text: str) -> tuple[int, int]:
    """Type for argparse: width and height as 768x512."""
    width, _, height = text.partition("x")
    try:
        return positive(width), positive(height)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected width and height such as 768x512, got {text!r}") from None


def _warmup(args: argparse.Namespace) -> int:
    set_up_process(args.threads)
    from lalic.codec import shipped_model
    from lalic.warmup import SIZES, warm_up

    model = _given_model(args) or shipped_model(device=args.device)
    warm_up(model, args.size or SIZES)
    return 0


if __name__ == "__main__":
    sys.exit(main())
