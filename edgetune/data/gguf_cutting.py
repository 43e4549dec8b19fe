"""How text is cut before byte-level BPE, by the names that llama.cpp gives to these rules.

The expressions are those of the models' own tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The rule that the tokenizers library knows by itself."""

_CONTRACTION: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS: Final = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*"

LLAMA3: Final = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
QWEN2: Final = rf"{_WORDS}|\p{{N}}|{_SIGNS}|{_SPACES}"
QWEN35: Final = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)

_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_SIGNS_OR_SLASHES: Final = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"


def _cased(end: str) -> str:
    """Return an expression for words that go on in one case, with what may stand at their end."""
    return rf"{_BEFORE}{_UPPER}*{_LOWER}+{end}|{_BEFORE}{_UPPER}+{_LOWER}*{end}"


GPT4O: Final = rf"{_cased(f'{_CONTRACTION}?')}|\p{{N}}{{1,3}}|{_SIGNS_OR_SLASHES}|{_SPACES}"
TEKKEN: Final = rf"{_cased('')}|\p{{N}}|{_SIGNS_OR_SLASHES}|{_SPACES}"
_STOPS: Final = "\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"
"""Signs that end or part sentences in Chinese, Hindi, Urdu and Arabic."""
BLOOM: Final = rf" ?[^(\s|.,!?{_STOPS})]+"
DEEPSEEK3: Final = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|"
) + _SPACES

_CASED: Final = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA "
    "1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 "
    "1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB "
    "1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D "
    "212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 "
    "A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A "
    "FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
"""Letters that have a case, as DeepSeek counts them: of Latin, Greek, Cyrillic and others."""
_SIGNS_OF_DEEPSEEK: Final = "21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002"
_EAST: Final = "4E00-9FA5 800-4E00 AC00-D7FF"


def _class(ranges: str) -> str:
    """Return an expression for one sign of some ranges.

    >>> _class("41-43 61")
    '[A-Ca]'
    """
    ends = ([chr(int(end, 16)) for end in each.split("-")] for each in ranges.split())
    return f"[{''.join(map('-'.join, ends))}]"


@dataclass(frozen=True, slots=True)
class Cut:
    """A rule: an expression whose matches are cut out, or the one of GPT-2."""

    expression: str | None = None
    single_digits: bool = False
    """Whether every digit stands alone, before all else."""
    composed: bool = False
    """Whether letters and their accents become one sign first (NFC)."""
    whole_words: bool = False
    """Whether a piece that is a token is one, whatever the merges say."""
    before: tuple[str, ...] = ()
    """Expressions whose matches stand alone, one expression after the other, before the main one."""
    adds_bos: bool = False
    """Whether texts begin with BOS unless a file says otherwise."""

    @property
    def expressions(self) -> tuple[str, ...]:
        """The expressions that a text is cut with, one after another."""
        digits = (r"\p{N}",) if self.single_digits else ()
        return (*digits, *self.before, self.expression or GPT2)

    def pre_tokenizer(self) -> Any:
        """Return the rule for the tokenizers library."""
        from tokenizers import Regex, pre_tokenizers

        bytes_only = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=self.expression is None
        )
        first: list[Any] = []
        if self.single_digits:
            first.append(pre_tokenizers.Digits(individual_digits=True))
        own = () if self.expression is None else (self.expression,)
        first += [
            pre_tokenizers.Split(Regex(expression), "isolated")
            for expression in (*self.before, *own)
        ]
        return pre_tokenizers.Sequence([*first, bytes_only]) if first else bytes_only

    def normalizer(self) -> Any:
        """Return what is done to a text before, or ``None``."""
        from tokenizers import normalizers

        return normalizers.NFC() if self.composed else None


_GPT2: Final = Cut()
_DIGITS: Final = Cut(single_digits=True)
_LLAMA3: Final = Cut(LLAMA3, whole_words=True, adds_bos=True)
_CL100K: Final = Cut(LLAMA3)
_QWEN2: Final = Cut(QWEN2, composed=True)
_GPT4O: Final = Cut(GPT4O)
_DEEPSEEK3: Final = Cut(
    DEEPSEEK3, before=(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+")
)
_DEEPSEEK: Final = Cut(
    r"\p{N}+",
    before=(
        r"[\r\n]",
        rf"\s?{_class(_CASED)}+",
        rf"\s?{_class(_SIGNS_OF_DEEPSEEK)}+",
        r"\s+$",
        f"{_class(_EAST)}+",
    ),
)
_DEEPSEEK_CODER: Final = Cut(
    r"\p{N}", before=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"{_class(_EAST)}+")
)

CUTS: Final[Mapping[str, Cut]] = {
    "gpt-2": _GPT2,
    "gpt2": _GPT2,
    "phi-2": _GPT2,
    "mpt": Cut(composed=True),
    "olmo": Cut(composed=True),
    "gpt-neox": Cut(composed=True),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": Cut(single_digits=True, composed=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "falcon-h1": _LLAMA3,
    "lfm2": _LLAMA3,
    "pixtral": _LLAMA3,
    "glm4": Cut(LLAMA3, whole_words=True),
    "exaone4": _GPT2,
    "bloom": Cut(BLOOM),
    "deepseek-llm": _DEEPSEEK,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK3,
    "hunyuan-dense": _DEEPSEEK3,
    "dbrx": _CL100K,
    "smaug-bpe": _CL100K,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "qwen35": Cut(QWEN35, composed=True),
    "stablelm2": Cut(QWEN2),
    "gpt-4o": _GPT4O,
    "llama4": _GPT4O,
    "tekken": Cut(TEKKEN, whole_words=True, adds_bos=True),
}
