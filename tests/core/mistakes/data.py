"""Files of examples that are missing, of another shape, or would not train what they seem to."""

from __future__ import annotations

import json

from mistakes.mistake import Mistake, jsonl, thread

USER, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


def check(*rows: object, code: int = 4, says: tuple[str, ...], link: str = "") -> Mistake:
    """Return the mistake of a file with these rows."""
    return Mistake(
        line="data check mine.jsonl --model tiny", code=code, says=says, link=link,
        files={"mine.jsonl": jsonl(*rows)},
    )  # fmt: skip


DATA = (
    Mistake(line="train --model tiny --dataset train1", code=4, says=("train1",),
            link=thread("hiyouga/LlamaFactory", 5341)),
    Mistake(line="train --model tiny --dataset alpca_en_demo", code=4, says=("alpca_en_demo",),
            link=thread("hiyouga/LlamaFactory", 4873)),
    Mistake(line="train --model tiny --data ./mlx_lm/data", code=4, says=("mlx_lm/data",),
            link=thread("ml-explore/mlx-examples", 597)),
    Mistake(line="train --model tiny --data folder", code=4, says=("folder has no file",),
            files={"folder/notes.docx": b"x"}, link=thread("hiyouga/LlamaFactory", 5457)),
    Mistake(line="plan --model tiny --data row.jsonl", code=4, says=("row.jsonl",)),
    Mistake(line="data check mine.jsonl --model tiny", code=4, says=("mine.jsonl has no rows",),
            files={"mine.jsonl": ""}, link=thread("zjunlp/DeepKE", 570)),
    check({"question": "a", "reply": "b"}, says=("question, reply", "--fields"),
          link=thread("ml-explore/mlx-examples", 381)),
    check({"text_column": "a"}, says=("text_column",),
          link=thread("huggingface/autotrain-advanced", 291)),
    check({"output": "b"}, says=("output",), link=thread("axolotl-ai-cloud/axolotl", 879)),
    check({"text": "a b"}, {"text": None}, says=("mine.jsonl:2",),
          link=thread("axolotl-ai-cloud/axolotl", 618)),
    check({"message": [USER, ANSWER]}, says=("message",),
          link=thread("instructlab/instructlab", 2600)),
    check({"conversation": [{"from": "human", "value": "a"}]}, says=("conversation",),
          link=thread("zhiyuanyou/DeQA-Score", 3)),
    check({"input_ids": [1, 2, 3], "attention_mask": [1, 1, 1]}, says=("input_ids",),
          link=thread("simplescaling/s1", 39)),
    check({"train": [{"text": "a"}]}, says=("train",), link=thread("unslothai/unsloth", 252)),
    check({"problem": "a", "solution": "b", "level": 3}, says=("problem", "--fields"),
          link=thread("huggingface/open-r1", 454)),
    check({"messages": [{"role": "narrator", "content": "a"}, ANSWER]}, says=("narrator",),
          link=thread("huggingface/smol-course", 260)),
    check({"messages": [USER]}, says=("mine.jsonl:1", "Add one or remove the row")),
    check({"messages": [USER, {"role": "assistant", "content": ""}]}, says=("mine.jsonl:1",)),
    check({"messages": "a conversation"}, says=("mine.jsonl:1",),
          link=thread("axolotl-ai-cloud/axolotl", 3655)),
    check({"prompt": "a", "chosen": "b", "rejected": "c"}, says=("--objective",),
          link=thread("axolotl-ai-cloud/axolotl", 1417)),
    Mistake(line="train --model tiny --data rows.jsonl --objective dpo", code=4,
            says=("chosen", "rejected"), link=thread("huggingface/alignment-handbook", 93)),
    Mistake(line="data check mine.jsonl --model tiny", code=4, says=("mine.jsonl:1", "JSON"),
            files={"mine.jsonl": "{'text': 'single quotes'}\n"},
            link=thread("axolotl-ai-cloud/axolotl", 1028)),
    Mistake(line="data check mine.json --model tiny", code=4, says=("mine.json",),
            files={"mine.json": '[{"text": "a"}, {"text": "b"'},
            link=thread("oobabooga/textgen", 3902)),
    Mistake(line="data check mine.csv --model tiny", code=4, says=("mine.csv",),
            files={"mine.csv": "1,2\n3,4\n"}, link=thread("huggingface/autotrain-advanced", 425)),
    Mistake(line="data check mine.xlsx --model tiny", code=4, says=("not of a known kind",),
            files={"mine.xlsx": b"PK"}),
    Mistake(line="data check mine.jsonl --model tiny", code=4, says=("mine.jsonl:1",),
            files={"mine.jsonl": json.dumps({"text": "a"}).encode("utf-16")}),
    Mistake(line="data check rows.jsonl --model tiny --fields text", code=2, says=("text", "=")),
    Mistake(line="data check rows.jsonl --model tiny --fields prompt=nowhere,completion=b",
            code=2, says=("names b, nowhere", "There are: messages"),
            link=thread("unslothai/unsloth", 545)),
    Mistake(line="plan --model tiny --data rows.jsonl --context 8", code=4,
            says=("longer than", "--long-rows")),
    Mistake(line="data check rows.jsonl --model tiny --long-rows cut", code=2,
            says=("--context",)),
    Mistake(line="train --model tiny --data rows.jsonl --validation 2", code=2,
            says=("--validation",)),
    Mistake(line="train --model tiny --data rows.jsonl --validation-data nowhere.jsonl", code=4,
            says=("nowhere.jsonl",)),
)  # fmt: skip
