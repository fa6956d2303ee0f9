"""A page to try the codec in a browser: the command `lalic web`.

    cli      arguments; what the process needs before it serves
    desk     pictures that browsers have opened, coded at a quality, matched, measured (no web library)
    follow   work in a thread, with what it says of its progress
    shelf    uploads, pictures and downloads, in memory, by addresses that nobody can guess
    page     the page: components, and which event does what (Gradio); page.css, drop.js, controls.js
    server   routes for the shelf, which requests are taken, the server's life (FastAPI, uvicorn)

A photo goes from the browser to the shelf, is coded on the desk, and pictures go back by the shelf. No request opens a
file: Gradio's own ways to files are closed (`server.OPEN`). The picture is shown by `lalic/eval/viewer.js`, as Gradio's
image slider smooths pixels, has two pictures and no keyboard, and starts anew with each result.
"""
