"""Which rank a process is, which card it takes, and what it waits for."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune.api import plan
from edgetune.device.profiles import profile_device
from edgetune.errors import UsageError
from edgetune.planning import Plan, with_sums_held
from edgetune.planning.defaults import ROWS
from edgetune.speed.ranks import gradient_bytes, least_bandwidth, speed_up, step_seconds
from edgetune.workflows.launching import first_dead, meeting
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.rank_plans import on_shared_host, own_memory
from edgetune.workflows.ranks import device_of, plan_on, planned_device
from edgetune.world import Place

CARD = profile_device("rtx-4090")


def place(rank: int = 0, world: int = 2, local_world: int | None = None) -> Place:
    local = world if local_world is None else local_world
    return Place(rank=rank, world=world, local_rank=rank % local, local_world=local)


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_ranks_on_one_machine_have_a_card_each(name: str) -> None:
    assert [device_of(place(rank), name, [CARD, CARD]) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    assert device_of(place(1, local_world=1), name, [CARD, CARD]) == name
    assert device_of(place(1), name, []) == name
    assert device_of(place(1), "cpu", [CARD]) == "cpu"


@pytest.mark.parametrize(("name", "cards"), [("auto", 1), ("cuda:0", 2)])
def test_one_card_is_not_shared(name: str, cards: int) -> None:
    with pytest.raises(UsageError, match="card"):
        device_of(place(), name, [CARD] * cards)


def test_a_place_is_found_where_launchers_say_it(tmp_path: Path) -> None:
    assert Place.here({}) is None
    assert Place.here({"WORLD_SIZE": "1", "RANK": "0"}) is None
    found = Place.here({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert found == Place(rank=3, world=4, local_rank=1, local_world=2)
    assert Place.here(found.environment()) == found
    hosts = tmp_path / "hosts.json"
    hosts.write_text(json.dumps([["a:1"], ["b:1"], ["c:1"]]))
    ring = Place.here({"MLX_RANK": "2", "MLX_HOSTFILE": str(hosts)})
    assert ring == Place(rank=2, world=3, local_rank=0, local_world=1)


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"WORLD_SIZE": "2", "RANK": "2"}, {"MLX_RANK": "0"}],
)
def test_half_a_place_is_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="RANK"):
        Place.here(environment)


def test_workers_meet_where_nobody_else_can_look() -> None:
    with meeting(3) as places:
        found = [Place.here(each) for each in places]
        assert [one.rank for one in found if one] == [0, 1, 2]
        (store,) = {one.store for one in found if one}
        assert store is not None
        assert Path(store).parent.stat().st_mode & 0o077 == 0
    assert not Path(store).parent.exists()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("device: {kind: mlx}", "mlx"),
        ("device: a laptop", "auto"),
        ("device: {}", "auto"),
        ("", "auto"),
    ],
)
def test_a_run_goes_on_with_the_kind_of_device_that_it_was_planned_for(
    tmp_path: Path, text: str, kind: str
) -> None:
    (tmp_path / "plan.yaml").write_text(f"choice: {{}}\n{text}\n")
    assert planned_device(tmp_path) == kind
    assert planned_device(tmp_path / "absent") == planned_device(None) == "auto"


@pytest.mark.parametrize("shared", [True, None])
def test_ranks_share_prompts_only_where_the_run_does(shared: bool | None, tmp_path: Path) -> None:
    """A run that was planned before prompts were shared goes on as it began, on many ranks too."""
    rows = tmp_path / "pairs.jsonl"
    pair = {"prompt": "Turn on the lamp in the kitchen.", "chosen": "Done.", "rejected": "No."}
    rows.write_text("\n".join([json.dumps(pair)] * 8))
    theirs = plan("tiny", data=rows, device="cpu", objective="dpo")
    assert theirs.training.share_prompts
    theirs = replace(theirs, training=replace(theirs.training, share_prompts=shared))
    place = Place(rank=1, world=2, local_rank=1, local_world=2)
    found = plan_on(place, theirs, 2, ref="tiny", data=rows, device="cpu", memory=None)

    assert found.dataset is not None
    assert (found.dataset.receipt.shared > 0) == bool(shared)
    assert found.plan.training == theirs.training


def test_a_network_decides_whether_another_rank_helps() -> None:
    assert speed_up(8, 2) == 2
    assert least_bandwidth(gradient_bytes(40_000_000, 2), 62.7, 2) == pytest.approx(160e6 / 31.35)
    assert least_bandwidth(1000, 62.7, speed_up(1, 2)) is None


@pytest.mark.parametrize("device", ["rtx-4060-laptop", "m2-16gb"])
def test_sums_that_wait_for_others_are_planned(device: str) -> None:
    def sums(ranks: int, parts: int | None) -> Plan:
        training = {} if parts is None else {"gradient_parts": parts}
        asked = PlanRequest(
            model="llama-7b", device=device, choice={"micro_batch": 1, "accumulation": 8},
            training=training, place=place(0, ranks, 1) if ranks > 1 else None,
        )  # fmt: skip
        return plan_for(asked).plan

    alone, parted = sums(1, None), sums(1, 4)
    every = 4 * alone.choice.method.parameters(alone.shape)
    assert [sums(ranks, 4).memory.parts.gradients // every for ranks in (1, 2, 4)] == [3, 2, 1]
    assert alone.memory.parts.gradients // every == 1
    held = with_sums_held(alone, 2)
    assert held.memory.parts.gradients == alone.memory.parts.gradients + 2 * every
    assert held.memory.peak_bytes == alone.memory.peak_bytes + 2 * every
    assert with_sums_held(parted, 2) == parted
    with pytest.raises(UsageError, match="--gradient-parts 2 is asked for, and 4 processes"):
        sums(4, 2)


def test_the_paper_plan_of_many_ranks_is_computed_from_the_terms_of_a_plan() -> None:
    found = plan("llama-7b", device="rtx-4060-laptop", micro_batch=1, accumulation=ROWS)
    trained = found.choice.method.parameters(found.shape)
    page = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    (told_seconds,) = re.findall(r"([\d.]+) s for 8 rows", page)
    assert float(told_seconds) == pytest.approx(found.time.seconds_per_step, rel=0.3)
    row = float(told_seconds) / ROWS
    lines = re.findall(r"\| (\d+) \| (\d+) Gbit/s \| (.*) \|", page)
    assert len(lines) >= 4
    for rows, gigabits, told in lines:
        rate = int(gigabits) * 1e9 / 8
        alone = step_seconds(row, int(rows), 1, 0, rate)
        for ranks, times in zip((2, 8, 64, 512), told.split(" | "), strict=True):
            sent = gradient_bytes(trained, ranks)
            expected = alone / step_seconds(row, int(rows), ranks, sent, rate)
            assert float(times) == pytest.approx(expected, rel=0.005, abs=0.05), (rows, ranks)


def test_a_model_of_70_billion_parameters_is_planned_on_two_small_cards() -> None:
    asked = PlanRequest(model="llama-3.1-70b", device="rtx-4060-laptop")
    alone = plan_for(asked).plan
    for rank in (0, 1):
        found = plan_for(replace(asked, place=place(rank, local_world=1))).plan
        assert found.choice.placement == alone.choice.placement == "disk"
        assert found.memory.peak_bytes == alone.memory.peak_bytes
        assert found.time.seconds_per_step == pytest.approx(alone.time.seconds_per_step / 2)
        assert any("one rank alone is faster where" in reason for reason in found.reasons)


def test_ranks_of_a_machine_share_its_host() -> None:
    """A card has its own memory, and beside a processor's rank half of the host's."""
    laptop = profile_device("rtx-4060-laptop")
    both = on_shared_host(laptop, place())
    assert both.host_free_bytes == laptop.host_free_bytes // 2
    assert own_memory(None, place(), both) is None
    assert on_shared_host(laptop, place(local_world=1)) == laptop

    board = replace(laptop, unified=True)
    assert own_memory(None, place(), board) == board.usable_bytes // 2


def test_a_card_streams_from_disk_what_half_of_the_host_cannot_hold() -> None:
    """The 16-bit blocks of a 3B model are 5.6 GB; a profile's host has 8.6 GB."""
    asked = PlanRequest(
        model="llama-3.2-3b", device="rtx-4060-laptop", memory=5 * 10**9,
        choice={"quantization": "none"},
    )  # fmt: skip
    alone, beside = (plan_for(replace(asked, place=x)).plan for x in (None, place()))
    assert alone.choice.placement == "host"
    assert beside.choice.placement == "disk"


def test_a_rank_that_dies_before_the_others_have_met_it_ends_them() -> None:
    begun = time.monotonic()
    waiting, failing = "import time; time.sleep(600)", "import sys; sys.exit(2)"
    processes = [subprocess.Popen([sys.executable, "-c", waiting]) for _ in range(3)]
    processes[1].kill()
    assert first_dead(processes, lambda: False) == 1
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 3

    processes = [subprocess.Popen([sys.executable, "-c", each]) for each in (waiting, failing)]
    assert first_dead(processes, lambda: False) == 1
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 2]
    assert time.monotonic() - begun < 60


def test_a_ring_sends_gradients_almost_twice() -> None:
    assert gradient_bytes(1000, 1) == 0
    assert gradient_bytes(1000, 2) == 4000
    assert gradient_bytes(1000, 4) == 6000


def test_a_rank_that_waits_for_the_others_can_be_interrupted(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "edgetune", "train", "--model=tiny", f"--data={tmp_path}"]
    environment = {**os.environ, **place().environment(), "EDGETUNE_RANKS": str(tmp_path / "meet")}
    process = subprocess.Popen(asked, env=environment, stderr=subprocess.PIPE)
    while not (tmp_path / "meet").exists():
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode in {130, 6}, said
