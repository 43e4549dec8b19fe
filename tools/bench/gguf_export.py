"""What does exporting a model to GGUF take, in memory and time, beside bare libgguf?

    python tools/bench/gguf_export.py /tmp/models [--model tinyllama-1.1b] [--quantize q4_k_m ...]

The model has random weights in a published shape and the built-in tokenizer; an adapter of rank 16
on all projections is merged into it. Memory is the anonymous memory of the exporting process at its
peak. ``libgguf`` quantizes the same matrices to the same types, on the same cores, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from models import write_model

import edgetune_profiles
from edgetune.adapters import save_adapter
from edgetune.exporters.gguf.mixture import tensor_type
from edgetune.methods.lora import Lora
from edgetune.model import LocalModel
from edgetune.model.gguf_names import EMBEDDING, HEAD
from edgetune.tensors.reader import read_rows
from edgetune.tensors.writer import row_spans

RANK = 16


def main() -> None:
    """Print one JSON line a quantization."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tinyllama-1.1b")
    parser.add_argument("--quantize", nargs="+", default=["q4_k_m"])
    parser.add_argument("--no-libgguf", action="store_true")
    options = parser.parse_args()
    base = options.folder / options.model
    if not (base / "config.json").is_file():
        _write(options.model, base)
    adapter = _adapter(base, options.folder / f"{options.model}-adapter")
    for quantization in options.quantize:
        found = _exported(base, adapter, quantization, options.folder / "exported.gguf")
        if not options.no_libgguf:
            bare = _bare(LocalModel.open(base), quantization)
            found |= {"libgguf_seconds": round(bare, 1), "ratio": found["seconds"] / bare}
        print(json.dumps({"model": options.model, "quantization": quantization, **found}))


def _write(name: str, base: Path) -> None:
    write_model(name, base, {})
    tiny = Path(edgetune_profiles.__file__).parent / "tiny"
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny / file, base)


def _adapter(base: Path, folder: Path) -> Path:
    shape, draw, method = LocalModel.open(base).shape, np.random.default_rng(0), Lora(rank=RANK)
    tensors = {
        x.name: draw.normal(0, 0.01, x.shape).astype(np.float32) for x in method.tensors(shape)
    }
    folder.mkdir(exist_ok=True)
    save_adapter(folder, method, shape, tensors, base=str(base))
    return folder


def _exported(base: Path, adapter: Path, quantization: str, output: Path) -> dict[str, Any]:
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", "edgetune", "export", str(adapter), "--model", str(base)]
    command += ["--to", "gguf", "--quantize", quantization, "--output", str(output), "--no-check"]
    start, peak, cpu = time.perf_counter(), 0, 0.0
    process = subprocess.Popen([*command, "--quiet"])
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            peak = max(peak, *(_anonymous(x.pid) for x in family))
            times = [x.cpu_times() for x in family]
            cpu = max(cpu, sum(x.user + x.system for x in times))
        except (psutil.Error, OSError):
            pass
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit(process.returncode)
    return {
        "peak_mb": round(peak / 1e6, 1),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(cpu, 1),
        "file_mb": round(output.stat().st_size / 1e6, 1),
    }


def _anonymous(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    found = text.partition("RssAnon:")[2].split()  # a process that has ended has none
    return int(found[0]) * 1024 if found else 0


def _bare(model: LocalModel, quantization: Any) -> float:
    """Return the seconds that libgguf takes for the same matrices, reading them aside."""
    import gguf
    import libgguf

    seconds, output = 0.0, EMBEDDING if model.shape.tied else HEAD
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for tensor in model.shape.tensors():
            name = _named(tensor.name)
            kind = tensor_type(name, tensor.shape, model.shape, quantization, output=output)
            if not kind.name.startswith("Q"):
                continue
            number = gguf.GGMLQuantizationType[kind.name]
            for span in row_spans(tensor.shape):
                rows = read_rows(model.tensors[tensor.name], *span).astype(np.float32)
                parts = np.array_split(rows, os.cpu_count() or 1)
                start = time.perf_counter()
                list(pool.map(lambda part, to=number: libgguf.quantize_rows(part, to), parts))
                seconds += time.perf_counter() - start
    return seconds


def _named(name: str) -> str:
    """Return llama.cpp's name of one of Llama's matrices, as far as its type depends on it."""
    layer = name.split(".")[2] if name.startswith("model.layers.") else "0"
    parts = {"v_proj": "attn_v", "down_proj": "ffn_down", "embed_tokens": None, "lm_head": "output"}
    part = next((to for of, to in parts.items() if of in name), "attn_q")
    if part is None:
        return EMBEDDING
    return f"{part}.weight" if part == "output" else f"blk.{layer}.{part}.weight"


if __name__ == "__main__":
    main()
