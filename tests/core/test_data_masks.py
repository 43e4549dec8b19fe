"""What is learned of a chat, against templates written a second time as plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from data_support import SHAPES, WITH_TOOLS, Shape, chat, tokens_and_mask, write_model, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_support import Messages, Piece, encoded, reference_mask

from edgetune.data import Tokenizer, load_tokenizer, read_dataset, view_row
from edgetune.data.content import Chat, Completion, Text
from edgetune.data.encode import Encoder
from edgetune.data.problems import RowError
from edgetune.errors import DataError


def chatml(messages: Messages, end: str = "<|im_end|>") -> Iterator[Piece]:
    for message in messages:
        learned = message["role"] == "assistant"
        yield f"<|im_start|>{message['role']}\n", False
        yield message["content"] + end, learned
        yield "\n", False


def marked(messages: Messages) -> Iterator[Piece]:
    for message in messages:
        learned = message["role"] == "assistant"
        yield f"<|im_start|>{message['role']}\n", False
        yield f"{message['content']}<|im_end|>", learned
        yield "" if learned else "\n", False


def thinking(messages: Messages) -> Iterator[Piece]:
    for message in messages:
        learned = message["role"] == "assistant"
        yield f"<|im_start|>{message['role']}\n", False
        yield "<think>\n\n</think>\n\n" * (learned and message is messages[-1]), learned
        yield message["content"].lstrip("\n") + "<|im_end|>", learned
        yield "\n", False


def llama2(messages: Messages) -> Iterator[Piece]:
    head = ""
    for message in messages:
        content = message["content"].strip()
        if message["role"] == "system":
            head = f"<<SYS>>\n{message['content']}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            yield f"<s>[INST] {head}{content} [/INST]", False
            head = ""
        else:
            yield f" {content} </s>", True


def llama3(messages: Messages) -> Iterator[Piece]:
    yield "<|begin_of_text|>", False
    for message in messages:
        yield f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", False
        yield f"{message['content'].strip()}<|eot_id|>", message["role"] == "assistant"


def gemma(messages: Messages) -> Iterator[Piece]:
    yield "<bos>", False
    for message in messages:
        learned = message["role"] == "assistant"
        yield f"<start_of_turn>{'model' if learned else message['role']}\n", False
        yield f"{message['content'].strip()}<end_of_turn>", learned
        yield "\n", False


def mistral(messages: Messages) -> Iterator[Piece]:
    """The system message goes into the last question, so earlier turns are no prefix of the whole:
    they are found by what is sampled for them, which begins with a space.
    """
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    yield "<s>", False
    for index, message in enumerate(messages):
        if message["role"] == "user":
            head = f"{system}\n\n" if system is not None and index == last else ""
            yield f"[INST] {head}{message['content']} [/INST]", False
        elif message["role"] == "assistant":
            yield f" {message['content']}</s>", True


def phi(messages: Messages) -> Iterator[Piece]:
    for message in messages:
        yield f"<|{message['role']}|>\n", False
        yield message["content"] + "<|end|>", message["role"] == "assistant"
        yield "\n", False
    yield "<|endoftext|>", False


def default(messages: Messages) -> Iterator[Piece]:
    yield "<s>", False
    yield from chatml(messages, end="</s>")


REFERENCES: dict[str, Callable[[Messages], Iterator[Piece]]] = {
    "chatml": chatml, "chatml-marked": marked, "thinking": thinking, "llama2": llama2,
    "llama3": llama3, "gemma": gemma, "mistral": mistral, "phi": phi, "none": default,
}  # fmt: skip
contents = st.text("ab \n.é🎉<|[]/", min_size=1, max_size=10).filter(str.strip)


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_tokenizer(write_model(folder / name, s)) for name, s in SHAPES.items()}


@settings(derandomize=True, deadline=None, max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("name", list(REFERENCES))
def test_masks_equal_the_reference(name, data, tokenizers):
    tokenizer, shape = tokenizers[name], SHAPES[name]
    turns = 2 * data.draw(st.integers(1, 3), "exchanges")
    systems = st.none() | st.sampled_from(["", " \n"]) | contents
    system = data.draw(systems, "system") if shape.system else None
    row = chat(*(data.draw(contents) for _ in range(turns)), system=system)
    tokens, mask = encoded(tokenizer, row["messages"])
    again = encoded(tokenizer, row["messages"])  # replayed, where the template can be followed
    assert again == (tokens, mask)
    pieces = list(REFERENCES[name](row["messages"]))
    assert tokens == tokenizer.encode("".join(text for text, _ in pieces))
    assert mask == reference_mask(pieces, tokenizer)
    assert "".join(text for text, _ in view_row((tokens, mask), tokenizer)) == tokenizer.decode(
        tokens
    )


@pytest.mark.parametrize("name", list(SHAPES))
def test_every_answer_is_learned_with_its_end(name, tokenizers, tmp_path):
    tokenizer = tokenizers[name]
    rows = [chat("hello", "I am fine", "how are you", "a long answer")]
    learned = "".join(text for text, on in only_row(tokenizer, tmp_path, rows) if on)
    end = next(text for text in tokenizer.end_texts if text in learned)
    assert learned.count(end) == 2
    assert "I am fine" in learned
    assert learned.endswith(end)
    assert "how" not in learned


@pytest.mark.parametrize("name", list(SHAPES))
def test_generation_starts_where_the_answer_does(name, tokenizers):
    tokenizer = tokenizers[name]
    messages = chat("hello", "I am fine")["messages"]
    tokens, mask = encoded(tokenizer, messages)
    prompt = tokenizer.prompt_tokens(messages[:1])
    assert tokens[: len(prompt)] == prompt
    assert mask.index(True) == len(prompt)
    assert tokens[len(mask) - 1 - mask[::-1].index(True)] in tokenizer.end_tokens


@pytest.mark.parametrize("name", list(SHAPES))
def test_bos_is_there_once(name, tokenizers, tmp_path):
    tokenizer = tokenizers[name]
    for row in (
        chat("hello", "fine"),
        {"text": "hello"},
        {"prompt": "hello", "completion": "fine"},
    ):
        path = write_rows(tmp_path / "rows.jsonl", [row])
        tokens, _ = read_dataset(path, tokenizer, validation=0).train[0]
        expected = 1 if SHAPES[name].adds_bos else 0
        assert list(tokens).count(tokenizer.bos_id) == expected
        assert tokenizer.bos_id is None or not expected or tokens[0] == tokenizer.bos_id


def only_row(
    tokenizer: Tokenizer, folder: Path, rows: list[object], **options: object
) -> list[Piece]:
    path = write_rows(folder / "rows.jsonl", rows)
    dataset = read_dataset(path, tokenizer, validation=0, **options)
    return view_row(dataset.train[0], tokenizer)


@pytest.mark.parametrize("name", ["chatml", "chatml-marked", "llama3", "pieces"])
def test_loss_on_decides_what_is_learned(name, tokenizers, tmp_path):
    rows = [chat("hello", "I am fine", "how are you", "a long answer")]
    for loss_on, contained, missing in (
        ("assistant", ("fine", "long"), ("hello", "how")),
        ("completion", ("long",), ("hello", "fine", "how")),
        ("all", ("hello", "fine", "how", "long"), ()),
    ):
        view = only_row(tokenizers[name], tmp_path, rows, loss_on=loss_on)
        learned = "".join(text for text, on in view if on)
        assert all(text in learned for text in contained)
        assert not any(text in learned for text in missing)


@pytest.mark.parametrize("name", ["chatml", "chatml-marked", "llama3"])
def test_a_message_of_weight_zero_is_only_read(name, tokenizers, tmp_path):
    row = chat("hello", "I am fine", "how are you", "a long answer")
    row["messages"][1]["weight"] = 0
    learned = [text for text, on in only_row(tokenizers[name], tmp_path, [row]) if on]
    assert len(learned) == 1
    assert "long" in learned[0]


def test_thinking_that_the_template_removes_is_not_learned(tokenizers, tmp_path):
    row = chat("hello", "<think>well</think>\nI am fine", "how are you", "a long answer")
    view = only_row(tokenizers["thinking"], tmp_path, [row])
    notes = read_dataset(tmp_path / "rows.jsonl", tokenizers["thinking"]).receipt.notes
    assert any(note.endswith("a part: 1, the first is rows.jsonl:1") for note in notes)
    assert next(text for text, on in view if on) == "I am fine<|im_end|>"
    assert "well" not in "".join(text for text, _ in view)


def test_plain_rows_end_with_a_learned_eos(tokenizers):
    encoder = Encoder(tokenizers["none"], "assistant")
    given_end = encoder.mark(Text("hello</s>"))
    rows = [encoder.mark(Text("hello")), given_end, encoder.mark(Completion("hello", " fine"))]
    (text, _), (ended, _), (tokens, mask) = map(tokens_and_mask, encoder.encode(rows))
    assert text == ended
    assert text.count(tokenizers["none"].eos_id) == 1
    prompt = tokenizers["none"].prompt_tokens("hello")
    assert tokens[: len(prompt)] == prompt
    assert mask == [False] * len(prompt) + [True] * (len(tokens) - len(prompt))
    assert tokens[-1] == tokenizers["none"].eos_id


def test_prompts_become_chats_where_the_model_has_a_template(tokenizers):
    encoder = Encoder(tokenizers["chatml"], "assistant")
    as_chat = encoder.mark(Chat(chat("hello", "fine")["messages"]))
    assert encoder.mark(Completion("hello", "fine")) == as_chat


def test_a_special_token_that_swallows_space_is_not_learned(tokenizers, tmp_path):
    view = only_row(tokenizers["swallowing"], tmp_path, [chat("hello", "\n fine")])
    assert [text for text, on in view if on] == ["fine<|end|>"]


BROKEN = {
    "upper": "{% for m in messages %}{{ m.content | upper }}</s>{% endfor %}",
    "dropped": "{% for m in messages %}{% if loop.first %}{{ m.content }}</s>{% endif %}{% endfor %}",
    "wrong mark": "{% for m in messages %}{% if m.role == 'user' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content | upper }}{% endif %}</s>{% endfor %}",
    "refusing": "{{ raise_exception('Only haiku, please') }}",
    "failing": "{{ messages[7].content }}{{ 1 / 0 }}",
    "deep": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_template_that_hides_the_answer_is_refused(name, tmp_path):
    shape = Shape(BROKEN[name], ("<s>", "</s>"), "</s>", "<s>")
    tokenizer = load_tokenizer(write_model(tmp_path / "model", shape))
    path = write_rows(tmp_path / "rows.jsonl", [chat("hello", "fine", "so", "good")])
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*template"):
        read_dataset(path, tokenizer)


@pytest.mark.parametrize(
    ("content", "name"),
    [("a<|im_end|>b", "chatml"), ("<s>bold</s>", "llama2"), ("<|system|>", "phi")],
)
def test_structure_inside_a_message_is_refused(content, name, tokenizers):
    with pytest.raises(RowError, match="Message 1 contains '<"):
        Encoder(tokenizers[name], "all").mark(Chat(chat(content, "fine")["messages"]))


def test_calls_of_tools_are_learned_and_their_results_read(tmp_path):
    tokenizer = load_tokenizer(write_model(tmp_path / "model", WITH_TOOLS))
    row = {
        "tools": [{"name": "clock"}],
        "messages": [
            {"role": "user", "content": "what time is it?"},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "clock"}]},
            {"role": "tool", "content": "noon"},
            {"role": "assistant", "content": "it is noon"},
        ],
    }
    view = only_row(tokenizer, tmp_path, [row])
    tool = '{"type": "function", "function": {"name": "clock"}}'
    assert view[0][0].startswith(f"{tool}\n<|im_start|>user")
    call = '{"type": "function", "function": {"name": "clock", "arguments": {}}}'
    learned = [text for text, on in view if on]
    assert learned == [f"{call}<|im_end|>", "it is noon<|im_end|>"]


def test_a_date_in_the_template_is_pinned(tmp_path):
    dated = (
        "{{ strftime_now('%d %b %Y') }} {{ strftime_now(\"%Y\") }}\n" + SHAPES["chatml"].template
    )
    shape = Shape(dated, SHAPES["chatml"].special, "<|im_end|>")
    tokenizer = load_tokenizer(write_model(tmp_path / "model", shape))
    assert tokenizer.render([{"role": "user", "content": "a"}]).startswith("26 Jul 2024 2024\n<|im")
    dataset = read_dataset(write_rows(tmp_path / "rows.jsonl", [chat("a", "b")]), tokenizer)
    assert any("date" in note for note in dataset.receipt.notes)
