"""Rows as other tools write them: read as they are meant, or refused by name, never otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data_support import SHAPES, WITH_TOOLS, Shape, chat, write_model, write_rows

from edgetune.data import Tokenizer, load_tokenizer, read_dataset, view_row
from edgetune.errors import DataError

CALL = {"type": "function", "function": {"name": "w", "arguments": {"c": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "w", "parameters": {}}}
ASKS = {"role": "user", "content": "Weather?"}
ANSWER = {"role": "assistant", "content": "Cold."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("tools"), WITH_TOOLS))


def shown(tokenizer: Tokenizer, folder: Path, *rows: Any, **options: Any) -> str:
    """All rows as text, what is learned in [brackets]."""
    path = write_rows(folder / "rows.jsonl", list(rows))
    examples = read_dataset(path, tokenizer, validation=0, **options).train
    return "".join(
        f"[{text}]" if on else text for row in examples for text, on in view_row(row, tokenizer)
    )


def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": text} for role, text in pairs]


def calling(*calls: Any, **fields: Any) -> dict[str, Any]:
    """A row in which a tool is called and answers."""
    says = {"role": "assistant", "content": "", "tool_calls": list(calls), **fields}
    messages = [ASKS, says, {"role": "tool", "content": "-3"}, ANSWER]
    return {"messages": messages, "tools": [TOOL]}


HELLO, MORE = chat("Hi", "Hello.")["messages"], chat("Again", "Right.")["messages"]
PIRATE = "Talk like a pirate."
WITH_SYSTEM = chat("Hi", "Hello.", system=PIRATE)
CALLED = calling(CALL)
BARE = {"name": "w", "arguments": {"c": "Oslo"}}
AS_TEXT = json.dumps({"c": "Oslo"})
THROUGH_ROLES = turns(
    ("human", "Weather?"), ("function_call", json.dumps(BARE)), ("observation", "-3"),
    ("gpt", "Cold."),
)  # fmt: skip
SAME = {
    "system beside messages": ({"messages": HELLO, "system": PIRATE}, WITH_SYSTEM),
    "system beside and among messages": ({**WITH_SYSTEM, "system": PIRATE}, WITH_SYSTEM),
    "system beside conversations": (
        {"conversations": turns(("human", "Hi"), ("gpt", "Hello.")), "system": PIRATE}, WITH_SYSTEM,
    ),
    "system beside texts": ({"system": PIRATE, "prompt": "Hi", "completion": "Hello."}, WITH_SYSTEM),
    "system beside lists": (
        {"system_prompt": PIRATE, "prompt": HELLO[:1], "completion": HELLO[1:]}, WITH_SYSTEM,
    ),
    "an empty system": ({"messages": HELLO, "system": ""}, chat("Hi", "Hello.")),
    "alpaca's history": (
        {"instruction": "Again", "input": "", "output": "Right.", "history": [["Hi", "Hello."]]},
        chat("Hi", "Hello.", "Again", "Right."),
    ),
    "alpaca's history and system": (
        {"instruction": "Again", "output": "Right.", "history": [["Hi", "Hello."]], "system": "S"},
        chat("Hi", "Hello.", "Again", "Right.", system="S"),
    ),
    "alpaca without an instruction": (
        {"instruction": "", "input": "Hi", "output": "Hello."}, chat("Hi", "Hello."),
    ),
    "other roles": ({"conversations": turns(("user", "Hi"), ("bot", "Hello."))}, chat("Hi", "Hello.")),
    "roles in capitals": (
        {"conversations": turns(("Human", "Hi"), ("Assistant", "Hello."))}, chat("Hi", "Hello."),
    ),
    "messages in a cell": ({"messages": json.dumps(HELLO)}, chat("Hi", "Hello.")),
    "a text to messages": ({"prompt": HELLO[:1], "completion": "Hello."}, chat("Hi", "Hello.")),
    "messages to a text": ({"prompt": "Hi", "completion": HELLO[1:]}, chat("Hi", "Hello.")),
    "one message each": ({"prompt": HELLO[0], "completion": HELLO[1]}, chat("Hi", "Hello.")),
    "parts of the Responses API": (
        {"messages": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Hello."}]},
        ]},
        chat("Hi", "Hello."),
    ),
    "parts with a value": (
        {"messages": [{"role": "user", "content": [{"type": "text", "value": "Hi"}]}, HELLO[1]]},
        chat("Hi", "Hello."),
    ),
    "tools as a text": ({**CALLED, "tools": json.dumps([TOOL])}, CALLED),
    "tools as texts": ({**CALLED, "tools": [json.dumps(TOOL)]}, CALLED),
    "a tool without its wrapping": ({**CALLED, "tools": [TOOL["function"]]}, CALLED),
    "no tools as a text": ({"messages": HELLO, "tools": ""}, chat("Hi", "Hello.")),
    "no tools as the JSON of a list": ({"messages": HELLO, "tools": "[]"}, chat("Hi", "Hello.")),
    "functions": ({"messages": CALLED["messages"], "functions": [TOOL["function"]]}, CALLED),
    "a call without its wrapping": (calling(BARE), CALLED),
    "arguments as a text": (calling({**CALL, "function": {"name": "w", "arguments": AS_TEXT}}), CALLED),
    "calls as a text": (calling(tool_calls=json.dumps([BARE])), CALLED),
    "arguments of null": (calling({"name": "w", "arguments": None}), calling({"name": "w", "arguments": {}})),
    "no arguments": (calling({"name": "w"}), calling({"name": "w", "arguments": "{}"})),
    "a function_call": (
        calling(tool_calls=None, function_call={"name": "w", "arguments": AS_TEXT}), CALLED,
    ),
    "a function_call beside a text": (
        calling(tool_calls=None, content="Let me look.", function_call=BARE),
        calling(CALL, content="Let me look."),
    ),
    "calls in a turn of their own": ({"conversations": THROUGH_ROLES, "tools": json.dumps([TOOL])}, CALLED),
    "several calls in turns of their own": (
        {"messages": [ASKS, *[{"role": "tool_call", "content": json.dumps(BARE)}] * 2,
                      {"role": "tool_response", "content": "-3"}, ANSWER], "tools": [TOOL]},
        calling(CALL, CALL),
    ),
    "what a tool says as an object": (
        {"messages": [*CALLED["messages"][:2], {"role": "tool", "content": {"t": [7]}}, ANSWER]},
        {"messages": [*CALLED["messages"][:2], {"role": "tool", "content": '{"t": [7]}'}, ANSWER]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SAME))
def test_a_dialect_says_the_same(name, tokenizer, tmp_path):
    row, meant = SAME[name]
    assert shown(tokenizer, tmp_path, row) == shown(tokenizer, tmp_path, meant)


def test_a_null_of_json_stays_in_a_call(tokenizer, tmp_path):
    row = calling({"name": "w", "arguments": '{"c": null, "d": 1}'})
    assert '"arguments": {"c": null, "d": 1}' in shown(tokenizer, tmp_path, row)


MARKS = {
    "weight": (0, 1), "loss_weight": (0.0, 1.0), "train": (False, True), "training": (False, True),
    "loss": (False, True), "masked": (True, False),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MARKS))
def test_a_turn_may_be_marked_as_only_read(name, tokenizer, tmp_path):
    read, learned = MARKS[name]
    first, second = {**HELLO[1], name: read}, {**MORE[1], name: learned}
    text = shown(tokenizer, tmp_path, {"messages": [HELLO[0], first, MORE[0], second]})
    assert "Hello.<|im_end|>" in text
    assert text.count("[") == 1
    assert "[Right.<|im_end|>]" in text
    with pytest.raises(DataError, match="Message 2 has weight 0, and --loss-on all"):
        shown(tokenizer, tmp_path, {"messages": [HELLO[0], first]}, loss_on="all")


@pytest.mark.parametrize("loss_on", ["assistant", "completion"])
def test_what_a_prompt_holds_is_not_learned(loss_on, tokenizer, tmp_path):
    row = {"prompt": [*HELLO, MORE[0]], "completion": [MORE[1]]}
    text = shown(tokenizer, tmp_path, row, loss_on=loss_on)
    assert text.count("[") == 1
    assert "[Right.<|im_end|>]" in text
    assert shown(tokenizer, tmp_path, row, loss_on="all").count("[") == 1


def one(message: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [HELLO[0], {**HELLO[1], **message}]}


REFUSED = {
    "a mask": (one({"mask": True}), "Message 2 has mask, which cannot be followed"),
    "parts of a turn": (one({"train_detail": [{"begin_offset": 0}]}), "has train_detail, which cannot"),
    "a weight between": (one({"loss_weight": 0.5}), "has a loss_weight that is neither 0 nor 1"),
    "a flag that is none": (one({"train": "no"}), "has a train that is neither true nor false"),
    "two that contradict": (one({"train": False, "weight": 1}), "both learned and not, by "),
    "a question to learn": (
        {"messages": [{**HELLO[0], "train": True}, HELLO[1]]},
        "Message 1 (user) is marked to be learned",
    ),
    "nothing left": (one({"loss": False}), "marked to be only read, so there is nothing to learn"),
    "arguments of a text": (
        calling({"name": "w", "arguments": "Oslo"}),
        "Message 2 calls w with arguments that are no object, nor the JSON of one: 'Oslo'",
    ),
    "arguments of a list": (calling({"name": "w", "arguments": "[1]"}), "that are no object"),
    "a key of arguments twice": (calling({"name": "w", "arguments": '{"a": 1, "a": 2}'}), "'a' appears twice"),
    "a function_call without name": (
        calling(tool_calls=None, function_call={"arguments": "{}"}),
        "Message 2 has function_call that are no list",
    ),
    "a call of words": (
        {"conversations": turns(("human", "Hi"), ("function_call", "look it up"))},
        "Message 2 has a function_call that are no list",
    ),
    "tools of words": ({"messages": HELLO, "tools": "a hammer"}, "The tools must be a list of objects"),
    "two systems": ({**WITH_SYSTEM, "system": "Be brief."}, "a system prompt beside its messages"),
    "two names of a system": (
        {"prompt": "a", "completion": "b", "system": "c", "system_prompt": "d"}, "system_prompt differ",
    ),
    "a history of texts": (
        {"instruction": "a", "output": "b", "history": ["c"]}, "must be a list of pairs of texts",
    ),
    "no question": ({"instruction": "", "input": " ", "output": "a"}, "instruction is empty"),
    "images": ({"messages": HELLO, "images": ["bus.jpg"]}, "The row has images, and only text"),
    "an image": ({"conversations": HELLO, "image": "bus.jpg"}, "The row has image, and only text"),
    "sound": ({"messages": HELLO, "audios": ["a.wav"]}, "The row has audios, and only text"),
    "a film": ({"prompt": "a", "completion": "b", "videos": ["a.mp4"]}, "The row has videos"),
    "an image of a message": (
        {"messages": [{**HELLO[0], "images": ["a.jpg"]}, HELLO[1]]}, "Message 1 has images",
    ),
    "arguments of the template that are ours": (
        {"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "may not replace messages",
    ),
    "arguments of the template that are none": (
        {"messages": HELLO, "chat_template_kwargs": [1]}, "chat_template_kwargs must be an object",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_followed_is_refused_by_row(name, tokenizer, tmp_path):
    row, expected = REFUSED[name]
    with pytest.raises(DataError, match=re.escape(expected)) as caught:
        shown(tokenizer, tmp_path, chat("a", "b") if "messages" in row else row, row)
    assert "rows.jsonl:2: " in str(caught.value) or "messages" not in row


@pytest.mark.parametrize("name", ["images", "audio", "videos"])
def test_a_row_may_have_a_column_of_no_images(name, tokenizer, tmp_path):
    for empty in (None, [], ""):
        assert "[Hello." in shown(tokenizer, tmp_path, {"messages": HELLO, name: empty})


USER, GOOD, BAD = (
    HELLO[0],
    {"role": "assistant", "content": "Good"},
    {"role": "assistant", "content": "Bad"},
)
PREFERENCES = {
    "DPO": ({"prompt": "Hi", "chosen": "Good", "rejected": "Bad"}, "completion=chosen"),
    "DPO without a prompt": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "messages=chosen"),
    "DPO of lists": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "completion=chosen"),
    "DPO after an answer": (
        {"conversations": turns(("human", "Hi"), ("gpt", "Hello."), ("human", "A joke")),
         "chosen": {"from": "gpt", "value": "Good"}, "rejected": {"from": "gpt", "value": "Bad"}},
        "prompt=conversations,completion=chosen",
    ),
    "DPO of instructions": (
        {"instruction": "Hi", "input": "", "chosen": "Good", "rejected": "Bad"},
        "prompt=instruction,completion=chosen",
    ),
    "OpenAI": (
        {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, None,
    ),
    "ms-swift": ({"messages": [USER, GOOD], "rejected_response": "Bad"}, None),
    "KTO": ({"prompt": "Hi", "completion": "Bad", "label": False}, None),
    "KTO of a table": ({"prompt": "Hi", "completion": "Good", "label": "True"}, None),
    "KTO of messages": ({"messages": [USER, BAD], "label": 0}, None),
    "KTO of LLaMA-Factory": ({"messages": [USER, BAD], "kto_tag": False}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PREFERENCES))
def test_preference_data_is_refused_by_name_once(name, tokenizer, tmp_path):
    row, fields = PREFERENCES[name]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: This is preference data") as caught:
        shown(tokenizer, tmp_path, row, row, row)
    message = str(caught.value)
    assert message.count("preference data") == 1
    assert "2 more rows are refused for the same reason" in message
    if fields:
        assert message.splitlines()[1].endswith(f"--fields {fields}")
        given = dict(pair.split("=") for pair in fields.split(","))
        text = shown(tokenizer, tmp_path, row, fields=given)
        assert "[Good<|im_end|>]" in text
        assert "Bad" not in text


def test_a_label_of_something_else_is_not_preference(tokenizer, tmp_path):
    assert "[Hello." in shown(tokenizer, tmp_path, {"messages": HELLO, "label": "greeting"})


PROPOSED = {
    "dolly": (
        {"instruction": "Who?", "context": "Ann is a cook.", "response": "Ann.", "category": "qa"},
        "input=context,output=response",
    ),
    "question and answer": ({"question": "Who?", "answer": "Ann."}, "prompt=question,completion=answer"),
    "capitals": ({"Question": "Who?", "Answer": "Ann."}, "prompt=Question,completion=Answer"),
    "input and output": ({"input": "Write.", "output": "Done.", "source": "x"}, "prompt=input,completion=output"),
    "instruction and response": ({"instruction": "a", "response": "b"}, "prompt=instruction,completion=response"),
    "with a system prompt": (
        {"system_prompt": "s", "question": "a", "response": "b"},
        "system=system_prompt,prompt=question,completion=response",
    ),
    "a dialogue": ({"id": 1, "dialogue": HELLO}, "messages=dialogue"),
    "a document": ({"title": "t", "body": "b"}, "text=body"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PROPOSED))
def test_an_unknown_format_is_told_once_with_the_fields_to_type(name, tokenizer, tmp_path):
    row, fields = PROPOSED[name]
    with pytest.raises(DataError, match=r"rows\.jsonl:1: Found the fields ") as caught:
        shown(tokenizer, tmp_path, row, row, row)
    message = str(caught.value)
    assert message.splitlines()[1].endswith(f"--fields {fields}")
    assert message.count("Found the fields") == 1
    given = dict(pair.split("=") for pair in fields.split(","))
    assert "[" in shown(tokenizer, tmp_path, row, fields=given)


def test_columns_of_which_none_says_anything_get_no_proposal(tokenizer, tmp_path):
    with pytest.raises(DataError, match=r"; text\.$"):
        shown(tokenizer, tmp_path, {"a": 1, "question": 7})


PARTED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text@ }}{{ '\n\n' if not loop.last }}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def parted(*texts: str) -> dict[str, Any]:
    content = [{"type": "text", "text": text} for text in texts]
    return {"messages": [{"role": "user", "content": content}, HELLO[1]]}


@pytest.mark.parametrize("how", ["", " | trim"])
def test_parts_are_joined_as_the_template_does_it(how, tmp_path):
    shape = Shape(PARTED.replace("@", how), SHAPES["chatml"].special, "<|im_end|>")
    tokenizer = load_tokenizer(write_model(tmp_path / "m", shape))
    assert "user\nHi\n\nthere<|im_end|>" in shown(tokenizer, tmp_path, parted("Hi", "there"))
    if how:
        with pytest.raises(DataError, match=r"rows\.jsonl:1: .* in several parts"):
            shown(tokenizer, tmp_path, parted("Hi ", "there"))


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}{{ 'brief' if style == 'brief' }}"
)


def test_arguments_of_the_template_are_honoured(tmp_path):
    shape = Shape(THINKS, SHAPES["chatml"].special, "<|im_end|>")
    tokenizer = load_tokenizer(write_model(tmp_path / "m", shape))
    row = {"messages": HELLO, "chat_template_kwargs": {"style": "brief"}}
    assert shown(tokenizer, tmp_path, row).endswith("brief")
    assert "brief" not in shown(tokenizer, tmp_path, row, {"messages": HELLO}).split("Hello.")[2]
    unread = {**row, "chat_template_kwargs": {"tone": "kind"}}
    notes = read_dataset(write_rows(tmp_path / "u.jsonl", [unread]), tokenizer).receipt.notes
    assert "chat_template_kwargs.tone (rows: 1)" in notes[0]
