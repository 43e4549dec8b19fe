"""The page in a real browser: every action, by keyboard alone, with nothing on the console."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect
from playwright.sync_api import Error as PlaywrightError
from rows import call
from sites import REBOUND, Site, viewed

from edgetune.page.jobs import Jobs
from edgetune.runs import RunFolder
from edgetune.runs.lock import holder

LEARN = ("train", "--model", "tiny", "--data", "rows.jsonl", "--learning-rate", "0.01", "--steps", "6",
         "--rank", "2", "--device", "cpu", "-q")  # fmt: skip
ELSEWHERE = "This page answers only itself, on 127.0.0.1.\n"
LONG = "400"
"""Steps of a run that does not end before it is paused."""
SLOW = 60_000
"""Milliseconds that opening a model may take on a busy machine."""


@pytest.fixture(scope="module")
def runs(workplace: Path) -> Path:
    """A folder with a finished run, one that differs in a setting, and one that was stopped."""
    called = call(*LEARN, "--output", "runs/first", cwd=workplace)
    assert called.code == 0, called.err
    first = workplace / "runs" / "first"
    second, stopped = first.with_name("second"), first.with_name("stopped")
    shutil.copytree(first, second)
    (second / "plan.yaml").write_text(
        (first / "plan.yaml").read_text().replace("rank: 2", "rank: 4")
    )
    shutil.copytree(first, stopped, ignore=shutil.ignore_patterns("adapter"))
    RunFolder.open(stopped).note(
        "ended early", "Stopped after step 6.", kind="stopped", exit_code=6
    )
    return workplace / "runs"


@pytest.fixture(scope="module")
def context(browser: Browser, site: Site, runs: Path) -> Iterator[BrowserContext]:
    """A browser that was given the token."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(site.address)
    page.wait_for_url(f"{site.base}/")
    page.close()
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page whose console stays empty."""
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    page.close()
    assert [text for text in said if not re.search("responded with a status of 40[04]", text)] == []


def _tab_to(page: Page, selector: str, most: int = 80) -> None:
    """Go to an element with the tab key alone."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    pytest.fail(f"{selector} is not reached in {most} steps")


def _paused(page: Page) -> int:
    expect(page.locator("#resume")).to_be_visible(timeout=SLOW)
    expect(page.locator("#run .status .pill")).to_have_text("stopped")
    return _step(page)


def _step(page: Page) -> int:
    found = re.search(r"Step ([\d,]+)", page.locator("#run .status").inner_text())
    assert found is not None
    return int(found[1].replace(",", ""))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_is_started_watched_paused_and_resumed_by_keyboard(
    page: Page, site: Site, runs: Path, workplace: Path
) -> None:
    page.goto(f"{site.base}/new")
    _tab_to(page, "#f-model")
    page.keyboard.type("tiny")
    page.keyboard.press("Tab")
    page.keyboard.type("rows.jsonl")
    expect(page.locator(".fit")).to_be_visible(timeout=SLOW)
    assert page.input_value("#f-name") == "rows-tiny"
    expect(page.locator(".receipt").first).to_contain_text("60 = 54 trained + 6 validation")

    _tab_to(page, "#f-rank")
    page.keyboard.type("0")
    expect(page.locator("#e-rank")).to_contain_text("--rank must be 1 or more; found 0.")
    assert page.get_attribute("#f-rank", "aria-invalid") == "true"
    page.keyboard.press("Backspace")
    page.keyboard.type("3")
    expect(page.locator("#plan")).to_contain_text("lora of rank 3")
    expect(page.locator("#e-rank")).to_have_text("")
    page.keyboard.press("Backspace")
    begun = time.monotonic()
    page.keyboard.type("5")
    expect(page.locator("#plan")).to_contain_text("lora of rank 5")
    assert time.monotonic() - begun < 1.0  # the plan follows at once
    _tab_to(page, "#f-steps")
    page.keyboard.type(LONG)
    _tab_to(page, "#start")
    page.keyboard.press("Enter")

    page.wait_for_url("**/run?run=rows-tiny")
    expect(page.locator("#run .status .pill")).to_have_text("running", timeout=SLOW)
    page.wait_for_function(
        "() => /Step [1-9]/.test(document.querySelector('#run').innerText)", timeout=SLOW
    )
    loaded = page.evaluate("performance.timeOrigin")
    _tab_to(page, "#pause")
    before = _step(page)
    page.wait_for_function(f"() => parseInt(document.querySelector('#run .status').innerText.match(/Step (\\d+)/)[1]) > {before}",
                           timeout=SLOW)  # fmt: skip
    assert page.evaluate("document.activeElement.id") == "pause"  # what is live leaves the focus
    page.keyboard.press("Enter")
    stopped = _paused(page)
    assert 0 < stopped < int(LONG)
    assert holder(runs / "rows-tiny") is None
    assert page.evaluate("document.activeElement.closest('#actions') !== null")

    _tab_to(page, "#resume")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => document.querySelector('#pause') && parseInt(document.querySelector('#run .status').innerText.match(/Step (\\d+)/)[1]) > {stopped}",
                           timeout=SLOW)  # fmt: skip
    assert page.evaluate("performance.timeOrigin") == loaded  # the page was never loaded anew

    _is_found_by_another_page_and_stopped(page, workplace, runs)


def _is_found_by_another_page_and_stopped(page: Page, workplace: Path, runs: Path) -> None:
    """No page has to go on for a training to, and two never work in one folder."""
    assert holder(runs / "rows-tiny") is not None
    with viewed(workplace) as other:
        refused = other.ask("/run/act", {"run": "rows-tiny", "do": "resume"})
        assert refused.status == 400
        assert "is training already" in refused.body
        taken = other.ask(
            "/new/start", {"model": "tiny", "data": "rows.jsonl", "name": "rows-tiny"}
        )
        assert taken.status == 400
        assert "exists already" in taken.body
        page.goto(other.address)
        page.click("text=rows-tiny")
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("#stop")
        expect(page.locator("#resume")).to_be_visible(timeout=SLOW)
        page.goto("about:blank")  # this page ends now
    assert holder(runs / "rows-tiny") is None


def test_runs_are_found_ticked_and_compared(page: Page, site: Site) -> None:
    page.goto(site.base)
    _tab_to(page, "#find")
    page.keyboard.type("FIRST finished")
    assert page.locator("tr[data-text]:visible").count() == 1
    page.fill("#find", "")
    assert page.locator("#compare").is_disabled()
    for name in ("first", "second"):
        page.focus("#find")
        _tab_to(page, f"input[value={name}]")
        page.keyboard.press("Space")
    expect(page.locator("#ticked")).to_have_text("2 ticked")
    page.focus("#find")
    _tab_to(page, "#compare")
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare?*")
    expect(page.locator("h1")).to_have_text("2 runs side by side")
    assert page.locator(".chart .plot").first.locator("path.line").count() == 2
    differ = page.locator("table.side").nth(1)
    rows = differ.locator("tbody tr").all_inner_texts()  # in the order of the list
    assert rows in (["rank\t2\t4", "alpha\t4\t8"], ["rank\t4\t2", "alpha\t8\t4"])
    assert site.ask("/compare?run=first").status == 400


def test_a_new_run_offers_models_and_rows(page: Page, site: Site, runs: Path) -> None:
    near = runs / "more.jsonl"
    near.write_text("{}\n")
    try:
        page.goto(f"{site.base}/new")
        page.wait_for_function("() => document.querySelectorAll('#files option').length > 1")
    finally:
        near.unlink()
    files = page.locator("#files option").evaluate_all("all => all.map((one) => one.value)")
    assert files[0] == "runs/more.jsonl"
    assert "rows.jsonl" in files
    models = page.locator("#models option").evaluate_all("all => all.map((one) => one.value)")
    assert models[0] == "tiny", "the one that the runs have"
    assert len(models) == len(set(models)) > 20
    for name in ("model", "data"):
        assert page.locator(f"#f-{name}").evaluate("one => one.list.options.length") > 1
    continued = page.locator("#adapters option").evaluate_all("all => all.map((one) => one.value)")
    assert {"runs/first", "runs/second"} <= set(continued)
    page.fill("#f-model", "tiny")
    page.click("summary")
    page.fill("#f-from", "runs/first")
    expect(page.locator("#plan")).to_contain_text("lora of rank 2", timeout=SLOW)
    page.fill("#f-rank", "3")
    expect(page.locator("#e-rank")).to_contain_text("would make it a different adapter")
    page.fill("#f-data", "runs/")
    page.wait_for_function("() => [...document.querySelectorAll('#files option')].length > 2")


def test_rows_show_what_is_learned(page: Page, site: Site) -> None:
    page.goto(f"{site.base}/rows?run=first")
    row = page.locator(".row").nth(4)
    assert (
        row.locator(".text").inner_text().strip()
        == "<|begin|><|im_start|>user\nCount to 4.<|im_end|>\n<|im_start|>assistant\n1 2 3 4 5<|im_end|>"
    )
    assert row.locator("mark").all_inner_texts() == ["1 2 3 4 5<|im_end|>"]
    page.click("[rel=next] >> nth=0")
    expect(page.locator(".row .place").first).to_contain_text("rows.jsonl:21")


@pytest.mark.slow
def test_base_and_tuned_answer_side_by_side(page: Page, site: Site) -> None:
    page.goto(f"{site.base}/chat?run=first")
    for count in (1, 2):
        _tab_to(page, "#question") if count == 1 else None
        page.keyboard.type("Count to 3.")
        page.keyboard.press("Enter")
        expect(page.locator(".answer")).to_have_count(2 * count, timeout=SLOW)
        expect(page.locator("#send")).to_be_enabled(timeout=SLOW)
        assert page.evaluate("document.activeElement.id") == "question"
    assert page.locator(".answer h3").all_inner_texts() == ["base", "tuned"] * 2
    texts = page.locator(".answer p").all_inner_texts()
    assert all(texts)
    assert texts[0] != texts[1]
    page.click("#forget")
    expect(page.locator(".turn")).to_have_count(0)

    page.fill("[name=temperature]", "50")  # an answer that seldom ends by itself
    page.fill("#question", "Count to 9.")
    page.keyboard.press("Enter")
    expect(page.locator(".answer p").last).not_to_have_text("", timeout=SLOW)
    page.click("#halt")
    expect(page.locator(".turn > .note")).to_have_text("Stopped.", timeout=SLOW)
    expect(page.locator("#send")).to_be_enabled()
    assert "error" not in site.ask("/chat/close", {}).body


@pytest.mark.slow
def test_an_export_is_checked(page: Page, site: Site, workplace: Path) -> None:
    page.goto(f"{site.base}/export?run=first")
    _tab_to(page, "input[name=to]")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#output") == "exports/first-hf"
    _tab_to(page, "#begin")
    page.keyboard.press("Enter")
    expect(page.locator(".exports .pill")).to_have_text("done", timeout=2 * SLOW)
    expect(page.locator(".exports")).to_contain_text("tokens have the same most probable successor")
    assert (workplace / "exports" / "first-hf" / "model.safetensors").is_file()
    page.click("#begin")
    expect(page.locator("#output-wrong")).to_contain_text("it is not empty")


EVIL = """<!doctype html><title>evil</title><link rel="icon" href="data:,">
<iframe src="{base}/"></iframe><script src="{base}/static/page.js"></script><img src="{base}/static/icon.svg">
<form method="post" action="{base}/run/act"><input name="run" value="stopped"><input name="do" value="resume"></form>
<script>
for (const mode of ["no-cors", "cors"]) fetch("{base}/", {{ mode, credentials: "include" }}).catch(() => 0);
fetch("{base}/run/act", {{ method: "POST", mode: "no-cors", credentials: "include",
                           body: new URLSearchParams({{ run: "stopped", do: "resume" }}) }}).catch(() => 0);
setTimeout(() => document.forms[0].submit(), 500);
</script>"""


def test_another_site_in_the_same_browser_gets_and_does_nothing(
    context: BrowserContext, site: Site, runs: Path
) -> None:
    """CSRF, framing and DNS rebinding, tried by a browser that has the cookie."""
    page, answers = context.new_page(), []
    page.on("response", lambda answer: answers.append((answer.url, answer.status)))
    page.route("http://evil.test/", lambda route: route.fulfill(
        body=EVIL.format(base=site.base), content_type="text/html"))  # fmt: skip
    page.goto("http://evil.test/")
    with suppress(PlaywrightError):  # a browser may keep such a site from this machine by itself
        page.wait_for_url(f"{site.base}/run/act", timeout=5000)
    seen = [status for url, status in answers if url.startswith(site.base)]
    assert set(seen) == {403}
    assert not (runs / ".edgetune-view").exists() or all(
        job.run != "stopped" for job in Jobs(runs).all()
    )
    port = site.host.partition(":")[2]
    for path in ("/", f"/?token={site.token}", "/run?run=first"):
        answer = page.goto(f"http://{REBOUND}:{port}{path}")
        assert answer is not None
        assert (answer.status, answer.text()) == (403, ELSEWHERE)
    page.close()


SHOWN = {
    "list": "/",
    "run": "/run?run=first",
    "stopped": "/run?run=stopped",
    "compare": "/compare?run=first&run=second",
    "new": "/new?model=tiny&data=rows.jsonl&name=other",
    "rows": "/rows?run=first",
    "chat": "/chat?run=first",
    "export": "/export?run=first",
    "error": "/run?run=none",
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    context: BrowserContext, page: Page, site: Site, scheme: Any
) -> None:
    axe, found = Axe(), []
    page.emulate_media(color_scheme=scheme)
    for name, path in SHOWN.items():
        _open(page, site, name, path)
        result = axe.run(page).response["violations"]
        found += [(name, one["id"], [node["html"] for node in one["nodes"]][:3])
                  for one in result if one["impact"] in {"serious", "critical"}]  # fmt: skip
    assert found == []


def test_everything_is_reached_by_keyboard_and_seen_when_it_is(page: Page, site: Site) -> None:
    for name, path in SHOWN.items():
        _open(page, site, name, path)
        wanted = page.evaluate(REACHABLE)
        reached = set()
        for _ in range(wanted + 3):
            page.keyboard.press("Tab")
            number, outlined = page.evaluate(FOCUSED)
            if number is not None:
                assert outlined, f"{name}: focus is not seen"
                reached.add(number)
        assert len(reached) == wanted, name


def test_nothing_is_wider_than_a_phone(page: Page, site: Site) -> None:
    page.set_viewport_size({"width": 375, "height": 700})
    for name, path in SHOWN.items():
        _open(page, site, name, path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, name


REACHABLE = """() => {
  const all = [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")];
  const seen = all.filter((one) => one.checkVisibility() && !one.disabled && one.type !== "hidden"
    && !(one.type === "radio" && !one.checked));
  seen.forEach((one, number) => { one.dataset.number = number; });
  return seen.length;
}"""
FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one);
  const ring = parseFloat(style.outlineWidth) > 0 && style.outlineStyle !== "none";
  return [one.dataset.number ?? null, ring];
}"""


def _open(page: Page, site: Site, name: str, path: str) -> None:
    page.goto(f"{site.base}{path}")
    if name == "new":
        expect(page.locator(".fit")).to_be_visible(timeout=SLOW)
    assert page.locator(".alert:visible").count() == (name == "error")
