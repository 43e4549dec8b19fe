"""How fast this machine does what a training step consists of, each alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from edgetune.device import Device
from edgetune.shape import Attention
from edgetune.speed import ATTENTION_PASSES, Measurements, shortest_seconds, versions_of
from edgetune_torch.attention import attend
from edgetune_torch.malloc import limit_heap
from edgetune_torch.matrices import store
from edgetune_torch.precision import product_dtype

SIDE = 1024
"""Rows and columns of the matrices that are multiplied."""
ROWS, HEADS, LENGTH, WIDTH = 2, 8, 256, 64
"""Of the attention that is measured."""


def measure(device: Device) -> Measurements:
    """Return the rates of ``device``, the best of some tries each."""
    limit_heap()  # as in a session: what is allocated anew has pages to be made
    place = torch.device("cuda" if device.kind == "cuda" else "cpu")
    matrix = torch.randn(SIDE, SIDE, device=place)
    narrow = torch.bfloat16 if device.has_bfloat16 else torch.float16
    stored = matrix.to(narrow)
    packed = store(stored, "nf4")
    dense = product_dtype(narrow, place)
    return Measurements(
        device=device.name,
        versions=versions_of("torch"),
        product_32bit=_product(matrix),
        product_16bit=_product(stored.to(dense)),
        attention_32bit=_attention(torch.float32, place),
        attention_16bit=_attention(narrow, place),
        pointwise=_pointwise(stored),
        convert=matrix.numel() / _seconds(lambda: stored.to(torch.float32), place),
        dequantize=matrix.numel() / _seconds(lambda: packed.dense(dense), place),
        optimizer=_optimizer(place),
        link_bandwidth=_link(place),
    )


def _product(matrix: Tensor) -> float:
    """Return FLOP/s of a product as in a step: some hundred rows by a square matrix."""
    rows = matrix[: SIDE // 4]
    return 2 * rows.numel() * SIDE / _seconds(lambda: rows @ matrix.T, matrix.device)


def _attention(dtype: torch.dtype, place: torch.device) -> float:
    """Return FLOP/s of causal attention, both passes, where only what is not masked counts."""
    size = ROWS, HEADS, LENGTH, WIDTH
    q, k, v = (torch.randn(size, dtype=dtype, device=place, requires_grad=True) for _ in range(3))
    rule, documents = Attention(scale=WIDTH**-0.5), ((LENGTH,),) * ROWS

    def both() -> None:
        out = attend(q, k, v, rule, documents)
        torch.autograd.backward(out, torch.ones_like(out))

    work = ATTENTION_PASSES * 2 * ROWS * LENGTH * LENGTH * HEADS * WIDTH
    return work / _seconds(both, place)


def _pointwise(x: Tensor) -> float:
    """Return bytes/s read and written, in the number format of activations."""
    return 3 * x.nbytes / _seconds(lambda: x * x, x.device)


def _optimizer(place: torch.device) -> float:
    parameter = torch.nn.Parameter(torch.randn(SIDE, SIDE // 2, device=place))
    parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW([parameter])
    return parameter.numel() / _seconds(optimizer.step, place)


def _link(place: torch.device) -> float:
    if place.type == "cpu":
        return 0.0
    host = torch.empty(64 * 2**20, dtype=torch.uint8, pin_memory=True)
    return host.nbytes / _seconds(lambda: host.to(place, non_blocking=True), place)


def _seconds(work: Callable[[], object], place: torch.device) -> float:
    """Return the shortest time that ``work`` took."""

    def done() -> None:
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)

    return shortest_seconds(done)
