"""A page in a process of its own over a folder of runs, and a real browser."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from measurements import plain_measurements
from playwright.sync_api import Browser, sync_playwright
from rows import chat, write_rows
from sites import REBOUND, Site, viewed

from edgetune.device.base import PACKAGES
from edgetune.speed.measured import save_measurements

REQUIRED = "EDGETUNE_REQUIRE_BROWSER"
"""Set where a missing browser is a failure."""
RESOLVED = [f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        because = f"no browser here: none of {', '.join(BROWSERS)} is on the path"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{because}, and {REQUIRED} is set")
        pytest.skip(because)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=[*RESOLVED, *(["--no-sandbox"] if root else [])]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of rows; the speed of the machine is known in it."""
    folder = tmp_path_factory.mktemp("workplace")
    rows = [chat(f"Count to {i}.", " ".join(map(str, range(1, i % 9 + 2)))) for i in range(60)]
    write_rows(folder / "rows.jsonl", rows)
    (folder / "runs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETUNE_CACHE", str(folder / "cache"))
        for backend in PACKAGES:
            save_measurements(plain_measurements(backend))
    return folder


@pytest.fixture(scope="session")
def site(workplace: Path) -> Iterator[Site]:
    """The page of the workplace's runs."""
    with viewed(workplace, "runs") as site:
        yield site
