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
# U+1F7D, U+1FD3 and U+1FDB look like letters that come before others of their ranges
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-"
    "\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90"
    "-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-"
    "\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    "\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_EAST = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
PUBLISHED["deepseek-llm"] = (
    "[\r\n]", f"\\s?[{_CASED}]+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", "\\s+$", _EAST, "\\p{N}+",
)  # fmt: skip
PUBLISHED["deepseek-coder"] = ("[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", _EAST, "\\p{N}")
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


def gemma4() -> Tokenizer:
    """Return a tokenizer like Gemma 4's: BPE of letters, in which spaces are letters too."""
    model = models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*names, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False, limit_alphabet=60,
    )  # fmt: skip
    tokenizer.train_from_iterator([*texts()] * 3, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [x for x in definition["added_tokens"] if x["content"] in names]
    return Tokenizer.from_str(json.dumps(definition))


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
