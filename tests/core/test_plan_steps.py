"""What a plan says of the number of steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgetune.workflows.planning import PlanRequest, plan_for


@pytest.mark.parametrize(("length", "packing"), [(1, True), (1, False), (40, True)])
def test_fewer_steps_by_packing_are_said(length: int, packing: bool, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "Hi", "completion": "good " * length}
    long = {"prompt": "Hi", "completion": "good " * 40}
    file.write_text("".join(json.dumps(x) + "\n" for x in [*[row] * 40, long]), "utf-8")
    plan = plan_for(
        PlanRequest(
            model="tiny", data=file, device="cpu",
            choice={"micro_batch": 4, "accumulation": 2},
            training={"packing": packing, "epochs": 2.0, "validation": 0.0},
        )
    ).plan  # fmt: skip
    said = [reason for reason in plan.reasons if "packing puts" in reason]
    if length > 1 or not packing:
        assert not said
        return
    (reason,) = said
    steps, alone = [
        int(word.rstrip(":")) for word in reason.split() if word.rstrip(":").isdecimal()
    ][:2]
    assert alone == 2 * 6  # 41 rows, 8 a step
    assert 0 < steps < alone
