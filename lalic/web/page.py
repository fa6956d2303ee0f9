"""The components of the page, and which event does what."""

from __future__ import annotations

import contextlib
import html
import os
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import gradio as gr
from PIL import Image

from lalic.container import parse
from lalic.errors import LalicError, sentence
from lalic.eval.bits import heat_map
from lalic.eval.curve_figure import curve_figure
from lalic.eval.measure import caption
from lalic.eval.side_by_side import Match, remarks
from lalic.eval.viewer import asset, figures_table, shown_factor, shown_picture, size_text, view
from lalic.eval.viewer import page as whole_page
from lalic.images import dump
from lalic.memory import give_back
from lalic.web.desk import (
    AIMS,
    CURVE_PIXELS,
    Closed,
    Desk,
    Opened,
    Report,
    Request,
    Results,
    Superseded,
    opponents,
    sample,
)
from lalic.web.follow import Step, follow
from lalic.web.shelf import Shelf

__all__ = ["build", "look"]

_DROP = """
<div class="drop" data-most="%d">
  <label>Choose a photo<input type="file" accept="image/*,.lalic,.tif,.tiff,.avif,.heic,.jxl,.jp2"></label>
  <button type="button" data-sample>Sample photo</button>
  <span>or drop or paste one anywhere. A .lalic file opens too.</span>
  <span role="status"></span><progress max="1" aria-label="Sent"></progress>
</div>"""
_VIEWER = """
const viewer = lalicViewer(element.firstElementChild);
const update = () => viewer.show(props.value ?? { views: [], message: "Drop a photo to begin" });
watch("value", update);
update();
"""
_SHORT = {
    "jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "avif-psnr": "AVIF for PSNR", "jxl": "JPEG XL", "heic": "HEVC"
}  # fmt: skip
_NUMBERS = {"bpp": ("Bits per pixel", 3), "psnr": ("PSNR in dB", 2), "size": ("File size in kB", 1)}


def _text(name: str) -> str:
    return resources.files("lalic.web").joinpath(name).read_text(encoding="utf-8")


def look() -> dict[str, Any]:
    """Theme and style, for `gradio.mount_gradio_app`: with fonts of the system, so that none is loaded."""
    sans = [gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")]
    mono = [gr.themes.Font(name) for name in ("ui-monospace", "Consolas", "monospace")]
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="zinc", font=sans, font_mono=mono, spacing_size="sm", radius_size="md"
    )
    # Not as `css`, whose selectors Gradio rewrites, and not always rightly.
    return {"theme": theme, "head": f"<style>{asset('viewer.css')}{_text('page.css')}</style>"}


_AT_ONCE = 16
Changes = dict[Any, Any]  # new values of components


@dataclass
class _Tab:
    """What a browser's tab has open.

    key: of its picture on the desk. opening: the newest file that it opens, which older ones make way for. fault: the
    sentence of what failed last, which is shown until something else is asked for. before: addresses of the files of
    the picture before, which the browser may be loading still. offered: whether the number of another aim is on its way
    to the browser, whose wishes may lack it until then.
    """

    key: str | None = None
    opening: object = None
    fault: str = ""
    before: list[str] = field(default_factory=list)
    offered: bool = False


def build(desk: Desk, shelf: Shelf, most_bytes: int) -> gr.Blocks:
    """The page of a desk. Files for browsers are put on the shelf. most_bytes: of an upload."""
    names = opponents()
    with gr.Blocks(title="lalic", analytics_enabled=False) as blocks:
        tab = gr.State(_Tab(), delete_callback=lambda tab: shelf.drop([*tab.before, *desk.close(tab.key)]))
        gr.HTML(
            "<h1>lalic</h1><p>A learned image codec beside the ones you know. Pictures stay in this server.</p>",
            elem_id="title",
        )
        drop = gr.HTML(
            html_template=_DROP % most_bytes, js_on_load=_text("drop.js") + _text("controls.js"), elem_id="drop",
            apply_default_css=False,
        )  # fmt: skip
        with gr.Row(elem_id="says"):
            status = gr.HTML(elem_id="status", min_height=28, scale=1)
            stop = gr.Button("Stop", visible=False, size="sm", elem_id="stop", scale=0, min_width=80)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                viewer = gr.HTML(
                    html_template="<div></div>",
                    js_on_load=asset("viewer.js") + _VIEWER,
                    elem_id="viewer",
                    apply_default_css=False,
                )
            with gr.Column(scale=1, min_width=320):
                with gr.Column() as controls:
                    aim = gr.Radio(
                        [(title, name) for name, title in AIMS.items()], value="quality", label="Aim for",
                        visible=desk.has_qualities,
                    )  # fmt: skip
                    quality = gr.Slider(
                        1, 100, 50, step=1, label="Quality", elem_id="quality", visible=desk.has_qualities
                    )
                    target = gr.Number(visible=False, label="Target", elem_id="target")
                    other = gr.Radio([(_SHORT[name], name) for name in names], value=names[0], label="Compare with")
                    match = gr.Radio([("equal size", "bpp"), ("equal PSNR", "psnr")], value="bpp", label="At")
                figures = gr.HTML(elem_id="figures")
        curve = gr.HTML(elem_id="curve")
        page = _Page(desk, shelf, tab, viewer, status, stop, controls, figures, curve)
        wishes = [tab, aim, quality, target, other, match]
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # The desk lets codings take turns, so Gradio may start many; more requests wait in its queue.
        coding = quiet | {"concurrency_limit": _AT_ONCE, "concurrency_id": "coding"}
        drawing = quiet | {
            "concurrency_limit": _AT_ONCE, "concurrency_id": "drawing", "trigger_mode": "always_last"
        }  # fmt: skip
        shown = [viewer, status, stop, figures]
        for event, function in ((drop.opened, page.open), (drop.sample, page.sample), (blocks.load, page.sample)):
            done = event(function, wishes, [tab, controls, curve, *shown], trigger_mode="multiple", **coding)
            done.then(page.draw, wishes, curve, **drawing)
        chosen = aim.input(page.choose_aim, [tab, aim], [quality, target, status], queue=False, **quiet)
        chosen.then(page.catch_up, wishes, shown, trigger_mode="always_last", **coding)
        for event in (quality.release, target.submit, other.input, match.input):
            event(page.want, wishes, None, queue=False, trigger_mode="multiple", **quiet)
            done = event(page.code, wishes, shown, trigger_mode="always_last", **coding)
            done.then(page.draw, wishes, curve, **drawing)
        stop.click(lambda tab: desk.stop(tab.key), tab, None, queue=False, **quiet)
    return blocks


def _request(aim: str, quality: float | None, target: float | None, other: str, match: str) -> Request:
    """What the controls ask for. Raises `LalicError` if a number is missing."""
    value = quality if aim == "quality" else target
    if not isinstance(value, int | float):
        raise LalicError(f"{AIMS[aim]} has no number; enter one")
    return Request(aim, float(value), other, match)


class _Page:
    """What the events do. The components are those that they change."""

    def __init__(
        self,
        desk: Desk,
        shelf: Shelf,
        tab: gr.State,
        viewer: gr.HTML,
        status: gr.HTML,
        stop: gr.Button,
        controls: gr.Column,
        figures: gr.HTML,
        curve: gr.HTML,
    ) -> None:
        self.desk, self.shelf = desk, shelf
        self.tab, self.viewer, self.status, self.stop = tab, viewer, status, stop
        self.controls, self.figures, self.curve = controls, figures, curve

    def open(
        self,
        tab: _Tab,
        aim: str,
        quality: float | None,
        target: float | None,
        other: str,
        match: str,
        event: gr.EventData,
    ) -> Iterator[Changes]:
        """Open an upload, whose key the event has."""
        wishes = aim, quality, target, other, match
        yield from self._open(tab, wishes, lambda: self.shelf.take(str(event._data["key"])))

    def sample(self, tab: _Tab, *wishes: Any) -> Iterator[Changes]:
        """Open the photo that ships."""
        yield from self._open(tab, wishes, lambda: (sample(), "astronaut.png"))

    def _open(self, tab: _Tab, wishes: tuple[Any, ...], take: Callable[[], tuple[bytes, str]]) -> Iterator[Changes]:
        """Open a file, and code it as the controls wish. A newer file of the tab ends this."""
        turn, name, key = object(), "", ""
        tab.opening, tab.fault = turn, ""

        def opened_key(report: Report) -> Iterator[str]:
            def watched(text: str, share: float | None = None) -> None:
                if tab.opening is not turn:
                    raise Superseded
                report(text, share)

            nonlocal name
            data, name = take()
            yield self.desk.open(data, name, watched)

        yield {self.status: _busy("Opening")}
        try:
            for message in follow(opened_key):
                if not isinstance(message, Step):
                    key = message
                elif tab.opening is turn:
                    yield {self.status: _busy(message)}
        except Exception as error:
            yield self._failed(tab, error, name) if tab.opening is turn else self._nothing()
            return
        if tab.opening is not turn:
            self.desk.close(key)
            yield self._nothing()
            return
        self.shelf.drop(tab.before)
        tab.before, tab.key = self.desk.close(tab.key), key
        opened = self.desk.get(key)
        shown = {self.tab: tab, self.controls: gr.update(visible=opened.file is None), self.figures: "", self.curve: ""}
        if opened.file is None:
            yield shown | {self.viewer: self._views(opened, None)}
            yield from self._code(tab, key, wishes)
        else:
            yield shown | self._decoded(opened) | {self.status: _notes(opened), self.stop: gr.update(visible=False)}

    def want(self, tab: _Tab, *wishes: Any) -> None:
        """End what is being made for other wishes."""
        with contextlib.suppress(LalicError):
            self.desk.want(tab.key, _request(*wishes))

    def code(self, tab: _Tab, *wishes: Any) -> Iterator[Changes]:
        """Code the picture as the controls wish."""
        tab.fault = ""
        yield from self._code(tab, tab.key, wishes)

    def _code(self, tab: _Tab, key: str | None, wishes: tuple[Any, ...]) -> Iterator[Changes]:
        if tab.key != key:
            yield self._nothing()
            return
        try:
            request, opened = _request(*wishes), self.desk.get(key)
        except LalicError as error:
            yield self._nothing() if tab.offered else self._failed(tab, error)
            return
        try:
            yield {
                self.status: tab.fault + _busy("Encoding"),
                self.stop: gr.update(visible=opened.pixels > CURVE_PIXELS),
            }
            for message in follow(lambda report: self.desk.code(key, request, report)):
                if tab.key != key:
                    raise Superseded
                if isinstance(message, Step):
                    yield {self.status: tab.fault + _busy(message)}
                else:
                    made = {self.viewer: self._views(opened, message), self.figures: self._figures(opened, message)}
                    yield made
            if tab.key != key:
                raise Superseded
            # Of values that follow each other within milliseconds, Gradio may lose some, so the last come once more.
            yield made | {self.status: tab.fault or _notes(opened), self.stop: gr.update(visible=False)}
        except Superseded:
            if tab.key == key and opened.wanted is None:
                text = "Stopped. Any change of the controls begins anew"
                yield {self.status: tab.fault + _says(text), self.stop: gr.update(visible=False)}
            else:
                yield self._nothing()
        except Exception as error:
            if tab.key == key:
                yield self._failed(tab, error) | {self.stop: gr.update(visible=False)}
            else:
                yield self._nothing()

    def _nothing(self) -> Changes:
        """No change. The last changes of an event come to the browser twice, so one that makes way ends with this."""
        return {self.status: gr.skip()}

    def _failed(self, tab: _Tab, error: Exception, name: str = "") -> Changes:
        """Show an error in one sentence. name: of the file that it is about."""
        tab.fault = _fault(error, name)
        return {self.status: tab.fault}

    def catch_up(self, tab: _Tab, *wishes: Any) -> Iterator[Changes]:
        """Code the picture if another codec is chosen than is shown: its number was wrong, and is gone now."""
        tab.offered = False
        yield self._nothing()
        with contextlib.suppress(LalicError):
            results, request = self.desk.get(tab.key).results, _request(*wishes)
            if results and (results.request.other, results.request.match) != (request.other, request.match):
                yield from self._code(tab, tab.key, wishes)

    def draw(self, tab: _Tab, *wishes: Any) -> Iterator[Any]:
        """Draw the curve of the picture, point by point."""
        key = tab.key
        try:
            opened = self.desk.get(key)
            if opened.file is not None or opened.pixels > CURVE_PIXELS or not self.desk.has_qualities:
                yield ""
                return
            for points in self.desk.curve(key, _request(*wishes)):
                if tab.key != key:
                    raise Superseded
                marks = [(match.bpp, match.psnr) for match in opened.results.matches] if opened.results else []
                wide, narrow = (curve_figure(points, marks, size) for size in ((1200, 260), (360, 240)))
                yield f"<div class=wide>{wide}</div><div class=narrow>{narrow}</div>"
        except (Superseded, LalicError):
            yield gr.skip()

    def choose_aim(self, tab: _Tab, aim: str) -> tuple[Any, Any, Any]:
        """Show the slider, or the number of another aim, with what the picture has now. An old fault is gone."""
        value, status = None, gr.skip()
        with contextlib.suppress(Closed):
            opened = self.desk.get(tab.key)
            if tab.fault:
                tab.fault, status = "", _notes(opened)
            if (results := opened.results) is not None:
                ours = results.ours
                values = {"quality": ours.quality, "size": ours.coded.size / 1000, "bpp": ours.bpp, "psnr": ours.psnr}
                value = values[aim]
                tab.offered = aim != "quality"
        if aim == "quality":
            slider = gr.update(visible=True) if value is None else gr.update(visible=True, value=value)
            return slider, gr.update(visible=False), status
        label, digits = _NUMBERS[aim]
        value = None if value is None else round(value, digits)
        return gr.update(visible=False), gr.update(visible=True, label=f"{label}, then Enter", value=value), status

    # What is shown

    def _address(self, opened: Opened, name: str, make: Callable[[], tuple[bytes, str, str]]) -> str:
        """The address of a file of a picture. make: gives its bytes, media type and name if it is not on the shelf."""
        address = opened.addresses.get(name)
        if address is None or not self.shelf.has(address):
            opened.addresses[name] = address = self.shelf.put(*make())
            if opened.large:
                give_back()
        return address

    def _picture(self, opened: Opened, name: str, picture: Image.Image) -> str:
        return self._address(opened, f"view {name}", lambda: (shown_picture(picture), "image/webp", "view.webp"))

    def _views(self, opened: Opened, results: Results | None) -> dict[str, Any]:
        """What the viewer shows."""
        width, height = opened.picture.size
        views = [view("original", "Original", self._picture(opened, "original", opened.picture), f"{width}x{height}")]
        for match in results.matches if results else []:
            name = f"{match.codec.name} {match.quality}"
            identity = "lalic" if match.codec.name == "lalic" else "other"
            source = self._picture(opened, name, match.coded.picture)
            views.append(view(identity, match.codec.title, source, match.heading()))
        shown: dict[str, Any] = {"picture": opened.identity, "width": width, "height": height, "views": views}
        if results is not None and results.bits is not None:
            heat, top = heat_map(results.bits, opened.picture.size)
            source = self._picture(opened, f"bits {results.ours.quality}", heat)
            shown["bits"] = {"src": source, "note": f"0 to {top:.2g} bits per pixel, dark to bright"}
        return shown

    def _figures(self, opened: Opened, results: Results) -> str:
        """The figures, links to the files, and what follows from them."""
        links = {match.codec.name: self._file(opened, match) for match in results.matches}
        if results.bits is not None and opened.pixels <= CURVE_PIXELS:
            links_below = f'<p><a href="{self._page(opened, results)}" download>Save this comparison as a page</a></p>'
        else:
            links_below = ""
        sentences = [
            f"<p class=verdict>{html.escape(each)}</p>" for each in remarks(results.matches, results.request.match)
        ]
        return figures_table(results.matches, links) + "".join(sentences) + links_below

    def _file(self, opened: Opened, match: Match) -> str:
        """The address of a match's file."""
        name = match.codec.name
        file = match.coded.data or b"", "application/octet-stream", f"{opened.name}.{_EXTENSIONS.get(name, name)}"
        return self._address(opened, f"file {name} {match.quality}", lambda: file)

    def _page(self, opened: Opened, results: Results) -> str:
        """The address of a page of one file that shows what is shown here."""
        matches, metric = results.matches, results.request.match
        name = " ".join(["page", metric, *(f"{match.codec.name} {match.quality}" for match in matches)])

        def make() -> tuple[bytes, str, str]:
            machine = caption(self.desk.model.device)
            text = whole_page(opened.name, opened.picture, matches, metric, machine)
            return text.encode(), "application/octet-stream", f"{opened.name}-compare.html"

        return self._address(opened, name, make)

    def _decoded(self, opened: Opened) -> Changes:
        """A .lalic file that was opened."""
        assert opened.file is not None
        container = parse(opened.file, None)
        width, height = opened.picture.size
        note = f"{width}x{height}, {8 * len(opened.file) / opened.pixels:.3f} bpp"
        source = self._picture(opened, "decoded", opened.picture)
        saved = self._address(opened, "png", lambda: (dump(opened.picture, ".png"), "image/png", f"{opened.name}.png"))
        facts = {
            "Size": size_text(len(opened.file)),
            "Bits per pixel": f"{8 * len(opened.file) / opened.pixels:.3f}",
            "Quality": "-" if container.quality is None else f"{container.quality:g}",
            "Model": html.escape(container.model_name),
            "Decoding": f"{opened.decode_seconds:.2f} s",
            "Picture": f'<a href="{saved}" download>Save as PNG</a>',
        }
        rows = "".join(f"<tr><th scope=row>{name}</th><td>{fact}</td></tr>" for name, fact in facts.items())
        return {
            self.viewer: {
                "picture": opened.identity,
                "width": width,
                "height": height,
                "views": [view("lalic", f"{opened.name}.lalic", source, note)],
            },
            self.figures: f"<table class=lalic-figures><tbody>{rows}</tbody></table>"
            "<p>A .lalic file has no original to compare it with. Drop a photo to compare.</p>",
        }


_EXTENSIONS = {"jpeg": "jpg", "avif-psnr": "avif"}


def _says(text: str, kind: str = "", more: str = "") -> str:
    role = "alert" if kind == "error" else "status"
    return f'<div class="says {kind}" role="{role}"><span>{html.escape(text)}</span>{more}</div>'


def _busy(step: Step | str) -> str:
    """A step that is being made."""
    if isinstance(step, str) or step.share is None:
        return _says(step if isinstance(step, str) else step.text, "busy")
    left = "" if step.left is None else f", about {max(1, round(step.left))} s left"
    return _says(step.text + left, "busy", f'<i style="--share: {100 * step.share:.0f}%"></i>')


def _notes(opened: Opened) -> str:
    """What is to be said of a picture when all is done."""
    factor = shown_factor(opened.picture.size)
    notes = [f"{opened.name}, {opened.picture.width}x{opened.picture.height}", *opened.notes]
    if factor > 1:
        notes.append(f"Shown at 1/{factor} of its width and height; the figures are those of the whole picture")
    return _says(". ".join(notes))


def _fault(error: Exception, name: str) -> str:
    """The sentence of an error, as the command line prints it. name: of the file that it is about, if there is one."""
    if not isinstance(error, (LalicError, OSError)) and os.environ.get("LALIC_TRACEBACK") == "1":
        traceback.print_exception(error)
    text = sentence(error)
    return _says(f"{name}: {text}" if name else text[:1].upper() + text[1:], "error")
