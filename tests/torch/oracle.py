"""The cases of the oracle: choices drawn over the whole grid, planned and dry-run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from mixed_shapes import mixed
from models import FAMILIES as SMALL_FAMILIES
from models import MIXTURES, MODEL_TYPES, SMALL
from products import products

from edgetune.backend import GenerateOptions, Session
from edgetune.choice import Choice
from edgetune.generation import Generation, Row
from edgetune.memory import MemoryEstimate, Platform, estimate
from edgetune.memory.costs import COSTS
from edgetune.memory.generation import Room
from edgetune.methods import METHODS, Method, build
from edgetune.methods.lora import Lora
from edgetune.model import resolve, shape_of
from edgetune.settings.spec import Checkpointing
from edgetune.shape import ModelShape

PUBLISHED = frozenset(
    {"gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3",
     "qwen2", "qwen3"}
)  # fmt: skip
"""Families whose published models are drawn."""
_GPT = {"n_embd": 576, "n_head": 9, "n_layer": 4}
_SLIDING, _FULL = "sliding_attention", "full_attention"
_LATENTS = {
    "num_key_value_heads": 9, "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
    "v_head_dim": 64, "moe_intermediate_size": 160,
}  # fmt: skip
LENDING: dict[int, dict[str, Any]] = {
    1: {"layer_types": [_FULL], "num_kv_shared_layers": 0},
    2: {"layer_types": [_FULL, _FULL], "num_kv_shared_layers": 1},
    3: {"layer_types": [_SLIDING, _FULL, _FULL], "num_kv_shared_layers": 1},
}
"""By number of layers, which read the keys and values of others: any of those cannot be left out."""
LENT = frozenset({"gemma3n_text", "gemma4_text"})
OWN_SIZES: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        "hidden_size_per_layer_input": 64,
        "vocab_size_per_layer_input": 512,
        "laurel_rank": 32,
        "layer_types": [_SLIDING, _FULL],
        "num_hidden_layers": 2,
        "num_kv_shared_layers": 0,
        "activation_sparsity_pattern": [0.95, 0.0],
    },
    "gemma4_text": {
        "global_head_dim": 128,
        "hidden_size_per_layer_input": 64,
        "use_double_wide_mlp": True,
        "vocab_size_per_layer_input": 512,
    },
    "gemma4_unified_text": {
        "global_head_dim": 128,
        "num_global_key_value_heads": 1,
        "layer_types": [_SLIDING, _FULL] * 2,
    },
    "gemma4_moe": {
        "global_head_dim": 128,
        "layer_types": [_SLIDING, _FULL] * 2,
        "moe_intermediate_size": 320,
    },
    "deepseek_v2": _LATENTS,
    "deepseek_v3": _LATENTS | {"q_lora_rank": 96},
    "glm4_moe_lite": _LATENTS | {"q_lora_rank": 96, "v_head_dim": 96},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "block_multiple_of": 256},
    "qwen3_5_text": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
    },
    "qwen3_5_moe_text": {
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "linear_num_key_heads": 4,
        "linear_num_value_heads": 8,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "moe_intermediate_size": 320,
        "shared_expert_intermediate_size": 640,
    },
    "ministral": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "gptj": _GPT | {"rotary_dim": 64},
    "gpt_bigcode": _GPT,
    "gpt_neo": {"num_heads": 9, "num_layers": 4},
    "bloom": {"n_head": 9, "n_layer": 4},
    "mpt": {"d_model": 576, "n_heads": 9, "n_layers": 4},
    "opt": {"ffn_dim": 1536},
    "falcon": {"num_kv_heads": 3},
    "gpt_oss": {
        "intermediate_size": 640,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "mixtral": {"intermediate_size": 640},
    "granitemoe": {"intermediate_size": 640},
    "olmoe": {"intermediate_size": 200},
    "phimoe": {
        "intermediate_size": 320,
        "rope_parameters": SMALL_FAMILIES["phimoe"]["rope_parameters"]
        | {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32},
    },
    "qwen2_moe": {"moe_intermediate_size": 320, "shared_expert_intermediate_size": 640},
    "qwen3_moe": {"moe_intermediate_size": 320},
    "falcon_h1": {
        "mamba_d_ssm": 1152,
        "mamba_n_heads": 18,
        "mamba_n_groups": 1,
        "mamba_d_state": 64,
    },
    "nemotron_h": {
        "layer_types": ["mlp", "linear_attention", "full_attention"],
        "num_hidden_layers": 3,
        "sliding_window": None,
        "mamba_num_heads": 18,
        "ssm_state_size": 64,
        "n_groups": 2,
    },
    "nemotron_h_moe": {
        "layer_types": ["linear_attention", "moe", "full_attention"],
        "num_hidden_layers": 3,
        "sliding_window": None,
        "mamba_num_heads": 18,
        "ssm_state_size": 64,
        "moe_intermediate_size": 320,
        "moe_shared_expert_intermediate_size": 640,
    },
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 1536,
        "mamba_n_heads": 18,
        "mamba_n_groups": 2,
        "mamba_d_state": 64,
    },
}
MODELS = (
    "smollm2-135m", "qwen2.5-0.5b", "qwen3-0.6b", "gpt2", "pythia-160m", "gemma-3-1b",
    "llama-3.2-1b", "gemma-2-2b", "phi-3.5-mini", "olmo-2-7b", "mistral-7b",
)  # fmt: skip
SIZES = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
    "num_key_value_heads": 3, "head_dim": 64, "num_hidden_layers": 4, "vocab_size": 512,
    "sliding_window": 200, "dtype": "bfloat16",
}  # fmt: skip
"""Those of the families of which no model is published that is small enough to be drawn."""
FAMILIES = tuple(sorted(SMALL_FAMILIES.keys() - PUBLISHED))
LARGE = frozenset({"phi-3.5-mini", "olmo-2-7b", "mistral-7b", "gemma-2-2b"})
"""Models whose 4-bit matrices take many operations to unpack: rarely 4-bit here."""
LORAS = 0.4
"""Share of the drawn choices whose method is LoRA."""


@dataclass(frozen=True)
class Case:
    """A model with fewer layers and another vocabulary, and a choice for it."""

    model: str
    layers: int
    vocabulary: int
    choice: Choice
    mixed: bool = False
    """Every second block is narrower."""

    @property
    def shape(self) -> ModelShape:
        """The model's shape; where kinds of layers alternate, its last ones."""
        if self.model in LENT:
            own = LENDING[self.layers] | {"num_hidden_layers": self.layers}
            if self.model == "gemma3n_text":
                own["activation_sparsity_pattern"] = [0.95, 0.0, 0.0][: self.layers]
            return replace(family(self.model, **own), vocabulary=self.vocabulary)
        whole = family(self.model) if self.model in FAMILIES else resolve(self.model).shape
        blocks = (whole.blocks * self.layers)[-self.layers :]
        shape = replace(whole, blocks=blocks, vocabulary=self.vocabulary)
        return mixed(shape) if self.mixed else shape


@dataclass(frozen=True)
class Compared:
    """What the closed form says and what was counted, in bytes."""

    case: Case
    multiplies_16bit: bool
    phase: str
    planned: int
    counted: int

    @property
    def over(self) -> float:
        """Share by which the closed form is over the count."""
        return self.planned / self.counted - 1


def cases(count: int, seed: int = 0) -> Iterator[Case]:
    """Yield so many drawn cases, and some that are large in one way."""
    draw = random.Random(seed)
    for number in range(count):
        model, layers = draw.choice(MODELS + FAMILIES), draw.choice((1, 1, 2, 2, 3))
        vocabulary, choice = draw.choice((512, 2500, 5000)), _choice(draw, model, layers)
        yield Case(model, layers, vocabulary, choice, mixed=number % 2 == 1)
    for vocabulary in (128_256, 151_936, 256_000):
        yield Case("qwen2.5-0.5b", 1, vocabulary, plain(loss_chunk=64, context=64))
    for layers in (16, 32):
        kept = Checkpointing(layers=layers * 3 // 4)
        yield Case("smollm2-135m", layers, 512, plain(checkpointing=kept))


def family(name: str, **own: Any) -> ModelShape:
    """Return the shape of a family of the usual sizes, or with some of its own."""
    switches = {k: v for k, v in SMALL_FAMILIES[name].items() if k not in SMALL}
    fields = {"model_type": MODEL_TYPES.get(name, name), **switches, **SIZES}
    return shape_of({**fields, **OWN_SIZES.get(name, {}), **own})


def compare(case: Case) -> list[Compared]:
    """Return closed form and count of both phases, on processors with 16-bit products and without.

    In float32 both must plan the same, and do.
    """
    with_them, without_them = (
        estimate(case.shape, case.choice, Platform(kind="cpu", multiplies_16bit=multiplies))
        for multiplies in (True, False)
    )
    if case.choice.compute_dtype == "float32":
        assert with_them == without_them
        return counted(case, without_them, multiplies_16bit=False)
    return [
        *counted(case, with_them, multiplies_16bit=True),
        *counted(case, without_them, multiplies_16bit=False),
    ]


def counted(case: Any, planned: MemoryEstimate, *, multiplies_16bit: bool) -> list[Compared]:
    """Return what is planned for a case, which has a shape and a choice, beside what is counted."""
    from edgetune_torch.dry_run import live_peaks

    with products(multiplies_16bit=multiplies_16bit):
        found = live_peaks(case.shape, case.choice)
    phases = {"train": planned.phases.train, "evaluate": planned.phases.evaluate}
    return [
        Compared(case, multiplies_16bit, phase, size - planned.parts.runtime, found[phase])
        for phase, size in phases.items()
    ]


def generation(case: Case, prompt: int, answer: int) -> tuple[int, int]:
    """Return what a plan allows, and what is held when prompts of one length are continued."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from edgetune_torch.dry_run import LiveBytes
    from edgetune_torch.fake import fake_engine, fake_method, warm_up
    from edgetune_torch.generate import new_cache, read
    from edgetune_torch.precision import cpu_multiplies_bf16

    shape, choice = case.shape, case.choice
    platform = Platform(kind="cpu", multiplies_16bit=cpu_multiplies_bf16())
    planned = estimate(shape, choice, platform)
    room = Room(shape, choice, planned)
    count = _together(room, prompt, answer)
    warm_up(choice.quantization)
    live, options = LiveBytes(), GenerateOptions(max_tokens=answer)
    with FakeTensorMode(allow_non_fake_inputs=True), live:
        engine, method = fake_engine(shape, choice), fake_method(shape, choice)

        class Reads:
            """A session that reads and finds nothing."""

            def __init__(self) -> None:
                self.shape = shape

            def new_cache(self, _: object, capacity: int) -> object:
                return new_cache(engine.decoder, method, capacity)

            def read(self, rows: Any) -> Any:
                return np.zeros(read(engine.decoder, engine.head, rows).shape, np.float32)

        generation = Generation(cast("Session", Reads()), room, keeps=True)
        found = 0
        for _ in range(2):  # the second time on from what was kept, as the next turn of a chat
            for _ in range(count):
                row = Row([1] * prompt, options)
                assert generation.admits(row)
                generation.add(row)
            while generation.rows:
                found += len(list(generation.step()))
    assert found == 2 * count * answer
    # half of what was kept is of use, or its memory is needed
    assert (generation.read_tokens < found + 2 * count * (prompt - 1)) == (prompt > answer)
    return planned.peak_bytes - planned.parts.runtime, live.peak


def opening(case: Case, *, multiplies_16bit: bool) -> tuple[int, int, int]:
    """Return what a plan allows while a model is opened, what is held while it reads a text, and
    what the plan allows to training.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from edgetune_torch.dry_run import LiveBytes
    from edgetune_torch.fake import fake_engine, warm_up
    from edgetune_torch.generate import filled

    shape, choice = case.shape, case.choice
    planned = estimate(shape, choice, Platform(kind="cpu", multiplies_16bit=multiplies_16bit))
    (tensor,) = choice.method.tensors(shape)
    warm_up(choice.quantization)
    live = LiveBytes()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with products(multiplies_16bit=multiplies_16bit), fake, live:
        engine = fake_engine(shape, choice)
        cache = filled(engine.decoder, [1] * tensor.shape[0])
        del cache
    beside = planned.parts.runtime + COSTS["cpu"].token * shape.vocabulary  # of a tokenizer
    return planned.phases.load - beside, live.peak + 4 * tensor.size, planned.phases.train - beside


def _together(room: Room, prompt: int, answer: int) -> int:
    """Return how many rows of that many tokens begin together."""
    most = room.prompts_at_once(prompt)
    return next((n for n in range(most, 1, -1) if room.holds([prompt + answer] * n)), 1)


def _choice(draw: random.Random, model: str, layers: int) -> Choice:
    quantizations = ("none", "int8", "none" if model in LARGE else "nf4")
    method = _method(draw, model)
    context, tile = draw.choice((64, 256, 512, 700)), draw.choice((0, 0, 128, 256))
    kept = layers if tile else draw.randint(0, layers)
    return plain(
        method=method,
        quantization="none" if method.kind == "full" else draw.choice(quantizations),
        checkpointing=Checkpointing(layers=kept, offload=draw.choice(("none", "none", "disk"))),
        placement=draw.choice(("resident", "resident", "disk")),
        embedding=draw.choice(("resident", "disk")),
        head=draw.choice(("resident", "int8", "disk")),
        optimizer=draw.choice(("adamw", "adamw-8bit")),
        compute_dtype=draw.choice(("float32", "bfloat16")),
        context=context,
        tile=tile,
        micro_batch=draw.choice((1, 2, 4)),
        loss_chunk=draw.choice((64, 256, 1024)),
    )


KEYS = {kind for kind in METHODS if "keys-values" in getattr(build(kind, {}), "targets", ())}
REFUSED = {
    "gemma3n_text": {"prompt", "prefix", "mam", "llama-adapter"},
    "gemma4_text": {"prompt", "prefix", "mam", "llama-adapter"},
    "gemma4_unified_text": {"prefix", "mam"},
    "gemma4_moe": {"prefix", "mam"},
    "deepseek_v2": {"prefix", "mam"},
    "deepseek_v3": {"prefix", "mam"},
    "glm4_moe_lite": {"prefix", "mam"},
    "nemotron_h": {*KEYS, "mam"},
    "nemotron_h_moe": {*KEYS, "mam"},
}
"""Methods that have no place in a family; in a last block without attention those of its keys."""


SETTINGS: dict[str, dict[str, Any]] = {"prefix": {"reparameterize": True}}
"""What methods are drawn with: of keys and values alone, MAM adapters are."""


def _method(draw: random.Random, model: str) -> Method:
    """Return LoRA, which has most settings, or one of the others."""
    others = model in MIXTURES or model == "nemotron_h"  # whose last block has no MLP
    mlp = "attention" if others else "mlp"  # without what experts have
    if draw.random() < LORAS:
        return Lora(
            rank=draw.choice((4, 16, 64)),
            targets=(draw.choice(("all-linear", "all-linear", "attention", mlp)),),
            layers=draw.choice((None, None, 1)),
            dropout=draw.choice((0.0, 0.0, 0.1)),
        )
    left_out = {"lora", *REFUSED.get(model, ())}
    kind = draw.choice([kind for kind in METHODS if kind not in left_out])
    return build(kind, SETTINGS.get(kind, {}))


def plain(**knobs: Any) -> Choice:
    plain: dict[str, Any] = {
        "method": Lora(), "quantization": "none", "checkpointing": Checkpointing(layers=0),
        "placement": "resident", "optimizer": "adamw", "compute_dtype": "float32",
        "context": 256, "micro_batch": 1, "accumulation": 2, "loss_chunk": 256,
    }  # fmt: skip
    return Choice(**(plain | knobs))
