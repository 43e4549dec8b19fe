"""Small tokenizers with the chat templates of well-known models, written anew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Bpe

from edgetune.data import Dataset, Tokenizer, view_row
from edgetune.data.encode import Learned
from edgetune.data.examples import Examples, RowLocations
from edgetune.data.token_store import TokenStore, token_store_of

LINES = [
    "hello world, how are you today? I am fine, thank you.",
    "the capital of France is Paris. user assistant system",
    "a long answer about the weather and the house and the garden",
]


@dataclass(frozen=True)
class Shape:
    """A model family's special tokens and template; ``bos`` is None if it has none."""

    template: str | None
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    adds_bos: bool = False
    system: bool = True
    swallows: bool = False  # special tokens take the whitespace after them along
    pieces: bool = False  # words carry their space as "▁", unknown characters become bytes


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}"
    "{% set rest = messages[1:] %}{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set head = '' %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + (head if loop.first else '')"
    " + m.content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set head = messages[0].content + '\n\n' %}"
    "{% else %}{% set rest = messages %}{% set head = '' %}{% endif %}{{ bos_token }}"
    "{% set ns = namespace(last=-1) %}"
    "{% for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (head if loop.index0 == ns.last else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
# Thinking is written into the last answer only, so earlier turns are no prefix of the whole.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Writes tools and their calls, what is thought, and names.
TOOLS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ ' ' + m.name if m.name }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
SHAPES = {
    "chatml": Shape(CHATML, _IM, "<|im_end|>"),
    "chatml-marked": Shape(CHATML_MARKED, _IM, "<|im_end|>"),
    "llama2": Shape(LLAMA2, ("<s>", "</s>"), "</s>", "<s>", adds_bos=True),
    "llama3": Shape(
        LLAMA3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>",
         "<|end_header_id|>"),
        "<|end_of_text|>", "<|begin_of_text|>", adds_bos=True,
    ),
    "gemma": Shape(
        GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<bos>",
        adds_bos=True, system=False,
    ),
    "mistral": Shape(MISTRAL, ("<s>", "</s>"), "</s>", "<s>", adds_bos=True),
    "phi": Shape(
        PHI, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>",
    ),
    "swallowing": Shape(PHI, ("<|user|>", "<|assistant|>", "<|end|>"), "<|end|>", swallows=True),
    "thinking": Shape(THINKING, _IM, "<|im_end|>"),
    "pieces": Shape(LLAMA2, ("<unk>", "<s>", "</s>"), "</s>", "<s>", adds_bos=True, pieces=True),
    "none": Shape(None, ("<s>", "</s>"), "</s>", "<s>", adds_bos=True),
}  # fmt: skip

WITH_TOOLS = Shape(TOOLS, _IM, "<|im_end|>")


def write_model(folder: Path, shape: Shape) -> Path:
    """Write a byte-level BPE tokenizer of this shape into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    bpe = _trained(shape)
    if shape.swallows:
        bpe.add_special_tokens([AddedToken(text, rstrip=True) for text in shape.special])
    if shape.adds_bos and shape.bos:
        add_bos = processors.TemplateProcessing(
            single=f"{shape.bos} $A",
            special_tokens=[(shape.bos, bpe.token_to_id(shape.bos))],
        )
        # As well-known models have it: the space before a word is not in the word's place.
        bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), add_bos])
    bpe.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": shape.eos}
    if shape.bos:
        config["bos_token"] = shape.bos
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if shape.template is not None:
        (folder / "chat_template.jinja").write_text(shape.template, encoding="utf-8")
    return folder


def _trained(shape: Shape) -> Bpe:
    bpe = Bpe(models.BPE(byte_fallback=shape.pieces))
    alphabet, special = sorted(pre_tokenizers.ByteLevel.alphabet()), list(shape.special)
    bpe.pre_tokenizer, bpe.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    if shape.pieces:
        alphabet, special = [], special + [f"<0x{byte:02X}>" for byte in range(256)]
        bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        parts = [
            decoders.ByteFallback(),
            decoders.Metaspace(prepend_scheme="first"),
            decoders.Fuse(),
        ]
        bpe.decoder = decoders.Sequence(parts)
    trainer = trainers.BpeTrainer(
        vocab_size=420 if not shape.pieces else 480,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(LINES, trainer)
    return bpe


def write_rows(path: Path, rows: list[object]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*contents: str, system: str | None = None) -> dict[str, object]:
    """Return a row of messages; the contents are the user's and the assistant's in turn."""
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    opening = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": opening + turns}


def tokens_and_mask(row: Learned) -> tuple[list[int], list[bool]]:
    """Return the tokens of a row, and of each whether it is learned."""
    inside = {token for bounds in row.ranges for token in range(*bounds)}
    return row.tokens.tolist(), [token in inside for token in range(len(row.tokens))]


def columns_from(rows: list[tuple[list[int], list[bool]]]) -> TokenStore:
    """Return rows of tokens and masks as columns."""
    learned = [
        Learned(np.array(tokens, np.int32), [(i, i + 1) for i, on in enumerate(mask) if on])
        for tokens, mask in rows
    ]
    return token_store_of(learned, list(range(1, len(rows) + 1)))


def examples_from(rows: list[tuple[list[int], list[bool]]]) -> Examples:
    """Return rows of tokens and masks as the examples of ``rows.jsonl``."""
    columns = columns_from(rows)
    bounds = np.array([0, len(rows)], np.int64)
    return Examples.of(columns, RowLocations(("rows.jsonl:",), bounds, columns.lines))


def shown(dataset: Dataset, tokenizer: Tokenizer) -> str:
    """The rows of a dataset as the model reads them, what is learned of them in brackets."""
    return "".join(
        f"[{text}]" if on else text
        for row in dataset.train
        for text, on in view_row(row, tokenizer)
    )
