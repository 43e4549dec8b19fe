"""The table of chat templates in docs/data.md: no cell is silently different, and it is true."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgetune.data import read_dataset
from edgetune.runs import RunFolder

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from template_table.chats import CHATS  # noqa: E402
from template_table.judge import judge  # noqa: E402
from template_table.model import tokenizer_of  # noqa: E402
from template_table.structure import Structure, says, writes  # noqa: E402
from template_table.table import STRUCTURES, verdicts_of  # noqa: E402
from update_templates import DOCUMENT, updated  # noqa: E402

KINDS = ("Qwen 2.5", "Qwen 3 Thinking", "QwQ", "SmolLM 3", "R1 Distill Llama", "Mistral Nemo", "Functionary",
         "Gemma 4", "Command R7B", "DeepSeek R1", "GLM 4.7", "gpt-oss", "Apertus", "Nemotron Nano 2",
         "white space before BOS", "a template that closes results otherwise when more follows")  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_nothing_is_learned_otherwise_than_sampled_without_a_word(name):
    verdicts = verdicts_of({name: STRUCTURES[name]})[name]
    assert verdicts.keys() == CHATS.keys()
    assert {chat: verdict for chat, verdict in verdicts.items() if verdict.kind == "silent"} == {}
    assert all(verdict.because for verdict in verdicts.values() if verdict.kind != "exact")


@pytest.mark.long
def test_the_table_in_the_documents_is_true():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert len(STRUCTURES) >= 60
    assert "SILENT" not in document.partition("<!-- template table -->")[2].partition(" silent.")[0]
    assert updated(document) == document


def test_the_judge_sees_what_is_learned_otherwise(tmp_path, monkeypatch):
    """A mask that is a letter short, or begins after a part of the answer, is no exact cell."""
    from edgetune.data.encode import Encoder

    tokenizer = tokenizer_of(STRUCTURES["Qwen 2.5"], tmp_path)
    row, mark = CHATS["turns"], Encoder.mark
    assert judge(tokenizer, row).kind == "exact"
    for shift in ((1, 0), (0, -1), (-2, 0)):

        def shifted(self, content, shift=shift):
            marked = mark(self, content)
            spans = [(start + shift[0], stop + shift[1]) for start, stop in marked.spans]
            return type(marked)(marked.text, spans, marked.end)

        monkeypatch.setattr(Encoder, "mark", shifted)
        assert judge(tokenizer, row).kind == "silent"


def test_a_template_that_has_no_end_is_noted(tmp_path):
    endless = Structure(
        user=says("Q: ", "\n"), assistant=says("A: ", "\n"), prompt=writes("A:"), special=("</s>",)
    )
    verdict = judge(tokenizer_of(endless, tmp_path), CHATS["turns"])
    assert (verdict.kind, verdict.because) == ("noted", "a turn is learned without an end")


@pytest.mark.parametrize("name", ["R1 Distill Llama", "QwQ", "Command R7B", "GLM 4.7"])
def test_generation_starts_as_training_did(name, tmp_path):
    """The prompt opens a thought, and no answer in the file has one."""
    tokenizer = tokenizer_of(STRUCTURES[name], tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(CHATS["system"]) + "\n" + json.dumps(CHATS["turns"]) + "\n")
    dataset = read_dataset(path, tokenizer, validation=0)
    cut = dataset.receipt.prompt_cut
    assert cut
    assert any("edgetune generate does so too" in note for note in dataset.receipt.notes)
    for number, chat in enumerate(("system", "turns")):
        tokens, mask = dataset.train[number]
        answer = tokens.tolist()[: len(mask) - int(mask[::-1].argmin())]
        prompt = tokenizer.prompt_tokens(CHATS[chat]["messages"][:-1], cut)
        assert answer[: len(prompt)] == prompt
        assert mask[len(prompt)]
        assert not mask[len(prompt) - 1]


def test_generation_starts_with_the_whole_prompt_where_one_answer_did(tmp_path):
    tokenizer = tokenizer_of(STRUCTURES["R1 Distill Llama"], tmp_path / "model")
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(CHATS["one turn"]) + "\n" + json.dumps(CHATS["thought"]) + "\n")
    dataset = read_dataset(path, tokenizer, validation=0)
    assert dataset.receipt.prompt_cut == ""
    assert any("edgetune generate does not so too" in note for note in dataset.receipt.notes)
    tokens, mask = dataset.train[1]
    learned = tokenizer.decode(tokens[mask].tolist())
    assert learned == "It is 7 times 13.\n</think>\n\nNo.<|end_of_sentence|>"
    prompt = tokenizer.prompt_tokens(CHATS["thought"]["messages"][:1])
    assert tokens.tolist()[: len(prompt)] == prompt


def test_a_run_remembers_how_its_answers_began(tmp_path):
    """From receipt.json; a run without one, or of an earlier version, begins as the template does."""
    run = RunFolder(tmp_path)
    assert run.prompt_cut() == ""
    for content, cut in (
        ('{"prompt_cut": "<think>\\n"}', "<think>\n"),
        ("{}", ""),
        ("[", ""),
        ("[]", ""),
    ):
        (tmp_path / "receipt.json").write_text(content.replace("\n", "\\n"))
        assert run.prompt_cut() == cut
