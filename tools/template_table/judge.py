"""What becomes of a chat under a template, judged without edgetune's own way of finding masks.

The template is rendered by transformers up to each learned turn with a generation prompt, and up to
and with the turn. What the second has beyond the first is what the model samples at inference; what
is learned must be that, token for token, after that prompt. Where it is not, the receipt must say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgetune.data.content import Chat
from edgetune.data.encode import Encoder, Marked
from edgetune.data.formats import detect
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
    faults = list(_faults(tokenizer, encoder._parts.joined(content), marked))
    told = _told(marked)
    if not faults and not told:
        return Verdict("exact")
    return Verdict("noted" if told else "silent", "; ".join(told or faults))


def _told(marked: Marked) -> list[str]:
    """Return what the receipt says of the row."""
    told = [f"begins without {marked.cut!r}"] if marked.cut not in ("", ELSEWHERE) else []
    told += ["does not begin after the generation prompt"] if marked.cut == ELSEWHERE else []
    told += ["a turn is learned without an end"] if marked.is_unended else []
    told += ["the template leaves out or changes a part"] if marked.altered else []
    fields = sorted(name for name in marked.unwritten if name not in ("tool_call_id", "name"))
    return told + ([f"not written: {', '.join(fields)}"] if fields else [])


def _faults(tokenizer: Tokenizer, chat: Chat, marked: Marked) -> Any:
    """Yield how what is learned differs from what is sampled."""
    learned = chat.learned()
    if len(marked.spans) != len(learned):
        yield f"{len(marked.spans)} spans of {len(learned)} turns"
        return
    for index, (start, stop) in zip(learned, marked.spans, strict=True):
        said = marked.text[start:stop]
        prompt, sampled = _sampled(tokenizer.template, chat, index)
        is_last = index == learned[-1]
        if is_last and marked.text[:start] != prompt:
            yield f"the last turn does not follow its prompt, but {marked.text[:start][-40:]!r}"
        if sampled is not None and not _same(tokenizer, sampled, said, is_last=is_last):
            yield f"message {index + 1} is learned as {said!r}, sampled as {sampled!r}"
        if not said.rstrip().endswith(tokenizer.end_texts) and not (
            is_last and marked.end is not None
        ):
            yield f"message {index + 1} is learned without its end"
        missing = [text for text in _texts(chat.messages[index]) if text not in _plain(said)]
        if missing:
            yield f"message {index + 1} is learned without {missing}"
    for message in chat.messages:
        if message["content"].strip() and message["role"] != "assistant":
            for line in message["content"].splitlines():
                if line not in _plain(marked.text):
                    yield f"{line!r} is not there"
    ids, mask = _encoded(tokenizer, marked)
    first = mask.index(True)
    prompt = tokenizer.encode(marked.text[: marked.spans[0][0]], special=True)
    if ids[:first] != prompt:
        yield "the tokens before the first learned one are not those of the text before it"
    if tokenizer.bos_id is not None and ids.count(tokenizer.bos_id) > max(
        1, marked.text.count(str(tokenizer.text_of(tokenizer.bos_id)))
    ):
        yield "BOS twice"


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
    """Whether a turn is learned as it is sampled, up to its end; earlier thoughts may be missing."""
    ended = next(
        (said.removesuffix(end) for end in tokenizer.end_texts if said.endswith(end)), said
    )
    if sampled.startswith(said):
        return not sampled[len(said) :].strip() or ended != said
    return sampled == ended or (not is_last and sampled.rstrip().endswith((said, ended)))


def _texts(message: dict[str, Any]) -> list[str]:
    """Return what a turn must be learned with."""
    inline = _THOUGHT.match(message["content"])
    thought = inline.group(1) if inline else message.get("reasoning_content", "")
    said = inline.group(2) if inline else message["content"]
    calls = [call["function"] for call in message.get("tool_calls", [])]
    values = [str(value) for call in calls for value in call["arguments"].values()]
    return [
        text.strip()
        for text in (thought, said, *(c["name"] for c in calls), *values)
        if text.strip()
    ]


def _plain(text: str) -> str:
    return text.replace('\\"', '"')
