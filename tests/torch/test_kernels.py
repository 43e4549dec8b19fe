"""Kernels for cards compute what their torch text computes: in Triton's interpreter, or on a card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="Triton is for Linux")

from edgetune.shape import NormKind
from edgetune_torch import kernels, pointwise
from edgetune_torch.kernels import gated, loss, nf4, norm, rotary
from edgetune_torch.matrices import store
from edgetune_torch.optimizer import AdamW

HERE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NEAR = {torch.float32: 2e-6, torch.bfloat16: 1.6e-2}
"""Relative errors: some roundings of float32, and two of bfloat16, which the interpreter cuts off."""


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return DTYPES[request.param]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    with np.errstate(over="ignore"):  # the interpreter's exp, whose infinity is right
        yield


def drawn(*size: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    return (torch.randn(size) * scale).to(HERE, dtype)


def assert_near(found: Tensor, expected: Tensor, bound: float) -> None:
    """Judge by the largest number of the expected ones."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= bound


def both(mine: Any, reference: Any, *inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield outputs and gradients of a function and of its reference, pair by pair."""
    results = []
    for function in (mine, reference):
        leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        outputs = function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.manual_seed(1)
        grads = [torch.randn(out.shape).to(out) for out in outputs]
        torch.autograd.backward(outputs, grads)
        results.append([*outputs, *(x.grad for x in leaves if x.requires_grad)])
    yield from zip(*results, strict=True)


@pytest.mark.parametrize(
    ("shape", "trained", "offset"),
    [
        ((3, 5, 96), False, 0.0),
        ((1, 1, 64), True, 0.0),
        ((70, 130), True, 1.0),
        ((2, 4500), False, 0.0),
    ],
)
def test_norms(dtype: torch.dtype, shape: tuple[int, ...], trained: bool, offset: float) -> None:
    x, kind = (
        drawn(*shape, dtype=dtype).requires_grad_(),
        NormKind(kind="rms", eps=1e-5, offset=offset),
    )
    weight = drawn(shape[-1], dtype=torch.float32 if trained else dtype).requires_grad_(trained)

    def mine(x: Tensor, weight: Tensor) -> Any:
        return norm.rms_norm(x, weight, offset, 1e-5)

    for found, expected in both(mine, lambda x, w: pointwise.norm(x, kind, w, None), x, weight):
        assert_near(found, expected, NEAR[dtype])


def test_norms_without_a_weight_and_of_parts_of_rows(dtype: torch.dtype) -> None:
    x, kind = drawn(4, 6, 80, dtype=dtype).requires_grad_(), NormKind(kind="rms", eps=1e-6)

    def mine(x: Tensor) -> Any:
        return norm.rms_norm(x[..., 16:], None, 0.0, 1e-6)

    for found, expected in both(mine, lambda x: pointwise.norm(x[..., 16:], kind, None, None), x):
        assert_near(found, expected, NEAR[dtype])


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    ("rows", "heads", "positions", "size", "turned", "trailing"),
    [
        (2, 3, 5, 16, 16, False),
        (1, 1, 7, 24, 8, False),
        (3, 8, 1, 6, 6, False),
        (2, 3, 5, 24, 8, True),
        (1, 2, 3, 10, 6, True),
    ],
)
def test_rotation(
    dtype: torch.dtype,
    interleaved: bool,
    rows: int,
    heads: int,
    positions: int,
    size: int,
    turned: int,
    trailing: bool,
) -> None:
    x = drawn(rows, positions, heads, size, dtype=dtype).requires_grad_()
    angles = torch.rand(rows, 1, positions, turned // 2, device=HERE) * 6
    wide = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
    tables = wide.cos().to(dtype), wide.sin().to(dtype)

    def mine(x: Tensor) -> Any:
        return rotary.rotate(x.transpose(1, 2), *tables, interleaved=interleaved, trailing=trailing)

    def reference(x: Tensor) -> Tensor:
        return pointwise.rotate(
            x.transpose(1, 2), *tables, interleaved=interleaved, trailing=trailing
        )

    for found, expected in both(mine, reference, x):
        assert_near(found, expected, 2 * NEAR[dtype])  # the text rounds products and sum


@pytest.mark.parametrize("name", sorted(gated.NAMES))
@pytest.mark.parametrize("shape", [(2, 3, 100), (5, 1025)])
def test_gated_activations(dtype: torch.dtype, name: str, shape: tuple[int, ...]) -> None:
    both_halves = drawn(*shape[:-1], 2 * shape[-1], dtype=dtype, scale=3.0).requires_grad_()

    def mine(x: Tensor) -> Any:
        return gated.gated_activation(*x.chunk(2, -1), name)

    def reference(x: Tensor) -> Tensor:
        return pointwise.gated_activation(*x.chunk(2, -1), name)

    for found, expected in both(mine, reference, both_halves):
        assert_near(found, expected, 2 * NEAR[dtype])


@pytest.mark.parametrize("shape", [(1, 1), (3, 64), (63, 65), (96, 300), (7, 8200)])
def test_nf4_is_unpacked_to_the_same_bits(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    matrix = store(drawn(*shape), "nf4")
    out = torch.empty(shape, dtype=dtype, device=HERE)
    nf4.unpack(matrix.parts, out)
    expected = matrix.dense(torch.float32)
    if dtype != torch.float32 and HERE.type == "cpu":  # where the interpreter cuts off
        expected = (expected.view(torch.int32) & ~0xFFFF).view(torch.float32)

    assert torch.equal(out, expected.to(dtype))


@pytest.mark.parametrize(
    ("bias", "scale", "softcap"),
    [(False, 1.0, None), (True, 0.25, None), (False, 1.0, 5.0), (True, 2.0, 3.0)],
)
@pytest.mark.parametrize(("rows", "columns"), [(3, 17), (5, 4096), (2, 9001)])
def test_cross_entropy(
    dtype: torch.dtype, bias: bool, scale: float, softcap: float | None, rows: int, columns: int
) -> None:
    logits, targets = drawn(rows, columns, dtype=dtype, scale=4.0), torch.randint(columns, (rows,))
    targets = targets.to(HERE)
    logits[0, targets[0]] = 40.0  # one that is right
    finish = loss.Finish(bias=drawn(columns) if bias else None, scale=scale, softcap=softcap)
    factors = torch.linspace(-1, 2, rows, device=HERE)
    leaf = logits.float().requires_grad_()
    z = leaf if finish.bias is None else leaf + finish.bias
    z = z * scale if softcap is None else (z * scale / softcap).tanh() * softcap
    expected = torch.nn.functional.cross_entropy(z, targets, reduction="none")
    (expected * factors).sum().backward()

    losses, hits = loss.cross_entropy(logits.clone(), targets, finish)
    assert_near(losses, expected.detach(), 1e-5)
    assert torch.equal(hits.bool(), z.argmax(-1) == targets)
    again, _ = loss.cross_entropy(logits, targets, finish, factors)
    assert torch.equal(again, losses)
    assert leaf.grad is not None
    assert_near(logits, leaf.grad.to(dtype), 8 * NEAR[dtype])


SIZES = {"b": (64, 130), "bias": (4095,), "a": (17, 300), "one": (1,), "c": (4096,)}


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_updates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step over tables of tensors is the step that the text takes, tensor by tensor."""
    start = {key: drawn(*size) for key, size in SIZES.items()}
    rates = {key: 16.0 if key == "b" else 1.0 for key in SIZES}
    sides = []
    for _ in range(2):
        own = {key: torch.nn.Parameter(x.clone()) for key, x in start.items()}
        sides.append((own, AdamW(name, own, rates, 0.1)))
    for number in range(1, 4):
        grads = {key: drawn(*size) for key, size in SIZES.items()}
        for served, (own, optimizer) in enumerate(sides):
            for key, grad in grads.items():
                own[key].grad = grad.clone()
            with monkeypatch.context() as patch:
                patch.setattr(kernels, "served", lambda _, served=served: bool(served))
                optimizer.step(1e-2, number)
            assert not optimizer.torn
    (one, plain), (other, launched) = sides
    for key in SIZES:
        moved = (one[key] - start[key]).detach()
        assert_near((other[key] - start[key]).detach(), moved, 2e-5 if name == "adamw" else 1e-2)
    states = plain.state(), launched.state()
    assert states[0].keys() == states[1].keys()
    for key, kept in states[0].items():
        different = (kept != states[1][key]).mean() if kept.dtype.kind == "u" else 0.0
        assert different < 1e-3, key  # ties between two codes
        if kept.dtype.kind == "f" and key.endswith("_sq"):  # sums of what is positive
            np.testing.assert_allclose(states[1][key], kept, rtol=2e-6)
    launched.restore(states[0])
    assert all((launched.state()[key] == kept).all() for key, kept in states[0].items())


def test_nothing_has_changed_while_an_update_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {key: torch.nn.Parameter(drawn(*size)) for key, size in SIZES.items()}
    before = {key: x.detach().clone() for key, x in own.items()}
    for x in own.values():
        x.grad = torch.ones_like(x)
    monkeypatch.setattr(kernels, "served", lambda _: True)
    optimizer = AdamW("adamw-8bit", own, dict.fromkeys(own, 1.0), 0.0)
    take = optimizer.update(1e-2, 1)

    assert all(torch.equal(own[key], x) for key, x in before.items())
    take()
    assert not any(torch.equal(own[key], x) for key, x in before.items())


@pytest.mark.parametrize("failing", [0, 1])
def test_an_update_that_breaks_off_is_told(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {key: torch.nn.Parameter(drawn(*size)) for key, size in SIZES.items()}
    for x in own.values():
        x.grad = torch.ones_like(x)
    monkeypatch.setattr(kernels, "served", lambda _: True)
    optimizer = AdamW("adamw-8bit", own, dict.fromkeys(own, 1.0), 0.0)
    take = optimizer.update(1e-2, 1)
    launch, calls = kernels.launch, []

    def broken(*given: Any, **constants: Any) -> None:
        if len(calls) == failing:
            raise RuntimeError("out of memory")
        calls.append(given)
        launch(*given, **constants)

    monkeypatch.setattr(kernels, "launch", broken)
    with pytest.raises(RuntimeError, match="memory"):
        take()
    assert optimizer.torn is (failing == 1)
