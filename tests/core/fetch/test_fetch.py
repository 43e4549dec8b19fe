"""``edgetune fetch`` against a hub on this machine: what comes is whole and checked, or it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hubs import COMMIT, MODEL, STRANGE, HubState, files_of, taken
from model_folders import TINY
from rows import Cli

from edgetune.errors import UsageError
from edgetune.hub import download, hub_of, list_model
from edgetune.model import open_model, resolve


def test_what_is_fetched_is_what_was_published(
    cli: Cli, endpoint: str, state: HubState, cache: Path
) -> None:
    called = taken(cli)

    assert called.code == 0, called.err
    folder = cache / "models--org--model" / "snapshots" / COMMIT
    wanted = {name: data for name, data in state.files.items() if name not in STRANGE}
    assert files_of(folder) == wanted
    assert resolve(MODEL).folder == folder
    assert open_model(MODEL).shape.parameters == resolve(MODEL).parameters
    assert (folder.parents[1] / "refs" / "main").read_text() == COMMIT
    assert {path.name for path in (folder.parents[1] / "blobs").iterdir()} == {
        state.digest(name) for name in wanted
    }
    assert (folder / "config.json").readlink() == Path("../../blobs") / state.digest("config.json")


def test_shards_and_processors_of_qwen3_5_are_fetched(
    cli: Cli, endpoint: str, state: HubState, cache: Path
) -> None:
    def renamed(data: bytes) -> bytes:
        return data.replace(b'"model-', b'"model.safetensors-')

    state.files = {
        name.replace("model-", "model.safetensors-"): renamed(data) if "index" in name else data
        for name, data in state.files.items()
    }
    processors = {"preprocessor_config.json", "video_preprocessor_config.json",
                  "processor_config.json"}  # fmt: skip
    state.files |= dict.fromkeys(processors, b"{}")
    called = taken(cli)

    assert called.code == 0, called.err
    found = files_of(cache / "models--org--model" / "snapshots" / COMMIT).keys()
    assert found == state.files.keys() - STRANGE.keys()
    assert {
        f"model.safetensors-0000{n}-of-00003.safetensors" for n in (1, 2, 3)
    } | processors < found
    assert open_model(MODEL).shape.parameters == resolve(MODEL).parameters


def test_size_licence_and_place_are_said_before(cli: Cli, endpoint: str, cache: Path) -> None:
    called = cli("fetch", MODEL, "--dry-run")

    assert called.code == 0
    assert f"{MODEL}, 1.18 k parameters, revision main (0123456789ab)" in called.err
    assert f"From {endpoint}, licence: apache-2.0\n" in called.err
    assert "of weights in 3 files" in called.err
    assert str(cache) in called.err
    assert not cache.exists()


def test_nothing_is_fetched_where_nobody_can_be_asked(
    cli: Cli, endpoint: str, cache: Path, state: HubState
) -> None:
    called = cli("fetch", MODEL)

    assert called.code == 2
    assert "Confirm with --yes (there is no terminal to ask)." in called.err
    assert not cache.exists()
    assert state.fetched() == {"config.json": 1}


def test_json_tells_the_files_and_the_folder(cli: Cli, endpoint: str, state: HubState) -> None:
    told = json.loads(taken(cli, "--json", "--quiet").out)

    assert told["licence"] == "apache-2.0"
    assert told["folder"].endswith(COMMIT)
    assert told["missing_bytes"] == told["bytes"] == sum(file["bytes"] for file in told["files"])
    assert {file["name"]: file["digest"] for file in told["files"]}["tokenizer.json"] == (
        state.digest("tokenizer.json")
    )


def test_hugging_faces_own_tools_find_it(cli: Cli, endpoint: str, cache: Path) -> None:
    taken(cli)
    code = (
        "from huggingface_hub import snapshot_download, scan_cache_dir\n"
        f"print(snapshot_download({MODEL!r}, local_files_only=True))\n"
        "found, = scan_cache_dir().repos\n"
        "print(found.repo_id, *(sorted(r.refs) for r in found.revisions), scan_cache_dir().warnings)\n"
        "from transformers import AutoConfig\n"
        f"print(AutoConfig.from_pretrained({MODEL!r}).hidden_size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    folder, found, size = done.stdout.splitlines()

    assert folder == str(cache / "models--org--model" / "snapshots" / COMMIT)
    assert found == f"{MODEL} ['main'] []"
    assert size == str(TINY["hidden_size"])


def test_what_their_tools_fetched_is_not_fetched_again(
    cli: Cli, endpoint: str, state: HubState
) -> None:
    wanted = sorted(state.files.keys() - STRANGE.keys())
    code = (
        "from huggingface_hub import hf_hub_download\n"
        f"for name in {wanted}: hf_hub_download({MODEL!r}, name, revision={COMMIT!r}, token=False)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    state.requests.clear()

    called = taken(cli)

    assert called.code == 0, called.err
    assert ", 0 B missing" in called.err
    assert state.fetched() == {"config.json": 1}


def test_a_second_time_nothing_is_asked_nor_fetched(
    cli: Cli, endpoint: str, state: HubState
) -> None:
    taken(cli)
    state.requests.clear()

    assert cli("fetch", MODEL).code == 0
    assert state.fetched() == {"config.json": 1}


def test_a_model_that_was_renamed_is_found_under_its_new_name(
    cli: Cli, endpoint: str, state: HubState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    state.token, state.renamed_from = "hf_secret", "old/name"

    called = cli("fetch", "old/name", "--yes")

    assert called.code == 0, called.err
    assert resolve("old/name").folder is not None


def test_a_revision_is_kept_by_its_name(
    cli: Cli, endpoint: str, state: HubState, cache: Path
) -> None:
    state.revisions = ("main", "v1.0", COMMIT)
    entry = cache / "models--org--model"

    called = taken(cli, "--revision", "v1.0")

    assert called.code == 0, called.err
    assert (entry / "refs" / "v1.0").read_text() == COMMIT
    assert not (entry / "refs" / "main").exists()
    assert str(entry / "snapshots" / COMMIT) in called.out
    called = taken(cli, "--revision", COMMIT)
    assert called.code == 0
    assert "has no revision nope" in taken(cli, "--revision", "nope").err


@pytest.mark.parametrize("revision", ["../../../out", "a/../../b", "/abs", "-x", ""])
def test_a_revision_cannot_leave_the_cache(cli: Cli, endpoint: str, revision: str) -> None:
    called = cli("fetch", MODEL, "--yes", f"--revision={revision}")

    assert called.code == 2
    assert "is not the name of a revision" in called.err


def test_names_are_understood_and_said(cli: Cli, endpoint: str, state: HubState) -> None:
    state.model = "Qwen/Qwen2.5-7B-Instruct"
    called = cli("fetch", "qwen2.5:7b", "--dry-run")

    assert called.code == 0, called.err
    assert "qwen2.5:7b is taken as qwen2.5-7b-instruct (Qwen/Qwen2.5-7B-Instruct)" in called.err
    assert cli("fetch", "qwen2.5-7b-instruct", "--dry-run").code == 0


def test_two_processes_do_not_write_one_file(endpoint: str, cache: Path) -> None:
    from edgetune.owned import lock

    listing = list_model(hub_of(None), MODEL, "main")
    first = min(listing.files, key=lambda file: file.size)
    partial = cache / "entry" / "blobs" / f"{first.digest}.edgetune.incomplete"
    partial.parent.mkdir(parents=True)
    with partial.open("ab") as held:
        lock(held)
        with pytest.raises(UsageError, match="Another process is fetching"):
            download(hub_of(None), listing, cache / "entry")
    assert download(hub_of(None), listing, cache / "entry").is_dir()
