"""How a byte-level tokenizer cuts a text before it merges bytes, by llama.cpp's name for it.

llama.cpp knows each way by a name in the file; a wrong one gives other tokens without a word. The
steps that ``tokenizer.json`` describes are compared here with those that a name stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from edgetune.data.gguf_cutting import CUTS, GPT2
from edgetune.errors import UsageError
from edgetune.escapes import short

_ENDINGS: Final = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_ANY_CASE: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
"""Two ways to write the same."""

_NAMES: Final[Mapping[tuple[tuple[str, ...], bool], str]] = {
    (CUTS[name].expressions, CUTS[name].whole_words): name
    for name in ("gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "qwen35", "tekken", "gpt-4o")
}
"""Regular expressions, one after another, and whether whole words of the vocabulary are taken
before any merge, to the name."""


def pretokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a ``tokenizer.json`` cuts texts.

    Raises:
        UsageError: if it has none.
    """
    steps = tuple(_steps(tokenizer.get("pre_tokenizer")))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    name = _NAMES.get((steps, whole_words)) or _NAMES.get((steps, not whole_words))
    if name is None or whole_words > _takes_whole_words(name):
        raise UsageError(
            "llama.cpp has no name for how this model's tokenizer cuts texts "
            f"({short(' then '.join(steps))}), so it would split them into other tokens. Export "
            "the model as a folder: --to hf."
        )
    return name


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
        yield r"\p{N}" if step.get("individual_digits") else r"\p{N}+"
    elif kind == "Split" and _isolates(step):
        pattern = step["pattern"]
        yield _normal(pattern.get("Regex") or str(pattern))
    else:
        yield f"{kind}"


def _isolates(step: Mapping[str, Any]) -> bool:
    """Return whether what a split finds, and what lies between, are pieces of their own."""
    behavior, inverted = step.get("behavior"), bool(step.get("invert"))
    return behavior == "Isolated" or (behavior == "Removed" and inverted)


def _normal(regex: str) -> str:
    return regex.replace(_ENDINGS, _ANY_CASE)
