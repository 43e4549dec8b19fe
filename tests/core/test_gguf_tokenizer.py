"""The tokenizer of a GGUF file makes the tokens that the model was trained with."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_gguf
from gguf_tokenizers import (
    CHATML,
    LLAMA_TYPE,
    PUBLISHED,
    SPACE,
    WORDS,
    byte_level,
    gemma4,
    published,
    sentencepiece,
    texts,
)

from edgetune.data.gguf_cutting import CUTS
from edgetune.data.gguf_rules import rule_of
from edgetune.data.gguf_tokenizer import read_gguf_tokenizer, save_gguf_tokenizer
from edgetune.data.tokenizer import load_tokenizer
from edgetune.errors import ModelError, UsageError
from edgetune.exporters.gguf.pretokenizers import pretokenizer_name
from edgetune.tensors.gguf.reader import read_gguf


@pytest.mark.parametrize("name", PUBLISHED)
def test_byte_level_tokens_are_those_of_the_published_rule(name: str, tmp_path: Path) -> None:
    theirs = published(name)
    file = write_gguf(tmp_path / "model.gguf", "llama", byte_level(theirs, name), {})

    ours = load_tokenizer(file)

    for text in texts():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.adds_bos == CUTS[name].adds_bos
    assert ours.text_of(ours.eos_id) == "<|im_end|>"
    assert ours.chat_template == CHATML
    assert ours.decode(ours.encode("Ünïcödé 漢 x")) == "Ünïcödé 漢 x"
    assert "[PAD999]" not in ours.end_texts


SAME = {"hunyuan-dense": "deepseek-v3", "lfm2": "dbrx", "glm4": "dbrx", "llama-bpe": "dbrx"}
"""Names that llama.cpp computes alike, as long as no whole word is a token before any merge."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_rule_is_written_by_llama_cpp_s_name(name: str, tmp_path: Path) -> None:
    """From the model's folder, and from its GGUF file once that was opened."""
    theirs = published(name)
    wanted = SAME.get(name, name)
    assert pretokenizer_name(json.loads(theirs.to_str())) == wanted
    file = write_gguf(tmp_path / "model.gguf", "llama", byte_level(theirs, name), {})
    (tmp_path / "folder").mkdir()
    save_gguf_tokenizer(file, tmp_path / "folder")

    saved = json.loads((tmp_path / "folder" / "tokenizer.json").read_text())
    assert CUTS[pretokenizer_name(saved)].expressions == CUTS[wanted].expressions


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("deepseek-v3", {r"\r": "\r", r"\n": "\n"}),
        ("deepseek-coder", {"[\r\n]": r"[\r\n]"}),
        ("bloom", {"[.,!?": ".,!?", "])]": ")]"}),
    ],
)
def test_rules_that_are_written_otherwise_are_the_same(name: str, change: dict[str, str]) -> None:
    tokenizer = json.loads(published(name).to_str())
    for step in tokenizer["pre_tokenizer"]["pretokenizers"][:-1]:
        for one, other in change.items():
            step["pattern"]["Regex"] = step["pattern"]["Regex"].replace(one, other)

    assert pretokenizer_name(tokenizer) == name


def test_digits_that_no_merge_joins_may_stand_alone() -> None:
    """As in DeepSeek's published files, where llama.cpp lets them stand together."""
    tokenizer = json.loads(published("deepseek-llm").to_str())
    steps = tokenizer["pre_tokenizer"]["pretokenizers"]
    steps[-2] = {"type": "Digits", "individual_digits": True}
    merges = tokenizer["model"]["merges"]
    assert any(
        "".join(pair).isdecimal() for pair in merges
    )  # trained on digits that stand together
    with pytest.raises(UsageError, match=r"None of llama\.cpp's names that are known here"):
        pretokenizer_name(tokenizer)

    apart = [pair for pair in merges if not "".join(pair).isdecimal()]
    tokenizer["model"]["merges"] = apart
    assert pretokenizer_name(tokenizer) == "deepseek-llm"
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in apart]
    assert pretokenizer_name(tokenizer) == "deepseek-llm"


LAST_NORM = {"output_norm.weight": (np.zeros(1, np.float32), "F32")}
"""By this name Ollama's own files of LFM2 are known."""


@pytest.mark.parametrize(
    ("architecture", "said", "tensors", "rule"),
    [
        ("lfm2", "default", LAST_NORM, "lfm2"),
        ("lfm2", "gpt-2", LAST_NORM, "lfm2"),
        ("lfm2", None, {}, "lfm2"),
        ("qwen2", None, {}, "qwen2"),
        ("starcoder2", "", {}, "smollm"),
        ("phi2", "default", {}, "gpt-2"),
    ],
)
def test_files_that_do_not_say_the_rule_are_cut_as_their_models_are(
    architecture: str, said: str | None, tensors: dict[str, Any], rule: str, tmp_path: Path
) -> None:
    theirs = published(rule)
    metadata = byte_level(theirs, rule) | {"tokenizer.ggml.pre": said}
    kept = {key: value for key, value in metadata.items() if value is not None}
    ours = load_tokenizer(write_gguf(tmp_path / "model.gguf", architecture, kept, tensors))

    for text in texts():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


@pytest.mark.parametrize(
    ("architecture", "said", "rule"),
    [
        ("gptoss", "gpt-2", "gpt-4o"),
        ("gpt-oss", "default", "gpt-4o"),
        ("mpt", "", "mpt"),
        ("lfm2", "qwen2", "qwen2"),
        ("llama", "smollm", "smollm"),
    ],
)
def test_what_a_file_says_of_the_rule_counts_but_in_ollama_s_own(
    architecture: str, said: str, rule: str, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "model.gguf", architecture, {"tokenizer.ggml.pre": said}, {})

    assert rule_of(read_gguf(file), []) == rule
    assert rule in CUTS


def test_a_llama_3_that_says_neither_its_rule_nor_the_end_of_a_turn(tmp_path: Path) -> None:
    theirs, turn_end = published("llama-bpe"), 128_009
    metadata = byte_level(theirs, "default")
    metadata.pop("tokenizer.chat_template")
    for key, more in {"tokens": "<|eot_id|>", "token_type": 3}.items():
        before = metadata[f"tokenizer.ggml.{key}"][:-1]
        fill = range(len(before), turn_end)
        filling = [f"<filling {x}>" for x in fill] if key == "tokens" else [1] * len(fill)
        metadata[f"tokenizer.ggml.{key}"] = [*before, *filling, more]
    ours = load_tokenizer(write_gguf(tmp_path / "model.gguf", "llama", metadata, {}))

    for text in ("x=1234567 I'LL", *texts()):
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.end_tokens == {2, turn_end}
    assert ours.text_of(ours.eos_id) == "<|im_end|>"
    assert ours.adds_bos


def test_all_ends_that_a_file_lists_end_an_answer(tmp_path: Path) -> None:
    theirs = published("gpt-2")
    more = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.add_bos_token": True}
    file = write_gguf(tmp_path / "model.gguf", "llama", byte_level(theirs, "gpt-2", **more), {})

    ours = load_tokenizer(file)

    assert {0, 2} <= ours.end_tokens
    assert ours.adds_bos
    assert ours.encode("a", special=True)[0] == ours.bos_id


def test_a_saved_tokenizer_is_the_same_in_a_folder(tmp_path: Path) -> None:
    theirs = published("qwen2")
    file = write_gguf(tmp_path / "model.gguf", "llama", byte_level(theirs, "qwen2"), {})
    folder = tmp_path / "folder"
    folder.mkdir()

    save_gguf_tokenizer(file, folder)

    ours, saved = load_tokenizer(file), load_tokenizer(folder)
    assert saved.fingerprint == ours.fingerprint
    assert saved.end_tokens == ours.end_tokens
    for text in texts():
        assert saved.encode(text) == ours.encode(text)


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
    tokens, scores, kinds = sentencepiece()
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


@pytest.mark.parametrize("kind", ["gemma4", LLAMA_TYPE])
def test_letters_are_merged_as_gemma_4_merges_them(kind: str, tmp_path: Path) -> None:
    """Also where a file, as Ollama's do, names another kind, and lists tokens without embedding."""
    theirs = gemma4()
    definition = json.loads(theirs.to_str())["model"]
    tokens = sorted(definition["vocab"], key=definition["vocab"].__getitem__)
    kinds = [6 if token.startswith("<0x") else 3 if number < 6 else 1
             for number, token in enumerate(tokens)]  # fmt: skip
    metadata = {
        "tokenizer.ggml.model": kind, "tokenizer.ggml.pre": "gemma4",
        "tokenizer.ggml.tokens": [*tokens, "<image>"], "tokenizer.ggml.token_type": [*kinds, 3],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in definition["merges"]],
        "tokenizer.ggml.bos_token_id": 2, "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.eos_token_ids": [1, 5],
    }  # fmt: skip
    embedding = np.zeros((len(tokens), 1), np.float32)
    tensors = {"token_embd.weight": (embedding, "F32")}
    ours = load_tokenizer(write_gguf(tmp_path / "model.gguf", "gemma4", metadata, tensors))

    for text in texts():
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
    assert ours.encode("a", special=True)[0] == 2
    assert ours.decode(ours.encode("Two  words, é漢")) == "Two  words, é漢"
    assert {1, 5} <= ours.end_tokens
    assert ours.encode("<image>") != [len(tokens)]


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer"),
        ({"tokenizer.ggml.model": "bert"}, "of the kind 'bert'. Supported: gpt2"),
        ({"tokenizer.ggml.model": LLAMA_TYPE}, "no score for each of its tokens"),
        ({"tokenizer.ggml.pre": None}, r"by which rule its tokenizer cuts text \(.*pre is missing"),
        ({"tokenizer.ggml.pre": "default"}, r"pre is 'default'\), and models of .* llama are cut"),
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
    metadata = byte_level(published("gpt-2"), "gpt-2") | changes
    kept = {key: value for key, value in metadata.items() if value is not None}
    file = write_gguf(tmp_path / "model.gguf", "llama", kept, {})

    with pytest.raises(ModelError, match=because):
        read_gguf_tokenizer(file)
