"""`lalic web`: from arguments to a page. Imports neither torch nor gradio, so that `lalic --help` is fast."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from typing import Any

from lalic.errors import LalicError
from lalic.options import (
    add_checkpoint_option,
    add_machine_options,
    add_precision_option,
    positive,
    set_up_process,
)


def register(commands: Any, epilog: str) -> None:
    """Declare the command. commands: from argparse's `add_subparsers`. epilog: of its help."""
    web = commands.add_parser(
        "web",
        help="a page to try the codec, in the browser",
        description="Serve a page on this machine: drop a photo, choose a quality, see the result beside JPEG, WebP, "
        "AVIF. Needs pip install lalic[web]. Ctrl+C ends it.",
        epilog=epilog,
    )
    web.add_argument("--port", type=_port, metavar="N", help="of the page (default 7860, or the next that is free)")
    web.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="0.0.0.0 lets other machines in (default %(default)s)"
    )
    web.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    web.add_argument("--max-pixels", type=positive, metavar="N", help="refuse pictures of more pixels (default 2^26)")
    add_checkpoint_option(web)
    add_precision_option(web)
    add_machine_options(web)
    web.set_defaults(run=_run)


def _port(text: str) -> int:
    """Type for argparse: a port, 0 for any that is free."""
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, got {text!r}")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    """Serve the page until the process is interrupted. Returns the exit code."""
    for module in ("gradio", "fastapi", "uvicorn"):
        if importlib.util.find_spec(module) is None:
            raise LalicError(f'lalic web needs {module}, which is not installed (pip install "lalic[web]")')
    set_up_process(args.threads)
    from lalic.codec import resolve_device, shipped_model
    from lalic.hub import load_model
    from lalic.warmup import warm_up
    from lalic.web.desk import MAX_PIXELS, Desk
    from lalic.web.server import listen, serve

    device = resolve_device(args.device)
    place = listen(args.host, args.port)
    if args.checkpoint is None and args.precision is None:
        model = shipped_model(device=device)
    else:
        model = load_model(args.checkpoint, device=device, precision=args.precision)
    warm_up(model, [(512, 512)], say=lambda line: print(f"lalic: {line}", file=sys.stderr, flush=True))
    host = "localhost" if args.host in ("127.0.0.1", "0.0.0.0", "::", "::1") else args.host
    address = f"http://{host}:{place.getsockname()[1]}/"

    def ready() -> None:
        print(f"the page is at {address}; Ctrl+C ends it", flush=True)
        if args.host not in ("127.0.0.1", "localhost", "::1"):
            print("lalic: whoever reaches this machine can use the page", file=sys.stderr, flush=True)
        if not args.no_browser and (
            sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        ):
            import webbrowser

            webbrowser.open(address)

    serve(Desk(model, args.max_pixels or MAX_PIXELS), place, ready)
    return 0
