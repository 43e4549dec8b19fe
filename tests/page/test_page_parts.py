"""What the page knows and does, without a browser: the list, the form, jobs, children, its weight."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from recorded import make_plan
from rows import write_rows
from sites import Site, viewed

from edgetune.errors import UsageError
from edgetune.page.actions import Actions, train_command
from edgetune.page.asked import Asked, NotThereError
from edgetune.page.child import Child, ChildError
from edgetune.page.forms import errors_by_field, fields, filled, flags, suggested_files
from edgetune.page.jobs import HOME, Jobs
from edgetune.page.listing import Listing
from edgetune.page.offers import offers
from edgetune.page.page import Page
from edgetune.page.rendering import rendered
from edgetune.page.views.compare import compare
from edgetune.planning import Plan
from edgetune.report.markup import DASH
from edgetune.runs import RunFolder
from edgetune.units import format_seconds
from edgetune.workflows.settings import Fixed, knob_specs

MANY = 1000
LONG = 100_000


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(tmp_path_factory.mktemp("model"))


def _made(folder: Path, name: str, plan: Plan, steps: int = 3) -> RunFolder:
    """Return a run folder as a run leaves it after some steps."""
    run = RunFolder.create(folder / name, plan, {"rows_read": 1})
    with run.metrics.open("w") as log:
        base = {"event": "eval", "step": 0, "loss": 3.0, "rows": 4}
        log.write(json.dumps(base) + "\n")
        for step in range(1, steps + 1):
            line = {"event": "step", "step": step, "loss": 2.0 + 1 / step, "tokens": 10, "loss_tokens": 5,
                    "seconds": 0.1, "learning_rate": 0.001, "grad_norm": 1.0, "peak_bytes": 5_000_000,
                    "epoch": 0}  # fmt: skip
            log.write(json.dumps(line) + "\n")
            if step % 1000 == 0 or step == steps:
                log.write(json.dumps({**base, "step": step, "loss": 2.5}) + "\n")
    return run


def test_the_list_says_where_runs_stand(tmp_path: Path, plan: Plan) -> None:
    finished, stopped, failed, dead = (
        _made(tmp_path, name, plan) for name in ("finished", "deep/stopped", "failed", "dead")
    )
    finished.note("adapter written", "from step-000003")
    stopped.note("ended early", "Stopped after step 3.")
    failed.note("no adapter", "no checkpoint is better than the base")
    dead.note("ended early", "Stopped after step 1.")
    dead.note("resumed", "from step-000001")
    (tmp_path / "other").mkdir()
    found = {run.name: run for run in Listing(tmp_path).runs()}

    states = {name: run.state for name, run in found.items()}
    assert states == {"finished": "finished", "deep/stopped": "stopped", "failed": "failed",
                      "dead": "interrupted"}  # fmt: skip
    run = found["deep/stopped"]
    assert (run.step, run.base, run.validation, run.peak_bytes) == (3, 3.0, 2.5, 5_000_000)
    assert (run.model, run.method) == (plan.model.ref, "lora 3")
    assert run.planned_bytes == plan.memory.peak_bytes
    assert run.because == "Stopped after step 3."


def test_a_run_at_work_is_first_and_training_whatever_its_journal_says(
    tmp_path: Path, plan: Plan
) -> None:
    for name in ("a", "b"):
        _made(tmp_path, name, plan).note("ended early", "Stopped.")
    with RunFolder.open(tmp_path / "a").locked():
        first, second = Listing(tmp_path).runs()
    assert (first.name, first.state, first.holder) == ("a", "running", os.getpid())
    assert (second.name, second.state, second.holder) == ("b", "stopped", None)


def test_the_list_follows_a_run_and_reads_nothing_twice(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, listing = _made(tmp_path, "a", plan), Listing(tmp_path)
    first = listing.runs()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", None)
        assert listing.runs() == first
    with run.metrics.open("a") as log:
        log.write('{"event": "step", "step": 4, "loss": 1.5, "peak_bytes": 6}\n{"event": "st')
    (again,) = listing.runs()
    assert (again.step, again.loss, again.validation) == (4, 1.5, 2.5)
    shutil.rmtree(run.path)
    assert listing.runs() == []


@pytest.mark.parametrize("text", ["", "model: {ref: x}\n", "\xff", "model:\n  ref: [", "- 1\n" * 9])
def test_a_damaged_run_is_listed_all_the_same(tmp_path: Path, text: str) -> None:
    run = tmp_path / "damaged"
    run.mkdir()
    (run / "plan.yaml").write_bytes(text.encode("latin-1"))
    (run / "metrics.jsonl").write_text(
        '{"event": "step"}\nnull\n[]\n{"event": "eval", "step": "x"}\n'
    )
    (run / "journal.jsonl").write_text('{"what": [1]}\n{"what": {}, "because": 1}\n')
    (found,) = Listing(tmp_path).runs()
    assert (found.name, found.state, found.step) == ("damaged", "planned", 0)
    assert "damaged" in rendered(
        "_runs.html", runs=[found], starting=[], stopping=set(), folder=str(tmp_path), left_out=0
    )


def test_names_and_texts_of_runs_are_no_html(tmp_path: Path, plan: Plan) -> None:
    name = "<img src=x onerror=alert(1)>\x1b[2J\u202e&'\""
    _made(tmp_path, name, plan).note("ended early", "<script>alert(2)</script>")
    (found,) = Listing(tmp_path).runs()
    text = rendered(
        "_runs.html", runs=[found], starting=[], stopping=set(), folder="<b>", left_out=0
    )
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "&lt;img src=x" in text


def test_runs_are_looked_for_in_the_folder_alone(tmp_path: Path, plan: Plan) -> None:
    _made(tmp_path, "outside", plan)
    inside = tmp_path / "runs"
    inside.mkdir()
    listing = Listing(inside)
    for name in ("../outside", str(tmp_path / "outside"), "", ".", "x\0y", "none"):
        with pytest.raises(NotThereError):
            listing.run(name)


def test_a_comparison_has_sizes_and_forgetting(tmp_path: Path, plan: Plan) -> None:
    for name in ("one", "two"):
        _made(tmp_path, name, plan)
    neutral = {"base_perplexity": 50.0, "perplexity": 75.0}
    (tmp_path / "one" / "verdict.json").write_text(json.dumps({"neutral": neutral}))
    (tmp_path / "one" / "adapter").mkdir()
    (tmp_path / "one" / "adapter" / "adapter_model.safetensors").write_bytes(bytes(2_500_000))
    asked = Asked(given={"run": ["one", "two"]})
    text = compare(Page(tmp_path), asked).body.decode()
    rows = {name: re.findall(f">{name}.*?</tr>", text) for name in ("Adapter size", "Forgets")}
    for name, (first, second) in {
        "Adapter size": ("2.5 MB", DASH),
        "Forgets": ("+50.0%", DASH),
    }.items():
        (row,) = rows[name]
        assert re.findall("<td>(.*?)</td>", row) == [first, second]


def test_settings_that_differ_are_those_that_were_used(tmp_path: Path, plan: Plan) -> None:
    method = replace(plan.choice.method, alpha=6.0)  # type: ignore[call-arg]
    given = replace(plan, choice=replace(plan.choice, method=method))
    other = replace(plan, training=replace(plan.training, weight_decay=0.25))
    for name, one in {"open": plan, "given": given, "other": other}.items():
        _made(tmp_path, name, one)
    same, differ = (
        compare(Page(tmp_path), Asked(given={"run": ["open", name]})).body.decode()
        for name in ("given", "other")
    )
    assert "They were trained with the same settings" in same, "alpha is twice the rank of 3"
    assert re.findall('<th scope="row"><code>(.*?)</code>', differ) == ["weight-decay"]


def test_the_form_has_every_setting_and_gives_it_to_the_command_line() -> None:
    assert {field.name for field in fields()} == {item.name for item in knob_specs()}
    given = {"rank": "8", "packing": "no", "learning_rate": "1e-3", "method": "lora",
             "targets": "q_proj,v_proj", "checkpointing": "2:host", "steps": ""}  # fmt: skip
    asked = Asked(given={name: [value] for name, value in given.items()})
    typed = filled(asked)
    assert (typed["rank"], typed["packing"], typed["learning_rate"]) == (8, False, 0.001)
    assert "steps" not in typed
    assert Fixed.named(typed)
    assert set(flags(asked)) == {"--rank=8", "--no-packing", "--learning-rate=1e-3", "--method=lora",
                                 "--targets=q_proj,v_proj", "--checkpointing=2:host"}  # fmt: skip
    command = train_command(
        Path("/r/x"), {"model": "tiny", "data": "-d", "memory": ""}, ["--rank=8"]
    )
    assert command == ["train", "--model=tiny", "--data=-d", "--rank=8", "--output=/r/x", "--json"]


def test_an_error_stands_by_its_field() -> None:
    asked = Asked(given={"rank": ["eight"], "packing": ["maybe"], "method": ["magic"]})
    with pytest.raises(UsageError) as raised:
        filled(asked)
    found = errors_by_field(str(raised.value), "usage")
    assert set(found) == {"rank", "packing", "method"}
    assert found["packing"] == "--packing: yes or no; found 'maybe'."
    assert "It must be a whole number; found 'eight'." in found["rank"]
    assert set(
        errors_by_field("The run folder exists. Choose another with --output.", "usage")
    ) == {"name"}
    assert set(errors_by_field("Nothing fits in 1 MB.", "nothing-fits")) == {"memory"}
    assert set(errors_by_field("Something else.", "usage")) == {""}


def test_files_are_suggested_for_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("rows.jsonl", "rows.csv.gz", "picture.png", "rest/deep.json", ".hidden.json"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert list(suggested_files("r")) == ["rest/", "rows.csv.gz", "rows.jsonl"]
    assert list(suggested_files("rest/")) == ["rest/deep.json"]
    assert list(suggested_files(f"{tmp_path}/rows.j")) == [f"{tmp_path}/rows.jsonl"]
    assert list(suggested_files("")) == ["rest/", "rows.csv.gz", "rows.jsonl"]
    for nowhere in ("none/", "~nobody/", "\0", "rows.jsonl/"):
        assert list(suggested_files(nowhere)) == []


def test_models_and_rows_of_the_folder_are_offered(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    for name in ("llama/config.json", "adapter/config.json", "adapter/adapter_config.json",
                 "deep/er/small.gguf", "rows.jsonl", "deep/b.csv.gz", "deep/c.parquet", "notes.txt",
                 ".hidden/d.jsonl", "1/2/3/4/5/far.jsonl"):  # fmt: skip
        for folder in (outside, inside):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("x" * 1200)
    run = _made(inside, "run", plan)
    (run.path / "more.jsonl").touch()
    (inside / "away").symlink_to(outside, target_is_directory=True)
    (inside / "link.jsonl").symlink_to(outside / "rows.jsonl")
    found = offers(inside, Listing(inside).runs())
    assert [one.value for one in found.rows] == [
        "inside/rows.jsonl", "inside/deep/b.csv.gz", "inside/deep/c.parquet",
    ]  # fmt: skip
    models = {one.value: one.about for one in found.models}
    assert models.pop(plan.model.ref) == "the model of run"
    assert list(models.items())[:2] == [
        ("inside/llama", "a model's folder"), ("inside/deep/er/small.gguf", "a GGUF file, 1.2 kB"),
    ]  # fmt: skip
    assert models["tiny"] == "known by name"
    assert found.runs == ()
    (run.path / "adapter").mkdir()
    (again,) = offers(inside, Listing(inside).runs()).runs
    assert (again.value, again.about) == ("inside/run", f"lora 3 over {Path(plan.model.ref).name}")
    monkeypatch.chdir(outside)
    assert offers(inside, []).rows[0].value == str(inside / "rows.jsonl")


def test_a_job_outlives_its_page_and_says_how_it_ended(tmp_path: Path) -> None:
    arguments = ["plan", "--model", "no-such-model", "--json"]
    jobs = Jobs(tmp_path)
    job = jobs.start("train", "x", arguments)
    assert [one.run for one in Jobs(tmp_path).of("x")] == ["x"]  # as another page finds it
    _until(lambda: not job.alive)
    assert "no-such-model" in job.error
    assert jobs.all() == [job]
    assert list((tmp_path / HOME).iterdir()) == [job.folder]
    (job.folder / "job.json").write_text("{}")
    assert Jobs(tmp_path).all() == []


def test_nothing_starts_twice_for_a_run(tmp_path: Path, plan: Plan) -> None:
    _made(tmp_path, "x", plan).note("ended early", "Stopped.")
    actions = Actions(Listing(tmp_path), Jobs(tmp_path))
    with pytest.raises(UsageError, match="exists already"):
        actions.start("x", {"model": "tiny", "data": "rows"}, [])
    for name in ("", "../y", "a/b", ".hidden", "x" * 200, "a\nb"):
        with pytest.raises(UsageError, match="is no name for a run"):
            actions.start(name, {}, [])
    with pytest.raises(UsageError, match="is not training"):
        actions.pause("x")
    first = actions.resume("x")
    with pytest.raises(UsageError, match="at work already"):
        actions.resume("x")
    _until(lambda: not first.alive)
    assert first.error  # the model of this run is gone
    assert actions.jobs.of("x") == [first]


def test_a_child_answers_fails_dies_and_comes_again(tmp_path: Path) -> None:
    child = Child("edgetune.page.desk", 30.0)
    try:
        found = child.ask({"do": "plan", "model": "llama-7b", "device": "rtx-4090", "settings": {}})
        assert found["plan"]["fits"] is True
        assert found["seconds"] is None
        rows = str(write_rows(tmp_path / "rows.jsonl"))
        asked = {"do": "plan", "model": "tiny", "device": "rtx-4090", "settings": {}}
        found = child.ask({**asked, "data": rows})
        run = found["plan"]["time"]["run"]
        assert found["seconds"] == pytest.approx(sum(run.values()) - run["loading"])
        told = format_seconds(found["seconds"])
        assert f"about {told}<" in rendered("_plan.html", command="", **found)
        with pytest.raises(ChildError, match="no setting magic"):
            child.ask({"do": "plan", "model": "tiny", "settings": {"magic": 1}})
        with pytest.raises(ChildError, match="There is no") as raised:
            child.ask({"do": "plan", "model": "tiny", "data": str(tmp_path / "no"), "settings": {}})
        assert raised.value.of_kind in {"data", "usage"}
        assert child._process is not None
        child._process.kill()
        child._process.wait()
        begun = time.monotonic()
        assert (
            child.ask({"do": "plan", "model": "tiny", "settings": {"rank": 3}})["plan"]["choice"][
                "rank"
            ]
            == 3
        )
        begun = time.monotonic()
        child.ask({"do": "plan", "model": "tiny", "settings": {"rank": 4}})
        assert time.monotonic() - begun < 1.0
    finally:
        child.close()
    assert not child.running


def test_a_child_is_closed_when_nobody_asks(tmp_path: Path) -> None:
    child = Child("edgetune.page.desk", 0.4)
    child.ask({"do": "plan", "model": "tiny", "settings": {}})
    _until(lambda: not child.running)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Iterator[Site]:
    """The page of a thousand runs, one of them of a hundred thousand steps."""
    folder = tmp_path_factory.mktemp("full")
    run = _made(folder, "runs/run-0", plan)
    run.note("adapter written", "from step-000003")
    for number in range(1, MANY - 1):
        shutil.copytree(run.path, run.path.with_name(f"run-{number}"))
    _made(folder, "runs/long", plan, LONG).note("ended early", "Stopped.")
    with viewed(folder, "runs") as site:
        yield site


def test_a_thousand_runs_and_a_hundred_thousand_steps_open_quickly(full: Site) -> None:
    """By the processor's time of the page: what else is at work here does not count."""
    process = psutil.Process(full.process.pid)
    for path, least in (("/", MANY), ("/run?run=long", 1)):
        before = sum(process.cpu_times()[:2])
        answer = full.ask(path)
        assert answer.status == 200
        assert answer.body.count('href="/run?run=') >= least or "Step 100,000" in answer.body
        assert sum(process.cpu_times()[:2]) - before < 2.0
    version = full.ask("/live").headers["x-version"]
    before = sum(process.cpu_times()[:2])
    for _ in range(10):
        assert full.ask(f"/live?version={version}").status == 204
    assert sum(process.cpu_times()[:2]) - before < 1.0


def test_watching_a_run_takes_less_than_a_fiftieth_of_a_processor(full: Site) -> None:
    """A browser asks once a second; where an answer costs more, it waits fifty times as long."""
    process, changes = psutil.Process(full.process.pid), 20
    path = "/run/live?run=run-5&version="
    log = Path(process.cwd()) / "runs" / "run-5" / "metrics.jsonl"
    version = full.ask(path).headers["x-version"]
    before = sum(process.cpu_times()[:2])
    for step in range(4, 4 + changes):
        with log.open("a") as file:
            line = {
                "event": "step",
                "step": step,
                "loss": 1.0,
                "tokens": 9,
                "seconds": 0.1,
                "peak_bytes": 9,
            }
            file.write(json.dumps({**line, "learning_rate": 0.001}) + "\n")
        answer = full.ask(path + version)
        assert f"Step {step}" in answer.body
        version = answer.headers["x-version"]
    assert (sum(process.cpu_times()[:2]) - before) / changes < 0.02
    costly = full.ask("/run/live?run=long")
    assert int(costly.headers["x-milliseconds"]) >= 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured from /proc")
def test_the_page_is_light_and_loads_no_framework(plan: Plan, tmp_path: Path) -> None:
    """Above what the command line's own import takes, with a list, a run and a form."""
    _made(tmp_path, "run", plan, 200)
    with viewed(tmp_path, ".") as site:
        for path in ("/", "/live", "/run?run=run", "/run/live?run=run", "/new"):
            assert site.ask(path).status == 200
        taken = _anonymous(site.process.pid) - _of_the_command_line()
        mapped = Path(f"/proc/{site.process.pid}/maps").read_text()
    assert taken <= 30_000, f"{taken} kB"
    for framework in ("torch", "transformers", "tokenizers", "mlx", "bitsandbytes"):
        assert f"/{framework}/" not in mapped


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured from /proc")
def test_the_page_stays_small_however_much_it_shows(full: Site) -> None:
    for path in (
        "/",
        "/run?run=long",
        "/compare?run=long&run=run-1",
        "/live",
        "/run/live?run=long",
    ):
        assert full.ask(path).status == 200
    assert _anonymous(full.process.pid) - _of_the_command_line() <= 50_000


def _of_the_command_line() -> int:
    what = "edgetune.cli, edgetune.workflows.supervise"  # what commands start with
    code = f"import {what}, time\nprint(flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        return _anonymous(process.pid)
    finally:
        process.kill()
        process.communicate()


def _anonymous(number: int) -> int:
    """Return the thousand bytes of a process that are its own, as plans count them."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 // 1000


def _until(done: object, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)
