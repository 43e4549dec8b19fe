"""The tokenizer and the chat template that a GGUF file carries, as the library's fast tokenizer.

A file has the tokens in order, the kind of each, and either merges with the name of the rule by
which text is cut beforehand (``gpt2``: byte-level BPE), or merges alone (``gemma4``: BPE of letters,
with spaces among them), or scores (``llama``: BPE as SentencePiece does it, in which the best token
that two neighbours make is made first).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from edgetune.data.gguf_cutting import CUTS, Cut
from edgetune.data.gguf_rules import LLAMA3_TURN_END, RULE, is_llama3, rule_of
from edgetune.data.panics import refused_panics
from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.tensors.gguf.metadata import Metadata
from edgetune.tensors.gguf.reader import GgufHeader, read_gguf

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Inner

CONTROL: Final = 3
USER_DEFINED: Final = 4
UNUSED: Final = 5
_KEY: Final = "tokenizer.ggml."
_ENDS: Final = ("eos", "eot", "eom")
_MORE_ENDS: Final = f"{_KEY}eos_token_ids"
"""Further ones, a list, in Ollama's own files."""
_GEMMA4: Final = "gemma4"
_SPACE: Final = "\u2581"
"""SentencePiece's sign for a space."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """A fast tokenizer of transformers, and the tokens that end an answer."""

    inner: Any
    ends: frozenset[int]


def read_gguf_tokenizer(file: Path) -> GgufTokenizer:
    """Return the tokenizer of a file.

    Raises:
        ModelError: if it has none, a damaged one, or one of a kind that is not known.
    """
    header = read_gguf(file)
    metadata, embedding = header.metadata, header.tensors.get("token_embd.weight")
    vocabulary = _Vocabulary.read(metadata, None if embedding is None else embedding.shape[0])
    match _kind(metadata):
        case "gpt2":
            tokenizer, adds_bos = _byte_level(header, vocabulary)
        case "gemma4":
            tokenizer, adds_bos = _of_letters(metadata, vocabulary, _stated(metadata)), False
        case "llama":
            merges = _of_scores(metadata, vocabulary)
            tokenizer, adds_bos = _of_letters(metadata, vocabulary, merges), True
        case other:
            raise ModelError(
                f"{file} has a tokenizer of the kind {short(other)}. Supported: gpt2 (byte-level "
                "BPE), gemma4 and llama (SentencePiece)."
            )
    tokenizer.add_special_tokens(list(vocabulary.added(CONTROL)))
    tokenizer.add_tokens(list(vocabulary.added(USER_DEFINED)))
    special = _special_tokens(metadata, vocabulary)
    _frame(tokenizer, metadata, special, adds_bos=adds_bos)
    return GgufTokenizer(_fast(tokenizer, metadata, special), _ends(metadata, vocabulary))


def _ends(metadata: Metadata, vocabulary: _Vocabulary) -> frozenset[int]:
    """Return the tokens that end an answer; files of Llama 3 may not name the one of a turn."""
    keys = [f"{_KEY}{name}_token_id" for name in _ENDS]
    stated = {metadata.whole(key) for key in keys if key in metadata}
    turn = {LLAMA3_TURN_END} if is_llama3(vocabulary.tokens) else set()
    return frozenset(stated | turn | set(metadata.items(_MORE_ENDS, int) or ()))


def _kind(metadata: Metadata) -> str:
    """Return what kind of tokenizer a file has; Ollama's own files of Gemma 4 name another one."""
    kind, merges = metadata.text(f"{_KEY}model", ""), f"{_KEY}merges"
    mistaken = kind == "llama" and metadata.text(RULE, "") == _GEMMA4
    return _GEMMA4 if mistaken and merges in metadata else kind


def save_gguf_tokenizer(file: Path, folder: Path) -> None:
    """Write the tokenizer of a file, and what generation needs, as transformers reads them.

    Raises:
        ModelError: as :func:`read_gguf_tokenizer`.
    """
    found = read_gguf_tokenizer(file)
    found.inner.save_pretrained(str(folder))
    if found.ends:
        settings = json.dumps({"eos_token_id": sorted(found.ends)}, indent=2)
        (folder / "generation_config.json").write_text(settings + "\n", "utf-8")


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    """Tokens in order, and the kind of each."""

    tokens: list[str]
    kinds: list[int]
    listed: int
    """How many the file lists: more than have an embedding, in some files of models that see."""

    @classmethod
    def read(cls, metadata: Metadata, embedded: int | None) -> _Vocabulary:
        tokens = metadata.items(f"{_KEY}tokens", str)
        if not tokens:
            raise ModelError(
                f"{metadata.file} has no tokenizer ({_KEY}tokens), so no text can be read."
            )
        kinds = metadata.items(f"{_KEY}token_type", int) or [1] * len(tokens)
        if len(kinds) != len(tokens):
            raise ModelError(
                f"{metadata.file} says of {len(kinds)} tokens what they are, and has {len(tokens)}."
            )
        return cls(tokens[:embedded], kinds[:embedded], len(tokens))

    @property
    def known(self) -> dict[str, int]:
        """The number of every token but those that only fill up the embedding."""
        pairs = zip(self.tokens, self.kinds, strict=True)
        return {
            token: number
            for number, (token, kind) in enumerate(pairs)
            if kind != UNUSED or not token.startswith("[PAD")
        }

    def added(self, wanted: int) -> Iterator[Any]:
        """Yield the tokens of a kind that are found in a text before all others."""
        from tokenizers import AddedToken

        for token, kind in zip(self.tokens, self.kinds, strict=True):
            if kind == wanted and token:
                yield AddedToken(token, special=kind == CONTROL, normalized=False)


def _byte_level(header: GgufHeader, vocabulary: _Vocabulary) -> tuple[Inner, bool]:
    """Return byte-level BPE, and whether texts begin with BOS where the file does not say."""
    from tokenizers import Tokenizer, decoders, models

    metadata, name = header.metadata, rule_of(header, vocabulary.tokens)
    if name not in CUTS:
        raise ModelError(
            f"{metadata.file} cuts text by the rule {short(name)}, which is not known here. "
            f"Supported: {', '.join(CUTS)}."
        )
    cut: Cut = CUTS[name]
    with _reported(metadata.file):
        model = models.BPE(vocabulary.known, _stated(metadata), ignore_merges=cut.whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = cut.pre_tokenizer()
    tokenizer.normalizer = cut.normalizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cut.adds_bos


def _stated(metadata: Metadata) -> list[tuple[str, str]]:
    """Return the merges that a file lists."""
    pairs = (pair.partition(" ") for pair in metadata.items(f"{_KEY}merges", str) or ())
    return [(first, second) for first, _, second in pairs]


def _of_scores(metadata: Metadata, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Return the merges that scores stand for."""
    scores = metadata.items(f"{_KEY}scores", float)
    if scores is None or len(scores) != vocabulary.listed:
        raise ModelError(f"{metadata.file} has no score for each of its tokens.")
    return _merges(vocabulary.known, dict(zip(vocabulary.tokens, scores, strict=False)))


def _of_letters(
    metadata: Metadata, vocabulary: _Vocabulary, merges: list[tuple[str, str]]
) -> Inner:
    """Return BPE of letters, in which spaces are letters too; what has no token becomes bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    unknown = metadata.whole(f"{_KEY}unknown_token_id", 0)
    with _reported(metadata.file):
        model = models.BPE(
            vocabulary.known,
            merges,
            unk_token=_text(metadata, vocabulary, unknown),
            fuse_unk=True,
            byte_fallback=True,
        )
    tokenizer = Tokenizer(model)
    prefix = metadata.flag(f"{_KEY}add_space_prefix", _kind(metadata) != _GEMMA4)
    before = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    after = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    )
    return tokenizer


def _merges(known: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every pair of tokens that makes a token, the best token's first."""
    found = []
    for token in known:
        score = scores[token]
        pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
        made = [(left, right) for left, right in pairs if left in known and right in known]
        made.sort(key=lambda pair: (known[pair[0]], known[pair[1]]))
        found += [(score, left, right) for left, right in made]
    found.sort(key=lambda item: (-item[0], -len(item[1]), -len(item[2])))
    return [(left, right) for _, left, right in found]


def _special_tokens(metadata: Metadata, vocabulary: _Vocabulary) -> dict[str, str]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys = {f"{name}_token": f"{_KEY}{key}_token_id" for name, key in names.items()}
    return {
        name: _text(metadata, vocabulary, metadata.whole(key))
        for name, key in keys.items()
        if key in metadata
    }


def _text(metadata: Metadata, vocabulary: _Vocabulary, token: int) -> str:
    if not 0 <= token < len(vocabulary.tokens):
        raise ModelError(
            f"{metadata.file} names the token {token}, and has {len(vocabulary.tokens)} tokens."
        )
    return vocabulary.tokens[token]


def _frame(
    tokenizer: Inner, metadata: Metadata, special: dict[str, str], *, adds_bos: bool
) -> None:
    """Begin and end encoded texts as the file says."""
    from tokenizers import processors

    bos = special.get("bos_token")
    if bos is None or not metadata.flag(f"{_KEY}add_bos_token", adds_bos):
        return
    number = tokenizer.token_to_id(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, number)]
    )


def _fast(tokenizer: Inner, metadata: Metadata, special: dict[str, str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    template = "tokenizer.chat_template"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )
    fast.chat_template = metadata.text(template) if template in metadata else None
    return fast


@contextmanager
def _reported(file: Path) -> Iterator[None]:
    """Turn what the library raises for a damaged vocabulary into an error that names the file."""
    try:
        with refused_panics():
            yield
    except ModelError:
        raise
    except Exception as error:  # the library raises plain ones
        raise ModelError(f"The tokenizer in {file} cannot be read: {error}.") from error
