"""A hub on this machine that speaks the protocol, with every way in which it can fail."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from rows import Called, Cli

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Answer = tuple[int, dict[str, str], bytes]
MODEL = "org/model"
STRANGE = {
    "pytorch_model.bin": b"a pickle",
    "modeling_own.py": b"print('code')",
    "consolidated.safetensors": b"the same weights again",
    "original/params.json": b"{}",
    "README.md": b"# A model",
}
"""What a repository has that nobody wants."""
LARGE = (".safetensors", ".bin", "tokenizer.json")
"""Endings of the files that a hub keeps outside git."""


def git_digest(data: bytes) -> str:
    """Return what git names a content by."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class HubState:
    """What a hub has and how it behaves; requests are written down as they come."""

    files: dict[str, bytes]
    model: str = "org/model"
    card: dict[str, Any] = field(default_factory=lambda: {"license": "apache-2.0"})
    gated: Any = False
    revisions: tuple[str, ...] = ("main", COMMIT)
    token: str | None = None
    """Without it nothing is given."""
    renamed_from: str | None = None
    errors: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answers to the next requests, before any is served."""
    file_errors: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cut_after: int | None = None
    """Bytes after which an answer with a file breaks off."""
    cuts: int = 0
    ranges: bool = True
    damage: dict[str, bytes] = field(default_factory=dict)
    """What is sent in place of a file."""
    description: bytes | None = None
    cdn: str | None = None
    """Another host that large files are fetched from."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def digest(self, name: str) -> str:
        """Return the checksum of a file as the hub tells it."""
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if name.endswith(LARGE) else git_digest(data)

    def described(self) -> dict[str, Any]:
        """Return what the API says of the model."""
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {
                "rfilename": name, "size": len(data), "blobId": git_digest(data),
            }  # fmt: skip
            if name.endswith(LARGE):
                digest = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return {
            "id": self.model, "sha": COMMIT, "gated": self.gated, "cardData": self.card,
            "tags": ["license:mit"], "siblings": siblings,
        }  # fmt: skip

    def fetched(self) -> Counter[str]:
        """Return how often each file was asked for."""
        return Counter(
            unquote(path.rpartition("/")[2]) for _, path, _ in self.requests if "/resolve/" in path
        )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: HubState

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.state.requests.append((self.command, urlsplit(self.path).path, dict(self.headers)))
        answer = self._answered_without_files(urlsplit(self.path).path)
        if answer is not None:
            self._answer(*answer)
            return
        name = unquote(self.path.removeprefix("/cdn/").rpartition(f"/{COMMIT}/")[2])
        if self.state.cdn and name.endswith(LARGE):
            to = {"Location": f"{self.state.cdn}/cdn/{name}"}
            self._answer(302, {**self._headers_of(name), **to})
        else:
            self._send(name)

    def _answered_without_files(self, path: str) -> Answer | None:
        """Return status, headers and body of an answer that is no file; None for a file."""
        state = self.state
        is_file = "/resolve/" in path or path.startswith("/cdn/")
        errors = state.file_errors if is_file and state.file_errors else state.errors
        if errors:
            return *errors.pop(0), b""
        if path.startswith("/cdn/"):
            return None
        if state.token and self.headers.get("Authorization") != f"Bearer {state.token}":
            return 401, {"X-Error-Code": "GatedRepo" if state.gated else "RepoNotFound"}, b""
        if state.renamed_from and state.renamed_from in path:
            return 307, {"Location": self.path.replace(state.renamed_from, state.model)}, b""
        if path.startswith(f"/api/models/{state.model}/revision/"):
            return self._described(unquote(path.rpartition("/")[2]))
        if not path.startswith(f"/{state.model}/resolve/{COMMIT}/"):
            name = "/resolve/" in path and path.startswith(f"/{state.model}/")
            code = "RevisionNotFound" if name else "RepoNotFound"
            return 404, {"X-Error-Code": code}, b""
        found = unquote(path.rpartition(f"/{COMMIT}/")[2]) in state.files
        return None if found else (404, {"X-Error-Code": "EntryNotFound"}, b"")

    def _described(self, revision: str) -> Answer:
        if revision not in self.state.revisions:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        assert parse_qs(urlsplit(self.path).query) == {"blobs": ["true"]}
        body = self.state.description or json.dumps(self.state.described()).encode()
        return 200, {"Content-Type": "application/json"}, body

    def _headers_of(self, name: str) -> dict[str, str]:
        digest = f'"{self.state.digest(name)}"'
        linked = {"X-Linked-Etag": digest, "X-Linked-Size": str(len(self.state.files[name]))}
        return {"X-Repo-Commit": COMMIT, "ETag": digest} | (linked if name.endswith(LARGE) else {})

    def _send(self, name: str) -> None:
        state = self.state
        data = state.damage.get(name, state.files[name])
        start, code, headers = 0, 200, {"Accept-Ranges": "bytes", **self._headers_of(name)}
        if state.ranges and (wanted := self.headers.get("Range")):
            start, code = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
            if start >= len(data):
                self._answer(416, {})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if state.cut_after is not None and state.cuts and len(data) - start > state.cut_after:
            state.cuts -= 1
            self._cut(code, headers, data[start:])
        else:
            self._answer(code, headers, data[start:])

    def _cut(self, code: int, headers: dict[str, str], body: bytes) -> None:
        """Break off in the middle of an answer."""
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        assert self.state.cut_after is not None
        self.wfile.write(body[: self.state.cut_after])
        self.close_connection = True

    def _answer(self, code: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep silent."""


@contextmanager
def serving(state: HubState) -> Iterator[str]:
    """Yield the address of a hub on the loopback interface that has what a state says."""
    handler = type("Handler", (_Handler,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return what a folder holds, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def taken(cli: Cli, *arguments: str) -> Called:
    """Fetch without being asked."""
    return cli("fetch", MODEL, "--yes", *arguments)
