"""Profiles: what is published about models and devices, as data files.

One YAML file a profile, named after it, in the package ``edgetune_profiles``; one that is ``like``
another says only what differs. Only the profile that is asked for is parsed, so that planning for a machine that is not here answers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal

from edgetune.errors import EdgetuneError, ModelError, UsageError
from edgetune.escapes import short

Kind = Literal["models", "devices"]

_ERRORS: Final[Mapping[str, type[EdgetuneError]]] = {"models": ModelError, "devices": UsageError}
_LISTED: Final = {"models": "edgetune models", "devices": "edgetune devices --all"}
_HUB_ID: Final = re.compile(r"^hub_id: (\S+)$", re.MULTILINE)

MOST_PROPOSED: Final = 5
"""Names that a message offers for one that is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What is published about one model."""

    name: str
    hub_id: str | None
    """``organisation/name`` on the Hugging Face hub; ``None`` for the built-in model."""
    config: Mapping[str, object]
    """The fields of the published ``config.json`` that decide the shape."""
    parameters: int
    """Published number of parameters of the language model, tied ones counted once."""
    source: str
    note: str = ""
    """What else must be known to read the count."""
    folder: Path | None = None
    """Where the weights lie when they come with the package."""


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """Return the names of all profiles of a kind, sorted."""
    return tuple(sorted(file.stem for file in _package(kind).glob("*.yaml")))


def read_yaml(kind: Kind, name: str) -> dict[str, object]:
    """Return the content of one profile.

    Raises:
        ModelError: if there is no model profile of that name.
        UsageError: if there is no device profile of that name.
    """
    name = named(kind, name)
    content = _parse(_text(kind, name))
    if not isinstance(content, dict):
        raise _ERRORS[kind](f"The profile {kind}/{name}.yaml is not a mapping of names to values.")
    return content


def named(kind: Kind, name: str) -> str:
    """Return the name of a profile as it is listed, however its letters were written.

    Raises:
        ModelError: if there is no model profile of that name.
        UsageError: if there is no device profile of that name.
    """
    if name.lower() not in names(kind):
        raise _ERRORS[kind](unknown(kind, name))
    return name.lower()


def unknown(kind: Kind, name: str) -> str:
    """Return the text that says a profile is unknown, with the nearest names."""
    from difflib import get_close_matches

    singular = kind.removesuffix("s")
    near = get_close_matches(name.lower(), names(kind), n=MOST_PROPOSED, cutoff=0.5)
    return f"There is no {singular} profile {short(name)}. {proposal(kind, near)}"


def proposal(kind: Kind, near: Sequence[str]) -> str:
    """Return the sentences that offer a few names, and where all are listed."""
    listed = f"`{_LISTED[kind]}` lists all that are known."
    return f"Nearest: {', '.join(near)}. {listed}" if near else listed


def model_names() -> tuple[str, ...]:
    """Return the names of all model profiles, sorted."""
    return names("models")


@cache
def hub_ids() -> Mapping[str, str]:
    """Return the hub's ids of the models that profiles know, by profile."""
    texts = {name: _text("models", name) for name in model_names()}
    return {name: found[1] for name, text in texts.items() if (found := _HUB_ID.search(text))}


@cache
def usual_models() -> Mapping[str, str]:
    """Return the profiles that names of families without a size stand for."""
    content = _parse((_package("usual_models.yaml")).read_text(encoding="utf-8"))
    return {str(name): str(known) for name, known in dict(content).items()}  # type: ignore[call-overload]


def model_profile(name: str) -> ModelProfile:
    """Return the profile of one model.

    Raises:
        ModelError: if there is no such profile, or its file is damaged.
    """
    name = named("models", name)
    content = _complete(read_yaml("models", name))
    folder = _package(str(content["folder"])) if "folder" in content else None
    config = content.get("config") if folder is None else _read_config(folder)
    parameters = content.get("parameters")
    if not isinstance(config, dict) or not isinstance(parameters, int):
        raise ModelError(f"The profile models/{name}.yaml must hold `config` and `parameters`.")
    hub_id = content.get("hub_id")
    return ModelProfile(
        name=name,
        hub_id=None if hub_id is None else str(hub_id),
        config=config,
        parameters=parameters,
        source=str(content.get("source", "")),
        note=str(content.get("note", "")),
        folder=folder,
    )


def _complete(content: Mapping[str, object]) -> Mapping[str, object]:
    """Return a profile with what it shares with the one that it is ``like``."""
    if "like" not in content:
        return content
    other = read_yaml("models", str(content["like"]))
    return {**other, **content, "config": {**_table(other), **_table(content)}}


def _table(content: Mapping[str, object]) -> Mapping[str, object]:
    config = content.get("config", {})
    return config if isinstance(config, dict) else {}


def _text(kind: Kind, name: str) -> str:
    return (_package(kind) / f"{name}.yaml").read_text(encoding="utf-8")


def _package(inside: str) -> Path:
    return Path(str(files("edgetune_profiles"))) / inside


def _read_config(folder: Path) -> object:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"The built-in model is damaged: {error}. Reinstall edgetune.") from error


def _parse(text: str) -> object:
    # yaml costs 20 ms to import: only those who read a profile pay it.
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, Loader=loader)
