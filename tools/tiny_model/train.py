"""Training of the tiny model: plain torch, float32 on the CPU, saved as float16."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from tiny_model.corpus import Batch, batches, plain_texts, training_documents
from tiny_model.tokenizer import BEGIN, CONTEXT, END, PAD, SPECIAL, write_tokenizer

TOKENIZER_DOCUMENTS = 20_000
THREADS = 2  # fixed, because the order of additions depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What one training run is made of."""

    steps: int = 1600
    rows: int = 32  # documents a step
    learning_rate: float = 1.2e-3
    warmup: int = 50  # steps
    weight_decay: float = 0.05
    clip: float = 1.0  # global gradient norm
    seed: int = 0

    @property
    def documents(self) -> int:
        """How many documents are seen, each once."""
        return self.steps * self.rows

    def rate(self, step: int) -> float:
        """The learning rate of a step: linear warm-up, then a cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / (self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def model_config(vocabulary: int) -> LlamaConfig:
    """A Llama of 3.4 M parameters; input widths in multiples of 256 fit every 4-bit format."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.04,
        pad_token_id=SPECIAL.index(PAD),
        bos_token_id=SPECIAL.index(BEGIN),
        eos_token_id=SPECIAL.index(END),
    )


def make(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> None:
    """Make the whole model folder: tokenizer first, then the model that is trained with it."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = training_documents(recipe.documents)
    write_tokenizer(plain_texts(documents[:TOKENIZER_DOCUMENTS]), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    data = batches(documents, tokenizer, recipe.rows, recipe.seed)
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(THREADS)
    model = LlamaForCausalLM(model_config(len(tokenizer)))
    _train(model, data, recipe, say)
    _save(model, folder)


def _save(model: LlamaForCausalLM, folder: Path) -> None:
    """Write weights in float16, and a generation config that stops at the end of a turn."""
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
    )
    model.half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner only


def _train(
    model: LlamaForCausalLM, data: list[Batch], recipe: Recipe, say: Callable[[str], None]
) -> None:
    """One pass over the batches of `data`."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    gains = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-8, fused=True)
    started = time.perf_counter()
    for step, batch in enumerate(data):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        losses, weights = token_losses(model, batch)
        loss = (losses * weights).sum() / weights.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == recipe.steps - 1:
            seconds = time.perf_counter() - started
            say(f"step {step:5d}  loss {loss.item():.3f}  {seconds:5.0f} s")


def token_losses(model: LlamaForCausalLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each next token, in nats, and its weight, both flat."""
    logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1]
    targets = batch.tokens[:, 1:].flatten()
    losses = cross_entropy(logits.flatten(0, 1), targets, reduction="none")
    return losses, batch.weights[:, 1:].flatten()
