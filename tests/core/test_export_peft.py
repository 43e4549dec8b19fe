"""The adapter that is handed over is the run's adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from adapters import random_adapter
from model_folders import write_folder

from edgetune.adapters import load_adapter, save_adapter
from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel


def test_the_adapter_is_copied_to_the_byte(tmp_path: Path) -> None:
    model = LocalModel.open(write_folder(tmp_path / "base"))
    adapter = random_adapter(Lora(rank=3, alpha=1.5, targets=("mlp",)), model.shape)
    run, out = tmp_path / "run", tmp_path / "out"
    save_adapter(run, adapter.method, model.shape, adapter.tensors, base="org/base")
    loaded = load_adapter(run, model.shape)
    exported = export("peft", ExportRequest(adapter=loaded, model=model, output=out))

    assert not exported.notes
    assert sorted(path.name for path in out.iterdir()) == sorted(p.name for p in run.iterdir())
    for path in run.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_an_adapter_without_a_base_gets_the_models_name(tmp_path: Path) -> None:
    model = LocalModel.open(write_folder(tmp_path / "base"), ref="org/name")
    adapter = replace(random_adapter(Lora(rank=3), model.shape), base=None)
    export("peft", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))

    assert load_adapter(tmp_path / "out", model.shape).base == "org/name"


def test_options_of_merging_are_refused(tmp_path: Path) -> None:
    model = LocalModel.open(write_folder(tmp_path / "base"))
    adapter = random_adapter(Lora(rank=3), model.shape)
    request = ExportRequest(adapter=adapter, model=model, output=tmp_path / "out")

    for asked in (replace(request, dtype="float16"), replace(request, shard_bytes=1000)):
        with pytest.raises(UsageError, match="are for merged weights"):
            export("peft", asked)
