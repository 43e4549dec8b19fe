"""A hub on this machine with one model, an empty cache, and nobody logged in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hubs import STRANGE, HubState, files_of, serving
from model_folders import write_folder
from rows import Cli

HIDDEN = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
          "HF_TOKEN_PATH", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, an empty folder, and nobody logged in."""
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.fixture
def state(tmp_path: Path) -> HubState:
    """A hub with a model in three shards, and with much that nobody wants."""
    files = files_of(write_folder(tmp_path / "published", shards=3))
    texts = {"tokenizer.json": b'{"version": "1.0"}', "LICENSE": b"Apache License"}
    return HubState(files={**files, **texts, **STRANGE})


@pytest.fixture
def endpoint(state: HubState, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where that hub is; it is the one that the environment names."""
    with serving(state) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield address


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line."""
    return Cli(capsys)
