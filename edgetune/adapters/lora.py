"""LoRA and DoRA as PEFT writes them. What PEFT knows beyond is refused, never dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from edgetune.adapters import experts
from edgetune.adapters.base import ANYWHERE, AdapterFormat, unsupported
from edgetune.adapters.modules import adaptable, exact_names, loaded_name, peft_names
from edgetune.adapters.patterns import Pattern
from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.methods.base import Method
from edgetune.methods.dora import Dora
from edgetune.methods.lora import Lora, LowRank
from edgetune.methods.targets import Target
from edgetune.methods.whole_modules import EMBEDDINGS, HEAD, WORDS, words_of
from edgetune.model.config import Fields
from edgetune.model.weights import listing
from edgetune.shape import ModelShape

_KNOWN: Final = ANYWHERE | {
    "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
    # which modules are adapted, and which are trained whole: the tensors in the file say it
    "target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern",
    # how training began, how PEFT computes
    "eva_config", "fan_in_fan_out", "runtime_config", "megatron_config", "megatron_core",
    "qalora_group_size", "ensure_weight_tying", "modules_to_save",
}  # fmt: skip
_ALLOWED: Final[Mapping[str, tuple[object, ...]]] = {
    "task_type": ("CAUSAL_LM",),
    "bias": ("none",),
    # the other first values change the base weights as well
    "init_lora_weights": (True, "gaussian", "eva", "orthogonal"),
}
_TIES: Final = "embed_tokens"
"""Embeddings of this name PEFT keeps as one matrix with the head; others it has twice, as equals."""
_PARTS: Final = (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector")


class LoraFormat(AdapterFormat):
    """``lora_A`` (rank, inputs), ``lora_B`` (outputs, rank), of DoRA the magnitudes (outputs)."""

    def config(self, method: Method, shape: ModelShape) -> dict[str, Any]:
        """Return the fields of a ``LoraConfig``; those left out keep PEFT's defaults."""
        lora = cast("LowRank", method)
        targets = lora.select(shape)
        alpha = 2 * lora.rank if lora.alpha is None else lora.alpha
        ranks = {target.module: float(lora.rank_of(target)) for target in targets}
        alphas = {target.module: lora.alpha_of(target) for target in targets}
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": lora.rank,
            "lora_alpha": _number(alpha),
            **_written("rank_pattern", ranks, lora.rank, shape),
            **_written("alpha_pattern", alphas, alpha, shape),
            "lora_dropout": lora.dropout,
            "use_rslora": lora.rslora,
            "use_dora": lora.kind == "dora",
            "bias": "none",
            "fan_in_fan_out": any(x.linear.transposed for x in targets if not x.linear.experts),
            **_targeted(targets, shape),
            **_modules_to_save(lora, shape),
        }

    def stored_names(self, names: Collection[str], shape: ModelShape) -> dict[str, str]:
        """Return what the file calls each tensor."""
        modules = experts.wrapped(names, shape)
        return {x: self.stored_name(experts.renamed(x, modules), shape) for x in names}

    def own_names(
        self, stored: Collection[str], config: Mapping[str, object], shape: ModelShape
    ) -> dict[str, str]:
        """Return what a method calls each tensor of a file."""
        names = super().own_names(stored, config, shape)
        modules = experts.unwrapped(names.values(), config, shape)
        return {name: experts.renamed(own, modules) for name, own in names.items()}

    def copies(self, names: Collection[str], shape: ModelShape) -> dict[str, str]:
        """Return the head of a trained embedding that is the head too: PEFT writes both."""
        whole = shape.tied and shape.embedding_tensor in names
        return {f"{shape.head}.weight": shape.embedding_tensor} if whole else {}

    def method(
        self, config: Mapping[str, object], names: Collection[str], shape: ModelShape
    ) -> LowRank:
        """Return LoRA or DoRA on the modules whose tensors are there."""
        fields = Fields(config)
        rank, alpha = fields.size("r"), fields.number("lora_alpha", 8.0)
        dropout, rslora = fields.number("lora_dropout", 0.0), fields.flag("use_rslora", False)
        dora = fields.flag("use_dora", False)
        whole = {name: word for name, word in words_of(shape).items() if name in names}
        found = {_module(name) for name in names if name not in whole}
        known = [x for x in adaptable(shape, with_experts=True) if x in found]
        strange = _strange(found, known, shape)
        ranks, alphas = Pattern.of(config, "rank_pattern"), Pattern.of(config, "alpha_pattern")
        problems = [*fields.problems, *unsupported(config, _KNOWN, _ALLOWED), *strange]
        problems += [*ranks.problems, *alphas.problems]
        problems += experts.named_in_vain(config, known, shape)
        problems += _named_in_vain(config, whole, shape)
        problems += _apart(whole, fields.flag("ensure_weight_tying", False), shape)
        if problems:
            raise ModelError(f"This LoRA adapter cannot be used:\n  - {listing(problems)}")
        paths = {module: loaded_name(shape, module) for module in known}
        cls: type[LowRank] = Dora if dora else Lora
        return cls(
            rank=rank,
            alpha=alpha,
            dropout=dropout,
            targets=exact_names(shape, known),
            rslora=rslora,
            rank_pattern=_entries(ranks.each(paths, rank), rank, shape),
            alpha_pattern=_entries(alphas.each(paths, alpha), alpha, shape),
            modules_to_save=_words(whole, shape),
        )


def _targeted(targets: Sequence[Target], shape: ModelShape) -> dict[str, Any]:
    """Return PEFT's fields of what is adapted: modules, and parameters of experts."""
    modules = [target.module for target in targets if not target.linear.experts]
    of_experts = [target.module for target in targets if target.linear.experts]
    found: dict[str, Any] = {"target_modules": list(peft_names(shape, modules))}
    if of_experts:
        found["target_parameters"] = experts.parameters(of_experts, shape)
    return found


def _words(whole: Mapping[str, str], shape: ModelShape) -> tuple[str, ...]:
    """Return the words for the modules of a file; a tied head goes with its embedding."""
    found = set(whole.values()) - ({HEAD} if shape.tied else set())
    return tuple(word for word in WORDS if word in found)


def _modules_to_save(lora: LowRank, shape: ModelShape) -> dict[str, Any]:
    """Return PEFT's fields of the modules that are trained whole, by their full paths."""
    names = [tensor.name.rpartition(".")[0] for tensor in lora.module_tensors(shape)]
    if not names:
        return {}
    tied = shape.tied and EMBEDDINGS in lora.modules_to_save
    together = tied and shape.embedding.endswith(_TIES)
    if tied and not together:
        names.append(shape.head)
    paths = list(dict.fromkeys(loaded_name(shape, name) for name in names))
    return {"modules_to_save": paths, **({"ensure_weight_tying": True} if together else {})}


def _named_in_vain(
    config: Mapping[str, object], whole: Collection[str], shape: ModelShape
) -> Iterator[str]:
    """Name what ``modules_to_save`` selects and the file has no tensors of."""
    modules = [loaded_name(shape, name.rpartition(".")[0]) for name in whole]
    named = config.get("modules_to_save") or []
    for name in named if isinstance(named, list) else [named]:
        if not isinstance(name, str) or not any(module.endswith(name) for module in modules):
            yield f"modules_to_save is {short(named)}: {short(name)} is not in the file"


def _apart(whole: Mapping[str, str], ensured: bool, shape: ModelShape) -> Iterator[str]:
    """Say where embedding and head are one matrix, and one of them was trained without the other."""
    found = {word: name for name, word in whole.items() if word in {EMBEDDINGS, HEAD}}
    together = len(found) == 2 or (EMBEDDINGS in found and ensured)
    if shape.tied and found and not together:
        yield (
            f"{', '.join(found.values())}: embedding and head of this {shape.family} model are one "
            "matrix, and were trained apart; PEFT keeps them together with ensure_weight_tying=True"
        )


def _written(
    name: str, values: Mapping[str, float], usual: float, shape: ModelShape
) -> dict[str, dict[str, float]]:
    """Return PEFT's field for values that are not the usual ones, nothing if there are none."""
    named = {loaded_name(shape, key): value for key, value in _named(values, usual, shape)}
    return {name: named} if named else {}


def _entries(values: Mapping[str, float], usual: float, shape: ModelShape) -> tuple[str, ...]:
    """Return the same as settings of a method."""
    return tuple(f"{name}={value!r}" for name, value in _named(values, usual, shape))


def _named(
    values: Mapping[str, float], usual: float, shape: ModelShape
) -> Iterator[tuple[str, float]]:
    """Yield the shortest exact names of the modules whose value is not the usual one."""
    for value in dict.fromkeys(values.values()):
        if value != usual:
            modules = [module for module, own in values.items() if own == value]
            for name in exact_names(shape, modules):
                yield name, _number(value)


def _number(value: float) -> float:
    """Return a whole number as one."""
    return int(value) if value == int(value) else value


def _module(name: str) -> str:
    for part in _PARTS:
        name = name.removesuffix(part)
    return name


def _strange(found: set[str], known: Collection[str], shape: ModelShape) -> Iterator[str]:
    if not known:
        yield f"none of its modules is a projection in a block of this {shape.family} model"
        return
    for module in sorted(found.difference(known)):
        yield f"{module}: not a projection in a block of this {shape.family} model"
