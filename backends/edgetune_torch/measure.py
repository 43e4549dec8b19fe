"""How fast this machine does what a training step consists of, each alone."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from edgetune.device import Device
from edgetune.speed import Measurements, versions_of
from edgetune_torch.matrices import store
from edgetune_torch.precision import product_dtype

SIDE = 2048
"""Rows and columns of the matrices that are multiplied."""
REPEATS = 5


def measure(device: Device) -> Measurements:
    """Return the rates of ``device``, the best of a few tries each."""
    place = torch.device("cuda" if device.kind == "cuda" else "cpu")
    matrix = torch.randn(SIDE, SIDE, device=place)
    stored = matrix.bfloat16()
    packed = store(stored, "nf4")
    dense = product_dtype(torch.bfloat16, place)
    return Measurements(
        device=device.name,
        versions=versions_of("torch"),
        product_32bit=_product(matrix),
        product_16bit=_product(stored.to(dense)),
        pointwise=_pointwise(place),
        convert=matrix.numel() / _seconds(lambda: stored.to(torch.float32), place),
        dequantize=matrix.numel() / _seconds(lambda: packed.dense(dense), place),
        optimizer=_optimizer(place),
        link_bandwidth=_link(place),
    )


def _product(matrix: Tensor) -> float:
    """Return FLOP/s of a product as in a step: some hundred rows by a square matrix."""
    rows = matrix[: SIDE // 4]
    return 2 * rows.numel() * SIDE / _seconds(lambda: rows @ matrix.T, matrix.device)


def _pointwise(place: torch.device) -> float:
    x = torch.randn(SIDE, 2 * SIDE, device=place)
    out = torch.empty_like(x)
    return 3 * x.nbytes / _seconds(lambda: torch.mul(x, x, out=out), place)


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
    best = float("inf")
    for _ in range(REPEATS + 1):  # the first is a warm-up, and the slowest
        begun = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        best = min(best, time.perf_counter() - begun)
    return best
