"""The merged folder: right to the bit, whole or not there, and never held in memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from adapters import random_adapter
from model_folders import TINY, arrays_for, write_folder
from numpy.typing import NDArray
from safetensors import safe_open

from edgetune.errors import CheckFailedError, DiskError, UsageError
from edgetune.exporters import Exported, ExportRequest, export
from edgetune.exporters import merge as merge_module
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel, StoredTensor, shape_of
from edgetune.model.weights import stored_tensors
from edgetune.tensors.reader import number_type, read_tensor
from edgetune.tensors.writer import CHUNK_ELEMENTS

GPT2 = {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 2, "vocab_size": 11}
LORA = Lora(rank=2, alpha=3.0)
ROUNDING = 2.0**-24 * 1.001
"""What one operation in float32 rounds by, and a little for products of roundings."""
FORMATS: tuple[Literal["float32", "float16", "bfloat16"], ...] = ("float32", "float16", "bfloat16")


def _model(folder: Path, config: Mapping[str, Any] = TINY, dtype: str = "float32") -> LocalModel:
    arrays = {name: x.astype(number_type(dtype)) for name, x in arrays_for(config).items()}
    return LocalModel.open(write_folder(folder, {**config, "dtype": dtype}, arrays=arrays))


def _request(model: LocalModel, output: Path, lora: Lora = LORA) -> ExportRequest:
    return ExportRequest(adapter=random_adapter(lora, model.shape), model=model, output=output)


@dataclass(frozen=True)
class Merged:
    """A merged tensor in float64, and how far its float32 sum may be off, whatever the order.

    A product of rank r rounds r times, its scale and the scaling once each, the sum once more.
    """

    values: NDArray[np.float64]
    bound: NDArray[np.float64]

    def rounds_to(self, found: NDArray[Any]) -> bool:
        """Tell whether this is such a sum, rounded once to the type of ``found``."""
        least, most = (
            (self.values + side * self.bound).astype(np.float32).astype(found.dtype)
            for side in (-1, 1)
        )
        return bool(((least <= found) & (found <= most)).all())


def _merged(request: ExportRequest) -> dict[str, Merged]:
    """Merge the plain way: whole tensors, in memory."""
    shape = request.model.shape
    found = {name: request.model.read(name).astype(np.float64) for name in request.model.tensors}
    result = {name: Merged(values, np.zeros_like(values)) for name, values in found.items()}
    lora = request.adapter.method
    assert isinstance(lora, Lora)
    for target in lora.select(shape):
        a = request.adapter.tensors[f"{target.module}.lora_A.weight"].astype(np.float64)
        b = request.adapter.tensors[f"{target.module}.lora_B.weight"].astype(np.float64)
        delta, most = lora.scale * (b @ a), lora.scale * (abs(b) @ abs(a))
        name = f"{target.module}.weight"
        turned = target.linear.transposed
        values = found[name] + (delta.T if turned else delta)
        bound = ROUNDING * ((lora.rank + 2) * (most.T if turned else most) + abs(values))
        result[name] = Merged(values, bound)
    return result


def _read(folder: Path) -> dict[str, NDArray[Any]]:
    return {name: read_tensor(tensor) for name, tensor in stored_tensors(folder).items()}


@pytest.mark.parametrize("output", [None, *FORMATS])
@pytest.mark.parametrize("base", FORMATS)
@pytest.mark.parametrize("config", [TINY, GPT2], ids=["llama", "gpt2"])
def test_every_weight_is_the_float32_sum_rounded_once(
    tmp_path: Path, config: dict[str, Any], base: str, output: Any
) -> None:
    request = replace(
        _request(_model(tmp_path / "base", config, base), tmp_path / "out"), dtype=output
    )
    export("hf", request)
    found = _read(tmp_path / "out")
    written = output or base

    assert found.keys() == request.model.tensors.keys()
    for name, merged in _merged(request).items():
        assert found[name].dtype == number_type(written)
        assert merged.rounds_to(found[name])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == written


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    request = replace(_request(_model(tmp_path / "base"), tmp_path / "out"), dtype="float16")
    export("hf", request)

    with safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == request.model.tensors.keys()
        for name, merged in _merged(request).items():
            assert file.get_tensor(name).dtype == np.float16
            assert merged.rounds_to(file.get_tensor(name))


def test_rows_in_runs_make_the_same_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = _request(_model(tmp_path / "base", GPT2), tmp_path / "out")
    monkeypatch.setattr("edgetune.tensors.writer.CHUNK_ELEMENTS", 25)
    export("hf", request)

    found = _read(tmp_path / "out")
    assert all(merged.rounds_to(found[name]) for name, merged in _merged(request).items())


def test_two_exports_are_the_same_bytes(tmp_path: Path) -> None:
    model = _model(tmp_path / "base", dtype="bfloat16")
    for name in ("a", "b"):
        export("hf", replace(_request(model, tmp_path / name), shard_bytes=500))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())

    assert len(files) > 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("limit", [1, 500, 2000, 10**9])
def test_shards_keep_to_the_limit(tmp_path: Path, limit: int) -> None:
    request = replace(_request(_model(tmp_path / "base"), tmp_path / "out"), shard_bytes=limit)
    result = export("hf", request)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    sizes: dict[Path, list[int]] = {path: [] for path in shards}
    for tensor in stored_tensors(tmp_path / "out").values():
        sizes[tensor.file].append(tensor.nbytes)

    assert all(sum(size) <= limit or len(size) == 1 for size in sizes.values())
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (len(shards) > 1)
    assert result == Exported(
        folder=tmp_path / "out",
        nbytes=sum(path.stat().st_size for path in (tmp_path / "out").iterdir()),
    )
    found = _read(tmp_path / "out")
    assert all(merged.rounds_to(found[name]) for name, merged in _merged(request).items())


def test_stored_names_and_needless_tensors_stay(tmp_path: Path) -> None:
    arrays = arrays_for(GPT2)
    extra = {
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.bool_),
        "h.0.attn.masked_bias": np.array(-np.inf, np.float32),
        "lm_head.weight": arrays["transformer.wte.weight"],
    }
    halved = {
        name: values.astype(np.float16)
        for name, values in (arrays | {"lm_head.weight": extra["lm_head.weight"]}).items()
    }
    folder = write_folder(
        tmp_path / "base",
        GPT2,
        arrays=extra | halved,
        rename=lambda n: n.removeprefix("transformer."),
    )
    request = _request(LocalModel.open(folder), tmp_path / "out")
    export("hf", replace(request, dtype="bfloat16"))
    found = _read(tmp_path / "out")

    assert found.keys() == _read(folder).keys()
    assert found["h.0.attn.bias"].dtype == np.bool_
    assert found["h.0.attn.masked_bias"] == -np.inf
    assert found["lm_head.weight"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found["lm_head.weight"], found["wte.weight"])


def test_what_belongs_to_a_model_comes_along(tmp_path: Path) -> None:
    model = _model(tmp_path / "base", TINY | {"auto_map": {"AutoConfig": "code.Config"}})
    companions = [
        "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
        "chat_template.jinja", "additional_chat_templates/tool.jinja", "LICENSE.txt",
        "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",
    ]  # fmt: skip
    others = ["code.py", "tokenizer.py", "README.md", "pytorch_model.bin", "original/params.json"]
    for name in companions + others:
        (model.folder / name).parent.mkdir(exist_ok=True)
        (model.folder / name).write_text(f"This is {name}")
    export("hf", _request(model, tmp_path / "out"))
    out = tmp_path / "out"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}

    assert found == {*companions, "config.json", "model.safetensors"}
    assert all((out / name).read_text() == f"This is {name}" for name in companions)
    assert "auto_map" not in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / "out")
    reads = iter(range(5))

    def read(tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
        if next(reads, None) is None:
            raise error
        return read_tensor(tensor)[start:stop]

    monkeypatch.setattr(merge_module, "read_rows", read)
    with pytest.raises((KeyboardInterrupt, DiskError)):
        export("hf", request)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_what_a_killed_export_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "model.safetensors").write_text("half")
    export("hf", _request(_model(tmp_path / "base"), tmp_path / "out"))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


@pytest.mark.parametrize("name", ["peft", "hf", "mlx"])
def test_nothing_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    request = _request(_model(tmp_path / "base"), tmp_path / "out")
    export(name, request)

    with pytest.raises(UsageError, match="it is not empty"):
        export(name, request)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    model = _model(tmp_path / "base")

    with pytest.raises(DiskError, match="cannot be written"):
        export("hf", _request(model, model.folder / "config.json" / "out"))


def test_a_full_disk_is_seen_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(merge_module, "read_rows", None)

    with pytest.raises(DiskError, match=r"needs .* bytes\), and .*\(1000 bytes\) are free"):
        export("hf", _request(_model(tmp_path / "base"), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_weight_too_large_for_float16_is_refused(tmp_path: Path) -> None:
    arrays = {name: values * 1e6 for name, values in arrays_for(TINY).items()}
    model = LocalModel.open(write_folder(tmp_path / "base", arrays=arrays))

    with pytest.raises(CheckFailedError, match="not finite in float16"):
        export("hf", replace(_request(model, tmp_path / "out"), dtype="float16"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_export_is_refused(tmp_path: Path) -> None:
    request = _request(_model(tmp_path / "base"), tmp_path / "out")

    with pytest.raises(
        UsageError, match=r"Unsupported export 'onnx'. Supported: peft, hf, mlx, gguf, "
    ):
        export("onnx", request)


def test_a_method_that_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    class Unheard(Lora):
        kind = "unheard"
        mergeable = False

    request = _request(_model(tmp_path / "base"), tmp_path / "out", Unheard(rank=2))
    with pytest.raises(UsageError, match=r"unheard cannot be merged.*--to peft"):
        export("hf", request)


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    wide = GPT2 | {"n_embd": 2048, "n_inner": 25_600, "n_layer": 1, "n_positions": 8}
    arrays = {x.name: np.zeros(x.shape, ml_dtypes.bfloat16) for x in shape_of(wide).tensors()}
    model = LocalModel.open(write_folder(tmp_path / "base", wide, arrays=arrays))
    request = _request(model, tmp_path / "out")
    tracemalloc.start()
    try:
        export("hf", request)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert max(tensor.nbytes for tensor in model.tensors.values()) > 100e6
    # stored, summed and written values and the product, a run of rows each
    assert peak < 4 * 4 * CHUNK_ELEMENTS


@pytest.mark.parametrize("copied", [False, True], ids=["alone", "copied"])
def test_a_trained_embedding_leaves_no_head_of_before(tmp_path: Path, copied: bool) -> None:
    config = {**TINY, "tie_word_embeddings": True}
    arrays = arrays_for(config)
    if copied:
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()
    else:
        arrays["lm_head.weight"] = arrays.pop("model.embed_tokens.weight")
    model = LocalModel.open(write_folder(tmp_path / "base", config, arrays=arrays))
    request = _request(
        model, tmp_path / "out", Lora(rank=2, alpha=3.0, modules_to_save=("embeddings",))
    )

    export("hf", request)

    merged = LocalModel.open(tmp_path / "out")
    name = model.shape.embedding_tensor
    trained = next(x for key, x in request.adapter.tensors.items() if "embed_tokens" in key)
    np.testing.assert_array_equal(merged.read(name), trained)
