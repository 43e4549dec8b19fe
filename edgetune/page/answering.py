"""The child's side of :mod:`edgetune.page.child`: requests in, answers out, a line of JSON each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Thread
from typing import Any

from edgetune.errors import EdgetuneError, OutOfMemoryError

Plain = dict[str, Any]


def answer_for_ever(
    answer: Callable[[Plain], Iterable[Plain]], told: Callable[[Plain], None] = lambda _: None
) -> None:
    """Answer requests from standard input until it ends; ``told`` gets what is no request at once."""
    requests: SimpleQueue[Plain | None] = SimpleQueue()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    Thread(target=_listen, args=(requests, told), daemon=True).start()
    while (request := requests.get()) is not None:
        number = request.pop("number")
        for found in _answers(answer, request):
            out.write(json.dumps({**found, "number": number}) + "\n")
            out.flush()


def _answers(answer: Callable[[Plain], Iterable[Plain]], request: Plain) -> Iterable[Plain]:
    try:
        yield from answer(request)
    except EdgetuneError as error:
        yield _refusal(error.kind, str(error))
    except MemoryError as error:
        yield _refusal(OutOfMemoryError.kind, f"There is no memory left: {error}.")
    except Exception as error:
        yield _refusal(EdgetuneError.kind, f"{type(error).__name__}: {error}")
        raise
    else:
        yield {"done": True}


def _refusal(kind: str, message: str) -> Plain:
    return {"error": {"kind": kind, "message": message}}


def _listen(requests: SimpleQueue[Plain | None], told: Callable[[Plain], None]) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "number" in message:
            requests.put(message)
        else:
            told(message)
    requests.put(None)
