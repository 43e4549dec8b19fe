"""The tokenizer of a GGUF file makes the tokens that the model was trained with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_gguf
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from edgetune.data.gguf_cutting import CUTS
from edgetune.data.gguf_tokenizer import read_gguf_tokenizer, save_gguf_tokenizer
from edgetune.data.tokenizer import load_tokenizer
from edgetune.errors import ModelError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPACE = "\u2581"
GPT2_TYPE, LLAMA_TYPE = "gpt2", "llama"
# As the published files of each model have it.
PUBLISHED = {
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "smollm": {"type": "Sequence", "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]},
    "llama-bpe": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                 " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "qwen2": "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
             " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
    "tekken": "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
              "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
              "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
}  # fmt: skip


def texts() -> Iterator[str]:
    """Yield texts that are cut in different places by different rules."""
    yield from ("", "Hello world", "it's WE'RE don'T 1234567 3.14", "  two  spaces \n\n\n end ",
                "x\r\ny\tz", "日本語 Ünïcödé \u0301 e\u0301", "a//b/// c", "😀👩‍👩‍👧 ٣٤٥", "\u00a0\u3000",
                "<|im_start|>user\nhi<|im_end|>\n", SPACE, "<0x0A>")  # fmt: skip
    draw, pool = random.Random(0), "abcXYZ 0129'\n\t.,!?-_/éß漢😀ñ\u0301\u00a0İ"
    for _ in range(150):
        yield "".join(draw.choices(pool, k=draw.randrange(1, 50)))


def _published(name: str) -> Tokenizer:
    """Return a tokenizer that cuts as a published one does, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    rule = PUBLISHED[name]
    if isinstance(rule, str):
        split = pre_tokenizers.Split(Regex(rule), "isolated")
        after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, after])
    elif name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*texts()] * 3, trainer)
    return tokenizer


def _bpe(tokenizer: Tokenizer, name: str, **more: Any) -> dict[str, Any]:
    """Return what a file says of a byte-level tokenizer."""
    import json

    definition = json.loads(tokenizer.to_str())
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    special = {added["content"] for added in definition["added_tokens"]}
    return {
        "tokenizer.ggml.model": GPT2_TYPE,
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [*tokens, "[PAD999]"],
        "tokenizer.ggml.token_type": [*(3 if token in special else 1 for token in tokens), 5],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in definition["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": vocabulary["<|im_start|>"],
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
        "tokenizer.chat_template": CHATML,
    } | more


@pytest.mark.parametrize("name", PUBLISHED)
def test_byte_level_tokens_are_those_of_the_published_rule(name: str, tmp_path: Path) -> None:
    published = _published(name)
    file = write_gguf(tmp_path / "model.gguf", "llama", _bpe(published, name), {})

    ours = load_tokenizer(file)

    for text in texts():
        assert ours.encode(text) == published.encode(text, add_special_tokens=False).ids, text
    assert ours.adds_bos == CUTS[name].adds_bos
    assert ours.text_of(ours.eos_id) == "<|im_end|>"
    assert ours.chat_template == CHATML
    assert ours.decode(ours.encode("Ünïcödé 漢 x")) == "Ünïcödé 漢 x"
    assert "[PAD999]" not in ours.end_texts


def test_all_ends_that_a_file_lists_end_an_answer(tmp_path: Path) -> None:
    published = _published("gpt-2")
    more = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    file = write_gguf(tmp_path / "model.gguf", "llama", _bpe(published, "gpt-2", **more), {})

    ours = load_tokenizer(file)

    assert {0, 2} <= ours.end_tokens
    assert ours.adds_bos
    assert ours.encode("a", special=True)[0] == ours.bos_id


def test_a_saved_tokenizer_is_the_same_in_a_folder(tmp_path: Path) -> None:
    published = _published("qwen2")
    file = write_gguf(tmp_path / "model.gguf", "llama", _bpe(published, "qwen2"), {})
    folder = tmp_path / "folder"
    folder.mkdir()

    save_gguf_tokenizer(file, folder)

    ours, saved = load_tokenizer(file), load_tokenizer(folder)
    assert saved.fingerprint == ours.fingerprint
    assert saved.end_tokens == ours.end_tokens
    for text in texts():
        assert saved.encode(text) == ours.encode(text)


WORDS = ("hello", "world", "the", "there", "then", "low", "er", "lower", "est", "lowest", "el", "lo",
         "ll", "he", "th", "in", "ing", "or", "wor", "ld")  # fmt: skip


def _sentencepiece() -> tuple[list[str], list[float], list[int]]:
    """Return tokens, scores and kinds as a SentencePiece model has them."""
    letters = sorted({letter for word in WORDS for letter in word})
    draw = random.Random(1)
    pieces = [SPACE, *letters, *WORDS, *(SPACE + word for word in WORDS), SPACE * 2]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(draw.randrange(1000)) for _ in pieces]
    return tokens, scores, [2, 3, 3, *[6] * 256, *[1] * len(pieces)]


def _reference(text: str, tokens: list[str], scores: list[float], *, prefix: bool) -> list[int]:
    """Merge as SentencePiece does: always the neighbours whose token scores best, leftmost first."""
    number = {token: index for index, token in enumerate(tokens)}
    pieces = list(((SPACE if prefix and text else "") + text).replace(" ", SPACE))
    while True:
        pairs = [(a + b, at) for at, (a, b) in enumerate(pairwise(pieces))]
        found = [(-scores[number[pair]], at) for pair, at in pairs if pair in number]
        if not found:
            break
        _, at = min(found)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    ids: list[int] = []
    for piece in pieces:
        unknown = [number[f"<0x{byte:02X}>"] for byte in piece.encode()]
        ids += [number[piece]] if piece in number else unknown
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_tokens_are_merged_by_score(prefix: bool, tmp_path: Path) -> None:
    tokens, scores, kinds = _sentencepiece()
    assert len(set(scores[259:])) > 30
    metadata = {
        "tokenizer.ggml.model": LLAMA_TYPE, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.add_space_prefix": prefix,
    }  # fmt: skip
    ours = load_tokenizer(write_gguf(tmp_path / "model.gguf", "llama", metadata, {}))

    draw = random.Random(2)
    for text in [" ".join(draw.choices(WORDS, k=6)) for _ in range(100)] + ["  ", "é漢\n", "held"]:
        assert ours.encode(text) == _reference(text, tokens, scores, prefix=prefix), text
        assert ours.decode(ours.encode(text)) == text
    assert ours.adds_bos
    assert ours.encode("hello", special=True)[0] == 1


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "of the kind 'bert'. Supported: gpt2"),
        ({"tokenizer.ggml.model": LLAMA_TYPE}, "no score for each of its tokens"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "by the rule 'unheard-of', which is not known"),
        ({"tokenizer.ggml.merges": ["x yzzy"]}, "cannot be read"),
        ({"tokenizer.ggml.merges": ["nospace"]}, "cannot be read"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "says of 2 tokens"),
        ({"tokenizer.ggml.eos_token_id": 10_000}, "names the token 10000"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "must be a list of str"),
    ],
)
def test_what_no_tokenizer_can_be_made_of(
    tmp_path: Path, changes: dict[str, Any], because: str
) -> None:
    metadata = _bpe(_published("gpt-2"), "gpt-2") | changes
    kept = {key: value for key, value in metadata.items() if value is not None}
    file = write_gguf(tmp_path / "model.gguf", "llama", kept, {})

    with pytest.raises(ModelError, match=because):
        read_gguf_tokenizer(file)
