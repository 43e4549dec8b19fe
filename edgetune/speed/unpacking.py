"""How stored matrices become numbers to multiply with: in which time, by how many operations."""

from __future__ import annotations

from edgetune.choice import Choice
from edgetune.speed.rates import Rates
from edgetune.speed.rows import Rows
from edgetune.speed.tally import Tally

DEQUANTIZE_COST = {"int8": 0.5, "q8": 0.5, "nf4": 1.0, "q4": 1.0, "mxfp4": 1.0, "nvfp4": 1.0,
                   "gguf": 2.0}  # fmt: skip
"""Time of a weight against one of four bits: the codes of eight bits need no lookup."""

OPERATIONS = {
    "int8": (4, 8), "q8": (4, 8), "nf4": (18, 0), "q4": (18, 0), "mxfp4": (18, 0),
    "nvfp4": (18, 0), "gguf": (16, 0),
}  # fmt: skip
"""Operations by which a matrix is unpacked, and further ones of each piece of its rows."""

CONVERTED = 3
"""Operations by which a matrix is widened."""


def weight_seconds(choice: Choice, rows: Rows, rates: Rates) -> float:
    """Return the seconds in which a stored weight becomes a number to multiply with."""
    if choice.quantization != "none":
        return DEQUANTIZE_COST[choice.quantization] / rates.dequantize
    return 0.0 if rows.product == rows.stored else 1 / rates.convert


def launches_of(tally: Tally, choice: Choice, rows: Rows) -> float:
    """Return all operations of a tally, those that unpack included."""
    if rows.fused:
        return tally.launches + tally.matrices
    if choice.quantization != "none":
        each, piece = OPERATIONS[choice.quantization]
        return tally.launches + each * tally.matrices + piece * tally.pieces
    return tally.launches + CONVERTED * tally.matrices * (rows.product != rows.stored)
