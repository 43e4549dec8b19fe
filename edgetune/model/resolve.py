"""From what the user calls a model to what is known of it: folder, file, hub id or profile name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgetune.errors import ModelError
from edgetune.escapes import short
from edgetune.model.families import shape_of
from edgetune.model.gguf_stores import STORES, file_of, only_file
from edgetune.model.hub import cache_entry, cached_snapshot, is_hub_id
from edgetune.model.local import LocalModel, read_config
from edgetune.model.near_names import Meant, meant, proposed
from edgetune.model.weights import has_weights
from edgetune.profile import ModelProfile, hub_ids, model_names, model_profile, proposal
from edgetune.shape import ModelShape
from edgetune.tensors.gguf.parts import first_part
from edgetune.tensors.gguf.reader import is_gguf


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model that is known, whether or not its weights are here."""

    ref: str
    shape: ModelShape
    folder: Path | None = None
    """The model's files, or its GGUF file; ``None`` when only its profile is known."""
    profile: str | None = None
    hub_id: str | None = None
    in_store: bool = False
    """Whether another tool's store has it by the name ``ref``."""
    taken_as: str | None = None
    """What was made of a name that is no model's own, in words for the user."""

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return self.shape.parameters


def resolve(ref: str) -> ModelSource:
    """Return what is known of a model.

    A name is that of a folder, of a GGUF file, of a profile or of a model on the hub, in that
    order; ``ollama:`` and ``lmstudio:`` are what other tools have here. A name that can only mean
    one known model is taken as that, which ``taken_as`` says.

    Nothing is downloaded, and weights are not needed.

    Raises:
        ModelError: if the model is unknown, not here, or of an unsupported type.
    """
    if not ref.strip():
        raise ModelError(
            "The model has no name. Give a folder, a hub id or a profile: --model tiny."
        )
    if ref.startswith(STORES):
        file = first_part(file_of(ref))
        return ModelSource(ref=ref, shape=_shape(file), folder=file, in_store=True)
    path, found = _looked_at(ref)
    if found is not None:
        return ModelSource(ref=ref, shape=_shape(found), folder=found)
    if ref.lower() in model_names():
        return _from_profile(ref, model_profile(ref))
    if is_hub_id(ref) and (folder := cached_snapshot(ref)):
        return ModelSource(ref=ref, shape=_shape(folder), folder=folder, hub_id=ref)
    if path.suffix == ".gguf" and not path.exists():
        raise ModelError(f"There is no file {ref}.")
    if path.exists():
        raise ModelError(_not_a_model(ref, path))
    if is_hub_id(ref) and (name := _profile_of(ref)):
        return _from_profile(ref, model_profile(name))
    if found_name := meant(ref):
        return _from_meant(ref, found_name)
    raise ModelError(_unknown(ref, path))


def open_model(ref: str) -> LocalModel:
    """Return the model with its tensors, checked.

    Raises:
        ModelError: as :func:`resolve`, or if the weights are not here or are damaged.
    """
    source = resolve(ref)
    if source.ref != ref:  # what was only taken as another is not opened in its place
        raise ModelError(f"There is no model {short(ref)} here. Nearest: {source.ref}.")
    incomplete = source.folder is None or not (
        source.folder.is_file() or has_weights(source.folder)
    )
    if incomplete and source.hub_id is not None:
        raise ModelError(_not_here(source.hub_id, ref))
    if source.folder is None:
        raise ModelError(f"The weights of {ref} are not here. Give its folder: --model FOLDER.")
    return LocalModel.open(source.folder, ref=ref)


def _looked_at(ref: str) -> tuple[Path, Path | None]:
    """Return a name as a path, and the model's folder or GGUF file there, if there is one."""
    try:
        path = Path(ref).expanduser()
        if (path / "config.json").is_file():
            return path, path
        if path.is_file() and is_gguf(path):
            return path, first_part(path)
        return path, only_file(path) if path.is_dir() else None
    except (OSError, RuntimeError, ValueError) as error:  # no such home, too long, not allowed
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{short(ref)} cannot be looked at: {reason}.") from error


def _shape(folder: Path) -> ModelShape:
    """Return the shape of a model's folder: its tensors say more than its config, if it has any."""
    if folder.is_file() or has_weights(folder):
        return LocalModel.open(folder).shape
    return shape_of(read_config(folder))


def _from_profile(ref: str, profile: ModelProfile) -> ModelSource:
    folder = profile.folder or (profile.hub_id and cached_snapshot(profile.hub_id)) or None
    return ModelSource(
        ref=ref,
        shape=shape_of(profile.config) if folder is None else _shape(folder),
        folder=folder,
        profile=profile.name,
        hub_id=profile.hub_id,
    )


def _from_meant(ref: str, found: Meant) -> ModelSource:
    """Return the model that a name means: a known one, or another's copy of it."""
    known = _from_profile(found.profile, model_profile(found.profile))
    if not found.copy:
        return replace(known, taken_as=f"{ref} is taken as {found.profile} ({known.hub_id})")
    return replace(
        known,
        ref=ref,
        folder=None,
        hub_id=ref,
        taken_as=f"{ref} is planned by the shape of {found.profile}",
    )


def _profile_of(hub_id: str) -> str | None:
    wanted = hub_id.lower()
    return next((name for name, known in hub_ids().items() if known.lower() == wanted), None)


def _unknown(ref: str, path: Path) -> str:
    if not is_hub_id(ref) and (path.name != ref or "\\" in ref):
        return _not_a_model(ref, path)
    near = proposed(ref)
    if "/" in ref:
        return _not_here(ref) + (f" Known models like it: {', '.join(near)}." if near else "")
    return f"There is no model {short(ref)}. {proposal('models', near)}"


def _not_here(hub_id: str, ref: str | None = None) -> str:
    named = hub_id if ref in {None, hub_id} else f"{ref} ({hub_id})"
    return (
        f"The files of {named} are not on this machine: looked in {cache_entry(hub_id)}. "
        f"Get them with `edgetune fetch {hub_id}`, or give its folder: --model FOLDER."
    )


def _not_a_model(ref: str, path: Path) -> str:
    if path.is_file():
        return (
            f"{ref} is a file, and no GGUF file. Give one, or the folder with config.json and the "
            "safetensors files."
        )
    if path.is_dir():
        read_config(path)
    return f"There is no folder {ref}, and it is not the id of a model on the hub."
