"""A template that never ends, or wants all memory, is interrupted and named, wherever it runs."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from rows import Cli, write_rows

from edgetune.data import template_limits
from edgetune.data.problems import RowError
from edgetune.data.template import ChatTemplate
from edgetune.errors import ModelError
from edgetune.model import resolve

CHAT = [{"role": "user", "content": "a" * 200}, {"role": "assistant", "content": "b"}]
ENDLESS = {
    "ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "letters": "{% set s = messages[0].content %}"
    + "{% for a in s %}" * 6 + "{% endfor %}" * 6,
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "recursive": "{% for a in messages recursive %}{{ loop(messages) }}{{ loop(messages) }}{% endfor %}",
    "marked": "{% generation %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}{% endgeneration %}",
    "doubling": "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(90) %}"
    "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "list": "{% set n = namespace(s=[]) %}{% for i in range(99999) %}"
    "{% set n.s = n.s + [range(99999)|list] %}{% endfor %}",
    "text": "{{ lipsum(n=9999999) }}",
}  # fmt: skip
HUGE = {
    "repeated": "{% set n = 99999999999 %}{{ 'a' * n }}",
    "centred": "{{ 'a'.center(99999999999) }}",
    "filtered": "{{ 'a'|center(99999999999) }}",
    "formatted": "{{ '%99999999999d' % 1 }}",
    "format": "{{ '{:>99999999999}'.format('a') }}",
}
REFUSED = {
    "power": "{{ 9 ** 9 ** 9 }}",
    "square": "{% set n = namespace(x=99) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "constant": "{{ 'a' * 99999999999 }}",
    "numbers": "{% for i in [0] * 99999999999 %}{% endfor %}",
    "long": "{# " + "a" * (1 << 20) + " #}",
}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "a test's", {})


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that are reached soon."""
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)
    monkeypatch.setattr(template_limits, "MEMORY", 64 << 20)


@pytest.mark.usefixtures("_soon")
# where the interruption meets another library's callback it is told again
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_interrupted(name: str) -> None:
    template("{{ messages }}").render(CHAT)
    before, memory = time.process_time(), psutil.Process().memory_info().rss
    with pytest.raises((ModelError, RowError)) as caught:
        template(ENDLESS[name]).render(CHAT)
    assert time.process_time() - before < 4
    assert psutil.Process().memory_info().rss - memory < 300e6
    if name not in {"recursive", "doubling", "list"}:  # Python's limit, or memory, may come first
        assert "it may never end. Mend chat_template.jinja" in str(caught.value)
    assert template("{{ messages|length }}").render(CHAT) == "2"


@pytest.mark.skipif(sys.platform != "linux", reason="one huge operation is Linux's to refuse")
@pytest.mark.parametrize("name", HUGE)
def test_what_wants_all_memory_gets_none(name: str) -> None:
    before = time.process_time()
    with pytest.raises(RowError, match="it needs more memory than a chat can be worth"):
        template(HUGE[name]).render(CHAT)
    assert time.process_time() - before < 2


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_chat_needs_is_not_run(name: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        template(REFUSED[name]).render(CHAT)


@pytest.mark.parametrize(
    ("source", "text"),
    [("{{ ' ' * 4 }}.", "    ."), ("{{ 2 * messages|length }}", "4"), ("{{ 5 % 3 }}", "2"),
     ("{{ '%s-%d' % ('a', 3) }}", "a-3"), ("{{ 'a'.ljust(3) }}.", "a  .")],
)  # fmt: skip
def test_what_chats_need_works(source: str, text: str) -> None:
    assert template(source).render(CHAT) == text


@pytest.mark.usefixtures("_soon")
def test_only_the_thread_that_renders_is_interrupted() -> None:
    found: list[BaseException] = []

    def render() -> None:
        try:
            template(ENDLESS["ranges"]).render(CHAT)
        except ModelError as error:
            found.append(error)

    threads = [threading.Thread(target=render) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert template("{{ messages|length }}").render(CHAT) == "2"
    assert [str(error)[:25] for error in found] == ["The model's chat template"] * 2
    assert str(pickle.loads(pickle.dumps(found[0]))) == str(found[0])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_no_interruption_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "SECONDS", 0.002)
    monkeypatch.setattr(template_limits, "_LOOK_SECONDS", 0.0003)
    ends = {"done": 0, "interrupted": 0}
    for number in range(400):
        own = template("{% for i in range(" + str(number * 240) + ") %}{% endfor %}.")
        try:
            ends["done"] += own.render(CHAT) == "."
        except ModelError:
            ends["interrupted"] += 1
        sum(range(2000))
    assert sum(ends.values()) == 400
    assert all(ends.values())


@pytest.mark.usefixtures("_soon")
def test_a_model_whose_template_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = resolve("tiny").folder
    assert folder is not None
    shutil.copytree(folder, "model")
    Path("model/chat_template.jinja").write_text(ENDLESS["ranges"])
    called = Cli(capsys)("data", "check", write_rows(Path("rows.jsonl")), "--model", "./model")
    assert (called.code, called.out) == (5, "")
    assert "chat template ran for 0.3 seconds on one chat: it may never end" in called.err
    assert called.err.count("\n") == 1


@pytest.mark.usefixtures("_soon")
def test_a_row_for_which_the_template_never_ends_ends_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = resolve("tiny").folder
    assert folder is not None
    shutil.copytree(folder, "model")
    own = Path("model/chat_template.jinja")
    own.write_text(
        "{% if messages|length > 3 %}" + ENDLESS["ranges"] + "{% endif %}" + own.read_text()
    )
    row = {"messages": [{"role": r, "content": "a"} for r in ("user", "assistant") * 2]}
    Path("rows.jsonl").write_text(f"{json.dumps(row)}\n" * 50)
    before = time.process_time()
    called = Cli(capsys)("data", "check", "rows.jsonl", "--model", "./model")
    assert (called.code, called.out) == (5, "")
    assert time.process_time() - before < 5
