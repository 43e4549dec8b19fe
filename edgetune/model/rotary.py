"""Rotary embeddings as configs spell them: ``rope_theta`` + ``rope_scaling``, or ``rope_parameters``.

The rules follow transformers 5: a table given by ``rope_scaling`` wins over one given by
``rope_parameters``; what the table leaves out comes from the config's own fields, then from the
family's defaults. Sources: linear (kaiokendev), YaRN (Peng et al. 2023, section 3.4), LongRoPE
(Ding et al. 2024), Llama 3.1's rule as published with its weights, Gemma 4's as transformers has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from edgetune.escapes import short
from edgetune.model.config import Fields, is_number
from edgetune.shape import Rotary

Scaling = Literal["none", "linear", "llama3", "longrope", "yarn", "proportional"]

_SCALINGS: Final[Mapping[str, Scaling]] = {
    "default": "none",
    "linear": "linear",
    "llama3": "llama3",
    "longrope": "longrope",
    "yarn": "yarn",
    "proportional": "proportional",
}


def rope_table(fields: Fields) -> dict[str, object]:
    """Return the one table of rotary settings of a config (empty when it has none)."""
    table = fields.table("rope_scaling") or fields.table("rope_parameters")
    share = fields.raw("partial_rotary_factor")
    return table if share is None else {"partial_rotary_factor": share, **table}


def rotary(
    fields: Fields,
    table: Mapping[str, object],
    *,
    head_dim: int,
    theta: float,
    context: int,
    original_context: int | None = None,
    partial: float | None = None,
) -> Rotary:
    """Return the rotary embedding that a table describes.

    ``theta`` and ``partial`` are used where the table is silent; ``partial=None`` means that
    the family always rotates whole heads. ``original_context`` overrides the table's.
    """
    inner = Fields(table)
    scaling = _scaling(inner)
    whole = scaling == "proportional"  # which turns a share of whole heads
    share = _share(inner, 1.0 if whole else partial)
    size = _original_context(inner, scaling, context, original_context)
    factor = _factor(inner, scaling, context / size)
    dimensions = _dimensions(inner, head_dim, 1.0 if whole else share)
    rule = Rotary(
        theta=inner.positive("rope_theta", theta),
        dimensions=dimensions,
        scaling=scaling,
        factor=factor,
        low_frequency_factor=inner.positive("low_freq_factor", 1.0),
        high_frequency_factor=inner.positive("high_freq_factor", 4.0),
        original_context=size if scaling in {"llama3", "longrope", "yarn"} else 0,
        short_factors=_factors(inner, "short_factor", scaling, dimensions // 2),
        long_factors=_factors(inner, "long_factor", scaling, dimensions // 2),
        attention_factor=_attention_factor(inner, scaling, factor, size),
        beta_fast=inner.positive("beta_fast", 32.0),
        beta_slow=inner.positive("beta_slow", 1.0),
        truncate=inner.flag("truncate", True),
        turning=2 * int(share * head_dim // 2) if whole else 0,
    )
    if scaling == "llama3" and rule.high_frequency_factor <= rule.low_frequency_factor:
        inner.problems.append("high_freq_factor must be above low_freq_factor")
    fields.problems += [f"rotary settings: {problem}" for problem in inner.problems]
    return rule


def _scaling(table: Fields) -> Scaling:
    name = table.raw("rope_type") or table.raw("type") or "default"
    if isinstance(name, str) and name in _SCALINGS:
        return _SCALINGS[name]
    table.problems.append(
        f"rope_type {short(name)} is not supported; supported: {', '.join(_SCALINGS)}"
    )
    return "none"


def _share(table: Fields, default: float | None) -> float:
    share = table.number("partial_rotary_factor", 1.0 if default is None else default)
    if default is None and share != 1:
        table.problems.append(f"partial_rotary_factor is {share}, but this family rotates all")
    if not 0 < share <= 1:
        table.problems.append(f"partial_rotary_factor must be above 0 and at most 1; found {share}")
        return 1.0
    return share


def _dimensions(table: Fields, head_dim: int, share: float) -> int:
    dimensions = int(head_dim * share)
    if dimensions < 2 or dimensions % 2:
        table.problems.append(f"{dimensions} channels of a head cannot be rotated in pairs")
    return dimensions


def _original_context(table: Fields, scaling: Scaling, context: int, override: int | None) -> int:
    if override is not None and scaling in {"llama3", "longrope", "yarn"}:
        return override
    return table.size("original_max_position_embeddings", context)


def _factor(table: Fields, scaling: Scaling, ratio: float) -> float:
    if scaling == "none":
        return 1.0
    if table.raw("factor") is None and scaling in {"linear", "llama3"}:
        table.problems.append(f"rope_type {short(scaling)} needs a factor")
    return table.positive("factor", 1.0 if scaling == "proportional" else ratio)


def _factors(table: Fields, name: str, scaling: Scaling, count: int) -> tuple[float, ...]:
    if scaling != "longrope":
        return ()
    values = table.raw(name)
    if not isinstance(values, list) or len(values) != count or not all(map(is_number, values)):
        table.problems.append(f"{name} must be a list of {count} numbers")
        return (1.0,) * count
    return tuple(float(value) for value in values)


def _attention_factor(table: Fields, scaling: Scaling, factor: float, original: int) -> float:
    given = table.optional_number("attention_factor")
    if scaling == "longrope":
        return longrope_magnitude(factor, original) if given is None else given
    if scaling == "yarn":
        return _yarn_magnitude(table, factor) if given is None else given
    return 1.0


def longrope_magnitude(factor: float, original: int) -> float:
    """Return by what scores grow in a context that is so many times the original one."""
    if factor <= 1 or original <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(original))


def _yarn_magnitude(table: Fields, factor: float) -> float:
    scale, scale_all = table.number("mscale", 0.0), table.number("mscale_all_dim", 0.0)
    if scale and scale_all:
        return _yarn_term(factor, scale) / _yarn_term(factor, scale_all)
    return _yarn_term(factor, 1.0)


def _yarn_term(factor: float, scale: float) -> float:
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
