"""``edgetune study``: what is printed is what the definitions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows import Cli, call, write_rows

import edgetune
from edgetune.adapters import load_adapter, save_adapter
from edgetune.data.attacks import ATTACKS
from edgetune.insight import correlation, overlaps, turning
from edgetune.model import open_model
from edgetune.tensors.reader import read_tensor

EXAMPLES = Path(__file__).parents[2] / "examples" / "home_commands.jsonl"
LEARN = (
    "--device", "cpu", "--compute-dtype", "float32", "--data", "rows.jsonl", "--steps", "3",
    "--validation", "0", "--learning-rate", "3e-3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, a run of LoRA and one of a prompt."""
    folder = tmp_path_factory.mktemp("work")
    rows = [json.loads(x) for x in EXAMPLES.read_text().splitlines()[:16]]
    write_rows(folder / "rows.jsonl", rows)
    for name, method in (("run", ("--rank", "4")), ("prompt", ("--method", "prompt"))):
        called = call("train", "--model", "tiny", *LEARN, *method, "--output", name, cwd=folder)
        assert called.code == 0, called.err
    return folder


@pytest.fixture
def cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    monkeypatch.chdir(folder)
    return Cli(capsys)


def _json(cli: Cli, *arguments: Any) -> dict[str, Any]:
    called = cli("study", *arguments, "--json", "-q")
    assert called.code == 0, called.err
    found: dict[str, Any] = json.loads(called.out)
    return found


def test_an_adapter_is_left_out_of_spans_of_blocks(cli: Cli, tmp_path: Path) -> None:
    found = _json(cli, "blocks", "run", "--data", "rows.jsonl", "--spans", "4")
    scores = json.loads(cli("eval", "run", "--data", "rows.jsonl", "--json", "-q").out)
    layers = open_model("tiny").shape.layers

    assert found["edges"] == list(range(layers + 1))
    assert found["whole"] == pytest.approx(scores["tuned"]["loss"], rel=1e-6)
    assert found["base"] == pytest.approx(scores["base"]["loss"], rel=1e-6)
    assert found["without"][0][-1] == pytest.approx(found["base"], rel=1e-6)  # all of it
    assert found["without"][1][0] is None

    shape = open_model("tiny").shape
    adapter = load_adapter(Path("run/adapter"), shape)
    without = {
        name: np.zeros_like(x) if name.startswith(shape.block(2)) else x
        for name, x in adapter.tensors.items()
    }
    save_adapter(tmp_path / "cut", adapter.method, shape, without, base="tiny")
    asked = ("eval", str(tmp_path / "cut"), "--data", "rows.jsonl", "--json", "-q")
    alone = json.loads(cli(*asked).out)
    assert found["without"][2][2] == pytest.approx(alone["tuned"]["loss"], rel=1e-3)


def test_what_does_not_begin_as_the_base_cannot_be_left_out(cli: Cli) -> None:
    called = cli("study", "blocks", "prompt", "--data", "rows.jsonl")
    assert called.code == 2
    assert "no tensors of single blocks" in called.err


def test_rows_of_matrices_are_longer_and_turned(cli: Cli) -> None:
    found = _json(cli, "weights", "run")
    model = open_model("tiny")
    adapter = load_adapter(Path("run/adapter"), model.shape)
    name = f"{model.shape.block(1)}self_attn.q_proj"
    before = read_tensor(model.tensors[f"{name}.weight"]).astype(np.float64)
    a, b = (adapter.tensors[f"{name}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    after = before + adapter.method.alpha / adapter.method.rank * b @ a  # type: ignore[attr-defined]
    norms = np.linalg.norm(before, axis=1), np.linalg.norm(after, axis=1)
    cosines = (before * after).sum(1) / norms[0] / norms[1]

    own = [x for x in found["matrices"] if (x["layer"], x["target"]) == (1, "self_attn.q_proj")]
    assert own[0]["magnitude"] == pytest.approx(np.abs(norms[1] - norms[0]).mean(), rel=1e-4)
    assert own[0]["direction"] == pytest.approx((1 - cosines).mean(), rel=1e-4)


def test_directions_of_an_adapter_are_its_own(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "study.html"
    called = cli("study", "directions", "run", "run/adapter", "--html", str(page))
    assert called.code == 0, called.err
    found = _json(cli, "directions", "run", "run/adapter")
    for tables in (found["inputs"], found["outputs"]):
        assert {"self_attn.q_proj", "mlp.down_proj"} <= tables.keys()
        for values in tables.values():
            np.testing.assert_allclose(np.diag(values), 1.0, atol=1e-6)
    text = page.read_text()
    assert 'class="h8"' in text
    assert "<script" not in text


def test_overlaps_are_those_of_the_definition() -> None:
    draw = np.random.default_rng(0)
    one, other = (draw.standard_normal((r, 40)).astype(np.float32) for r in (3, 5))
    found = overlaps(one, other)
    u = np.linalg.svd(one.astype(np.float64), full_matrices=False)[2]
    v = np.linalg.svd(other.astype(np.float64), full_matrices=False)[2]
    for i in range(3):
        for j in range(5):
            expected = np.square(u[: i + 1] @ v[: j + 1].T).sum() / min(i + 1, j + 1)
            assert found[i, j] == pytest.approx(expected)
    np.testing.assert_allclose(overlaps(one, np.eye(40, dtype=np.float32))[:, -1], 1.0)


def test_a_row_of_zeros_turns_nowhere_and_small_turns_are_exact() -> None:
    rows = np.array([[0.0, 0.0], [1.0, 0.0]], np.float32)
    found = turning(rows, np.array([[0.0, 2.0], [3.0, 3e-6]], np.float32))
    assert found.mean_magnitude == pytest.approx(2.0)
    assert found.direction == pytest.approx(5e-13, rel=1e-6)
    assert correlation([(0.0, 1.0)] * 5) is None
    assert correlation([(0, 0), (1, -2), (2, -4)]) == pytest.approx(-1.0)


def test_a_dimension_is_read_from_its_curve(cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "dimension.html"
    found = _json(
        cli, "intrinsic-dimension", "--model", "tiny", "--data", EXAMPLES, "--device", "cpu",
        "--steps", 4, "--dimensions", "16,4096", "--share", "0.1", "--html", page,
    )  # fmt: skip
    (curve,) = found["curves"]
    small, large = curve["points"]
    assert large["loss"] < small["loss"] < curve["base"]
    assert curve["full"] < curve["base"]
    for point in (small, large):
        fallen = (curve["base"] - point["loss"]) / (curve["base"] - curve["full"])
        assert point["share"] == pytest.approx(fallen)
        assert point["parameters"] == point["dimension"] + 4
    reached = [point["dimension"] for point in (small, large) if point["share"] >= 0.1]
    assert found["dimension"] == curve["dimension"] == (reached[0] if reached else None)
    assert "<svg" in page.read_text()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_dimension_of_a_task_is_the_same_within_a_step_of_the_grid(cli: Cli) -> None:
    grid = (64, 256, 1024, 4096)
    found = _json(
        cli, "intrinsic-dimension", "--model", "tiny", "--data", EXAMPLES, "--device", "cpu",
        "--steps", 40, "--dimensions", ",".join(map(str, grid)), "--seeds", 3,
    )  # fmt: skip
    places = [grid.index(curve["dimension"]) for curve in found["curves"]]
    assert max(places) - min(places) <= 1


ASKED = [
    {"prompt": f"Please switch the {thing} in the {room} on.", "completion": "done"}
    for thing in ("lamp", "heater", "radio")
    for room in ("kitchen", "garage", "cellar", "attic")
]


def test_a_prefix_is_attacked_and_tuned(cli: Cli, folder: Path) -> None:
    write_rows(folder / "asked.jsonl", ASKED)
    called = cli(
        "train", "--model", "tiny", "--device", "cpu", "--data", "asked.jsonl", "--method", "prefix",
        "--compute-dtype", "float32",
        "--prefix-length", "4", "--reparameterize", "--prefix-hidden", "32", "--steps", "40", "--learning-rate", "0.02",
        "--validation", "0", "--no-verdict", "--samples", "0", "--output", "prefix", "-q",
    )  # fmt: skip
    assert called.code == 0, called.err
    asked = ("robustness", "prefix", "--data", "asked.jsonl", "--clean", "asked.jsonl")
    steps = ("--tuning-steps", "3", "--tuning-rate", "0.001")
    found = _json(cli, *asked, *steps, "--tries", "2")

    assert found["rows"] == len(ASKED)
    assert [one["attack"] for one in found["attacks"]] == ["none", *ATTACKS]
    clean, *attacked = found["attacks"]
    assert clean["right"] == found["known"] >= 8
    assert all(one["before"] > clean["before"] for one in attacked)
    assert sum(one["after"] for one in attacked) < sum(one["before"] for one in attacked)
    python = edgetune.study(
        "robustness", "prefix", data=ASKED, clean=ASKED, tries=2, tuning_steps=3, tuning_rate=1e-3
    )
    assert [one.right for one in python.attacks] == [one["right"] for one in found["attacks"]]
    text = cli("study", *asked, "--tries", "1", "--tuning-steps", "1").out
    assert "Share of rows answered right" in text


def test_only_a_prefix_that_answers_rows_right_is_attacked(cli: Cli) -> None:
    asked = ("--data", "rows.jsonl", "--clean", "rows.jsonl")
    called = cli("study", "robustness", "run", *asked)
    assert called.code == 2
    assert "run is lora: a prefix (--method prefix) is tuned this way" in called.err
    called = cli(
        "train", "--model", "tiny", *LEARN, "--method", "prefix", "--output", "early", "-q"
    )
    assert called.code == 0, called.err
    called = cli("study", "robustness", "early", *asked)
    assert called.code == 2
    assert "Of 16 clean rows 0 are answered right" in called.err
