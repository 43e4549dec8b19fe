"""GGUF files on disk: where they are written, what is in them, what is refused."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from adapters import random_adapter
from model_folders import arrays_for, write_folder
from numpy.typing import NDArray

import edgetune_profiles
from edgetune.errors import CheckFailedError, DiskError, UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.biases import new_biases
from edgetune.exporters.gguf import rows as rows_module
from edgetune.exporters.gguf.model_file import model_file
from edgetune.exporters.gguf.tokenizer import TokenizerFacts
from edgetune.exporters.updates import merge_of
from edgetune.methods.bitfit import BitFit
from edgetune.methods.dora import Dora
from edgetune.methods.lora import Lora
from edgetune.methods.merging import Changes
from edgetune.methods.targets import select
from edgetune.model import LocalModel, StoredTensor, shape_of
from edgetune.tensors.reader import read_tensor
from edgetune.tensors.writer import CHUNK_ELEMENTS

TINY = Path(edgetune_profiles.__file__).parent / "tiny"
LORA = Lora(rank=2, alpha=3.0)
GGUF = ("gguf", "ollama", "lmstudio")
SMALL = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 1024,
    "max_position_embeddings": 8192,
}  # fmt: skip


@cache
def tiny_facts() -> TokenizerFacts:
    return TokenizerFacts.read(TINY)


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model here has the same tokenizer, which takes seconds to load."""
    found = tiny_facts()
    monkeypatch.setattr(TokenizerFacts, "read", lambda _: found)


def _model(folder: Path, config: dict[str, Any] = SMALL, **options: Any) -> LocalModel:
    return LocalModel.open(write_folder(folder, config, **options))


def _request(model: LocalModel, output: Path, **options: Any) -> ExportRequest:
    adapter = random_adapter(LORA, model.shape)
    return ExportRequest(adapter=adapter, model=model, output=output, **options)


def _field(file: Path, key: str) -> Any:
    return gguf.GGUFReader(file).fields[key].contents()


def _merged(request: ExportRequest, name: str) -> NDArray[np.float32]:
    """Merge one tensor the plain way."""
    module = name.removesuffix(".weight")
    b, a = (request.adapter.tensors[f"{module}.lora_{x}.weight"] for x in "BA")
    return request.model.read(name) + np.float32(LORA.scale) * (b @ a)


def test_a_file_is_written_where_its_name_says(tmp_path: Path) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / "new" / "home.gguf")
    result = export("gguf", request)

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["home.gguf"]
    assert result.path == tmp_path / "new" / "home.gguf"
    assert result.nbytes == result.path.stat().st_size


def test_a_folder_gets_a_file_with_the_usual_name(tmp_path: Path) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / "home", quantize="q4_k_m")
    result = export("gguf", request)

    assert [path.name for path in (tmp_path / "home").iterdir()] == ["home-Q4_K_M.gguf"]
    assert result.path == tmp_path / "home" / "home-Q4_K_M.gguf"


def test_matrices_are_merged_and_turned_as_llama_cpp_rotates(tmp_path: Path) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / "m.gguf", quantize="f32")
    export("gguf", request)
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    down = _merged(request, "model.layers.1.mlp.down_proj.weight")
    q = _merged(request, "model.layers.1.self_attn.q_proj.weight")
    heads, head_dim = 2, 16
    by_half = q.reshape(heads, 2, head_dim // 2, 32)

    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], down, rtol=1e-6)
    turned = found["blk.1.attn_q.weight"].reshape(heads, head_dim // 2, 2, 32)
    np.testing.assert_allclose(turned[:, :, 0], by_half[:, 0], rtol=1e-6)
    np.testing.assert_allclose(turned[:, :, 1], by_half[:, 1], rtol=1e-6)
    embedding = request.model.read("model.embed_tokens.weight")
    np.testing.assert_array_equal(found["token_embd.weight"], embedding)


@pytest.mark.parametrize("chunk", [64, 100, 1000])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_rows_in_runs_make_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, chunk: int
) -> None:
    configs = {
        "llama": SMALL,
        "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 2, "vocab_size": 1024},
        "gpt_neox": {**SMALL, "model_type": "gpt_neox", "num_key_value_heads": 2},
    }
    model = _model(tmp_path / "base", configs[family])
    export("gguf", _request(model, tmp_path / "whole.gguf", quantize="q8_0"))
    monkeypatch.setattr("edgetune.tensors.writer.CHUNK_ELEMENTS", chunk)
    export("gguf", _request(model, tmp_path / "runs.gguf", quantize="q8_0"))

    assert (tmp_path / "runs.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_the_modelfile_names_the_file_its_stops_and_its_context(tmp_path: Path) -> None:
    model = _model(tmp_path / "base")
    result = export("ollama", _request(model, tmp_path / "home", context=6000))

    assert (tmp_path / "home" / "Modelfile").read_text() == (
        "FROM ./home-Q4_K_M.gguf\nPARAMETER num_ctx 6000\n"
        + "".join(f"PARAMETER stop {json.dumps(text)}\n" for text in tiny_facts().end_texts)
    )
    assert result.path.name == "home-Q4_K_M.gguf"
    assert f"ollama create home -f {tmp_path / 'home' / 'Modelfile'}" in result.notes[-1]


@pytest.mark.parametrize(("trained", "most", "said"), [(16, 8192, 4096), (None, 512, 512)])
def test_ollama_gets_no_less_context_than_usual_unless_the_model_has_less(
    tmp_path: Path, trained: int | None, most: int, said: int
) -> None:
    model = _model(tmp_path / "base", {**SMALL, "max_position_embeddings": most})
    export("ollama", _request(model, tmp_path / "home", context=trained))

    assert f"PARAMETER num_ctx {said}\n" in (tmp_path / "home" / "Modelfile").read_text()


def test_lm_studio_finds_a_publisher_and_a_model(tmp_path: Path) -> None:
    model = _model(tmp_path / "base")
    result = export("lmstudio", _request(model, tmp_path / "home"))
    place = tmp_path / ".lmstudio" / "models" / "me" / "home"
    there = export("lmstudio", _request(model, place))

    assert result.path == tmp_path / "home" / "edgetune" / "home" / "home-Q4_K_M.gguf"
    assert there.path == place / "home-Q4_K_M.gguf"
    assert there.path.read_bytes() == result.path.read_bytes()


def test_a_place_where_lm_studio_finds_nothing_is_refused(tmp_path: Path) -> None:
    place = tmp_path / ".lmstudio" / "models" / "home"

    with pytest.raises(UsageError, match=r"two folders below its own, and .* is 1\."):
        export("lmstudio", _request(_model(tmp_path / "base"), place))


@pytest.mark.parametrize("name", GGUF)
@pytest.mark.parametrize("output", ["out", "out.gguf"])
def test_nothing_is_overwritten(tmp_path: Path, name: str, output: str) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / output)
    written = export(name, request).path.read_bytes()

    with pytest.raises(UsageError, match="Nothing is overwritten"):
        export(name, request)
    assert export(name, replace(request, output=tmp_path / "other")).path.read_bytes() == written


@pytest.mark.parametrize("output", ["out", "out.gguf"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, output: str
) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / output)
    reads = iter(range(5))

    def read(tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
        if next(reads, None) is None:
            raise error
        return read_tensor(tensor)[start:stop]

    monkeypatch.setattr(rows_module, "read_rows", read)
    with pytest.raises((KeyboardInterrupt, DiskError)):
        export("gguf", request)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.parametrize("output", ["out", "out.gguf"])
def test_a_file_that_fails_its_check_is_not_left(tmp_path: Path, output: str) -> None:
    def verify(path: Path) -> None:
        assert gguf.GGUFReader(path).fields
        raise CheckFailedError("no")

    with pytest.raises(CheckFailedError, match="no"):
        export("gguf", _request(_model(tmp_path / "base"), tmp_path / output, verify=verify))
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_full_disk_is_seen_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(rows_module, "read_rows", None)

    with pytest.raises(DiskError, match=r"needs .* bytes\), and .*\(1000 bytes\) are free"):
        export("gguf", _request(_model(tmp_path / "base"), tmp_path / "out.gguf"))


@pytest.mark.parametrize("quantize", ["f16", "q4_k_m"])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, quantize: str) -> None:
    arrays = {name: values * 1e6 for name, values in arrays_for(SMALL).items()}
    if quantize != "f16":
        arrays["model.norm.weight"][3] = np.nan
    model = _model(tmp_path / "base", arrays=arrays)

    with pytest.raises(CheckFailedError, match="values that are not finite in F"):
        export("gguf", _request(model, tmp_path / "out.gguf", quantize=quantize))
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"shard_bytes": 1000}])
def test_options_of_folders_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--quantize names"):
        export("gguf", _request(_model(tmp_path / "base"), tmp_path / "out", **options))


def test_an_unknown_quantization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Unsupported --quantize q3_k.*q4_k_m"):
        export("gguf", _request(_model(tmp_path / "base"), tmp_path / "out", quantize="q3_k"))


def test_a_model_that_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    model = _model(tmp_path / "base", {**SMALL, "hidden_act": "relu"})

    with pytest.raises(UsageError, match=r"its activation is relu, there it is silu.*--to hf"):
        export("gguf", _request(model, tmp_path / "out"))


@pytest.mark.parametrize("bounds", [{"beta_fast": 8.0}, {"beta_slow": 2.0}])
def test_bounds_of_yarn_that_llama_cpp_does_not_read_are_refused(
    tmp_path: Path, bounds: dict[str, float]
) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, **bounds}
    model = _model(tmp_path / "base", {**SMALL, "rope_parameters": {"rope_theta": 1e4, **yarn}})

    with pytest.raises(UsageError, match=r"no YaRN with other bounds .*--to hf"):
        export("gguf", _request(model, tmp_path / "out"))


def test_a_family_that_llama_cpp_does_not_have_is_refused_in_two_sentences(tmp_path: Path) -> None:
    model = _model(tmp_path / "base", {**SMALL, "model_type": "helium", "head_dim": 16})

    with pytest.raises(UsageError, match=r"computes helium models .*--to hf") as refused:
        export("gguf", _request(model, tmp_path / "out"))
    assert len(str(refused.value)) < 160


def test_a_window_that_llama_cpp_does_not_have_is_the_context(tmp_path: Path) -> None:
    config = {**SMALL, "model_type": "mistral", "sliding_window": 1000}
    result = export("gguf", _request(_model(tmp_path / "base", config), tmp_path / "m.gguf"))

    assert _field(result.path, "llama.context_length") == 1000
    assert "a context of 1,000 tokens" in result.notes[0]


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    wide = SMALL | {"hidden_size": 2048, "intermediate_size": 25_600, "num_hidden_layers": 1}
    arrays = {x.name: np.zeros(x.shape, ml_dtypes.bfloat16) for x in shape_of(wide).tensors()}
    model = _model(tmp_path / "base", wide, arrays=arrays)
    request = _request(model, tmp_path / "out.gguf", quantize="q8_0")
    tracemalloc.start()
    try:
        export("gguf", request)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert max(tensor.nbytes for tensor in model.tensors.values()) > 100e6
    # stored, summed and scaled values, codes and the product, a run of rows each
    assert peak < 8 * 4 * CHUNK_ELEMENTS


def test_an_adapter_alone_has_its_alpha_and_both_matrices_of_each_target(tmp_path: Path) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / "lora.gguf", alone=True)
    result = export("gguf", request)
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(result.path).tensors}
    down = "model.layers.1.mlp.down_proj"

    assert _field(result.path, "general.type") == "adapter"
    assert _field(result.path, "adapter.type") == "lora"
    assert _field(result.path, "adapter.lora.alpha") == LORA.alpha
    assert len(found) == 2 * len(LORA.select(request.model.shape))
    for part in "ab":
        expected = request.adapter.tensors[f"{down}.lora_{part.upper()}.weight"]
        np.testing.assert_array_equal(found[f"blk.1.ffn_down.weight.lora_{part}"], expected)


def test_an_adapter_that_llama_cpp_does_not_have_is_refused(tmp_path: Path) -> None:
    model = _model(tmp_path / "base")
    adapter = random_adapter(Dora(rank=2), model.shape)
    request = ExportRequest(adapter=adapter, model=model, output=tmp_path / "out", alone=True)

    with pytest.raises(UsageError, match=r"llama.cpp has no dora .*without --adapter"):
        export("gguf", request)


def test_an_adapter_is_not_quantized(tmp_path: Path) -> None:
    model = _model(tmp_path / "base")

    with pytest.raises(UsageError, match="in f32 or f16, not q4_k_m"):
        export("gguf", _request(model, tmp_path / "out", alone=True, quantize="q4_k_m"))


def test_biases_that_llama_cpp_does_not_have_are_refused(tmp_path: Path) -> None:
    config = {**SMALL, "model_type": "qwen3", "head_dim": 16}
    with pytest.raises(UsageError, match=r"self_attn\.q_proj, .* have biases.*--to hf"):
        export(
            "gguf", _request(_model(tmp_path / "a", {**config, "attention_bias": True}), tmp_path)
        )
    model = _model(tmp_path / "b", {**config, "model_type": "gemma"})
    adapter = random_adapter(BitFit(targets=("q_proj",)), model.shape)
    request = ExportRequest(adapter=adapter, model=model, output=tmp_path / "out")
    with pytest.raises(
        UsageError,
        match=r"gemma has no biases for self_attn\.q_proj.*, or train with --no-new-biases",
    ):
        export("gguf", request)
    merge = replace(merge_of(adapter, model), without=None)
    with pytest.raises(UsageError, match=r"gemma has no biases .*--to hf\)\.$"):
        model_file(model, merge, "f16", tiny_facts())


def test_only_a_method_that_has_the_flag_is_told_of_it(tmp_path: Path) -> None:
    model = _model(tmp_path / "base", {**SMALL, "model_type": "qwen2"})
    found = Changes(
        changes={}, biased=tuple(select(model.shape, ("o_proj",))), without="--none-new"
    )
    with pytest.raises(UsageError, match=r"can be kept: --none-new\."):
        new_biases(found, model.shape)
    with pytest.raises(UsageError, match=r"this family has none; take --method lora\."):
        new_biases(replace(found, without=None), model.shape)
