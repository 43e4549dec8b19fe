"""Settings that were named and that nothing in the run would read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, Final

from edgetune.errors import UsageError
from edgetune.methods import METHODS, known_settings
from edgetune.methods.whole_modules import EMBEDDINGS, HEAD
from edgetune.planning.problem import METHOD
from edgetune.settings.spec import Training

INSTEAD: Final[Mapping[str, tuple[str, Any]]] = {
    "bottleneck": ("reduction", None),
    "reduction": ("bottleneck", None),
    "validation": ("validation_data", None),
    "validation_data": ("validation", Training().validation),
}
"""What takes the place of another setting, and the value that the other one has then."""


def refuse_unread(named: Set[str], choice: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Refuse settings among ``named`` that nothing reads beside the others.

    Raises:
        UsageError: naming all of them.
    """
    if problems := [*_of_method(named, choice, training), *_of_training(named, training)]:
        raise UsageError(" ".join(problems))


def refuse_unevaluated(named: Set[str], training: Mapping[str, Any], validation: int) -> None:
    """Refuse steps between evaluations of no rows.

    Raises:
        UsageError: if ``eval_every`` is among ``named``, and there are no ``validation`` rows.
    """
    if "eval_every" in named and not validation:
        raise UsageError(
            f"--eval-every {training['eval_every']} needs validation rows, and there are none. Keep "
            "some with --validation or --validation-data, or leave it out (the steps between "
            "checkpoints are --save-every)."
        )


def _of_method(
    named: Set[str], choice: Mapping[str, Any], training: Mapping[str, Any]
) -> Iterator[str]:
    searched = training.get("search") == "method"
    kinds = Training(**training).search_methods if searched else [choice.get("method", METHOD)]
    known = {name for kind in kinds if kind in METHODS for name in known_settings(kind)}
    if "bottleneck" in named and "reduction" in named and "reduction" in known:
        yield "--bottleneck and --reduction both say how wide an adapter is. Give one of them."
    if "prefix_hidden" in named & known and not choice.get("reparameterize"):
        yield (
            "--prefix-hidden is the width of the network that --reparameterize trains prefixes "
            "through. Give that, too, or leave it out."
        )
    if "modules_rate" in named & known and not {EMBEDDINGS, HEAD} & {
        *choice.get("modules_to_save", ())
    }:
        yield (
            "--modules-rate is the rate of embeddings and heads that are trained. Name them with "
            "--modules-to-save, or leave it out."
        )


def _of_training(named: Set[str], training: Mapping[str, Any]) -> Iterator[str]:
    for name in ("search_methods", "search_size"):
        if name in named and training.get("search") != "method":
            flag = name.replace("_", "-")
            yield f"--{flag} is about the methods that --search method races. Give that, too, or leave it out."
    if "validation" in named and "validation_data" in named and training["validation"]:
        yield (
            "--validation holds out a share of the rows, and --validation-data gives rows to "
            "evaluate with instead. Give one of them."
        )
