"""Blocks with Mamba-2 in the place of attention, as configs tell them."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Final

from edgetune.escapes import short
from edgetune.model.config import Fields, is_number
from edgetune.network.mixers.state_space import StateSpace
from edgetune.shape import BlockShape, Linear, Norm, NormKind

MODULE: Final = "mamba"
_INFINITE: Final = (inf, {"__float__": "Infinity"})
"""How files have what no JSON number is; transformers writes the latter."""


def read_mixer(fields: Fields, width: int, *, module: str = MODULE) -> StateSpace:
    """Read a mixer whose values are ``width`` numbers of a token."""
    heads, groups = fields.size("mamba_n_heads", 128), fields.size("mamba_n_groups", 1)
    auto = fields.raw("mamba_d_head") in (None, "auto")
    size = max(1, width // heads) if auto else fields.size("mamba_d_head")
    if heads * size != width:
        fields.problems.append(f"mamba_n_heads {heads} of {size} numbers are not {width} in all")
    least, most = read_limits(fields)
    mixer = StateSpace(
        heads=heads,
        groups=groups,
        value_dim=size,
        key_dim=fields.size("mamba_d_state", 256),
        taps=fields.size("mamba_d_conv", 4),
        module=module,
        bias=fields.flag("mamba_conv_bias", True),
        least_step=least,
        most_step=most,
    )
    return checked_mixer(fields, mixer)


def checked_mixer(fields: Fields, mixer: StateSpace) -> StateSpace:
    """Return a mixer, with notes of what cannot be computed."""
    if mixer.heads % mixer.groups:
        fields.problems.append(
            f"{mixer.heads} heads of its Mamba layers cannot share {mixer.groups} groups evenly"
        )
        mixer = replace(mixer, groups=1)
    if mixer.taps < 2:
        fields.problems.append("its Mamba layers convolve one token: only 2 and more are supported")
    return mixer


def read_limits(fields: Fields) -> tuple[float, float]:
    """Return the least and the most that a step can be."""
    value = fields.raw("time_step_limit")
    if value is None:
        return 0.0, inf
    if isinstance(value, list | tuple) and len(value) == 2:
        least, most = (inf if each in _INFINITE else each for each in value)
        if is_number(least) and (is_number(most) or most == inf) and 0 <= least < most:
            return float(least), float(most)
    fields.problems.append(f"time_step_limit must be two rising numbers; found {short(value)}")
    return 0.0, inf


def scanning(
    attending: BlockShape,
    mixer: StateSpace,
    hidden: int,
    norm: NormKind | None,
    *,
    bias: bool,
    output_bias: bool,
) -> BlockShape:
    """Return a block like one that attends, with Mamba-2 in the place of attention.

    ``norm`` is that of what is read, in the mixer's groups, if there is one.
    """
    attends = {x.role for x in attending.linears} & {"q", "k", "v", "qkv", "o"}
    others = tuple(x for x in attending.linears if x.role not in attends)
    norms = tuple(x for x in attending.norms if x.role not in {"q", "k", "v"})
    return replace(
        attending,
        heads=0,
        kv_heads=0,
        head_dim=0,
        mixer=mixer,
        linears=mixer_linears(mixer, hidden, bias=bias, output_bias=output_bias) + others,
        norms=norms + mixer_norms(mixer, norm),
    )


def mixer_linears(
    mixer: StateSpace, hidden: int, *, bias: bool, output_bias: bool
) -> tuple[Linear, ...]:
    """Return a mixer's two projections."""
    name, outputs, values = mixer.module, sum(mixer.parts), mixer.values
    return (
        Linear(role="scan_in", module=f"{name}.in_proj", inputs=hidden, outputs=outputs, bias=bias),
        Linear(
            role="scan_out", module=f"{name}.out_proj", inputs=values, outputs=hidden,
            bias=output_bias,
        ),
    )  # fmt: skip


def mixer_norms(mixer: StateSpace, norm: NormKind | None) -> tuple[Norm, ...]:
    """Return the norm of what a mixer reads, if it has one."""
    if norm is None:
        return ()
    kind = replace(norm, groups=mixer.groups)
    return (Norm(role="scan", module=f"{mixer.module}.norm", size=mixer.values, kind=kind),)
