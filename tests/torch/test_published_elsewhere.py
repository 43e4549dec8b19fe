"""Quantized checkpoints beside other tools: adapters for them in PEFT, and models of images in them.

bitsandbytes' four bits are wrong on a processor where inputs are no multiple of 64 (0.50).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_wrapper
from published_folders import WIDE, change_config, make_pair, write_tensors
from published_formats import FORMATS, Format, blockwise
from safetensors.torch import load_file
from sessions import session_for

from edgetune.adapters import load_adapter, save_adapter
from edgetune.exporters import ExportRequest, export
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel

TOKENS = list(range(3, 20))


def drawn(folder: Path, model: LocalModel) -> Path:
    """Save an adapter of random numbers and return its folder."""
    lora, draw = Lora(rank=2), np.random.default_rng(0)
    tensors = {
        x.name: draw.normal(0, 0.3, x.shape).astype(np.float32) for x in lora.tensors(model.shape)
    }
    save_adapter(folder, lora, model.shape, tensors, base="tiny")
    return folder


def _computing_in_float32(config: dict[str, Any]) -> dict[str, Any]:
    settings = config["quantization_config"] | {"bnb_4bit_compute_dtype": "float32"}
    return config | {"quantization_config": settings}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_peft_loads_an_adapter_over_the_quantized_model(name: str, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    form = FORMATS[name]
    if name == "nf4":
        form = Format(form.settings, blockwise("nf4", dtype="float32"), torch.float32)
    sizes = WIDE | {"intermediate_size": 128, "head_dim": 16}
    packed, _ = make_pair(tmp_path, "llama", form, **sizes)
    change_config(packed, _computing_in_float32)
    adapter = drawn(tmp_path / "adapter", LocalModel.open(packed))
    base = AutoModelForCausalLM.from_pretrained(packed)
    model = PeftModel.from_pretrained(
        base, adapter
    ).train()  # its kernel for inference wants larger sizes

    assert type(base.model.layers[0].self_attn.q_proj.base_layer).__name__.startswith("Linear")
    weights = {x for x, _ in model.named_parameters() if ".lora_" in x}
    stored = load_file(adapter / "adapter_model.safetensors")
    assert {x.replace(".default", "") for x in weights} == set(stored)
    ours = LocalModel.open(packed)
    with session_for(ours, method=Lora(rank=2)) as session, torch.no_grad():
        session.restore(load_adapter(adapter, ours.shape).tensors)
        found = torch.from_numpy(session.logits(TOKENS))
        expected = model(torch.tensor([TOKENS])).logits[0].float()
    # with int8 bitsandbytes rounds what it multiplies with to eight bits, too
    assert (found - expected).norm() <= {"nf4": 1e-5, "int8": 0.06}[name] * expected.norm()


@pytest.mark.parametrize(
    ("wrapper", "inner", "name"),
    [("mistral3", "ministral3", "fp8 tensor"), ("qwen3_5", None, "nf4"), ("gemma3", None, "gptq")],
)
@pytest.mark.filterwarnings("ignore")
def test_a_tower_that_is_quantized_is_merged_too(
    wrapper: str, inner: str | None, name: str, tmp_path: Path
) -> None:
    form, outer = FORMATS[name], ("embed", "lm_head", "conv", "pos")
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    make_wrapper(packed, wrapper, inner).to(form.dtype).save_pretrained(packed)
    tensors, numbers = load_file(packed / "model.safetensors"), {}
    for stored, x in list(tensors.items()):
        numbers[stored] = x
        if stored.endswith(".weight") and x.ndim == 2 and not any(p in stored for p in outer):
            written, values = form.writer(tensors.pop(stored).float())
            module = stored.removesuffix("weight")
            tensors |= {f"{module}{part}": y for part, y in written.items()}
            numbers[stored] = values.to(form.dtype)
    config = json.loads((packed / "config.json").read_text())
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(config))
    write_tensors(packed, tensors)
    write_tensors(plain, numbers)
    change_config(packed, lambda config: config | {"quantization_config": dict(form.settings)})

    one, two = LocalModel.open(packed), LocalModel.open(plain)
    for tensor in two.tensors:
        np.testing.assert_array_equal(one.read(tensor), two.read(tensor), err_msg=tensor)
    outputs = []
    for model, target in ((one, tmp_path / "one"), (two, tmp_path / "two")):
        adapter = load_adapter(drawn(tmp_path / f"{target.name}-adapter", model), model.shape)
        export("hf", ExportRequest(adapter=adapter, model=model, output=target))
        outputs.append(load_file(target / "model.safetensors"))
    assert outputs[0].keys() == outputs[1].keys()
    assert all(torch.equal(x, outputs[1][name]) for name, x in outputs[0].items())
