"""OpenAI's API over opened models: chat completions, completions, models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from secrets import token_hex
from typing import Any, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgetune.data.problems import RowError
from edgetune.errors import EdgetuneError, OutOfMemoryError, StoppedError, UsageError
from edgetune.escapes import plain
from edgetune.serving.batching import MOST_WAITING, Ask, BusyError, Piece
from edgetune.serving.guard import LoopbackOnly
from edgetune.serving.requests import BadRequestError, Request, read_request
from edgetune.workflows.opened import Opened

T = TypeVar("T")

LARGEST_BODY: Final = 4 << 20
"""Bytes of a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A request whose prompts wait or are answered."""

    id: str
    created: int
    request: Request
    chat: bool
    asks: Sequence[Ask]
    pieces: asyncio.Queue[tuple[int, Piece]]

    def head(self, suffix: str) -> dict[str, Any]:
        """Return what every object of the answer begins with."""
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.request.model,
        }

    def usage(self, tokens: int) -> dict[str, int]:
        """Return the numbers of tokens."""
        asked = sum(len(ask.prompt) for ask in self.asks)
        return {
            "prompt_tokens": asked,
            "completion_tokens": tokens,
            "total_tokens": asked + tokens,
        }


class Api:
    """The endpoints; ``names`` are the models, ``put`` lets prompts wait for their turn."""

    def __init__(self, names: Mapping[str, Opened], put: Callable[[Sequence[Ask]], None]) -> None:
        """Take the models."""
        self._names = names
        self._put = put
        self._since = int(time.time())

    def application(self) -> LoopbackOnly:
        """Return the guarded application."""
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
        ]
        return LoopbackOnly(Starlette(routes=routes))

    async def models(self, _: HttpRequest) -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [self._described(x) for x in self._names]})

    async def model(self, request: HttpRequest) -> Response:
        """Describe one."""
        name = request.path_params["name"]
        return JSONResponse(self._described(name)) if name in self._names else self._unknown(name)

    async def chat(self, request: HttpRequest) -> Response:
        """Answer a chat."""
        return await self._answer(request, chat=True)

    async def completions(self, request: HttpRequest) -> Response:
        """Go on with texts."""
        return await self._answer(request, chat=False)

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "edgetune"}

    def _unknown(self, name: str) -> Response:
        known = ", ".join(self._names)
        return _error(
            404, f"There is no model {name!r}. There are: {known}.", "model", "model_not_found"
        )

    async def _answer(self, http: HttpRequest, *, chat: bool) -> Response:
        try:
            request = read_request(await _body(http), chat=chat)
            if request.model not in self._names:
                return self._unknown(request.model)
            answering = self._asked(request, chat=chat)
            self._put(answering.asks)
            if request.stream:
                return StreamingResponse(_events(answering), media_type="text/event-stream")
            return JSONResponse(await _unless_gone(http, _whole(answering)))
        except EdgetuneError as error:
            return _refusal(error)

    def _asked(self, request: Request, *, chat: bool) -> Answering:
        """Return the prompts of a request, ready to wait.

        Raises:
            UsageError: if a prompt is empty or longer than the model can read.
            BadRequestError: if the model's template refuses a chat, or there are more prompts than
                may wait.
        """
        if len(request.prompts) > MOST_WAITING:
            raise BadRequestError(
                f"prompt has {len(request.prompts):,} texts, and {MOST_WAITING} prompts may wait at "
                "one time. Send them in several requests.",
                "prompt",
            )
        opened = self._names[request.model]
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Piece]]()

        def take(number: int, piece: Piece) -> None:
            with suppress(RuntimeError):  # the server has ended
                loop.call_soon_threadsafe(pieces.put_nowait, (number, piece))

        asks = []
        for number, prompt in enumerate(request.prompts):
            try:
                tokens = opened.prompt_tokens(prompt)
            except RowError as error:
                raise BadRequestError(str(error), "messages") from error
            longest = opened.longest_answer(len(tokens), request.options.max_tokens)
            options = replace(
                request.options, max_tokens=longest, end_tokens=opened.tokenizer.end_tokens
            )
            asks.append(
                Ask(
                    opened=opened,
                    prompt=tokens,
                    options=options,
                    stops=request.stops,
                    take=partial(take, number),
                )
            )
        name = f"{'chatcmpl' if chat else 'cmpl'}-{token_hex(12)}"
        return Answering(
            id=name,
            created=int(time.time()),
            request=request,
            chat=chat,
            asks=asks,
            pieces=pieces,
        )


async def _body(http: HttpRequest) -> object:
    """Return the JSON of a request.

    Raises:
        BadRequestError: if it is none, or too large.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a page of another site cannot send without asking
        raise BadRequestError("The content type must be application/json.")
    body = bytearray()
    async for chunk in http.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise BadRequestError(f"The request has more than {LARGEST_BODY:,} bytes.")
    try:
        found: object = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The body is not JSON: {error}") from error
    return found


async def _unless_gone(http: HttpRequest, work: Coroutine[Any, Any, T]) -> T:
    """Return what some work comes to; it is cancelled when the client leaves.

    Raises:
        ClientDisconnect: if it has.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(http))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _gone(http: HttpRequest) -> None:
    """Wait until the client of a request, which was read to its end, leaves."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _pieces(answering: Answering) -> AsyncIterator[tuple[int, Piece]]:
    """Yield the pieces of all answers; who stops to listen takes the prompts back."""
    left = len(answering.asks)
    try:
        while left:
            number, piece = await answering.pieces.get()
            if piece.error is not None:
                raise piece.error
            left -= piece.reason is not None
            yield number, piece
    finally:
        for ask in answering.asks:
            ask.cancelled = True


async def _whole(answering: Answering) -> dict[str, Any]:
    texts, reasons = [""] * len(answering.asks), [""] * len(answering.asks)
    tokens = 0
    async for number, piece in _pieces(answering):
        texts[number] += piece.text
        reasons[number] = piece.reason or ""
        tokens += piece.tokens
    choices = []
    for number, (text, reason) in enumerate(zip(texts, reasons, strict=True)):
        said = (
            {"message": {"role": "assistant", "content": text}}
            if answering.chat
            else {"text": text}
        )
        choices.append({"index": number, **said, "logprobs": None, "finish_reason": reason})
    return {**answering.head(""), "choices": choices, "usage": answering.usage(tokens)}


async def _events(answering: Answering) -> AsyncIterator[str]:
    head, tokens = answering.head(".chunk"), 0
    if answering.chat:
        yield _event({**head, "choices": [_delta({"role": "assistant", "content": ""}, None)]})
    try:
        async for number, piece in _pieces(answering):
            tokens += piece.tokens
            yield _event({**head, "choices": [_choice(answering, number, piece)]})
    except EdgetuneError as error:
        yield _event(json.loads(bytes(_refusal(error).body)))
        return
    if answering.request.usage:
        yield _event({**head, "choices": [], "usage": answering.usage(tokens)})
    yield "data: [DONE]\n\n"


def _choice(answering: Answering, number: int, piece: Piece) -> dict[str, Any]:
    if answering.chat:
        return _delta({"content": piece.text} if piece.text else {}, piece.reason)
    return {"index": number, "text": piece.text, "logprobs": None, "finish_reason": piece.reason}


def _delta(delta: Mapping[str, str], reason: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _event(value: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _refusal(error: EdgetuneError) -> Response:
    """Return an error as OpenAI's API has it."""
    match error:
        case BadRequestError():
            return _error(400, str(error), error.param, "invalid_request")
        case UsageError():
            return _error(400, str(error), None, "invalid_request")
        case BusyError():
            return _error(429, str(error), None, "busy")
        case OutOfMemoryError():
            return _error(503, str(error), None, "out_of_memory")
        case StoppedError():
            return _error(503, str(error), None, error.kind)
    return _error(500, str(error), None, error.kind)


def _error(status: int, message: str, param: str | None, code: str) -> Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    message, param = plain(message), None if param is None else plain(param)  # they quote names
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}, status
    )
