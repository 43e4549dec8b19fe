"""PEFT and we compute the same from one adapter file, for every method that PEFT knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters import random_adapter
from models import make_model
from opened import open_decoder
from torch.nn import Parameter
from transformers import AutoModelForCausalLM

from edgetune.adapters import LoadedAdapter, load_adapter, save_adapter
from edgetune.methods import build
from edgetune.methods.adapted import Adapted
from edgetune.model import LocalModel
from edgetune.network.adaptation import BASE
from edgetune.shape import ModelShape

# peft 0.21 asks for a name that transformers 5.23 calls deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    # what it says of every norm that is not torch's own
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not save vera_A and vera_B:UserWarning"),
]

TOKENS = np.random.default_rng(0).integers(3, 97, 24).tolist()
TOLERANCE = 1e-4
FAMILIES = ("llama", "phi3", "gpt2", "gemma3")
MULTIPLIED = ("granite", "granitemoe", "granitemoehybrid")
"""Families that multiply the embeddings which they are given."""

OURS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "dora": ("dora", {"rank": 4}, FAMILIES),
    "dora-rslora": ("dora", {"rank": 4, "rslora": True, "targets": ("mlp",)}, FAMILIES),
    "vera": ("vera", {"vera_rank": 8}, FAMILIES),
    "ia3": ("ia3", {}, FAMILIES),
    "ia3-all": ("ia3", {"targets": ("all-linear",)}, FAMILIES),
    "norm": ("norm", {}, FAMILIES),
    "norm-last": ("norm", {"layers": 1}, FAMILIES),
    "prompt": ("prompt", {"prompt_length": 5}, (*FAMILIES, "gemma2", *MULTIPLIED)),
    "prefix": ("prefix", {"prefix_length": 5}, (*FAMILIES, "gemma2")),
    "llama-adapter": ("llama-adapter", {"gate": "layer", "layers": 2}, ("llama",)),
}
CASES = [(name, family) for name, (_, _, families) in OURS.items() for family in families]


def _ours(model: LocalModel, adapter: LoadedAdapter) -> torch.Tensor:
    parameters = {name: Parameter(torch.tensor(x)) for name, x in adapter.tensors.items()}
    return open_decoder(model).logits(TOKENS, Adapted(adapter.method, model.shape, parameters))


@torch.no_grad()
def _theirs(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(torch.tensor([TOKENS])).logits[0]
    return logits[-len(TOKENS) :]


def _base(model: LocalModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LocalModel]:
    made: dict[str, LocalModel] = {}

    def model(family: str) -> LocalModel:
        if family not in made:
            folder = make_model(tmp_path_factory.mktemp(family), family)
            made[family] = LocalModel.open(folder)
        return made[family]

    return model


@pytest.mark.parametrize(("name", "family"), CASES)
def test_peft_computes_what_we_compute(
    models: Callable[[str], LocalModel], tmp_path: Path, name: str, family: str
) -> None:
    model, (kind, settings, _) = models(family), OURS[name]
    adapter = random_adapter(build(kind, settings), model.shape)
    save_adapter(tmp_path, adapter.method, model.shape, adapter.tensors, base="base")
    theirs = peft.PeftModel.from_pretrained(_base(model), tmp_path)

    ours = _ours(model, adapter)
    torch.testing.assert_close(ours, _theirs(theirs), rtol=0, atol=TOLERANCE)
    assert (ours - open_decoder(model).logits(TOKENS, BASE)).abs().max() > 10 * TOLERANCE


def _config(name: str, shape: ModelShape) -> Any:
    turned = shape.family == "gpt2"
    match name:
        case "dora":
            return peft.LoraConfig(
                task_type="CAUSAL_LM", r=4, use_dora=True, init_lora_weights=False,
                target_modules="all-linear", fan_in_fan_out=turned,
            )  # fmt: skip
        case "vera" | "vera-key":
            return peft.VeraConfig(
                task_type="CAUSAL_LM", r=8, target_modules="all-linear", fan_in_fan_out=turned,
                projection_prng_key=7, save_projection=name == "vera",
            )  # fmt: skip
        case "ia3":
            down = {"gpt2": "mlp.c_proj"}.get(shape.family, "down_proj")
            first = {"phi3": "qkv_proj", "gpt2": "c_attn"}.get(shape.family, "v_proj")
            return peft.IA3Config(
                task_type="CAUSAL_LM", target_modules=[first, down], feedforward_modules=[down],
                init_ia3_weights=False, fan_in_fan_out=turned,
            )  # fmt: skip
        case "norm":
            names = {"gpt2": ["ln_1", "ln_f"]}.get(shape.family, ["input_layernorm", "norm"])
            return peft.LNTuningConfig(task_type="CAUSAL_LM", target_modules=names)
        case "prompt":
            return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=6)
        case "prefix":
            return peft.PrefixTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=True,
                encoder_hidden_size=12,
            )  # fmt: skip
    return peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2)


SAVED = [(n, f) for n in ("dora", "vera", "ia3", "norm", "prompt", "prefix") for f in FAMILIES]
SAVED += [("prompt", family) for family in MULTIPLIED]


@pytest.mark.parametrize(
    ("name", "family"), [*SAVED, ("vera-key", "llama"), ("llama-adapter", "llama")]
)
def test_we_compute_what_peft_saved(
    models: Callable[[str], LocalModel], tmp_path: Path, name: str, family: str
) -> None:
    model = models(family)
    theirs = peft.get_peft_model(_base(model), _config(name, model.shape))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    theirs.save_pretrained(str(tmp_path))

    adapter = load_adapter(tmp_path, model.shape)
    torch.testing.assert_close(_ours(model, adapter), _theirs(theirs), rtol=0, atol=TOLERANCE)
