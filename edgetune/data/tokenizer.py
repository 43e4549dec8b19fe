"""The model's tokenizer and chat template, read from its folder and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetune.before_torch import set_environment
from edgetune.data.gguf_tokenizer import read_gguf_tokenizer
from edgetune.data.offsets import Encoded, Ids, Locator
from edgetune.data.panics import refused_panics
from edgetune.data.template import ChatTemplate, Message, default_template, own_template
from edgetune.data.token_numbers import check_token_numbers
from edgetune.data.turn_tokens import (
    end_between,
    listed_ends,
    markup,
    sample_chats,
    turn_ends,
)
from edgetune.errors import ModelError, UsageError
from edgetune.escapes import half_character, short
from edgetune.files import load_json

_LARGEST = 1 << 24  # bytes of a settings file
_SPACES = 8  # tokens before BOS that may be white space
_PLAIN = ("PreTrainedTokenizerFast", "TokenizersBackend")
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tekken.json")


class Tokenizer:
    """Text to tokens and back, chats to text, and which tokens end a turn.

    ``end_tokens`` are the tokens at which generation stops; ``controls`` the texts that the
    model reads as structure, and that therefore must not occur inside a message; ``special_texts``
    those of them that are tokens without a text of their own; ``turn_end`` the token that a chat is
    ended with if its template writes none there; ``is_special`` (V,) the tokens that are no text.
    """

    def __init__(
        self,
        inner: Any,
        folder: Path,
        embeddings: int | None = None,
        ends: frozenset[int] | None = None,
    ) -> None:
        """Take what is needed of a fast transformers tokenizer that was read from ``folder``.

        ``embeddings`` is how many tokens the model knows, None if that does not matter; ``ends``
        the tokens that end an answer, None for those of the folder's generation settings.
        """
        self._inner = inner.backend_tokenizer
        self._inner.no_truncation()
        self._inner.no_padding()
        self._locator = Locator(self._inner)
        self._embeddings = _checked_embeddings(self._inner, folder, embeddings)
        self.eos_id: int | None = inner.eos_token_id
        self.bos_id: int | None = inner.bos_token_id
        self.pad_id: int | None = inner.pad_token_id
        for token in (self.bos_id, self.eos_id):  # they join texts that do not have them
            if token is not None:
                self._refuse_unknown(np.array([token], np.int32))
        added = inner.added_tokens_decoder.items()
        self._added = {token.content: id_ for id_, token in added}
        special = {token.content for _, token in added if token.special}
        size = max(len(inner), 1 + max(self._added.values(), default=-1))
        self.is_special: NDArray[np.bool_] = np.zeros(size, dtype=np.bool_)
        self.is_special[[self._added[text] for text in special]] = True
        self.has_template, self._template = self._find_template(inner)
        chats = sample_chats(self._template)
        eos = frozenset() if self.eos_id is None else frozenset({self.eos_id})
        known = eos | (listed_ends(folder) if ends is None else ends)
        # Some templates end a turn only where another follows it.
        between = end_between(self._template, self._added)
        self.end_tokens = known | turn_ends(self._template, self._added, known)
        self.end_tokens |= frozenset() if between is None else {between}
        self.turn_end: int | None = self.eos_id if between is None else between
        limits = {text for text, token in self._added.items()
                  if token == self.bos_id or token in self.end_tokens}  # fmt: skip
        self.special_texts = frozenset(filter(str.strip, limits | special))
        self.controls = frozenset(filter(str.strip, limits | special | markup(chats)))

    def __len__(self) -> int:
        """Return the number of tokens in the vocabulary."""
        return len(self.is_special)

    @property
    def template(self) -> ChatTemplate:
        """The chat template in use.

        Raises:
            ModelError: if the model has none and no end-of-sequence token to make one with.
        """
        if self._template is None:
            raise ModelError(
                "The model has neither a chat template nor an end-of-sequence token, so it"
                " cannot be trained on chats. Use rows with a text field."
            )
        return self._template

    @property
    def definition(self) -> str:
        """The whole tokenizer as the tokenizers library writes it down (``tokenizer.json``)."""
        return str(self._inner.to_str())

    @property
    def templates(self) -> dict[str, str]:
        """The sources of the chat templates in use by name, empty if there can be none."""
        found = self._template.all if self._template else ()
        return {name: own.source for name, own in zip(("default", "tool_use"), found, strict=False)}

    @property
    def chat_template(self) -> str | None:
        """The source of the model's own chat template, None if it has none."""
        return self._template.source if self._template and self.has_template else None

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself begins every text with the BOS token."""
        tokens = self._inner.encode("a", add_special_tokens=True).ids
        return self.bos_id is not None and tokens[:1] == [self.bos_id]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the tokens of a text; ``special`` begins them with BOS, if the model wants it.

        Raises:
            UsageError: if the text is none, as what is read from bytes that are not UTF-8.
        """
        _refuse_half_characters(text)
        found = self.encode_many([text])[0].ids
        tokens: list[int] = (self.with_bos(found) if special else found).tolist()
        return tokens

    def encode_many(self, texts: Sequence[str]) -> list[Encoded]:
        """Return tokens and places of many texts, using all cores.

        Raises:
            ModelError: if the tokenizer fails, or makes a token that the model does not know.
        """
        found = self._locator.encode(texts)
        for each in found if self._embeddings is not None else ():
            self._refuse_unknown(each.ids)
        return found

    def _refuse_unknown(self, tokens: Ids) -> None:
        if self._embeddings is None or not len(tokens):
            return
        if (token := int(tokens.max())) >= self._embeddings:
            raise ModelError(
                f"The text has {short(self.text_of(token))}, which is token {token} of the "
                f"tokenizer, and the model has embeddings for {self._embeddings} tokens. "
                "Leave it out, or take the tokenizer that belongs to the model."
            )

    def with_bos(self, tokens: Ids) -> Ids:
        """Return the tokens with one BOS in front, if the text has any there or the tokenizer
        adds one.
        """
        others = np.flatnonzero(tokens != self.bos_id)[:1]
        own = int(others[0]) if len(others) else len(tokens)
        if self.bos_id is None or own == 1 or not (own or self.adds_bos):
            return tokens
        if not own and self._begins_after_space(tokens):
            return tokens
        return np.concatenate([np.array([self.bos_id], np.int32), tokens[own:]])

    def _begins_after_space(self, tokens: Ids) -> bool:
        """Whether a template wrote BOS, with white space before it."""
        first = np.flatnonzero(tokens[:_SPACES] == self.bos_id)[:1]
        return bool(len(first)) and self.decode(tokens[: first[0]].tolist()).isspace()

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special tokens included."""
        ids = [int(token) for token in tokens]
        return str(self._inner.decode(ids, skip_special_tokens=False))

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Return a conversation as the text that the model reads."""
        return self.template.render(messages, add_generation_prompt=add_generation_prompt)

    def prompt_tokens(self, prompt: str | Sequence[Message], cut: str = "") -> list[int]:
        """Return what generation starts from: a text as it stands, or a chat up to the answer.

        ``cut`` is left out of the generation prompt's end, as it was in training.

        Raises:
            UsageError: as :meth:`encode` does, with the place in the text that was given.
        """
        for given in () if isinstance(prompt, str) else (x.get("content") for x in prompt):
            if isinstance(given, str):
                _refuse_half_characters(given)
        text = prompt if isinstance(prompt, str) else self.render(prompt, True).removesuffix(cut)
        return self.encode(text, special=True)

    def text_of(self, token: int | None) -> str | None:
        """Return a token as its text in the vocabulary, None for no token."""
        return None if token is None else str(self._inner.id_to_token(token))

    @cached_property
    def end_texts(self) -> tuple[str, ...]:
        """The end tokens as they are written in a text."""
        return tuple(text for text, token in self._added.items() if token in self.end_tokens)

    def special_tokens(self) -> dict[str, str | tuple[str, ...] | None]:
        """Return the tokens that begin and end texts and turns, for the receipt."""
        bos = self.text_of(self.bos_id) if self.adds_bos else None
        eos = self.text_of(self.eos_id)
        return {"added in front": bos, "eos": eos, "ends a turn": tuple(sorted(self.end_texts))}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of everything that decides which tokens a chat or a text becomes."""
        template = self._template and (
            [own.source for own in self._template.all],
            dict(self._template.special_tokens),
        )
        parts = (self._inner.to_str(), template, self.has_template, self.adds_bos, self.bos_id,
                 self.eos_id, self.turn_end, sorted(self.end_texts), sorted(self.controls),
                 *(() if self._embeddings is None else (self._embeddings,)))  # fmt: skip
        return sha256(repr(parts).encode()).hexdigest()

    def _find_template(self, inner: Any) -> tuple[bool, ChatTemplate | None]:
        named = inner.special_tokens_map.items()
        texts = {str(name): str(text) for name, text in named if isinstance(text, str)}
        if inner.chat_template:
            return True, own_template(inner.chat_template, texts)
        end = "<|im_end|>" if "<|im_end|>" in self._added else self.text_of(self.eos_id)
        return False, default_template(end, texts) if end else None


def _refuse_half_characters(text: str) -> None:
    if problem := half_character(text):
        raise UsageError(problem)


def load_tokenizer(folder: Path, embeddings: int | None = None) -> Tokenizer:
    """Read the tokenizer and the chat template of the model in ``folder``, or in a GGUF file.

    ``embeddings`` is how many tokens the model knows; a tokenizer may have special tokens beyond
    them, as long as no text uses them.

    Raises:
        ModelError: if the files are missing, damaged, or would need code from the folder, or if
            the tokenizer is that of another model.
    """
    set_environment()  # transformers loads torch
    if folder.is_file():
        found = read_gguf_tokenizer(folder)
        return Tokenizer(found.inner, folder, embeddings, found.ends)
    _check_files(folder)
    try:
        with refused_panics():
            inner = _read(folder)
    except ModelError:
        raise
    # tokenizers raises plain Exception for a damaged file.
    except Exception as error:
        needs_code = "trust_remote_code" in str(error)
        because = (
            "it needs code from the model's folder, which is never run" if needs_code else error
        )
        raise ModelError(f"The tokenizer in {folder} cannot be read: {because}.") from error
    if not inner.is_fast:
        raise ModelError(
            f"The tokenizer in {folder} has no fast version, which tells where in the text each"
            " token stands. Add its tokenizer.json."
        )
    return Tokenizer(inner, folder, embeddings)


def _read(folder: Path) -> Any:
    """Return the tokenizer that transformers makes of a folder.

    ``AutoTokenizer`` loads torch and its compiler, two seconds of a processor's time, to look at
    the model's class. A Llama whose tokenizer is declared as a plain one gets this class from it.
    """
    declared = _json(folder / "tokenizer_config.json")
    if (
        declared.get("tokenizer_class") in _PLAIN
        and "auto_map" not in declared
        and _json(folder / "config.json").get("model_type") == "llama"
        and (folder / "tokenizer.json").is_file()
    ):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )


def _json(path: Path) -> dict[str, Any]:
    """Return the object in a file; nothing where there is none that can be read."""
    try:
        found = load_json(path, _LARGEST)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _checked_embeddings(inner: Any, folder: Path, embeddings: int | None) -> int | None:
    """Return the number of embeddings if the tokenizer has special tokens beyond them."""
    if embeddings is None:
        return None
    most = max(inner.get_vocab(with_added_tokens=False).values(), default=-1)
    if most >= embeddings:
        raise ModelError(
            f"The tokenizer in {folder} has tokens up to number {most}, and the model has "
            f"embeddings for {embeddings}: it belongs to another model. Copy its files again."
        )
    return embeddings if any(x >= embeddings for x in inner.get_added_tokens_decoder()) else None


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"There is no model folder at {folder}.")
    if not any((folder / name).is_file() for name in _FILES):
        raise ModelError(
            f"{folder} has no tokenizer. Looked for {', '.join(_FILES)}; found"
            f" {', '.join(sorted(entry.name for entry in folder.iterdir())) or 'nothing'}."
        )
    _check_named_templates(folder / "tokenizer_config.json")
    check_token_numbers(folder)


def _check_named_templates(path: Path) -> None:
    """Refuse a list of templates that transformers would stumble over without saying why."""
    try:
        found = load_json(path, _LARGEST)["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    named = found if isinstance(found, list) else []
    if not all(isinstance(entry, dict) and {"name", "template"} <= entry.keys() for entry in named):
        raise ModelError(f"The chat_template in {path} must be a text, or a list of objects with"
                         " name and template.")  # fmt: skip
