"""A real server and the client that everyone has: answers are those of `generate`."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from rows import PAIRS, Cli, call, write_rows
from starlette.requests import ClientDisconnect

from edgetune.backend import DeviceOutOfMemoryError, GenerateOptions
from edgetune.errors import OutOfMemoryError, StoppedError
from edgetune.serving.api import Api
from edgetune.serving.batching import MOST_WAITING, Ask, Batcher, BusyError, Piece
from edgetune.workflows.opened import Opened
from edgetune.workflows.over import Over
from edgetune.workflows.references import new_plan, open_references, read_reference
from edgetune.workflows.several import serving_of

LEARN = ("train", "--model", "tiny", "--device", "cpu", "--data", "rows.jsonl", "--learning-rate", "0.01",
         "--compute-dtype", "float32")  # fmt: skip
LONGEST = 12
PROMPTS = [user for user, _ in PAIRS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs over one base."""
    folder = tmp_path_factory.mktemp("work")
    write_rows(folder / "rows.jsonl")
    for name, method in (("home", "lora"), ("other", "bitfit")):
        called = call(*LEARN, "--steps", "2", "--method", method, "--output", name, cwd=folder)
        assert called.code == 0, called.err
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The address of a server of both runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgetune", "serve", "home", "other", "--port", "0", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["models"] == ["home", "other", "tiny"]
    yield told["url"]
    process.terminate()
    process.stdout.close()
    assert process.wait(60) == 130


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=200) as client:
        yield client


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    return Cli(capsys)


def test_adapters_that_do_not_fit_together_are_refused_before_the_base_is_loaded(
    cli: Cli, folder: Path
) -> None:
    """As many as are said to fit are held, within the memory that was said; one more is refused."""
    over = Over(model="tiny", device="cpu", memory=350_000_000)
    one = read_reference("home/adapter", over)
    assert one.adapter is not None
    plan = new_plan(one, over)
    serving = serving_of(plan, [one.adapter.method])
    most = 1 + serving.further(350_000_000)
    for number in range(most + 1):
        copy = folder / "many" / str(number)
        copy.mkdir(parents=True)
        for file in (folder / "home" / "adapter").iterdir():
            os.link(file, copy / file.name)
    names = [f"many/{number}" for number in range(most + 1)]

    called = cli("serve", *names, "--model", "tiny", "--device", "cpu", "--memory", "350MB")
    assert called.code == 3
    assert f"{most} of them fit" in called.err
    asked = ("--model", "tiny", "--device", "cpu", "--memory", "350MB", "-p", PROMPTS[0])
    called = call("generate", *names[:-1], *asked, "--max-tokens", "2", "--json", cwd=folder)
    assert called.code == 0, called.err  # in a process of its own, which is held to its memory
    assert len(json.loads(called.out)) == most


def _generated(cli: Cli, *named: str) -> list[str]:
    asked = [item for prompt in PROMPTS for item in ("-p", prompt)]
    called = cli("generate", *named, *asked, "--max-tokens", str(LONGEST), "--json", "-q")
    assert called.code == 0, called.err
    return [row["text"] for row in json.loads(called.out)]


def _said(client: openai.OpenAI, model: str, prompt: str, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    more = {"max_tokens": LONGEST, **more}
    return client.chat.completions.create(model=model, messages=messages, **more)


def test_the_models_are_the_runs_and_their_base(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["home", "other", "tiny"]
    assert client.models.retrieve("home").id == "home"


def test_eight_clients_at_once_get_the_answers_of_generate(client: openai.OpenAI, cli: Cli) -> None:
    expected = {"home": _generated(cli, "home"), "other": _generated(cli, "other"),
                "tiny": _generated(cli, "home", "--base")}  # fmt: skip
    asked = [(model, i) for model in expected for i in range(len(PROMPTS))]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda one: _said(client, one[0], PROMPTS[one[1]]), asked))
    texts = [answer.choices[0].message.content for answer in found]

    assert texts == [expected[model][i] for model, i in asked]
    assert expected["home"] != expected["tiny"]
    for answer, (model, _) in zip(found, asked, strict=True):
        assert answer.model == model
        assert 0 < answer.usage.completion_tokens <= LONGEST
        assert answer.choices[0].finish_reason in {"stop", "length"}


def test_a_streamed_answer_is_the_same(client: openai.OpenAI) -> None:
    whole = _said(client, "home", PROMPTS[0])
    chunks = list(
        _said(client, "home", PROMPTS[0], stream=True, stream_options={"include_usage": True})
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]

    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 1
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_texts_are_gone_on_with(client: openai.OpenAI, cli: Cli) -> None:
    called = cli("generate", "home", "--raw", "-p", "Turn on", "--max-tokens", "6", "-q")
    found = client.completions.create(model="home", prompt=["Turn on", "Shut"], max_tokens=6)

    assert f"{found.choices[0].text}\n" == called.out
    assert [choice.index for choice in found.choices] == [0, 1]


def test_an_answer_ends_where_a_stop_begins(client: openai.OpenAI) -> None:
    whole = _said(client, "home", PROMPTS[0]).choices[0].message.content
    stop = whole[4:7]
    ended = _said(client, "home", PROMPTS[0], stop=[stop, "never said"])
    streamed = _said(client, "home", PROMPTS[0], stop=stop, stream=True)

    assert ended.choices[0].message.content == whole[: whole.index(stop)]
    assert ended.choices[0].finish_reason == "stop"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text == ended.choices[0].message.content


def test_who_stops_to_listen_is_not_waited_for(client: openai.OpenAI) -> None:
    stream = _said(client, "home", "Tell me all.", stream=True, temperature=50, max_tokens=1500)
    next(iter(stream))
    stream.close()
    assert _said(client, "home", PROMPTS[0]).choices[0].message.content


@pytest.mark.parametrize(
    ("more", "because"),
    [
        ({"n": 2}, "n is 2"),
        ({"tools": [{"type": "function"}]}, "tools is"),
        ({"logprobs": True}, "logprobs is True"),
        ({"presence_penalty": 1.5}, "presence_penalty is 1.5"),
        ({"temperature": -1}, "temperature must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"extra_body": {"prompt": "both"}}, "prompt is 'both'"),
        ({"stop": [""]}, "stop must be"),
    ],
)
def test_what_is_not_done_is_refused_by_name(
    client: openai.OpenAI, more: dict[str, Any], because: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=because):
        _said(client, "home", "Hello", **more)


def test_what_cannot_be_read_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="There are: home, other, tiny"):
        _said(client, "gpt-4", "Hello")
    with pytest.raises(openai.BadRequestError, match="has positions for"):
        _said(client, "home", "word " * 3000)
    image = [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    messages: Any = [{"role": "user", "content": image}]
    with pytest.raises(openai.BadRequestError, match="parts of text"):
        client.chat.completions.create(model="home", messages=messages)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:8321"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 200),
        ({"Host": "example.org"}, 403),
        ({"Host": "127.0.0.1.example.org"}, 403),
        ({"Host": "localhost@example.org"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "https://example.org"}, 403),
        ({"Origin": "http://localhost.example.org"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_strangers_are_refused(url: str, headers: dict[str, str], status: int) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/no")):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        found = answer.status
        connection.close()
        assert (found == 403) == (status == 403)
    assert method == "GET"


def _chat_body(message: Any, **more: Any) -> bytes:
    return json.dumps({"model": "home", "messages": [message], "max_tokens": 1, **more}).encode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps({"model": "home", "prompt": "a\ud800b"}).encode(), "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b"\xff", "application/json"),
        (b'{"model": "home", "messages": [{"role": "user", "content": "a"}]}', "text/plain"),
        (b" " * (5 << 20), "application/json"),
        *(
            (_chat_body(message), "application/json")
            for message in (
                {"role": ["user"], "content": "a"},
                {"role": {"a": 1}, "content": "a"},
                {"role": 1, "content": "a"},
                {"role": "user", "content": [{"type": ["text"], "text": "a"}]},
                {"role": "user", "content": [{"type": {}, "text": "a"}]},
                {"role": "user", "content": "a\ud800b"},
                {"role": "user", "content": "a", "\ud800": 1},
                "user",
            )
        ),
        (b'{"model": "home", "\\ud800": 1}', "application/json"),
        (_chat_body({"role": "user", "content": "a"}, temperature=10**400), "application/json"),
    ],
)
def test_bodies_that_are_no_requests_are_refused(url: str, body: bytes, kind: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    path = "completions" if b'"prompt"' in body else "chat/completions"
    connection.request("POST", f"/v1/{path}", body, {"Content-Type": kind})
    answer = connection.getresponse()
    assert answer.status == 400
    assert json.loads(answer.read())["error"]["type"] == "invalid_request_error"
    connection.close()


class Asker:
    """Puts prompts into a batcher, and takes the pieces of their answers."""

    def __init__(self, opened: Opened) -> None:
        """Ask nothing yet."""
        self.opened, self.batcher = opened, Batcher(opened)
        self.pieces: list[list[Piece]] = []

    def ask(self, prompt: list[int], **options: Any) -> None:
        """Let a prompt wait."""
        self.pieces.append([])
        ends = self.opened.tokenizer.end_tokens
        wanted = GenerateOptions(max_tokens=LONGEST, end_tokens=ends, **options)
        ask = Ask(opened=self.opened, prompt=prompt, options=wanted, take=self.pieces[-1].append)
        self.batcher.put([ask])

    def steps(self, count: int) -> None:
        """Answer some tokens of each."""
        for _ in range(count):
            self.batcher.join()
            self.batcher.step()

    def finish(self) -> list[str]:
        """Answer to the end and return the texts."""
        while not all(any(p.reason or p.error for p in own) for own in self.pieces):
            self.steps(1)
        return ["".join(piece.text for piece in own) for own in self.pieces]


@pytest.fixture
def opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """A run in this process."""
    monkeypatch.chdir(folder)
    (opened,) = open_references(["home"])
    with closing(opened.session):
        yield opened


def _chats(opened: Opened) -> list[list[int]]:
    return [opened.prompt_tokens([{"role": "user", "content": text}]) for text in PROMPTS[:3]]


def test_a_prompt_joins_those_that_are_answered(opened: Opened) -> None:
    asker, prompts = Asker(opened), _chats(opened)
    warm = {"temperature": 1.0, "seed": 5}
    alone = [Asker(opened) for _ in prompts]
    for one, prompt, options in zip(alone, prompts, ({}, warm, {}), strict=True):
        one.ask(prompt, **options)
    expected = [one.finish()[0] for one in alone]

    for prompt, options in zip(prompts, ({}, warm, {}), strict=True):
        asker.ask(prompt, **options)
        asker.steps(2)
    assert all(own and not own[-1].reason for own in asker.pieces)
    assert asker.finish() == expected


def test_prompts_that_do_not_fit_together_are_answered_in_turn(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, read = _chats(opened), opened.session.read
    asker, most = Asker(opened), [3]
    for prompt in prompts:
        asker.ask(prompt)
    expected = Asker(opened)
    for prompt in prompts:
        expected.ask(prompt)
    texts = expected.finish()

    def little(rows: Any) -> Any:
        if len(rows) > most[0]:
            raise DeviceOutOfMemoryError("can't allocate memory")
        return read(rows)

    monkeypatch.setattr(opened.session, "read", little)
    asker.steps(2)
    most[0] = 1
    assert asker.finish() == texts
    most[0] = 0
    asker.ask(prompts[0])
    asker.finish()
    assert isinstance(asker.pieces[-1][-1].error, OutOfMemoryError)


def test_the_next_request_of_a_conversation_reads_what_is_new(opened: Opened) -> None:
    asker, chat = Asker(opened), [{"role": "user", "content": PROMPTS[0]}]
    asker.ask(opened.prompt_tokens(chat))
    (said,) = asker.finish()
    first = len(opened.prompt_tokens(chat))
    chat += [{"role": "assistant", "content": said}, {"role": "user", "content": "And then?"}]
    prompt = opened.prompt_tokens(chat)
    before = asker.batcher.read_tokens
    asker.ask(prompt)
    asker.finish()

    anew = Asker(opened)
    anew.ask(prompt)
    assert anew.finish()[0] == "".join(piece.text for piece in asker.pieces[1])
    assert asker.batcher.read_tokens - before <= anew.batcher.read_tokens - first


async def _posted(api: Api, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Post a request whose client leaves as soon as it is read; return what was sent to it."""
    body = json.dumps({"model": "home", "prompt": prompts}).encode()
    received = iter(({"type": "http.request", "body": body}, {"type": "http.disconnect"}))
    sent = []

    async def receive() -> Any:
        return next(received)

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers,
             "query_string": b""}  # fmt: skip
    await api.application()(scope, receive, send)
    return sent


def _sent_to(api: Api, prompts: Sequence[str]) -> list[dict[str, Any]]:
    """Post it from another thread: in this one a browser's loop may be running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(_posted(api, prompts))).result()


def test_nothing_is_answered_to_who_has_left(opened: Opened) -> None:
    asked: list[Ask] = []
    with pytest.raises(ClientDisconnect):
        _sent_to(Api({"home": opened}, asked.extend), PROMPTS)
    assert [ask.cancelled for ask in asked] == [True] * len(PROMPTS)


def test_more_prompts_than_ever_fit_are_refused_before_one_waits(opened: Opened) -> None:
    asked: list[Ask] = []
    sent = _sent_to(Api({"home": opened}, asked.extend), ["a"] * (MOST_WAITING + 1))
    assert sent[0]["status"] == 400
    error = json.loads(sent[1]["body"])["error"]
    assert error["param"] == "prompt"
    assert f"257 texts, and {MOST_WAITING} prompts may wait" in error["message"]
    assert asked == []


def test_prompts_wait_together_or_not_at_all(opened: Opened) -> None:
    batcher, pieces, options = Batcher(opened), list[Piece](), GenerateOptions()
    first, second, third = (
        [Ask(opened=opened, prompt=[1], options=options, take=pieces.append) for _ in range(count)]
        for count in (MOST_WAITING - 1, 2, 1)
    )
    batcher.put(first)
    with pytest.raises(BusyError, match="255 prompts wait already, and 256 may"):
        batcher.put(second)
    batcher.put(third)
    first[0].cancelled = first[1].cancelled = True
    batcher.put(second)  # in the place of those that nobody wants

    batcher.close()
    assert len(pieces) == MOST_WAITING
    assert all(isinstance(piece.error, StoppedError) for piece in pieces)
    with pytest.raises(StoppedError, match="The server has ended"):
        batcher.put(third)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_neither_who_leaves_nor_who_ends_it_makes_a_server_print_a_traceback(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "edgetune", "serve", "home", "--port", "0", "--json"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        place = urlsplit(json.loads(process.stdout.readline())["url"])
        address = (place.hostname, place.port)
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow = json.dumps({"model": "home", "prompt": ["a"] * 9, "max_tokens": 1500,
                           "temperature": 50}).encode()  # fmt: skip
        whole = head + b"Content-Length: %d\r\n\r\n%b" % (len(slow), slow)
        for sent in (
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            head + b'Content-Length: 90\r\n\r\n{"model"',
            whole,
        ):
            with socket.create_connection(address, timeout=60) as client:
                client.sendall(sent)
                time.sleep(0.3)
        with (
            socket.create_connection(address, timeout=60) as client,
            socket.create_connection(address, timeout=60) as never,
        ):
            client.sendall(whole)
            never.sendall(head + b"Content-Length: 90\r\n\r\n")
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"The server has ended" in answer
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "Stopped."
    assert "Traceback" not in printed
    assert "Exception" not in printed


def test_a_port_that_is_taken_is_said(url: str, cli: Cli) -> None:
    called = cli("serve", "home", "--port", str(urlsplit(url).port))
    assert called.code == 2
    assert "Choose another with --port" in called.err
