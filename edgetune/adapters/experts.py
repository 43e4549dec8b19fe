"""Updates of experts as PEFT has them: its ``target_parameters``.

PEFT wraps the module that holds a parameter, and wraps the wrapper for a second one. So the tensors
of what ``down_proj`` adds are the module's own, and those of ``gate_up_proj``, or of ``up_proj``
where there is no gate, are behind its ``base_layer``; where one of both is adapted alone, its
tensors are the module's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from edgetune.adapters.modules import loaded_name
from edgetune.escapes import short
from edgetune.shape import Experts, ModelShape

_INNER: Final = ".base_layer"


def _parts(rule: Experts) -> tuple[str, str]:
    """Return the experts' parameters, that which is wrapped first first."""
    return f"{rule.first_stack}_proj", "down_proj"


def _layers(shape: ModelShape) -> Iterator[tuple[str, Experts]]:
    """Yield the module that has the experts' parameters, of each block that has such."""
    for layer, block in enumerate(shape.blocks):
        if block.experts is not None:
            yield f"{shape.block(layer)}{block.experts.stack}", block.experts


def wrapped(names: Collection[str], shape: ModelShape) -> dict[str, str]:
    """Return what PEFT calls the modules of updates of experts that tensors are named after."""
    found = {}
    for stack, rule in _layers(shape):
        parts = _parts(rule)
        first, last = (any(name.startswith(f"{stack}.{part}.") for name in names) for part in parts)
        if first:
            found[f"{stack}.{parts[0]}"] = f"{stack}{_INNER}" if last else stack
        if last:
            found[f"{stack}.{parts[1]}"] = stack
    return found


def unwrapped(
    names: Collection[str], config: Mapping[str, object], shape: ModelShape
) -> dict[str, str]:
    """Return our names of the modules that PEFT's tensors of experts' updates are named after."""
    found: dict[str, str] = {}
    for stack, rule in _layers(shape):
        first, last = (f"{stack}.{part}" for part in _parts(rule))
        inner = any(name.startswith(f"{stack}{_INNER}.lora_") for name in names)
        if inner:
            found |= {f"{stack}{_INNER}": first, stack: last}
        elif any(name.startswith(f"{stack}.lora_") for name in names):
            named = [module for module in (first, last) if _named(module, config, shape)]
            found |= {stack: named[0]} if named else {}
    return found


def named_in_vain(
    config: Mapping[str, object], modules: Collection[str], shape: ModelShape
) -> Iterator[str]:
    """Name what ``target_parameters`` selects and no module of a file is."""
    named = config.get("target_parameters") or []
    paths = [f".{loaded_name(shape, module)}" for module in modules]
    for name in named if isinstance(named, list) else [named]:
        if not any(path.endswith(f".{name}") for path in paths):
            yield f"target_parameters is {short(named)}: {short(name)} is not in the file"


def _named(module: str, config: Mapping[str, object], shape: ModelShape) -> bool:
    """Return whether a config's ``target_parameters`` select a parameter."""
    targets = config.get("target_parameters")
    path = f".{loaded_name(shape, module)}"
    return isinstance(targets, list) and any(path.endswith(f".{target}") for target in targets)


def renamed(name: str, modules: Mapping[str, str]) -> str:
    """Return a tensor's name with its module's other name."""
    module, mark, part = name.partition(".lora_")
    return f"{modules.get(module, module)}{mark}{part}"


def parameters(modules: Collection[str], shape: ModelShape) -> list[str]:
    """Return names that make PEFT select the parameters of these modules: paths where some are not."""
    short: dict[str, list[str]] = {}
    for stack, rule in _layers(shape):
        for part in _parts(rule):
            short.setdefault(f"{rule.stack}.{part}", []).append(f"{stack}.{part}")
    found = []
    for name, members in short.items():
        own = [module for module in members if module in modules]
        everywhere = len(own) == len(members) and shape.inside is None
        found += [name] if everywhere else [loaded_name(shape, module) for module in own]
    return found
