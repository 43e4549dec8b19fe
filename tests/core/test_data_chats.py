"""Chats that would be read otherwise than they are said, or not in full, are refused by message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from data_support import SHAPES, WITH_TOOLS, Shape, chat, write_model, write_rows
from hypothesis import given
from hypothesis import strategies as st

from edgetune.data import Tokenizer, load_tokenizer, read_dataset
from edgetune.data.control_tokens import any_of
from edgetune.data.encode import Encoder, Marked
from edgetune.data.formats import detect
from edgetune.data.problems import RowError

TEMPLATES = {
    # What is in front changes with every message, and calls come after the end of the answer.
    "late": "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>{% for call in m.tool_calls or [] %}{{ call.function.name }}"
    "{{ call.function.arguments }}{% endfor %}{% endfor %}",
    "segments": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}{{ m.reasoning_content }}<|im_end|>{% endif %}"
    "{% for call in m.tool_calls or [] %}<|im_start|>to={{ call.function.name }}"
    "{{ call.function.arguments }}<|im_end|>{% endfor %}"
    "{% if m.content %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "forgetful": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    shapes = {**SHAPES, "tools": WITH_TOOLS}
    for name, template in TEMPLATES.items():
        shapes[name] = Shape(template, WITH_TOOLS.special, "<|im_end|>")
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


UNWRITTEN = {
    "the calls": (
        "chatml",
        {**called(), "tools": None},
        "the tool calls of message 2. Use a model",
    ),
    "the calls beside a text": (
        "chatml",
        {**called(content="let me see"), "tools": None},
        "the tool calls of message 2.",
    ),
    "the tools": ("chatml", called(tool_calls=None, content="noon?"), "does not write the tools."),
}


@pytest.mark.parametrize("name", list(UNWRITTEN))
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_tools_and_calls_that_the_template_drops_are_refused(name, loss_on, tokenizers):
    template, row, expected = UNWRITTEN[name]
    with pytest.raises(RowError, match=re.escape(expected)):
        Encoder(tokenizers[template], loss_on).mark(detect(row).read(row))


def test_calls_that_cannot_be_placed_are_refused(tokenizers):
    row = {**called(content="let me see"), "tools": None}
    with pytest.raises(
        RowError, match=r"message 2 \(assistant, with its tool calls\) as it stands"
    ):
        mark(tokenizers["late"], row)


def learned(marked: Marked) -> list[str]:
    return [marked.text[start:stop] for start, stop in marked.spans]


def test_calls_are_learned_with_what_is_said_before_them(tokenizers):
    marked = mark(tokenizers["tools"], called(content="let me see", reasoning_content="a clock"))
    call = '{"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}'
    expected = ["<think>a clock</think>let me see" + call + "<|im_end|>", "it is noon<|im_end|>"]
    assert learned(marked) == expected
    assert not marked.altered


def test_a_turn_of_several_segments_is_learned_to_the_end_of_its_call(tokenizers):
    """As gpt-oss writes them: what is thought ends with a token that also ends answers."""
    calls = [{"name": "clock", "arguments": {"zone": zone}} for zone in ("UTC", "CET")]
    calls = [{"function": call} for call in calls]
    row = {**called(reasoning_content="a clock", tool_calls=calls), "tools": None}
    row["messages"][-1]["reasoning_content"] = "so it is noon"
    expected = (
        'a clock<|im_end|><|im_start|>to=clock{"zone": "UTC"}<|im_end|>'
        '<|im_start|>to=clock{"zone": "CET"}<|im_end|>'
    )
    answer = "so it is noon<|im_end|>it is noon<|im_end|>"
    assert learned(mark(tokenizers["segments"], row)) == [expected, answer]


def test_fields_that_the_template_passes_over_are_counted(tokenizers, tmp_path):
    row = chat("hello", "fine")
    for message in row["messages"]:
        message |= {"name": "Ann", "stars": 3}
    thought = chat("hello", "fine")
    thought["messages"][1]["reasoning_content"] = "well"
    empty = chat("hello", "fine")
    empty["messages"][1] |= {"reasoning_content": "", "tool_calls": [], "name": None}
    path = write_rows(tmp_path / "rows.jsonl", [row, row, thought, empty])
    notes = read_dataset(path, tokenizers["chatml"]).receipt.notes
    expected = "name (rows: 2), stars (rows: 2), reasoning_content (rows: 1)"
    assert notes == (f"fields of messages that the template does not write: {expected}",)
    notes = read_dataset(path, tokenizers["tools"]).receipt.notes
    assert notes == ("fields of messages that the template does not write: stars (rows: 2)",)
    view = read_dataset(path, tokenizers["tools"], validation=0).train[0]
    text = tokenizers["tools"].decode(view[0].tolist())
    assert text.endswith("<|im_start|>assistant\nfine<|im_end|>\n")  # as it is sampled


def test_thoughts_may_have_any_of_their_names(tokenizers):
    row = chat("hello", "fine")
    row["messages"][1] |= {"reasoning": "fine", "reasoning_content": "fine"}
    marked = mark(tokenizers["segments"], row)
    assert learned(marked) == ["fine<|im_end|>fine<|im_end|>"]
    assert not marked.unwritten
    row["messages"][1] |= {"reasoning": "well"}
    assert mark(tokenizers["segments"], row).altered


def test_alike_chats_are_told_alike_and_others_are_not(tokenizers):
    encoder = Encoder(tokenizers["tools"], "assistant")
    row = chat("hello", "fine")
    row["messages"][1]["stars"] = 3
    for _ in range(2):
        assert encoder.mark(detect(row).read(row)).unwritten == {"stars"}
    assert not encoder.mark(detect(row).read(chat("hello", "fine"))).unwritten
    encoder = Encoder(tokenizers["chatml"], "assistant")
    for _ in range(2):
        with pytest.raises(RowError, match="the tool calls of message 2"):
            encoder.mark(detect(row).read({**called(), "tools": None}))


def test_thoughts_of_which_some_are_left_out_are_told(tokenizers):
    row = chat("hello", "fine", "so", "good")
    row["messages"][1]["reasoning_content"], row["messages"][3]["reasoning_content"] = "one", "two"
    marked = mark(tokenizers["forgetful"], row)
    assert "one" not in marked.text
    assert "two" in marked.text
    assert marked.altered
    assert not marked.unwritten


CONTRADICTING = {
    "two contents": ({"role": "user", "content": "a", "value": "b"}, "both content and value"),
    "two roles": ({"role": "user", "from": "gpt", "content": "a"}, "both role and from"),
    "calls no list": ({"role": "assistant", "tool_calls": "clock"}, "has tool_calls that are no"),
    "a call without name": (
        {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
        "has tool_calls that are no list of objects with the name",
    ),
    "a call of a number": (
        {"role": "assistant", "tool_calls": [{"name": 7}]},
        "has tool_calls that",
    ),
}


@pytest.mark.parametrize("name", list(CONTRADICTING))
def test_a_contradicting_message_is_refused(name, tokenizers):
    message, expected = CONTRADICTING[name]
    with pytest.raises(RowError, match=f"Message 1 .*{expected}"):
        mark(tokenizers["tools"], {"messages": [message, *chat("a", "b")["messages"]]})


def test_a_message_may_say_the_same_twice(tokenizers):
    twice = {"role": "user", "from": "human", "content": "hello", "value": "hello"}
    row = {"messages": [twice, {"role": "assistant", "content": "fine"}]}
    assert mark(tokenizers["chatml"], row) == mark(tokenizers["chatml"], chat("hello", "fine"))


PARTS = {
    "an image": {"type": "image", "image": "x.png"},
    "an image with a text": {"type": "image", "text": "a cat", "image": "x.png"},
    "an address": {"type": "image_url", "image_url": {"url": "x.png"}},
    "sound": {"type": "input_audio", "input_audio": {}},
    "an image without type": {"image": "x.png", "text": "a cat"},
    "a type that is no text": {"type": ["text"], "text": "hello"},
    "a text without type": "hello",
}


@pytest.mark.parametrize("name", list(PARTS))
def test_content_beside_text_is_refused(name, tokenizers):
    parts = [{"type": "text", "text": "hello"}, PARTS[name]]
    with pytest.raises(RowError, match="Message 1 has content that is not text"):
        mark(tokenizers["chatml"], {"messages": [{"role": "user", "content": parts}]})


def test_parts_of_text_may_have_fields_that_are_null(tokenizers):
    parts = [{"type": None, "text": "hel", "image": None}, {"text": "lo"}]
    row = chat("hello", "fine")
    same = {"messages": [{"role": "user", "content": parts}, row["messages"][1]]}
    assert mark(tokenizers["chatml"], same) == mark(tokenizers["chatml"], row)


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_a_chat_needs_a_prompt(prompt, tokenizers):
    row = {"prompt": prompt, "completion": "fine"}
    with pytest.raises(RowError, match="The prompt is empty, and in a chat"):
        mark(tokenizers["chatml"], row)
    assert mark(tokenizers["none"], row).text == prompt + "fine"


@pytest.mark.parametrize("empty", ["prompt", "completion"])
def test_lists_of_messages_are_not_empty(empty, tokenizers):
    user, assistant = chat("hello", "fine")["messages"]
    row = {"prompt": [user], "completion": [assistant], empty: []}
    with pytest.raises(RowError, match=f"The {empty} has no messages"):
        mark(tokenizers["chatml"], row)


def test_a_chat_of_very_many_messages_is_refused(tokenizers):
    most = chat(*["a"] * 1_000)
    assert mark(tokenizers["chatml"], most).text.count("<|im_start|>") == 1_000
    with pytest.raises(RowError, match="may have 1,000 messages; found 1,001"):
        mark(tokenizers["chatml"], chat(*["a"] * 1_001))


def test_tools_beside_two_texts_are_refused(tokenizers):
    row = {"prompt": "hello", "completion": "fine", "tools": called()["tools"]}
    with pytest.raises(RowError, match="lists of messages"):
        mark(tokenizers["tools"], row)


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
