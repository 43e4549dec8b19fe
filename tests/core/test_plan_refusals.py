"""What a refusal proposes is tried: each way out that it names leads to a plan of that size."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from planning import GB, card, plan_of, processor

from edgetune.device.profiles import profile_device
from edgetune.errors import NothingFitsError
from edgetune.planning import Plan
from edgetune.settings.spec import Checkpointing
from edgetune.units import precise_bytes

FLAG = re.compile(r"would fit: (no )?--([a-z-]+)(?: (\S+))? \(([0-9.]+ [A-Z]?B),")
MEMORY = re.compile(r"--memory (\d+)MB")

FIXED = st.fixed_dictionaries(
    {},
    optional={
        "checkpointing": st.builds(Checkpointing, layers=st.integers(0, 8)),
        "micro_batch": st.sampled_from([2, 8, 16]),
        "placement": st.just("resident"),
        "quantization": st.sampled_from(["none", "nf4"]),
        "context": st.sampled_from([512, 1024]),
        "rank": st.sampled_from([8, 256]),
        "method": st.sampled_from(["lora", "dora"]),
    },
)


@settings(max_examples=30, deadline=None)
@given(
    model=st.sampled_from(["smollm2-360m", "llama-3.2-1b", "qwen2.5-3b"]),
    device=st.sampled_from([card(), processor(), profile_device("m2-8gb")]),
    memory=st.integers(6 * GB // 10, 5 * GB),
    fixed=FIXED,
)
def test_what_is_proposed_fits(model: str, device: Any, memory: int, fixed: dict[str, Any]) -> None:
    assume(device.kind != "mlx" or fixed.get("quantization") != "nf4")
    message = refused(model, device, memory, fixed)
    assume(message)
    flag, more = FLAG.search(message), MEMORY.search(message)
    assert flag or more or "Take a smaller model" in message
    if flag:
        _, name, value, size = flag.groups()
        looser = without(fixed, name.replace("-", "_"), value)
        assert precise_bytes(planned(model, device, memory, looser).memory.peak_bytes) == size
    if more:
        assert int(more[1]) * 10**6 <= device.usable_bytes + 10**6
        assert planned(model, device, int(more[1]) * 10**6, fixed).fits


def refused(model: str, device: Any, memory: int, fixed: dict[str, Any]) -> str:
    try:
        planned(model, device, memory, fixed)
    except NothingFitsError as error:
        return str(error)
    return ""


def planned(model: str, device: Any, memory: int, fixed: dict[str, Any]) -> Plan:
    return plan_of(model, device, memory=memory, **fixed)


def without(fixed: dict[str, Any], name: str, value: str | None) -> dict[str, Any]:
    """Return what the flag of a proposal leaves fixed."""
    if name == "method":
        return {k: v for k, v in fixed.items() if k != "rank"} | {"method": value}
    if value is None:
        return {k: v for k, v in fixed.items() if k != name}
    if name == "checkpointing":
        layers, _, offload = value.partition(":")
        return fixed | {name: Checkpointing(layers=int(layers), offload=offload or "none")}  # type: ignore[arg-type]
    return fixed | {name: int(value) if value.isdecimal() else value}


def test_more_memory_is_not_proposed_than_there_is() -> None:
    message = refused("llama-3.1-70b", card(), 30 * GB, {"placement": "resident"})
    assert "--memory" not in message.split("would fit:")[-1]


def test_full_fine_tuning_that_does_not_fit_is_led_to_lora() -> None:
    message = refused("llama-3.2-1b", card(), 7 * GB, {"method": "full"})
    assert "--method lora" in message


def test_a_board_that_shares_its_memory_streams_from_nowhere_but_the_disk() -> None:
    board = profile_device("jetson-orin-nano-8gb")
    choice = plan_of("llama-3.1-8b", board, memory=3 * GB).choice
    assert choice.placement == "disk"
    assert choice.checkpointing.offload != "host"
