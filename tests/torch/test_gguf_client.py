"""GGUF files in llama.cpp itself: what it computes is what was trained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import random_adapter
from gguf_models import absorbed
from llama_cpp_models import (
    CASES,
    FALCON_H1,
    GEMMA3N,
    GEMMA4,
    GPT2,
    GPT_OSS,
    GRANITE4,
    LATENTS,
    NO_WINDOW,
    QWEN35,
    SIZES,
    WINDOW,
    rope,
)
from models import FAMILIES, make_model
from numpy.typing import NDArray
from opened import open_decoder
from published_folders import make_mxfp4

import edgetune_profiles
from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.gguf.client import Client
from edgetune.exporters.gguf.mixture import MIXTURES
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.updates import Merge
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE

TINY = Path(edgetune_profiles.__file__).parent / "tiny"
LENGTHS = (32, 256)


def _folder(folder: Path, family: str, **changes: object) -> Path:
    sizes = SIZES if "hidden_size" in FAMILIES[family] and family != "bloom" else {}
    make_model(folder, family, **(sizes | changes))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, folder)
    return folder


def _request(folder: Path, output: Path, **options: Any) -> ExportRequest:
    model = LocalModel.open(folder)
    adapter = random_adapter(Lora(rank=2, alpha=3.0), model.shape)
    return ExportRequest(adapter=adapter, model=model, output=output, **options)


def _logits(folder: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Return our engine's logits of a merged folder."""
    return open_decoder(LocalModel.open(folder)).logits(tokens, BASE).numpy()


def _centred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values - values.mean(dtype=np.float64).astype(np.float32)


LONG = frozenset({"granite 4", "granite 4 h", "falcon_h1"})
"""What others are more of."""


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param(*case, id=name, marks=[pytest.mark.long] if name in LONG else [])
        for name, case in CASES.items()
    ],
)
def test_llama_cpp_computes_what_was_trained(
    tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    # in 16 bits the errors of many layers add up
    quantize = "f32" if changes.get("num_hidden_layers", 0) > 20 else None
    folder = _folder(tmp_path / "base", family, **changes)
    export("gguf", _request(folder, tmp_path / "m.gguf", quantize=quantize))
    export("hf", _request(tmp_path / "base", tmp_path / "hf"))
    tokens = np.random.default_rng(1).integers(4, 1024, max(LENGTHS)).tolist()
    with Client(tmp_path / "m.gguf", context=512) as client:
        for length in LENGTHS:
            # both are beyond what changes LongRoPE: by the document here, by the context there
            logits = _logits(tmp_path / "hf", tokens[:length])[-1]
            found = client.log_probabilities(tokens[:length], 1024)
            assert np.abs(_centred(found) - _centred(logits)).max() < 2e-2
            assert logits.std() > 0.5


@pytest.mark.parametrize("quantize", ["f16", "q8_0"])
def test_experts_in_mx_fp4_stay_what_they_are(tmp_path: Path, quantize: str) -> None:
    folder = make_mxfp4(tmp_path / "base", **SIZES | GPT_OSS)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, folder)
    result = export("gguf", _request(folder, tmp_path / "m.gguf", quantize=quantize))
    base, file = LocalModel.open(folder), LocalModel.open(tmp_path / "m.gguf")
    assert file.shape.formats is not None

    experts = [name for name in base.tensors if ".experts." in name and name.endswith("weight")]
    assert {file.tensors[name].dtype for name in experts} == {"MXFP4"}
    for name in experts:
        np.testing.assert_array_equal(file.read(name), base.read(name).astype(np.float32))
    tokens = np.random.default_rng(1).integers(4, 1024, 64).tolist()
    with Client(result.path, context=512) as client:
        found = client.log_probabilities(tokens, 1024)
    # activations become 8 bits before they meet such blocks
    logits = open_decoder(file).logits(tokens, BASE)[-1].numpy()
    assert np.abs(_centred(found) - _centred(logits)).max() < 0.1
    assert logits.std() > 0.5


def test_latents_in_two_tensors_are_what_llama_cpp_takes_them_for(tmp_path: Path) -> None:
    base = LocalModel.open(_folder(tmp_path / "base", "deepseek_v3", **LATENTS))
    absorbed(model_file(base, Merge(changes={}), "f32"), base.shape).write(tmp_path / "m.gguf")
    model = LocalModel.open(tmp_path / "m.gguf")
    tokens = np.random.default_rng(1).integers(4, 1024, 64).tolist()
    with Client(tmp_path / "m.gguf", context=512) as client:
        found = client.log_probabilities(tokens, 1024)

    for ours in (base, model):
        logits = open_decoder(ours).logits(tokens, BASE)[-1].numpy()
        assert np.abs(_centred(found) - _centred(logits)).max() < 2e-3


def test_bounds_of_a_rotation_that_llama_cpp_rounds_are_told(tmp_path: Path) -> None:
    bounds = {"original_max_position_embeddings": 300}
    rotation = {"rope_parameters": GPT_OSS["rope_parameters"] | bounds}
    model = LocalModel.open(_folder(tmp_path / "base", "gpt_oss", **GPT_OSS | rotation))

    (note,) = model_file(model, Merge(changes={}), "f16").notes

    assert "rounds the bounds of this model's rotation" in note
    assert "0.46 and 4.46 become 0 and 5, which turns a channel by up to" in note


@pytest.mark.parametrize("quantization", MIXTURES)
def test_every_quantization_loads_and_errs_by_its_bits(tmp_path: Path, quantization: str) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
    folder = _folder(tmp_path / "base", "llama", **sizes, initializer_range=0.03)
    export("gguf", _request(folder, tmp_path / "m.gguf", quantize=quantization))
    export("hf", _request(folder, tmp_path / "hf"))
    tokens = np.random.default_rng(1).integers(4, 1024, 32).tolist()
    logits = _centred(_logits(tmp_path / "hf", tokens)[-1])
    with Client(tmp_path / "m.gguf", context=512) as client:
        found = _centred(client.log_probabilities(tokens, 1024))

    error = np.sqrt(np.square(found - logits).mean() / np.square(logits).mean())
    limits = {"f32": 1e-4, "f16": 2e-3, "bf16": 0.02, "q8_0": 0.05, "q6_k": 0.15, "q5_k_m": 0.3,
              "q4_k_m": 0.5, "q4_0": 0.6}  # fmt: skip
    assert error < limits[quantization]


LORAS = [
    ("llama", {}, Lora(rank=2, alpha=3.0)),
    ("llama", {}, Lora(rank=4, rslora=True, targets=("q_proj", "k_proj"), layers=1)),
    ("llama", {}, Lora(rank=4, rank_pattern=("q_proj=2", "down_proj=8"), alpha_pattern=("v_proj=3",))),
    ("qwen3", {}, Lora(rank=2)),
    ("gemma2", WINDOW | {"query_pre_attn_scalar": 144}, Lora(rank=2)),
    ("phi3", NO_WINDOW, Lora(rank=2)),
    ("qwen3_5_text", QWEN35, Lora(rank=2)),
    ("gpt2", GPT2, Lora(rank=2)),
    ("gpt_neox", {"rotary_pct": 0.5} | rope("default", partial_rotary_factor=0.5), Lora(rank=2)),
    ("granitemoehybrid", GRANITE4, Lora(rank=2)),
    pytest.param(
        "falcon_h1", FALCON_H1, Lora(rank=2, targets=("all-linear", "mamba.out_proj")),
        marks=pytest.mark.long,
    ),
    pytest.param("gpt_oss", GPT_OSS, Lora(rank=2), marks=pytest.mark.long),
    ("deepseek_v3", LATENTS, Lora(rank=2, targets=("o_proj", "mlp"))),
    ("gemma3n_text", GEMMA3N,
     Lora(rank=2, alpha=3.0, targets=(
         "all-linear", "per_layer_input_gate", "per_layer_projection", "laurel.linear_left",
         "laurel.linear_right"))),
    ("gemma4_text", GEMMA4,
     Lora(rank=2, alpha=3.0, targets=("all-linear", "per_layer_input_gate"))),
]  # fmt: skip


def test_adapters_of_what_makes_latents_are_refused_alone(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "base", "deepseek_v3", **LATENTS)
    request = _request(folder, tmp_path / "lora.gguf", alone=True)
    with pytest.raises(UsageError, match=r"computes self_attn\.q_a_proj,.* without adapters"):
        export("gguf", request)


def test_scores_that_grow_without_yarn_are_refused(tmp_path: Path) -> None:
    scaling = rope("linear", factor=4.0, mscale_all_dim=1.0)
    folder = _folder(tmp_path / "base", "deepseek_v3", **LATENTS | scaling)
    with pytest.raises(UsageError, match="scores are scaled by more than the root"):
        export("gguf", _request(folder, tmp_path / "model.gguf"))


@pytest.mark.parametrize(("family", "changes", "lora"), LORAS)
def test_an_adapter_over_its_base_is_the_merged_model(
    tmp_path: Path, family: str, changes: dict[str, Any], lora: Lora
) -> None:
    model = LocalModel.open(_folder(tmp_path / "base", family, **changes))
    adapter = random_adapter(lora, model.shape)
    request = ExportRequest(
        adapter=adapter, model=model, output=tmp_path / "merged.gguf", quantize="f32"
    )
    export("gguf", request)
    export("gguf", replace(request, output=tmp_path / "lora.gguf", alone=True))
    model_file(model, Merge(changes={}), "f32").write(tmp_path / "base.gguf")
    tokens = np.random.default_rng(1).integers(4, 1024, 32).tolist()

    def logits(file: str, lora: Path | None = None) -> NDArray[np.float32]:
        with Client(tmp_path / file, context=512, adapter=lora) as client:
            return client.log_probabilities(tokens, 1024)

    merged, base = logits("merged.gguf"), logits("base.gguf")
    assert np.abs(logits("base.gguf", tmp_path / "lora.gguf") - merged).max() < 2e-3
    assert np.abs(base - merged).max() > 0.05
