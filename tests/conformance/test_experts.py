"""Mixtures of experts: routing is exact and the same every time, wherever the experts are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import convert
from models import make_model, make_wrapper
from safetensors.numpy import load_file, save_file

from conformance.sessions import ROW, Bench, packed, rows, step
from edgetune.errors import UsageError
from edgetune.methods import METHODS, build
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.shape import Experts

T, D, F, E, K = 300, 8, 12, 16, 2
RULE = Experts(
    number=E, chosen=K, hidden=D, size=F, router="router", normalised=True,
    projections=(("gate", "{}.gate"), ("up", "{}.up"), ("down", "{}.down")),
)  # fmt: skip


@pytest.fixture(scope="module", params=["qwen3_moe", "gemma4_moe", "deepseek_v3", "nemotron_h_moe"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    folder = tmp_path_factory.mktemp("mixture")
    return LocalModel.open(make_model(folder, request.param, layers=2))


def test_streamed_experts_compute_what_resident_ones_do(bench: Bench, model: LocalModel) -> None:
    found = []
    for held in ({}, bench.ways.places["streamed"], bench.ways.places["checkpointed"]):
        session = bench.open(Lora(rank=3), model, **held)
        found.append([step(session, batch) for batch in (rows(), packed(rows()), rows())])
    assert found[0] == found[1] == found[2]


def test_quantized_experts_are_near_and_learn(bench: Bench, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"hidden_size": 64, "moe_intermediate_size": 64}
    wide = LocalModel.open(
        make_model(tmp_path, "qwen3_moe", intermediate_size=64, head_dim=16, **sizes)
    )
    plain = bench.open(Lora(rank=3), wide).logits(ROW)
    session = bench.open(Lora(rank=3), wide, quantization=bench.ways.formats["8-bit"])
    assert np.abs(session.logits(ROW) - plain).max() < 0.1 * np.abs(plain).max()
    first = step(session, rows())[0]
    assert [step(session, rows())[0] for _ in range(3)][-1] < first


def test_methods_that_need_an_mlp_say_that_there_are_experts(tmp_path: Path) -> None:
    shape = LocalModel.open(make_model(tmp_path, "mixtral")).shape

    with pytest.raises(UsageError, match="--targets experts adapts them"):
        Lora(targets=("mlp",)).tensors(shape)
    assert build("full", {}).refusals(shape, context=8, quantization="none")
    for kind in set(METHODS) - {"full"}:
        assert not any("experts" in tensor.name for tensor in build(kind, {}).tensors(shape)), kind


def test_an_expert_that_all_tokens_choose_is_computed_in_pieces(bench: Bench) -> None:
    assert RULE.rows(T) < T
    draw = np.random.default_rng(0)
    x, grad = (draw.standard_normal((1, T, D)).astype(np.float32) for _ in range(2))
    router = draw.standard_normal((E, D)).astype(np.float32)
    router[3] = 0
    x[..., 0], router[3, 0] = 5, 9  # all tokens choose it
    router[7] = router[3]  # and this one, whose score is the same
    sizes = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    matrices = {
        role: draw.standard_normal((E, *size)).astype(np.float32) for role, size in sizes.items()
    }
    found = _computed[bench.name](x, grad, router, matrices)

    expected = _reference(x, grad, router, matrices)
    assert (found["chosen"] == [3, 7]).all()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    again = _computed[bench.name](x, grad, router, matrices)
    assert all(np.array_equal(found[name], again[name]) for name in found)


def _reference(
    x: np.ndarray, grad: np.ndarray, router: np.ndarray, matrices: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return output and gradient of x in float64: every expert sees every token."""
    import torch

    flat = torch.from_numpy(x[0]).double().requires_grad_()
    scores = flat @ torch.from_numpy(router).double().T
    chosen = torch.tensor([[3, 7]]).expand(T, K)
    weights = scores.gather(1, chosen).softmax(-1)
    gate, up, down = (torch.from_numpy(matrices[role]).double() for role in ("gate", "up", "down"))
    inner = torch.nn.functional.silu(torch.einsum("td,efd->tef", flat, gate))
    each = torch.einsum("tef,edf->ted", inner * torch.einsum("td,efd->tef", flat, up), down)
    out = (each[:, [3, 7]] * weights[..., None]).sum(1)
    out.backward(torch.from_numpy(grad[0]).double())
    assert flat.grad is not None
    return {"out": out.detach().numpy()[None], "x": flat.grad.numpy()[None]}


def _of_torch(
    x: np.ndarray, grad: np.ndarray, router: np.ndarray, matrices: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    import torch

    from edgetune_torch.experts import FrozenExperts, mixed
    from edgetune_torch.matrices import store
    from edgetune_torch.routing import Router, route

    stored = {
        f"{role}.{number}": store(torch.from_numpy(one), "none")
        for role, every in matrices.items()
        for number, one in enumerate(every)
    }
    given = torch.from_numpy(x).requires_grad_()
    weights, chosen = route(given, Router(RULE, {"router": torch.from_numpy(router)}))
    out = mixed(given, weights, chosen, FrozenExperts(RULE, "silu", stored, {}))
    out.backward(torch.from_numpy(grad))
    assert given.grad is not None
    return {
        "out": out.detach().numpy(), "x": given.grad.numpy(), "chosen": chosen.numpy()
    }  # fmt: skip


def _of_mlx(
    x: np.ndarray, grad: np.ndarray, router: np.ndarray, matrices: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    import mlx.core as mx

    from edgetune_mlx.experts import FrozenExperts, mixed
    from edgetune_mlx.matrices import Matrix, Plain
    from edgetune_mlx.routing import Router, route

    stored = {
        role: Matrix(Plain(), {"values": mx.array(every.reshape(-1, every.shape[-1]))})
        for role, every in matrices.items()
    }

    own = Router(RULE, {"router": mx.array(router)})

    def output(given: mx.array) -> mx.array:
        weights, chosen = route(given, own)
        return mixed(given, weights, FrozenExperts(RULE, "silu", stored, {}, chosen))

    (out,), (x_grad,) = mx.vjp(output, [mx.array(x)], [mx.array(grad)])
    chosen = route(mx.array(x), own)[1]
    return {"out": np.array(out), "x": np.array(x_grad), "chosen": np.array(chosen)}


_computed = {"torch": _of_torch, "mlx": _of_mlx}


def test_experts_in_blocks_of_a_file_compute_what_they_stand_for(
    bench: Bench, tmp_path: Path
) -> None:
    sizes = {"mlp_only_layers": [], "moe_intermediate_size": 32, "layers": 2}
    folder = make_model(tmp_path / "folder", "qwen3_moe", **sizes)
    packed = LocalModel.open(convert(folder, tmp_path / "model.gguf", "Q4_0"))
    tensors = {name: np.array(packed.read(name), np.float32) for name in packed.tensors}
    save_file(tensors, folder / "model.safetensors")
    found = []
    for held in ({}, bench.ways.places["streamed"]):
        session = bench.open(Lora(rank=3), packed, quantization=None, **held)
        found.append((session.logits(ROW), [step(session, rows()) for _ in range(2)]))

    plain = bench.open(Lora(rank=3), LocalModel.open(folder))
    np.testing.assert_allclose(found[0][0], plain.logits(ROW), rtol=0, atol=5e-5)
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    assert found[0][1][1] < found[0][1][0]


@pytest.mark.parametrize("prefix", ["model.language_model.", "model."])
def test_experts_in_one_tensor_are_taken_apart(prefix: str, tmp_path: Path) -> None:
    make_wrapper(tmp_path, "qwen3_5_moe")
    apart, tensors = LocalModel.open(tmp_path), load_file(tmp_path / "model.safetensors")
    for layer, block in enumerate(apart.shape.blocks):
        assert block.experts is not None
        own, numbers = f"model.layers.{layer}.mlp.experts", range(block.experts.number)
        whole = {
            role: np.stack([apart.read(f"{own}.{number}.{role}_proj.weight") for number in numbers])
            for role in ("gate", "up", "down")
        }
        stored = own.replace("model.", prefix, 1)
        tensors = {
            name: x for name, x in tensors.items() if f"layers.{layer}.mlp.experts" not in name
        }
        tensors[f"{stored}.gate_up_proj"] = np.concatenate((whole["gate"], whole["up"]), axis=1)
        tensors[f"{stored}.down_proj"] = whole["down"]
    expected = {name: apart.read(name).copy() for name in apart.tensors}
    save_file(tensors, tmp_path / "model.safetensors")

    found = LocalModel.open(tmp_path)

    assert found.tensors.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found.read(name), values, err_msg=name)
