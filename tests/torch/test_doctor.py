"""``edgetune doctor`` tries the devices of this machine and tells of those that cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rows import Cli

import edgetune.workflows.diagnosis
from edgetune.backend import load_backend
from edgetune.device import Reading, read_machine
from edgetune.device.base import DeviceIdentity, Fault
from edgetune.errors import UsageError
from edgetune.model import open_model
from edgetune.workflows.opening import open_session
from edgetune.workflows.planning import PlanRequest, plan_for
from edgetune_torch.cpu_kernels import build

WITHOUT_CUDA = torch.version.cuda is None


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line, with an empty cache of models."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return Cli(capsys)


def test_a_machine_with_torch_can_train(cli: Cli) -> None:
    called = cli("doctor")

    assert called.code == 0
    assert f"torch {torch.__version__} on CPU" in called.out
    assert "Try: edgetune train --model tiny --data FILE" in called.out


def test_a_missing_compiler_is_told_where_kernels_would_serve(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "serves", lambda: True)
    monkeypatch.setenv("PATH", str(tmp_path))
    called = cli("doctor", "--device", "cpu")
    assert called.code == 0
    assert "\n       Runs in bfloat16 are faster with a compiler: install gcc\n" in called.out
    library = build._file()
    build._keep(b"code", library)
    assert "install gcc" not in cli("doctor", "--device", "cpu").out
    library.unlink()
    monkeypatch.setattr(build, "serves", lambda: False)
    assert "install gcc" not in cli("doctor", "--device", "cpu").out


def test_programs_get_the_same(cli: Cli) -> None:
    called = cli("doctor", "--json")
    told = json.loads(called.out)

    assert called.code == 0
    assert told["usable"] is True
    assert [d["device"]["kind"] for d in told["devices"]] == [
        device.kind for device in read_machine().devices
    ]
    assert told["packages"]["torch"].startswith(str(torch.__version__).partition("+")[0])


def test_a_machine_on_which_nothing_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault(what="CPU", because="torch is not installed", do="Type: pip install torch")
    card = Fault(what="AMD graphics", because="edgetune has no backend for ROCm yet", do="Type: x")
    broken = replace(read_machine().devices[-1], fault=fault)
    monkeypatch.setattr(
        edgetune.workflows.diagnosis, "read_machine", lambda: Reading((broken,), faults=(card,))
    )

    called = cli("doctor")

    assert called.code == 8
    assert "torch is not installed\n       Type: pip install torch" in called.out
    assert "no   AMD graphics: edgetune has no backend for ROCm yet" in called.out
    assert "Nothing here can train yet" in called.out
    assert json.loads(cli("doctor", "--json").out)["usable"] is False


@pytest.mark.skipif(not WITHOUT_CUDA, reason="this torch is built for CUDA")
def test_a_card_that_this_torch_cannot_use_is_an_error_and_no_failed_assertion(cli: Cli) -> None:
    usable = load_backend("torch").usable(DeviceIdentity("cuda"))
    assert not usable.value
    assert "is built without CUDA" in usable.because

    plan = plan_for(PlanRequest(model="tiny", device="rtx-4060-laptop")).plan
    with pytest.raises(UsageError, match=r"cannot be used: this torch .* is built without CUDA"):
        open_session(plan, open_model("tiny"))


def test_backends_speak_of_devices() -> None:
    assert load_backend("torch").usable(DeviceIdentity("cpu")).value
    assert not load_backend("torch").usable(DeviceIdentity("mlx")).value
    assert not load_backend("mlx").usable(DeviceIdentity("cuda")).value


def test_a_device_that_is_not_here(cli: Cli) -> None:
    called = cli("doctor", "--device", "cuda:7")

    assert called.code == 2
    assert "There is no" in called.err
