"""Which of a model's chat templates is used, and what becomes of one that fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_support import CHATML, SHAPES, TOOLS, Shape, chat, write_model, write_rows

from edgetune.data import Tokenizer, load_tokenizer, read_dataset, view_row
from edgetune.errors import DataError, ModelError

IM = SHAPES["chatml"].special
CLOCK = [{"type": "function", "function": {"name": "clock"}}]
WRITTEN = '{"type": "function", "function": {"name": "clock"}}\n'


def write_named(folder: Path, templates: object) -> Path:
    """Write a model whose tokenizer's settings hold these templates."""
    write_model(folder, Shape(None, IM, "<|im_end|>"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": templates}))
    return folder


def text_of(tokenizer: Tokenizer, path: Path, row: dict[str, Any]) -> str:
    tokens, _ = read_dataset(write_rows(path, [row]), tokenizer, validation=0).train[0]
    return tokenizer.decode(tokens)


@pytest.mark.parametrize("named", [False, True], ids=["listed", "by name"])
def test_a_chat_with_tools_is_written_by_the_template_for_them(named, tmp_path):
    templates = {"default": CHATML, "tool_use": TOOLS, "rag": "{{ 1 / 0 }}"}
    listed = [{"name": name, "template": text} for name, text in templates.items()]
    model = write_named(tmp_path / "model", templates if named else listed)
    tokenizer = load_tokenizer(model)
    row = chat("hello", "fine")
    plain = text_of(tokenizer, tmp_path / "plain.jsonl", row)
    assert plain == text_of(tokenizer, tmp_path / "none.jsonl", {**row, "tools": []})
    with_tools = text_of(tokenizer, tmp_path / "tools.jsonl", {**row, "tools": CLOCK})
    assert with_tools == WRITTEN + plain
    receipt = read_dataset(tmp_path / "plain.jsonl", tokenizer).receipt
    assert receipt.template == "the model's own, tool_use for chats with tools"
    other = write_named(tmp_path / "other", {"default": CHATML, "tool_use": TOOLS + " "})
    assert load_tokenizer(other).fingerprint != tokenizer.fingerprint


def test_templates_in_files_are_found_by_name(tmp_path):
    folder = write_model(tmp_path / "model", SHAPES["chatml"])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS)
    tokenizer = load_tokenizer(folder)
    row = {**chat("hello", "fine"), "tools": CLOCK}
    assert text_of(tokenizer, tmp_path / "rows.jsonl", row).startswith(WRITTEN)


UNUSABLE = {
    "no default": ([{"name": "tool_use", "template": TOOLS}], "templates tool_use, but none that is"),
    "no default, by name": ({"rag": CHATML, "tool_use": TOOLS}, "rag, tool_use, but none that is"),
    "a number": (7, "default is no text; found a int"),
    "a number for tools": ({"default": CHATML, "tool_use": 7}, "tool_use is no text; found a int"),
    "nothing by name": ({"default": None}, "default is no text; found a NoneType"),
    "a list of texts": ([CHATML], "a list of objects with name and template"),
    "a list without names": ([{"template": CHATML}], "a list of objects with name and template"),
    "broken for tools": ({"default": CHATML, "tool_use": "{% for %}"}, "template is broken"),
    "deeper than Python goes": ("{% for a in b %}" * 30 + "{% endfor %}" * 30, "template is broken"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(UNUSABLE))
def test_templates_that_cannot_be_used_are_explained(name, tmp_path):
    templates, expected = UNUSABLE[name]
    with pytest.raises(ModelError, match=expected):
        load_tokenizer(write_named(tmp_path, templates))


@pytest.mark.parametrize(("special", "end"), [((*IM, "</s>"), "<|im_end|>"), (("</s>",), "</s>")])
def test_the_default_ends_turns_with_im_end_where_there_is_one(special, end, tmp_path):
    tokenizer = load_tokenizer(write_model(tmp_path / "model", Shape(None, special, "</s>")))
    dataset = read_dataset(write_rows(tmp_path / "rows.jsonl", [chat("hello", "fine")]), tokenizer)
    learned = [text for text, on in view_row(dataset.train[0], tokenizer) if on]
    assert learned == [f"fine{end}"]
    assert dataset.receipt.template == f"chatml, ending {end}"


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("written", [0, 1, 2, 3])
@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_bos_is_there_once_however_often_it_is_written(written, adds_bos, loss_on, tmp_path):
    shape = Shape("{{ bos_token }}" * written + CHATML, (*IM, "<s>"), "<|im_end|>", "<s>", adds_bos)
    tokenizer = load_tokenizer(write_model(tmp_path / "model", shape))
    path = write_rows(tmp_path / "rows.jsonl", [chat("hello", "fine")])
    example = read_dataset(path, tokenizer, validation=0, loss_on=loss_on).train[0]
    text = ("<s>" if written or adds_bos else "") + (
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nfine<|im_end|>\n"
    )
    assert tokenizer.decode(example[0]) == text
    learned = "".join(text for text, on in view_row(example, tokenizer) if on)
    first = text.removeprefix("<s>") if written or adds_bos else text.removeprefix("<|im_start|>")
    assert learned == ("fine<|im_end|>" if loss_on == "assistant" else first)
    prompt = tokenizer.prompt_tokens([{"role": "user", "content": "hello"}])
    assert example[0].tolist()[: len(prompt)] == prompt


FAILING = {
    "memory": "{% set n = 99999999999999 %}{{ 'a' * n }}",
    "recursion": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "memory where followed": "{% if messages[0].content == 'hello' %}" + CHATML
    + "{% else %}{% set n = 99999999999999 %}{{ 'a' * n }}{% endif %}",
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAILING))
def test_a_template_that_runs_out_refuses_the_row(name, tmp_path):
    tokenizer = load_tokenizer(write_model(tmp_path / "m", Shape(FAILING[name], IM, "<|im_end|>")))
    path = write_rows(tmp_path / "rows.jsonl", [chat("a", "b")])
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: The chat template refuses these messages: "
    ):
        read_dataset(path, tokenizer)
