"""What a hub refuses or is not asked, each in a sentence; the token goes to the hub alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hubs import COMMIT, MODEL, HubState, serving, taken
from rows import Cli

from edgetune.errors import ModelError, UsageError
from edgetune.hub import hub_of
from edgetune.hub.client import Hub
from edgetune.hub.listing import LARGEST
from edgetune.workflows.fetching import offer


def test_an_unsupported_model_is_refused_before_anything_is_fetched(
    cli: Cli, endpoint: str, state: HubState, cache: Path
) -> None:
    state.files["config.json"] = b'{"model_type": "whisper"}'

    called = taken(cli)

    assert called.code == 5
    assert "whisper" in called.err
    assert not cache.exists()


def test_the_token_goes_to_the_hub_and_nowhere_else(
    cli: Cli, endpoint: str, state: HubState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.token, state.gated = "hf_secret", "auto"
    store = HubState(files=state.files)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(store) as elsewhere:
        state.cdn = elsewhere
        called = taken(cli)

    assert called.code == 0, called.err
    assert "gated: its owner's terms hold" in called.err
    assert store.requests
    assert all("Authorization" not in headers for *_, headers in store.requests)
    assert all(h.get("Authorization") == "Bearer hf_secret" for *_, h in state.requests)
    assert "hf_secret" not in called.out + called.err


def test_the_token_is_looked_for_where_the_tools_keep_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_kept\n")
    kept = {"HF_TOKEN_PATH": str(tmp_path / "token")}

    assert hub_of(None, kept).token == "hf_kept"
    assert hub_of(None, {"HF_HOME": str(tmp_path)}).token == "hf_kept"
    assert hub_of(None, {**kept, "HF_TOKEN": "hf_given"}).token == "hf_given"
    assert hub_of(None, {"HF_HOME": "/nowhere"}).token is None
    assert "hf_kept" not in repr(hub_of(None, kept))


@pytest.mark.parametrize(
    ("environment", "endpoint", "said"),
    [
        ({"HF_HUB_OFFLINE": "1"}, None, "HF_HUB_OFFLINE is set"),
        ({"TRANSFORMERS_OFFLINE": "yes"}, None, "TRANSFORMERS_OFFLINE is set"),
        ({}, "huggingface.co", "not the address of a hub"),
        ({}, "file:///etc", "not the address of a hub"),
        ({"HF_TOKEN": "hf_x"}, "http://hub.example", "would be readable on the way"),
    ],
)
def test_hubs_that_are_not_asked(
    environment: dict[str, str], endpoint: str | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        hub_of(endpoint, environment)


def test_the_public_hub_is_asked_where_none_is_named() -> None:
    assert hub_of(None, {}) == Hub(endpoint="https://huggingface.co")
    assert hub_of(None, {"HF_ENDPOINT": "https://mirror.example/"}).endpoint == (
        "https://mirror.example"
    )
    assert hub_of("https://own.example", {"HF_ENDPOINT": "https://mirror.example"}).endpoint == (
        "https://own.example"
    )


@pytest.mark.parametrize(
    ("answer", "said", "code"),
    [
        ((401, {"X-Error-Code": "RepoNotFound"}), "has no model org/model, or it is private", 5),
        ((401, {"X-Error-Code": "GatedRepo"}), "is gated: accept its terms on http", 5),
        ((403, {"X-Error-Code": "GatedRepo"}), "is gated: accept its terms on http", 5),
        ((403, {}), "does not give org/model without a token", 5),
        ((404, {"X-Error-Code": "RevisionNotFound"}), "has no revision main", 5),
        ((404, {}), "has no model org/model", 5),
        ((407, {}), "The proxy asks for a name and a password", 5),
        ((429, {"Retry-After": "17"}), "Try again in 17 seconds. With a token (HF_TOKEN)", 5),
        ((429, {}), "Try again in some minutes", 5),
        ((500, {}), "answers 500. Try again later", 5),
        ((418, {}), "answers 418", 5),
    ],
)
def test_every_refusal_is_a_sentence(
    cli: Cli, endpoint: str, state: HubState, answer: tuple[int, dict[str, str]], said: str,
    code: int,
) -> None:  # fmt: skip
    state.errors = [answer]

    called = taken(cli)

    assert called.code == code
    assert said in called.err
    assert called.err.startswith("Error: ")
    assert called.err.count("\n") == 1


def test_a_token_without_access_is_named_and_not_shown(
    cli: Cli, endpoint: str, state: HubState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    state.token, state.gated = "hf_secret", "manual"

    called = taken(cli)

    assert "is gated, and your token (HF_TOKEN) has no access" in called.err
    assert "hf_other" not in called.err
    state.gated = False
    assert "has no model org/model for your token (HF_TOKEN)" in taken(cli).err


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["config.json", "pytorch_model.bin"], "only as pickles"),
        (["model-q4.gguf"], "has GGUF files and no safetensors"),
        (["adapter_config.json", "adapter_model.safetensors"], "holds an adapter"),
        (["config.json", "model-00001-of-00002.safetensors"], "no model that can be tuned"),
        (["README.md"], "no model that can be tuned"),
    ],
)
def test_models_without_usable_weights(
    endpoint: str, state: HubState, files: list[str], said: str
) -> None:
    state.files = dict.fromkeys(files, b"{}")

    with pytest.raises(ModelError, match=said):
        offer(MODEL)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in to the network</html>",
        b"[]",
        b'{"siblings": []}',
        b'{"siblings": [], "sha": "../../etc"}',
        b"{" + b" " * LARGEST,
        json.dumps({"sha": COMMIT, "siblings": [
            {"rfilename": "config.json", "size": 2, "blobId": "../../../etc/passwd"},
            {"rfilename": "model.safetensors", "size": 2, "blobId": "0" * 40}]}).encode(),
        json.dumps({"sha": COMMIT, "siblings": [
            {"rfilename": "config.json", "size": -2, "blobId": "0" * 40},
            {"rfilename": "model.safetensors", "size": 2, "blobId": "0" * 40}]}).encode(),
    ],
    ids=["html", "list", "no revision", "odd revision", "huge", "odd digest", "odd size"],
)  # fmt: skip
def test_what_is_no_hub(cli: Cli, endpoint: str, state: HubState, cache: Path, body: bytes) -> None:
    state.description = body

    called = taken(cli)

    assert called.code == 5
    assert "Traceback" not in called.err
    assert f"{endpoint} does not answer as a hub of models does" in called.err or (
        "no model that can be tuned" in called.err
    )
    assert not cache.exists()


def test_names_that_leave_the_folder_are_not_wanted(endpoint: str, state: HubState) -> None:
    odd = ("../config.json", "sub/model.safetensors", "/etc/passwd", "model-1-of-2.safetensors/x")
    state.files.update(dict.fromkeys(odd, b"x"))

    assert not {file.name for file in offer(MODEL).listing.files} & set(odd)


@pytest.mark.parametrize(
    ("ref", "code", "said"),
    [
        ("tiny", 2, "comes with edgetune: --model tiny needs no fetching"),
        ("ollama:llama3", 2, "`ollama pull llama3`"),
        ("nothing-like-it", 5, "`edgetune models` lists all"),
        ("lama-7b", 5, "Nearest: llama-7b"),
        ("./folder", 5, "is not the name of a model on a hub"),
        ("a/b/c", 5, "is not the name of a model on a hub"),
        ("", 2, "REF is empty"),
    ],
)
def test_what_is_no_model_of_a_hub(cli: Cli, ref: str, code: int, said: str) -> None:
    called = cli("fetch", ref, "--yes")

    assert called.code == code
    assert said in called.err
