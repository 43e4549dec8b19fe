"""Matrices of quantized checkpoints have the numbers that their formats and libraries say."""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_folders import WIDE, change_config, make_pair, write_tensors
from published_formats import FORMATS, Format, fp8, gptq, pack_quantized
from torch import Tensor

from edgetune.errors import ModelError
from edgetune.model import LocalModel
from edgetune.model.published import assembled
from edgetune.model.weights import stored_tensors
from edgetune.tensors.packed import PackedTensor, kinds, spans
from edgetune.tensors.packed.values import packed_rows, packed_values


def matrix(outputs: int, inputs: int) -> Tensor:
    draw = torch.Generator().manual_seed(outputs)
    return torch.randn(outputs, inputs, generator=draw) * 0.05


def packed(folder: Path, form: Format, w: Tensor) -> tuple[PackedTensor, np.ndarray[Any, Any]]:
    """Return a matrix as a folder has it, and its numbers as the writer knows them."""
    written, values = form.writer(w)
    write_tensors(folder, {f"a.{name}": x for name, x in written.items()})
    config = {form.place: dict(form.settings), "dtype": str(form.dtype).removeprefix("torch.")}
    found = assembled(config, stored_tensors(folder))
    assert found.keys() == {"a.weight"}  # no part is left over
    tensor = found["a.weight"]
    assert isinstance(tensor, PackedTensor)
    return tensor, values.to(getattr(torch, tensor.dtype)).float().numpy()


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_has_the_numbers_of_its_twin(name: str, tmp_path: Path) -> None:
    form = FORMATS[name]
    one, two = map(LocalModel.open, make_pair(tmp_path, "llama", form, shards=3, **WIDE))

    assert one.shape.dtype == two.shape.dtype
    assert one.shape.parameters == two.shape.parameters
    assert one.shape.published is not None
    assert one.shape.published.kept_as == form.kept_as
    assert one.shape.published.vocabulary == form.outer
    for tensor in two.tensors:
        np.testing.assert_array_equal(one.read(tensor), two.read(tensor), err_msg=tensor)


@pytest.mark.parametrize("name", FORMATS)
def test_unpacking_takes_no_more_memory_than_is_planned(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "SPAN", 1 << 13)
    monkeypatch.setattr(spans, "SPAN", 1 << 13)
    tensor, values = packed(tmp_path, FORMATS[name], matrix(136, 192))
    packed_values(tensor)  # tables are made once
    tracemalloc.start()
    found = packed_values(tensor)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    np.testing.assert_array_equal(found.astype(np.float32), values)
    assert peak - found.nbytes <= tensor.unpacking_bytes
    some = packed_rows(tensor, 31, 121)
    np.testing.assert_array_equal(some.astype(np.float32), values[31:121])


ODD = {
    "fp8 of 128": (Format({"quant_method": "fp8", "weight_block_size": [128, 128]},
                          fp8((128, 128), dtype=torch.float32)), (200, 300)),
    "nf4": (FORMATS["nf4"], (7, 33)),
    "nf4 flat": (FORMATS["nf4 flat"], (5, 101)),
    "int8": (FORMATS["int8"], (7, 33)),
    "gptq": (Format(FORMATS["gptq"].settings | {"group_size": 64}, gptq(4, 64), torch.float16),
             (36, 104)),
    "awq": (FORMATS["awq"], (40, 48)),
    "packed": (FORMATS["packed"], (7, 33)),
    "packed, one-sided": (
        Format(FORMATS["packed"].settings, pack_quantized(4, 16, symmetric=False)), (13, 35)),
    "rows": (FORMATS["fp8 rows"], (1, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_sizes(name: str, tmp_path: Path) -> None:
    form, (outputs, inputs) = ODD[name]
    tensor, values = packed(tmp_path, form, matrix(outputs, inputs))

    assert tensor.shape == (outputs, inputs)
    np.testing.assert_array_equal(packed_values(tensor).astype(np.float32), values)
    for row in range(outputs):
        one = packed_rows(tensor, row, row + 1).astype(np.float32)
        np.testing.assert_array_equal(one, values[row : row + 1])


def test_four_bits_equal_bitsandbytes_own(tmp_path: Path) -> None:
    from bitsandbytes import functional as bnb

    w = matrix(96, 200)
    for kind in ("nf4", "fp4"):
        for nested in (True, False):
            codes, state = bnb.quantize_4bit(
                w.bfloat16(), blocksize=64, compress_statistics=nested, quant_type=kind
            )
            parts = {f"a.weight.{name}": x for name, x in state.as_dict(packed=True).items()}
            write_tensors(tmp_path, {"a.weight": codes} | parts)
            found = _only(tmp_path, FORMATS["nf4"].settings)
            expected = bnb.dequantize_4bit(codes, state)
            np.testing.assert_array_equal(packed_values(found).astype("f4"), expected.float())
            assert found.kept_as == ("nf4" if kind == "nf4" and nested else None)


def test_eight_bits_equal_bitsandbytes_own(tmp_path: Path) -> None:
    from bitsandbytes import functional as bnb

    codes, largest, _ = bnb.int8_vectorwise_quant(matrix(96, 200).half())
    write_tensors(tmp_path, {"a.weight": codes, "a.SCB": largest})
    found = packed_values(_only(tmp_path, FORMATS["int8"].settings, dtype="float32"))

    expected = bnb.int8_vectorwise_dequant(codes, largest)
    np.testing.assert_allclose(found, expected, rtol=1.2e-7, atol=0)  # of one rounding


def _only(folder: Path, settings: Mapping[str, object], dtype: str = "bfloat16") -> PackedTensor:
    config = {"quantization_config": settings, "dtype": dtype}
    found = assembled(config, stored_tensors(folder))["a.weight"]
    assert isinstance(found, PackedTensor)
    return found


@pytest.mark.parametrize("name", ["fp8 blocks", "fp8 tensor"])
def test_logits_of_fp8_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    form = FORMATS[name]
    if form.settings["weight_block_size"]:  # transformers' must divide the sizes here
        settings = form.settings | {"weight_block_size": [16, 16]}
        form = Format(settings, fp8((16, 16), dtype=torch.float32))
    one, two = make_pair(tmp_path, "qwen3", form, **WIDE)
    tokens = torch.arange(3, 20)[None]
    logits = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)(tokens).logits
        for folder in (one, two)
    ]

    torch.testing.assert_close(*logits, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["gpt2", "phi3", "qwen2_moe", "olmo2", "gemma3_text"])
@pytest.mark.parametrize("name", ["nf4", "int8", "gptq"])
def test_turned_fused_and_small_matrices(family: str, name: str, tmp_path: Path) -> None:
    """GPT-2's square output projection is turned, a fused one is one matrix, a router is one, too."""
    form = FORMATS[name]
    sizes = {} if family == "gpt2" else {"hidden_size": 64, "head_dim": 16}
    skip = ("experts.gate_up", "experts.down", "shared_expert_gate")
    one, two = map(LocalModel.open, make_pair(tmp_path, family, form, skip=skip, **sizes))

    assert one.shape.published is not None
    for tensor in two.tensors:
        np.testing.assert_array_equal(one.read(tensor), two.read(tensor), err_msg=tensor)


def test_what_is_not_converted_stays(tmp_path: Path) -> None:
    skip = ("layers.0.self_attn.q_proj", "layers.1.mlp")
    one, two = map(
        LocalModel.open, make_pair(tmp_path, "llama", FORMATS["fp8 blocks"], skip=skip, **WIDE)
    )
    plain = {name for name, x in one.tensors.items() if not isinstance(x, PackedTensor)}

    assert {f"model.{skip[0]}.weight", f"model.{skip[1]}.gate_proj.weight"} <= plain
    for tensor in two.tensors:
        np.testing.assert_array_equal(one.read(tensor), two.read(tensor), err_msg=tensor)


@pytest.mark.parametrize(
    ("family", "fused", "size"),
    [("qwen3_5_moe_text", True, 32), ("qwen3_5_moe_text", True, 24), ("qwen3_moe", False, 24)],
)
def test_experts_in_fp8(family: str, fused: bool, size: int, tmp_path: Path) -> None:
    """In one tensor, whose blocks can go over the border of gate and up; or one by one."""
    from safetensors.torch import load_file

    form = FORMATS["fp8 blocks"]
    one, two = make_pair(
        tmp_path, family, form, skip=("gate.weight",), hidden_size=64, moe_intermediate_size=size
    )
    names = load_file(one / "model.safetensors")
    if fused:
        plain = load_file(two / "model.safetensors")
        for name, stack in stacked_experts(plain).items():
            written = [form.writer(x.float()) for x in stack]
            plain[name] = torch.stack([values for _, values in written]).bfloat16()
            names[name] = torch.stack([parts["weight"] for parts, _ in written])
            names[f"{name}_scale_inv"] = torch.stack([p["weight_scale_inv"] for p, _ in written])
        single = re.compile(r"experts\.\d")
        write_tensors(one, {k: x for k, x in names.items() if not single.search(k)})
        write_tensors(two, {k: x for k, x in plain.items() if not single.search(k)})
    models = [LocalModel.open(folder) for folder in (one, two)]

    experts = [name for name in models[0].tensors if ".experts." in name]
    assert all(isinstance(models[0].tensors[name], PackedTensor) for name in experts)
    for name in models[1].tensors:
        np.testing.assert_array_equal(*(model.read(name) for model in models), err_msg=name)


def stacked_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the experts of all blocks as Qwen3.5's files have them: (E, outputs, inputs)."""
    found = {}
    for name in [x for x in tensors if x.endswith("experts.0.gate_proj.weight")]:
        prefix = name.removesuffix("0.gate_proj.weight")
        parts = {
            role: torch.stack([
                x for k, x in tensors.items() if k.startswith(prefix) and k.endswith(f"{role}.weight")
            ])
            for role in ("gate_proj", "up_proj", "down_proj")
        }  # fmt: skip
        found[f"{prefix}gate_up_proj"] = torch.cat((parts["gate_proj"], parts["up_proj"]), 1)
        found[f"{prefix}down_proj"] = parts["down_proj"]
    return found


FAULTS: dict[str, tuple[str, str, Any, str]] = {
    "no scale": ("fp8 blocks", "q_proj.weight_scale_inv", None, "q_proj.weight_scale_inv: missing"),
    "a small grid": ("fp8 blocks", "q_proj.weight_scale_inv", torch.ones(3, 2), "fits no blocks"),
    "NaN scale": ("fp8 blocks", "q_proj.weight_scale_inv", float("nan"), "q_proj.weight"),
    "no state": ("nf4", "q_proj.weight.quant_state.bitsandbytes__nf4", None, "missing"),
    "no map": ("nf4", "q_proj.weight.quant_map", None, "q_proj.weight.quant_map: missing"),
    "no JSON": ("nf4", "q_proj.weight.quant_state.bitsandbytes__nf4",
                torch.zeros(9, dtype=torch.uint8), "does not tell shape"),
    "few codes": ("nf4", "q_proj.weight", torch.zeros(8, 1, dtype=torch.uint8), "has 8 bytes"),
    "few scales": ("nf4 flat", "q_proj.weight.absmax", torch.zeros(3), "q_proj.weight.absmax: is"),
    "a card's order": ("int8", "q_proj.weight_format", torch.tensor(2, dtype=torch.uint8),
                       "q_proj.weight_format: the codes are in an order"),
    "no rows' scales": ("int8", "q_proj.SCB", None, "q_proj.SCB: missing"),
    "no zeros": ("gptq", "q_proj.qzeros", None, "q_proj.qzeros: missing"),
    "odd codes": ("gptq", "q_proj.qweight", torch.zeros(5, 32, dtype=torch.int32), "no number"),
    "no such group": ("gptq", "q_proj.g_idx", 99, "q_proj.g_idx .* names groups"),
    "no scales": ("awq", "q_proj.scales", None, "q_proj.scales: missing"),
    "infinite": ("awq", "q_proj.scales", float("inf"), "q_proj.weight .* NaN or infinite"),
    "no shape": ("packed", "q_proj.weight_shape", None, "q_proj.weight_shape: missing"),
    "another shape": ("packed", "q_proj.weight_shape", torch.tensor([9, 9]), "is no 9 x 9 codes"),
    "no biases": ("mlx in four", "q_proj.biases", None, "q_proj.biases: missing"),
    "wide scales": ("mlx in four", "q_proj.scales", torch.ones(32, 9).bfloat16(), "expected"),
    "no exponent": ("mx fp4", "q_proj.weight_scale", 255, "q_proj.weight_scale .* NaN"),
    "a stranger": ("fp8 blocks", "q_proj.odd", torch.ones(2), "q_proj.odd: not expected"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_named(fault: str, tmp_path: Path) -> None:
    name, part, other, message = FAULTS[fault]
    folder, _ = make_pair(tmp_path, "llama", FORMATS[name], **(WIDE | {"layers": 1}))
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    full = f"model.layers.0.self_attn.{part}"
    if other is None:
        del tensors[full]
    elif isinstance(other, Tensor):
        tensors[full] = other
    else:
        tensors[full].view(-1)[0] = other
    write_tensors(folder, tensors)

    with pytest.raises(ModelError, match=message):
        LocalModel.open(folder).read("model.layers.0.self_attn.q_proj.weight")


@pytest.mark.parametrize(
    "name", ["fp8 blocks", "fp8 rows", "nf4", "int8", "gptq", "packed", "mx fp4", "mlx in four"]
)
def test_a_config_that_does_not_tell_of_the_quantization_is_named(
    name: str, tmp_path: Path
) -> None:
    form = FORMATS[name]
    folder, _ = make_pair(tmp_path, "llama", form, **(WIDE | {"layers": 1}))
    change_config(folder, lambda config: {k: v for k, v in config.items() if k != form.place})
    with pytest.raises(ModelError, match=r"(?s)not expected.*no quantization_config.*again"):
        LocalModel.open(folder)


@pytest.mark.parametrize("name", ["fp8 tensor", "fp8 rows"])
def test_scales_of_cached_keys_are_left_out(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder, _ = make_pair(tmp_path, "llama", FORMATS[name], **(WIDE | {"layers": 1}))
    scales = ("k_scale", "v_scale", "kv_scale", "q_scale", "k_proj.output_scale")
    extra = {f"model.layers.0.self_attn.{each}": torch.tensor(0.5) for each in scales}
    write_tensors(folder, load_file(folder / "model.safetensors") | extra)
    assert LocalModel.open(folder).shape.published is not None


def test_another_head_beside_a_tied_one_is_refused(tmp_path: Path) -> None:
    form = FORMATS["mlx in four"]
    folder, _ = make_pair(
        tmp_path, "llama", form, tie_word_embeddings=True, **(WIDE | {"layers": 1})
    )
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    assert LocalModel.open(folder).shape.tied
    write_tensors(folder, tensors | {"lm_head.weight": torch.zeros(97, 64).bfloat16()})
    with pytest.raises(ModelError, match="another head"):
        LocalModel.open(folder)


def test_damage_is_refused_by_name_or_harmless(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    draw = random.Random(0)
    for name in ("fp8 blocks", "nf4", "int8", "gptq", "awq", "packed", "nv fp4", "mlx in four"):
        folder, _ = make_pair(tmp_path / name, "llama", FORMATS[name], **(WIDE | {"layers": 1}))
        whole = load_file(folder / "model.safetensors")
        for _ in range(12):
            tensors = dict(whole)
            hit = draw.choice([part for part in whole if "proj" in part])
            tensors[hit] = _damaged(tensors[hit], draw)
            write_tensors(folder, tensors)
            with suppress(ModelError):
                model = LocalModel.open(folder)
                assert all(np.isfinite(model.read(x).astype("f4")).all() for x in model.tensors)


def _damaged(x: Tensor, draw: random.Random) -> Tensor:
    match draw.randrange(5):
        case 0:
            return x.reshape(-1)
        case 1:
            return x.reshape(-1)[: draw.randrange(x.numel())].clone()
        case 2:
            return torch.stack([x, x])
        case 3:
            return torch.zeros(x.shape, dtype=draw.choice([torch.float32, torch.int8, torch.int64]))
    content = x.clone().reshape(-1).view(torch.uint8)
    for _ in range(4):
        content[draw.randrange(len(content))] = draw.randrange(256)
    return content.view(x.dtype).reshape(x.shape)
