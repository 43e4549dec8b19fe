"""Angles of the rotary position embedding, with the published scaling rules.

Sources: RoFormer (Su 2021); linear interpolation (Chen 2023); YaRN (Peng 2023, section 3);
Llama-3's wavelength rule; LongRoPE (Ding 2024) as used by Phi-3. d rotating channels of a head.
"""

from __future__ import annotations

from math import log, pi

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgetune.shape import Rotary

Floats = NDArray[np.float64]


def frequencies(rotary: Rotary, context: int) -> mx.array:
    """Return the angle per position of each pair of channels, (d/2,) float32.

    ``context`` is the longest length in use: LongRoPE changes its factors with it.
    """
    return mx.array(np.asarray(_scaled(rotary, context), np.float32))


def _scaled(rotary: Rotary, context: int) -> Floats:
    exponents = np.arange(0, rotary.dimensions, 2, dtype=np.float64) / rotary.dimensions
    plain: Floats = np.power(rotary.theta, -exponents)
    match rotary.scaling:
        case "none":
            return plain
        case "linear":
            return plain / rotary.factor
        case "llama3":
            return _llama3(rotary, plain)
        case "yarn":
            return _yarn(rotary, plain)
        case "longrope":
            long = context > rotary.original_context
            factors = rotary.long_factors if long else rotary.short_factors
            return plain / np.array(factors, np.float64)
        case "proportional":
            turning = exponents * rotary.dimensions < rotary.turning
            return np.where(turning, plain, 0.0) / rotary.factor


def _llama3(rotary: Rotary, plain: Floats) -> Floats:
    """Divide long wavelengths, keep short ones, go from one to the other in between."""
    wavelength = 2 * pi / plain
    longest = rotary.original_context / rotary.low_frequency_factor
    shortest = rotary.original_context / rotary.high_frequency_factor
    turns = rotary.original_context / wavelength
    kept = (turns - rotary.low_frequency_factor) / (
        rotary.high_frequency_factor - rotary.low_frequency_factor
    )
    between = ((1 - kept) / rotary.factor + kept) * plain
    long = np.where(wavelength > longest, plain / rotary.factor, between)
    return np.where(wavelength < shortest, plain, long)


def _yarn(rotary: Rotary, plain: Floats) -> Floats:
    """Interpolate channels that turn slowly, keep those that turn fast, ramp between."""

    def channel(turns: float) -> float:
        length = rotary.original_context / (turns * 2 * pi)
        return rotary.dimensions * log(length) / (2 * log(rotary.theta))

    low, high = channel(rotary.beta_fast), channel(rotary.beta_slow)
    if rotary.truncate:
        low, high = float(np.floor(low)), float(np.ceil(high))
    low, high = max(low, 0.0), min(high, rotary.dimensions - 1.0)
    width = high - low if high != low else 0.001
    ramp: Floats = np.clip((np.arange(len(plain)) - low) / width, 0, 1)
    return plain / rotary.factor * ramp + plain * (1 - ramp)
