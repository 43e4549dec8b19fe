"""Runs and adapters that are not there, not whole, or of another model; exports of them."""

from __future__ import annotations

import json

from mistakes.mistake import Mistake, thread

LORA = json.dumps(
    {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"],
     "base_model_name_or_path": "tiny"}
)  # fmt: skip

ADAPTERS = (
    Mistake(line="generate nowhere -p hi", code=2, says=("nowhere",)),
    Mistake(line="generate adapters.npz -p hi", code=5, says=("adapters.npz",),
            files={"adapters.npz": b"x"}, link=thread("ml-explore/mlx-examples", 1317)),
    Mistake(line="generate adapter -p hi", code=2, says=("adapter_config.json",),
            files={"adapter/adapter_model.safetensors": b"x"},
            link=thread("eosphoros-ai/DB-GPT-Hub", 71)),
    Mistake(line="generate adapter -p hi", code=5, says=("adapter_model.safetensors",),
            files={"adapter/adapter_config.json": LORA}, link=thread("ollama/ollama", 9505)),
    Mistake(line="generate adapter -p hi", code=5, says=("pickle",),
            files={"adapter/adapter_config.json": LORA, "adapter/adapter_model.bin": b"x"}),
    Mistake(line="generate adapter -p hi", code=5, says=("adapter_config.json",),
            files={"adapter/adapter_config.json": "{", "adapter/adapter_model.safetensors": b"x"},
            link=thread("huggingface/peft", 1337)),
    Mistake(line="eval nowhere --data rows.jsonl", code=2, says=("nowhere",)),
    Mistake(line="eval tiny", code=2, says=("--data",)),
    Mistake(line="chat nowhere", code=2, says=("nowhere",)),
    Mistake(line="serve nowhere --adapter-path /tmp/does-not-exist", code=2,
            says=("There is no --adapter-path", "edgetune generate ADAPTER"), link=thread("ml-explore/mlx-lm", 1249)),
    Mistake(line="generate tiny", code=2, says=("prompt",)),
    Mistake(line="generate tiny -p hi --temperature -1", code=2, says=("--temperature",)),
    Mistake(line="export nowhere --to hf --output out", code=2, says=("nowhere",)),
    Mistake(line="export tiny --to ggml --output out", code=2, says=("'ggml'", "gguf"),
            link=thread("ggml-org/llama.cpp", 3953)),
    Mistake(line="export run.bin --to gguf --output out.gguf", code=5, says=("run.bin",),
            files={"run.bin": b"x"}, link=thread("ggml-org/llama.cpp", 7287)),
    Mistake(line="export final_model --to ollama --output out", code=2, says=("final_model",),
            files={"final_model/README.md": "x"}, link=thread("ollama/ollama", 13314)),
    Mistake(line="export tiny --to hf", code=2, says=("--output",)),
    Mistake(line="train --from nowhere --data rows.jsonl", code=2, says=("nowhere",)),
    Mistake(line="train --from adapter --data rows.jsonl", code=5, says=("adapter",),
            files={"adapter/adapter_config.json": LORA},
            link=thread("hiyouga/LlamaFactory", 2977)),
)  # fmt: skip
