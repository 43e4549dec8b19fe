"""This machine is measured once, in a process of its own, and plans then say so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from measurements import plain_measurements
from rows import write_rows

from edgetune.device import read_device
from edgetune.errors import CheckFailedError, NoImprovementError, UsageError
from edgetune.model import resolve
from edgetune.speed.measured import FILE_NAME, save_measurements
from edgetune.workflows import measured
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune.workflows.training import start_run


def _plan(folder: Path, *more: str) -> dict[str, object]:
    command = [sys.executable, "-m", "edgetune", "plan", "--model", "smollm2-135m"]
    command += ["--device", "cpu", "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    time: dict[str, object] = json.loads(done.stdout)["time"]
    return time


def test_a_measurement_that_fails_is_told_from_a_device_that_is_not_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UsageError, match="it is a profile, not a device of this machine"):
        measured.measure_apart(read_device("rtx-4060-laptop"), "rtx-4060-laptop")
    monkeypatch.setattr(measured, "MOST_SECONDS", 0.01)
    with pytest.raises(CheckFailedError, match=r"could not be measured: .*timed out"):
        measured.measure_apart(read_device("cpu"), "cpu")


def test_a_machine_that_cannot_be_measured_is_not_tried_before_each_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measured, "MOST_SECONDS", 0.01)
    first: list[str] = []
    again: list[str] = []
    assert measured.measured_once("cpu", first.append) is None
    assert first[0].startswith("Measuring this machine once")
    assert measured.measured_once("cpu", again.append) is None
    assert again == first[1:]
    assert "timed out" in again[0]
    assert "`edgetune devices --measure` tries again" in again[0]

    found = replace(plain_measurements(), device=read_device("cpu").name)
    save_measurements(found)  # as a measurement that worked does
    assert measured.measured_once("cpu", again.append) == found
    assert len(again) == 1


def test_a_pilot_corrects_rates_of_a_busy_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    slow = {name: getattr(plain_measurements(), name) / 1000 for name in ("product_32bit",
            "product_16bit", "attention_32bit", "attention_16bit", "pointwise")}  # fmt: skip
    save_measurements(replace(plain_measurements(), **slow))
    run = start_run(
        plan_for(
            PlanRequest(
                model="tiny", data=write_rows(tmp_path / "rows.jsonl"), device="cpu",
                choice={"micro_batch": 2, "accumulation": 1}, training={"steps": 1},
            )
        ),
        tmp_path / "run",
    )  # fmt: skip
    with closing(run), suppress(NoImprovementError):
        list(run.events())
    (found,) = json.loads((tmp_path / "cache" / FILE_NAME).read_text())
    (told,) = found["experience"]
    assert told["share"] < 0.5
    notes = [json.loads(line) for line in run.folder.journal.read_text().splitlines()]
    assert [note["share"] for note in notes if note["what"] == "rates corrected"] == [told["share"]]


def test_a_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path / "cache"))
    assert _plan(tmp_path)["basis"] == "profile"
    assert not (tmp_path / "cache").exists()

    found = _plan(tmp_path, "--measure")
    assert found["basis"] == "measured"
    kept = (tmp_path / "cache" / FILE_NAME).read_bytes()

    assert _plan(tmp_path, "--measure") == found  # not measured again
    assert _plan(tmp_path) == found
    assert (tmp_path / "cache" / FILE_NAME).read_bytes() == kept
    (rates,) = json.loads(kept)
    assert 0 < rates["operation"] < 1e-2
    assert set(rates["block"]) == set(rates["head"])


@pytest.mark.skipif(sys.platform != "linux", reason="GCC's OpenMP says how long it spins")
@pytest.mark.parametrize(("chosen", "spins"), [(None, "0"), ("ACTIVE", "30000000000")])
def test_idle_threads_sleep_whoever_loads_the_library_first(
    tmp_path: Path, chosen: str | None, spins: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": chosen} if chosen else {}
    # the tokenizer of a model that is no Llama: transformers loads torch for it
    folder = resolve("tiny").folder
    assert folder is not None
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "granite"}))
    rows = write_rows(tmp_path / "rows.jsonl")
    command = [sys.executable, "-m", "edgetune", "data", "check", str(rows), "--model", str(model)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**environment, "OMP_DISPLAY_ENV": "VERBOSE"},
    )  # fmt: skip
    assert set(re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)) == {spins}
