"""Embedding, head and norms trained whole beside LoRA, in models whose head is the embedding too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from models import make_model

from conformance import test_methods as every
from conformance.cases import Case
from conformance.probes import probe
from conformance.sessions import Bench, rows, step
from edgetune.errors import UsageError
from edgetune.methods import build
from edgetune.model import LocalModel

EMBEDDINGS = Case(
    name="embeddings", kind="lora", settings={"rank": 2, "modules_to_save": ("embeddings",)},
    parameters=lambda s: build("lora", {"rank": 2}).parameters(s) + s.vocabulary * s.hidden_size,
)  # fmt: skip
HEAD = Case(
    name="head", kind="lora", settings={"rank": 2, "modules_to_save": ("head",)},
    parameters=EMBEDDINGS.parameters,
)  # fmt: skip
DORA = Case(
    name="dora", kind="dora", settings={"rank": 2, "modules_to_save": ("embeddings", "norms")},
    parameters=EMBEDDINGS.parameters,
)  # fmt: skip


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """A random Gemma of two blocks: its head is its embedding, which it scales by a number."""
    folder = tmp_path_factory.mktemp("gemma2")
    return LocalModel.open(make_model(folder, "gemma2", num_hidden_layers=2))


def test_a_tied_head_learns_as_the_embedding(bench: Bench, tied: LocalModel) -> None:
    every.test_counts_equal_the_formula(EMBEDDINGS, bench, tied)
    every.test_the_start_is_the_base(EMBEDDINGS, bench, tied)
    every.test_gradients_equal_finite_differences(EMBEDDINGS, bench, tied)


@pytest.mark.parametrize("case", [EMBEDDINGS, DORA], ids=lambda case: case.name)
def test_a_tied_model_is_merged_and_stays_tied(
    case: Case, bench: Bench, tied: LocalModel, tmp_path: Path
) -> None:
    every.test_the_merged_model_computes_the_same(case, bench, tied, tmp_path)
    assert LocalModel.open(tmp_path / "merged").shape.tied


def test_a_tied_model_has_no_head_of_its_own(bench: Bench, tied: LocalModel) -> None:
    with pytest.raises(UsageError, match="trains both"):
        bench.plan(HEAD, tied)


@pytest.mark.parametrize("case", [EMBEDDINGS, HEAD], ids=lambda case: case.name)
def test_each_matrix_of_two_learns_alone(case: Case, bench: Bench, llama: LocalModel) -> None:
    every.test_counts_equal_the_formula(case, bench, llama)
    every.test_gradients_equal_finite_differences(case, bench, llama)


def test_tokens_of_no_row_keep_their_embedding(bench: Bench, llama: LocalModel) -> None:
    session, batch = bench.open(EMBEDDINGS, llama), rows()
    looked = probe(bench.name, session)
    name = llama.shape.embedding_tensor
    before = looked.trained()[name]
    for _ in range(3):
        step(session, batch)
    moved = np.any(looked.trained()[name] != before, axis=1)

    # padding stands at the ends of rows, and nothing looks back at it
    lengths = [length for (length,) in batch.documents]
    seen = {int(t) for row, n in zip(batch.tokens, lengths, strict=True) for t in row[:n]}
    assert set(np.flatnonzero(moved)) <= seen
    assert len(seen) - moved.sum() <= len(lengths)  # the last token of a row may be no target


def test_chunks_of_the_loss_add_up(bench: Bench, tied: LocalModel) -> None:
    batch, ways = rows(), ((64, 4), (8, 4), (8, 1))
    found = []
    for chunk, count in ways:
        session = bench.open(EMBEDDINGS, tied, loss_chunk=chunk)
        parts = [batch.rows(start, start + count) for start in range(0, 4, count)]
        found.append([step(session, *parts), step(session, *parts)])
    for steps in found[1:]:
        np.testing.assert_allclose(steps, found[0], rtol=2e-4)
