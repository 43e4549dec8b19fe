"""Does a run keep to its `--memory`, and never die of it? Models x formats x methods x limits.

    python tools/bench/limits.py /tmp/limits --output limits.jsonl [--only tiny llama]

Each run is planned once without a limit; then it is trained under its planned peak times each
factor, through the command line, in a folder of its own. Below the plan's figure a run may end
with exit code 7, from 1.00 on every one has to finish. Deaths by signal are those of workers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from edgetune.model import resolve
from edgetune.workflows.random_model import write_random_model

ROOT = Path(__file__).parents[2]
FACTORS = (1.0, 1.01, 1.05, 1.25)
DTYPES = ("float32", "bfloat16")
METHODS = ("lora", "adapter")
STEPS, ROWS = 4, 48
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
GROUPED = {"num_key_value_heads": 2, "num_attention_heads": 8, "tie_word_embeddings": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**GROUPED, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6},
    "qwen3": {**GROUPED, "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4,
              "head_dim": 32},
    "gemma2": {**GROUPED, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3,
               "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "gpt2": {"n_embd": 320, "n_layer": 5, "n_head": 5, "n_positions": 256},
}  # fmt: skip
"""Small shapes of four families; the vocabulary is that of the built-in model."""


def write_models(folder: Path) -> dict[str, str]:
    """Return what ``--model`` says for each model; random ones are written where they are not."""
    tiny = resolve("tiny")
    references = {"tiny": "tiny"}
    for family, config in CONFIGS.items():
        path = folder / family
        if not (path / "config.json").exists():
            common = {
                "model_type": family, "vocab_size": tiny.shape.vocabulary, "eos_token_id": 2,
                "max_position_embeddings": 256, "torch_dtype": "float32",
            }  # fmt: skip
            write_random_model(path, {**common, **config})
            for name in TOKENIZER:
                shutil.copy(tiny_folder() / name, path / name)
        references[family] = str(path)
    return references


def tiny_folder() -> Path:
    """Return the folder of the built-in model."""
    import edgetune_profiles

    return Path(edgetune_profiles.__file__).parent / "tiny"


def edgetune(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Call the command line."""
    return subprocess.run(
        [sys.executable, "-m", "edgetune", *arguments],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


def runs(given: argparse.Namespace, models: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Plan and train each combination; yield what came of each run."""
    for model, dtype, method in product(given.only or models, DTYPES, METHODS):
        wanted = (
            "--model", models[model], "--data", "rows.jsonl", "--device", "cpu",
            "--compute-dtype", dtype, "--method", method, "--steps", str(STEPS),
        )  # fmt: skip
        planned = edgetune("plan", *wanted, "--json", cwd=given.folder)
        if planned.returncode:
            sys.exit(f"{model} {dtype} {method}: {planned.stderr}")
        peak = json.loads(planned.stdout)["memory"]["peak_bytes"]
        for factor in given.factors:
            yield train(wanted, round(peak * factor), given.folder) | {
                "model": model, "dtype": dtype, "method": method, "factor": factor,
            }  # fmt: skip


def train(wanted: tuple[str, ...], limit: int, folder: Path) -> dict[str, Any]:
    """Train under a limit in bytes and return what came of it."""
    run, begun = folder / "run", time.monotonic()
    shutil.rmtree(run, ignore_errors=True)
    ended = edgetune("train", *wanted, "--memory", str(limit), "--output", "run", cwd=folder)
    notes = _lines(run / "journal.jsonl")
    peaks = [line.get("peak_bytes", 0) for line in _lines(run / "metrics.jsonl")]
    deaths = ended.stderr.count("The training process ") + ended.stderr.count("The process of ")
    return {
        "limit_bytes": limit,
        "code": ended.returncode,
        "deaths": deaths + (ended.returncode < 0),
        "smaller": sum(note["what"].startswith("smaller") for note in notes),
        "peak_bytes": max(peaks, default=0),
        "seconds": round(time.monotonic() - begun, 1),
        "said": ended.stderr.splitlines()[-1:] if ended.returncode else [],
    }


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main() -> None:
    """Do all runs, write a line each, and say what they come to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where models are written and runs are made")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=["tiny", *CONFIGS])
    parser.add_argument("--factors", nargs="+", type=float, default=FACTORS)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = (ROOT / "examples" / "home_commands.jsonl").read_text().splitlines()[:ROWS]
    (given.folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    found = []
    with given.output.open("a") as file:
        for run in runs(given, write_models(given.folder)):
            found.append(run)
            print(json.dumps(run), file=file, flush=True)
            print(json.dumps(run), file=sys.stderr)
    print(summary(found))


def summary(found: list[dict[str, Any]]) -> str:
    """Return the counts that matter."""
    enough = [run for run in found if run["factor"] >= 1]
    over = [run for run in enough if run["peak_bytes"] > run["limit_bytes"]]
    return (
        f"{len(found)} runs: {sum(run['deaths'] for run in found)} deaths by signal; of "
        f"{len(enough)} with the plan's memory or more {sum(run['code'] == 0 for run in enough)} "
        f"finished, {sum(run['smaller'] > 0 for run in enough)} in smaller micro-batches, "
        f"{len(over)} peaked above the limit. Exit codes: {dict(Counter(r['code'] for r in found))}"
    )


if __name__ == "__main__":
    main()
