"""How fast the page answers: `python -m benchmarks.page`, from the release of the slider to the picture, in a browser.

`lalic web` serves a photo of 768x512 to Chromium (package playwright, and the program `chromium` or `google-chrome`).
For each other codec the slider goes to several qualities in turn. Two times are read in the page: until the result of
lalic is shown, and until all is: the other codec's match, the figures and the map of the bits.
"""

from __future__ import annotations

import io
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from benchmarks import records, report
from benchmarks.codec import photo
from benchmarks.measure import WrongResult

OTHERS = ("JPEG", "WebP", "AVIF")
QUALITIES = (31, 62, 47, 78, 23, 88, 55)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WAIT = 60_000  # ms
PAUSE = 3000  # ms: the curve is drawn meanwhile

# Moves the slider, releases it, and returns the seconds until the picture is another, and until nothing is busy.
_RELEASE = """async (quality) => {
  const image = () => document.querySelector(".lv-layer[data-side=right] img");
  const slider = document.querySelector("#quality input[type=range]"), old = image().src;
  Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(slider, quality);
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  await new Promise((done) => setTimeout(done, 50));
  const start = performance.now();
  const until = (reached) => new Promise((done, late) => {
    const look = () => reached() ? done((performance.now() - start) / 1000)
      : performance.now() - start > 60000 ? late("the page did not answer") : setTimeout(look, 5);
    look();
  });
  slider.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  const shown = await until(() => image().src !== old && image().complete);
  return [shown, await until(() => !document.querySelector("#status .busy"))];
}"""


@contextmanager
def served(words: Sequence[str]) -> Iterator[str]:
    """The address of a page that a process serves meanwhile. words: options of `lalic web`."""
    command = [sys.executable, "-m", "lalic", "web", "--port", "0", "--no-browser", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://localhost:\d+/", process.stdout.readline())
            if found is None:
                raise WrongResult("page: `lalic web` does not start")
            yield found[0]
        finally:
            process.terminate()


@contextmanager
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    with sync_playwright() as driver:
        yield (started := driver.chromium.launch(executable_path=program, args=["--no-sandbox"]))
        started.close()


def releases(
    page: Any, address: str, size: tuple[int, int], others: Sequence[str], qualities: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for each other codec: medians and the largest of the seconds after releases. page: a tab of a browser."""
    picture = io.BytesIO()
    photo(size[1], size[0]).save(picture, "PNG")
    rows: list[dict[str, Any]] = []
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.locator("#figures .verdict").wait_for()
    page.locator("#drop input[type=file]").set_input_files(
        {"name": "photo.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    )
    page.wait_for_function("document.querySelector('#status .says:not(.busy)')?.innerText.startsWith('photo')")
    for other in others:
        page.get_by_role("radio", name=other, exact=True).check()
        page.wait_for_timeout(2 * PAUSE)
        found = []
        for quality in qualities:
            found.append(page.evaluate(_RELEASE, quality))
            page.wait_for_timeout(PAUSE)
        shown, done = zip(*found, strict=True)
        row = {"other": other, "size": f"{size[0]}x{size[1]}", "releases": len(found)}
        row |= {"seconds": statistics.median(shown), "largest seconds": max(shown)}
        rows.append(row | {"all seconds": statistics.median(done), "largest all seconds": max(done)})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Print medians. Returns 0; usage errors and a busy machine exit with 2."""
    parser = records.parser("page", "From a slider's release to the picture.", quick="one release, a small photo")
    options = parser.parse_args(argv)
    record = records.environment(records.check(parser, options))
    count = 1 if options.quick else None
    size, others, qualities = (128, 64) if options.quick else (768, 512), OTHERS[:count], QUALITIES[:count]
    words = ["--device", options.device, "--threads", str(record["threads"])]
    with served(words) as address, browser() as started:
        page = started.new_page(viewport={"width": 1280, "height": 900})
        rows = releases(page, address, size, others, qualities)
    report.show(record | {"page": rows})
    records.keep(record | {"page": rows}, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
