"""Attention in groups (LongLoRA): full where a group holds a document, a written-out mask beyond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import peft
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from conformance.sessions import CONTEXT, ROW, Bench, packed, rows, step
from edgetune.adapters import save_adapter
from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

# peft 0.21 asks for a name that transformers 5.23 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def test_documents_within_a_group_are_attended_to_in_full(bench: Bench, llama: LocalModel) -> None:
    batch = rows()
    grouped, full = (
        bench.open(Lora(rank=4, attention_group=size), llama) for size in (CONTEXT, None)
    )

    for form in (batch, packed(batch)):
        np.testing.assert_allclose(step(grouped, form), step(full, form), rtol=1e-5)


@pytest.mark.parametrize("size", [2, 4, 5])
def test_longer_ones_see_what_the_mask_says(
    bench: Bench, llama: LocalModel, tmp_path: Path, size: int
) -> None:
    method, batch = Lora(rank=4, attention_group=size), rows()
    session = bench.open(method, llama)
    start = session.adapter_tensors()
    save_adapter(tmp_path, method, llama.shape, start, base="base")
    loss, norm = _reference(llama, tmp_path, batch, size)

    assert step(session, batch) == pytest.approx((loss, norm), rel=1e-4)


def test_what_was_trained_in_groups_attends_to_everything(bench: Bench, llama: LocalModel) -> None:
    session = bench.open(Lora(rank=4, attention_group=4), llama)
    step(session, rows())
    full = bench.open(Lora(rank=4), llama)
    full.restore(session.adapter_tensors())

    np.testing.assert_array_equal(session.logits(ROW), full.logits(ROW))


def _reference(
    model: LocalModel, adapter: Path, batch: MicroBatch, size: int
) -> tuple[float, float]:
    """Return the loss and the norm of the gradient of PEFT's model with a mask for each head."""
    base = AutoModelForCausalLM.from_pretrained(
        model.folder, dtype=torch.float32, attn_implementation="eager"
    )
    theirs = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True)
    heads, groups = (getattr(model.shape.blocks[0], name) for name in ("heads", "kv_heads"))
    total = torch.zeros(())
    for tokens, targets, (length,) in zip(
        batch.tokens, batch.targets, batch.documents, strict=True
    ):
        mask = torch.tensor(_mask(length, size, heads, groups))[None]
        row = torch.tensor(tokens[:length])[None].long()
        logits = theirs(row, attention_mask=mask).logits[0]
        wanted = torch.tensor(targets[:length]).long()
        total = total + cross_entropy(logits, wanted, ignore_index=IGNORED, reduction="sum")
    loss = total / batch.loss_tokens
    loss.backward()  # type: ignore[no-untyped-call]
    squares = [x.grad.square().sum() for x in theirs.parameters() if x.grad is not None]
    return loss.item(), float(torch.stack(squares).sum().sqrt())


def _mask(length: int, size: int, heads: int, groups: int) -> NDArray[np.float32]:
    """Return what is added to the scores (H, S, S): 0 where a query sees a key."""
    mask = np.full((heads, length, length), np.finfo(np.float32).min, np.float32)
    for head in range(heads):
        late = head // (heads // groups) >= groups // 2
        for query in range(length):
            for key in range(query + 1):
                places = [max(0, at - size // 2) // size if late else at // size
                          for at in (query, key)]  # fmt: skip
                if places[0] == places[1]:
                    mask[head, query, key] = 0
    return mask
