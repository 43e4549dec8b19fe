"""One adapter file for both worlds: PEFT and we compute the same from it, and so does the merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters import random_adapter, random_tensors
from models import make_model, make_wrapper
from numpy.typing import NDArray
from opened import open_decoder
from torch.nn import Parameter
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from edgetune.adapters import LoadedAdapter, load_adapter, save_adapter
from edgetune.errors import CheckFailedError, UsageError
from edgetune.exporters import ExportRequest, export
from edgetune.exporters.check import compare, require
from edgetune.methods.adapted import Adapted
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

# peft 0.21 asks for a name that transformers 5.23 calls deprecated
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

FAMILIES = (
    "llama", "qwen2", "gemma2", "gemma3", "gemma3n_text", "gemma4_text", "phi3", "gpt2",
    "qwen3_5_text", "granitemoehybrid", "falcon_h1", "nemotron_h",
)  # fmt: skip
LOADED = ("gemma4_moe", "phimoe", "nemotron_h_moe")
"""Families whose MLPs beside experts PEFT does not take for these."""
TOKENS = tuple(np.random.default_rng(0).integers(3, 97, 24).tolist())
TOLERANCE = 1e-4

Logits = Callable[[Sequence[int]], NDArray[np.float32]]


def _ours(model: LocalModel, adapter: LoadedAdapter) -> Logits:
    """Return the logits of base and adapter as the torch backend computes them."""
    engine = open_decoder(model)
    parameters = {n: Parameter(torch.tensor(x)) for n, x in adapter.tensors.items()}
    method = Adapted(adapter.method, model.shape, parameters)
    return lambda tokens: engine.logits(tokens, method).numpy()


def _theirs(model: Any) -> Logits:
    """Return the logits of a transformers or PEFT model."""

    @torch.no_grad()
    def logits(tokens: Sequence[int]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = model.eval()(torch.tensor([list(tokens)])).logits[0].numpy()
        return found

    return logits


def _base(model: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)


def _assert_close(found: Logits, expected: Logits) -> None:
    np.testing.assert_allclose(found(TOKENS), expected(TOKENS), rtol=0, atol=TOLERANCE)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LocalModel:
    return LocalModel.open(make_model(tmp_path / "base", request.param))


def _last_of_attention(model: LocalModel) -> tuple[str, ...]:
    """Return targets that PEFT can only be told by full paths: two of the last block."""
    block = model.shape.block(model.shape.layers - 1)
    taken = [linear for linear in model.shape.blocks[-1].linears if linear.grouped]
    return tuple(f"{block}{linear.module}" for linear in taken[:2])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rslora": True, "alpha": 3.5, "dropout": 0.5},
        {"targets": ("mlp",)},
        {"targets": None},
        {"rank_pattern": ("mlp=7", "*.1.*=2"), "alpha_pattern": ("*.0.*=1.5",), "rslora": True},
        {"rank_pattern": ("*.2.*=6",)},
    ],
    ids=["all-linear", "rslora", "mlp", "last-block", "patterns", "ranks"],
)
def test_peft_computes_what_we_compute(
    model: LocalModel, tmp_path: Path, settings: dict[str, Any]
) -> None:
    if "targets" in settings and settings["targets"] is None:
        settings = {"targets": _last_of_attention(model)}
    adapter = random_adapter(Lora(rank=4, **settings), model.shape)
    save_adapter(tmp_path / "adapter", adapter.method, model.shape, adapter.tensors, base="base")
    theirs = peft.PeftModel.from_pretrained(_base(model), tmp_path / "adapter")
    adapted = [name for name, _ in theirs.named_modules() if name.endswith(".lora_A.default")]

    assert len(adapted) == len(adapter.tensors) / 2
    _assert_close(_ours(model, adapter), _theirs(theirs))
    with pytest.raises(AssertionError):
        _assert_close(_ours(model, adapter), _theirs(_base(model)))


@pytest.mark.parametrize("family", [*LOADED, "deepseek_v2", "glm4_moe_lite"])
def test_peft_computes_what_we_compute_beside_experts(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    everything = random_adapter(Lora(rank=4), model.shape)
    attention = random_adapter(Lora(rank=4, targets=("attention",)), model.shape)
    loaded = everything if family in LOADED else attention
    request = ExportRequest(adapter=everything, model=model, output=tmp_path / "everything")
    if loaded is attention:
        with pytest.raises(UsageError, match="for experts, and would load this"):
            export("peft", request)
    export("peft", replace(request, adapter=loaded, output=tmp_path / "adapter"))
    theirs = peft.PeftModel.from_pretrained(_base(model), tmp_path / "adapter")

    _assert_close(_ours(model, loaded), _theirs(theirs))
    with pytest.raises(AssertionError):
        _assert_close(_ours(model, loaded), _theirs(_base(model)))


@pytest.mark.parametrize(
    "wrapper", ["gemma3", "gemma4", "gemma4_unified", "qwen3_5", "qwen3_5_moe"]
)
def test_peft_computes_what_we_compute_inside_a_model_of_images(
    wrapper: str, tmp_path: Path
) -> None:
    make_wrapper(tmp_path / "base", wrapper)
    model = LocalModel.open(tmp_path / "base")
    adapter = random_adapter(Lora(rank=4), model.shape)
    request = ExportRequest(adapter=adapter, model=model, output=tmp_path / "adapter")
    (note,) = export("peft", request).notes
    base = AutoModelForImageTextToText.from_pretrained(model.folder, dtype=torch.float32)
    before = _theirs(base)(TOKENS)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    adapted = [name for name, _ in theirs.named_modules() if name.endswith(".lora_A.default")]

    assert "AutoModelForImageTextToText" in note
    assert len(adapted) == len(adapter.tensors) / 2
    _assert_close(_ours(model, adapter), _theirs(theirs))
    assert np.abs(_theirs(theirs)(TOKENS) - before).max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": r".*\.[012]\..*proj.*|.*c_attn"},
        {
            "target_modules": ["q_proj", "in_proj", "down_proj", "c_fc"],
            "layers_to_transform": [0, 2],
        },
        {"target_modules": "all-linear", "exclude_modules": r".*\.(o_proj|c_proj)"},
        {
            "target_modules": "all-linear",
            "rank_pattern": {"(o_proj|c_proj)": 7, r".*\.0\..*": 2},
            "alpha_pattern": {"(o_proj|c_proj)": 1, r".*\.[12]\..*": 5},
        },
    ],
    ids=["all-linear", "regex", "layers", "excluded", "patterns"],
)
def test_we_compute_what_peft_saved(
    model: LocalModel, tmp_path: Path, settings: dict[str, Any]
) -> None:
    if model.shape.per_layer is not None and settings["target_modules"] == "all-linear":
        others = settings.get("exclude_modules", "nothing")  # what is outside the blocks
        excluded = f"{others}|.*per_layer_model_projection|.*altup.*"
        settings = settings | {"exclude_modules": excluded}
    refused = [x.module for x in model.shape.all_linears if not x.grouped]  # by PEFT itself
    if refused and not isinstance(settings["target_modules"], list):
        excluded = "|".join(
            [settings.get("exclude_modules", "nothing"), *(f".*{x}" for x in refused)]
        )
        settings = settings | {"exclude_modules": excluded}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=3,
        init_lora_weights=False,
        fan_in_fan_out=model.shape.family == "gpt2",
        **settings,
    )
    theirs = peft.get_peft_model(_base(model), config)
    theirs.save_pretrained(str(tmp_path / "adapter"))

    _assert_close(_ours(model, load_adapter(tmp_path / "adapter", model.shape)), _theirs(theirs))


@pytest.mark.parametrize("shard_bytes", [None, 20_000], ids=["one-file", "sharded"])
def test_the_merged_model_computes_what_was_trained(
    model: LocalModel, tmp_path: Path, shard_bytes: int | None
) -> None:
    adapter = random_adapter(Lora(rank=4), model.shape)
    output = tmp_path / "merged"
    export(
        "hf",
        ExportRequest(adapter=adapter, model=model, output=output, shard_bytes=shard_bytes),
    )
    merged, loading = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)

    assert not any(loading.values())
    assert merged.dtype == torch.float32
    assert LocalModel.open(output).shape == model.shape
    _assert_close(_theirs(merged), _ours(model, adapter))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_16_bit_merge_passes_the_check_and_a_lost_adapter_fails(
    family: str, tmp_path: Path
) -> None:
    usual = {"initializer_range": 0.05}
    folder = make_model(tmp_path / "base", family, dtype=torch.bfloat16, **usual)
    model = LocalModel.open(folder)
    adapter = random_adapter(Lora(rank=4), model.shape)
    export("hf", ExportRequest(adapter=adapter, model=model, output=tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    rows = np.random.default_rng(0).integers(3, 97, (4, 50)).tolist()

    assert merged.dtype == torch.bfloat16
    reference, base = _ours(model, adapter), _theirs(_base(model))
    require(compare(reference, _theirs(merged.float()), rows, base=base))
    with pytest.raises(CheckFailedError):
        require(compare(reference, base, rows))


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "qwen2", tie_word_embeddings=True))
    adapter = random_adapter(Lora(rank=4), model.shape)
    export("hf", ExportRequest(adapter=adapter, model=model, output=tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")

    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert LocalModel.open(tmp_path / "merged").shape.tied


def test_a_loaded_adapter_is_saved_again_unchanged(tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", "llama"))
    lora = Lora(rank=4)
    folders = [tmp_path / "first", tmp_path / "second"]
    save_adapter(folders[0], lora, model.shape, random_tensors(lora, model.shape), base="base")
    found = load_adapter(folders[0], model.shape)
    save_adapter(folders[1], found.method, model.shape, found.tensors, base=found.base or "")

    for path in folders[0].iterdir():
        assert (folders[1] / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe_lite"])
def test_what_chooses_experts_is_not_rounded_in_a_16_bit_model(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path / "base", family))
    adapter = random_adapter(Lora(rank=2, targets=("attention",)), model.shape)
    request = ExportRequest(adapter=adapter, model=model, output=tmp_path / "merged")
    export("hf", replace(request, dtype="bfloat16"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    stored, kept = LocalModel.open(tmp_path / "merged").tensors, theirs.state_dict()

    names = [name for name in stored if name.endswith("e_score_correction_bias")]
    assert names
    for name, tensor in stored.items():
        assert tensor.dtype == ("float32" if name in names else "bfloat16"), name
    for name in names:
        assert kept[name].dtype == torch.float32
        np.testing.assert_array_equal(kept[name].numpy(), model.read(name))
