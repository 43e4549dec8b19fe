"""The report of a run: true at every moment, small, harmless, and made of any folder."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from recorded import Recorded, make_plan

from edgetune.cli import run as command_line
from edgetune.errors import UsageError
from edgetune.planning import Plan
from edgetune.report import Reader, Report, ReportWriter, body, render, sections
from edgetune.runs.lines import LogTail, append_line, keep_lines
from edgetune.runs.lock import locked, release

BAD = "</script><script>alert(1)</script><img src=x onerror=y>\x1b[2J\u202e\x00"
VOID = {"meta", "br", "img", "input", "link"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(plan: Plan, tmp_path: Path) -> Recorded:
    return Recorded.start(plan, tmp_path / "run").train()


class Page(HTMLParser):
    """Tags, attributes and headings of a page; refuses one whose tags do not close."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag in names]

    @property
    def levels(self) -> list[int]:
        return [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]


def harmless(html: str) -> Page:
    """Return a page after proving that it runs nothing and asks for nothing."""
    page = Page(html)
    assert not page.named("script", "img", "link", "iframe", "object", "embed", "form", "input")
    links = [attrs.get("href") for attrs in page.named("a")]
    assert all(link and link.startswith("#") for link in links)
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") or name in {"src", "style"} for name in attrs), tag
    assert "url(" not in html
    assert "@import" not in html
    assert not set(html) & {chr(code) for code in range(32) if chr(code) != "\n"}
    assert "\u202e" not in html
    return page


def test_a_page_is_whole_harmless_and_in_order(run: Recorded) -> None:
    page = harmless(render(Report.of(run.folder.path)))
    policy = [a["content"] for a in page.named("meta") if a.get("http-equiv")]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    assert page.levels[0] == 1
    assert page.levels.count(1) == 1
    assert all(b - a <= 1 for a, b in zip(page.levels, page.levels[1:], strict=False))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {(attrs["href"] or "")[1:] for attrs in page.named("a")}
    assert targets <= set(ids)


def test_the_report_says_what_the_files_say(run: Recorded) -> None:
    report = Report.of(run.folder.path)
    lines = [json.loads(text) for text in run.folder.metrics.read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert report.steps.loss.tolist() == [line["loss"] for line in steps]
    assert report.steps.peak.tolist() == [line["peak_bytes"] for line in steps]
    evaluations = [(one.step, one.loss) for one in report.evaluations]
    assert evaluations == [(x["step"], x["loss"]) for x in lines if x["event"] == "eval"]
    assert report.total == 6
    assert report.base is not None
    html = render(report)
    assert f"{report.base.loss:.4f}" in html
    assert all(reason.split(":")[0] in html for reason in run.plan.reasons)


def test_whatever_a_run_holds_is_shown_as_text(run: Recorded) -> None:
    folder = run.folder
    folder.note("ended early", BAD, kind="diverged", exit_code=8)
    folder.note("smaller micro-batches", BAD, step=3, rows=2)
    folder.note("exported", BAD, to=BAD, output=BAD, nbytes=3, check={"top1_agreement": BAD})
    folder.write("receipt.json", {
        "files": [{"name": BAD, "rows": BAD, "sha256": BAD}], "format": BAD, "notes": [BAD, 3, None],
        "dropped": [{"place": BAD, "because": BAD}, BAD], "rows_read": 10**400, "lengths": BAD,
    })  # fmt: skip
    folder.write("memory.json", {"peak_bytes": "many", "phases": [BAD], "pilot": None})
    folder.write("verdict.json", {"sentence": BAD, "advice": [BAD], "notes": BAD, "neutral": {}})
    row = {"prompt": BAD, "expected": "x" * 10**6, "base": None, "tuned": 7, "place": BAD}
    folder.write("samples.json", {"samples": [row, BAD, None] * 40})
    html = render(Report.of(folder.path))
    harmless(html)
    assert len(html) < 300_000
    assert "alert(1)" in html


def _used(html: str) -> dict[str, list[str]]:
    """Return the rows of the tables of settings by name."""
    rows = re.findall('<tr><th scope="row"><code>(.*?)</code></th>(.*?)</tr>', html)
    return {name: re.findall("<td>(.*?)</td>", cells) for name, cells in rows}


def test_settings_are_those_that_were_used(plan: Plan, tmp_path: Path) -> None:
    training = replace(plan.training, steps=None, epochs=1.5, eval_every=None, warmup=0.1)
    given = ("epochs", "rank", "warmup")
    run = Recorded.start(replace(plan, training=training, given=given), tmp_path / "run").train()
    run.folder.note("back to a checkpoint", "it ran away", step=5, to=4, learning_rate=0.0005)
    run.folder.write("receipt.json", {"long_rows": "refuse"})
    used = _used(render(Report.of(run.folder.path)))
    schedule = run.recorder.facts.schedule
    assert schedule.warmup == 1
    assert used["rank"] == ["3", "you"]
    assert used["alpha"] == ["6", "edgetune"], "twice the rank"
    assert used["layers"] == ["all", "edgetune"]
    assert used["epochs"] == ["1.5", "you"]
    assert used["steps"] == [str(schedule.steps), "edgetune"]
    assert used["eval-every"] == [str(schedule.eval_every), "edgetune"]
    assert used["warmup"] == ["0.1 (1 step)", "you"]
    assert used["learning-rate"] == [f"{training.learning_rate:g}, 0.0005 from step 4", "edgetune"]
    assert used["long-rows"] == ["refuse", "edgetune"]
    assert used["beta"] == ['<span class="muted">not used</span>', "edgetune"]


def test_of_an_older_plan_nobody_says_who_decided(plan: Plan, tmp_path: Path) -> None:
    run = Recorded.start(replace(plan, given=None), tmp_path / "run")
    assert _used(render(Report.of(run.folder.path)))["rank"] == ["3"]


def test_a_run_says_when_it_began_and_ended(plan: Plan, tmp_path: Path) -> None:
    run = Recorded.start(plan, tmp_path / "run").train()
    lines = [
        {"time": 1_000_000.0, "what": "planned", "because": "rank 3"},
        {"time": 1_000_300.0, "what": "resumed", "because": "from step-000002"},
        {"time": 1_000_600.0, "what": "adapter written", "because": "from step-000006"},
        {"time": 2_000_000.0, "what": "exported", "because": "to peft"},
    ]
    run.folder.journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = render(Report.of(run.folder.path))
    assert (
        "begun 1970-01-12 13:46:40 UTC, ended 1970-01-12 13:56:40 UTC: 10 min, resumed 1 time meanwhile"
        in html
    )
    assert "as of" not in html
    going = render(Reader.of(run.folder.path).read(running=True))
    assert "as of" not in going, "it came to its end"
    run.folder.journal.write_text(json.dumps(lines[0]) + "\n")
    going = render(Reader.of(run.folder.path).read(running=True))
    assert "begun 1970-01-12 13:46:40 UTC, as of 20" in going


def test_samples_are_shown_as_a_person_reads_them(run: Recorded) -> None:
    row = {"prompt": "<|im_start|>user\nHello<|im_end|>", "expected": "Hi<|im_end|>", "base": "<x>", "tuned": "Hi",
           "right": {"base": False, "tuned": True}}  # fmt: skip
    found = {"samples": [row], "special": ["<|im_start|>", "<|im_end|>"]}
    run.folder.write("samples.json", found)
    answers = {"count": 1, "right": 1, "base_right": 0, "token_f1": 1.0, "base_token_f1": 0.0}
    run.folder.write("verdict.json", {"sentence": "It learned.", "answers": answers})
    html = render(Report.of(run.folder.path))
    harmless(html)
    assert '<div class="text prompt">user\nHello</div>' in html
    assert 'Hi<span class="special">&lt;|im_end|&gt;</span>' in html
    assert html.count("&lt;|im_") == 1
    assert "&lt;x&gt;" in html
    assert "<dt>Tuned: as expected</dt>" in html
    assert "<dt>Base: not as expected</dt>" in html
    assert "1 of 1 as expected, token F1 1.00" in html


@pytest.mark.parametrize("name", ["plan.yaml", "receipt.json", "memory.json", "verdict.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b'{"a": NaN}', b"[" * 100_000])
def test_a_damaged_file_is_named_and_the_rest_is_shown(
    run: Recorded, name: str, content: bytes
) -> None:
    (run.folder.path / name).write_bytes(content)
    report = Report.of(run.folder.path)
    harmless(render(report))
    assert len(report.steps) == 6
    if content != b"[1, 2]":
        assert any(name in problem for problem in report.problems)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("number", [5e307, 1.7e308, 3e38, 1e-30, 1e-320, 10**400, 10**39, -1e308])
def test_numbers_that_no_run_has_are_drawn_or_left_out(run: Recorded, number: float) -> None:
    last = list(run.folder.steps())[-1]
    for step, name in enumerate(("loss", "seconds", "tokens", "peak_bytes", "learning_rate"), 7):
        append_line(run.folder.metrics, {**last, "step": step, name: number})
    append_line(run.folder.metrics, {**last, "step": number})
    append_line(run.folder.metrics, {"event": "eval", "step": 7, "loss": number})
    for name in ("memory.json", "verdict.json", "receipt.json"):
        (run.folder.path / name).write_text(json.dumps(_everywhere(number)))
    report = Report.of(run.folder.path)
    harmless(render(report))
    assert len(report.steps) == 6 + (5 if abs(number) < 2.0**128 else 1)


def _everywhere(number: float) -> dict[str, Any]:
    """Return what files of a run may hold, with a number in the place of each."""
    phases = {name: {"bytes": number, "exact": True} for name in ("load", "train")}
    neutral = {"base_perplexity": number, "perplexity": number, "base_loss": number, "loss": number}
    return {
        "peak_bytes": number, "phases": phases, "pilot": {"peak_bytes": number},
        "neutral": neutral, "held_out": neutral, "rows_read": number, "tokens": number,
        "rows_trained": number, "lengths": {"longest": number},
    }  # fmt: skip


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run folder"):
        Report.of(tmp_path)


def test_a_run_that_was_never_begun_says_so(plan: Plan, tmp_path: Path) -> None:
    folder = Recorded.start(plan, tmp_path / "run").folder
    folder.note("planned", "rank 8")
    assert Report.of(folder.path).status.kind == "planned"
    harmless(render(Report.of(folder.path)))


def test_a_run_is_running_while_its_lock_is_held(run: Recorded) -> None:
    lock = run.folder.path / ".lock"
    held = locked(lock)
    assert Report.of(run.folder.path).status.kind == "running"
    assert "running" in render(Report.of(run.folder.path))
    release(held)
    status = Report.of(run.folder.path).status
    assert status.kind == "interrupted"
    assert status.resumable


@pytest.mark.parametrize(
    ("note", "kind", "code", "resumable"),
    [
        ({"what": "ended early", "kind": "stopped", "exit_code": 6}, "stopped", 6, True),
        ({"what": "ended early", "kind": "out-of-memory", "exit_code": 7}, "failed", 7, True),
        ({"what": "ended early", "kind": "diverged", "exit_code": 8}, "failed", 8, False),
        ({"what": "no adapter"}, "failed", 8, False),
        ({"what": "adapter written"}, "finished", None, False),
    ],
)
def test_a_run_that_ended_says_how(
    run: Recorded, note: dict[str, Any], kind: str, code: int | None, resumable: bool
) -> None:
    run.folder.note(note["what"], "so it was", **{k: v for k, v in note.items() if k != "what"})
    status = Report.of(run.folder.path).status
    assert (status.kind, status.exit_code, status.resumable) == (kind, code, resumable)
    html = render(Report.of(run.folder.path))
    assert ("edgetune train --resume --output" in html) is resumable
    assert (f"exit code {code}" in html) is (code is not None)


def test_an_older_run_says_that_it_was_stopped(run: Recorded) -> None:
    run.folder.note("ended early", "Stopped after step 4 of 6.")
    assert Report.of(run.folder.path).status.kind == "stopped"
    run.folder.note("resumed", "from step-000004", step=4)
    assert Report.of(run.folder.path).status.kind == "interrupted"


def test_a_diverged_run_with_an_adapter_is_no_finished_one(run: Recorded) -> None:
    run.folder.note("ended early", "ran away", kind="diverged", exit_code=8)
    run.folder.note("adapter written", "from step-000002", step=6)
    assert Report.of(run.folder.path).status.exit_code == 8


def test_a_reader_goes_on_where_it_was_and_notices_a_rewind(plan: Plan, tmp_path: Path) -> None:
    run = Recorded.start(plan, tmp_path / "run")
    reader, events = Reader(run.folder), run.events_recorded()
    seen = [len(reader.read().steps) for _ in islice(events, 0, None, 2)]
    assert seen == sorted(seen)
    whole = reader.read()
    assert whole.steps.step.tolist() == [1, 2, 3, 4, 5, 6]
    keep_lines(run.folder.metrics, lambda line: line["step"] <= 3)
    assert reader.read().steps.step.tolist() == [1, 2, 3]
    append_line(run.folder.metrics, {"event": "step", "step": 4, "loss": 1, "seconds": 1,
                                     "tokens": 1, "peak_bytes": 1})  # fmt: skip
    again = reader.read()
    assert again.steps.step.tolist() == [1, 2, 3, 4]
    assert [one.step for one in again.evaluations] == [0, 2]


def test_a_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    tail = LogTail(log)
    assert tail.read() == (True, [])
    log.write_text('{"a": 1}\n{"b"')
    assert tail.read() == (True, [{"a": 1}])
    assert tail.read() == (False, [])
    with log.open("a") as file:
        file.write(": 2}\nno json\n[1]\n")
    assert tail.read() == (False, [{"b": 2}])
    log.write_text('{"c": 3}\n{"b": 2}\n')
    assert tail.read() == (True, [{"c": 3}, {"b": 2}])


def test_the_report_is_true_after_every_event(plan: Plan, tmp_path: Path) -> None:
    run = Recorded.start(plan, tmp_path / "run")
    writer, path = ReportWriter(run.folder), tmp_path / "run" / "report.html"
    for event in run.events_recorded():
        writer.follow(event)
        steps = sum(1 for _ in run.folder.steps())
        if steps >= 1:
            shown = re.search(r"Step (\d+) of 6", path.read_text())
            assert shown
            assert 1 <= int(shown[1]) <= steps
            assert "running" in path.read_text()
    writer.write(running=False)
    assert "Step 6 of 6" in path.read_text()
    assert not writer.failed
    assert [p.name for p in path.parent.glob(".*.partial")] == []


def test_what_a_killed_process_left_of_a_report_is_removed(run: Recorded) -> None:
    left = run.folder.path / ".report.html.0123456789abcdef.partial"
    left.write_text("<!doctype")
    os.utime(left, (0, 0))
    ReportWriter(run.folder).write(running=False)
    assert not left.exists()
    assert (run.folder.path / "report.html").is_file()


def test_a_report_that_cannot_be_written_stops_nothing(run: Recorded) -> None:
    (run.folder.path / "report.html").mkdir()
    writer = ReportWriter(run.folder)
    writer.write(running=False)
    assert writer.failed.startswith("report.html cannot be written")


def test_reports_of_a_long_run_take_a_small_share_of_it(run: Recorded) -> None:
    writer = ReportWriter(run.folder)
    begun = time.monotonic()
    writer.write(running=True)
    cost = time.monotonic() - begun
    assert writer._next - begun >= 50 * (cost - 0.002)


def test_100_000_steps_are_drawn_in_less_than_2_seconds_and_1_mb(run: Recorded) -> None:
    line = (
        '{{"event": "step", "step": {0}, "loss": {1:.15f}, "tokens": 343, "loss_tokens": 90, '
        '"seconds": 0.1315393409999, "learning_rate": 0.0009, "grad_norm": 2.6422011852264404, '
        '"peak_bytes": 328359936, "epoch": 0}}\n'
    )
    with run.folder.metrics.open("w") as file:
        for step in range(1, 100_001):
            file.write(line.format(step, 1 + 1000 / (step + 500) + (step * 7919 % 101) / 500))
            if step % 100 == 0:
                file.write(f'{{"event": "eval", "step": {step}, "loss": 1.5, "rows": 40}}\n')
    begun = time.process_time()
    report = Report.of(run.folder.path)
    html = render(replace(report, total=100_000))
    assert time.process_time() - begun < 2
    assert len(html) < 1_000_000
    assert len(report.steps) == 100_000
    harmless(html)


def test_fragments_of_several_reports_stand_on_one_page(run: Recorded) -> None:
    report = Report.of(run.folder.path)
    page = Page(body(report, "a-") + body(report, "b-"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) == 4 * len(sections(report))


def test_the_command_makes_the_report_of_any_run(
    run: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "mine.html"
    assert command_line(["report", str(run.folder.path), "--output", str(output), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ended"] >= found["begun"] > 1_700_000_000
    assert found["step"] == 6
    assert found["report"] == str(output)
    harmless(output.read_text())
    assert command_line(["report", str(run.folder.path)]) == 0
    own = run.folder.path / "report.html"
    assert own.is_file()
    for again in (own, run.folder.path / "other.html", output):  # a page may be replaced
        again.write_text("<!DOCTYPE html>before")
        assert command_line(["report", str(run.folder.path), "--output", str(again)]) == 0
        harmless(again.read_text())
    assert command_line(["report", str(tmp_path)]) == 2
    assert command_line(["report", str(run.folder.path), "--output", "/no/such/folder/x"]) == 2
    assert "--output" in capsys.readouterr().err
