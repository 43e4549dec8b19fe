"""What does not touch the result does not touch one bit of it; the rest equals its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from engines import micro_batch
from letters import with_letters
from mlx_sessions import batch_of, one_document, open_session, plan_of, take_steps
from models import LONGROPE, make_model

from edgetune.backend import DeviceOutOfMemoryError, Session
from edgetune.errors import DivergedError, ModelError, UsageError
from edgetune.model import LocalModel

LAYERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_letters(make_model(tmp_path_factory.mktemp("model"), "llama"))


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpointing": 1},
        {"checkpointing": LAYERS},
        {"checkpointing": LAYERS, "placement": "disk"},
    ],
    ids=str,
)
def test_neutral_knobs_change_nothing(folder: Path, changes: dict[str, Any]) -> None:
    plain, other = open_session(folder, dropout=0.3), open_session(folder, dropout=0.3, **changes)

    assert take_steps(plain, 3) == take_steps(other, 3)
    _assert_same(plain, other)


@pytest.mark.parametrize("method", ["lora", "mam", "prompt"])
def test_compiled_blocks_get_all_that_changes_as_inputs(folder: Path, method: str) -> None:
    """``mx.compile`` calls a compiler on Linux; disabled, it calls the function as it is."""
    plain, compiled = (open_session(folder, method=method, checkpointing=LAYERS) for _ in range(2))
    compiled.engine.blocks.compiled = True  # type: ignore[attr-defined]
    mx.disable_compile()

    losses = take_steps(plain, 3), take_steps(compiled, 3)

    mx.enable_compile()
    assert losses[0] == losses[1]
    _assert_same(plain, compiled)


def test_compiled_blocks_get_the_lengths_that_longrope_wants(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "llama", rope_parameters=LONGROPE)
    plain, compiled = (open_session(folder, checkpointing=LAYERS) for _ in range(2))
    compiled.engine.blocks.compiled = True  # type: ignore[attr-defined]
    rows = [((9, 6, 2), (21,)), ((21,), (2, 6, 9)), ((9,), (21,)), ((20,), (21,)), ((9,), (4,))]
    batches = [micro_batch(*row, width=23, seed=seed) for seed, row in enumerate(rows)]

    def losses(session: Session) -> list[float]:
        return [
            session.step([x], loss_tokens=x.loss_tokens, learning_rate=1e-2).loss for x in batches
        ]

    mx.disable_compile()
    found = losses(plain), losses(compiled)
    mx.enable_compile()
    assert found[0] == found[1]
    _assert_same(plain, compiled)


def test_inputs_that_wait_on_disk_change_nothing(folder: Path) -> None:
    kept = open_session(folder, checkpointing=LAYERS)
    offloaded = open_session(folder, checkpointing=LAYERS)
    offloaded.engine.entries = _on_disk()  # type: ignore[attr-defined]

    take_steps(kept, 2)
    take_steps(offloaded, 2)

    _assert_same(kept, offloaded)


def test_killed_and_resumed_equals_uninterrupted(folder: Path) -> None:
    whole, begun = open_session(folder, dropout=0.2), open_session(folder, dropout=0.2)
    take_steps(whole, 5)
    take_steps(begun, 3)
    state = begun.adapter_tensors(), begun.optimizer_tensors()
    begun.close()
    mx.random.seed(99)

    resumed = open_session(folder, dropout=0.2)
    resumed.restore(*state)
    take_steps(resumed, 2, first=3)

    _assert_same(whole, resumed)


def test_accumulated_parts_equal_the_big_batch(folder: Path) -> None:
    """Rows have different numbers of loss tokens: an average of means would differ."""
    batch = batch_of(((32,), (6,), (20,), (9,)))
    together, apart = open_session(folder), open_session(folder)

    one = together.step((batch,), loss_tokens=batch.loss_tokens, learning_rate=1e-2)
    parts = [batch.rows(start, start + 1) for start in range(4)]
    four = apart.step(parts, loss_tokens=batch.loss_tokens, learning_rate=1e-2)

    assert four.loss == pytest.approx(one.loss, rel=1e-6)
    assert four.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_packed_rows_equal_rows_of_their_own(family: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path, family)
    packed = batch_of(((7, 12, 13), (20, 5)))
    apart = _unpacked(packed)
    sessions = open_session(folder), open_session(folder)

    results = [
        session.step((batch,), loss_tokens=batch.loss_tokens, learning_rate=1e-2)
        for session, batch in zip(sessions, (packed, apart), strict=True)
    ]

    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm, rel=1e-5)
    total = sessions[0].evaluate((packed,)), sessions[0].evaluate((apart,))
    assert total[0].loss_sum == pytest.approx(total[1].loss_sum, rel=1e-6)
    assert total[0].rows == total[1].rows == 5


def test_attention_in_pieces_equals_attention_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, pieces = open_session(folder), open_session(folder)
    take_steps(whole, 2)
    monkeypatch.setattr("edgetune_mlx.attention.QUERY_CHUNK", 5)
    take_steps(pieces, 2)

    found = pieces.adapter_tensors()
    for name, expected in whole.adapter_tensors().items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)


def test_dropout_is_drawn_from_the_step_and_the_micro_batch(folder: Path) -> None:
    session = open_session(folder, dropout=0.5)
    batch = one_document(2)
    zero_rate = {"loss_tokens": batch.loss_tokens, "learning_rate": 0.0}
    take_steps(session, 1)

    losses = [session.step((batch,), **zero_rate).loss for _ in range(2)]

    assert losses[0] != losses[1]
    assert session.evaluate((batch,)) == session.evaluate((batch,))


def test_a_step_that_does_not_fit_changes_nothing(folder: Path) -> None:
    session, reference = open_session(folder), open_session(folder)
    take_steps(session, 1)
    take_steps(reference, 1)
    limit, session.engine.guard.limit = session.engine.guard.limit, 1000  # type: ignore[attr-defined]

    with pytest.raises(DeviceOutOfMemoryError, match="MLX held"):
        take_steps(session, 1, first=1)

    session.engine.guard.limit = limit  # type: ignore[attr-defined]
    take_steps(session, 1, first=1)
    take_steps(reference, 1, first=1)
    _assert_same(session, reference)


def test_a_diverged_step_changes_nothing(folder: Path) -> None:
    session = open_session(folder)
    tensors = session.adapter_tensors()
    session.restore({name: np.full_like(x, np.nan) for name, x in tensors.items()})

    with pytest.raises(DivergedError, match="nan"):
        take_steps(session, 1)

    assert session.optimizer_tensors().keys() == {"step"}


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    session = open_session(folder)
    tensors = dict(session.adapter_tensors())
    first, second, *_ = tensors
    tensors[first] = tensors[first][:1]
    del tensors[second]
    tensors["more"] = np.zeros(2, np.float32)

    with pytest.raises(ModelError) as error:
        session.restore(tensors)

    assert all(name in str(error.value) for name in (first, second, "more"))


def test_what_mlx_cannot_do_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="needs --checkpointing all"):
        open_session(folder, placement="disk", checkpointing=1)


def _on_disk() -> object:
    from edgetune_mlx.checkpoints import OnDisk

    return OnDisk()


def _unpacked(packed: Any) -> Any:
    rows = [
        (tokens[start:stop], targets[start:stop])
        for tokens, targets, lengths in zip(
            packed.tokens, packed.targets, packed.documents, strict=True
        )
        for start, stop in _spans(lengths)
    ]
    apart = batch_of(tuple((len(tokens),) for tokens, _ in rows))
    for row, wanted, (tokens, targets) in zip(apart.tokens, apart.targets, rows, strict=True):
        row[: len(tokens)] = tokens
        wanted[: len(targets)] = targets
    return apart


def _spans(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    stops = np.cumsum(lengths).tolist()
    return list(zip([0, *stops[:-1]], stops, strict=True))


def _assert_same(one: Session, other: Session) -> None:
    for name in ("adapter_tensors", "optimizer_tensors"):
        found, expected = getattr(other, name)(), getattr(one, name)()
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            assert np.array_equal(found[tensor], value), tensor


def test_the_planner_checkpoints_every_block_that_streams(folder: Path) -> None:
    plan = plan_of(LocalModel.open(folder), "mlx", checkpointing=None, placement="disk")

    assert plan.choice.checkpointing.layers == LAYERS
