"""A tokenizer of single letters, for small random models that have to read a text."""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
BOS = SPECIAL.index("<s>")


def with_letters(folder: Path, *, adds_bos: bool = False) -> Path:
    """Put a tokenizer of fewer than 97 tokens into a model's folder, and return the folder."""
    words = [*SPECIAL, *string.ascii_letters, " ", *".,;:!?'-"]
    found = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    found.pre_tokenizer = Split(Regex("."), "isolated")
    if adds_bos:
        found.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    found.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
