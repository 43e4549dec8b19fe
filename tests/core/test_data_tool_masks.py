"""What is learned of chats with tools, against published ways of writing them done by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from data_support import SHAPES, WITH_TOOLS, Shape, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_support import Messages, Piece, encoded, reference_mask

from edgetune.data import Tokenizer, load_tokenizer
from edgetune.data.problems import RowError

Tools = list[Any] | None

# As Qwen 2.5 and Hermes: tools after the system message, results inside a user's turn.
QWEN = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}"
    "{{ '# Tools\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% elif messages[0].role == 'system' %}"
    "{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}"
    "{% if m.role == 'user' or m.role == 'assistant' and not m.tool_calls %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}"
    "{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls %}{% set call = call.function or call %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}'
    "{{ call.arguments | tojson + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}"
    "{% if messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
    "{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen 3: the last turn begins with a thought, so that earlier ones are no prefix of the whole.
THOUGHT = "<think>\n\n</think>\n\n"
QWEN3 = QWEN.replace(
    "m.role + '\n' + m.content",
    "m.role + '\n' + (thought if loop.last and m.role == 'assistant' else '') + m.content",
).replace(
    "{% if m.content %}{{ '\n' + m.content }}",
    "{% if loop.last %}{{ '\n' + thought }}{% endif %}{% if m.content %}{{ '\n' + m.content }}",
)
QWEN3 = "{% set thought = '<think>\n\n</think>\n\n' %}" + QWEN3
# As Llama 3.1: tools before the first question, a call ends with a token of its own.
LLAMA31 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0].content | trim %}{% else %}{% set rest = messages %}"
    "{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}"
    "{% for m in rest %}{% if m.role == 'tool' %}"
    "{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}"
    "{% elif m.tool_calls %}{% set call = m.tool_calls[0].function %}"
    '{{ \'<|start_header_id|>assistant<|end_header_id|>\n\n{"name": "\' + call.name }}'
    "{{ '\", \"parameters\": ' + call.arguments | tojson + '}<|eom_id|>' }}"
    "{% else %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if tools and loop.first %}{{ tools | tojson + '\n\n' }}{% endif %}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# As Mistral: tools before the last question, calls in place of what is said.
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and loop.index0 == ns.last %}"
    "{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{{ '[INST] ' }}{% if loop.index0 == ns.last and messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content + '[/INST]' }}"
    "{% elif m.tool_calls %}{{ '[TOOL_CALLS] [' }}{% for call in m.tool_calls %}"
    "{{ call.function | tojson + (', ' if not loop.last else ']') }}{% endfor %}{{ eos_token }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content | tojson + '[/TOOL_RESULTS]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)


def dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def simple(messages: Messages, tools: Tools) -> Iterator[Piece]:
    for tool in tools or []:
        yield dumps(tool) + "\n", False
    for message in messages:
        learned = message["role"] == "assistant"
        yield f"<|im_start|>{message['role']}\n", False
        yield message["content"], learned
        yield "".join(map(dumps, message.get("tool_calls", []))) + "<|im_end|>", learned
        yield "\n", False


def qwen(messages: Messages, tools: Tools) -> Iterator[Piece]:
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    if tools:
        lines = "".join(dumps(tool) + "\n" for tool in tools)
        head = "" if system is None else system + "\n\n"
        yield f"<|im_start|>system\n{head}# Tools\n{lines}<|im_end|>\n", False
    elif system is not None:
        yield f"<|im_start|>system\n{system}<|im_end|>\n", False
    before = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if before == "tool" != role:
            yield "<|im_end|>\n", False
        if role == "user":
            yield f"<|im_start|>user\n{content}<|im_end|>\n", False
        elif role == "tool":
            yield "<|im_start|>user" * (before != "tool"), False
            yield f"\n<tool_response>\n{content}\n</tool_response>", False
        elif role == "assistant":
            yield "<|im_start|>assistant\n", False
            calls = "".join(
                f'\n<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments":'
                f" {dumps(call['function']['arguments'])}}}\n</tool_call>"
                for call in message.get("tool_calls", [])
            )
            yield (content + calls if content else calls[1:]) + "<|im_end|>", True
            yield "\n", False
        before = role


def qwen3(messages: Messages, tools: Tools) -> Iterator[Piece]:
    *pieces, (answer, _), newline = qwen(messages, tools)
    yield from [*pieces, (THOUGHT + answer, True), newline]


def llama31(messages: Messages, tools: Tools) -> Iterator[Piece]:
    has_system = messages[0]["role"] == "system"
    system = messages[0]["content"].strip() if has_system else ""
    yield "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n", False
    yield system + "<|eot_id|>", False
    for number, message in enumerate(messages[has_system:]):
        role = {"tool": "ipython"}.get(message["role"], message["role"])
        yield f"<|start_header_id|>{role}<|end_header_id|>\n\n", False
        yield dumps(tools) + "\n\n" if tools and number == 0 else "", False
        said = message["content"].strip() + "<|eot_id|>"
        if role == "ipython":
            said = dumps(message["content"]) + "<|eot_id|>"
        if message.get("tool_calls"):
            call = message["tool_calls"][0]["function"]
            said = (
                f'{{"name": "{call["name"]}", "parameters": {dumps(call["arguments"])}}}<|eom_id|>'
            )
        yield said, role == "assistant"


def mistral(messages: Messages, tools: Tools) -> Iterator[Piece]:
    system = f"{messages[0]['content']}\n\n" if messages[0]["role"] == "system" else ""
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    yield "<s>", False
    for index, message in enumerate(messages):
        match message:
            case {"role": "user", "content": content}:
                is_last = index == last
                offered = f"[AVAILABLE_TOOLS]{dumps(tools)}[/AVAILABLE_TOOLS]" if tools else ""
                yield offered * is_last, False
                yield f"[INST] {system * is_last}{content}[/INST]", False
            case {"role": "tool", "content": content}:
                yield f"[TOOL_RESULTS]{dumps(content)}[/TOOL_RESULTS]", False
            case {"tool_calls": calls}:
                listed = ", ".join(dumps(call["function"]) for call in calls)
                yield f"[TOOL_CALLS] [{listed}]</s>", True
            case {"role": "assistant", "content": content}:
                yield f" {content}</s>", True


LLAMA3 = SHAPES["llama3"]
MISTRAL_TOKENS = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
                  "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]")  # fmt: skip
SHAPES_HERE = {
    "simple": WITH_TOOLS,
    "qwen": Shape(QWEN, WITH_TOOLS.special, "<|im_end|>"),
    "qwen3": Shape(QWEN3, WITH_TOOLS.special, "<|im_end|>"),
    "llama31": Shape(
        LLAMA31, (*LLAMA3.special, "<|eom_id|>"), "<|eot_id|>", LLAMA3.bos, adds_bos=True
    ),
    "llama31, its end unknown": Shape(
        LLAMA31, (*LLAMA3.special, "<|eom_id|>"), "<|eot_id|>", LLAMA3.bos, adds_bos=True
    ),
    "mistral": Shape(MISTRAL, MISTRAL_TOKENS, "</s>", "<s>", adds_bos=True),
}
REFERENCES: dict[str, Callable[[Messages, Tools], Iterator[Piece]]] = {
    "simple": simple, "qwen": qwen, "qwen3": qwen3, "llama31": llama31,
    "llama31, its end unknown": llama31, "mistral": mistral,
}  # fmt: skip
TALKS_WHILE_CALLING = {"simple", "qwen", "qwen3"}
CALLS_SEVERAL = {"simple", "qwen", "qwen3", "mistral"}

said = st.text("ab \n.é🎉<|[]/", min_size=1, max_size=8).filter(str.strip)
arguments = st.dictionaries(st.sampled_from(["zone", "a"]), said | st.integers(0, 20), max_size=2)
calls = st.builds(
    lambda name, given: {"type": "function", "function": {"name": name, "arguments": given}},
    st.sampled_from(["clock", "get_weather"]),
    arguments,
)
tools = [{"type": "function", "function": {"name": name}} for name in ("clock", "get_weather")]


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name, shape in SHAPES_HERE.items():
        model = write_model(folder / name, shape)
        if name == "llama31":
            ends = '{"eos_token_id": [1, 2, 5]}'  # as they are numbered in its special tokens
            (model / "generation_config.json").write_text(ends)
        found[name] = load_tokenizer(model)
    return found


def drawn_chat(draw: Callable[[Any], Any], name: str) -> Messages:
    """A chat of some exchanges, in each of which tools may be called before the answer."""
    system = draw(st.none() | st.sampled_from(["", " "]) | said)
    messages: Messages = [] if system is None else [{"role": "system", "content": system}]
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(said)})
        most = 2 if name in CALLS_SEVERAL else 1
        for called in draw(st.lists(st.lists(calls, min_size=1, max_size=most), max_size=2)):
            content = draw(st.just("") | said) if name in TALKS_WHILE_CALLING else ""
            messages.append({"role": "assistant", "content": content, "tool_calls": called})
            messages += [{"role": "tool", "content": draw(said)} for _ in called]
        messages.append({"role": "assistant", "content": draw(said)})
    return messages


@settings(derandomize=True, deadline=None, max_examples=60)
@given(data=st.data())
@pytest.mark.parametrize("name", list(REFERENCES))
def test_masks_of_chats_with_tools_equal_the_reference(name, data, tokenizers):
    tokenizer = tokenizers[name]
    messages = drawn_chat(data.draw, name)
    offered = data.draw(st.sampled_from([None, tools]))
    tokens, mask = encoded(tokenizer, messages, offered)
    pieces = list(REFERENCES[name](messages, offered))
    assert tokenizer.decode(tokens) == "".join(text for text, _ in pieces)
    assert tokens == tokenizer.encode("".join(text for text, _ in pieces))
    assert mask == reference_mask(pieces, tokenizer)


CALLED = [
    {"role": "user", "content": "what time is it?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "clock", "arguments": {}}},
    ]},
    {"role": "tool", "content": "noon"},
    {"role": "assistant", "content": "it is noon"},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "you are welcome"},
]  # fmt: skip


def test_a_call_before_the_last_question_is_placed(tokenizers):
    """The tools stand before the last question, so that no earlier call is at the end of a prefix."""
    for offered in (tools, None):
        tokens, mask = encoded(tokenizers["mistral"], CALLED, offered)
        pieces = list(mistral(CALLED, offered))
        assert tokens == tokenizers["mistral"].encode("".join(text for text, _ in pieces))
        assert mask == reference_mask(pieces, tokenizers["mistral"])


def test_what_a_tool_says_is_not_learned_for_want_of_an_end(tmp_path):
    """No token ends a call, and the turn is no prefix: all up to the next end would be learned."""
    endless = QWEN3.replace("{% endfor %}{{ '<|im_end|>\n' }}{% elif", "{% endfor %}{% elif")
    assert endless != QWEN3
    shape = Shape(endless, WITH_TOOLS.special, "<|im_end|>")
    tokenizer = load_tokenizer(write_model(tmp_path / "model", shape))
    with pytest.raises(RowError, match="does not write message 2"):
        encoded(tokenizer, CALLED)
