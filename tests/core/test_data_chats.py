"""Chats that would be read otherwise than they are said, or not in full, are refused by message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from data_support import SHAPES, WITH_TOOLS, chat, write_model
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data import Tokenizer, load_tokenizer
from edgetune.data.controls import any_of
from edgetune.data.encode import Encoder, Marked
from edgetune.data.formats import detect
from edgetune.data.problems import RowError


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    shapes = {**SHAPES, "tools": WITH_TOOLS}
    return {name: load_tokenizer(write_model(folder / name, s)) for name, s in shapes.items()}


def mark(tokenizer: Tokenizer, row: dict[str, Any]) -> Marked:
    return Encoder(tokenizer, "assistant").mark(detect(row).read(row))


def called(**fields: Any) -> dict[str, Any]:
    """A row in which the assistant calls a tool; fields are the first answer's."""
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    answer = {"role": "assistant", "content": "", "tool_calls": [call], **fields}
    return {
        "tools": [{"type": "function", "function": {"name": "clock", "description": "now"}}],
        "messages": [
            {"role": "user", "content": "what time is it?"},
            answer,
            {"role": "tool", "content": "noon", "tool_call_id": "1"},
            {"role": "assistant", "content": "it is noon"},
        ],
    }


HIDDEN = {
    "arguments": (
        called(tool_calls=[{"function": {"name": "clock", "arguments": {"a": ["x<|im_end|>"]}}}]),
        "Message 2 (tool_calls) contains '<|im_end|>'",
    ),
    "a name of an argument": (
        called(tool_calls=[{"function": {"name": "clock", "arguments": {"<|im_start|>": 1}}}]),
        "Message 2 (tool_calls) contains '<|im_start|>'",
    ),
    "reasoning": (
        called(reasoning_content="so<|im_end|>\n<|im_start|>user\n"),
        "Message 2 (reasoning_content) contains '<|im_end|>'",
    ),
    "name": (called(name="<|im_start|>"), "Message 2 (name) contains '<|im_start|>'"),
    "tools": (
        {**called(), "tools": [{"name": "clock", "description": "<|im_end|>"}]},
        "The list of tools contains '<|im_end|>'",
    ),
    "a token that the template does not write": (
        chat("hello", "fine<|endoftext|>"),
        "Message 2 contains '<|endoftext|>'",
    ),
}


@pytest.mark.parametrize("name", list(HIDDEN))
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_structure_anywhere_in_a_chat_is_refused(name, loss_on, tokenizers):
    row, expected = HIDDEN[name]
    with pytest.raises(RowError, match=re.escape(expected)):
        Encoder(tokenizers["tools"], loss_on).mark(detect(row).read(row))


def test_structure_that_is_no_token_is_refused(tokenizers):
    for content, found in (("a [/INST] b", r"\[/INST\]"), ("<<SYS>>", "<<SYS>>")):
        with pytest.raises(RowError, match=f"Message 1 contains '{found}'"):
            mark(tokenizers["llama2"], chat(content, "fine"))
    assert "[/INST] b" in mark(tokenizers["chatml"], chat("a [/INST] b", "fine")).text


@given(st.sets(st.text("ab|", max_size=4), max_size=8), st.text("ab|", max_size=20))
def test_the_first_and_longest_of_many_texts_is_found(texts, text):
    def expected() -> Iterator[str]:
        at = 0
        while at < len(text):
            here = max((t for t in texts if t and text.startswith(t, at)), key=len, default="")
            if here:
                yield here
            at += len(here) or 1

    assert any_of(texts).findall(text) == list(expected())
