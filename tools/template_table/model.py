"""A tokenizer of single bytes for a structure: what a template does depends on no vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Bpe

from edgetune.data import Tokenizer, load_tokenizer
from template_table.structure import Structure


def tokenizer_of(structure: Structure, folder: Path) -> Tokenizer:
    """Write a tokenizer with the tokens and the template of a structure, and read it as any other."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Bpe(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    named = [*structure.special, structure.eos, *filter(None, [structure.bos])]
    bpe.add_special_tokens([AddedToken(text) for text in dict.fromkeys(named)])
    bpe.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": structure.eos}
    if structure.bos is not None:
        settings["bos_token"] = structure.bos
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(structure.template, encoding="utf-8")
    if structure.ends:
        ends = [bpe.token_to_id(text) for text in structure.ends]
        generation = json.dumps({"eos_token_id": ends})
        (folder / "generation_config.json").write_text(generation, encoding="utf-8")
    return load_tokenizer(folder)
