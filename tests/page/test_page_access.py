"""What the page shows to others: nothing, whoever asks in whatever way."""

from __future__ import annotations

import http.client
import socket
from contextlib import closing
from urllib.parse import urlsplit

import psutil
import pytest
from sites import Site

PATHS = (
    "/", "/live", "/run?run=x", "/run/live?run=x", "/compare?run=x&run=y", "/new", "/new/files?typed=",
    "/rows?run=x", "/chat?run=x", "/export?run=x", "/static/page.js", "/static/page.css", "/nothing",
)  # fmt: skip
ACTIONS = (
    "/run/act", "/new/plan", "/new/start", "/chat/ask", "/chat/stop", "/chat/reset", "/chat/close",
    "/export/begin",
)  # fmt: skip
LOCKED = "Open this page with the address that `edgetune view` printed.\n"
ELSEWHERE = "This page answers only itself, on 127.0.0.1.\n"


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_shown_without_the_token(site: Site, path: str) -> None:
    for cookie in ("", "edgetune-view=x", f"{site.cookie.partition('=')[0]}=x", "a=;;\x7f"):
        answer = site.ask(path, cookie=cookie)
        assert (answer.status, answer.body) == (403, LOCKED)
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ACTIONS)
def test_nothing_is_done_without_the_token(site: Site, path: str) -> None:
    answer = site.ask(path, {"run": "x", "do": "stop"}, cookie="")
    assert (answer.status, answer.body) == (403, LOCKED)


def test_a_wrong_token_opens_nothing(site: Site) -> None:
    wrong = (site.token[:-1], f"{site.token}x", "", "%00", site.cookie.partition("=")[2],
             "x" + "&a" * 2000, f"x&token={site.token}")  # fmt: skip
    for token in wrong:
        answer = site.ask(f"/?token={token}", cookie="")
        assert (answer.status, answer.body) == (403, LOCKED)
    assert site.ask(f"/new?token={site.token}", cookie="").status == 403


def test_the_token_becomes_a_cookie_that_no_script_and_no_other_site_gets(site: Site) -> None:
    answer = site.ask(f"/?token={site.token}", cookie="")
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert attributes == ["Path=/", "HttpOnly", "SameSite=Strict"]
    assert site.token not in value
    assert site.token not in answer.body
    assert "<h1>Runs</h1>" in site.ask("/").body


@pytest.mark.parametrize(
    "host", ["example.org", "example.org:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.example:{port}",
             "127.0.0.1.example:{port}", "[::1]:{port}", "0.0.0.0:{port}", ""]
)  # fmt: skip
def test_a_name_that_leads_here_shows_nothing(site: Site, host: str) -> None:
    """DNS rebinding: the browser has the cookie of no other name, but let it have it."""
    named = host.format(port=site.host.partition(":")[2])
    answer = site.ask("/", host=named)
    assert answer.status in {400, 403}
    assert "<h1>" not in answer.body
    assert site.ask(f"/?token={site.token}", cookie="", host=named).status in {400, 403}


def test_two_hosts_are_none(site: Site) -> None:
    with closing(http.client.HTTPConnection(site.host)) as connection:
        connection.putrequest("GET", "/", skip_host=True)
        for host in (site.host, "example.org"):
            connection.putheader("Host", host)
        connection.putheader("Cookie", site.cookie)
        connection.endheaders()
        assert connection.getresponse().status in {400, 403}


def test_the_page_answers_to_both_of_its_names(site: Site) -> None:
    assert site.ask("/", host=site.host.replace("127.0.0.1", "localhost")).status == 200


@pytest.mark.parametrize(
    "origin", ["http://example.org", "null", "http://127.0.0.1", "http://localhost:1", "https://{host}",
               "http://{host}.example.org", "file://", ""]
)  # fmt: skip
def test_another_site_does_nothing_though_it_had_the_cookie(site: Site, origin: str) -> None:
    """CSRF: the cookie is SameSite=Strict, and this holds without it."""
    named = origin.format(host=site.host)
    for answer in (site.ask("/run/act", {"run": "x", "do": "stop"}, origin=named),
                   site.ask("/", origin=named)):  # fmt: skip
        assert (answer.status, answer.body) == (403, ELSEWHERE)


def test_a_form_says_where_it_comes_from(site: Site) -> None:
    with closing(http.client.HTTPConnection(site.host)) as connection:
        connection.request("POST", "/run/act", "run=x&do=stop", {"cookie": site.cookie})
        assert connection.getresponse().status == 403


@pytest.mark.parametrize("kind", ["cross-site", "same-site"])
def test_pages_of_other_ports_and_sites_embed_nothing(site: Site, kind: str) -> None:
    assert site.ask("/", sec_fetch_site=kind).body == ELSEWHERE
    assert site.ask("/static/page.js", sec_fetch_site=kind).body == ELSEWHERE
    assert site.ask("/run/act", {"run": "x"}, sec_fetch_site=kind).body == ELSEWHERE
    linked = site.ask(f"/?token={site.token}", cookie="", sec_fetch_site=kind)
    assert linked.status == 200  # who has the token may have it in a link


def test_every_answer_has_the_headers(site: Site) -> None:
    answers = [site.ask(path) for path in PATHS]
    answers += [site.ask("/", cookie=""), site.ask("/", host="example.org"),
                site.ask("/run/act", {"run": "x", "do": "stop"})]  # fmt: skip
    for answer in answers:
        headers = answer.headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("path", ["/run?run=../x", "/run?run=%2Fetc", "/run?run=..", "/run?run=.",
                                  "/run?run=%00", "/static/..%2fpage.py", "/static/../access.py",
                                  "/run?run=x%0a", "/nothing", "/run"])  # fmt: skip
def test_paths_lead_nowhere_else(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.status in {400, 404}
    assert "Traceback" not in answer.body
    assert "root:" not in answer.body


def test_a_page_answers_what_is_no_form_with_a_sentence(site: Site) -> None:
    for form in ({}, {"run": "x"}, {"run": "x", "do": "burn"}, {"run": "x" * 300_000}):
        answer = site.ask("/run/act", form)
        assert answer.status in {400, 404}
        assert "That did not work" in answer.body
    assert site.ask("/run/act").status == 405


def test_its_process_listens_on_loopback_only(site: Site) -> None:
    listening = [
        connection.laddr
        for connection in psutil.Process(site.process.pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == [("127.0.0.1", urlsplit(site.base).port)]
    own = [a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in {address for address in own if not address.startswith("127.")}:
        with closing(socket.socket()) as other:
            other.settimeout(2)
            assert other.connect_ex((address, listening[0].port)) != 0
