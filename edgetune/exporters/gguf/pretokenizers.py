"""How a byte-level tokenizer cuts a text before it merges bytes, by llama.cpp's name for it.

llama.cpp knows each way by a name in the file; a wrong one gives other tokens without a word. The
steps that ``tokenizer.json`` describes are compared here with those that a name stands for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from edgetune.data.gguf_cutting import CUTS, GPT2
from edgetune.errors import UsageError
from edgetune.escapes import short

_SAME: Final[Mapping[str, str]] = {
    "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])": "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    "\r": r"\r",
    "\n": r"\n",
    r"\"": '"',
}
"""Two ways to write the same: endings in any case, ends of lines, a quotation mark."""

_CLASS_IN_CLASS: Final = re.compile(r"\|\[([^\[\]]+)\]\)\]")
"""How BLOOM's published rule ends."""
_RANGE: Final = re.compile("(.)-(.)")


def _normal(regex: str) -> str:
    """Return an expression in the one of several ways to write it that is compared."""
    for one, same in _SAME.items():
        regex = regex.replace(one, same)
    regex = _CLASS_IN_CLASS.sub(r"|\1)]", regex)
    return _RANGE.sub(_of_neighbours, regex)


def _of_neighbours(found: re.Match[str]) -> str:
    """Return a range of two signs as these, any other as it is."""
    first, last = found.groups()
    return first + last if ord(last) == ord(first) + 1 else found[0]


_NAMES: Final[Mapping[tuple[tuple[str, ...], bool], str]] = {
    (tuple(map(_normal, CUTS[name].expressions)), CUTS[name].whole_words): name
    for name in (
        "gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "tekken", "gpt-4o", "bloom",
        "deepseek-llm", "deepseek-coder", "deepseek-v3",
    )
}  # fmt: skip
"""Regular expressions, one after another, and whether whole words of the vocabulary are taken
before any merge, to the name; Hunyuan's is DeepSeek-V3's."""

_DIGIT: Final = r"\p{N}"
_DIGITS: Final = r"\p{N}+"


def pretokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a ``tokenizer.json`` cuts texts.

    Raises:
        UsageError: if it has none.
    """
    steps, model = tuple(_steps(tokenizer.get("pre_tokenizer"))), tokenizer["model"]
    whole_words = bool(model.get("ignore_merges"))
    name = _name(steps, whole_words)
    if name is None and steps[-1:] == (_DIGIT,) and not _joins_digits(model["merges"]):
        name = _name((*steps[:-1], _DIGITS), whole_words)
    if name is None or whole_words > _takes_whole_words(name):
        raise UsageError(
            "None of llama.cpp's names that are known here stands for how this model's tokenizer "
            f"cuts texts ({short(' then '.join(steps))}); under another name llama.cpp would make "
            "other tokens. Export the model as a folder: --to hf."
        )
    return name


def _name(steps: tuple[str, ...], whole_words: bool) -> str | None:
    return _NAMES.get((steps, whole_words)) or _NAMES.get((steps, not whole_words))


def _joins_digits(merges: Sequence[str | Sequence[str]]) -> bool:
    """Return whether a merge makes a token with two digits: only then do cuts between them matter.

    llama.cpp lets DeepSeek's digits stand together (``deepseek-llm``), its published files each alone.
    """
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return any(re.search(r"[0-9]{2}", "".join(pair)) for pair in pairs)


def _takes_whole_words(name: str) -> bool:
    return any(known == name for (_, whole), known in _NAMES.items() if whole)


def _steps(step: Any) -> Iterator[str]:
    """Yield the regular expressions that a text is cut with, one after another."""
    kind = step.get("type") if isinstance(step, dict) else None
    if kind == "Sequence":
        for inner in step["pretokenizers"]:
            yield from _steps(inner)
    elif kind == "ByteLevel":
        if step.get("add_prefix_space"):
            yield "a space in front"
        if step.get("use_regex", True):
            yield GPT2
    elif kind == "Digits":
        yield _DIGIT if step.get("individual_digits") else _DIGITS
    elif kind == "Split" and _isolates(step):
        pattern = step["pattern"]
        yield _normal(pattern.get("Regex") or str(pattern))
    else:
        yield f"{kind}"


def _isolates(step: Mapping[str, Any]) -> bool:
    """Return whether what a split finds, and what lies between, are pieces of their own."""
    behavior, inverted = step.get("behavior"), bool(step.get("invert"))
    return behavior == "Isolated" or (behavior == "Removed" and inverted)
