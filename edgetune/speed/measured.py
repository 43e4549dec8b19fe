"""What was measured of a device, kept for later plans by device, versions and settings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgetune.device.base import PACKAGES
from edgetune.files import load_json
from edgetune.owned import replacing_shared
from edgetune.world import MLX_HOSTS, MLX_RANK

FILE_NAME = "measurements.json"
_LARGEST = 16 << 20
"""Bytes of it."""

SETTINGS = ("OMP_NUM_THREADS", "MKL_", "ONEDNN_", "DNNL_", "BITSANDBYTES_", "CUBLAS_", "MLX_")
"""Beginnings of the names of environment variables by which users change how fast it computes."""
OURS = frozenset({"ONEDNN_PRIMITIVE_CACHE_CAPACITY", MLX_RANK, MLX_HOSTS})
"""Those that a backend sets itself, whatever users say, and those that only say where a rank is."""

_FAILURE = "failure"
"""In the place of rates, why there are none."""

COUNTING = 3
"""What is counted of a step, as a number that changes with it: factors on other counts mean nothing."""

MOST_EXPERIENCE = 64
"""Experiences that are kept beside the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experience:
    """What steps took, as a share of the seconds that the rates predict for them."""

    way: str
    """How they computed: see :func:`way`."""
    hidden_size: int
    share: float
    method: str | None = None
    """Their method; None for what was measured when the rates were, and holds for all."""

    @property
    def key(self) -> tuple[str, int, str | None]:
        """What a newer experience replaces."""
        return self.way, self.hidden_size, self.method


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Rates of one device as its backend reaches them; 0 where a thing does not exist there.

    ``versions`` are those of the backend's libraries: after an update the figures are stale.
    """

    device: str
    versions: str
    product_32bit: float
    """FLOP/s of float32 matrix products."""
    product_16bit: float
    """FLOP/s of bfloat16 matrix products as the engine does them."""
    attention_32bit: float
    """FLOP/s of causal attention in float32, both passes, what is masked not counted."""
    attention_16bit: float
    """The same in bfloat16."""
    pointwise: float
    """Bytes/s that element-by-element work reads and writes."""
    convert: float
    """Weights/s widened from 16 to 32 bit."""
    dequantize: float
    """Weights/s turned from the smallest format of the backend into numbers."""
    optimizer: float
    """Parameters/s that AdamW updates."""
    link_bandwidth: float
    """Bytes/s from the host to the device; 0 where they share one memory."""
    settings: str = ""
    """What the user set of the libraries, such as their number of threads: it changes the rates."""
    disk_bandwidth: float = 0.0
    """Bytes/s of sequential reads."""
    operation: float = 0.0
    """Seconds that an operation takes besides its work."""
    opening: float = 0.0
    """Seconds until a process can open a model."""
    block: Mapping[str, float] = field(default_factory=dict)
    """Measured over predicted seconds of a block's work besides products, by :func:`way`."""
    head: Mapping[str, float] = field(default_factory=dict)
    """The same for the loss."""
    experience: tuple[Experience, ...] = ()
    """What steps took of the seconds predicted, the newest last."""
    counting: int = COUNTING
    """The counts that the factors are on: see :data:`COUNTING`."""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Measurements:
        """Return measurements from plain values, as JSON has them.

        Raises:
            TypeError: if they are not those of a measurement.
        """
        told = tuple(Experience(**each) for each in plain.get("experience", ()))
        return cls(**{**plain, "experience": told})

    def with_experience(self, new: Experience) -> Measurements:
        """Return them with one more experience, in place of an older one of the same kind."""
        others = [each for each in self.experience if each.key != new.key]
        return replace(self, experience=(*others[-MOST_EXPERIENCE:], new))


def way(quantization: str, compute_dtype: str) -> str:
    """Return the name of a way to compute: how weights are stored and products are done."""
    return f"{quantization}/{compute_dtype}"


def versions_of(backend: str) -> str:
    """Return the versions of a backend's libraries that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in PACKAGES[backend]:
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    return ", ".join(found)


def settings_of(environment: Mapping[str, str] = os.environ) -> str:
    """Return what of this process's surroundings changes how fast the libraries compute."""
    given = [
        f"{name}={environment[name]}"
        for name in sorted(environment)
        if name.startswith(SETTINGS) and name not in OURS
    ]
    return ", ".join([f"{_cores()} cores", *given])


def _cores() -> int:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_file() -> Path:
    """Return where measurements are kept: ``EDGETUNE_CACHE``, else the user's cache folder."""
    if chosen := os.environ.get("EDGETUNE_CACHE"):
        return Path(chosen) / FILE_NAME
    if override := os.environ.get("XDG_CACHE_HOME"):
        return Path(override) / "edgetune" / FILE_NAME
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "edgetune" / FILE_NAME
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "edgetune" / FILE_NAME
    return Path.home() / ".cache" / "edgetune" / FILE_NAME


def load_measurements(device: str, versions: str, file: Path | None = None) -> Measurements | None:
    """Return what was measured on a device with these versions and today's settings, or None."""
    wanted = device, versions, settings_of()
    for plain in _read(file or cache_file()):
        if plain.get("counting") != COUNTING:
            continue
        try:
            found = Measurements.of(plain)
        except TypeError:
            continue  # written by another version of edgetune, as those that count otherwise
        if (found.device, found.versions, found.settings) == wanted:
            return found
    return None


def save_measurements(found: Measurements, file: Path | None = None) -> Path:
    """Keep measurements in place of older ones of the same device and settings; return the file.

    Raises:
        OSError: if the file cannot be written.
    """
    return _kept(asdict(found), file or cache_file())


def load_failure(device: str, versions: str) -> str | None:
    """Return why a device could not be measured with these versions and today's settings, if so."""
    wanted = {"device": device, "versions": versions, "settings": settings_of()}
    for plain in _read(cache_file()):
        if wanted.items() <= plain.items() and isinstance(plain.get(_FAILURE), str):
            return str(plain[_FAILURE])
    return None


def save_failure(device: str, versions: str, because: str) -> None:
    """Keep why a device could not be measured, until it is.

    Raises:
        OSError: if the file cannot be written.
    """
    place = {"device": device, "versions": versions, "settings": settings_of()}
    _kept({**place, _FAILURE: because}, cache_file())


def _kept(plain: Mapping[str, Any], file: Path) -> Path:
    """Write an entry in place of older ones of the same device, library and settings."""
    others = [other for other in _read(file) if _place(other) != _place(plain)]
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing_shared(file) as partial:
        partial.write_text(json.dumps([*others, plain], indent=2), "utf-8")
    return file


def _place(plain: Mapping[str, Any]) -> tuple[object, ...]:
    """Return what a newer measurement replaces: device, library and settings, not its version."""
    library = str(plain.get("versions")).partition(" ")[0]
    return plain.get("device"), library, plain.get("settings")


def _read(file: Path) -> list[dict[str, Any]]:
    try:
        content = load_json(file, _LARGEST)
    except (OSError, ValueError):
        return []
    return [item for item in content if isinstance(item, dict)] if isinstance(content, list) else []
