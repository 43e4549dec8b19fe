"""mlx-lm itself loads what is exported for it, and computes the same."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from adapters import random_adapter
from answers import continued
from mlx.utils import tree_flatten
from mlx_lm import load, stream_generate
from mlx_lm.models.gemma3n import TextConfig
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model
from mlx_sessions import VOCABULARY, open_session
from models import FAMILIES as FAMILY_SIZES
from models import make_model, make_wrapper

from edgetune.adapters import load_adapter
from edgetune.backend import GenerateOptions
from edgetune.data import load_tokenizer
from edgetune.errors import ModelError, UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.mlx import readable_config
from edgetune.exporters.quantized_folder import (
    BITS,
    Bits,
    quantize_folder,
    quantized,
    refuse_unquantizable,
)
from edgetune.methods import build
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel, open_model, shape_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2",
            "gpt_neox", "gpt2", "gemma3")  # fmt: skip

READ_BY_MLX_LM = ("cohere", "cohere2", "olmo3", "glm4", "ernie4_5", "hunyuan_v1_dense", "seed_oss", "apertus",
                  "granite", "nemotron", "helium", "ministral3", "phi", "stablelm", "lfm2", "qwen3_5", "mixtral", "olmoe",
                  "qwen3_moe", "granitemoe", "gemma4_text", "gemma4_moe", "gemma4", "gemma4_unified",
                  "deepseek_v2", "nemotron_h", "nemotron_h_moe")  # fmt: skip
"""Further families, of which the merged model and the adapter are compared."""

WITHOUT_WINDOW = {"mistral", "phi3", "gemma2"}
"""mlx-lm's classes let every token see all before it: rows are kept within the window."""

CHANGES = {
    "gemma3_text": {"num_hidden_layers": 6},
    "gemma3": {"text_config": FAMILY_SIZES["gemma3_text"] | {"num_hidden_layers": 6}},
    "qwen3_5": {
        "text_config": FAMILY_SIZES["qwen3_5_text"]
        | {"layer_types": ["linear_attention", "full_attention"] * 2, "num_hidden_layers": 4}
    },
    "gemma4": {"text_config": FAMILY_SIZES["gemma4_text"]},
    "gpt_neox": {"intermediate_size": 128},
    "phi": {"num_attention_heads": 2, "head_dim": 16},
    "nemotron_h_moe": {"n_group": 1, "topk_group": 1},
}
"""mlx-lm wants one layer that sees everything, and fixes the width of GPT-NeoX's MLP."""

TOLERANCE = {
    "gemma4": 2e-3,
    "gemma4_unified": 2e-3,
    "gemma4_text": 2e-3,
    "gemma4_moe": 2e-3,
    "gemma": 2e-3,
    "gemma3": 2e-3,
    "gemma3_text": 2e-3,
    "gpt_neox": 2e-3,
}
"""mlx-lm computes another approximation of GELU."""

ROW = np.random.default_rng(4).integers(3, VOCABULARY, 23).tolist()


@pytest.mark.parametrize("family", FAMILIES + READ_BY_MLX_LM)
def test_mlx_lm_computes_the_same_from_adapter_and_from_merged_model(
    family: str, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "base", family, **CHANGES.get(family, {}))
    model = LocalModel.open(folder)
    adapter = random_adapter(build("lora", {"rank": 4, "layers": 2}), model.shape)
    out = tmp_path / "out"
    export("mlx", ExportRequest(adapter=adapter, model=model, output=out))
    row = ROW[:5] if family in WITHOUT_WINDOW else ROW
    session = open_session(folder, layers=2)
    session.restore(adapter.tensors)
    expected = session.logits(row)

    merged, _ = load_model(out)
    unmerged, _ = load_model(_as_on_the_hub(model, tmp_path / "hub"))
    adapted = load_adapters(unmerged, str(out))

    for found in (merged, adapted):
        logits = np.array(found(mx.array([row])))[0]
        np.testing.assert_allclose(logits, expected, atol=TOLERANCE.get(family, 1e-4))
    assert not np.allclose(session.logits(row, adapter=None), expected, atol=1e-2)


def test_a_model_that_mlx_lm_computes_otherwise_is_refused(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "glm"))
    adapter = random_adapter(build("lora", {"rank": 4}), model.shape)

    with pytest.raises(UsageError, match="mlx-lm has no glm models, or computes them otherwise"):
        export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))


_YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
    "original_max_position_embeddings": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "is not YaRN's"),
        ({"rope_parameters": _YARN | {"rope_type": "linear"}}, "is not YaRN's"),
        ({"rope_parameters": _YARN | {"mscale_all_dim": 0.5}}, "by another factor"),
        ({"rope_parameters": _YARN | {"truncate": False}}, "bounds are others"),
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"tie_word_embeddings": True}, "its head is its embedding"),
    ],
)
def test_a_deepseek_model_that_mlx_lm_computes_otherwise_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "deepseek_v2", layers=2, **changes))
    adapter = random_adapter(build("lora", {"rank": 4}), model.shape)

    with pytest.raises(UsageError, match=words):
        export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "its experts are chosen in groups"),
        ({"mlp_hidden_act": "silu"}, "its activation is silu"),
        ({"n_group": 1, "topk_group": 1, "num_experts_per_tok": 1}, "goes through one expert"),
        ({"layer_types": ["moe", "full_attention"], "num_hidden_layers": 2}, "none .* is Mamba"),
    ],
)
def test_a_nemotron_3_that_mlx_lm_computes_otherwise_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "nemotron_h_moe", **changes))
    adapter = random_adapter(build("lora", {"rank": 4}), model.shape)

    with pytest.raises(UsageError, match=words):
        export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))


UNSET = object()
"""In the place of a field's value: the config does not have it."""


def _gemma3n(folder: Path, **changes: Any) -> LocalModel:
    make_wrapper(folder, "gemma3n")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    config["text_config"] = {k: x for k, x in config["text_config"].items() if x is not UNSET}
    (folder / "config.json").write_text(json.dumps(config))
    return LocalModel.open(folder)


UNSAID = (
    "rms_norm_eps", "altup_num_inputs", "altup_active_idx", "altup_correct_scale", "altup_coef_clip",
    "activation_sparsity_pattern", "rope_parameters", "model_type",
)  # fmt: skip
"""What a config of Gemma 3n can leave to transformers' defaults, and mlx-lm has none for."""


@pytest.mark.parametrize("unsaid", [(), UNSAID], ids=["said", "unsaid"])
def test_mlx_lm_computes_gemma_3n_with_a_cache(unsaid: tuple[str, ...], tmp_path: Path) -> None:
    model = _gemma3n(tmp_path / "base", **dict.fromkeys(unsaid, UNSET))
    adapter = random_adapter(build("lora", {"rank": 4, "layers": 4}), model.shape)
    out = tmp_path / "out"
    export("mlx", ExportRequest(adapter=adapter, model=model, output=out))
    session = open_session(model.folder, layers=4)
    session.restore(adapter.tensors)
    expected = session.logits(ROW)

    merged, _ = load_model(out)
    unmerged, _ = load_model(_as_on_the_hub(model, tmp_path / "hub"))
    for found in (merged, load_adapters(unmerged, str(out))):
        logits = np.array(found(mx.array([ROW]), cache=found.make_cache()))[0]
        np.testing.assert_allclose(logits, expected, atol=2e-3)
    assert not np.allclose(session.logits(ROW, adapter=None), expected, atol=1e-2)


@pytest.mark.parametrize(
    ("family", "changes", "expected"),
    [
        ("apertus", {"rope_theta": 333.0}, {"rope_theta": 12e6}),
        ("olmo3", {"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_scaling": None}),
        ("gpt2", {"n_embd": None, "hidden_size": 32}, {"n_embd": 32, "n_layer": 3, "n_head": 4}),
    ],
)
def test_what_transformers_reads_otherwise_is_written_out(
    family: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = {"model_type": family} | FAMILY_SIZES[family] | changes

    written = readable_config(config, shape_of(config))

    assert {name: written.get(name) for name in expected} == expected
    if family == "apertus":
        assert written["rope_scaling"] == {
            "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }  # fmt: skip


def test_a_wrapper_s_text_config_says_whether_the_head_is_the_embedding() -> None:
    text = {"model_type": "mistral"} | FAMILY_SIZES["mistral"] | {"tie_word_embeddings": False}
    config = {"model_type": "mistral3", "text_config": text, "tie_word_embeddings": True}
    written: Any = readable_config(config, shape_of(config))

    assert written["text_config"]["tie_word_embeddings"] is True


def test_gemma_3n_s_fields_are_those_of_its_config(tmp_path: Path) -> None:
    """All that mlx-lm asks for, made of the shape alone, are what the config says."""
    model = _gemma3n(tmp_path / "base")
    said = readable_config(model.config, model.shape)["text_config"]
    made = readable_config({}, replace(model.shape, inside=None))
    signature = inspect.signature(TextConfig).parameters.items()
    asked = {name for name, own in signature if own.default is inspect.Parameter.empty}

    assert len(asked) > 20
    assert asked <= made.keys()
    for name in asked - {"activation_sparsity_pattern"}:
        assert made[name] == said[name], name
    shares = "activation_sparsity_pattern"
    assert made[shares] == pytest.approx(said[shares])
    assert (
        readable_config({"altup_coef_clip": None}, replace(model.shape, inside=None))[
            "altup_coef_clip"
        ]
        is None
    )


def test_gemma_3n_s_coefficients_are_held_against_the_default_bound(tmp_path: Path) -> None:
    folder = _gemma3n(tmp_path / "base", altup_coef_clip=UNSET).folder
    weights = mx.load(str(folder / "model.safetensors"))
    name = next(name for name in weights if name.endswith("layers.2.altup.correction_coefs.weight"))
    weights[name] = weights[name] * 0 + 121
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    model = LocalModel.open(folder)
    adapter = random_adapter(build("lora", {"rank": 4}), model.shape)

    with pytest.raises(UsageError, match="it clips coefficients"):
        export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"altup_coef_clip": 0.01}, "it clips coefficients"),
        ({"hidden_activation": "gelu"}, "activation is gelu"),
    ],
)
def test_a_gemma_3n_that_mlx_lm_computes_otherwise_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model = _gemma3n(tmp_path / "base", **changes)
    adapter = random_adapter(build("lora", {"rank": 4}), model.shape)

    with pytest.raises(UsageError, match=words):
        export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))


def test_a_gemma_3n_without_what_mlx_lm_wants_to_load_is_refused(tmp_path: Path) -> None:
    folder = _gemma3n(tmp_path / "base").folder
    weights = mx.load(str(folder / "model.safetensors"))
    used = {name: x for name, x in weights.items() if "layers.5.self_attn.k_" not in name}
    mx.save_safetensors(str(folder / "model.safetensors"), used)
    model = LocalModel.open(folder)
    adapter = random_adapter(build("lora", {"rank": 4}), model.shape)

    with pytest.raises(UsageError, match="its files lack the keys' and values' projections"):
        export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))


def test_targets_with_ranks_of_their_own_are_one_rank_to_mlx_lm(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama"))
    method = Lora(rank=3, rank_pattern=("mlp=6", "q_proj=1"), alpha_pattern=("v_proj=9",))
    adapter = random_adapter(method, model.shape)
    out = tmp_path / "out"
    export("mlx", ExportRequest(adapter=adapter, model=model, output=out))
    even = adapter.evened(model.shape)
    session = open_session(model.folder, rank=3)
    session.attach("even", even.method, even.tensors)
    expected = session.logits(ROW, adapter="even")

    merged, _ = load_model(out)
    unmerged, _ = load_model(_as_on_the_hub(model, tmp_path / "hub"))
    for found in (merged, load_adapters(unmerged, str(out))):
        np.testing.assert_allclose(np.array(found(mx.array([ROW])))[0], expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_mlx_lm_trained_is_read(family: str, kind: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "base", family, **CHANGES.get(family, {}))
    model = LocalModel.open(folder)
    row = ROW[:5] if family in WITHOUT_WINDOW else ROW
    theirs, _ = load_model(_as_on_the_hub(model, tmp_path / "hub"))
    parameters = {"rank": 3, "scale": 2.5, "dropout": 0.0}
    linear_to_lora_layers(theirs, 2, parameters, use_dora=kind == "dora")
    trained = _randomly_trained(theirs)
    config = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": parameters}
    (tmp_path / "adapter").mkdir()
    mx.save_safetensors(str(tmp_path / "adapter" / "adapters.safetensors"), trained)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))

    adapter = load_adapter(tmp_path / "adapter", model.shape)
    session = open_session(folder)
    session.attach("theirs", adapter.method, adapter.tensors)
    found, expected = session.logits(row, adapter="theirs"), np.array(theirs(mx.array([row])))[0]

    assert adapter.method.kind == kind
    np.testing.assert_allclose(found, expected, atol=TOLERANCE.get(family, 1e-4))
    assert not np.allclose(session.logits(row, adapter=None), expected, atol=1e-2)


def _randomly_trained(model: Any) -> dict[str, mx.array]:
    """Give every tensor of an adapter other values and return them."""
    parts = ("lora_a", "lora_b", "m")
    named = tree_flatten(model.parameters())
    tensors = {name: x for name, x in named if name.rsplit(".", 1)[-1] in parts}
    keys = mx.random.split(mx.random.key(7), len(tensors))
    noise = zip(tensors.items(), keys, strict=True)
    trained = {name: x + 0.1 * mx.random.normal(x.shape, key=key) for (name, x), key in noise}
    model.load_weights(list(trained.items()), strict=False)
    return trained


def test_an_adapter_of_mlx_lm_that_is_none_of_a_projection_is_refused(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama"))
    stored = {"model.embed_tokens.lora_a": mx.zeros((97, 3))}
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), stored)
    for kind, reason in (("lora", "model.embed_tokens.lora_a"), ("full", "fine_tune_type 'full'")):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"fine_tune_type": kind}))
        with pytest.raises(ModelError, match=reason):
            load_adapter(tmp_path, model.shape)


def test_the_same_greedy_text(tmp_path: Path) -> None:
    model = open_model("tiny")
    adapter = random_adapter(build("lora", {"rank": 4, "targets": ("attention",)}), model.shape)
    out = tmp_path / "out"
    export("mlx", ExportRequest(adapter=adapter, model=model, output=out))
    session = open_session(model.folder, targets=("attention",))
    session.restore(adapter.tensors)
    tokenizer = load_tokenizer(model.folder)
    prompt = tokenizer.encode("Turn the light")
    wanted = continued(session, prompt, GenerateOptions(max_tokens=6))

    for loaded in (load(str(model.folder), adapter_path=str(out)), load(str(out))):
        responses = stream_generate(*loaded, prompt=prompt, max_tokens=6)
        assert [response.token for response in responses] == wanted


@pytest.mark.parametrize("quantization", ["q8", "q4"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_codes_are_those_of_mlx(quantization: str, dtype: mx.Dtype) -> None:
    bits, name = BITS[quantization], str(dtype).removeprefix("mlx.core.")
    values = mx.random.normal((8, 256), key=mx.random.key(1)).astype(dtype)
    values[0, :64] = 0
    values[1, :64] = mx.abs(values[1, :64])
    wide = np.array(values.astype(mx.float32))

    codes, scales, biases = quantized(wide, bits, name)
    found = mx.dequantize(
        mx.array(codes), mx.array(scales.astype(np.float32)).astype(dtype),
        mx.array(biases.astype(np.float32)).astype(dtype), 64, bits,
    )  # fmt: skip
    expected = mx.dequantize(*mx.quantize(values, 64, bits), 64, bits)

    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)), np.array(expected.astype(mx.float32)), atol=1e-6
    )


@pytest.mark.parametrize("quantization", ["q8", "q4"])
@pytest.mark.parametrize("tied", [True, False])
def test_mlx_lm_loads_the_quantized_model_and_writes_its_text(
    quantization: Bits, tied: bool, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    folder = make_model(tmp_path / "base", "llama", tie_word_embeddings=tied, **sizes)
    model = LocalModel.open(folder)
    adapter = random_adapter(build("lora", {"rank": 4}), model.shape)
    whole, out = tmp_path / "whole", tmp_path / "out"
    export("mlx", ExportRequest(adapter=adapter, model=model, output=whole))
    out.mkdir()
    quantize_folder(whole, out, quantization)
    session = open_session(whole, quantization=quantization)  # what MLX itself makes of it
    wanted = continued(session, ROW[:9], GenerateOptions(max_tokens=6))

    loaded, config = load_model(out)
    text = list(ROW[:9])
    for _ in wanted:
        text.append(int(mx.argmax(loaded(mx.array([text]))[0, -1])))

    assert config["quantization"]["bits"] == BITS[quantization]
    assert text[9:] == wanted
    logits = np.array(loaded(mx.array([ROW])))[0]
    np.testing.assert_allclose(logits, session.logits(ROW), atol=1e-3)
    assert (out / "model.safetensors").stat().st_size < 0.4 * (
        whole / "model.safetensors"
    ).stat().st_size


def test_what_mlx_lm_could_not_load_is_not_quantized(tmp_path: Path) -> None:
    turned = LocalModel.open(make_model(tmp_path / "gpt2", "gpt2"))
    narrow = LocalModel.open(make_model(tmp_path / "llama", "llama"))

    with pytest.raises(UsageError, match=r"mlx_lm\.convert -q"):
        refuse_unquantizable(turned, "q4")
    with pytest.raises(UsageError, match="groups of 64"):
        refuse_unquantizable(narrow, "q4")


def test_a_method_that_mlx_lm_does_not_know_is_refused(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama"))
    adapter = random_adapter(build("bitfit", {}), model.shape)

    with pytest.raises(UsageError, match="mlx-lm has no bitfit"):
        export("mlx", ExportRequest(adapter=adapter, model=model, output=tmp_path / "out"))

    assert not (tmp_path / "out").exists()


def _as_on_the_hub(model: LocalModel, target: Path) -> Path:
    """Return the base as mlx-lm reads it: older fields, and no prefix before GPT-2's names."""
    target.mkdir()
    weights = mx.load(str(model.folder / "model.safetensors"))
    renamed = {name.removeprefix("transformer."): x for name, x in weights.items()}
    mx.save_safetensors(str(target / "model.safetensors"), renamed)
    config = readable_config(model.config, model.shape)
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target
