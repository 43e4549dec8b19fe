"""What plans count of a step is what the engine dispatches: operations, products, traffic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dispatched import Dispatched
from letters import with_letters
from models import MIXERS, RECURRENT, SMALL, make_model
from sessions import session_for

from edgetune.data.batch import full_batch
from edgetune.device import read_device
from edgetune.methods import METHODS, build
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.network.block import Block
from edgetune.settings.spec import Checkpointing
from edgetune.speed import Rates, TimeModel, rates_of
from edgetune.speed.blocks import Works
from edgetune.speed.rows import rows_of
from edgetune_torch.cpu_kernels import attention, loss, nf4, pointwise
from edgetune_torch.ops import TorchOps
from edgetune_torch.session import TorchSession

NEAR = 0.06
"""Relative error of a step's operations."""

SETTINGS = {"context": 32, "micro_batch": 2, "loss_chunk": 64, "compute_dtype": "bfloat16"}
DEEP = ("llama", "apertus", "gemma2", "qwen3", "mixtral", "gpt2", "gpt_neox")
METHOD = {"experts": Lora(rank=4, targets=("experts",))}
PLAIN = tuple(
    {"gpt_oss", "lfm2", "qwen3_5_text", "gemma3n_text", "gemma4_text", "deepseek_v3", *RECURRENT}
)
ALL_USED = {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 5}
"""So that every expert is chosen: a correction drawn at random leaves some without tokens."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LocalModel]:
    """Models of families that differ in norms, rotation and attention, deep enough to be blocks."""
    folder = tmp_path_factory.mktemp("models")

    def made(family: str, **changes: Any) -> LocalModel:
        written = make_model(folder / family, family, dtype=torch.bfloat16, **changes)
        return LocalModel.open(with_letters(written))

    deep = {family: made(family, layers=4) for family in DEEP}
    deep["nemotron_h_moe"] = made("nemotron_h_moe", **ALL_USED)
    return deep | {family: made(family) for family in PLAIN}


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the text: what our kernels in C do is not dispatched."""
    for module in (attention, loss, pointwise):
        monkeypatch.setattr(module, "served", lambda *_: False)
    monkeypatch.setattr(nf4, "_checked", lambda: None)


def _rates() -> Rates:
    return rates_of(read_device("cpu"))


CASES = [
    ("llama", method, quantization, layers)
    for method in METHODS
    for quantization, layers in (("none", 0), ("nf4", 4))
    if method != "full" or quantization == "none"
] + [
    ("gemma2", "lora", "int8", 2), ("qwen3", "adapter", "nf4", 0), ("gemma2", "norm", "none", 0),
    ("apertus", "lora", "none", 2), ("mixtral", "lora", "nf4", 4), ("mixtral", "lora", "none", 0),
    ("gpt2", "bitfit", "none", 2), ("gpt_neox", "lora", "none", 0),
    ("gemma4_text", "lora", "none", 3), ("gemma3n_text", "lora", "none", 3),
    ("deepseek_v3", "lora", "none", 1), ("mixtral", "experts", "none", 0),
    ("mixtral", "experts", "nf4", 4), ("gpt_oss", "experts", "none", 2),
    ("nemotron_h_moe", "lora", "none", 2), ("nemotron_h_moe", "experts", "none", 2),
    *((family, "lora", "none", 2) for family in RECURRENT),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "quantization", "layers"), CASES)
def test_the_operations_of_a_step_are_those_that_are_dispatched(
    models: dict[str, LocalModel], family: str, method: str, quantization: str, layers: int
) -> None:
    model = models[family]
    knobs = SETTINGS | {
        "method": METHOD.get(method) or build(method, {}),
        "quantization": quantization,
        "checkpointing": Checkpointing(layers=layers),
    }
    with session_for(model, **knobs) as session:
        dispatched = _step(session)
        choice = session.spec.choice
    times = TimeModel(model.shape, choice.method, _rates())
    assert times.launches(choice) == pytest.approx(dispatched, rel=NEAR)


@pytest.mark.parametrize("name", ["llama", *MIXERS])
def test_the_operations_of_tiles_are_those_that_are_dispatched(
    name: str, models: dict[str, LocalModel]
) -> None:
    knobs = SETTINGS | {
        "method": build("lora", {}), "context": 256, "tile": 64,
        "checkpointing": Checkpointing(layers=4),
    }  # fmt: skip
    with session_for(models[name], **knobs) as session:
        dispatched = _step(session)
        choice = session.spec.choice
    times = TimeModel(models[name].shape, choice.method, _rates())
    assert times.launches(choice) == pytest.approx(dispatched, rel=2 * NEAR)


def _step(session: TorchSession) -> int:
    """Return the operations of a step; what is done once was done in one before."""
    choice = session.spec.choice
    batch = full_batch(choice.micro_batch, choice.context, SMALL["vocab_size"])
    session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-3)
    with Dispatched() as found:
        session.step([batch], loss_tokens=batch.loss_tokens, learning_rate=1e-3)
    return found.launches


BLOCKS = [
    ("llama", "lora", "bfloat16", 64), ("llama", "full", "bfloat16", 64),
    ("llama", "prefix", "float32", 64), ("llama", "dora", "bfloat16", 64),
    ("llama", "adapter", "float32", 64), ("llama", "norm", "bfloat16", 64),
    ("gemma2", "lora", "bfloat16", 300), ("gemma2", "lora", "float32", 64),
    ("gpt2", "lora", "bfloat16", 64), ("apertus", "lora", "bfloat16", 600),
    ("gpt_neox", "bitfit", "float32", 64),
    ("mixtral", "lora", "bfloat16", 64),
    *((family, "lora", "bfloat16", 128) for family in MIXERS),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method", "dtype", "context"), BLOCKS)
def test_products_and_traffic_of_a_block_are_those_that_are_dispatched(
    models: dict[str, LocalModel], family: str, method: str, dtype: str, context: int
) -> None:
    model = models[family]
    mixing = [n for n, block in enumerate(model.shape.blocks) if block.recurrent is not None]
    layer = mixing[-1] if mixing else 1  # not the first, whose input has no gradient
    knobs = {"method": build(method, {}), "context": context, "compute_dtype": dtype}
    with session_for(model, **SETTINGS | knobs) as session:
        ahead, back = _block(session, layer)
        choice = session.spec.choice
    works = Works(model.shape, choice.method)
    counts = works.block(works.kinds[layer], rows_of(choice, model.shape, _rates()))
    recurrent = model.shape.blocks[layer].recurrent
    rough = recurrent is not None and recurrent.state > 0
    for tally, found in ((counts.forward, ahead), (counts.back, back)):
        products = tally.products + tally.wide
        assert products == pytest.approx(found.flops, rel=0.1 if rough else 0.04)
        assert tally.moved == pytest.approx(found.moved, rel=0.5 if rough else 0.25)


def _block(session: TorchSession, layer: int) -> tuple[Dispatched, Dispatched]:
    """Return what one block's forward pass and its way back dispatch."""
    choice, engine, own = session.spec.choice, session.engine, session.method.drawing("0")
    shape = session.shape
    session._prepared().begin()
    batch = full_batch(choice.micro_batch, choice.context, SMALL["vocab_size"])
    layout, _, _ = engine._layout(batch, own)
    ops = TorchOps(
        shape, engine.decoder.weights, engine.decoder.weights.blocks[layer], layout, layer
    )
    size = (choice.micro_batch, layout.positions.shape[1], shape.hidden_size)
    block = Block(ops, shape, layer, own)
    torch.manual_seed(0)
    for _ in range(2):  # tables, scratch and norms are there the second time
        x = torch.randn(size, dtype=layout.dtype).requires_grad_()
        with Dispatched() as ahead:
            out = block.output(x)
        grad = torch.ones_like(out)
        with Dispatched() as back:
            torch.autograd.backward(out, grad)
    return ahead, back
