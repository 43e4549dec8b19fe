"""What a GGUF file says of a model's tokenizer: vocabulary, special tokens, chat templates."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune.errors import ModelError
from edgetune.exporters.gguf.vocabulary import vocabulary_metadata
from edgetune.tensors.gguf.writer import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerFacts:
    """A model's tokenizer as training loads it; tokens are given by their numbers."""

    definition: Mapping[str, Any]
    """``tokenizer.json``, with what other files of the model change in it."""
    bos: int | None
    eos: int | None
    pad: int | None
    turn_end: int | None
    """The token that ends an answer in a chat."""
    ends: list[int]
    end_texts: list[str]
    """The tokens at which an answer ends, as they are written in a text."""
    adds_bos: bool
    """Whether the tokenizer itself begins every text with the BOS token."""
    templates: Mapping[str, str]
    """The chat templates in use by name: the model's own, or the one in their place."""

    @classmethod
    def read(cls, folder: Path) -> TokenizerFacts:
        """Load a model's tokenizer in a process of its own.

        Raises:
            ModelError: if it cannot be loaded.
        """
        command = [sys.executable, "-m", "edgetune.exporters.gguf.tokenizer_process", str(folder)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ModelError(f"The tokenizer in {folder} cannot be read: {' '.join(said)}.")
        facts = json.loads(done.stdout)
        if "error" in facts:
            raise ModelError(facts["error"])
        return cls(**facts)

    def metadata(self, size: int) -> dict[str, Value]:
        """Return everything a file says; ``size`` is the number of the model's embeddings.

        Raises:
            UsageError: if llama.cpp cannot make the same tokens of a text.
        """
        numbers = {
            f"tokenizer.ggml.{key}": Value("uint32", number)
            for key, number in self._special()
            if number is not None and number < size
        }
        return {
            **vocabulary_metadata(self.definition, size),
            **numbers,
            "tokenizer.ggml.add_bos_token": Value("bool", self.adds_bos),
            "tokenizer.ggml.add_eos_token": Value("bool", False),
            **self._template_metadata(),
        }

    def _special(self) -> Iterator[tuple[str, int | None]]:
        yield "bos_token_id", self.bos
        eos = self.turn_end if self.eos is None else self.eos
        yield "eos_token_id", eos
        yield "padding_token_id", self.pad
        unknown = self.definition["model"].get("unk_token")
        yield "unknown_token_id", self.definition["model"]["vocab"].get(unknown)
        others = [token for token in self.ends if token not in (eos, self.turn_end)]
        if self.turn_end != eos:
            yield "eot_token_id", self.turn_end
        elif others:
            yield "eot_token_id", others.pop(0)
        if others:
            yield "eom_token_id", others[0]

    def _template_metadata(self) -> dict[str, Value]:
        prefix = "tokenizer.chat_template"
        named = {name: text for name, text in self.templates.items() if name != "default"}
        found = {f"{prefix}.{name}": Value("string", text) for name, text in named.items()}
        if named:
            found[f"{prefix}s"] = Value("string", sorted(named))
        if "default" in self.templates:
            found[prefix] = Value("string", self.templates["default"])
        return found
