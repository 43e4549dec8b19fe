"""Connections that break, files that come damaged, disks that are full: resumed, repeated, or told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hubs import MODEL, HubState, files_of, serving, taken
from rows import Cli

import edgetune.workflows.fetching
from edgetune.errors import EdgetuneError, ModelError, NetworkError
from edgetune.hub import download, hub_of, list_model
from edgetune.workflows.fetching import fetch, offer


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
