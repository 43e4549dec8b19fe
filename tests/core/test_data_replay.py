"""A chat that is replayed from a pattern reads, and is masked, as the template itself would."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_support import SHAPES, WITH_TOOLS, Shape, chat, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetune.data import Tokenizer, load_tokenizer
from edgetune.data.content import Chat
from edgetune.data.problems import RowError
from edgetune.data.replay import Rendered, ReplayingMasker

# Looks into messages in the ways that published templates do.
ASKING = (
    "{%- set ns = namespace(last=0) %}"
    "{%- for m in messages %}{%- if m.role == 'user' and not m.content.startswith('<tool>') %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set content = m.content if m.content is string else '' %}"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{%- if loop.index0 > ns.last %}{{- '<think>\n' + thought + '\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}{{- content | trim + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
DATED = "{{- strftime_now('%Y') }}" + (SHAPES["chatml"].template or "")
# Cannot be followed, so that every chat goes the whole way.
LONG_WAY = {
    "joined": "{% for m in messages %}{{ m.role ~ m.content ~ '<|im_end|>' }}{% endfor %}",
    "macro": "{% macro say(m) %}{{ m.role + m.content }}<|im_end|>{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}",
    "kept": "{% for m in messages %}{% set text %}{{ m.content }}{% endset %}"
    "{{ text | trim }}<|im_end|>{% endfor %}",
    "formatted": "{% for m in messages %}{{ '%s<|im_end|>' % m.content }}{% endfor %}",
    "as JSON": "{% for m in messages %}{{ m.content | tojson }}<|im_end|>{% endfor %}",
    "replaced": "{% for m in messages %}{{ m.content | replace('a', 'b') }}<|im_end|>{% endfor %}",
    "measured": "{% for m in messages %}{{ m.content | length }}{{ m.content }}<|im_end|>{% endfor %}",
    "whole": "{{ messages }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
    "letters": "{% for m in messages %}{{ m.content[0] }}{{ m.content }}<|im_end|>{% endfor %}",
}
SHAPES_HERE = {
    **SHAPES,
    "asking": Shape(ASKING, SHAPES["chatml"].special, "<|im_end|>"),
    "dated": Shape(DATED, SHAPES["chatml"].special, "<|im_end|>"),
    **{
        name: Shape(text, SHAPES["chatml"].special, "<|im_end|>") for name, text in LONG_WAY.items()
    },
}
PIECES = ["a", "b\n", " ", "é🎉", "</think>", "<think>x", "<tool>", "<", "|im_end|>", "<|im_end", "\n",
          "\ue000", "\ue0000\ue001", "{{ 7 }}", '"', "edgetuneXanswer"]  # fmt: skip
said = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join).filter(str.strip)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    pairs = enumerate(SHAPES_HERE.items())
    return {name: load_tokenizer(write_model(folder / str(i), s)) for i, (name, s) in pairs}


def masker_of(tokenizer: Tokenizer) -> ReplayingMasker:
    return ReplayingMasker(tokenizer.template, tokenizer.end_texts, tokenizer.controls)


def masked(masker: ReplayingMasker, messages: object, loss_on: str) -> Rendered | str:
    try:
        return masker.mask(Chat(messages), loss_on)  # type: ignore[arg-type]
    except RowError as error:
        return str(error)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(data=st.data())
@pytest.mark.parametrize("name", list(SHAPES_HERE))
def test_replaying_equals_the_whole_way(name, data, tokenizers):
    masker = masker_of(tokenizers[name])
    loss_on = data.draw(st.sampled_from(["assistant", "completion", "all"]))
    for _ in range(5):
        contents = [data.draw(said) for _ in range(data.draw(st.sampled_from([2, 4])))]
        system = data.draw(st.none() | said) if SHAPES_HERE[name].system else None
        messages = chat(*contents, system=system)["messages"]
        new = masker_of(tokenizers[name])  # has no pattern yet, so that it goes the whole way
        assert masked(masker, messages, loss_on) == masked(new, messages, loss_on)


def ways_gone(name: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many of ten alike chats were rendered by the template itself."""
    gone: list[int] = []
    whole_way = ReplayingMasker._whole_way
    monkeypatch.setattr(
        ReplayingMasker, "_whole_way", lambda *args: gone.append(1) or whole_way(*args)
    )
    masker = masker_of(tokenizer)
    for number in range(10):
        masked(masker, chat(f"hello {number}", f"fine {number}")["messages"], "assistant")
    return len(gone)


@pytest.mark.parametrize("name", [*SHAPES, "asking", "dated"])
def test_the_template_is_run_once_a_structure(name, tokenizers, monkeypatch):
    assert ways_gone(name, tokenizers[name], monkeypatch) == 1


@pytest.mark.parametrize("name", list(LONG_WAY))
def test_what_cannot_be_followed_goes_the_whole_way(name, tokenizers, monkeypatch):
    assert ways_gone(name, tokenizers[name], monkeypatch) == 10


def test_a_chat_with_tools_goes_the_whole_way(tmp_path: Path):
    tokenizer = load_tokenizer(write_model(tmp_path / "m", WITH_TOOLS))
    masker = masker_of(tokenizer)
    messages = chat("hello", "fine")["messages"]
    assert masker.mask(Chat(messages, [{"name": "clock"}]), "assistant")[0].count("fine") == 1
    assert not masker._patterns
