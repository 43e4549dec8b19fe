"""mlx-lm itself loads what is exported for it, and computes the same."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from adapters import random_adapter
from answers import continued
from mlx_lm import load, stream_generate
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model
from mlx_sessions import VOCABULARY, open_session
from models import make_model

from edgetune.backend import GenerateOptions
from edgetune.data import load_tokenizer
from edgetune.errors import UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.mlx import readable_config
from edgetune.exporters.mlx_quantized import (
    BITS,
    Bits,
    quantize_folder,
    quantized,
    refuse_unquantizable,
)
from edgetune.methods import build
from edgetune.model import LocalModel, open_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "olmo2",
            "gpt_neox", "gpt2")  # fmt: skip

WITHOUT_WINDOW = {"mistral", "phi3", "gemma2"}
"""mlx-lm's classes let every token see all before it: rows are kept within the window."""

CHANGES = {"gemma3_text": {"num_hidden_layers": 6}, "gpt_neox": {"intermediate_size": 128}}
"""mlx-lm wants one layer that sees everything, and fixes the width of GPT-NeoX's MLP."""

TOLERANCE = {"gemma": 2e-3, "gemma3_text": 2e-3, "gpt_neox": 2e-3}
"""mlx-lm computes another approximation of GELU."""

ROW = np.random.default_rng(4).integers(3, VOCABULARY, 23).tolist()


@pytest.mark.parametrize("family", FAMILIES)
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
