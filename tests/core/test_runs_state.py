"""A checkpoint is what was written or is refused by name, and the one before it is taken."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded import Recorded, make_plan

from edgetune.errors import ModelError
from edgetune.events import RunState, SaveDue
from edgetune.files import sha256_json
from edgetune.planning import Plan
from edgetune.report import Report
from edgetune.runs import best_whole, latest, load_checkpoint, newest_whole
from edgetune.runs.lines import append_line, read_lines
from edgetune.runs.retention import checkpoints
from edgetune.runs.rewind import rewind
from edgetune.runs.state import CHECKSUM, LARGEST, STATE, DamagedCheckpointError

FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def trained(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded.start(plan, tmp_path_factory.mktemp("trained") / "run").train()


@pytest.fixture
def run(trained: Recorded, tmp_path: Path) -> Recorded:
    """A copy of a run that was trained to its end."""
    shutil.copytree(trained.folder.path, tmp_path / "run", symlinks=True)
    return Recorded.over(trained.plan, type(trained.folder)(tmp_path / "run"))


def meaning(checkpoint: Path, plan: Plan) -> Any:
    """Return what a run goes on with."""
    found = load_checkpoint(checkpoint, plan)
    tensors = {**found.adapter, **found.optimizer}
    values = {name: (x.dtype.name, x.shape, x.tobytes()) for name, x in tensors.items()}
    return found.state, values


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["missing", "cut", "changed", "a folder", "endless"])
def test_a_damaged_file_is_refused_by_name(run: Recorded, name: str, how: str) -> None:
    path = latest(run.folder.checkpoints)
    file = path / name
    content = file.read_bytes()
    file.unlink()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif how == "changed":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + b"\0" + content[middle + 1 :])
    elif how == "a folder":
        file.mkdir()
    elif how == "endless":
        file.symlink_to("/dev/zero")
    with pytest.raises(DamagedCheckpointError) as caught:
        load_checkpoint(path, run.plan)
    assert f"{path} is not whole: {name} is missing or damaged" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"version": 2}', "null", "", "\0", "[" * 10**5, '{"a":' * 10**5, "9" * 5000,
     '{"version": NaN}', " " * (LARGEST + 1)],
)  # fmt: skip
def test_a_state_of_another_shape_is_refused(run: Recorded, text: str) -> None:
    path = latest(run.folder.checkpoints)
    (path / STATE).write_text(text)
    with pytest.raises(DamagedCheckpointError, match=r"state\.json is missing or damaged"):
        load_checkpoint(path, run.plan)


def _changed(name: str, value: object) -> Any:
    def change(state: dict[str, Any]) -> None:
        state[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _changed("progress", {"step": "6"}),
        _changed("progress", [6]),
        _changed("progress", {"steps": 6}),
        _changed("plan", 1),
        _changed("versions", []),
        _changed("files", ["state.json"]),
        lambda state: state.pop("data"),
    ],
)
def test_a_state_with_other_values_is_refused_whatever_its_checksum(
    run: Recorded, change: Any
) -> None:
    path = latest(run.folder.checkpoints)
    state = json.loads((path / STATE).read_text())
    del state[CHECKSUM]
    change(state)
    (path / STATE).write_text(json.dumps({**state, CHECKSUM: sha256_json(state)}))
    with pytest.raises(DamagedCheckpointError, match=r"state\.json is missing or damaged"):
        load_checkpoint(path, run.plan)


@pytest.mark.parametrize(("version", "summed"), [(1, False), (99, True)])
def test_a_state_of_another_version_is_refused(run: Recorded, version: int, summed: bool) -> None:
    path = latest(run.folder.checkpoints)
    state = {**json.loads((path / STATE).read_text()), "version": version}
    del state[CHECKSUM]
    checksum = {CHECKSUM: sha256_json(state)} if summed else {}
    (path / STATE).write_text(json.dumps({**state, **checksum}))
    with pytest.raises(ModelError, match=f"version {version}; expected 2") as caught:
        newest_whole(run.folder.checkpoints, run.plan)
    assert not isinstance(caught.value, DamagedCheckpointError)


def flips(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield a content with each of its bits the other way, or ``count`` of them."""
    bits = 8 * len(content)
    for bit in random.Random(seed).sample(range(bits), min(count, bits)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)


FLIPS = [
    pytest.param(600, 40, id="some"),
    pytest.param(10**6, 1000, id="all", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("of_state", "of_others"), FLIPS)
def test_no_flipped_bit_is_accepted_with_another_meaning(
    run: Recorded, of_state: int, of_others: int
) -> None:
    path = latest(run.folder.checkpoints)
    expected, accepted, named = meaning(path, run.plan), [], True
    for name in FILES:
        content = (path / name).read_bytes()
        count = of_state if name == STATE else of_others
        for number, flipped in enumerate(flips(content, count, seed=0)):
            (path / name).write_bytes(flipped)
            try:
                if meaning(path, run.plan) != expected:
                    accepted.append((name, number))
            except ModelError as error:
                named &= name in str(error)
        (path / name).write_bytes(content)
    assert accepted == []
    assert named
    assert meaning(path, run.plan) == expected


@pytest.mark.parametrize("damaged", [1, 2])
def test_the_one_before_is_taken_and_the_end_is_the_same(run: Recorded, damaged: int) -> None:
    expected = run.end()
    steps = checkpoints(run.folder.checkpoints)
    for path in steps[-damaged:]:
        (path / "optimizer.safetensors").write_bytes(b"")
    checkpoint, refused = newest_whole(run.folder.checkpoints, run.plan)
    assert checkpoint is not None
    assert checkpoint.path == steps[-damaged - 1]
    assert [item.path for item in refused] == steps[-damaged:][::-1]
    rewind(run.folder, checkpoint, refused)
    resumed = Recorded.over(run.plan, run.folder, checkpoint).train(checkpoint.state.progress)
    assert resumed.end() == expected
    notes = [line for line in read_lines(run.folder.journal) if "refused" in line["what"]]
    assert [line["kept"] for line in notes] == [
        f"{path.name}.damaged" for path in steps[-damaged:][::-1]
    ]
    assert all((run.folder.checkpoints / line["kept"]).is_dir() for line in notes)


def test_a_state_that_is_not_finite_is_not_gone_on_from(run: Recorded) -> None:
    newest = checkpoints(run.folder.checkpoints)[-1]
    checkpoint = load_checkpoint(newest, run.plan)
    values = {name: np.full_like(value, np.nan) for name, value in checkpoint.adapter.items()}
    run.session.restore(values, checkpoint.optimizer)
    run.recorder.handle(SaveDue(state=replace(checkpoint.state.progress, step=7)))
    spoiled = checkpoints(run.folder.checkpoints)[-1]
    assert spoiled.name == "step-000007"
    found, (refused,) = newest_whole(run.folder.checkpoints, run.plan)
    assert found is not None
    assert (found.path, refused.path) == (newest, spoiled)
    assert "are not finite" in refused.because


def test_checkpoints_after_a_step_are_not_looked_at(run: Recorded) -> None:
    found, refused = newest_whole(run.folder.checkpoints, run.plan, 5)
    assert found is not None
    assert (found.path.name, refused) == ("step-000004", ())


def test_there_may_be_no_whole_checkpoint(run: Recorded) -> None:
    paths = checkpoints(run.folder.checkpoints)
    for path in paths:
        (path / STATE).unlink()
    found, refused = newest_whole(run.folder.checkpoints, run.plan)
    assert found is None
    assert len(refused) == len(paths)


def test_the_best_whole_checkpoint_is_handed_over(run: Recorded) -> None:
    now = load_checkpoint(latest(run.folder.checkpoints), run.plan).state.progress
    losses = {line["step"]: line["loss"] for line in run.folder.evaluations() if line["step"]}
    ranked = sorted(losses, key=lambda step: losses[step])
    assert all(loss < now.base_loss for loss in losses.values())
    for count, step in enumerate(ranked):
        found, refused = best_whole(run.folder, now)
        assert found == run.folder.checkpoints / f"step-{step:06}"
        assert len(refused) == count
        (found / STATE).unlink()
    with pytest.raises(ModelError, match=r"(?s)No checkpoint .* handed over:.*state\.json"):
        best_whole(run.folder, now)


def test_without_validation_the_newest_is_handed_over(run: Recorded) -> None:
    newest = latest(run.folder.checkpoints)
    assert best_whole(run.folder, RunState(step=6)) == (newest, ())
    shutil.rmtree(run.folder.checkpoints)
    run.folder.checkpoints.mkdir()
    with pytest.raises(ModelError, match="there is none any more"):
        best_whole(run.folder, RunState(step=6))


def test_none_is_handed_over_that_is_not_better_than_the_base(run: Recorded) -> None:
    assert best_whole(run.folder, RunState(step=6, base_loss=0.0)) == (None, ())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_logs_that_are_no_files_are_refused_at_once(run: Recorded) -> None:
    run.folder.metrics.unlink()
    os.mkfifo(run.folder.metrics)
    with pytest.raises(OSError, match="is not a file"):
        append_line(run.folder.metrics, {})
    assert list(run.folder.steps()) == []


def test_metrics_that_say_nothing_are_left_out(run: Recorded) -> None:
    steps = list(run.folder.steps())
    evaluations = list(run.folder.evaluations())
    whole = [{**steps[-1], "step": 7}, {**evaluations[-1], "step": 7}]
    odd = [{"loss": x} for x in (10**400, 1e300, True, "1")]
    odd += [{"step": x} for x in (10**400, 10**39, 1e300, 1.5, -1, True)]
    odd += [{"event": x} for x in ([1], {}, 3)]
    with run.folder.metrics.open("a") as file:
        file.write('{"event": "step"}\n{"event": "step", "step": "1"}\n{}\n')
        file.writelines(json.dumps({**line, **each}) + "\n" for line in whole for each in odd)
    assert list(run.folder.steps()) == steps
    assert list(run.folder.evaluations()) == evaluations
    assert np.isfinite(run.folder.peak_bytes())
    report = Report.of(run.folder.path)
    assert len(report.steps) == len(steps)
    assert [one.step for one in report.evaluations] == [one["step"] for one in evaluations]
    assert best_whole(run.folder, RunState(step=6, base_loss=9.0))[0] is not None


@pytest.mark.parametrize("what", [[1], {}, 3, None])
def test_a_note_that_does_not_say_of_what_is_left_out(run: Recorded, what: Any) -> None:
    before = Report.of(run.folder.path)
    append_line(run.folder.journal, {"time": 1.0, "what": what, "because": "x"})
    after = Report.of(run.folder.path)
    assert (after.status, after.journal) == (before.status, before.journal)
    assert run.folder.kept() is None


def test_the_kept_checkpoint_is_told_with_the_numbers_that_are_some(run: Recorded) -> None:
    run.folder.adapter.mkdir()
    for step, loss, told in ((4, 0.5, 0.5), (4, "0.5", None), (4, 10**400, None)):
        append_line(run.folder.journal, {"what": "adapter written", "step": step, "loss": loss})
        kept = run.folder.kept()
        assert kept is not None
        assert (kept.step, kept.loss) == (step, told)
        assert str(kept).startswith("the checkpoint after step 4")
    append_line(run.folder.journal, {"what": "adapter written", "step": 10**39, "loss": 0.5})
    assert run.folder.kept() is None


@pytest.mark.parametrize(
    ("receipt", "labels", "names", "cut"),
    [
        ('{"labels": {"trained": {"a": 1, "b": 2}}, "label_names": ["x"], "prompt_cut": "y"}',
         ("a", "b"), ("x",), "y"),
        ('{"labels": {"trained": 5}, "label_names": 5, "prompt_cut": [3]}', (), (), ""),
        ('{"labels": 5, "label_names": [5]}', (), (), ""),
        ("[" * 100_000, (), (), ""),
    ],
    ids=["whole", "numbers", "other numbers", "deep"],
)  # fmt: skip
def test_what_a_receipt_does_not_say_right_is_left_out(
    run: Recorded, receipt: str, labels: tuple[str, ...], names: tuple[str, ...], cut: str
) -> None:
    (run.folder.path / "receipt.json").write_text(receipt)
    assert run.folder.labels() == (labels, names)
    assert run.folder.prompt_cut() == cut
