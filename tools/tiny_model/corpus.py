"""Documents of the world as padded batches of tokens and loss weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from transformers import PreTrainedTokenizerBase

from tiny_model.chats import Message, chat
from tiny_model.prose import prose

CHAT_SHARE = 0.75
USER_WEIGHT = 0.2  # of a token that the user wrote: hardly predictable, so mostly noise to learn
_TRAINING_SEED, _HELD_OUT_SEED = 1, 2
LONGEST = 128  # tokens; the rest of a longer document is cut off
Document = str | list[Message]
Encoded = tuple[list[int], list[float]]  # the tokens of a document and their weights in the loss


def training_documents(count: int) -> list[Document]:
    """A seeded mix of prose and conversations; what is short comes up again and again."""
    return list(islice(_documents(_TRAINING_SEED), count))


def held_out_documents(count: int, training: Iterable[Document]) -> list[Document]:
    """`count` documents that are not in `training`."""
    seen = {str(document) for document in training}
    unseen = (document for document in _documents(_HELD_OUT_SEED) if str(document) not in seen)
    return list(islice(unseen, count))


def plain_texts(documents: Iterable[Document]) -> Iterator[str]:
    """The words of documents without turn markers, to train the tokenizer on."""
    for document in documents:
        if isinstance(document, str):
            yield document
        else:
            yield from (message["content"] for message in document)


def encode(document: Document, tokenizer: PreTrainedTokenizerBase) -> Encoded:
    """The tokens of a document, from begin to end, and the weight of each in the loss."""
    if isinstance(document, str):
        text = f"{tokenizer.bos_token}{document}{tokenizer.eos_token}\n"
        tokens = tokenizer.encode(text, add_special_tokens=False)
        return tokens[:LONGEST], [1.0] * min(len(tokens), LONGEST)
    encoded = tokenizer.apply_chat_template(
        document, return_dict=True, return_assistant_tokens_mask=True
    )
    weights = [1.0 if written else USER_WEIGHT for written in encoded["assistant_masks"]]
    return encoded["input_ids"][:LONGEST], weights[:LONGEST]


@dataclass(frozen=True, slots=True)
class Batch:
    """One document a row, padded on the right: tokens and loss weights, each (rows, longest)."""

    tokens: torch.Tensor
    weights: torch.Tensor


def batches(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, rows: int, seed: int
) -> list[Batch]:
    """Batches of `rows` documents of about the same length, in random order.

    A row holds one document, because the neighbours in a packed row teach nothing but distraction:
    a model this small learns to look back in the right place much sooner without them.
    """
    encoded = (encode(document, tokenizer) for document in documents)
    ordered = sorted(encoded, key=lambda document: len(document[0]))
    made = [_pad(ordered[start : start + rows]) for start in range(0, len(ordered), rows)]
    Random(seed).shuffle(made)
    return made


def _pad(encoded: list[Encoded]) -> Batch:
    """Pad with token 0 and weight 0, to the longest document."""
    longest = max(len(tokens) for tokens, _ in encoded)
    return Batch(
        torch.tensor([tokens + [0] * (longest - len(tokens)) for tokens, _ in encoded]),
        torch.tensor([weights + [0.0] * (longest - len(weights)) for _, weights in encoded]),
    )


def _documents(seed: int) -> Iterator[Document]:
    rng = Random(seed)
    while True:
        yield chat(rng) if rng.random() < CHAT_SHARE else prose(rng)
