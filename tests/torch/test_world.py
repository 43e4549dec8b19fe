"""What torch's ranks speak over, and with whom they do not."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from rows import write_rows
from support.threads import Meeting, ThreadWorld

from edgetune.errors import NothingFitsError, UsageError
from edgetune.workflows import planning, resuming
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import start_run
from edgetune.world import Place
from edgetune_torch.world import TorchWorld, backend_for

PLACE = Place(rank=0, world=2, local_rank=0, local_world=1)


@pytest.mark.parametrize(
    ("cards", "nccl", "over"),
    [
        (["GPU-a", "GPU-b"], True, "cpu:gloo,cuda:nccl"),
        (["GPU-a", "GPU-b"], False, "gloo"),
        (["GPU-a", "GPU-a"], True, "gloo"),
        (["GPU-a", ""], True, "gloo"),
        (["", ""], True, "gloo"),
    ],
)
def test_ranks_with_a_card_each_send_gradients_from_card_to_card(
    cards: list[str], nccl: bool, over: str
) -> None:
    assert backend_for(cards, nccl=nccl) == over


def test_torch_does_not_join_the_ranks_of_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.setenv("MLX_HOSTFILE", "hosts.json")
    with pytest.raises(UsageError, match="torch and on MLX cannot train together"):
        TorchWorld(PLACE, 1)


def test_mlx_does_not_join_the_ranks_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    world = pytest.importorskip("edgetune_mlx.world")
    monkeypatch.delenv("MLX_HOSTFILE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UsageError, match="torch and on MLX cannot train together"):
        world.MlxWorld(PLACE, 1)


def test_ranks_that_resume_on_one_machine_share_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    request = PlanRequest(
        model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device="cpu",
        choice={"rank": 2, "micro_batch": 2}, training={"steps": 2, "validation": 0},
    )  # fmt: skip
    start_run(plan_for(request), folder).close()
    peak = plan_for(request).plan.memory.peak_bytes
    for module in (resuming, planning):
        read = module.read_device
        monkeypatch.setattr(
            module,
            "read_device",
            lambda name, read=read: replace(read(name), usable_bytes=9 * peak),
        )

    shared = Place(rank=0, world=2, local_rank=0, local_world=2)
    with closing(resuming.resume_run(folder, place=shared)) as run:
        assert run.session.memory().limit_bytes == 9 * peak // 2
    crowded = Place(rank=0, world=1, local_rank=0, local_world=36)
    with pytest.raises(NothingFitsError):
        resuming.resume_run(folder, place=crowded)


@pytest.mark.parametrize(
    ("before", "size", "room", "parts", "held", "said"),
    [
        (4, 4, 0, 4, 0, ""),
        (4, 2, 1, 4, 1, ""),
        (4, 1, 2, 4, 2, ""),
        (4, 1, 1, 1, 0, "do not fit"),
        (1, 2, 9, 2, 0, "there are 2 processes, more than the run has parts"),
        (0, 1, 0, 1, 0, ""),
    ],
)
def test_parts_stay_where_there_is_memory_for_the_sums_that_wait(
    before: int, size: int, room: int, parts: int, held: int, said: str
) -> None:
    """``room`` is memory for so many sums of gradients beside what the plan needs."""
    plan = plan_for(PlanRequest(model="llama-7b", device="rtx-4060-laptop")).plan
    every, peak = 4 * plan.choice.method.parameters(plan.shape), plan.memory.peak_bytes
    world = ThreadWorld(0, Meeting(size))

    found, needs, because = resuming._parts(before, plan, peak + room * every, world)

    assert found == parts
    assert needs.memory.peak_bytes == peak + held * every
    assert said in because
    assert bool(because) == bool(said)
