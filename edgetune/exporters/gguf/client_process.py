"""The process in which llama.cpp loads a file and answers questions about it, a line of JSON each.

Questions come on standard input and answers go to what standard output was at the start; all that
llama.cpp prints goes to standard error. The server inside listens on 127.0.0.1 only.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np


def main() -> None:
    """Load what the first line names, then answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    server: Any = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if server is None:
                server, answer = _loaded(question), {}
            else:
                answer = _answer(server, question)
        except Exception as error:  # noqa: BLE001 (whatever the library raises is the answer)
            answer = {"error": f"{type(error).__name__}: {error}."}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _loaded(question: Mapping[str, Any]) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = question["file"]
    params.n_ctx = question["context"]
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.warmup = params.fit_params = params.ui = False
    params.offline = True
    # keys, values and scores as exact as the weights
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in question["adapters"]
    ]
    return xllamacpp.Server(params)


def _answer(server: Any, question: Mapping[str, Any]) -> dict[str, Any]:
    match question["ask"]:
        case "next":
            return {"values": _next(server, question["tokens"], question["size"])}
        case "generate":
            return {"tokens": _generated(server, question["tokens"], question["count"])}
        case "tokens":
            return _posted(
                server,
                "/tokenize",
                {
                    "content": question["text"],
                    "add_special": question["special"],
                    "parse_special": True,
                },
            )
        case "render":
            found = _posted(server, "/apply-template", {"messages": question["messages"]})
            return {"text": found["prompt"]}
    return {"error": f"{question['ask']} is no question."}


def _next(server: Any, tokens: list[int], size: int) -> str:
    values = np.full(size, -np.inf, np.float32)
    # probabilities are told of tokens that have a text: one is forced, which does not change them
    letter = _posted(server, "/tokenize", {"content": "a"})["tokens"][-1]
    found = _completed(server, tokens, n_predict=1, n_probs=size, logit_bias=[[letter, 1000.0]])
    for entry in found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        values[entry["id"]] = entry["logprob"]
    return base64.b64encode(values.tobytes()).decode()


def _generated(server: Any, tokens: list[int], count: int) -> list[int]:
    found = _completed(server, tokens, n_predict=count, n_probs=1)
    content = found["choices"][0].get("logprobs", {}).get("content", [])
    return [entry["id"] for entry in content]


def _completed(server: Any, tokens: list[int], **options: Any) -> dict[str, Any]:
    found = server.handle_completions({"prompt": tokens, "temperature": 0.0, **options})
    if "choices" not in found:
        raise ValueError(json.dumps(found))
    return dict(found)


def _posted(server: Any, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = Request(server.listening_address + path, json.dumps(body).encode(), headers)
    with build_opener(ProxyHandler({})).open(request) as response:
        return dict(json.load(response))


if __name__ == "__main__":
    main()
