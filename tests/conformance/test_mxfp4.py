"""gpt-oss as it is published, its experts in MX FP4, computes what its unpacked twin does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models import make_model
from published_folders import make_mxfp4
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from conformance.sessions import ROW, Bench, rows, step
from edgetune.adapters import load_adapter, save_adapter
from edgetune.errors import ModelError
from edgetune.exporters import ExportRequest, export
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

EXPERTS = ("gate_up_proj", "down_proj")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a folder as published, and one with the same numbers in bfloat16."""
    packed, plain = (tmp_path_factory.mktemp(name) for name in ("packed", "plain"))
    sizes = {"intermediate_size": 32, "layers": 2}
    make_mxfp4(packed, **sizes)
    make_model(plain, "gpt_oss", dtype=torch.bfloat16, **sizes)
    tensors, unpacked = (load_file(x / "model.safetensors") for x in (packed, plain))
    for name in [name for name in unpacked if name.endswith(EXPERTS)]:
        codes, scales = tensors[f"{name}_blocks"], tensors[f"{name}_scales"]
        unpacked[name] = convert_moe_packed_tensors(codes, scales).contiguous()
    save_file(unpacked, plain / "model.safetensors")
    return packed, plain


def test_its_numbers_are_those_of_transformers(folders: tuple[Path, Path]) -> None:
    packed, plain = (LocalModel.open(folder) for folder in folders)

    assert packed.shape.published is not None
    assert packed.shape.published.kept_as == "mxfp4"
    assert replace(packed.shape, published=None) == plain.shape
    assert packed.tensors.keys() == plain.tensors.keys()
    for name in packed.tensors:
        np.testing.assert_array_equal(packed.read(name), plain.read(name), err_msg=name)


@pytest.mark.parametrize("held", ["plain", "streamed", "4-bit"])
def test_it_trains_as_its_twin_does(bench: Bench, folders: tuple[Path, Path], held: str) -> None:
    four = {"quantization": bench.ways.formats["4-bit, by name"]}
    fixed = {"plain": {}, "4-bit": four} | dict(bench.ways.places)
    found = []
    for folder in folders:
        session = bench.open(Lora(rank=3), LocalModel.open(folder), **fixed[held])
        found.append([step(session, rows()) for _ in range(2)])
        found[-1].append(session.logits(ROW))

    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_merged_model_keeps_its_experts(
    bench: Bench, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    model, lora = LocalModel.open(folders[0]), Lora(rank=3)
    session = bench.open(lora, model)
    step(session, rows())
    save_adapter(tmp_path / "own", lora, model.shape, session.adapter_tensors(), base="tiny")
    adapter = load_adapter(tmp_path / "own", model.shape)
    request = ExportRequest(adapter=adapter, model=model, output=tmp_path / "out", dtype="float32")
    export("hf", request)

    before, after = (load_file(x / "model.safetensors") for x in (folders[0], tmp_path / "out"))
    experts = [name for name in before if name.endswith(("_blocks", "_scales"))]
    assert experts
    assert all(torch.equal(before[name], after[name]) for name in experts)
    merged = bench.open(lora, LocalModel.open(tmp_path / "out")).logits(ROW, adapter=None)
    np.testing.assert_allclose(merged, session.logits(ROW), rtol=1e-4, atol=1e-4)


def test_scales_that_are_no_numbers_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load_file(folders[0] / "model.safetensors")
    broken = next(name for name in tensors if name.endswith("_scales"))
    tensors[broken].view(-1)[0] = 255
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folders[0] / "config.json").read_text())
    model = LocalModel.open(tmp_path)
    name = next(x for x in model.tensors if x.endswith("experts.0.down_proj.weight"))

    with pytest.raises(ModelError, match="values that are NaN"):
        model.read(name if "down" in broken else name.replace("down_proj", "gate_up_proj"))
