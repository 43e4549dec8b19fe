"""``edgetune fetch`` against a hub on this machine: what comes is whole and checked, or it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hubs import COMMIT, HubState, files_of, serving
from model_folders import TINY, write_folder
from rows import Called, Cli

import edgetune.workflows.fetching
from edgetune.errors import EdgetuneError, ModelError, NetworkError, UsageError
from edgetune.hub import download, hub_of, list_model
from edgetune.hub.client import Hub
from edgetune.hub.listing import LARGEST
from edgetune.model import open_model, resolve
from edgetune.workflows.fetching import fetch, offer

HIDDEN = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN",
          "HF_TOKEN_PATH", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")  # fmt: skip
MODEL = "org/model"
STRANGE = {
    "pytorch_model.bin": b"a pickle",
    "modeling_own.py": b"print('code')",
    "consolidated.safetensors": b"the same weights again",
    "original/params.json": b"{}",
    "README.md": b"# A model",
}


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


def taken(cli: Cli, *arguments: str) -> Called:
    """Fetch without being asked."""
    return cli("fetch", MODEL, "--yes", *arguments)


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


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_a_connection_that_breaks_is_gone_on_with(
    endpoint: str, state: HubState, cache: Path, ranges: bool
) -> None:
    state.cut_after, state.cuts, state.ranges = 100, 6 if ranges else 2, ranges
    waits: list[float] = []

    listing = list_model(hub_of(None), MODEL, "main")
    folder = download(hub_of(None), listing, cache / "entry", sleep=waits.append)

    assert state.cuts == 0
    assert all(data == state.files[name] for name, data in files_of(folder).items())
    asked = [headers.get("Range") for _, path, headers in state.requests if "resolve" in path]
    assert "bytes=100-" in asked


def test_a_process_that_was_stopped_is_gone_on_with(
    cli: Cli, endpoint: str, state: HubState, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    largest = max(state.files, key=lambda name: len(state.files[name]))
    state.cut_after, state.cuts = 100, 1
    state.file_errors = []
    hub = hub_of(None)
    listing = list_model(hub, MODEL, "main")

    def stop(name: str, came: int) -> None:
        if state.cuts == 0 and came == 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(hub, listing, cache / "models--org--model", stop)
    assert not (cache / "models--org--model" / "refs").exists()
    offered = offer(MODEL)
    assert 0 < offered.missing < offered.listing.size

    state.requests.clear()
    assert fetch(offered).folder.is_dir()
    asked = {headers.get("Range") for _, path, headers in state.requests if "resolve" in path}
    assert "bytes=100-" in asked
    assert largest in state.fetched()


def test_a_connection_that_never_works_is_given_up(
    endpoint: str, state: HubState, cache: Path
) -> None:
    waits: list[float] = []
    listing = list_model(hub_of(None), MODEL, "main")
    state.file_errors = [(503, {})] * 50

    with pytest.raises(NetworkError, match=r"answers 503\. Try again later"):
        download(hub_of(None), listing, cache / "entry", sleep=waits.append)
    assert waits == [2.0, 4.0, 8.0, 16.0]


def test_answers_that_pass_are_waited_for(endpoint: str, state: HubState, cache: Path) -> None:
    waits: list[float] = []
    listing = list_model(hub_of(None), MODEL, "main")
    state.file_errors = [(503, {}), (500, {})]

    assert download(hub_of(None), listing, cache / "entry", sleep=waits.append).is_dir()
    assert waits == [2.0, 4.0]


@pytest.mark.parametrize("name", ["model-00002-of-00003.safetensors", "generation_config.json"])
def test_what_comes_damaged_is_not_kept(
    cli: Cli, endpoint: str, state: HubState, cache: Path, name: str
) -> None:
    state.files.setdefault(name, b'{"max_length": 20}')
    data = state.files[name]
    state.damage[name] = data[:-1] + bytes([data[-1] ^ 1])

    called = taken(cli)

    assert called.code == 5
    assert f"{name} of {MODEL} came damaged" in called.err
    entry = cache / "models--org--model"
    assert not (entry / "refs").exists()
    assert state.digest(name) not in {path.name for path in (entry / "blobs").iterdir()}
    state.damage.clear()
    assert taken(cli).code == 0


def test_a_blob_that_was_damaged_on_disk_is_fetched_again(
    cli: Cli, endpoint: str, state: HubState, cache: Path
) -> None:
    taken(cli)
    blob = cache / "models--org--model" / "blobs" / state.digest("model-00001-of-00003.safetensors")
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + b"\0")

    assert taken(cli).code == 0
    assert blob.read_bytes() == whole


def test_a_config_that_is_not_the_published_one_is_refused(endpoint: str, state: HubState) -> None:
    state.damage["config.json"] = b'{"model_type": "other"}'

    with pytest.raises(ModelError, match=r"config\.json of org/model came damaged"):
        offer(MODEL)


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


def test_a_model_that_was_renamed_is_found_under_its_new_name(
    cli: Cli, endpoint: str, state: HubState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    state.token, state.renamed_from = "hf_secret", "old/name"

    called = cli("fetch", "old/name", "--yes")

    assert called.code == 0, called.err
    assert resolve("old/name").folder is not None


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


def test_a_full_disk_is_told_before(
    endpoint: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered = offer(MODEL)
    usage = edgetune.workflows.fetching.shutil.disk_usage(cache.parent)._replace(free=1000)
    monkeypatch.setattr(edgetune.workflows.fetching.shutil, "disk_usage", lambda _: usage)

    with pytest.raises(EdgetuneError, match=r"1\.0 kB are free there\. Make room, or set HF_HUB_"):
        fetch(offered)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_told(cli: Cli, endpoint: str, cache: Path) -> None:
    cache.write_text("a file")

    called = taken(cli)

    assert called.code == 2
    assert "HF_HUB_CACHE" in called.err


def test_nothing_listens(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(HubState(files={})) as gone:
        pass
    called = cli("fetch", MODEL, "--yes", "--endpoint", gone)
    assert (called.code, called.err.count("\n")) == (5, 1)
    assert f"{gone[7:]} refuses the connection: nothing listens there." in called.err

    monkeypatch.setenv("http_proxy", gone)
    monkeypatch.setenv("no_proxy", "")
    called = cli("fetch", MODEL, "--yes", "--endpoint", "http://hub.invalid")
    assert f"The proxy {gone[7:]} (HTTPS_PROXY) refuses the connection" in called.err


def test_no_network(cli: Cli) -> None:
    called = cli("fetch", MODEL, "--yes", "--endpoint", "http://hub.invalid")

    assert called.code == 5
    assert "hub.invalid is not found: there is no network, or the name is wrong." in called.err


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


@pytest.mark.parametrize(
    ("ref", "code", "said"),
    [
        ("tiny", 2, "comes with edgetune: --model tiny needs no fetching"),
        ("ollama:llama3", 2, "`ollama pull llama3`"),
        ("nothing-like-it", 5, "`edgetune models` lists all"),
        ("lama-7b", 5, "Nearest: llama-7b"),
        ("./folder", 5, "is not the name of a model on a hub"),
        ("a/b/c", 5, "is not the name of a model on a hub"),
        ("", 5, "is not the name of a model on a hub"),
    ],
)
def test_what_is_no_model_of_a_hub(cli: Cli, ref: str, code: int, said: str) -> None:
    called = cli("fetch", ref, "--yes")

    assert called.code == code
    assert said in called.err


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
