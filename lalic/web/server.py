"""The server of the page: which requests are taken, pictures in and out, and its life.

Uploads, pictures and downloads are bytes in this process, each with an address of 128 random bits. Gradio's routes that
read or write files, or fetch addresses, are closed, so that no request opens a file.
"""

from __future__ import annotations

import asyncio
import ipaddress
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
    from collections.abc import AsyncIterator

    from fastapi import FastAPI, Request, Response

    from lalic.web.desk import Desk

__all__ = ["MAX_BYTES", "OPEN", "application", "listen", "serve"]

MAX_BYTES = 1 << 28  # of an upload
_PATIENCE = 30.0  # seconds without a byte after which a request is given up
_MOST_OF_AN_EVENT = 1 << 16  # bytes

# What Gradio may answer, of its routes: the page, its scripts, and events.
OPEN = re.compile(
    r"/|/config/?|/(assets|static|svelte)/.+|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
    r"|/gradio_api/(theme\.css|startup-events|app_id/?|queue/(join|data)|run/predict|heartbeat/[a-z0-9]+|cancel|reset/?)"
)


def application(desk: Desk, shelf: Shelf, max_bytes: int = MAX_BYTES, local: bool = False) -> FastAPI:
    """The page and its routes.

    max_bytes: of an upload; all that arrive at once have at most twice as many. local: only this machine is to use it,
    so requests that name another host are refused: a page of the web whose name leads here would send them.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing goes to other machines
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    import gradio
    from fastapi import FastAPI
    from fastapi.responses import JSONResponse, Response

    from lalic.web import page

    size = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes} bytes"
    arriving = 0  # bytes of all uploads

    async def receive(request: Request) -> Response:
        nonlocal arriving
        data, own = bytearray(), 0
        try:
            async for chunk in _patiently(request.stream()):
                data += chunk
                own, arriving = len(data), arriving + len(chunk)
                if own > max_bytes:
                    return JSONResponse({"error": f"The file is too large: the limit is {size}"}, 413)
                if arriving > 2 * max_bytes:
                    return JSONResponse({"error": "Too many files are being sent; drop it again later"}, 503)
        except TimeoutError:
            return JSONResponse({"error": "The file stopped arriving; drop it again"}, 408)
        finally:
            arriving -= own
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
    blocks = page.build(desk, shelf, max_bytes)
    gradio.mount_gradio_app(
        app, blocks, "/", footer_links=[], run_history=False, ssr_mode=False, mcp_server=False, pwa=False,
        show_error=False, enable_monitoring=False, **page.look(),
    )  # fmt: skip
    app.add_middleware(_Guard, local=local)
    return app


async def _patiently(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The chunks of a request. Raises `TimeoutError` if none comes for long."""
    while True:
        try:
            yield await asyncio.wait_for(anext(chunks), _PATIENCE)
        except StopAsyncIteration:
            return


class _Guard:
    """ASGI middleware: takes what `OPEN` names, from the page itself, and events of plain values.

    local: of `application`.
    """

    def __init__(self, app: Any, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
            return
        path = scope["path"]
        headers = {name.lower(): value for name, value in scope["headers"]}
        origin, host = headers.get(b"origin"), headers.get(b"host", b"")
        if self.local and not _is_loopback(host.decode("latin-1")):
            await _refuse(send, 403, "this page is served to this machine alone; lalic web --host lets others in")
        elif not (path.startswith("/lalic/") or OPEN.fullmatch(path)) or ".." in path.split("/"):
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


def _is_loopback(place: str) -> bool:
    """Whether a host, with or without a port, can only be this machine."""
    try:
        host = urllib.parse.urlsplit(f"//{place}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _body(receive: Any) -> bytes | None:
    """The body of a request, None if it is too long, or does not come."""
    body, more = b"", True
    while more:
        try:
            message = await asyncio.wait_for(receive(), _PATIENCE)
        except TimeoutError:
            return None
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

        local = ipaddress.ip_address(place.getsockname()[0].partition("%")[0]).is_loopback
        app = application(desk, Shelf(), local=local)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
        Server(config).run([place])
