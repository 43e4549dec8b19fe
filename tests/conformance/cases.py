"""The methods under test, each with what the literature says of it.

``parameters`` are formulas, written out here and nowhere else: d hidden size, r rank, a adapter
width, p length, L layers, F FFN width, kv width of all keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgetune.methods import build
from edgetune.methods.base import Method
from edgetune.shape import PER_LAYER_ROLES, BlockShape, ModelShape

Count = Callable[[ModelShape], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A method with its settings and its properties."""

    name: str
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    parameters: Count
    identity: bool = True
    """Whether the adapted model begins as the base."""
    rate: float = 2e-2
    """A learning rate at which it learns."""

    @property
    def method(self) -> Method:
        """The method."""
        return build(self.kind, self.settings)


def _linears(shape: ModelShape, *roles: str) -> list[tuple[int, int]]:
    """Return the inputs and outputs of the projections of all blocks that groups of targets have."""
    every = (linear for block in shape.blocks for linear in block.linears)
    every = (x for x in every if x.role not in PER_LAYER_ROLES and x.grouped)
    return [(x.inputs, x.outputs) for x in every if not roles or x.role in roles]


def _low_rank(rank: int, *roles: str) -> Count:
    return lambda s: sum(rank * (k + d) for k, d in _linears(s, *roles))


def _dora(rank: int) -> Count:
    return lambda s: _low_rank(rank)(s) + sum(d for _, d in _linears(s))


def _low_rank_b(rank: int) -> Count:
    return lambda s: sum(rank * d for _, d in _linears(s))


def _vectors(rank: int) -> Count:
    return lambda s: sum(rank + d for _, d in _linears(s))


def _adapter(a: int, per_block: int) -> Count:
    halves = {2: lambda b: (b.mixer is not None) + b.feeds, 1: lambda b: int(b.feeds)}[per_block]
    return lambda s: sum(map(halves, s.blocks)) * (2 * s.hidden_size * a + a + s.hidden_size)


def _norms(shape: ModelShape) -> int:
    every = (norm for block in shape.blocks for norm in block.norms if not norm.plain)
    return sum(x.size * (2 if x.bias else 1) for x in every)


def _attending(shape: ModelShape) -> list[BlockShape]:
    return [block for block in shape.blocks if block.attention is not None]


def _keys(shape: ModelShape) -> int:
    return sum(block.keys for block in shape.blocks)


def _network(p: int, hidden: int, s: ModelShape) -> int:
    width, outputs = _attending(s)[0].keys, 2 * _keys(s)
    return p * width + hidden * (width + 1) + outputs * (hidden + 1)


def _prefix(p: int, hidden: int | None) -> Count:
    if hidden is None:
        return lambda s: 2 * p * _keys(s)
    return lambda s: _network(p, hidden, s)


def _biases(shape: ModelShape) -> int:
    norms = sum(x.size for block in shape.blocks for x in block.norms if x.bias)
    final = shape.final_norm.size if shape.final_norm.bias else 0
    return sum(d for _, d in _linears(shape)) + norms + final


def _ia3(s: ModelShape) -> int:
    outputs = sum(d for _, d in _linears(s, "k", "v", "qkv", "kv_b"))
    return outputs + sum(k for k, _ in _linears(s, "down"))


_KEPT = (
    "layer_scalar", "altup.modality_router.weight", "altup.prediction_coefs.weight",
    "altup.correction_coefs.weight", "altup.correct_output_scale", "act_fn.alpha_p",
    "act_fn.alpha_n", "act_fn.beta", "act_fn.eps",
)  # fmt: skip
"""Single numbers, and what mixes streams, which stay as they are."""


def _full(layers: int | None) -> Count:
    def count(s: ModelShape) -> int:
        first = 0 if layers is None else s.layers - layers
        every = [x for layer in range(first, s.layers) for x in s.block_tensors(layer)]
        blocks = sum(x.size for x in every if not x.name.endswith(_KEPT))
        final = s.final_norm.size * len(s.final_norm.parts)
        return blocks + final

    return count


def _norm(s: ModelShape) -> int:
    return _norms(s) + s.final_norm.size * len(s.final_norm.parts)


def _whole(s: ModelShape) -> int:
    return s.vocabulary * s.hidden_size * (1 if s.tied else 2)


CASES = (
    Case(name="lora", kind="lora", settings={"rank": 4, "dropout": 0.1}, parameters=_low_rank(4)),
    Case(
        name="lora-rslora-plus", kind="lora", parameters=_low_rank(4),
        settings={"rank": 4, "rslora": True, "lora_plus": 4.0, "lora_initial": "gaussian"},
    ),
    Case(
        name="lora-q+v", rate=0.1, kind="lora", settings={"rank": 4, "targets": ("q+v",)},
        parameters=_low_rank(4, "q", "v", "qkv", "q_b", "kv_b"),
    ),
    Case(
        name="lora-groups", kind="lora", settings={"rank": 4, "attention_group": 4},
        parameters=_low_rank(4),
    ),
    Case(
        name="pissa", kind="lora", settings={"rank": 4, "lora_initial": "pissa"},
        parameters=_low_rank(4),
    ),
    Case(name="dora", kind="dora", settings={"rank": 4}, parameters=_dora(4)),
    Case(
        name="lora-whole", kind="lora", parameters=lambda s: _low_rank(4)(s) + _whole(s) + _norm(s),
        settings={"rank": 4, "dropout": 0.1, "modules_to_save": ("embeddings", "head", "norms")},
    ),
    Case(name="dylora", kind="dylora", settings={"rank": 4}, parameters=_low_rank(4)),
    Case(
        name="lora-fa", kind="lora-fa", settings={"rank": 4, "dropout": 0.1},
        parameters=_low_rank_b(4),
    ),
    Case(
        name="vera", kind="vera", settings={"vera_rank": 16}, parameters=_vectors(16), rate=0.3,
    ),
    Case(
        name="series", kind="adapter", settings={"bottleneck": 8, "train_norms": True},
        parameters=lambda s: _adapter(8, 2)(s) + _norms(s),
    ),
    Case(
        name="pfeiffer", kind="adapter", parameters=_adapter(8, 1),
        settings={"adapter_kind": "pfeiffer", "reduction": 4.0, "adapter_activation": "gelu"},
    ),
    Case(
        name="parallel", kind="adapter", parameters=_adapter(8, 1),
        settings={"adapter_kind": "parallel", "bottleneck": 8},
    ),
    Case(
        name="prompt", kind="prompt", settings={"prompt_length": 5}, identity=False, rate=0.3,
        parameters=lambda s: 5 * s.hidden_size,
    ),
    Case(
        name="prompt-random", kind="prompt", identity=False, rate=0.3,
        settings={"prompt_length": 5, "prompt_initial": "random"},
        parameters=lambda s: 5 * s.hidden_size,
    ),
    Case(
        name="prefix", rate=0.1, kind="prefix", parameters=_prefix(4, 16), identity=False,
        settings={"prefix_length": 4, "reparameterize": True, "prefix_hidden": 16},
    ),
    Case(
        name="prefix-direct", rate=1.0, kind="prefix", identity=False, parameters=_prefix(4, None),
        settings={"prefix_length": 4, "prefix_initial": "random"},
    ),
    Case(
        name="prefix-text", rate=1.0, kind="prefix", identity=False, parameters=_prefix(4, None),
        settings={"prefix_length": 4, "prefix_text": "Say what this is."},
    ),
    Case(
        name="llama-adapter", rate=1.0, kind="llama-adapter", settings={"adaption_length": 4},
        parameters=lambda s: sum(4 * s.hidden_size + x.heads for x in _attending(s)),
    ),
    Case(
        name="llama-adapter-layer", rate=1.0, kind="llama-adapter",
        settings={"adaption_length": 4, "gate": "layer", "layers": 1},
        parameters=lambda s: 4 * s.hidden_size + 1,
    ),
    Case(
        name="mam", rate=0.05, kind="mam", identity=False,
        settings={
            "prefix_length": 4, "reparameterize": True, "prefix_hidden": 16, "bottleneck": 8,
        },
        parameters=lambda s: _prefix(4, 16)(s) + _adapter(8, 1)(s),
    ),
    Case(name="bitfit", rate=0.1, kind="bitfit", parameters=_biases),
    Case(name="ia3", rate=0.3, kind="ia3", parameters=_ia3),
    Case(name="norm", rate=0.1, kind="norm", parameters=_norm),
    Case(name="full", kind="full", parameters=_full(None), rate=3e-3),
    Case(
        name="intrinsic", kind="intrinsic", rate=3e-3, settings={"dimension": 256},
        parameters=lambda s: 256 + s.layers,
    ),
    Case(name="full-last", kind="full", settings={"layers": 1}, parameters=_full(1), rate=3e-3),
)  # fmt: skip
