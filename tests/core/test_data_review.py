"""What a look at all rows finds, in a generated file with known numbers of each."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from data_support import SHAPES, chat, write_model, write_rows

from edgetune.cli.data import command
from edgetune.data import Tokenizer, load_tokenizer, read_dataset, review
from edgetune.data.languages import language_of
from edgetune.data.personal_data import personal_data, veiled

SYSTEM = "You are the helper of a small shop by the sea. " * 8
SYLLABLES = ["ka", "lo", "mi", "ter", "sun", "rey", "ba", "dor", "vel", "nik", "os", "pla"]
PER_KIND = 200


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_model(tmp_path_factory.mktemp("chatml"), SHAPES["chatml"]))


def words(draw: random.Random, count: int) -> list[str]:
    """Words of a made-up language, so that no two texts are alike by chance."""
    return ["".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))) for _ in range(count)]


def said(draw: random.Random, count: int) -> str:
    return " ".join(words(draw, count))


def almost(draw: random.Random, text: str) -> str:
    """The text with one word of it changed, and its letters in another case."""
    found = text.split(" ")
    found[draw.randrange(len(found))] = "changed"
    return " ".join(found).capitalize()


def row(question: str, answer: str) -> dict[str, Any]:
    return chat(question, answer, system=SYSTEM)


def test_near_duplicates_leaks_and_given_answers_are_found(tokenizer, tmp_path):
    draw = random.Random(7)
    trained = [row(said(draw, 25), said(draw, 25)) for _ in range(3 * PER_KIND)]
    near = [
        row(*(almost(draw, m["content"]) for m in each["messages"][1:]))
        for each in trained[:PER_KIND]
    ]
    given = []
    for _ in range(PER_KIND):
        answer = said(draw, 6)
        given.append(row(f"{said(draw, 12)} {answer.upper()}! {said(draw, 5)}", answer))
    new = [row(said(draw, 25), said(draw, 25)) for _ in range(PER_KIND)]
    leaked = [
        row(*(almost(draw, m["content"]) for m in each["messages"][1:]))
        for each in trained[PER_KIND : 2 * PER_KIND]
    ]
    train = write_rows(tmp_path / "train.jsonl", [*trained, *near, *given])
    validation = write_rows(tmp_path / "valid.jsonl", [*new, *leaked])
    found = review(read_dataset(train, tokenizer, validation_data=validation), tokenizer)
    assert found is not None

    def places(findings: Any, lines: range, name: str) -> tuple[float, int]:
        """The share of the lines that was found, and how many others were."""
        told = {each.place for each in findings}
        meant = {f"{name}:{line}" for line in lines}
        return len(told & meant) / len(meant), len(told - meant)

    after = 3 * PER_KIND + 1
    for findings, lines, name in (
        (found.near, range(after, after + PER_KIND), "train.jsonl"),
        (found.leaks, range(PER_KIND + 1, 2 * PER_KIND + 1), "valid.jsonl"),
        (found.given, range(after + PER_KIND, after + 2 * PER_KIND), "train.jsonl"),
    ):
        share, others = places(findings, lines, name)
        assert share >= 0.95
        assert others <= 0.01 * found.rows


NAMES = ["ann", "bo.li", "c_d", "eva+news", "max-m"]


def luhn(digits: str) -> str:
    """The digits with the one that checks them."""
    total = sum(
        n - 9 * (n > 9) for i, d in enumerate(digits[::-1]) for n in [int(d) * (1 + (i + 1) % 2)]
    )
    return f"{digits}{-total % 10}"


def account(draw: random.Random) -> str:
    """A number of an account with the right check digits."""
    number = "".join(draw.choices("0123456789", k=18))
    check = 98 - int(f"{number}131400") % 97  # DE00 moved behind
    return f"DE{check:02d}{number}"


def one_of(draw: random.Random, kind: str) -> str:
    digits = "".join(draw.choices("123456789", k=18))
    letters = "".join(draw.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", k=36))
    choices = {
        "mail": [f"{draw.choice(NAMES)}@{draw.choice(('example.org', 'mail.co.uk'))}"],
        "phone": [f"+49 30 {digits[:4]} {digits[4:8]}", f"({digits[:3]}) {digits[3:6]}-{digits[6:10]}",
                  f"0{digits[:3]}/{digits[3:8]}{digits[8:10]}", f"+1-{digits[:3]}-{digits[3:6]}-{digits[6:10]}"],
        "key": [f"AKIA{letters[:16]}", f"sk-{letters}", f"ghp_{letters}", f"sk-proj-{letters}"],
        "card": [luhn(f"4{digits[:14]}"), " ".join(luhn(f"5{digits[:14]}")[i : i + 4] for i in (0, 4, 8, 12))],
        "account": [account(draw)],
    }  # fmt: skip
    return draw.choice(choices[kind])


HARMLESS = [
    "on 2024-07-26 at 10:30", "version 3.11.7 of 192.168.10.20", "it costs 1,234,567.89 in 2019-2024",
    "a ratio of 0.123456789", "order 4111111111111112", "@home and a@b", "pages 120-345", "12 345 678 people",
    "the key is under the mat", "sk-iing", "DE00 1234 5678 9012 3456 78", "3.14159265358979", "call me at 5",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["mail", "phone", "key", "card", "account"])
def test_personal_data_is_found(kind):
    draw = random.Random(kind)
    texts = [f"{said(draw, 5)} {one_of(draw, kind)}, {said(draw, 3)}" for _ in range(500)]
    assert sum(
        [found for found, _ in personal_data(text)] == [kind] for text in texts
    ) >= 0.95 * len(texts)


def test_what_only_looks_like_personal_data_is_not_found():
    draw = random.Random(3)
    texts = [f"{said(draw, 8)} {draw.choice(HARMLESS)} {said(draw, 8)}." for _ in range(1_000)]
    assert sum(any(personal_data(text)) for text in texts) <= 0.01 * len(texts)


def test_the_command_counts_and_veils(tmp_path):
    secret = "ann.smith@example.org"
    rows = [chat("Who writes?", f"It is {secret}, she says."), chat("And then?", "Nothing at all.")]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    plain = run(path)
    assert "Personal" not in plain
    assert "Languages" in plain
    shown = run(path, "--pii", "--rows", "0")
    assert "mail: 1" in shown
    assert f"rows.jsonl:1: {veiled(secret)}" in shown
    assert "there may be more" in shown
    assert secret not in shown
    assert "tokens, " in run(path, "--show", "2")


def run(path: Path, *options: str) -> str:
    """What `edgetune data check` prints for the built-in model."""
    result = CliRunner().invoke(command, ["check", str(path), *options])
    assert result.exit_code == 0, result.output
    return result.output


LANGUAGES = {
    "English": "What is the name of the river that you see on the map?",
    "German": "Wie heißt der Fluss, den man auf der Karte sieht, und ist das nicht weit von hier?",
    "French": "Quel est le nom de la rivière que vous voyez sur la carte dans ce livre?",
    "Spanish": "¿Cómo se llama el río que se ve en el mapa de la ciudad?",
    "Russian or near": "Как называется эта река на карте?",
    "Japanese": "地図にある川の名前は何ですか。",
    "Chinese": "地图上的这条河叫什么名字",
    "Korean": "지도에 보이는 강의 이름은 무엇입니까?",
    "unclear": "x = 17 * 4",
}


@pytest.mark.parametrize("name", list(LANGUAGES))
def test_languages_are_told_at_a_glance(name):
    assert language_of(LANGUAGES[name]) == name
