"""The command `lalic`: compress, decompress, info, convert, demo, eval, compare, train.

Exit codes: 0 everything was done; 1 at least one file failed, the others are done; 2 the request itself is wrong, and
nothing was started; 130 interrupted. What is wrong is said on standard error in one sentence for each file. With
LALIC_TRACEBACK=1 in the environment an unexpected error shows its traceback instead.

torch is imported by the commands that need it, so that `lalic --help` and `lalic info` answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lalic import folder
from lalic.errors import LalicError
from lalic.eval import cli as evaluation
from lalic.files import STREAM, Job, PlanError, plan
from lalic.memory import keep_memory

__all__ = ["main"]

_TOGETHER = 8  # files of a folder that a GPU decodes at once
_EXIT_CODES = "exit codes: 0 all done, 1 some file failed (the others are done), 2 wrong usage, 130 interrupted"


class _Parser(argparse.ArgumentParser):
    """argparse with its errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code. argv: the words behind `lalic`, None for `sys.argv`.

    Raises nothing but an unexpected error, and that only with LALIC_TRACEBACK=1.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a file name may hold what the terminal cannot show
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _build_parser(words[:1] == ["train"]).parse_args(words)
        return args.run(args) or 0
    except SystemExit as stop:  # argparse: --help, --version, usage errors
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except BrokenPipeError:  # the reader of our output has gone; nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PlanError as error:
        _say(str(error))
        return 2
    except Exception as error:  # a person gets a sentence, whatever went wrong
        _say(_sentence(error))
        return 1


def _build_parser(with_train: bool) -> argparse.ArgumentParser:
    parser = _Parser(prog="lalic", description="Learned image compression with linear attention.", epilog=_EXIT_CODES)
    parser.add_argument("--version", action=_Version, help="print the release and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)

    compress = commands.add_parser(
        "compress",
        help="pictures to .lalic files",
        description="Compress pictures to .lalic files. Without -o each is written next to its picture.",
        epilog=_EXIT_CODES,
    )
    compress.add_argument(
        "inputs", nargs="+", metavar="IN", help="picture, folder of pictures, or - for standard input"
    )
    compress.add_argument("--background", metavar="COLOR", help="colour laid below transparent pixels, such as white")
    target = compress.add_mutually_exclusive_group()
    target.add_argument("-q", "--quality", type=float, metavar="Q", help="1 (smallest) to 100 (finest), default 50")
    target.add_argument(
        "--target-bpp", type=float, metavar="X", help="search the quality for X bits per pixel, to 1 %%"
    )
    target.add_argument("--target-psnr", type=float, metavar="X", help="search the quality for X dB, to 0.05 dB")
    compress.set_defaults(run=_compress)

    decompress = commands.add_parser(
        "decompress",
        help=".lalic files to pictures",
        description="Decompress .lalic files to pictures: PNG, or what the extension of -o says.",
        epilog=_EXIT_CODES,
    )
    decompress.add_argument("inputs", nargs="+", metavar="IN", help=".lalic file, folder, or - for standard input")
    decompress.set_defaults(run=_decompress)

    for command in (compress, decompress):
        command.add_argument("-o", "--output", metavar="OUT", help="file; folder for several inputs; - standard output")
        command.add_argument("-f", "--force", action="store_true", help="overwrite files that exist")
        command.add_argument(
            "--no-graph", action="store_true", help="on a GPU, make launches one by one instead of as a CUDA graph"
        )
        command.add_argument("--quiet", action="store_true", help="print errors and warnings only")
        command.add_argument("--checkpoint", metavar="PATH", help="weights to use instead of those that ship")
        command.add_argument("--max-pixels", type=_positive, metavar="N", help="refuse larger pictures (default 2^25)")
        command.add_argument(
            "--precision",
            choices=("float32", "bfloat16", "float16"),
            help="of the transforms between picture and latents; files do not depend on it (default float32)",
        )
        _add_machine_arguments(command)

    info = commands.add_parser(
        "info", help="what .lalic files hold", description="Check .lalic files and describe them."
    )
    info.add_argument("inputs", nargs="+", metavar="FILE", help=".lalic file, or - for standard input")
    info.add_argument("--json", action="store_true", help="print a JSON list, one object for each readable file")
    info.add_argument(
        "--symbols",
        action="store_true",
        help="decode, and print SHA-256 of the symbols and of the latents: equal on every machine",
    )
    info.add_argument("--checkpoint", metavar="PATH", help="weights for --symbols instead of those that ship")
    _add_machine_arguments(info)
    info.set_defaults(run=_info)

    convert = commands.add_parser(
        "convert",
        help="a checkpoint with its entropy model as integers",
        description="Write a checkpoint with the entropy model's weights as integers and its coding tables. It codes "
        "the same files as the original.",
    )
    convert.add_argument("checkpoint", metavar="CHECKPOINT", help=".pth or .safetensors file")
    convert.add_argument("output", metavar="OUT", help=".safetensors file to write")
    convert.add_argument("-f", "--force", action="store_true", help="overwrite a file that exists")
    convert.set_defaults(run=_convert)

    demo = commands.add_parser(
        "demo",
        help="compress and decompress a picture that ships, beside JPEG",
        description="Compress and decompress the picture that ships, and compare with a JPEG of equal PSNR.",
    )
    demo.add_argument(
        "--out-dir", default="lalic-demo", metavar="DIR", help="where the pictures go (default %(default)s)"
    )
    _add_machine_arguments(demo)
    demo.set_defaults(run=_demo)

    evaluation.register(commands, _EXIT_CODES)

    train = commands.add_parser("train", help="train a model")
    if with_train:
        from lalic.train import cli as training

        training.add_arguments(train)
        train.set_defaults(run=training.run)
    return parser


def _add_machine_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", metavar="DEVICE", help="cpu (default), cuda or cuda:N")
    command.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: as torch chooses)")


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str, **keywords: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **keywords)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata

        try:
            release = metadata.version("lalic")
        except metadata.PackageNotFoundError:
            release = "(not installed)"
        print(f"lalic {release}")
        parser.exit()


def _say(message: str) -> None:
    print(f"lalic: {message}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    """One line for any exception. For one nobody expected, its type too, or its traceback if asked for."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    line = " ".join(str(error).split())
    if isinstance(error, LalicError):
        return line
    if os.environ.get("LALIC_TRACEBACK") == "1":
        raise error
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "there is not enough memory for this picture"
    return f"unexpected {type(error).__name__}: {line[:300]}"


def _set_up_process(threads: int | None) -> None:
    keep_memory()
    # torch's OpenMP threads (libgomp) would spin for milliseconds after each operation, where other threads could work;
    # read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if threads is None:
        return
    os.environ["NUMBA_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(threads)  # read when they are imported
    import torch

    torch.set_num_threads(threads)


def _announce_compiling() -> None:
    """Who watches is told why the first picture takes so long."""
    if sys.stderr.isatty():
        from lalic_kernels import installed

        installed.on_compiling(lambda: _say("compiling for this processor; this happens once and may take a minute"))


def _prepare(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
    """`lalic.codec`, the model of --checkpoint (None: the one that ships), and the options that both directions take.

    A device or checkpoint that cannot be had is said here, once, and not for each file.
    """
    _set_up_process(args.threads)
    from lalic import codec

    device = codec.resolve_device(args.device)
    if device.type == "cpu" and not args.quiet:
        _announce_compiling()
    options: dict[str, Any] = {} if args.max_pixels is None else {"max_pixels": args.max_pixels}
    if args.no_graph:
        options["graph"] = False
    if args.checkpoint is None and args.precision is None:
        return codec, None, {"device": device, **options}
    import lalic

    # With a precision of its own the model that ships must not be the one that everybody shares.
    model = lalic.slim(pretrained=True) if args.checkpoint is None else lalic.load_checkpoint(args.checkpoint)
    model = model.to(device).eval()
    return codec, model if args.precision is None else model.set_precision(args.precision), options


def _compress(args: argparse.Namespace) -> int:
    from PIL import Image

    from lalic import images
    from lalic.container import parse

    if args.background is not None:
        try:
            images.parse_color(args.background)
        except LalicError as error:
            raise PlanError(str(error)) from None
    jobs = plan(args.inputs, args.output, ".lalic", images.readable_extensions())
    _refuse_terminal(jobs)
    codec, model, options = _prepare(args)
    try:
        codec.coded_quality(model or codec.shipped_model(device=options.get("device")), args.quality)
    except LalicError as error:  # said now, and not for each picture
        raise PlanError(str(error)) from None

    limit = {} if args.max_pixels is None else {"max_pixels": args.max_pixels}

    def open_picture(_: Job, data: bytes) -> Image.Image:
        picture = images.load(data, background=args.background, **limit)
        return Image.frombytes("RGB", picture.size, picture.tobytes())  # no profile that would be looked at again

    def words(_: Job, result: bytes) -> tuple[bytes, str]:
        container = parse(result, None)
        size = (
            f"{container.width}x{container.height}, {len(result)} bytes, {container.bits_per_pixel:.3f} bits per pixel"
        )
        if container.quality is not None:
            size += f", quality {container.quality:g}"
        return result, size

    def code(pictures: list[Any]) -> list[bytes]:
        return [_encode(picture, model, args, options) for picture in pictures]

    return _run(jobs, folder.Steps(open_picture, code, words), args)


def _encode(picture: Any, model: Any, args: argparse.Namespace, options: dict[str, Any]) -> bytes:
    """A file at --quality, or at the one that --target-bpp or --target-psnr finds."""
    from lalic import codec, search

    if args.target_bpp is not None:
        return search.encode_to_bpp(picture, args.target_bpp, model, **options).data
    if args.target_psnr is not None:
        return search.encode_to_psnr(picture, args.target_psnr, model, **options).data
    return codec.encode(picture, model, quality=args.quality, **options)


def _decompress(args: argparse.Namespace) -> int:
    from PIL import Image

    from lalic import images

    jobs = plan(args.inputs, args.output, ".png", [".lalic"])
    _refuse_terminal(jobs)
    for extension in sorted({_extension(job) for job in jobs}):
        try:
            images.dump(Image.new("RGB", (1, 1)), extension)  # said now rather than after decoding
        except LalicError as error:
            raise PlanError(str(error)) from None
    codec, model, options = _prepare(args)

    together = _TOGETHER if codec.resolve_device(args.device).type == "cuda" else 1

    def decode(files: list[bytes]) -> list[Any]:
        if len(files) == 1:
            return [codec.decode(files[0], model, **options)]
        return list(codec.decode_many(files, model, batch=len(files), **options))

    def pack(job: Job, picture: Image.Image) -> tuple[bytes, str]:
        result = images.dump(picture, _extension(job))
        return result, f"{picture.width}x{picture.height}, {len(result)} bytes"

    return _run(jobs, folder.Steps(lambda _, data: data, decode, pack, together), args)


def _run(jobs: Sequence[Job], steps: folder.Steps, args: argparse.Namespace) -> int:
    """Do every job and return the exit code."""
    failed = folder.run(
        jobs, steps, lambda job, error: _name_first(job, _sentence(error)), force=args.force, quiet=args.quiet
    )
    if failed and len(jobs) > 1:
        _say(f"{failed} of {len(jobs)} files failed")
    return 1 if failed else 0


def _extension(job: Job) -> str:
    """Of the picture to write; a device such as /dev/null and standard output get PNG."""
    if job.target == STREAM or (os.path.exists(job.target) and not os.path.isfile(job.target)):
        return ".png"
    return os.path.splitext(job.target)[1]


def _refuse_terminal(jobs: Sequence[Job]) -> None:
    if any(job.target == STREAM for job in jobs) and sys.stdout.isatty():
        raise PlanError("standard output is a terminal; give -o OUT, or send the output to a file or a program")


def _name_first(job: Job, sentence: str) -> str:
    return sentence if sentence.startswith(f"{job.source}: ") else f"{job.source}: {sentence}"


def _info(args: argparse.Namespace) -> int:
    from lalic.container import parse
    from lalic.describe import describe, in_words

    decode = _symbol_hasher(args) if args.symbols else None
    described = []
    failed = 0
    for source in args.inputs:
        try:
            data = folder.read(source)
            container = parse(data, None)
            hashes = decode(data) if decode else {}
        except (LalicError, OSError) as error:
            failed += 1
            _say(_name_first(Job(source, ""), _sentence(error)))
            continue
        described.append(describe(source, container, hashes))
    if args.json:
        print(json.dumps(described, indent=2))
    else:
        for entry in described:
            print(in_words(entry))
    return 1 if failed else 0


def _symbol_hasher(args: argparse.Namespace) -> Callable[[bytes], dict[str, str]]:
    """What decodes a file's symbols and hashes them, with the model of --checkpoint or the one that ships."""
    _set_up_process(args.threads)
    from lalic import codec

    device, model = codec.resolve_device(args.device), None
    if args.checkpoint is not None:
        import lalic

        model = lalic.load_checkpoint(args.checkpoint).to(device).eval()
    return lambda data: codec.symbol_hashes(data, model, device=None if model is not None else device)


def _convert(args: argparse.Namespace) -> int:
    from lalic import zoo

    try:
        model = zoo.convert(args.checkpoint, args.output, overwrite=args.force)
    except FileExistsError:
        raise LalicError(f"{args.output} exists already, --force overwrites it") from None
    size = os.path.getsize(args.output)
    print(f"{args.checkpoint} -> {args.output}: {model.config.name}, hash {model.weights_hash().hex()}, {size} bytes")
    return 0


def _demo(args: argparse.Namespace) -> int:
    _set_up_process(args.threads)
    _announce_compiling()
    from lalic import demo

    demo.run(args.out_dir, device=args.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
