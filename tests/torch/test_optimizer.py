"""AdamW equals torch's in float32, and bitsandbytes' closely in eight bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.faults_torch import Fault
from torch.nn import Parameter

from edgetune.errors import ModelError
from edgetune.settings.spec import ADAMW
from edgetune_torch.dynamic_map import dynamic_map, encode_blocks
from edgetune_torch.gradients import Gradients
from edgetune_torch.optimizer import AdamW

SIZES = {"large": (300, 41), "small": (7, 5)}
STEPS = 5
OPTIONS: dict[str, Any] = {
    "lr": 1e-2, "betas": (ADAMW.beta1, ADAMW.beta2), "eps": ADAMW.eps, "weight_decay": 0.1
}  # fmt: skip


def _parameters() -> dict[str, Parameter]:
    torch.manual_seed(0)
    return {name: Parameter(torch.randn(size)) for name, size in SIZES.items()}


def _train(optimizer: AdamW, first: int, last: int) -> None:
    for step in range(first, last):
        _set_gradients(optimizer.parameters, step)  # type: ignore[arg-type]
        optimizer.step(1e-2, step + 1)


def _set_gradients(parameters: dict[str, Parameter], step: int) -> None:
    torch.manual_seed(step)
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)


def _ours(name: Any, **rates: float) -> AdamW:
    return AdamW(name, _parameters(), {"large": 1.0, "small": 1.0, **rates}, 0.1)


def test_float32_equals_torch() -> None:
    ours = _ours("adamw")
    _train(ours, 0, STEPS)
    parameters = _parameters()
    theirs = torch.optim.AdamW(parameters.values(), **OPTIONS)
    for step in range(STEPS):
        _set_gradients(parameters, step)
        theirs.step()

    for name, parameter in ours.parameters.items():
        torch.testing.assert_close(parameter, parameters[name], rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore")
def test_eight_bits_are_those_of_bitsandbytes() -> None:
    from bitsandbytes import functional, optim

    ours = _ours("adamw-8bit")
    _train(ours, 0, STEPS)
    parameters = _parameters()
    theirs = optim.AdamW8bit(parameters.values(), **OPTIONS)
    for step in range(STEPS):
        _set_gradients(parameters, step)
        theirs.step()
    moved = {name: value - _parameters()[name] for name, value in parameters.items()}

    assert torch.equal(dynamic_map(), functional.create_dynamic_map())
    assert torch.equal(dynamic_map(False), functional.create_dynamic_map(signed=False))
    for name, parameter in ours.parameters.items():
        error = (parameter - parameters[name]).norm() / moved[name].norm()
        assert float(error.detach()) < 0.02, name


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_those_of_a_search_among_all_borders(signed: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    table = dynamic_map(signed)
    borders = (table[1:] + table[:-1]) / 2
    up, down = (torch.nextafter(borders, torch.tensor(x)) for x in (2.0, -2.0))
    bits = torch.randint(-(2**31), 2**31, (1 << 20,), generator=draw, dtype=torch.int32)
    others = torch.cat((bits.view(torch.float32), torch.rand(1 << 16, generator=draw)))
    values = torch.cat((borders, up, down, others, -others[others.abs() <= 1]))
    values = values[values.abs() <= 1]
    values = torch.cat((torch.ones(1), values, values.new_zeros(-(len(values) + 1) % 256)))
    expected = torch.bucketize(values, borders)

    codes, scales = torch.empty(len(values), dtype=torch.uint8), torch.empty(1)
    encode_blocks(values, codes, scales, len(values), signed=signed)

    assert torch.equal(codes.long(), expected)


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_a_rate_multiplies_the_learning_rate(name: str) -> None:
    plain, slow = _ours(name), _ours(name, large=0.0)
    _train(plain, 0, STEPS)
    _train(slow, 0, STEPS)

    assert torch.equal(slow.parameters["large"], _parameters()["large"])
    assert torch.equal(slow.parameters["small"], plain.parameters["small"])


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: str) -> None:
    whole, half = _ours(name), _ours(name)
    _train(whole, 0, STEPS)
    _train(half, 0, 2)
    rest = AdamW(name, half.parameters, half.rates, 0.1)  # type: ignore[arg-type]
    rest.restore(half.state())
    _train(rest, 2, STEPS)

    for key, parameter in whole.parameters.items():
        assert torch.equal(parameter, rest.parameters[key])
    assert all(np.array_equal(x, rest.state()[key]) for key, x in whole.state().items())


def test_eight_bits_are_two_bytes_a_parameter() -> None:
    ours = _ours("adamw-8bit")
    _train(ours, 0, 1)
    large = sum(x.nbytes for name, x in ours.state().items() if name.startswith("large"))

    assert large == 2 * (12300 + 4 * -(-12300 // 256))


def test_a_state_that_does_not_fit_is_named() -> None:
    ours = _ours("adamw")
    state = {"large.exp_avg": np.zeros(3, np.float32), "strange": np.zeros(1, np.float32)}

    with pytest.raises(ModelError, match=r"small.exp_avg is missing; .*strange is unknown"):
        ours.restore(state)
    assert ours.state() == {}

    _train(ours, 0, 1)
    before = ours.state()
    with pytest.raises(ModelError, match="strange is unknown"):
        ours.restore(state)
    assert {name: x.tobytes() for name, x in ours.state().items()} == {
        name: x.tobytes() for name, x in before.items()
    }


def test_gradients_are_clipped_by_their_common_norm() -> None:
    parameters = _parameters()
    gradients = Gradients(parameters)
    _set_into(gradients)
    expected = torch.nn.utils.get_total_norm([x.clone() for x in gradients.views.values()])
    norm = gradients.clip(1.0)

    assert norm == pytest.approx(float(expected))
    assert float(gradients.flat.norm()) == pytest.approx(1.0, rel=1e-5)
    gradients.end()
    assert all(not parameter.grad.any() for parameter in parameters.values())  # type: ignore[union-attr]


def _set_into(gradients: Gradients) -> None:
    torch.manual_seed(0)
    for view in gradients.views.values():
        view.copy_(torch.randn_like(view))


@pytest.mark.parametrize(("name", "buffers"), [("adamw", 4), ("adamw-8bit", 9)])
def test_an_update_allocates_its_buffers_and_then_nothing(name: str, buffers: int) -> None:
    ours = _ours(name)
    _train(ours, 0, 1)
    _set_gradients(ours.parameters, 1)  # type: ignore[arg-type]
    with Fault(0, every=False) as allocations:
        ours.step(1e-2, 2)

    assert allocations.count == buffers


@pytest.mark.parametrize("name", ["adamw", "adamw-8bit"])
def test_an_update_without_any_memory_at_its_end_is_torn(name: str) -> None:
    ours = _ours(name)
    _train(ours, 0, 1)
    _set_gradients(ours.parameters, 1)  # type: ignore[arg-type]
    state = ours.state()
    with Fault(0, every=True) as operations:
        ours.step(1e-2, 2)
    ours.restore(state)
    with (
        Fault(operations.count, every=True, sticky=True),
        pytest.raises((MemoryError, RuntimeError)),
    ):
        ours.step(1e-2, 2)
    assert ours.torn
    ours.restore(state)

    assert not ours.torn
