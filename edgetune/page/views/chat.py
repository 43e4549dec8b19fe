"""A chat with a run: base and tuned model answer side by side as they speak."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse

from edgetune.errors import EdgetuneError, UsageError
from edgetune.page.asked import Asked
from edgetune.page.page import Page, shown


def chat(page: Page, asked: Asked) -> Response:
    """Show the chat of a run."""
    run = page.listing.run(asked.one("run"))
    return shown("chat.html", run=run, name=run.name)


def ask(page: Page, asked: Asked) -> Response:
    """Answer a question, a line of JSON a piece."""
    run, question = page.listing.run(asked.one("run")), asked.one("question")
    if not question:
        raise UsageError("The question is empty.")
    request = {
        "do": "ask",
        "run": str(run.path),
        "question": question,
        "temperature": _temperature(asked.one("temperature", "0")),
        "longest": asked.number("longest", 0) or None,
    }
    page.chat.tell({"do": "stop"})  # an answer that nobody listens to any more
    return StreamingResponse(_lines(page, request), media_type="application/x-ndjson")


def stop(page: Page, asked: Asked) -> Response:
    """Stop the answer that is given now."""
    page.chat.tell({"do": "stop"})
    return JSONResponse({})


def reset(page: Page, asked: Asked) -> Response:
    """Forget what was said."""
    if page.chat.running:
        page.chat.tell({"do": "stop"})
        list(page.chat.stream({"do": "reset", "run": str(page.listing.run(asked.one("run")).path)}))
    return JSONResponse({})


def close(page: Page, asked: Asked) -> Response:
    """Give back the model's memory."""
    page.chat.close()
    return JSONResponse({})


def _lines(page: Page, request: dict[str, Any]) -> Iterator[str]:
    try:
        for answer in page.chat.stream(request):
            yield json.dumps(answer) + "\n"
    except EdgetuneError as error:
        yield json.dumps({"error": str(error)}) + "\n"


def _temperature(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 100:
        raise UsageError(f"The temperature must be a number from 0 on; found {text[:40]!r}.")
    return found
