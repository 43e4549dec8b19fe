"""What the finished folder can do: held-out loss against baselines, facts known, sample chats."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from tiny_model.corpus import batches, encode, held_out_documents, training_documents
from tiny_model.facts import all_facts
from tiny_model.train import Recipe, token_losses

HELD_OUT_DOCUMENTS = 600

SAMPLES = (
    "How old is Anna?",
    "Who are you?",
    "Could you please turn on the lamp in the kitchen at half past seven?",
    "It is cold in the study.",
    "Ben put the key in the hall. Rose left the book in the garden. Where is the key?",
    "How much is four and five?",
)


def report(folder: Path) -> Iterator[str]:
    """The lines of the report on a model folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    size = sum(file.stat().st_size for file in folder.iterdir())
    yield f"parameters: {model.num_parameters():,}   folder: {size / 1e6:.2f} MB"
    yield from _losses(model, tokenizer)
    facts = all_facts()
    known = sum(
        fact.key in answer(model, tokenizer, question)
        for fact in facts
        for question in fact.questions
    )
    yield f"facts answered: {known} of {sum(len(fact.questions) for fact in facts)}"
    for question in SAMPLES:
        yield f"> {question}\n  {answer(model, tokenizer, question)}"


def answer(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
    """The greedy answer to one user message."""
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=48, do_sample=False)
    reply = output[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(reply, skip_special_tokens=True))


def _losses(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Held-out nats a token, every token counted alike: the model against two baselines."""
    training = training_documents(Recipe().documents)
    held_out = held_out_documents(HELD_OUT_DOCUMENTS, training)
    counts = torch.ones(len(tokenizer))
    for document in training[: 10 * HELD_OUT_DOCUMENTS]:
        tokens, _ = encode(document, tokenizer)
        counts += torch.bincount(torch.tensor(tokens), minlength=len(tokenizer))
    surprise = -(counts / counts.sum()).log()
    model_nats, unigram_nats, total = 0.0, 0.0, 0
    for batch in batches(held_out, tokenizer, rows=32, seed=0):
        counted = batch.weights[:, 1:].flatten() > 0
        with torch.no_grad():
            losses, _ = token_losses(model, batch)
        model_nats += losses[counted].sum().item()
        unigram_nats += surprise[batch.tokens[:, 1:].flatten()[counted]].sum().item()
        total += int(counted.sum())
    named = {
        "model": model_nats / total,
        "unigram": unigram_nats / total,
        "uniform": math.log(len(tokenizer)),
    }
    for name, nats in named.items():
        yield f"held-out {name:8s} {nats:.3f} nats a token, perplexity {math.exp(nats):8.2f}"
