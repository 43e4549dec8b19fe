"""What becomes of a chat under a template, judged without edgetune's own way of finding masks.

The template is rendered by transformers up to each learned turn with a generation prompt, and up to
and with the turn. What the second has beyond the first is what the model samples at inference; what
is learned must be that, token for token, after that prompt. Where it is not, the receipt must say so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgetune.data.content import Chat
from edgetune.data.encode import Encoder, Marked
from edgetune.data.formats import detect
from edgetune.data.joined_parts import PartsJoiner
from edgetune.data.problems import RowError
from edgetune.data.template import ChatTemplate
from edgetune.data.tokenizer import Tokenizer
from edgetune.data.turn_places import ELSEWHERE

_THOUGHT = re.compile(r"^\s*<think>(.*?)</think>(.*)$", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """``exact``, ``noted``, ``refused`` or ``silent``, and why."""

    kind: str
    because: str = ""


def judge(tokenizer: Tokenizer, row: dict[str, Any]) -> Verdict:
    """Return what becomes of a row for a model with this tokenizer and template."""
    encoder = Encoder(tokenizer, "assistant")
    try:
        content = detect(row).read(row)
        marked = encoder.mark(content)
    except RowError as error:
        return Verdict("refused", str(error))
    assert isinstance(content, Chat)
    chat = PartsJoiner(tokenizer).joined(content)
    told = dict(_told(marked))
    explained = {kind for kinds in told.values() for kind in kinds}
    silent = [text for kind, text in _faults(tokenizer, chat, marked) if kind not in explained]
    if silent:
        return Verdict("silent", "; ".join(silent))
    return Verdict("noted", "; ".join(told)) if told else Verdict("exact")


def _told(marked: Marked) -> Iterator[tuple[str, set[str]]]:
    """Yield what the receipt says of the row, and which faults that explains."""
    if marked.cut == ELSEWHERE:
        yield "does not begin after the generation prompt", {"prompt"}
    elif marked.cut:
        yield f"begins without {marked.cut!r}", {"prompt"}
    if marked.is_unended:
        yield "a turn is learned without an end", {"end"}
    if marked.altered:
        yield "the template leaves out or changes a part", {"thought", "sampled", "context"}
    fields = sorted(marked.unwritten - {"tool_call_id", "name"})
    if fields:
        yield f"not written: {', '.join(fields)}", {"thought"}


def _faults(tokenizer: Tokenizer, chat: Chat, marked: Marked) -> Iterator[tuple[str, str]]:
    """Yield the kind of each difference between what is learned and what is sampled, and itself."""
    learned = chat.learned()
    if len(marked.spans) != len(learned):
        yield "spans", f"{len(marked.spans)} spans of {len(learned)} turns"
        return
    for index, (start, stop) in zip(learned, marked.spans, strict=True):
        said, is_last = marked.text[start:stop], index == learned[-1]
        prompt, sampled = _sampled(tokenizer.template, chat, index)
        if is_last and marked.text[:start] != prompt:
            yield (
                "prompt",
                f"the last turn does not follow its prompt, but {marked.text[:start][-40:]!r}",
            )
        if sampled is not None and not _same(tokenizer, sampled, said, is_last=is_last):
            yield "sampled", f"message {index + 1} is learned as {said!r}, sampled as {sampled!r}"
        if not (
            said.rstrip().endswith(tokenizer.end_texts) or (is_last and marked.end is not None)
        ):
            yield "end", f"message {index + 1} is learned without its end"
        for kind, text in _parts(chat.messages[index]):
            if text not in said.replace('\\"', '"'):
                yield kind, f"message {index + 1} is learned without {text!r}"
    for message in chat.messages:
        if message["role"] != "assistant" and message["content"].strip() not in marked.text:
            yield "context", f"{message['content']!r} is not there"
    yield from _token_faults(tokenizer, marked)


def _token_faults(tokenizer: Tokenizer, marked: Marked) -> Iterator[tuple[str, str]]:
    ids, mask = _encoded(tokenizer, marked)
    first = mask.index(True)
    if ids[:first] != tokenizer.encode(marked.text[: marked.spans[0][0]], special=True):
        yield (
            "tokens",
            "the tokens before the first learned one are not those of the text before it",
        )
    bos = tokenizer.text_of(tokenizer.bos_id)
    if bos and ids.count(tokenizer.bos_id or 0) > max(1, marked.text.count(bos)):
        yield "bos", "BOS stands there twice"


def _encoded(tokenizer: Tokenizer, marked: Marked) -> tuple[list[int], list[bool]]:
    (row,) = Encoder(tokenizer, "assistant").encode([marked])
    inside = {token for bounds in row.ranges for token in range(*bounds)}
    return row.tokens.tolist(), [token in inside for token in range(len(row.tokens))]


def _sampled(template: ChatTemplate, chat: Chat, index: int) -> tuple[str, str | None]:
    """Return the prompt of a turn, and what follows it, None where the template writes it otherwise."""
    told = {"tools": chat.tools, "arguments": chat.arguments}
    prompt = template.render(chat.messages[:index], add_generation_prompt=True, **told)
    try:
        upto = template.render(chat.messages[: index + 1], **told)
    except RowError:
        return prompt, None
    return prompt, upto[len(prompt) :] if upto.startswith(prompt) else None


def _same(tokenizer: Tokenizer, sampled: str, said: str, *, is_last: bool) -> bool:
    """Whether a turn is learned as it is sampled, apart from how it ends.

    A turn that more follows may lack the thought before it. The last may have one more than the
    template writes of it, where the prompt begins it.
    """
    sampled, said = (_without_end(tokenizer, text) for text in (sampled, said))
    if is_last:
        return said == sampled or (said.endswith(sampled) and "</think>" in said)
    return sampled.endswith(said)


def _without_end(tokenizer: Tokenizer, text: str) -> str:
    found = text.rstrip()
    while end := next(filter(found.endswith, tokenizer.end_texts), None):
        found = found.removesuffix(end).rstrip()
    return found


def _parts(message: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a turn must be learned with, each after its kind."""
    inline = _THOUGHT.match(message["content"])
    thought = inline.group(1) if inline else message.get("reasoning_content", "")
    said = inline.group(2) if inline else message["content"]
    calls = [call["function"] for call in message.get("tool_calls", [])]
    values = [str(value) for call in calls for value in call["arguments"].values()]
    found = [("thought", thought), ("said", said), *(("call", call["name"]) for call in calls)]
    found += [("call", value) for value in values]
    yield from ((kind, text.strip()) for kind, text in found if text.strip())
