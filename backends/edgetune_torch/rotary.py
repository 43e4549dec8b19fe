"""Cosine and sine of the rotary position embedding, with the published scaling rules.

Sources: RoFormer (Su 2021); linear interpolation (Chen 2023); YaRN (Peng 2023, section 3);
Llama-3's wavelength rule; LongRoPE (Ding 2024) as used by Phi-3; Llama 4's temperature.
"""

from __future__ import annotations

from math import log, pi

import torch
from torch import Tensor

from edgetune.shape import Rotary


def cos_sin(
    rotary: Rotary, positions: Tensor, dtype: torch.dtype, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine (B, 1, S, d) for positions (B, S).

    ``lengths`` (B, S) are those of the tokens' documents: LongRoPE changes its factors with
    them. Other rules do without.
    """
    frequencies = inverse_frequencies(rotary).to(positions.device)
    if rotary.scaling == "longrope" and lengths is not None:
        stretched = inverse_frequencies(rotary, long=True).to(positions.device)
        long = lengths[:, None, :, None] > rotary.original_context
        frequencies = torch.where(long, stretched, frequencies)  # (B, 1, S, d/2)
    angles = positions[:, None, :, None].float() * frequencies  # (B, 1, S, d/2)
    if rotary.interleaved:
        angles = angles.repeat_interleave(2, dim=-1)
    else:
        angles = torch.cat((angles, angles), dim=-1)
    factor: Tensor | float = rotary.attention_factor
    if rotary.growth:
        times = positions[:, None, :, None] // rotary.original_context
        factor = factor * (1 + rotary.growth * torch.log1p(times.float()))
    return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)


def inverse_frequencies(rotary: Rotary, *, long: bool = False) -> Tensor:
    """Return the angle per position of each pair of channels, (d/2,) float32.

    ``long`` is for documents beyond the length that LongRoPE leaves as it was.
    """
    exponents = torch.arange(0, rotary.dimensions, 2, dtype=torch.int64).float()
    plain = 1.0 / (rotary.theta ** (exponents / rotary.dimensions))
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
            factors = rotary.long_factors if long else rotary.short_factors
            return plain / torch.tensor(factors)
        case "proportional":
            return torch.where(exponents < rotary.turning, plain, 0.0) / rotary.factor


def _llama3(rotary: Rotary, plain: Tensor) -> Tensor:
    """Scale long wavelengths, keep short ones, blend between."""
    wavelength = 2 * pi / plain
    low = rotary.original_context / rotary.low_frequency_factor
    high = rotary.original_context / rotary.high_frequency_factor
    span = rotary.high_frequency_factor - rotary.low_frequency_factor
    blend = (rotary.original_context / wavelength - rotary.low_frequency_factor) / span
    mixed = (1 - blend) * plain / rotary.factor + blend * plain
    scaled = torch.where(wavelength > low, plain / rotary.factor, plain)
    return torch.where((wavelength <= low) & (wavelength >= high), mixed, scaled)


def _yarn(rotary: Rotary, plain: Tensor) -> Tensor:
    """Interpolate channels that turn slowly, keep those that turn fast, ramp between."""

    def channel(turns: float) -> float:
        length = rotary.original_context / (turns * 2 * pi)
        return rotary.dimensions * log(length) / (2 * log(rotary.theta))

    low, high = channel(rotary.beta_fast), channel(rotary.beta_slow)
    if rotary.truncate:
        low, high = float(int(low // 1)), float(-int(-high // 1))
    low, high = max(low, 0.0), min(high, rotary.dimensions - 1.0)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(len(plain), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / rotary.factor * ramp + plain * (1 - ramp)
