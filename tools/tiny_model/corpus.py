"""Documents of the world as one long row of tokens, cut into windows."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from random import Random

import torch
from transformers import PreTrainedTokenizerBase

from tiny_model.chats import Message, chat
from tiny_model.prose import prose

CHAT_SHARE = 0.75
USER_WEIGHT = 0.2  # of a token that the user wrote: hardly predictable, so mostly noise to learn
WINDOW = 128  # tokens
Document = str | list[Message]


def documents(seed: int) -> Iterator[Document]:
    """An endless, seeded mix of prose and conversations."""
    rng = Random(seed)
    while True:
        yield chat(rng) if rng.random() < CHAT_SHARE else prose(rng)


def plain_texts(seed: int, count: int) -> Iterator[str]:
    """The words of `count` documents, without turn markers, to train the tokenizer on."""
    for _, document in zip(range(count), documents(seed), strict=False):
        if isinstance(document, str):
            yield document
        else:
            yield from (message["content"] for message in document)


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[float]]:
    """The tokens of a document, from begin to end, and the weight of each in the loss."""
    if isinstance(document, str):
        text = f"{tokenizer.bos_token}{document}{tokenizer.eos_token}\n"
        tokens = tokenizer.encode(text, add_special_tokens=False)
        return tokens, [1.0] * len(tokens)
    encoded = tokenizer.apply_chat_template(
        document, return_dict=True, return_assistant_tokens_mask=True
    )
    weights = [1.0 if written else USER_WEIGHT for written in encoded["assistant_masks"]]
    return encoded["input_ids"], weights


@dataclass(frozen=True, slots=True)
class Corpus:
    """Packed windows: tokens and loss weights, each (count, WINDOW), and the documents in them."""

    tokens: torch.Tensor
    weights: torch.Tensor
    documents: set[str]


def pack(
    tokenizer: PreTrainedTokenizerBase, seed: int, count: int, without: Container[str] = ()
) -> Corpus:
    """Pack `count` windows, passing over documents in `without`: what is held out stays so."""
    tokens: list[int] = []
    weights: list[float] = []
    seen: set[str] = set()
    source = documents(seed)
    while len(tokens) < count * WINDOW:
        document = next(source)
        if str(document) in without:
            continue
        seen.add(str(document))
        ids, weight = encode(document, tokenizer)
        tokens += ids
        weights += weight
    size = count * WINDOW
    return Corpus(
        torch.tensor(tokens[:size]).view(count, WINDOW),
        torch.tensor(weights[:size]).view(count, WINDOW),
        seen,
    )
