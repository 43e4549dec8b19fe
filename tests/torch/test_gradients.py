"""Every path gives the gradients of plain autograd on transformers' model; see engine.py."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from engines import BATCH, LORA, micro_batch, opened
from models import LONGROPE, make_model
from reference import Reference, relative_error, whole_error

from edgetune.errors import UsageError
from edgetune.model import LocalModel
from edgetune.settings.spec import Quantization

FAMILIES = ("llama", "qwen3", "gemma2", "gemma3n_text", "gemma4_text", "phi3", "gpt2", "gpt_neox")
TOLERANCE = 1e-5

PATHS: dict[str, dict[str, Any]] = {
    "one chunk of loss": {"chunk": 99},
    "all checkpointed": {"checkpointed": 3},
    "two checkpointed, on disk": {"checkpointed": 2, "offload": "disk"},
    "streamed": {"blocks": "disk"},
    "streamed, checkpointed": {"blocks": "disk", "checkpointed": 3, "offload": "disk"},
    "embedding on disk": {"embedding": "disk"},
    "head on disk": {"head": "disk"},
    "everything on disk": {
        "blocks": "disk", "embedding": "disk", "head": "disk", "checkpointed": 2,
        "offload": "disk",
    },
}  # fmt: skip


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", request.param))


@pytest.fixture
def llama(tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", "llama", vocab_size=5000))


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
def test_gradients_equal_autograd_on_the_dense_model(
    model: LocalModel, quantization: Quantization
) -> None:
    with opened(model, quantization, checkpointed=2, chunk=7) as ours:
        reference = Reference(model.folder, ours.engine, LORA)
        loss, grads = ours.gradients(BATCH)
        expected_loss, expected = reference.gradients(BATCH, ours.method.tensors)

    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        assert relative_error(grad, expected[name]) < TOLERANCE, name


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("path", PATHS)
def test_where_things_live_changes_no_bit(
    model: LocalModel, path: str, quantization: Quantization
) -> None:
    with opened(model, quantization, chunk=7) as plain:
        loss, grads = plain.gradients(BATCH)
        evaluated = plain.engine.evaluate(BATCH, plain.method)
    options = {"chunk": 7, **PATHS[path]}
    with opened(model, quantization, **options) as other:
        for _ in range(2):  # the second time with slots that are full
            other_loss, other_grads = other.gradients(BATCH)

            assert grads.keys() == other_grads.keys()
            if path == "one chunk of loss":
                assert other_loss == pytest.approx(loss, rel=1e-6)
                continue
            assert other_loss == loss
            assert all(torch.equal(grads[name], other_grads[name]) for name in grads)
            assert other.engine.evaluate(BATCH, other.method) == evaluated


@pytest.mark.parametrize("head", ["resident", "disk"])
def test_several_slices_of_the_vocabulary_are_one_softmax(llama: LocalModel, head: str) -> None:
    with opened(llama, head=head, chunk=8) as ours:
        reference = Reference(llama.folder, ours.engine, LORA)
        loss, grads = ours.gradients(BATCH)
        expected_loss, expected = reference.gradients(BATCH, ours.method.tensors)

    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert all(relative_error(grads[name], expected[name]) < TOLERANCE for name in grads)


def test_packed_documents_do_not_see_each_other(model: LocalModel) -> None:
    packed = micro_batch((9, 6, 2), width=19)
    alone = []
    for start, length in ((0, 9), (9, 6), (15, 2)):
        span = slice(start, start + length)
        part = micro_batch((length,), width=length)
        alone.append(
            type(part)(
                tokens=packed.tokens[:, span],
                targets=packed.targets[:, span],
                documents=((length,),),
            )
        )
    with opened(model, checkpointed=1) as ours:
        loss, grads = ours.gradients(packed)
        loss_alone, grads_alone = ours.gradients(*alone)
        evaluated = [ours.engine.evaluate(part, ours.method) for part in (packed, *alone)]

    assert loss == pytest.approx(loss_alone, rel=TOLERANCE)
    assert all(
        relative_error(grads[name], grads_alone[name].double()) < TOLERANCE for name in grads
    )
    assert evaluated[0].loss == pytest.approx(sum(part.loss for part in evaluated[1:]), rel=1e-6)
    assert evaluated[0].correct == sum(part.correct for part in evaluated[1:])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_longrope_turns_each_document_by_its_own_length(
    tmp_path: Path, quantization: Quantization
) -> None:
    folder = make_model(tmp_path / "base", "llama", rope_parameters=LONGROPE)
    with opened(LocalModel.open(folder), quantization, checkpointed=2) as ours:
        reference = Reference(folder, ours.engine, LORA)
        loss, grads = ours.gradients(BATCH)
        expected_loss, expected = reference.gradients(BATCH, ours.method.tensors)

    assert loss == pytest.approx(expected_loss, rel=TOLERANCE)
    assert all(relative_error(grads[name], expected[name]) < TOLERANCE for name in grads)


def test_accumulation_equals_the_big_batch(model: LocalModel) -> None:
    scale = 1 / BATCH.loss_tokens
    with opened(model) as ours:
        loss, grads = ours.gradients(BATCH, scale=scale)
        parts = ours.gradients(BATCH.rows(0, 1), BATCH.rows(1, 2), scale=scale)

    assert loss == pytest.approx(parts[0], rel=1e-6)
    assert all(relative_error(grads[name], parts[1][name].double()) < TOLERANCE for name in grads)


def test_a_head_in_eight_bits_is_close(llama: LocalModel) -> None:
    with opened(llama) as ours, opened(llama, head="int8") as eight:
        loss, grads = ours.gradients(BATCH)
        close, found = eight.gradients(BATCH)

    assert close == pytest.approx(loss, rel=0.02)
    assert all(relative_error(found[name], grads[name].double()) < 0.1 for name in grads)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_bfloat16_is_no_farther_from_right_than_peft(
    llama: LocalModel, quantization: Quantization, tmp_path: Path, products: str
) -> None:
    """Both keep activations in bfloat16; ours rounds after a product, theirs in between as well.

    Over some batches the errors of single roundings even out: the mean of ours must be below.
    """
    batches = [micro_batch((9, 6, 2), (17,), width=19, seed=seed) for seed in range(4)]
    ours, theirs = [], []
    with opened(llama, quantization, dtype=torch.bfloat16, checkpointed=3) as narrow:
        reference = Reference(llama.folder, narrow.engine, LORA)
        peer = reference.in_bfloat16(tmp_path / "adapter", narrow.method.tensors)
        for batch in batches:
            expected_loss, expected = reference.gradients(batch, narrow.method.tensors)
            loss, grads = narrow.gradients(batch)
            assert loss == pytest.approx(expected_loss, rel=2**-8)  # bfloat16's own precision
            ours.append(whole_error(grads, expected))
            theirs.append(whole_error(peer.gradients(batch), expected))

    assert mean(ours) <= mean(theirs), products


def test_what_a_cpu_cannot_do_is_refused(llama: LocalModel) -> None:
    with pytest.raises(UsageError, match="in host memory already"), opened(llama, blocks="host"):
        pass
    with pytest.raises(UsageError, match="in host memory already"), opened(llama, offload="host"):
        pass
