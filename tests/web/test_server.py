"""What the server of the page answers, and above all what it does not: no request opens a file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from tiny import noise, tiny

pytest.importorskip("gradio", reason="the page needs gradio (pip install lalic[web])")

from starlette.testclient import TestClient

from lalic.web.desk import Desk
from lalic.web.server import application
from lalic.web.shelf import Shelf

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shelf():
    return Shelf()


@pytest.fixture(scope="module")
def app(shelf, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    yield application(Desk(tiny(qualities=3)), shelf, max_bytes=100_000)
    patch.undo()


@pytest.fixture
def client(app):
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        yield client


def raw(app, path: str, method: str = "GET", body: bytes = b"", headers=()) -> tuple[int, bytes]:
    """Status and body of a request whose path no client has tidied up."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1:7860"), *headers], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860),
    }  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 20))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_the_page_is_there_and_names_no_other_host(client):
    page = client.get("/")
    assert page.status_code == 200 and "lalic" in page.text
    style = client.get("/theme.css")
    assert style.status_code == 200 and "http" not in style.text.replace("http://www.w3.org", "")
    assert client.get("/config").status_code == 200


FILES = ("/etc/passwd", str(ROOT / "pyproject.toml"), str(ROOT / "lalic/assets/astronaut.png"), "lalic/cli.py")


@pytest.mark.parametrize("file", FILES)
def test_no_file_is_read(app, file):
    name = file.lstrip("/")
    for path in (
        f"/gradio_api/file={file}",
        f"/gradio_api/file/{name}",
        f"/file={file}",
        f"/gradio_api/proxy=http://127.0.0.1/{name}",
        f"/gradio_api/file=file://{file}",
        f"/static/../../../../../../../../{name}",
        f"/assets/../../../../../../../../../{name}",
        f"/static//{name}",
        f"/svelte/../../../../../../../../{name}",
        f"/lalic/file/../../{name}",
        f"/lalic/file/x/../../../{name}",
        f"/lalic/file/{'A' * 22}/{name}",
        f"/custom_component/x/client/component/../../{name}",
        f"/gradio_api/custom_component/1/server/component/{name}",
        f"/gradio_api/stream/x/1/1/{name}",
    ):
        status, body = raw(app, path)
        assert status in (403, 404, 405), (path, status)
        assert len(body) < 200, path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("POST", "/gradio_api/component_server"),
        ("POST", "/gradio_api/call/code"),
        ("POST", "/gradio_api/run/code"),
        ("POST", "/gradio_api/api/predict"),
        ("POST", "/gradio_api/stream/1"),
        ("GET", "/gradio_api/file=http://127.0.0.1:7860/"),
        ("GET", "/gradio_api/file=https://example.org/"),
        ("GET", "/gradio_api/info"),
        ("GET", "/gradio_api/openapi.json"),
        ("GET", "/gradio_api/runs"),
        ("GET", "/gradio_api/deep_link"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/gradio_api/dev/reload"),
    ],
)
def test_other_ways_in_are_closed(app, method, path):
    assert raw(app, path, method, b"{}")[0] == 404


def test_events_name_no_files(client, tmp_path):
    """Gradio would open or fetch what such a value names, whatever the component."""
    secret = tmp_path / "secret.png"
    noise().save(secret)
    for value in (
        {"path": str(secret), "meta": {"_type": "gradio.FileData"}},
        {"path": "http://127.0.0.1:1/", "url": "http://127.0.0.1:1/", "meta": {"_type": "gradio.FileData"}},
        [str(secret)],
    ):
        event = {"data": [None, value, 50, None, "jpeg", "bpp"], "fn_index": 3, "session_hash": "abcdefgh"}
        for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
            answer = client.post(path, json=event)
            assert answer.status_code == 400 and answer.text == "an event has plain values"
    for body in (
        b"no json",
        b"[1]",
        b'{"data": {"a": 1}}',
        b'{"data": "x"}',
        json.dumps({"data": ["x" * 70000]}).encode(),
    ):
        assert client.post("/gradio_api/queue/join", content=body).status_code == 400


def test_other_pages_are_refused(client):
    for origin, status in (("http://127.0.0.1:7860", 200), ("http://evil.example", 403), ("null", 403)):
        answer = client.post("/lalic/open", content=b"x", headers={"Origin": origin})
        assert answer.status_code == status


def test_an_upload_is_opened_once(client, shelf):
    answer = client.post("/lalic/open", content=b"abc", headers={"X-File-Name": "F%C3%BC%C3%9Fe.png"})
    key = answer.json()["key"]
    assert shelf.take(key) == (b"abc", "Füße.png")
    with pytest.raises(ValueError, match="drop the file again"):
        shelf.take(key)
    keys = [client.post("/lalic/open", content=b"%d" % i).json()["key"] for i in range(6)]
    with pytest.raises(ValueError, match="drop the file again"):
        shelf.take(keys[0])
    assert shelf.take(keys[5])[0] == b"5"


def test_a_large_upload_is_refused_with_a_sentence(client):
    answer = client.post("/lalic/open", content=iter([b"x" * 60_000] * 1000))
    assert answer.status_code == 413
    assert answer.json() == {"error": "The file is too large: the limit is 100000 bytes"}


def test_files_have_addresses_and_the_oldest_go(client):
    shelf = Shelf(most=1000)
    addresses = [shelf.put(bytes(400), "image/webp", f"{i} ü/?.webp") for i in range(3)]
    assert [shelf.has(address) for address in addresses] == [False, True, True]
    assert addresses[1].isascii() and addresses[1].count("/") == 3
    assert shelf.get("x") is None


def test_a_file_comes_back_as_it_was_put(client, shelf):
    address = shelf.put(b"some bytes", "application/octet-stream", "a photo.lalic")
    answer = client.get(f"/{address}")
    assert answer.content == b"some bytes" and answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    other = address.split("/")
    other[2] = other[2][:-1] + ("A" if other[2][-1] != "A" else "B")
    assert client.get("/" + "/".join(other)).status_code == 404


def test_the_page_of_this_machine_answers_to_its_names_alone(app, tmp_path):
    """A page of the web may have a name that leads here: its requests are of the same origin, but name its host."""
    public, local = (
        application(Desk(tiny(qualities=3)), Shelf()),
        application(Desk(tiny(qualities=3)), Shelf(), local=True),
    )
    good = ("localhost", "localhost:8000", "127.0.0.1:7860", "127.0.0.2", "[::1]:7860")
    bad = (
        "evil.example:7860",
        "192.0.2.1",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[",
        "0.0.0.0:7860",
    )
    for host in (*good, *bad):
        headers = {"Host": host, "Origin": f"http://{host}"} if host != "[" else {"Host": host}
        for served, status in ((public, 200), (local, 200 if host in good else 403)):
            client = TestClient(served)
            answer = client.post("/lalic/open", content=b"x", headers=headers)
            assert answer.status_code == status, host
    assert "this machine alone" in answer.text


def test_a_page_finds_its_server_again(client):
    """Gradio reloads a page whose server was started anew, which it knows by this."""
    assert client.get("/gradio_api/app_id").json()["app_id"] == client.get("/config").json()["app_id"]


def upload(app, *chunks: bytes, then=None) -> tuple[int, bytes]:
    """Status and body of an upload of these chunks. then: awaited for what comes after them, if not its end."""
    waiting, sent = [*chunks], []

    async def receive():
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or then is not None}
        return await then()

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/lalic/open", "raw_path": b"/lalic/open", "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1:7860")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 7860),
    }  # fmt: skip

    async def answer():
        await asyncio.wait_for(app(scope, receive, send), 20)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    return answer()


def test_uploads_that_stop_or_are_too_many_are_given_up(app, monkeypatch):
    monkeypatch.setattr("lalic.web.server._PATIENCE", 0.3)
    never = asyncio.sleep

    async def at_once():
        three = [upload(app, bytes(90_000), then=lambda: never(60)) for _ in range(3)]
        return await asyncio.gather(*three)

    answers = asyncio.run(at_once())
    assert sorted(status for status, _ in answers) == [408, 408, 503]
    assert b"Too many files are being sent" in dict(answers)[503] and b"stopped arriving" in dict(answers)[408]
    assert asyncio.run(upload(app, bytes(90_000)))[0] == 200  # nothing of them is counted any more


def test_waiting_uploads_have_a_limit(monkeypatch):
    monkeypatch.setattr("lalic.web.shelf._WAITING_BYTES", 1000)
    shelf = Shelf()
    keys = [shelf.receive(bytes(size), "x") for size in (400, 500, 300, 2000)]
    for key in keys[:3]:
        with pytest.raises(ValueError, match="drop the file again"):
            shelf.take(key)
    assert len(shelf.take(keys[3])[0]) == 2000
