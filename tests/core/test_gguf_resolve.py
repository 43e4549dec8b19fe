"""GGUF files by path, and by the names that Ollama and LM Studio have for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_files import write_gguf

from edgetune.errors import ModelError
from edgetune.model import open_model, resolve
from edgetune.tensors.gguf.types import BY_NAME
from edgetune.workflows.planning import lasting_ref

DIGEST = "0123456789abcdef" * 4
MODEL = "application/vnd.ollama.image.model"
METADATA = {
    "context_length": 64, "embedding_length": 32, "feed_forward_length": 64, "block_count": 1,
    "attention.head_count": 4, "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 5000.0,
}  # fmt: skip
SHAPES = {
    "token_embd.weight": (50, 32), "output_norm.weight": (32,), "blk.0.attn_norm.weight": (32,),
    "blk.0.ffn_norm.weight": (32,), "blk.0.attn_q.weight": (32, 32), "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32), "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_gate.weight": (64, 32), "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
}  # fmt: skip


def small_llama(
    file: Path,
    *,
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
    shapes: dict[str, Any] | None = None,
    kind: str = "Q4_0",
    part: int = 0,
) -> Path:
    """Write a model of one block; changes are laid over it, None takes something out."""
    file.parent.mkdir(exist_ok=True)
    own = {f"{architecture}.{name}": value for name, value in METADATA.items()} | (metadata or {})
    rng = np.random.default_rng(0)
    tensors = {
        name: (rng.normal(size=shape).astype(np.float32), kind if len(shape) == 2 else "F32")
        for name, shape in (SHAPES | (shapes or {})).items()
        if shape is not None
    }
    kept = {key: value for key, value in own.items() if value is not None}
    return write_gguf(file, architecture, kept, tensors, part=part)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return small_llama(tmp_path / "model.gguf")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    return home


def test_a_file_is_a_model_with_its_shape_and_its_numbers(file: Path) -> None:
    source, model = resolve(str(file)), open_model(str(file))

    shape = source.shape
    assert shape == model.shape
    assert (shape.family, shape.layers, shape.blocks[0].kv_heads, shape.blocks[0].head_dim) == (
        "llama",
        1,
        2,
        8,
    )
    assert shape.tied
    assert shape.norm.eps == 1e-5
    assert shape.attention[0].rotary is not None
    assert shape.attention[0].rotary.theta == 5000.0
    assert shape.formats is not None
    assert shape.formats.matrices == (("Q4_0",) * 7,)
    assert lasting_ref(source) == str(file)
    assert model.read("model.layers.0.mlp.up_proj.weight").shape == (64, 32)
    assert len(model.fingerprint) == 64


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"There is no file model\.gguf\."):
        resolve("model.gguf")


def test_other_bytes_are_another_model(file: Path, tmp_path: Path) -> None:
    other = shutil.copy(file, tmp_path / "other.gguf")
    stored = open_model(str(file)).tensors["model.embed_tokens.weight"]
    with other.open("r+b") as stream:
        stream.seek(stored.start + 5)
        stream.write(b"\xff")

    assert open_model(str(file)).fingerprint != open_model(str(other)).fingerprint


def test_a_folder_with_one_file_is_that_model(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "publisher" / "model"
    folder.mkdir(parents=True)
    shutil.copy(file, folder / "x-Q4_0.gguf")
    (folder / "mmproj-x-f16.gguf").write_bytes(b"GGUF")

    assert resolve(str(folder)).folder == folder / "x-Q4_0.gguf"

    shutil.copy(file, folder / "x-Q8_0.gguf")
    with pytest.raises(ModelError, match=r"several GGUF files: x-Q4_0\.gguf, x-Q8_0\.gguf"):
        resolve(str(folder))


def _store(root: Path, file: Path, name: str, layers: list[dict[str, Any]] | None = None) -> None:
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    shutil.copy(file, root / "blobs" / f"sha256-{DIGEST}")
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    default = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "f" * 64},
        {"mediaType": MODEL, "digest": f"sha256:{DIGEST}", "size": 1},
    ]
    manifest.write_text(json.dumps({"layers": default if layers is None else layers}))


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("smollm2", "registry.ollama.ai/library/smollm2/latest"),
        ("smollm2:135m", "registry.ollama.ai/library/smollm2/135m"),
        ("me/own:v1", "registry.ollama.ai/me/own/v1"),
        ("hf.co/org/Model-GGUF:Q4_K_M", "hf.co/org/Model-GGUF/Q4_K_M"),
    ],
)
def test_what_ollama_holds_is_found_by_its_name(
    name: str, manifest: str, file: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _store(home / ".ollama" / "models", file, manifest)

    source = resolve(f"ollama:{name}")

    assert source.folder == home / ".ollama" / "models" / "blobs" / f"sha256-{DIGEST}"
    assert lasting_ref(source) == f"ollama:{name}"
    assert open_model(f"ollama:{name}").shape.layers == 1

    _store(home / "elsewhere", file, manifest)
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "elsewhere"))
    assert str(resolve(f"ollama:{name}").folder).startswith(str(home / "elsewhere"))


def test_a_model_that_ollama_does_not_hold(file: Path, home: Path) -> None:
    with pytest.raises(ModelError, match=r"no model x on this machine: looked in .*Set OLLAMA_"):
        resolve("ollama:x")
    _store(home / ".ollama" / "models", file, "registry.ollama.ai/library/smollm2/135m")
    _store(home / ".ollama" / "models", file, "hf.co/org/model/latest")

    with pytest.raises(ModelError, match=r"There are: hf\.co/org/model:latest, smollm2:135m\."):
        resolve("ollama:smollm2")


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/../b", "/etc/passwd", "a:b:c", "a/b/c/d", "a b"]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ModelError, match="is not the name of a model of Ollama"):
        resolve(f"ollama:{name}")
    with pytest.raises(ModelError, match="is not a model of LM Studio"):
        resolve(f"lmstudio:{name}")


@pytest.mark.parametrize(
    ("layers", "because"),
    [
        ([], "lists no model"),
        ([{"mediaType": MODEL, "digest": "sha256:../../x"}], "lists no model"),
        ([{"mediaType": MODEL, "digest": f"sha256:{'e' * 64}"}], "is missing. Pull ollama:x"),
        ([{"mediaType": "application/vnd.ollama.image.adapter"}], "a model with an adapter"),
        ("nonsense", "lists no model"),
        (7, "lists no model"),
    ],
)
def test_manifests_that_lead_nowhere(file: Path, home: Path, layers: Any, because: str) -> None:
    _store(home / ".ollama" / "models", file, "registry.ollama.ai/library/x/latest", layers)

    with pytest.raises(ModelError, match=because):
        resolve("ollama:x")


def test_what_lm_studio_holds_is_found_by_its_name(file: Path, home: Path) -> None:
    with pytest.raises(ModelError, match="LM Studio has no GGUF file of me/model"):
        resolve("lmstudio:me/model")
    folder = home / ".lmstudio" / "models" / "me" / "model"
    folder.mkdir(parents=True)
    shutil.copy(file, folder / "model.gguf")

    assert resolve("lmstudio:me/model").folder == folder / "model.gguf"
    assert resolve("lmstudio:me/model/model.gguf").folder == folder / "model.gguf"


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"architecture": "mamba"}, "of the architecture mamba, which is not supported"),
        ({"metadata": {"llama.block_count": None}}, "has no llama.block_count"),
        ({"metadata": {"llama.block_count": "two"}}, "must be a whole number; found 'two'"),
        ({"metadata": {"llama.block_count": 2}}, r"blk\.1\.attn_norm\.weight: missing"),
        ({"metadata": {"llama.block_count": 2**31 - 1}}, "num_hidden_layers must be"),
        ({"metadata": {"llama.attention.head_count_kv": [2, 1]}}, "differs from layer to layer"),
        ({"metadata": {"llama.expert_count": 8}}, "a mixture of experts"),
        ({"metadata": {"llama.rope.scaling.type": "su"}}, "scaling.type is su. Supported"),
        ({"metadata": {"split.count": 3}}, "one of 3 parts"),
        ({"metadata": {"general.alignment": 3}}, "aligned to 3 bytes"),
        ({"shapes": {"token_embd.weight": None}}, "no matrix token_embd.weight"),
        ({"shapes": {"blk.0.attn_k.weight": (32, 32)}}, r"attn_k\.weight: is \(32, 32\), expected"),
        ({"shapes": {"blk.0.ffn_gate_inp.weight": (8, 32)}}, "ffn_gate_inp.weight: not expected"),
        ({"kind": "TQ1_0", "shapes": dict.fromkeys(SHAPES, (256, 256))}, "of type TQ1_0"),
    ],
)
def test_files_that_are_no_model_here_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], because: str
) -> None:
    file = small_llama(tmp_path / "other.gguf", **changes)

    with pytest.raises(ModelError, match=because):
        resolve(str(file))


@pytest.mark.parametrize(
    ("said", "scaling"),
    [({}, "none"), ({"factor": 4.0}, "linear"), ({"type": "none", "factor": 4.0}, "none")],
)
def test_a_factor_of_rotation_counts_unless_the_file_says_none(
    tmp_path: Path, said: dict[str, Any], scaling: str
) -> None:
    metadata = {f"llama.rope.scaling.{name}": value for name, value in said.items()}
    model = open_model(str(small_llama(tmp_path / "scaled.gguf", metadata=metadata)))

    assert {rotary.scaling for rotary in model.shape.rotaries} == {scaling}


def test_the_magnitude_of_yarn_is_that_of_the_config_it_was_converted_from(tmp_path: Path) -> None:
    said = {"type": "yarn", "factor": 4.0, "original_context_length": 128, "yarn_attn_factor": 1.25}
    metadata = {f"llama.rope.scaling.{name}": value for name, value in said.items()}
    model = open_model(str(small_llama(tmp_path / "scaled.gguf", metadata=metadata)))

    assert [rotary.attention_factor for rotary in model.shape.rotaries] == [1.25]


def test_a_file_of_iq_types_is_refused_with_what_can_be_taken(tmp_path: Path) -> None:
    size = BY_NAME["IQ4_XS"].nbytes
    blocks = {"token_embd.weight": (np.zeros((50, size), np.uint8), "IQ4_XS")}
    file = write_gguf(
        tmp_path / "iq.gguf", "llama", {f"llama.{k}": v for k, v in METADATA.items()}, blocks
    )

    with pytest.raises(ModelError, match=r"of type IQ4_XS, .* Supported: F32, F16, .*Q4_K"):
        resolve(str(file))


PARTS = 4


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """The files of a model in several parts."""
    first = small_llama(tmp_path / "split" / "model.gguf", part=3)
    assert first.name == f"model-00001-of-0000{PARTS}.gguf"
    return sorted(first.parent.iterdir())


def test_a_model_in_parts_is_the_whole_one(parts: list[Path], file: Path) -> None:
    whole = open_model(str(file))

    for named in (*parts, parts[0].parent):
        model = open_model(str(named))
        assert resolve(str(named)).folder == model.folder == parts[0]
        assert model.shape == whole.shape
        for name in whole.tensors:
            np.testing.assert_array_equal(model.read(name), whole.read(name))
    assert len({tensor.file for tensor in model.tensors.values()}) == PARTS


def _swapped(parts: list[Path]) -> None:
    shutil.copy(parts[1], parts[2])


@pytest.mark.parametrize(
    ("change", "because"),
    [
        (lambda parts: parts[2].unlink(), r"1 are not beside it, model-00003-of-00004\.gguf first"),
        (lambda parts: parts[0].unlink(), r"model-00001-of-00004\.gguf is not beside it"),
        (_swapped, "says that it is part 2 of 4, and its name says 3 of 4"),
    ],
)
def test_parts_that_are_not_whole_are_refused(
    change: Callable[[list[Path]], None], because: str, parts: list[Path]
) -> None:
    change(parts)
    with pytest.raises(ModelError, match=because):
        resolve(str(parts[1]))


def test_a_part_under_another_name_is_refused(parts: list[Path], tmp_path: Path) -> None:
    alone = shutil.copy(parts[0], tmp_path / "alone.gguf")
    with pytest.raises(ModelError, match=r"one of 4 parts .* NAME-00001-of-00003\.gguf"):
        resolve(str(alone))
