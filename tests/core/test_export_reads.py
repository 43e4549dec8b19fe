"""What an export reads of its base: every byte once, also of matrices that are stored turned."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from adapters import random_adapter
from model_folders import write_folder

import edgetune_profiles
from edgetune.exporters import ExportRequest
from edgetune.exporters.gguf import rows as rows_module
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.merge import merged_tensors
from edgetune.exporters.updates import Merge, merge_of
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

TINY = Path(edgetune_profiles.__file__).parent / "tiny"
GPT2 = {"model_type": "gpt2", "n_embd": 256, "n_head": 4, "n_layer": 2, "vocab_size": 1024}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what is read")


@pytest.fixture(params=["folder", "file"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    folder = LocalModel.open(write_folder(tmp_path / "base", GPT2))
    if request.param == "folder":
        return folder
    model_file(folder, Merge(changes={}), "f16", TokenizerFacts.read(TINY)).write(
        tmp_path / "base.gguf"
    )
    return LocalModel.open(tmp_path / "base.gguf")


def bytes_read(work: Callable[[], object]) -> int:
    before = psutil.Process().io_counters().read_chars
    work()
    return int(psutil.Process().io_counters().read_chars - before)


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_a_file_is_made_of_one_reading(
    kind: str, base: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.tensors.writer.CHUNK_ELEMENTS", 40_000)  # a matrix has 262,144
    adapter = random_adapter(Lora(rank=2), base.shape)
    facts, merge = TokenizerFacts.read(TINY), merge_of(adapter, base)
    out = tmp_path / "out.gguf"

    read = bytes_read(lambda: model_file(base, merge, kind, facts).write(out))  # type: ignore[arg-type]
    assert base.nbytes <= read <= 1.05 * base.nbytes
    written = LocalModel.open(out)
    for name, tensor in base.tensors.items():
        expected = np.array(base.read(name), np.float32)
        if name in merge.changes:
            merge.changes[name].apply(expected, 0, len(expected))
        near = float(np.abs(expected).max()) / 127 if kind == "q8_0" else 1e-6
        np.testing.assert_allclose(written.read(name), expected, rtol=0, atol=near, err_msg=name)
        assert tensor.shape == written.tensors[name].shape


def test_a_folder_is_made_of_one_reading(
    base: LocalModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgetune.tensors.writer.CHUNK_ELEMENTS", 40_000)
    adapter = random_adapter(Lora(rank=2), base.shape)
    request = ExportRequest(adapter=adapter, model=base, output=tmp_path / "out")
    tensors = merged_tensors(request, merge_of(adapter, base))

    read = bytes_read(lambda: [sum(1 for _ in tensor.chunks()) for tensor in tensors])
    assert base.nbytes <= read <= 1.05 * base.nbytes


@pytest.mark.parametrize("limit", [1, 3000, 1 << 24])
def test_what_is_held_of_a_turned_matrix_changes_nothing(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows_module, "HELD", limit)
    values = np.random.default_rng(0).normal(size=(60, 200)).astype(np.float32)
    turned = rows_module.Transposed(rows_module.HeldRows(values))
    for start, stop in ((0, 70), (70, 140), (140, 200), (10, 30), (0, 200), (199, 200)):
        found = turned.read(start, stop)
        np.testing.assert_array_equal(found, values.T[start:stop])
        found[:] = 0  # in memory of its own
