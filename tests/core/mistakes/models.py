"""Models that are missing, misspelled, of another kind, or in files that cannot be used."""

from __future__ import annotations

import json

from mistakes.mistake import Mistake, thread

LLAMA = {
    "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 11,
    "max_position_embeddings": 32,
}  # fmt: skip


def config(**fields: object) -> str:
    """Return a ``config.json``."""
    return json.dumps({**LLAMA, **fields})


MODELS = (
    Mistake(line="train --model unsloth/gpt-oss-20b --data rows.jsonl", code=5,
            says=("unsloth/gpt-oss-20b", "edgetune fetch unsloth/gpt-oss-20b", "--model FOLDER"),
            link=thread("unslothai/unsloth", 3431)),
    Mistake(line="plan --model /model/gpt-oss-120b/outputs_v2/checkpoint-450", code=5,
            says=("There is no folder /model/gpt-oss-120b/outputs_v2/checkpoint-450",),
            link=thread("unslothai/unsloth", 3408)),
    Mistake(line="train --model unsloth/Qwen3-4B-Instruct-2507 --data rows.jsonl", code=5,
            says=("unsloth/Qwen3-4B-Instruct-2507", "edgetune fetch"),
            link=thread("unslothai/unsloth", 3479)),
    Mistake(line="train --model unsloth/Llama-3.3-70B-Instruct-GGUF --data rows.jsonl", code=5,
            says=("meta-llama/Llama-3.3-70B-Instruct", "edgetune fetch"),
            link=thread("unslothai/unsloth", 1720)),
    Mistake(line="plan --model name/modelname", code=5,
            says=("name/modelname", "not on this machine", "edgetune fetch"),
            link=thread("unslothai/unsloth", 368)),
    Mistake(line="generate saved -p hi", code=2, says=("saved", "config.json"),
            files={"saved/tokenizer.json": "{}"}, link=thread("unslothai/unsloth", 421)),
    Mistake(line="plan --model tuned", code=5, says=("holds an adapter, not a model",),
            files={"tuned/adapter_config.json": "{}"}, link=thread("OptimalScale/LMFlow", 487)),
    Mistake(line="plan --model mine", code=5, says=("mine has no config.json",),
            files={"mine/README.md": "x"}, link=thread("huggingface/transformers", 28688)),
    Mistake(line="generate mine -p hi", code=5, says=("only as pickles", "pytorch_model.bin"),
            files={"mine/config.json": config(), "mine/pytorch_model.bin": b"x"},
            link=thread("ggml-org/llama.cpp", 5142)),
    Mistake(line="plan --model model.safetensors", code=5, says=("is a file", "the folder"),
            files={"model.safetensors": b"x"}, link=thread("ollama/ollama", 6273)),
    Mistake(line="plan --model model.gguf", code=5, says=("model.gguf",),
            files={"model.gguf": b"GGUFx"}, link=thread("ollama/ollama", 3246)),
    Mistake(line="plan --model nowhere.gguf", code=5, says=("There is no file nowhere.gguf",)),
    Mistake(line="plan --model deepseek", code=5, says=("deepseek",),
            files={"deepseek/config.json": config(model_type="deepseek_v3")},
            link=thread("ollama/ollama", 10904)),
    Mistake(line="plan --model vision", code=5, says=("mllama",),
            files={"vision/config.json": config(model_type="mllama")},
            link=thread("ggml-org/llama.cpp", 13805)),
    Mistake(line="plan --model paligemma", code=5, says=("paligemma",),
            files={"paligemma/config.json": config(model_type="paligemma")},
            link=thread("ollama/ollama", 8893)),
    Mistake(line="plan --model chatglm", code=5, says=("chatglm",),
            files={"chatglm/config.json": config(
                model_type="chatglm", auto_map={"AutoModel": "modeling_chatglm.ChatGLM"})},
            link=thread("mymusise/ChatGLM-Tuning", 163)),
    Mistake(line="plan --model quantized", code=5, says=("gptq", "marlin"),
            files={"quantized/config.json": config(
                quantization_config={"quant_method": "gptq", "checkpoint_format": "marlin"})},
            link=thread("hiyouga/LlamaFactory", 4559)),
    Mistake(line="plan --model quantized", code=5, says=("HQQ", "bitsandbytes"),
            files={"quantized/config.json": config(quantization_config={"quant_method": "hqq"})}),
    Mistake(line="plan --model broken", code=5, says=("broken/config.json cannot be read",),
            files={"broken/config.json": "{"}),
    Mistake(line="plan --model odd", code=5, says=("hidden_size", "num_attention_heads"),
            files={"odd/config.json": config(hidden_size="64", num_attention_heads=0)}),
    Mistake(line="plan --model ollama:llama3.2", code=5, says=("Ollama has no model llama3.2", "OLLAMA_MODELS"),
            link=thread("ollama/ollama", 7781)),
    Mistake(line="plan --model lama-7b", code=5, says=("llama-7b",)),
    Mistake(line="plan --model llama-8b", code=5, says=("llama-3.1-8b", "llama-3-8b")),
    Mistake(line="plan --model Qwen/Qwen2.5-7b-instruct-1m", code=5, says=("qwen2.5-7b",)),
    Mistake(line="plan --model gpt-4", code=5, says=("gpt-4", "edgetune models")),
    Mistake(line="plan --model ''", code=2, says=("--model is empty", "Give a name")),
    Mistake(line="plan --model 'C:\\models\\llama'", code=5, says=("There is no folder",),
            link=thread("hiyouga/LlamaFactory", 2222)),
    Mistake(line="chat llama3.2", code=2, says=("llama-3.2-3b-instruct",)),
    Mistake(line="chat qwen2.5-0.5b-instruct", code=2,
            says=("edgetune fetch Qwen/Qwen2.5-0.5B-Instruct",)),
)  # fmt: skip
