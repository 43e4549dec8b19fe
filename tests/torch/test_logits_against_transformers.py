"""Logits and gradients of every family are as near to float64 as transformers' own, or nearer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import FAMILIES, MODEL_TYPES, make_model, make_wrapper
from opened import open_decoder
from transformers import AutoModelForCausalLM

from edgetune.data.batch import IGNORED, MicroBatch
from edgetune.methods import build, initial_value
from edgetune.methods.adapted import Adapted
from edgetune.model import LocalModel
from edgetune.model.families.wrappers import INSIDE
from edgetune.network.adaptation import BASE
from edgetune_torch.tensors import LoadedBase

LENGTHS = (23, 5, 12)
"""One to four windows of the small models, and more than one."""

LEAST = 1e-5

ODD: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 101,
}  # fmt: skip
_GPT = {"n_embd": 24, "n_head": 3, "n_inner": 40, "vocab_size": 101}
_LATENTS = {
    "hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 3,
    "num_key_value_heads": 3, "vocab_size": 101,
    "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 10, "kv_lora_rank": 14,
    "attention_bias": True,
}  # fmt: skip
ODD_OF: dict[str, dict[str, Any]] = {
    "gpt2": _GPT,
    "gptj": _GPT | {"rotary_dim": 6},
    "gpt_bigcode": _GPT | {"multi_query": False},
    "gpt_neo": {"hidden_size": 24, "num_heads": 3, "intermediate_size": 40, "vocab_size": 101},
    "falcon": {
        "hidden_size": 48, "num_attention_heads": 3, "ffn_hidden_size": 40, "vocab_size": 101,
        "new_decoder_architecture": False, "bias": True},
    "bloom": {"hidden_size": 40, "n_head": 5, "vocab_size": 101},
    "deepseek_v2": _LATENTS | {"q_lora_rank": 10, "topk_method": "greedy"},
    "deepseek_v3": _LATENTS | {"q_lora_rank": None, "n_group": 1, "topk_group": 1},
    "phimoe": ODD | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "glm4_moe_lite": _LATENTS | {"q_lora_rank": None, "rope_interleave": False},
    "mpt": {"d_model": 40, "n_heads": 5, "vocab_size": 101},
    "falcon_h1": ODD | {
        "mamba_d_ssm": 60, "mamba_n_heads": 3, "mamba_n_groups": 1, "projectors_bias": True,
        "mamba_norm_before_gate": True},
    "nemotron_h": ODD | {
        "mamba_num_heads": 3, "mamba_head_dim": 10, "n_groups": 1, "use_bias": True,
        "mlp_bias": True, "time_step_min": 0.001},
    "nemotron_h_moe": ODD | {
        "mamba_num_heads": 3, "mamba_head_dim": 10, "n_groups": 1, "mlp_bias": True,
        "time_step_min": 0.001, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "layer_types": ["mlp", "moe", "full_attention", "linear_attention"]},
    "gemma3n_text": ODD | {
        "vocab_size_per_layer_input": 60, "altup_num_inputs": 3, "altup_coef_clip": 0.1},
    "granitemoehybrid": ODD | {
        "mamba_n_groups": 1, "mamba_n_heads": 3, "position_embedding_type": "rope",
        "num_local_experts": 3, "num_experts_per_tok": 2},
    "stablelm": ODD | {"use_parallel_residual": True},
    "opt": {"hidden_size": 48, "num_attention_heads": 3, "ffn_dim": 40, "vocab_size": 101},
}  # fmt: skip
"""Three heads of one size, and another of everything else."""


@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_as_exact(family: str, odd: bool, tmp_path: Path) -> None:
    changes = ODD_OF.get(family, ODD) | {"tie_word_embeddings": _tied(family)} if odd else {}
    folder = make_model(tmp_path, family, **changes)
    rows = _rows(min(changes.get("vocab_size", 97), 97))
    exact, theirs = (_transformers(folder, rows, dtype) for dtype in ("float64", "float32"))
    model = LocalModel.open(folder)
    engine = open_decoder(model)
    for row, own, logits in zip(rows, theirs["logits"], exact["logits"], strict=True):
        found = engine.logits(row.tolist(), BASE)
        assert _apart(found, logits) <= max(LEAST, 2 * _apart(own, logits))
    gradients = _ours(model, _packed(rows) if odd else _padded(rows))
    assert gradients.keys() <= exact["gradients"].keys()
    largest = max(float(each.abs().max()) for each in exact["gradients"].values())
    for name, found in gradients.items():
        own, wanted = theirs["gradients"][name], exact["gradients"][name]
        if wanted.abs().max() < LEAST * largest:  # none: a bias of keys shifts all scores alike
            assert found.abs().max() < 2 * LEAST * largest, name
            continue
        assert _apart(found, wanted) <= max(LEAST, 2 * _apart(own, wanted)), name


@pytest.mark.parametrize(
    ("wrapper", "family"), [(x, y) for x, inside in INSIDE.items() for y in inside]
)
def test_text_goes_through_a_wrapper_as_in_transformers(
    wrapper: str, family: str, tmp_path: Path
) -> None:
    model, row = make_wrapper(tmp_path, wrapper, family), _rows(90)[0]
    with torch.no_grad():
        expected = model(input_ids=row[None]).logits[0]

    found = open_decoder(LocalModel.open(tmp_path)).logits(row.tolist(), BASE)

    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_changes_nothing(family: str, tmp_path: Path) -> None:
    model = LocalModel.open(make_model(tmp_path, family))
    engine = open_decoder(model)
    method = build("lora", {"rank": 3})
    parameters = {
        tensor.name: torch.nn.Parameter(torch.from_numpy(initial_value(tensor, 0)))
        for tensor in method.tensors(model.shape)
    }
    row = list(range(3, 26))

    adapted = engine.logits(row, Adapted(method, model.shape, parameters))

    assert torch.equal(adapted, engine.logits(row, BASE))


def _tied(family: str) -> bool:
    """Return what is not the family's default, as far as a config can say it."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(MODEL_TYPES.get(family, family), **FAMILIES[family])
    return not config.tie_word_embeddings


def _rows(vocabulary: int) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randint(3, vocabulary, (length,), generator=draw) for length in LENGTHS]


def _transformers(folder: Path, rows: Sequence[torch.Tensor], dtype: str) -> Mapping[str, Any]:
    """Return logits of each row, and the gradient of the summed loss of all rows."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", experts_implementation="eager",
        dtype=getattr(torch, dtype),
    ).eval()  # fmt: skip
    each = [model(row[None]).logits[0] for row in rows]
    losses = [
        F.cross_entropy(x[:-1], row[1:], reduction="sum") for x, row in zip(each, rows, strict=True)
    ]
    torch.stack(losses).sum().backward()
    gradients = {n: x.grad.double() for n, x in model.named_parameters() if x.grad is not None}
    return {"logits": [x.detach().double() for x in each], "gradients": gradients}


def _ours(model: LocalModel, batch: MicroBatch) -> dict[str, torch.Tensor]:
    """Return the gradient of every tensor of the blocks, as they are stored."""
    engine, method = open_decoder(model), build("full", {})
    base = LoadedBase(engine.decoder, model.folder)
    parameters = {
        tensor.name: torch.nn.Parameter(torch.from_numpy(initial_value(tensor, 0, base)))
        for tensor in method.tensors(model.shape)
    }
    engine.gradients(batch, Adapted(method, model.shape, parameters), scale=1.0)
    found = {name: x.grad for name, x in parameters.items() if x.grad is not None}
    assert found.keys() == parameters.keys()
    turned = {
        f"{model.shape.block(layer)}{linear.module}.weight"
        for layer, block in enumerate(model.shape.blocks)
        for linear in block.linears
        if linear.transposed
    }
    return {name: (x.T if name in turned else x).double() for name, x in found.items()}


def _padded(rows: Sequence[torch.Tensor]) -> MicroBatch:
    width = max(map(len, rows))
    tokens = np.zeros((len(rows), width), np.int32)
    targets = np.full((len(rows), width), IGNORED, np.int32)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = row
        targets[at, : len(row) - 1] = row[1:]
    return MicroBatch(tokens=tokens, targets=targets, documents=tuple((len(x),) for x in rows))


def _packed(rows: Sequence[torch.Tensor]) -> MicroBatch:
    tokens = np.concatenate([row.numpy() for row in rows]).astype(np.int32)[None]
    targets = np.concatenate([[*row.numpy()[1:], IGNORED] for row in rows]).astype(np.int32)[None]
    return MicroBatch(tokens=tokens, targets=targets, documents=(tuple(map(len, rows)),))


def _apart(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the largest error as a share of the largest number."""
    return float((found.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))
