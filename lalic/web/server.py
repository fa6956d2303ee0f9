"""The server of the page: which requests are taken, pictures in and out, and its life.

Uploads, pictures and downloads are bytes in this process, each with an address of 128 random bits. Gradio's routes that
read or write files, or fetch addresses, are closed, so that no request opens a file.
"""

from __future__ import annotations

import json
import os
import re
import socket
import tempfile
import urllib.parse
from typing import TYPE_CHECKING, Any

from lalic.errors import LalicError
from lalic.web.shelf import Shelf

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

    from lalic.web.desk import Desk

__all__ = ["MAX_BYTES", "OPEN", "application", "listen", "serve"]

MAX_BYTES = 1 << 28  # of an upload
_MOST_OF_AN_EVENT = 1 << 16  # bytes

# What Gradio may answer, of its routes: the page, its scripts, and events.
OPEN = re.compile(
    r"/|/config/?|/(assets|static|svelte)/.+|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
    r"|/gradio_api/(theme\.css|startup-events|queue/(join|data)|run/predict|heartbeat/[a-z0-9]+|cancel|reset/?)"
)


def application(desk: Desk, shelf: Shelf, max_bytes: int = MAX_BYTES) -> FastAPI:
    """The page and its routes."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing goes to other machines
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response

    from lalic.web import page

    async def receive(request: Request) -> Response:
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                size = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
                return JSONResponse({"error": f"The file is too large: the limit is {size}"}, 413)
        name = urllib.parse.unquote(request.headers.get("x-file-name", ""))[:200]
        return JSONResponse({"key": shelf.receive(bytes(data), name)})

    async def send(request: Request) -> Response:
        found = shelf.get(request.path_params["key"])
        if found is None:
            return Response("this file is gone; make it again on the page", 404)
        headers = {"Cache-Control": "private, max-age=3600, immutable", "X-Content-Type-Options": "nosniff"}
        return Response(found[0], media_type=found[1], headers=headers)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_route("/lalic/open", receive, methods=["POST"])
    app.add_route("/lalic/file/{key}/{name}", send)
    blocks = page.build(desk, shelf)
    gradio.mount_gradio_app(
        app, blocks, "/", footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False,
        show_error=False, enable_monitoring=False, **page.look(),
    )  # fmt: skip
    app.add_middleware(_Guard)
    return app


class _Guard:
    """ASGI middleware: takes what `OPEN` names, from the page itself, and events of plain values."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
            return
        path = scope["path"]
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if not (path.startswith("/lalic/") or OPEN.fullmatch(path)) or ".." in path.split("/"):
            await _refuse(send, 404, "there is nothing here")
        elif origin is not None and urllib.parse.urlsplit(origin).netloc != host:
            await _refuse(send, 403, "requests of other pages are refused")
        elif path.startswith("/gradio_api/") and scope["method"] == "POST":
            body = await _body(receive)
            if body is None or not _plain(body):
                await _refuse(send, 400, "an event has plain values")
                return
            messages = iter([{"type": "http.request", "body": body, "more_body": False}])

            async def replay() -> Any:
                return next(messages, None) or await receive()

            await self.app(scope, replay, send)
        else:
            await self.app(scope, receive, send)


async def _body(receive: Any) -> bytes | None:
    """The body of a request, None if it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if message["type"] != "http.request" or len(body) > _MOST_OF_AN_EVENT:
            return None
    return body


def _plain(body: bytes) -> bool:
    """Whether the values of an event are numbers, texts or nothing: others may name files for Gradio to open."""
    try:
        event = json.loads(body or b"{}")
    except ValueError:
        return False
    values = event.get("data") or [] if isinstance(event, dict) else None
    return isinstance(values, list) and not any(isinstance(value, dict | list) for value in values)


async def _refuse(send: Any, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


# The server's life


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens. port: None for 7860, or the next of a hundred that is free; 0 for any.

    Raises `LalicError` if there is none.
    """
    ports = range(7860, 7960) if port is None else (port,)
    for number in ports:
        found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, number))
            found.listen(128)
            return found
        except OSError as error:
            found.close()
            reason = error.strerror or str(error)
    where = f"{host}:{ports[0]}" if port is not None else f"{host}, ports {ports[0]} to {ports[-1]}"
    raise LalicError(f"the page cannot be served at {where} ({reason}); --port and --host choose another place")


def serve(desk: Desk, place: socket.socket, ready: Any = lambda: None) -> None:
    """Serve the page until the process is interrupted. ready: called when the server takes requests.

    Gradio has a temporary folder of its own, which is deleted at the end.
    """
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="lalic-web-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ.setdefault("MPLCONFIGDIR", folder)  # gradio imports matplotlib, which keeps a list of fonts

        class Server(uvicorn.Server):
            async def startup(self, sockets: Any = None) -> None:
                await super().startup(sockets)
                ready()

        config = uvicorn.Config(
            application(desk, Shelf()), log_level="warning", access_log=False, timeout_graceful_shutdown=1
        )
        Server(config).run([place])
