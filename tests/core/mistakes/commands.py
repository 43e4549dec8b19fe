"""Commands that are not there, or are other tools'."""

from __future__ import annotations

from mistakes.mistake import Mistake, thread

COMMANDS = (
    Mistake(line="tran --model tiny", code=2, says=("'tran'", "edgetune train")),
    Mistake(line="finetune --model tiny", code=2, says=("'finetune'", "edgetune train")),
    Mistake(line="pull llama3.2", code=2, says=("'pull'", "edgetune fetch")),
    Mistake(line="run llama3.2", code=2, says=("'run'", "edgetune chat")),
    Mistake(line="fuse --model tiny", code=2, says=("'fuse'", "edgetune export"),
            link=thread("ml-explore/mlx-examples", 1436)),
    Mistake(line="webui", code=2, says=("'webui'", "edgetune"),
            link=thread("hiyouga/LlamaFactory", 4612)),
    Mistake(line="convert model", code=2, says=("'convert'", "edgetune export"),
            link=thread("ggml-org/llama.cpp", 4964)),
    Mistake(line="quantum", code=2, says=("'quantum'", "edgetune --help")),
    Mistake(line="train run.yaml", code=2, says=("run.yaml", "--config run.yaml"),
            files={"run.yaml": "model: tiny\n"}, link=thread("hiyouga/LlamaFactory", 7703)),
    Mistake(line="train tiny rows.jsonl", code=2, says=("tiny", "--model", "--data")),
    Mistake(line="train", code=2, says=("Which model?", "--model REF")),
    Mistake(line="train --model tiny", code=2, says=("Train on what?", "--data FILE")),
    Mistake(line="plan", code=2, says=("Which model?", "edgetune models")),
    Mistake(line="plan --data rows.jsonl", code=2, says=("Which model?",)),
    Mistake(line="doctor --device rtx4090", code=2, says=("'rtx4090'", "rtx-4090")),
    Mistake(line="fetch llama", code=5, says=("'llama'", "edgetune models")),
    Mistake(line="fetch ollama:llama3.2", code=2, says=("ollama pull llama3.2",)),
    Mistake(line="fetch tiny", code=2, says=("comes with edgetune", "--model tiny")),
    Mistake(line="fetch org/model --endpoint hub.example", code=2,
            says=("hub.example is not the address of a hub", "https://")),
    Mistake(line="fetch org/model --endpoint http://127.0.0.1:9", code=5,
            says=("127.0.0.1:9", "nothing listens there")),
    Mistake(line="data rows.jsonl", code=2, says=("'rows.jsonl'", "check")),
)  # fmt: skip
