"""Runs whose memory is planned and then measured: small models, every kind of choice.

`python tests/mlx/plan_memory.py` prints the table of `docs/mlx.md`.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import torch

from edgetune.backend import load_backend
from edgetune.data.batch import full_batch
from edgetune.device import read_device
from edgetune.memory import MemoryEstimate, MemoryModel
from edgetune.memory.batch_shape import BatchShape, Platform
from edgetune.memory.costs import COSTS
from edgetune.memory.lazy.passes import LazyPasses
from edgetune.methods import METHODS
from edgetune.methods.initial import reads_text
from edgetune.model import LocalModel
from edgetune.planning import make_plan
from edgetune.planning.plan import Plan
from edgetune.settings.spec import Checkpointing

MODELS: Mapping[str, Mapping[str, Any]] = {
    "untied": {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "head_dim": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 2048,
        "max_position_embeddings": 1024, "tie_word_embeddings": False,
    },
    "tied": {
        "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 32,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 6000,
        "max_position_embeddings": 1024, "tie_word_embeddings": True,
    },
    "gpt2": {
        "model_type": "gpt2", "n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 512,
        "vocab_size": 3000,
    },
    "capped": {
        "model_type": "gemma2", "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
        "head_dim": 16, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8000,
        "max_position_embeddings": 1024,
    },
    "inclined": {
        "model_type": "bloom", "hidden_size": 128, "n_layer": 3, "n_head": 4, "vocab_size": 3000,
    },
    "shared": {
        "model_type": "cohere", "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 3, "head_dim": 16, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 3000, "max_position_embeddings": 1024,
    },
    "parallel": {
        "model_type": "gpt_neox", "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 3, "num_attention_heads": 8, "vocab_size": 3000,
        "max_position_embeddings": 1024,
    },
    "squared": {
        "model_type": "arcee", "hidden_size": 128, "intermediate_size": 384,
        "num_hidden_layers": 3, "head_dim": 16, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 3000, "max_position_embeddings": 1024,
    },
    "curved": {
        "model_type": "apertus", "hidden_size": 128, "intermediate_size": 512,
        "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": 3000, "max_position_embeddings": 1024,
    },
    "convolving": {
        "model_type": "lfm2", "hidden_size": 192, "intermediate_size": 384, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 3000, "head_dim": 32,
        "block_auto_adjust_ff_dim": False, "max_position_embeddings": 1024,
        "layer_types": ["conv", "conv", "full_attention", "conv"],
    },
    "beside": {
        "model_type": "qwen2_moe", "hidden_size": 128, "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 192, "intermediate_size": 192, "num_experts": 8,
        "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "vocab_size": 3000, "max_position_embeddings": 1024,
    },
    "sinking": {
        "model_type": "gpt_oss", "hidden_size": 128, "intermediate_size": 128,
        "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 3, "head_dim": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 3000,
        "max_position_embeddings": 1024, "sliding_window": 64,
    },
    "mixed": {
        "model_type": "qwen3_moe", "hidden_size": 128, "moe_intermediate_size": 64, "intermediate_size": 192,
        "num_experts": 8, "num_experts_per_tok": 3, "num_hidden_layers": 3, "head_dim": 16,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 3000,
        "max_position_embeddings": 1024, "norm_topk_prob": True,
    },
    "correcting": {
        "model_type": "qwen3_5_text", "hidden_size": 192, "intermediate_size": 384,
        "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
        "vocab_size": 3000, "head_dim": 32, "max_position_embeddings": 1024,
        "linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "layer_types": ["linear_attention"] * 2 + ["full_attention", "linear_attention"],
    },
    "scanning": {
        "model_type": "granitemoehybrid", "hidden_size": 192, "shared_intermediate_size": 384,
        "intermediate_size": 384, "num_local_experts": 0, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 3000,
        "max_position_embeddings": 1024, "mamba_n_heads": 6, "mamba_n_groups": 2,
        "mamba_d_state": 32, "layer_types": ["mamba"] * 2 + ["attention", "mamba"],
    },
    "halved": {
        "model_type": "nemotron_h", "hidden_size": 192, "intermediate_size": 384,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 3000,
        "max_position_embeddings": 1024, "mamba_num_heads": 6, "mamba_head_dim": 32,
        "n_groups": 2, "ssm_state_size": 32,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
    },
    "ungated": {
        "model_type": "nemotron_h_moe", "hidden_size": 192, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 3000,
        "max_position_embeddings": 1024, "mamba_num_heads": 6, "mamba_head_dim": 32,
        "ssm_state_size": 32, "moe_intermediate_size": 64, "n_routed_experts": 8, "n_group": 4,
        "moe_shared_expert_intermediate_size": 256,
        "layer_types": ["moe", "full_attention", "linear_attention", "moe"],
    },
    "flanked": {
        "model_type": "falcon_h1", "hidden_size": 192, "intermediate_size": 384,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "vocab_size": 3000, "max_position_embeddings": 1024, "mamba_d_ssm": 256,
        "mamba_n_heads": 8, "mamba_d_state": 32, "key_multiplier": 0.4,
        "ssm_multipliers": [0.8, 0.7, 0.6, 0.9, 0.5], "mlp_multipliers": [0.7, 0.6],
    },
    "lending": {
        "model_type": "gemma4_text", "hidden_size": 192, "intermediate_size": 384,
        "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 2,
        "vocab_size": 3000, "vocab_size_per_layer_input": 3000, "head_dim": 32,
        "global_head_dim": 64, "hidden_size_per_layer_input": 32, "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True, "sliding_window": 64, "max_position_embeddings": 1024,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
    },
    "streaming": {
        "model_type": "gemma3n_text", "hidden_size": 192, "intermediate_size": 384,
        "num_hidden_layers": 5, "num_attention_heads": 6, "num_key_value_heads": 2,
        "vocab_size": 3000, "vocab_size_per_layer_input": 3000, "head_dim": 32,
        "hidden_size_per_layer_input": 32, "num_kv_shared_layers": 2, "laurel_rank": 16,
        "sliding_window": 64, "max_position_embeddings": 1024,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0, 0.0],
        "layer_types": ["sliding_attention", *["sliding_attention", "full_attention"] * 2],
    },
    "apart": {
        "model_type": "gemma4_moe", "hidden_size": 192, "intermediate_size": 256,
        "moe_intermediate_size": 64, "num_experts": 8, "top_k_experts": 3, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 3000, "head_dim": 32,
        "global_head_dim": 64, "sliding_window": 64, "max_position_embeddings": 1024,
    },
    "latent": {
        "model_type": "deepseek_v3", "hidden_size": 192, "intermediate_size": 384,
        "moe_intermediate_size": 64, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
        "topk_group": 2, "n_shared_experts": 1, "first_k_dense_replace": 1, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 6, "q_lora_rank": 48, "kv_lora_rank": 64,
        "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "vocab_size": 3000,
        "max_position_embeddings": 1024,
    },
    "narrow": {
        "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 3, "head_dim": 32,
        "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 5000,
        "max_position_embeddings": 1024, "tie_word_embeddings": False, "dtype": torch.bfloat16,
    },
}  # fmt: skip
"""Llamas by what their head is: a matrix of its own, or the embedding; and one whose file is in
bfloat16. And a GPT-2, a Gemma 2, whose logits are capped, a BLOOM, whose scores fall with the
distance, a Cohere, both halves of which read one norm, an AFM, which squares, an LFM2, which
convolves, a Qwen3.5, which corrects a state, a Gemma 4, of which layers lend keys, a Gemma 3n, which has four streams, a gpt-oss, whose attention has sinks, and mixtures of
experts, one of them beside an MLP for all tokens, one (Gemma 4's) with norms of its own, one
(DeepSeek's) behind attention to latents, one (Nemotron 3's) without gates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One run: a model, how many of its blocks are checkpointed, and what else is fixed."""

    model: str
    context: int
    checkpointed: bool = False
    pairs: bool = False
    """Learns from a pair a row, whose answers share half of their documents."""
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the row of the table, up to the figures."""
        method = self.fixed.get("method", "lora")
        if "modules_to_save" in self.fixed:
            method += f" + {', '.join(self.fixed['modules_to_save'])}"
        if "targets" in self.fixed:
            method += f" on {', '.join(self.fixed['targets'])}"
        base = self.fixed.get("quantization", "none")
        rows = f"{self.fixed.get('micro_batch', 1)} x {self.context}"
        kept = "all" if self.checkpointed else "none"
        kept += ", streamed" if self.fixed.get("placement") == "disk" else ""
        kept += ", offloaded" if "checkpointing" in self.fixed else ""
        kept += ", pairs" if self.pairs else ""
        kept += ", bfloat16" if "compute_dtype" in self.fixed else ""
        kept += f", tiles of {self.fixed['tile']}" if "tile" in self.fixed else ""
        return f"{self.model} | {method} | {base} | {rows} | {kept}"


MATRICES = {"modules_to_save": ("embeddings", "head"), "loss_chunk": 64}
TIED = {"modules_to_save": ("embeddings", "norms")}
DISK = {"placement": "disk"}
OFFLOADED = {"checkpointing": Checkpointing(layers=4, offload="disk")}
NARROW = {"compute_dtype": "bfloat16"}
NETWORK = {"method": "prefix", "reparameterize": True}
STEPS = 6

NAMED = (
    Case(model="untied", context=128),
    Case(model="untied", context=128, checkpointed=True),
    Case(model="untied", context=320),
    Case(model="untied", context=64, checkpointed=True, fixed={"micro_batch": 2}),
    Case(model="untied", context=96, checkpointed=True, fixed={"quantization": "q4"}),
    Case(model="untied", context=128, fixed={"quantization": "q8"}),
    Case(model="untied", context=128, checkpointed=True, fixed={"method": "adapter"}),
    Case(model="untied", context=128, fixed={"method": "bitfit"}),
    Case(model="untied", context=192, checkpointed=True, fixed={"method": "full"}),
    Case(model="untied", context=32, checkpointed=True, fixed={"method": "full"}),
    Case(model="untied", context=16, checkpointed=True, fixed=NETWORK),
    Case(model="untied", context=64, checkpointed=True, fixed={"method": "prefix"}),
    Case(model="untied", context=320, fixed={"method": "lora-fa"}),
    Case(model="untied", context=320, fixed={"method": "vera"}),
    Case(model="tied", context=192, checkpointed=True, fixed={"method": "vera"}),
    Case(model="untied", context=320, fixed=NETWORK),
    Case(model="capped", context=64, checkpointed=True),
    Case(model="untied", context=128, checkpointed=True, fixed={"method": "mam"}),
    Case(model="tied", context=96, fixed={"micro_batch": 2}),
    Case(model="tied", context=192, checkpointed=True, fixed={"method": "dora"}),
    Case(model="tied", context=128, fixed={"quantization": "q4"}),
    Case(model="tied", context=128, fixed={"method": "prompt"}),
    Case(model="untied", context=128, fixed=MATRICES),
    Case(model="untied", context=192, checkpointed=True, fixed=MATRICES | {"quantization": "q4"}),
    Case(model="tied", context=128, fixed=TIED),
    Case(model="tied", context=192, checkpointed=True, fixed=TIED | {"loss_chunk": 64}),
    Case(model="narrow", context=128, checkpointed=True, fixed=MATRICES | NARROW),
    Case(model="gpt2", context=128),
    Case(model="gpt2", context=64, checkpointed=True, fixed={"micro_batch": 2}),
    Case(model="inclined", context=192),
    Case(model="inclined", context=128, checkpointed=True),
    Case(model="shared", context=128),
    Case(model="shared", context=192, checkpointed=True),
    Case(model="parallel", context=128),
    Case(model="parallel", context=192, checkpointed=True),
    Case(model="squared", context=128),
    Case(model="squared", context=192, checkpointed=True),
    Case(model="convolving", context=128),
    Case(model="convolving", context=192, checkpointed=True),
    Case(model="sinking", context=320, checkpointed=True),
    Case(model="sinking", context=192, checkpointed=True),
    Case(model="sinking", context=320, checkpointed=True, pairs=True),
    Case(model="tied", context=128, checkpointed=True, pairs=True),
    Case(model="beside", context=192, checkpointed=True),
    Case(model="mixed", context=128),
    Case(model="mixed", context=192, checkpointed=True),
    Case(model="mixed", context=128, checkpointed=True, fixed={"quantization": "q4"}),
    Case(model="mixed", context=128, checkpointed=True, fixed=DISK),
    Case(model="mixed", context=128, checkpointed=True, fixed={"targets": ("experts",)}),
    Case(model="correcting", context=128),
    Case(model="scanning", context=128),
    Case(model="scanning", context=192, checkpointed=True),
    Case(model="flanked", context=192, checkpointed=True),
    Case(model="correcting", context=192, checkpointed=True),
    Case(model="lending", context=128, checkpointed=True),
    Case(model="lending", context=320, checkpointed=True),
    Case(model="streaming", context=128, checkpointed=True),
    Case(model="latent", context=128),
    Case(model="latent", context=320, checkpointed=True),
    Case(model="latent", context=128, checkpointed=True, fixed={"quantization": "nvfp4"}),
    Case(model="apart", context=128),
    Case(model="apart", context=192, checkpointed=True),
    Case(model="ungated", context=128),
    Case(model="ungated", context=192, checkpointed=True, fixed={"targets": ("experts",)}),
    Case(model="untied", context=128, fixed={"quantization": "mxfp4"}),
    Case(model="narrow", context=128),
    Case(model="narrow", context=64, checkpointed=True, fixed={"quantization": "q8"}),
    Case(model="narrow", context=128, checkpointed=True, fixed=NARROW | {"quantization": "q4"}),
    Case(model="untied", context=64, checkpointed=True, fixed=DISK | {"quantization": "q8"}),
    Case(model="untied", context=128, checkpointed=True, fixed=DISK | {"micro_batch": 2}),
    Case(model="tied", context=64, checkpointed=True, fixed=DISK),
    Case(model="gpt2", context=128, checkpointed=True, fixed=DISK | {"quantization": "q4"}),
    Case(model="untied", context=128, checkpointed=True, fixed=OFFLOADED),
    Case(model="untied", context=320, checkpointed=True, fixed={"tile": 64}),
    Case(model="untied", context=320, checkpointed=True, fixed=OFFLOADED | {"tile": 64}),
    Case(model="tied", context=512, checkpointed=True, fixed={"tile": 128, "method": "prefix"}),
    Case(model="tied", context=256, checkpointed=True, fixed={"tile": 64, "micro_batch": 2}),
    Case(model="capped", context=320, checkpointed=True, fixed={"tile": 128}),
    Case(
        model="narrow",
        context=512,
        checkpointed=True,
        fixed=NARROW | {"tile": 128, "quantization": "q4"},
    ),
    Case(model="untied", context=320, checkpointed=True, fixed=DISK | {"tile": 64}),
    Case(model="mixed", context=256, checkpointed=True, fixed={"tile": 64}),
    Case(model="inclined", context=320, checkpointed=True, fixed={"tile": 64}),
    Case(model="sinking", context=320, checkpointed=True, fixed={"tile": 64}),
    Case(model="convolving", context=320, checkpointed=True, fixed={"tile": 64}),
    Case(model="correcting", context=320, checkpointed=True, fixed={"tile": 64}),
    Case(model="scanning", context=512, checkpointed=True, fixed={"tile": 128}),
    Case(model="untied", context=320, checkpointed=True, fixed={"tile": 64, "method": "full"}),
    Case(model="tied", context=256, checkpointed=True, fixed=TIED | {"tile": 64, "loss_chunk": 64}),
    Case(
        model="convolving",
        context=128,
        checkpointed=True,
        fixed=NARROW | {"method": "norm", "micro_batch": 2, "loss_chunk": 64},
    ),
    Case(
        model="apart", context=128, checkpointed=True, fixed={"method": "prompt", "loss_chunk": 64}
    ),
    Case(model="inclined", context=16, fixed={"method": "vera", "quantization": "nvfp4"}),
    Case(
        model="untied",
        context=96,
        checkpointed=True,
        fixed={"tile": 64, "method": "prompt", "quantization": "q8", "micro_batch": 2},
    ),
)

REST = tuple(
    Case(model="untied", context=192, fixed={"method": kind})
    for kind in METHODS
    if kind not in {case.fixed.get("method", "lora") for case in NAMED}
)
"""Methods without a row of their own."""

CASES = NAMED + REST

BASES = ("none", "none", "q8", "q4", "mxfp4", "nvfp4")


def drawn(seed: int) -> Iterator[Case]:
    """Yield settings over the whole grid without end, of which some are refused."""
    draw = random.Random(seed)
    while True:
        method, context = draw.choice(list(METHODS)), draw.choice((16, 64, 96, 128, 192, 320))
        fixed: dict[str, Any] = {
            "method": method,
            "quantization": "none" if method == "full" else draw.choice(BASES),
            "micro_batch": draw.choice((1, 1, 2)),
            "loss_chunk": draw.choice((64, 256)),
        }
        fixed |= draw.choice(({}, {}, NARROW))
        checkpointed = draw.random() < 0.6
        if checkpointed:
            fixed |= draw.choice(({}, {}, DISK, OFFLOADED))
            fixed |= draw.choice(({}, {}, {"tile": 64})) if context > 64 else {}
        model = draw.choice(list(MODELS))
        yield Case(model=model, context=context, checkpointed=checkpointed, fixed=fixed)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of loading and training as planned, without the interpreter, and as MLX counted them.

    How far MLX queues operations before its own thread has run them is a matter of luck: it
    allocates when it queues. A plan takes it to be as far as MLX lets it; ``least`` is the plan
    of a run whose operations end as soon as they are queued.
    """

    planned: int
    least: int
    peak: int

    @property
    def over(self) -> float:
        """Return by which share of the peak the plan is above it."""
        return self.planned / self.peak - 1

    @property
    def least_over(self) -> float:
        """Return by which share of the peak the plan without what is queued is above it."""
        return self.least / self.peak - 1


class AtOnce(MemoryModel):
    """The memory of runs whose operations end as soon as they are queued."""

    def _make_graphs(self, rows: BatchShape, quantization: str, *, streamed: bool) -> LazyPasses:
        return LazyPasses(self._lazy, self.shape, rows, quantization, streamed=streamed, ahead=0)


def needed(memory: MemoryEstimate) -> int:
    """Return the bytes of loading and training without the interpreter."""
    return max(memory.phases.load, memory.phases.train) - memory.parts.runtime


def at_once(plan: Plan) -> MemoryEstimate:
    """Return what a plan says of a run whose operations end as soon as they are queued."""
    platform = Platform(kind="mlx", multiplies_16bit=False)
    model = AtOnce(
        plan.shape, plan.choice.method, platform,
        objective=plan.objective, forked=bool(plan.training.share_prompts),
    )  # fmt: skip
    return model.estimate(plan.choice)


def opened(case: Case, folder: Path) -> tuple[LocalModel, Plan]:
    """Return a case's model and plan."""
    model = LocalModel.open(folder)
    layers = model.shape.layers if case.checkpointed else 0
    fixed = {
        "method": "lora", "quantization": "none", "placement": "resident", "optimizer": "adamw",
        "compute_dtype": "float32", "context": case.context, "micro_batch": 1, "accumulation": 1,
        "checkpointing": Checkpointing(layers=layers),
    }  # fmt: skip
    device = read_device("mlx")
    training = {"objective": "dpo"} if case.pairs else {}
    plan = make_plan(device, model.ref, model.shape, fixed=fixed | case.fixed, training=training)
    return model, plan


@contextmanager
def begun(case: Case, folder: Path) -> Iterator[tuple[LocalModel, Plan, Any, int]]:
    """Yield a model, its plan, its session, and what others held of MLX's memory before."""
    model, plan = opened(case, folder)
    gc.collect()
    mx.clear_cache()
    held = mx.get_active_memory()
    session = load_backend("mlx").open(plan.spec, model)
    try:
        yield model, plan, session, held
    finally:
        session.close()


def measure_opening(case: Case, folder: Path) -> Measured:
    """Open a model, and take no step."""
    with begun(case, folder) as (model, plan, session, held):
        peak = session.memory().peak_bytes - held
    planned = plan.memory.phases.load - plan.memory.parts.runtime
    if any(reads_text(x.initial) for x in plan.choice.method.tensors(model.shape)):
        # a tokenizer's, which MLX does not hold
        planned -= COSTS["mlx"].token * model.shape.vocabulary
    return Measured(planned, planned, peak)


def measure_lasting(case: Case, folder: Path) -> Measured:
    """Open a model, and look at what stays."""
    with begun(case, folder) as (_, plan, _, held):
        gc.collect()
        kept = mx.get_active_memory() - held
    planned = plan.memory.parts.weights + plan.memory.parts.adapter
    return Measured(planned, planned, kept)


def measure(case: Case, folder: Path) -> Measured:
    """Take steps on full rows: the second has the optimizer's state, a later one the peak."""
    with begun(case, folder) as (model, plan, session, held):
        batch = full_batch(plan.choice.micro_batch, case.context, model.shape.vocabulary)
        if case.pairs:
            half = case.context // 2
            batch = replace(
                batch, documents=((half, half),), shared=((0, half // 2),),
                answers=(("chosen", "rejected"),),
            )  # fmt: skip
        for _ in range(STEPS):
            terms = 1 if case.pairs else batch.loss_tokens
            session.step((batch,), loss_tokens=terms, learning_rate=1e-4)
        peak = session.memory().peak_bytes - held
    return Measured(needed(plan.memory), needed(at_once(plan)), peak)


def make(name: str, folder: Path) -> Path:
    """Write one of the models."""
    from letters import with_letters
    from models import make_model

    settings = dict(MODELS[name])
    return with_letters(make_model(folder / name, settings.pop("model_type", "llama"), **settings))


def main() -> None:
    """Print the table."""
    sys.stdout.write(
        "| model | method | base | rows | checkpointed | planned | measured | plan over it |\n"
    )
    sys.stdout.write("|---|---|---|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as folder:
        made = {name: make(name, Path(folder)) for name in MODELS}
        for case in CASES:
            found = measure(case, made[case.model])
            figures = f"{found.planned / 1e6:.2f} MB | {found.peak / 1e6:.2f} MB"
            sys.stdout.write(f"| {case} | {figures} | {found.over:+.1%} |\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
