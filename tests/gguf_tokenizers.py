"""Tokenizers for GGUF files of tests: cut as published ones are, or made of scored pieces."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPACE = "\u2581"
GPT2_TYPE, LLAMA_TYPE = "gpt2", "llama"
# As the published files of each model have it.
PUBLISHED: dict[str, Any] = {
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
    "bloom": " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",
    "deepseek-v3": (
        "\\p{N}{1,3}",
        "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        ("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
         "[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"),
    ),
}  # fmt: skip
PUBLISHED["lfm2"] = PUBLISHED["glm4"] = PUBLISHED["llama-bpe"]
PUBLISHED["hunyuan-dense"] = PUBLISHED["deepseek-v3"]


def texts() -> Iterator[str]:
    """Yield texts that are cut in different places by different rules."""
    yield from ("", "Hello world", "it's WE'RE don'T 1234567 3.14", "  two  spaces \n\n\n end ",
                "x\r\ny\tz", "日本語 Ünïcödé \u0301 e\u0301", "a//b/// c", "😀👩‍👩‍👧 ٣٤٥", "\u00a0\u3000",
                "<|im_start|>user\nhi<|im_end|>\n", SPACE, "<0x0A>")  # fmt: skip
    draw, pool = random.Random(0), "abcXYZ 0129'\n\t.,!?-_/éß漢😀ñ\u0301\u00a0İ"
    for _ in range(150):
        yield "".join(draw.choices(pool, k=draw.randrange(1, 50)))


def published(name: str) -> Tokenizer:
    """Return a tokenizer that cuts as a published one does, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    rule = PUBLISHED[name]
    if isinstance(rule, str | tuple):
        rules = (rule,) if isinstance(rule, str) else rule
        splits = [pre_tokenizers.Split(Regex(each), "isolated") for each in rules]
        after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, after])
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


def byte_level(tokenizer: Tokenizer, name: str, **more: Any) -> dict[str, Any]:
    """Return what a file says of a byte-level tokenizer."""

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


WORDS = ("hello", "world", "the", "there", "then", "low", "er", "lower", "est", "lowest", "el", "lo",
         "ll", "he", "th", "in", "ing", "or", "wor", "ld")  # fmt: skip


def sentencepiece() -> tuple[list[str], list[float], list[int]]:
    """Return tokens, scores and kinds as a SentencePiece model has them."""
    letters = sorted({letter for word in WORDS for letter in word})
    draw = random.Random(1)
    pieces = [SPACE, *letters, *WORDS, *(SPACE + word for word in WORDS), SPACE * 2]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    scores = [0.0] * 259 + [-float(draw.randrange(1000)) for _ in pieces]
    return tokens, scores, [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
