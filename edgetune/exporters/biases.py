"""Biases that the base does not have, in a merged model: what its config.json must say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgetune.errors import UsageError
from edgetune.methods.merging import Changes
from edgetune.shape import ATTENTION_ROLES, MLP_ROLES, ModelShape

Float32 = NDArray[np.float32]

Switch = tuple[str, frozenset[str]]
"""A field of the config, and the roles of the projections that it gives a bias."""

QUERIES_KEYS_VALUES: Final = frozenset({"q", "k", "v", "qkv"})
ATTENTION: Final[Switch] = ("attention_bias", ATTENTION_ROLES)
INPUTS: Final[Switch] = ("attention_bias", QUERIES_KEYS_VALUES)
MLP: Final[Switch] = ("mlp_bias", MLP_ROLES)

SWITCHES: Final[Mapping[str, tuple[Switch, ...]]] = {
    "llama": (ATTENTION, MLP),
    "arcee": (ATTENTION, MLP),
    "cohere": (ATTENTION,),
    "cohere2": (ATTENTION,),
    "cwm": (MLP,),
    "ernie4_5": (("use_bias", ATTENTION_ROLES | MLP_ROLES),),
    "qwen3": (ATTENTION,),
    "gemma": (ATTENTION,),
    "gemma2": (ATTENTION,),
    "gemma3_text": (ATTENTION,),
    "glm": (INPUTS,),
    "glm4": (INPUTS,),
    "granite": (ATTENTION, MLP),
    "granitemoehybrid": (ATTENTION,),
    "helium": (INPUTS, MLP),
    "hunyuan_v1_dense": (ATTENTION,),
    "nemotron": (ATTENTION, MLP),
    "olmo2": (ATTENTION,),
    "olmo3": (ATTENTION,),
    "seed_oss": (INPUTS, ("attention_out_bias", frozenset({"o"})), MLP),
    "stablelm": (("use_qkv_bias", QUERIES_KEYS_VALUES),),
    "starcoder2": (("use_bias", ATTENTION_ROLES | MLP_ROLES),),
}
"""By family the fields of transformers' config that give projections a bias, all at once."""


def new_biases(merged: Changes, shape: ModelShape) -> tuple[dict[str, Float32], dict[str, object]]:
    """Return the biases that merging adds by name and the config's fields that announce them.

    A field gives a bias to every projection of its kind in every block: those that were not
    trained are zero.

    Raises:
        UsageError: naming the projections that the config cannot give a bias.
    """
    wanted = {target.linear.role for target in merged.biased}
    switches = [(n, roles) for n, roles in SWITCHES.get(shape.family, ()) if roles & wanted]
    covered: set[str] = set().union(*(roles for _, roles in switches))
    if wanted - covered:
        missing = [x.module for x in shape.all_linears if x.role in wanted - covered]
        modules = ", ".join(dict.fromkeys(missing))
        raise UsageError(
            f"The config.json of a {shape.family} model cannot say that {modules} have biases, so "
            "that the merged model could not be loaded. Export the adapter itself (--to peft), or "
            f"train only biases that can be kept: {_remedy(shape, merged.without)}."
        )
    added = {
        f"{shape.block(layer)}{linear.module}.bias": np.zeros(linear.outputs, np.float32)
        for layer in range(shape.layers)
        for linear in shape.blocks[layer].linears
        if linear.role in covered and not linear.bias
    }
    added |= {name: values for name, values in merged.added.items() if name in added}
    return added, {name: True for name, _ in switches}


def _remedy(shape: ModelShape, without: str | None) -> str:
    if without is not None and any(linear.bias for linear in shape.all_linears):
        return without
    switchable = {role for _, roles in SWITCHES.get(shape.family, ()) for role in roles}
    found = [x.module.rsplit(".", 1)[-1] for x in shape.all_linears if x.role in switchable]
    names = dict.fromkeys(found)
    return f"--targets {','.join(names)}" if names else "this family has none; take --method lora"
