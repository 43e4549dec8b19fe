"""The forward pass of every family equals transformers', lengths beyond the window included."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from answers import continued
from mlx_sessions import VOCABULARY, open_session
from models import FAMILIES, make_model
from transformers import AutoModelForCausalLM

from edgetune.backend import GenerateOptions, Session

LENGTH = 23
"""More than the windows of the small models, so that windows show."""

ROW = np.random.default_rng(1).integers(3, VOCABULARY, LENGTH).tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, family)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(torch.tensor([ROW])).logits[0].numpy()
    session = open_session(folder)

    found = session.logits(ROW, adapter=None)

    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)
    assert np.array_equal(session.logits(ROW), found), "a new adapter changes nothing"
    session.close()


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)  # fmt: skip
def test_scaled_rotary_positions_equal_those_of_transformers(
    rope: dict[str, object], tmp_path: Path
) -> None:
    parameters = {"rope_theta": 10000.0, **rope}
    folder = make_model(tmp_path, "llama", rope_parameters=parameters)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ROW])).logits[0].numpy()

    session = open_session(folder)

    np.testing.assert_allclose(session.logits(ROW), expected, atol=2e-5, rtol=1e-5)
    session.close()


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_cached_generation_takes_the_tokens_that_whole_rows_predict(
    family: str, tmp_path: Path
) -> None:
    session = open_session(make_model(tmp_path, family))
    prompt = ROW[:9]

    found = continued(session, prompt, GenerateOptions(max_tokens=6))

    assert found == _greedy(session, prompt, 6)
    session.close()


def test_sampling_repeats_with_its_seed_and_keeps_to_the_top(tmp_path: Path) -> None:
    session = open_session(make_model(tmp_path, "llama"))
    hot = GenerateOptions(max_tokens=8, temperature=5.0, seed=3)
    narrow = GenerateOptions(max_tokens=4, temperature=5.0, top_p=1e-6, seed=3)

    assert continued(session, ROW, hot) == continued(session, ROW, hot)
    assert continued(session, ROW, narrow) == _greedy(session, ROW, 4)
    session.close()


def test_in_bfloat16_nothing_is_promoted(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", dtype=torch.bfloat16)
    session = open_session(folder, compute_dtype="bfloat16")
    engine = session.engine  # type: ignore[attr-defined]
    seen: list[mx.Dtype] = []
    block = engine.decoder.block

    def watched(*arguments: object) -> mx.array:
        out = block(*arguments)
        seen.append(out.dtype)
        return out

    engine.decoder.block = watched
    session.logits(ROW)

    assert set(seen) == {mx.bfloat16}
    assert all(tensor.dtype == mx.float32 for tensor in session.method.tensors.values())  # type: ignore[attr-defined]
    session.close()


def _greedy(session: Session, row: list[int], count: int) -> list[int]:
    tokens = list(row)
    for _ in range(count):
        tokens.append(int(session.logits(tokens)[-1].argmax()))
    return tokens[len(row) :]
