"""Opening a planned session: load, build, adapt."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from edgetune.methods import initial_value
from edgetune.model import LocalModel
from edgetune.plan import Plan
from edgetune_torch.decoder import Decoder
from edgetune_torch.engine import Engine
from edgetune_torch.load import Loader
from edgetune_torch.loss import Head
from edgetune_torch.methods import adapt
from edgetune_torch.session import TorchSession

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_session(plan: Plan, model: LocalModel) -> TorchSession:
    """Load the model as planned, with a new adapter."""
    choice, shape = plan.choice, model.shape
    device = torch.device("cuda" if plan.device.kind == "cuda" else "cpu")
    weights = Loader(model, device, choice.quantization).load()
    head = Head(
        weight=weights.head,
        bias=weights.head_bias,
        scale=shape.logit_scale,
        softcap=shape.logit_softcap,
    )
    decoder = Decoder(shape, weights, DTYPES[choice.compute_dtype])
    engine = Engine(
        decoder, head, checkpointed=choice.checkpointing.layers, chunk=choice.loss_chunk
    )
    parameters = {
        tensor.name: Parameter(
            torch.from_numpy(initial_value(tensor, plan.training.seed)).to(device)
        )
        for tensor in choice.method.tensors(shape)
    }
    return TorchSession(plan, engine, adapt(choice.method, shape, parameters))
