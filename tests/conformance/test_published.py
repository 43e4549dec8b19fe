"""Checkpoints that are published quantized compute, train and merge as their unpacked twins do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import random_tensors
from published_folders import WIDE, change_config, make_pair
from published_formats import FORMATS, Format, blockwise, fp8, mlx
from safetensors.torch import load_file, save_file

from conformance.sessions import ROW, Bench, rows, step
from edgetune.adapters import load_adapter, save_adapter
from edgetune.errors import ModelError
from edgetune.exporters import ExportRequest, export
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

STEPS = 3
LORA = Lora(rank=3)


def trained(bench: Bench, folder: Path, **fixed: Any) -> list[Any]:
    """Return losses and norms of some steps, and the logits after them."""
    session = bench.open(LORA, LocalModel.open(folder), **fixed)
    return [*(step(session, rows(seed=i)) for i in range(STEPS)), session.logits(ROW)]


def assert_alike(one: list[Any], other: list[Any]) -> None:
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


SHORT = ("fp8 blocks", "nf4", "int8", "gptq by activation", "awq", "packed, one-sided", "nv fp4")
"""One for each way of unpacking; what their numbers are is another test."""


@pytest.mark.parametrize(
    "name", [x if x in SHORT else pytest.param(x, marks=pytest.mark.long) for x in FORMATS]
)
def test_it_trains_as_its_twin_does(bench: Bench, name: str, tmp_path: Path) -> None:
    folders = make_pair(tmp_path, "llama", FORMATS[name], **WIDE)

    assert_alike(*(trained(bench, folder) for folder in folders))


@pytest.mark.parametrize("way", ["streamed", "offloaded", "8-bit", "4-bit"])
@pytest.mark.parametrize("name", ["fp8 blocks", "mlx in four"])
def test_in_every_place_and_format(bench: Bench, way: str, name: str, tmp_path: Path) -> None:
    sizes = WIDE | {"intermediate_size": 128, "head_dim": 16}  # whole groups of 64
    folders = make_pair(tmp_path, "llama", FORMATS[name], **sizes)
    fixed = dict(bench.ways.places.get(way, {"quantization": bench.ways.formats.get(way)}))
    if FORMATS[name].outer:
        fixed |= dict.fromkeys({"embedding", "head"} & fixed.keys(), "resident")

    assert_alike(*(trained(bench, folder, **fixed) for folder in folders))


FLOAT32 = torch.float32
AFFINE = {"place": "quantization", "dtype": FLOAT32, "outer": True}
KEPT = {
    "torch": {
        "nf4": Format(FORMATS["nf4"].settings, blockwise("nf4", dtype="float32"), FLOAT32),
        "int8": Format(FORMATS["int8"].settings, FORMATS["int8"].writer, FLOAT32),
    },
    "mlx": {
        "q4": Format({"group_size": 64, "bits": 4}, mlx(4, 64, dtype="float32"), **AFFINE),
        "mxfp4": Format(
            {"group_size": 32, "bits": 4, "mode": "mxfp4"},
            mlx(4, 32, "mxfp4", "float32"),
            **AFFINE,
        ),
    },
}


@pytest.mark.parametrize("held", ["plain", "streamed"])
def test_codes_of_the_same_format_are_used_as_they_are(
    bench: Bench, held: str, tmp_path: Path
) -> None:
    """They stand for the numbers that unpacking gives, without being rounded again."""
    sizes = WIDE | {"intermediate_size": 128, "head_dim": 16}
    fixed = (dict(bench.ways.places) | {"plain": {}})[held]
    for quantization, form in KEPT[bench.name].items():
        packed, plain = make_pair(tmp_path / quantization, "llama", form, **sizes)
        ours = trained(bench, packed, quantization=quantization, **fixed)
        theirs = trained(bench, plain, **fixed)

        model = LocalModel.open(packed)
        assert model.shape.published is not None
        assert model.shape.published.kept_as == quantization
        assert_alike(ours, theirs)


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "phi3"])
def test_families_whose_matrices_differ(bench: Bench, family: str, tmp_path: Path) -> None:
    form = FORMATS["nf4"]
    sizes = {"gpt2": {}, "qwen3_moe": {"moe_intermediate_size": 32}}.get(family, {})
    folders = make_pair(tmp_path, family, form, skip=("mlp.gate.",), **sizes)

    assert_alike(*(trained(bench, folder) for folder in folders))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_experts_that_mlx_stacked(bench: Bench, family: str, tmp_path: Path) -> None:
    """mlx-lm has those of a block in one tensor, under names of its own."""
    form = FORMATS["mlx in four"]
    packed, plain = make_pair(
        tmp_path, family, form, hidden_size=64, moe_intermediate_size=32, intermediate_size=96
    )
    tensors = load_file(packed / "model.safetensors")
    named = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    stacks: dict[str, list[torch.Tensor]] = {}
    for name in [name for name in tensors if ".experts." in name]:
        block, _, rest = name.partition(".experts.")
        _, role, part = rest.split(".")
        full = f"{block}.switch_mlp.{named.get(role, role)}.{part}"
        stacks.setdefault(full, []).append(tensors.pop(name))
    stacked = {name: torch.stack(parts) for name, parts in stacks.items()}
    assert stacked
    save_file(tensors | stacked, packed / "model.safetensors")

    assert_alike(*(trained(bench, folder) for folder in (packed, plain)))


@pytest.mark.parametrize("name", ["fp8 blocks", "gptq by activation", "nf4", "mlx in four"])
def test_merging_writes_a_plain_model(bench: Bench, name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    packed, plain = make_pair(tmp_path, "llama", form, **WIDE)
    model = LocalModel.open(packed)
    session = bench.open(LORA, model)
    step(session, rows())
    save_adapter(tmp_path / "own", LORA, model.shape, session.adapter_tensors(), base="tiny")
    adapter = load_adapter(tmp_path / "own", model.shape)
    request = ExportRequest(adapter=adapter, model=model, output=tmp_path / "out", dtype="float32")
    export("hf", request)

    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    written, base = (load_file(x / "model.safetensors") for x in (tmp_path / "out", plain))
    assert written.keys() == base.keys()
    assert all(x.dtype == torch.float32 for x in written.values())
    merged = bench.open(LORA, LocalModel.open(tmp_path / "out")).logits(ROW, adapter=None)
    np.testing.assert_allclose(merged, session.logits(ROW), rtol=1e-4, atol=1e-4)


def test_biases_of_zeros_that_a_model_lacks_are_left_out(tmp_path: Path) -> None:
    """AutoGPTQ wrote one beside every matrix, with models that have none and with others."""
    for family in ("llama", "qwen2"):
        packed, plain = make_pair(tmp_path / family, family, FORMATS["gptq"], **WIDE)
        tensors = load_file(packed / "model.safetensors")
        modules = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
        zeros = {f"{x}.bias": torch.zeros(len(tensors[f"{x}.scales"][0])).half() for x in modules}
        save_file(zeros | tensors, packed / "model.safetensors")
        model = LocalModel.open(packed)
        assert model.tensors.keys() == LocalModel.open(plain).tensors.keys()

        out = tmp_path / f"{family}-out"
        out.mkdir()
        save_adapter(out / "own", LORA, model.shape, random_tensors(LORA, model.shape), base="tiny")
        adapter = load_adapter(out / "own", model.shape)
        export("hf", ExportRequest(adapter=adapter, model=model, output=out / "merged"))
        LocalModel.open(out / "merged")

        (name, bias), *_ = ((f"{x}.bias", zeros[f"{x}.bias"]) for x in modules if "mlp" in x)
        save_file(zeros | tensors | {name: bias + 0.5}, packed / "model.safetensors")
        with pytest.raises(ModelError, match=f"{name}: not expected"):
            LocalModel.open(packed)


def test_gpt2_is_merged_as_it_was_published(bench: Bench, tmp_path: Path) -> None:
    packed, plain = make_pair(tmp_path, "gpt2", FORMATS["nf4"])
    model = LocalModel.open(packed)
    session = bench.open(LORA, model)
    save_adapter(tmp_path / "own", LORA, model.shape, session.adapter_tensors(), base="tiny")
    adapter = load_adapter(tmp_path / "own", model.shape)
    export("hf", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))

    written, base = (load_file(x / "model.safetensors") for x in (tmp_path / "out", plain))
    assert all(torch.equal(written[name], x) for name, x in base.items())


def test_experts_in_fp8_train(bench: Bench, tmp_path: Path) -> None:
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    form = Format(settings, fp8((128, 128), dtype=FLOAT32))
    folders = make_pair(
        tmp_path, "qwen3_moe", form, skip=("mlp.gate.",), hidden_size=64, moe_intermediate_size=24
    )

    assert_alike(*(trained(bench, folder) for folder in folders))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "hqq"}, "with HQQ, which is not read"),
        ({"quant_method": "aqlm"}, "with AQLM"),
        ({"quant_method": "torchao"}, "with torchao"),
        ({"quant_method": "new"}, "by 'new', which is not read"),
        ({"bits": 4}, "in an unknown way"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "in the order 'marlin'"),
        ({"quant_method": "gptq", "bits": 5}, "in 5 bits"),
        ({"quant_method": "awq", "version": "gemv"}, "in the order 'gemv'"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "in the format 'marlin-24'"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
         "with sparse weights"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": ["odd"]}},
         "with sparse weights"),
        ({"quant_method": "mxfp4"}, "by 'mxfp4'"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder, _ = make_pair(tmp_path, "llama", FORMATS["fp8 blocks"], layers=1)
    change_config(folder, lambda config: config | {"quantization_config": settings})

    with pytest.raises(ModelError, match=f"already quantized .*{said}.*16-bit model"):
        LocalModel.open(folder)
