"""Pages of ``edgetune view`` in processes of their own, and requests to them."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import urlencode, urlsplit

REBOUND = "rebound.test"
"""A name of another site that leads to this machine."""


@dataclass(frozen=True)
class Answer:
    """What a server answered; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: str


@dataclass(frozen=True)
class Site:
    """A page that is served; ``address`` has the token, ``host`` the port."""

    process: subprocess.Popen[str]
    address: str
    host: str
    token: str

    @property
    def base(self) -> str:
        """The address without the token."""
        return f"http://{self.host}"

    @cached_property
    def cookie(self) -> str:
        """The cookie that a browser gets for the token."""
        answer = self.ask(f"/?token={self.token}", cookie="")
        return answer.headers["set-cookie"].partition(";")[0]

    def ask(
        self,
        path: str,
        form: Mapping[str, str] | None = None,
        *,
        cookie: str | None = None,
        **headers: str,
    ) -> Answer:
        """Ask for a path, with POST if there is a form; headers by name with underscores."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if found := self.cookie if cookie is None else cookie:
            given["cookie"] = found
        body = None
        if form is not None:
            body = urlencode(form)
            given = {"content-type": "application/x-www-form-urlencoded", **given}
            given.setdefault("origin", self.base)
        with closing(http.client.HTTPConnection(self.host, timeout=60)) as connection:
            connection.request("GET" if form is None else "POST", path, body, given)
            answer = connection.getresponse()
            text = answer.read().decode()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)


@contextmanager
def viewed(workplace: Path, *arguments: str) -> Iterator[Site]:
    """Yield a page, served by ``edgetune view`` in a process of its own."""
    process = subprocess.Popen(
        # as a script starts it in the background: Ctrl-C is ignored by it and what it starts
        ["/bin/sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable, "-m", "edgetune", "view",
         *arguments, "--json"],
        cwd=workplace,
        env={**os.environ, "EDGETUNE_CACHE": str(workplace / "cache")},
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    split = urlsplit(told["url"])
    yield Site(
        process=process, address=told["url"], host=split.netloc, token=split.query[len("token=") :]
    )
    process.terminate()
    process.stdout.close()
    assert process.wait(60) == 130
