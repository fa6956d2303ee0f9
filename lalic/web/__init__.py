"""A page to try the codec in a browser: the command `lalic web`.

    cli      arguments; what the process needs before it serves
    desk     pictures that browsers have opened, coded at a quality, matched, measured (no web library)
    page     the page: components, and which event does what (Gradio)
    server   routes for pictures, which requests are taken, the server's life (FastAPI, uvicorn)

A photo goes from the browser to the server's memory and is coded there; pictures come back by addresses that nobody can
guess. No request opens a file: Gradio's own ways to files are closed (`server.OPEN`).
"""
