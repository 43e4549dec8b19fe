"""Live bytes of a card's step as planned, and as the engine holds them: counted without a card.

Tensors of the device ``meta`` go where a card's would, and have no content.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import Case, plain

from edgetune.memory import Platform, estimate
from edgetune.methods import build
from edgetune.settings.spec import Checkpointing
from edgetune_torch import attention, kernels
from edgetune_torch.dry_run import live_peaks

META = torch.device("meta")
MORE = 0.07
"""Share by which a plan may be over: by a slice of a streamed head, 6.5 %. It may not be under."""


@pytest.fixture(params=[False, True], ids=["torch", "our kernels"])
def with_kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    def fused(q: Any, k: Any, v: Any, *, is_causal: bool, scale: float, enable_gqa: bool) -> Any:
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        return flash(q, k, v, 0.0, is_causal, scale=scale)[0]

    if request.param:
        pytest.importorskip("triton", reason="Triton is for Linux")
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", fused)
    monkeypatch.setattr(kernels, "served", lambda _: request.param)
    return bool(request.param)


BASE = {
    "compute_dtype": "bfloat16", "context": 512, "loss_chunk": 256, "quantization": "nf4",
    "optimizer": "adamw-8bit", "checkpointing": Checkpointing(layers=2),
}  # fmt: skip
CASES = {
    "lora": Case("llama-3.2-1b", 2, 5000, plain(**BASE)),
    "nothing checkpointed": Case(
        "smollm2-135m", 2, 5000, plain(**BASE | {"checkpointing": Checkpointing(layers=0)})
    ),
    "norms": Case("qwen3-0.6b", 2, 512, plain(**BASE | {"method": build("norm", {})})),
    "a large vocabulary": Case("qwen2.5-0.5b", 1, 151_936, plain(**BASE)),
    "a head in 8 bits": Case("qwen2.5-0.5b", 1, 60_000, plain(**BASE | {"head": "int8"})),
    "a streamed head": Case("qwen2.5-0.5b", 1, 60_000, plain(**BASE | {"head": "disk"})),
    "offsets and caps": Case("gemma-2-2b", 1, 20_000, plain(**BASE)),
    "streams": Case("gemma3n_text", 2, 512, plain(**BASE)),
    "rows of two": Case("smollm2-135m", 2, 512, plain(**BASE | {"micro_batch": 2})),
}


@pytest.mark.parametrize("name", CASES)
def test_a_card_holds_what_is_planned(name: str, with_kernels: bool) -> None:
    case = CASES[name]
    platform = Platform(kind="cuda", multiplies_16bit=True, kernels=with_kernels)
    planned = estimate(case.shape, replace(case.choice), platform)
    counted = live_peaks(case.shape, case.choice, device=META)
    for phase, size in counted.items():
        own = getattr(planned.phases, phase) - planned.parts.runtime
        assert 0 <= own / size - 1 < MORE, (phase, own, size)
