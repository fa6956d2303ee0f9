"""The page in a real browser, served by the command with a tiny model: what people do with it, and that nothing stays.

All tests share a server and a browser. Every wait has an end.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import astronaut, save, tiny

pytest.importorskip("gradio", reason="the page needs gradio (pip install lalic[web])")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the browser tests need playwright (pip install playwright)"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="the browser tests need Chromium (apt-get install chromium)")

ROOT = Path(__file__).parents[2]
WAIT = 30_000  # ms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures and a checkpoint, and three empty folders: home, temporary files, where the server is started."""
    folder = tmp_path_factory.mktemp("page")
    for name in ("home", "tmp", "here"):
        (folder / name).mkdir()
    save(folder / "tiny.pth", tiny(qualities=3))
    astronaut(150, 20, 256, 192).save(folder / "face.png")
    (folder / "broken.png").write_bytes((folder / "face.png").read_bytes()[:9000])
    (folder / "large.bin").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """The address of the page. At the end the process is interrupted, and has left nothing behind."""
    environment = {
        **os.environ, "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT),
        "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", str(folder / "numba")), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    words = ["-m", "lalic.cli", "web", "--port", "0", "--no-browser", "--checkpoint", str(folder / "tiny.pth")]
    process = subprocess.Popen(
        [sys.executable, *words, "--threads", "1", "--max-pixels", "270000"],
        cwd=folder / "here", env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        os.set_blocking(process.stdout.fileno(), False)
        address, end = None, time.monotonic() + 120
        while address is None and process.poll() is None and time.monotonic() < end:
            found = re.search(r"the page is at (http://localhost:\d+/)", process.stdout.readline() or "")
            address = found[1] if found else time.sleep(0.1)
        assert address, process.stderr.read() if process.poll() is not None else "the page did not come"
        yield address
        held = list((folder / "tmp").iterdir())
        assert all(path.name.startswith("lalic-web-") for path in held), held
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert "Traceback" not in process.stderr.read()
        for name in ("tmp", "here", "home"):
            assert not list((folder / name).rglob("*.*")), name
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture(scope="module")
def browser(server):
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=60_000)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser, server):
    """A function that opens a tab with the sample photo shown. Faults of its scripts and other hosts fail the test."""
    contexts, faults, hosts = [], [], set()

    def new(width=1280, height=900, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
        page.on("response", lambda r: faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        page.goto(server)
        shows(page, "astronaut, 512x512")
        return page

    yield new
    for context in contexts:
        context.close()
    assert not faults
    assert hosts == {server.split("/")[2]}


def shows(page, text: str) -> None:
    """Wait until the line above the picture begins so, which it does when all is done."""
    page.wait_for_function(
        "text => document.querySelector('#status .says:not(.busy)')?.innerText.startsWith(text)", arg=text
    )


def figure(page, row: str, column: int = 1) -> str:
    return page.locator(f"#figures tr:has(th:text-is('{row}')) td").nth(column - 1).inner_text()


def changes(page, row: str, old: str, column: int = 1) -> str:
    """Wait until a figure is another, and return it."""
    cell = page.locator(f"#figures tr:has(th:text-is('{row}')) td").nth(column - 1)
    playwright.expect(cell).not_to_have_text(old, timeout=WAIT)
    return figure(page, row, column)


def drop(page, path: Path) -> None:
    page.locator("#drop input[type=file]").set_input_files(path)


def pixels(page, side: str) -> np.ndarray:
    """The pixels of a view as the browser has them."""
    source = page.locator(f".lv-layer[data-side={side}] img").first.evaluate("image => image.src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source, timeout=WAIT).body())).convert("RGB"))


def test_a_photo_a_quality_a_download_and_back(tab, folder, tmp_path):
    page = tab()
    drop(page, folder / "face.png")
    shows(page, "face, 256x192")
    assert np.array_equal(pixels(page, "left"), np.asarray(Image.open(folder / "face.png")))
    size, psnr = figure(page, "Size"), figure(page, "PSNR")
    box = page.locator("#quality input[type=range]").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert changes(page, "Size", size) != size
    shows(page, "face, 256x192")
    assert float(figure(page, "PSNR")[:-3]) > float(psnr[:-3])
    assert page.locator("#curve .wide circle").count() >= 2
    with page.expect_download() as download:
        page.locator("#figures a").first.click()
    assert download.value.suggested_filename == "face.lalic"
    download.value.save_as(tmp_path / "face.lalic")
    shown = pixels(page, "right")
    with page.expect_download() as download:
        page.get_by_text("Save this comparison").click()
    download.value.save_as(tmp_path / "face.html")
    drop(page, tmp_path / "face.lalic")
    page.get_by_text("Save as PNG").wait_for()
    playwright.expect(page.locator(".lv-note[data-side=left]")).to_contain_text("face.lalic", timeout=WAIT)
    assert np.array_equal(pixels(page, "left"), shown)
    assert figure(page, "Model") == "custom" and not page.get_by_role("radio", name="WebP").is_visible()
    with page.expect_download() as download:
        page.get_by_text("Save as PNG").click()
    download.value.save_as(tmp_path / "face.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "face.png")), shown)


def test_a_saved_page_needs_no_server(browser, tmp_path):
    from lalic.eval import compare
    from lalic.eval.viewer import page as whole_page

    result = compare(astronaut(150, 20, 192, 176), ["jpeg:30", "webp"])
    text = whole_page("a <b>[[script]]", result.picture, result.matches, "bpp", "a machine")
    (tmp_path / "face.html").write_text(text)
    context = browser.new_context(offline=True)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"file://{tmp_path}/face.html")
    page.locator(".lv-layer[data-side=right] img").wait_for()
    assert page.locator("h1").inner_text() == "a <b>[[script]]"
    assert page.locator("select[data-side=left] option").count() == 5  # the original, two codecs, two differences
    assert page.locator(".lalic-figures thead th").all_inner_texts() == ["JPEG 4:2:0", "WebP"]
    assert page.evaluate("document.querySelector('.lv-layer img').naturalWidth") == 192
    assert not faults
    context.close()


def test_other_codecs_aims_and_errors(tab, folder):
    page = tab()
    other = page.locator("#figures thead th").nth(1)
    for name, title in (("WebP", "WebP"), ("JPEG", "JPEG 4:2:0")):
        page.get_by_role("radio", name=name, exact=True).check()
        playwright.expect(other).to_have_text(title, timeout=WAIT)
        shows(page, "astronaut")
    page.get_by_role("radio", name="equal PSNR").check()
    playwright.expect(page.locator("#figures .verdict")).to_contain_text("at this PSNR", timeout=WAIT)
    shows(page, "astronaut")
    page.get_by_role("radio", name="Bits per pixel").check()
    page.locator("#target input").fill("1.5")
    page.keyboard.press("Enter")
    cell = page.locator("#figures tr:has(th:text-is('Bits per pixel')) td").first
    playwright.expect(cell).to_have_text(re.compile(r"1\.(49|50|51)\d*"), timeout=WAIT)
    page.locator("#target input").fill("70")
    page.keyboard.press("Enter")
    shows(page, "The target is 70 bits per pixel, but qualities 1 to 100")
    drop(page, folder / "broken.png")
    shows(page, "broken.png: the picture is damaged or truncated")
    drop(page, folder / "large.bin")
    shows(page, "large.bin: this is not a picture in a format that Pillow reads")
    large = io.BytesIO()
    astronaut().resize((600, 500)).save(large, "PNG")
    page.locator("#drop input[type=file]").set_input_files(
        {"name": "large.png", "mimeType": "image/png", "buffer": large.getvalue()}
    )
    shows(page, "large.png: the picture is too large: 600x500 is 300000 pixels, and the limit is 270000")


def test_the_divider_zoom_and_views(tab):
    page = tab()
    stage, divider = page.locator(".lv-stage"), page.locator(".lv-divider")
    box = stage.bounding_box()
    middle = box["y"] + box["height"] / 3
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle, steps=4)
    page.mouse.up()
    assert divider.get_attribute("aria-valuenow") == "25"
    cut = page.locator(".lv-layer[data-side=right]").evaluate("layer => getComputedStyle(layer).clipPath")
    assert "25%" in cut
    for key, value in (("ArrowRight", "26"), ("Shift+ArrowRight", "36"), ("Home", "0"), ("End", "100")):
        page.keyboard.press(key)
        assert divider.get_attribute("aria-valuenow") == value
    fit = float(stage.get_attribute("data-zoom"))
    page.keyboard.press("1")
    assert float(stage.get_attribute("data-zoom")) == 1
    for _ in range(4):
        page.get_by_label("Zoom in").click()
    image = page.locator(".lv-layer[data-side=left] img").first
    assert image.evaluate("image => image.style.imageRendering") == "pixelated"
    before = image.evaluate("image => image.style.transform")
    page.mouse.move(box["x"] + 100, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, middle + 30, steps=3)
    page.mouse.up()
    assert image.evaluate("image => image.style.transform") != before
    page.get_by_role("button", name="Fit").click()
    assert float(stage.get_attribute("data-zoom")) == pytest.approx(fit)
    names = page.locator("select[data-side=right] option").all_inner_texts()
    assert names == ["Original", "lalic", "JPEG 4:2:0", "Difference: lalic", "Difference: JPEG 4:2:0", "Bits"]
    for name, layers in (("difference-other", 2), ("bits", 2), ("other", 1)):
        page.locator("select[data-side=right]").select_option(name)
        playwright.expect(page.locator(".lv-layer[data-side=right] img")).to_have_count(layers, timeout=WAIT)


def test_the_keyboard_alone(tab):
    page = tab()
    quality = page.locator("#figures tr:has(th:text-is('Quality')) td").first
    page.locator("#quality input[type=range]").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    playwright.expect(quality).to_have_text("55", timeout=WAIT)
    assert page.locator("#quality input[type=number]").input_value() == "55"
    number = page.locator("#quality input[type=number]")
    for typed, meant in (("20", "20"), ("1e9", "100"), ("-1", "1"), ("", "1"), ("33.5", "33.5")):
        number.fill(typed)
        page.keyboard.press("Enter")
        playwright.expect(quality).to_have_text(meant, timeout=WAIT)
        assert number.input_value() == meant


def test_a_file_is_dropped_while_another_is_coded(tab, folder):
    """The newest is shown, also if the number of the quality has just been taken away."""
    page = tab()
    page.locator("#quality input[type=number]").fill("")
    for name in ("first", "second", "third"):
        page.locator("#drop input[type=file]").set_input_files(
            {"name": f"{name}.png", "mimeType": "image/png", "buffer": (folder / "face.png").read_bytes()}
        )
    shows(page, "third, 256x192")
    assert figure(page, "Quality") == "50"
    page.get_by_role("button", name="Sample photo").click()
    shows(page, "astronaut")


def test_the_answers_are_timed(tab, server, monkeypatch):
    """The benchmark of the page finds what it looks for, also where all results come within milliseconds."""
    from benchmarks import page as bench

    monkeypatch.setattr(bench, "PAUSE", 100)
    (row,) = bench.releases(tab(), server, (128, 64), ("WebP",), (31, 62))
    assert row["other"] == "WebP" and row["size"] == "128x64" and row["releases"] == 2
    assert 0 < row["seconds"] <= row["largest seconds"] <= row["largest all seconds"] < 60


def test_a_file_above_the_limit_is_not_sent(tab):
    page = tab()
    page.evaluate(
        """() => {
          const transfer = new DataTransfer(), file = new File(["x"], "huge.png");
          Object.defineProperty(file, "size", { value: 2 ** 40 });
          Object.defineProperty(transfer, "files", { value: [file] });
          transfer.items.add(file);
          document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, dataTransfer: transfer }));
        }"""
    )
    said = page.locator("#drop [role=status]")
    playwright.expect(said).to_have_text("huge.png: the file is too large, the limit is 256 MiB", timeout=WAIT)


def test_two_tabs_at_once_and_a_phone(tab, folder):
    pages = [tab(), tab(390, 844, has_touch=True)]
    drop(pages[0], folder / "face.png")
    pages[1].get_by_role("radio", name="WebP", exact=True).check()
    shows(pages[0], "face")
    playwright.expect(pages[1].locator("#figures thead th").nth(1)).to_have_text("WebP", timeout=WAIT)
    shows(pages[1], "astronaut")
    assert pages[0].locator("#figures thead th").nth(1).inner_text() == "JPEG 4:2:0"
    assert pages[1].evaluate("document.documentElement.scrollWidth") == 390


def test_a_file_dropped_or_pasted_anywhere(tab, folder):
    page = tab()
    make = """([bytes, name, kind]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], name, { type: "image/png" }));
      const options = { bubbles: true, cancelable: true };
      document.body.dispatchEvent(kind === "drop"
        ? new DragEvent("drop", { ...options, dataTransfer: transfer })
        : new ClipboardEvent("paste", { ...options, clipboardData: transfer }));
    }"""
    data = list((folder / "face.png").read_bytes())
    for name, kind in (("dropped.png", "drop"), ("pasted.png", "paste")):
        page.evaluate(make, [data, name, kind])
        shows(page, f"{name[:-4]}, 256x192")


NAMED = {"button", "combobox", "group", "image", "img", "link", "progressbar", "radio", "radiogroup", "slider",
         "spinbutton", "textbox"}  # fmt: skip


def named(page) -> list[tuple[str, str]]:
    """Role and name of what people use, as a screen reader gets them."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    return [(role, name) for role, name in found if role in NAMED]


def test_every_control_has_a_name(tab, folder):
    page = tab()
    page.locator("#curve svg:visible").first.wait_for()
    controls = named(page)
    assert all(name.strip() for _, name in controls), controls
    assert {role for role, _ in controls} >= NAMED - {"img", "progressbar", "textbox"}
    groups = [name for role, name in controls if role == "radiogroup"]
    assert groups == ["Aim for", "Compare with", "At"]
    links = [name for role, name in controls if role == "link"]
    assert len(links) == len(set(links)) == 3
    assert {("image", "Original"), ("image", "lalic")} <= set(controls)
    assert ("slider", "Divider between left and right") in controls
    page.get_by_role("radio", name="PSNR", exact=True).check()
    page.locator("#target input").wait_for()
    assert ("spinbutton", "PSNR in dB, then Enter") in named(page)
    drop(page, folder / "face.png")
    shows(page, "face")
    page.get_by_role("radio", name="Quality").check()
    page.locator("#quality input[type=range]").wait_for()
    assert all(name.strip() for _, name in named(page))  # parts that have gone and come


def test_radios_are_one_stop_of_the_keyboard(tab):
    page = tab()
    stops = []
    page.locator("#drop input").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        seen = page.evaluate(
            """() => {
              const at = document.activeElement, parts = [at, at.closest("label"), at.querySelector("span")];
              const marked = (part) => {
                const style = part && getComputedStyle(part);
                return part && (style.outlineStyle !== "none" || style.boxShadow !== "none");
              };
              return [at.type || at.role || at.tagName, !parts.some(marked)];
            }"""
        )
        if seen[0] == "BODY":
            break
        stops.append(seen)
    assert [kind for kind, _ in stops] == [
        "button", "slider", "select-one", "button", "button", "button", "button", "select-one",
        "radio", "number", "submit", "range", "radio", "radio", "A", "A", "A",
    ]  # fmt: skip
    assert not any(hidden for _, hidden in stops), stops  # the eye finds the focus too
    page.get_by_role("radio", name="JPEG", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="WebP", exact=True).is_checked()
    playwright.expect(page.locator("#figures thead th").nth(1)).to_have_text("WebP", timeout=WAIT)


def test_leaving_the_number_of_the_quality_asks_for_nothing(tab):
    """Gradio takes it for a release, whose wishes would lack the number of an aim that is chosen by that click."""
    page = tab()
    asked = []  # with the value that a release has
    page.on("request", lambda request: asked.append(1) if '"event_data":50' in (request.post_data or "") else None)
    number = page.locator("#quality input[type=number]")
    number.focus()
    page.locator("#title h1").click()
    page.wait_for_timeout(300)
    assert not asked
    number.fill("60")
    page.get_by_role("radio", name="Bits per pixel").check()
    playwright.expect(page.locator("#target input")).not_to_have_value("", timeout=WAIT)
    shows(page, "astronaut, 512x512")
    page.wait_for_timeout(500)
    assert "no number" not in page.locator("#status").inner_text()
