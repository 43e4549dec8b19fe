"""What a GGUF file says of tokenizers, beside the tokenizers as they are loaded for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import edgetune_profiles
from edgetune.data import load_tokenizer
from edgetune.errors import ModelError, UsageError
from edgetune.exporters.gguf.pretokenizers import pretokenizer_name
from edgetune.exporters.gguf.tokenizer import TokenizerFacts

TINY = Path(edgetune_profiles.__file__).parent / "tiny"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
QWEN2, LLAMA3 = WORDS + r"\p{N}" + TAIL, WORDS + r"\p{N}{1,3}" + TAIL
TEXTS = ["the house has a door and the door has a key", "ab ba abba", "It's 1,234 o'clock"]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}: {{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant: {% endif %}"
)


def split(*regexes: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in regexes
    ]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


def named(pre_tokenizer: dict[str, Any], ignore_merges: bool = False) -> str:
    model = {"type": "BPE", "ignore_merges": ignore_merges}
    return pretokenizer_name({"model": model, "pre_tokenizer": pre_tokenizer})


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (BYTE_LEVEL, False, "gpt-2"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]}, False, "smollm"),
        (split(QWEN2), False, "qwen2"),
        (split(LLAMA3), True, "llama-bpe"),
        (split(LLAMA3), False, "dbrx"),
        (split(LLAMA3.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)",
            "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")), True, "llama-bpe"),
    ],
)  # fmt: skip
def test_the_way_that_texts_are_cut_has_its_name(
    pre_tokenizer: dict[str, Any], ignore_merges: bool, name: str
) -> None:
    assert named(pre_tokenizer, ignore_merges) == name


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        split(r"\w+"),
        split(QWEN2, r"\d"),
        {"type": "Whitespace"},
        {**BYTE_LEVEL, "add_prefix_space": True},
        {"type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Removed", "invert": False},
    ],
)
def test_a_way_without_a_name_is_refused(pre_tokenizer: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"has no name for how .* cuts texts .*--to hf"):
        named(pre_tokenizer)


def test_whole_words_before_merges_are_no_matter_of_every_name() -> None:
    with pytest.raises(UsageError, match="has no name"):
        named(BYTE_LEVEL, ignore_merges=True)


def _files(folder: Path, inner: Tokenizer, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    inner.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _byte_level() -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|eos|>", "<|start|>", "<|end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_tokens(["  "])
    return inner


def _pieces(prepend: bool) -> Tokenizer:
    """Return a tokenizer as transformers makes them of SentencePiece's."""
    letters = sorted({x for text in TEXTS for x in text.replace(" ", "▁")} | {"▁"})
    merges = [("h", "e"), ("t", "he"), ("▁", "the"), ("a", "b"), ("b", "a"), ("o", "r")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{x:02X}>" for x in range(256)), *letters]
    tokens += [first + second for first, second in merges]
    vocab = {token: number for number, token in enumerate(tokens)}
    inner = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    steps: list[Any] = [normalizers.Prepend("▁")] if prepend else []
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return inner


def test_a_byte_level_vocabulary_is_written_with_its_merges(tmp_path: Path) -> None:
    folder = _files(tmp_path / "m", _byte_level(), bos_token="<|begin|>", eos_token="<|eos|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    found = TokenizerFacts.read(folder).metadata(330)
    loaded = load_tokenizer(folder)
    ggml = {k.removeprefix("tokenizer.ggml."): v.content for k, v in found.items()}
    saved = json.loads((folder / "tokenizer.json").read_text())

    assert ggml["model"] == "gpt2"
    assert ggml["pre"] == "gpt-2"
    assert [merge.split(" ") for merge in ggml["merges"]] == saved["model"]["merges"]
    assert ggml["tokens"][: len(loaded)] == [loaded.text_of(i) for i in range(len(loaded))]
    assert ggml["tokens"][len(loaded) :] == [f"[PAD{i}]" for i in range(len(loaded), 330)]
    assert ggml["token_type"][:5] == [3, 3, 3, 3, 1]
    assert ggml["token_type"][len(loaded) - 1] == 4
    assert set(ggml["token_type"][len(loaded) :]) == {5}
    assert ggml["bos_token_id"] == loaded.bos_id
    assert ggml["eos_token_id"] == loaded.eos_id
    assert {ggml["eos_token_id"], ggml["eot_token_id"]} == loaded.end_tokens
    assert found["tokenizer.chat_template"].content == TEMPLATE


@pytest.mark.parametrize("prepend", [True, False])
def test_pieces_are_written_with_scores_in_the_order_of_merges(
    tmp_path: Path, prepend: bool
) -> None:
    folder = _files(tmp_path / "m", _pieces(prepend), bos_token="<s>", eos_token="</s>",
                    unk_token="<unk>")  # fmt: skip
    found = TokenizerFacts.read(folder).metadata(400)
    ggml = {k.removeprefix("tokenizer.ggml."): v.content for k, v in found.items()}
    scores = dict(zip(ggml["tokens"], ggml["scores"], strict=True))

    assert ggml["model"] == "llama"
    assert ggml["add_space_prefix"] == prepend
    assert ggml["unknown_token_id"] == 0
    assert ggml["token_type"][:4] == [2, 3, 3, 6]
    order = ["he", "the", "▁the", "ab", "ba", "or", "▁"]
    assert sorted(order, key=lambda token: -scores[token]) == order


@pytest.mark.parametrize("given", [True, False, None])
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_bos_is_added_where_the_loaded_tokenizer_adds_it(
    tmp_path: Path, given: bool | None, kind: str
) -> None:
    from tokenizers.processors import TemplateProcessing

    inner = _byte_level() if kind == "bytes" else _pieces(True)
    bos = "<|begin|>" if kind == "bytes" else "<s>"
    if given is None:
        number = inner.token_to_id(bos)
        inner.post_processor = TemplateProcessing(f"{bos} $A", None, [(bos, number)])
    config = {} if given is None else {"add_bos_token": given}
    eos = "<|eos|>" if kind == "bytes" else "</s>"
    folder = _files(tmp_path / "m", inner, bos_token=bos, eos_token=eos, **config)

    assert TokenizerFacts.read(folder).adds_bos == load_tokenizer(folder).adds_bos


def test_the_built_in_model_ends_where_training_ends() -> None:
    files, loaded = TokenizerFacts.read(TINY), load_tokenizer(TINY)

    assert files.turn_end == loaded.turn_end
    assert set(files.end_texts) == set(loaded.end_texts)
    assert files.templates == {"default": loaded.template.source}


def test_a_model_without_a_template_gets_the_one_it_was_trained_with(tmp_path: Path) -> None:
    folder = _files(tmp_path / "m", _byte_level(), eos_token="<|eos|>")
    found = TokenizerFacts.read(folder).metadata(320)["tokenizer.chat_template"].content

    assert found == load_tokenizer(folder).template.source


def test_templates_beside_the_default_are_written_by_name(tmp_path: Path) -> None:
    folder = _files(tmp_path / "m", _byte_level(), eos_token="<|eos|>")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools" + TEMPLATE)
    found = TokenizerFacts.read(folder).metadata(320)

    assert found["tokenizer.chat_templates"].content == ["tool_use"]
    assert found["tokenizer.chat_template.tool_use"].content == "tools" + TEMPLATE


def test_other_kinds_of_tokenizers_are_refused(tmp_path: Path) -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    folder = _files(tmp_path / "m", inner, eos_token="</s>")

    with pytest.raises(UsageError, match="the kind WordLevel"):
        TokenizerFacts.read(folder).metadata(2)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has no tokenizer"):
        TokenizerFacts.read(tmp_path)


def test_a_cut_of_a_split_regex_by_hand_is_the_same() -> None:
    regex = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    steps = pre_tokenizers.Sequence([regex, pre_tokenizers.ByteLevel(False, use_regex=False)])
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = steps
    assert pretokenizer_name(json.loads(inner.to_str())) == "qwen2"
