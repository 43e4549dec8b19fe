"""The parameters of a model that transformers built under the names that its checkpoint has.

transformers 5 keeps all experts of a block in two tensors; files have a tensor for each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from transformers import PreTrainedModel

from edgetune.shape import ModelShape

STORED_BUFFERS = ("layer_scalar", "e_score_correction_bias", "act_fn.beta", "act_fn.eps")


def stored_parameters(shape: ModelShape, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return every parameter by its stored name, experts one by one."""
    parameters = dict(model.named_parameters())
    parameters |= {n: x for n, x in model.named_buffers() if n.endswith(STORED_BUFFERS)}
    # transformers 5 calls GPT-NeoX's head lm_head in memory and embed_out in the checkpoint.
    if shape.family == "gpt_neox" and "lm_head.weight" in parameters:
        parameters["embed_out.weight"] = parameters.pop("lm_head.weight")
    return dict(unfused(shape, parameters)) if shape.has_experts else parameters


def unfused(
    shape: ModelShape, parameters: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    sparse = shape.family in {"mixtral", "granitemoe", "granitemoehybrid", "phimoe"}
    mixture = "block_sparse_moe" if sparse else "mlp"
    mixture = "mixer" if shape.family == "nemotron_h" else mixture
    beside = shape.family == "gemma4_text"
    experts = {shape.block(layer): block.experts for layer, block in enumerate(shape.blocks)}
    for name, tensor in parameters.items():
        prefix, found, part = name.rpartition(f"{mixture}.experts.")
        if shape.family in {"mixtral", "phimoe"} or beside:
            prefix, found, part = name.rpartition("experts." if beside else "mlp.experts.")
        rule = experts.get(prefix)
        if not found or rule is None:
            gates = ".mlp.router." if shape.family == "phimoe" else ".mlp.gate."
            name = name.replace(gates, f".{mixture}.gate.")  # noqa: PLW2901
            yield name.replace("moe.router.weight", "moe.router.layer.weight"), tensor
            continue
        modules = dict(rule.projections)
        if rule.clamp is not None:
            fused = next(each for each in rule.fused if each.name.endswith(f".{part}"))
            for number in range(rule.number):
                module = modules[fused.roles[0]].format(number)
                yield f"{prefix}{module}.{fused.part}", tensor[number]
            continue
        for number in range(rule.number):
            of_role = {part.removesuffix("_proj"): tensor[number]}
            if part == "gate_up_proj":
                gate, up = tensor[number].chunk(2)
                of_role = {"gate": gate, "up": up}
            for role, values in of_role.items():
                yield f"{prefix}{modules[role].format(number)}.weight", values
