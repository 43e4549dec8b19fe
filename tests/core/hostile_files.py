"""Broken and hostile files of examples, each from a seed, and what reading one must come to.

As a program: writes the files of a range of seeds, or reads them and prints, as JSON, what went
wrong, how many were accepted, how much memory it took over the start, and the longest processor
time that one took. Writing some takes more memory than reading any.

    python tests/core/hostile_files.py write FOLDER FIRST STOP
    python tests/core/hostile_files.py read FOLDER FIRST STOP MODEL_FOLDER
    python tests/core/hostile_files.py read-long FOLDER NUMBER MODEL_FOLDER
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import zstandard

from edgetune.data import Dataset, Tokenizer, load_tokenizer, read_dataset
from edgetune.errors import DataError, UsageError
from edgetune.objectives import Rows

Row = Any
WORDS = ["hello", "fine", "é🎉", "Paris", "<|im_end|>", "<|im_", "end|>", "\0", "\x1b[2J", "\r", "",
         " ", "\u2028", "\ue000", "\ud800", "</s>", "a" * 500, "{{ messages }}", '"', ",", "\t"]  # fmt: skip
ROLES = [
    "function_call",
    "observation",
    "bot",
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "boss",
    "",
    None,
    7,
    ["user"],
    "User",
]


def deep(draw: random.Random) -> Row:
    """A value nested as deep as a parser can bear, or deeper."""
    value: Row = "x"
    for _ in range(draw.choice((3, 50, 400))):
        value = [value] if draw.random() < 0.5 else {"messages": value}
    return value


ODD: list[Callable[[random.Random], Row]] = [
    deep,
    lambda draw: draw.choice((None, True, 0, -1, 1e308, float("nan"), float("inf"), 10**4000, [], {})),
    lambda draw: [None] * draw.randint(0, 50),
    lambda draw: {"type": draw.choice(("image", "audio")), "url": "x"},
    lambda draw: [{"type": "text", "text": words(draw)}, {"text": 3}],
    lambda draw: words(draw) * 200,
]  # fmt: skip


def words(draw: random.Random) -> str:
    """A short text, mostly harmless."""
    pool = WORDS if draw.random() < 0.2 else WORDS[:4]
    return " ".join(draw.choices(pool, k=draw.randint(1, 6)))


def odd_or(draw: random.Random, value: Row, chance: float = 0.04) -> Row:
    """The value, or something else in its place."""
    return draw.choice(ODD)(draw) if draw.random() < chance else value


def message(draw: random.Random, number: int) -> Row:
    """A turn of a chat, with one of the two spellings of its fields."""
    role = draw.choice(ROLES) if draw.random() < 0.05 else ROLES[number % 2]
    names = ("from", "value") if draw.random() < 0.1 else ("role", "content")
    turn = {names[0]: role, names[1]: odd_or(draw, words(draw))}
    if draw.random() < 0.1:
        turn[draw.choice(("weight", "tool_calls", "name", "x"))] = draw.choice(ODD)(draw)
    if draw.random() < 0.1:
        turn |= beside(draw)
    if draw.random() < 0.05:
        turn[names[1]] = draw.choice((parts, call, lambda draw: json.dumps(call(draw))))(draw)
    return odd_or(draw, turn, 0.02)


def call(draw: random.Random) -> Row:
    """A call of a tool, in one of its dialects."""
    arguments = draw.choice(({"city": words(draw)}, {"city": None}, {}, None, "Oslo", "[1]", ""))
    given = json.dumps(arguments) if draw.random() < 0.5 else odd_or(draw, arguments)
    function = {"name": draw.choice(("weather", "clock", "")), "arguments": given}
    return odd_or(draw, function if draw.random() < 0.4 else {"id": "a", "function": function})


def beside(draw: random.Random) -> Row:
    """What some tools put into a message or a row."""
    return draw.choice((
        {"tool_calls": [call(draw) for _ in range(draw.randint(0, 3))]}, {"function_call": call(draw)},
        {"train": draw.choice((True, False, 1, "no"))}, {"loss_weight": draw.choice((0, 1.0, 0.5))},
        {"masked": True}, {"mask": 1}, {"reasoning_content": words(draw)}, {"images": ["a.png"]},
    ))  # fmt: skip


def column(draw: random.Random) -> Row:
    """A column that some tools put beside the others."""
    tool = {"name": "weather", "parameters": draw.choice(({}, None, {"type": "object"}))}
    tools = draw.choice(
        ([tool], [{"type": "function", "function": tool}], [], "", draw.choice(ODD)(draw))
    )
    return draw.choice((
        {"system": words(draw)}, {"system_prompt": odd_or(draw, words(draw))},
        {"tools": tools}, {"tools": json.dumps(tools, default=str)}, {"functions": tools},
        {"history": [[words(draw), words(draw)]]}, {"history": draw.choice(ODD)(draw)},
        {"chat_template_kwargs": draw.choice(({"enable_thinking": False}, {"messages": 1}, 7, "{}"))},
        {"chosen": words(draw), "rejected": words(draw)}, {"label": draw.choice((True, 0, "x"))},
        {"images": draw.choice(([], None, ["a.png"]))},
    ))  # fmt: skip


def parts(draw: random.Random) -> Row:
    """A content in several parts."""
    kinds = ("text", "input_text", "output_text", "image")
    return [
        {"type": draw.choice(kinds), draw.choice(("text", "value")): words(draw)} for _ in range(2)
    ]


def row(draw: random.Random, kind: str, shape: int = 0) -> Row:
    """A row of a format, some of them broken; ``shape`` numbers those that a format has."""
    text = [odd_or(draw, words(draw)) for _ in range(3)]
    rows: dict[str, Row] = {
        "messages": {
            "messages": [message(draw, i) for i in range(draw.choice((0, 1, 2, 2, 4, 6)))]
        },
        "conversations": {"conversations": [message(draw, i) for i in range(2)]},
        "prompt": {"prompt": text[0], "completion": text[1]},
        "instruction": {"instruction": text[0], "input": text[1], "output": text[2]},
        "text": {"text": text[0]},
        "labelled": {"text": text[0], "label": draw.choice(("good", "bad", 0, 1, odd(draw)))},
        "pairs": pair(draw, text, shape),
        "unpaired": unpaired(draw, text, shape),
        "question": {"question": text[0], "answer": text[1], "context": text[2]},
        "other": draw.choice(ODD)(draw),
    }
    found = odd_or(draw, rows[kind], 0.02)
    if isinstance(found, dict) and draw.random() < 0.12:
        found = {**found, **column(draw)}
    if isinstance(found, dict) and draw.random() < 0.1:
        found = {**found, draw.choice(("tools", "id", "text", "système")): draw.choice(ODD)(draw)}
    return found


def odd(draw: random.Random) -> Row:
    """Something that is not expected."""
    return draw.choice(ODD)(draw)


def turns(draw: random.Random, count: int) -> Row:
    """A chat of so many turns, or something else in its place."""
    return odd_or(draw, [message(draw, number) for number in range(count)])


def pair(draw: random.Random, text: list[Row], shape: int) -> Row:
    """A better and a worse answer, in one of the shapes of the tools."""
    answer = [odd_or(draw, {"role": "assistant", "content": words(draw)}) for _ in range(2)]
    shared = turns(draw, draw.choice((1, 1, 3)))
    whole = [[*(shared if isinstance(shared, list) else []), each] for each in answer]
    chosen, rejected = text[1], draw.choice((text[2], text[2], text[1]))
    shapes: list[Row] = [
        {"prompt": text[0], "chosen": chosen, "rejected": rejected},
        {"prompt": shared, "chosen": [answer[0]], "rejected": [answer[1]]},
        {"chosen": whole[0], "rejected": odd_or(draw, whole[1])},
        {"conversations": shared, "chosen": answer[0], "rejected": answer[1]},
        {"instruction": text[0], "input": "", "chosen": chosen, "rejected": rejected},
        {"input": {"messages": shared, "tools": []}, "preferred_output": [answer[0]],
         "non_preferred_output": [answer[1]]},
        {"messages": whole[0], "rejected_response": rejected},
        {"chosen": f"Human: {text[0]}\n\nAssistant: {chosen}",
         "rejected": f"Human: {text[0]}\n\nAssistant: {rejected}"},
    ]  # fmt: skip
    return shapes[shape % len(shapes)]


def unpaired(draw: random.Random, text: list[Row], shape: int) -> Row:
    """An answer that is desirable or not, in one of the shapes of the tools."""
    label = odd_or(draw, draw.choice((True, False, 1, 0, 1.0, "true", "False", "0")))
    shapes: list[Row] = [
        {"prompt": text[0], "completion": text[1]},
        {"prompt": turns(draw, 1), "completion": [{"role": "assistant", "content": words(draw)}]},
        {"instruction": text[0], "input": text[2], "output": text[1]},
        {"messages": turns(draw, draw.choice((1, 2, 2, 4)))},
        {"conversations": turns(draw, 2)},
    ]  # fmt: skip
    return {"label" if shape % 3 else "kto_tag": label} | shapes[shape % len(shapes)]


def as_json_lines(draw: random.Random, rows: list[Row]) -> bytes:
    """Rows as JSON Lines."""
    escaped = draw.random() < 0.5
    lines = (json.dumps(each, ensure_ascii=escaped) for each in rows)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def as_json(draw: random.Random, rows: list[Row]) -> bytes:
    """Rows as one JSON list, on one line or many."""
    if draw.random() < 0.2:  # one object after another, each over several lines
        return "\n".join(json.dumps(each, indent=2) for each in rows).encode()
    return json.dumps(rows, indent=draw.choice((None, 2))).encode()


def as_table(delimiter: str) -> Callable[[random.Random, list[Row]], bytes]:
    """Return what writes rows as a table."""

    def write(draw: random.Random, rows: list[Row]) -> bytes:
        rows = [each for each in rows if isinstance(each, dict)] or [{"text": "a"}]
        stream = io.StringIO()
        names = [*([""] if draw.random() < 0.1 else []), *rows[0]]  # an unnamed index in front
        separator = draw.choice((delimiter, delimiter, ";", "|"))
        writer = csv.DictWriter(stream, names, extrasaction="ignore", delimiter=separator)
        writer.writeheader()
        writer.writerows({"": number, **each} for number, each in enumerate(rows))
        return stream.getvalue().encode("utf-8", "surrogatepass")

    return write


def as_text(draw: random.Random, rows: list[Row]) -> bytes:
    """Rows as documents with blank lines between them."""
    return "\n\n".join(words(draw) for _ in rows).encode("utf-8", "surrogatepass")


def as_parquet(draw: random.Random, rows: list[Row]) -> bytes:
    """Rows as Parquet, as far as it can hold them."""
    stream = io.BytesIO()
    pyarrow.parquet.write_table(as_arrow_table(rows), stream)
    return stream.getvalue()


def as_arrow(draw: random.Random, rows: list[Row]) -> bytes:
    """Rows as an Arrow stream or file, as far as it can hold them."""
    stream, table = io.BytesIO(), as_arrow_table(rows)
    opened = draw.choice((pyarrow.ipc.new_stream, pyarrow.ipc.new_file))
    with opened(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return stream.getvalue()


def as_arrow_table(rows: list[Row]) -> pyarrow.Table:
    """Rows as a table that Parquet can hold, or another in their place."""
    try:
        table = pyarrow.Table.from_pylist([each for each in rows if isinstance(each, dict)])
        pyarrow.parquet.write_table(table, io.BytesIO())
        with pyarrow.ipc.new_stream(io.BytesIO(), table.schema) as writer:
            writer.write_table(table)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
        return pyarrow.table({"text": ["hello", None]})
    return table


KINDS = {".jsonl": as_json_lines, ".json": as_json, ".csv": as_table(","), ".tsv": as_table("\t"),
         ".txt": as_text, ".parquet": as_parquet, ".arrow": as_arrow, ".ndjson": as_json_lines}  # fmt: skip
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.compress,
}  # fmt: skip


def damaged(draw: random.Random, content: bytes) -> bytes:
    """The bytes after one of the things that happen to files."""
    at = draw.randint(0, len(content))
    text = content.decode("utf-8", "replace")
    ways: list[Callable[[], bytes]] = [
        lambda: content[:at],
        lambda: content[:at] + bytes([draw.randrange(256)]) + content[at + 1 :],
        lambda: content[:at] + b"\0" * draw.randint(1, 20) + content[at:],
        lambda: content[:at] + draw.randbytes(draw.randint(1, 40)) + content[at:],
        lambda: content + content[at:],
        lambda: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
        lambda: content.replace(b"\n", b"\r"),
        lambda: content.replace(b"\n", b" ", 1),
        lambda: content.replace(b'"', b"", draw.randint(1, 3)),
        lambda: content.replace(b'"', b'""', draw.randint(1, 3)),
        lambda: text.encode(draw.choice(("utf-16", "utf-16-le", "utf-32", "latin-1")), "replace"),
        lambda: b"[" * draw.choice((10, 5000)) + content,
        lambda: content.replace(b":", b":" + b"9" * 5000, 1),
        lambda: draw.randbytes(draw.randint(0, 300)),
        lambda: b"",
    ]
    return draw.choice(ways)()


FORMATS = ["messages", "conversations", "prompt", "instruction", "text", "labelled", "pairs",
           "unpaired", "question", "other"]  # fmt: skip
PREFERENCES: dict[str, Rows] = {"pairs": "pairs", "unpaired": "unpaired"}
"""What rows of these formats are to an objective over answers."""


def hostile_file(seed: int) -> tuple[str, bytes]:
    """Return name and content of a file; about one in three is not damaged as a whole."""
    draw = random.Random(seed)
    kind = draw.choice(FORMATS)
    suffix, packing = draw.choice(list(KINDS)), draw.choice(("", "", "", ".gz", ".zst"))
    mixes, shape = draw.random() < 0.1, draw.randrange(120)
    kinds = [draw.choice(FORMATS) if mixes else kind for _ in range(draw.randint(0, 8))]
    rows = [row(draw, each, shape) for each in kinds]
    content = KINDS[suffix](draw, rows)
    content = damaged(draw, content) if draw.random() < 0.5 else content
    content = PACKERS[packing](content)
    content = damaged(draw, content) if packing and draw.random() < 0.2 else content
    return f"rows{suffix}{packing}", content


def outcome(seed: int, folder: Path, tokenizer: Tokenizer) -> str:
    """Read the file of a seed; return ``accepted`` or ``refused``, or what is wrong with that."""
    draw = random.Random(-seed - 1)
    (file,) = (folder / str(seed)).iterdir()
    name = file.name
    loss_on = draw.choice(("assistant", "assistant", "completion", "all"))
    kind = PREFERENCES.get(random.Random(seed).choice(FORMATS))
    if draw.random() < 0.05:
        kind = draw.choice((None, *PREFERENCES.values()))
    loss_on = "assistant" if kind is not None and loss_on == "all" else loss_on
    try:
        dataset = read_dataset(file, tokenizer, loss_on=loss_on, seed=seed, kind=kind)
    except UsageError as error:  # labels are not learned with all of the text
        return "refused" if "--loss-on all" in str(error) else f"usage: {error}"
    except DataError as error:
        return "refused" if f"{name}" in str(error) else f"the file is not named: {error}"
    if fault := fault_of(dataset):
        return fault
    try:
        fitted = dataset.fit(draw.choice((2, 8, 64, 4096)))
    except DataError as error:
        named = (
            f"{name}:" in str(error)
            or f"{name} row" in str(error)
            or "No row is left" in str(error)
        )
        return "accepted" if named else f"the row is not named: {error}"
    return fault_of(fitted) or "accepted"


def fault_of(dataset: Dataset) -> str | None:
    """Return what in a receipt does not agree with the rows, None if all does."""
    receipt, train, validation = dataset.receipt, dataset.train, dataset.validation
    used = receipt.rows_trained + receipt.rows_validation + len(receipt.dropped)
    agree = {
        "rows": receipt.rows_read == used == sum(file.rows for file in receipt.files) > 0,
        "tokens": receipt.tokens == sum(len(tokens) for tokens, _ in train),
        "loss": receipt.loss_tokens == sum(int(mask.sum()) for _, mask in train),
        "learned": all(mask.any() for _, mask in (*train, *validation)),
        "longest": receipt.lengths["longest"] == dataset.lengths.max(),
        "lines": bool(receipt.lines()) and bool(json.dumps(receipt.to_json())),
    }
    return next((f"{what} do not agree" for what, is_so in agree.items() if not is_so), None)


LONG = 50 << 20
LONG_FILES: list[tuple[str, Callable[[], bytes]]] = [
    ("rows.jsonl", lambda: b'{"text": "' + b"a" * LONG + b'"}\n{"text": "hello"}\n'),
    ("rows.jsonl", lambda: b"a" * LONG),
    ("rows.json", lambda: b'[{"text": "hello"}, {"text": "' + b"a" * LONG + b'"}]'),
    ("rows.json", lambda: b"[" + b"1," * LONG),
    ("rows.csv", lambda: b'text\nhello\n"' + b"a" * LONG),
    ("rows.csv", lambda: b"text\n" + b'"a\n' * (LONG // 50)),
    ("rows.txt", lambda: b"a" * LONG + b"\n\nhello\n"),
    ("rows.jsonl", lambda: b"\xff\n" * (LONG // 2)),
    ("rows.jsonl.gz", lambda: gzip.compress(b"\0" * 20 * LONG)),
    ("rows.jsonl.zst", lambda: zstandard.compress(b"\0" * 20 * LONG)),
]
"""Files with a line of 50 MB, or of a million broken lines, or that unpack to much more."""


def long_outcome(number: int, folder: Path, tokenizer: Tokenizer) -> str:
    """Read a long file, which lies in ``folder``; it must be refused by name."""
    name, _ = LONG_FILES[number]
    try:
        read_dataset(folder / name, tokenizer)
    except DataError as error:
        return "refused" if name in str(error) else f"the file is not named: {error}"
    return "accepted"


def main() -> None:
    """Write or read the files of a range of seeds, or read a long file that is there."""
    what, folder, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "write":
        for seed in range(number, int(sys.argv[4])):
            name, content = hostile_file(seed)
            (folder / str(seed)).mkdir()
            (folder / str(seed) / name).write_bytes(content)
        return
    tokenizer = load_tokenizer(Path(sys.argv[-1]))
    if what == "read":
        numbers = range(number, int(sys.argv[4]))
        report(numbers, partial(outcome, folder=folder, tokenizer=tokenizer))
    else:
        report([number], partial(long_outcome, folder=folder, tokenizer=tokenizer))


def report(numbers: Iterable[int], read: Callable[[int], str]) -> None:
    """Read files by number and print what came of it."""
    faults: dict[int, str] = {}
    counts = {"accepted": 0, "refused": 0}
    before, slowest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0
    for number in numbers:
        start = time.process_time()
        try:
            found = read(number)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
            found = f"{type(error).__name__}: {error}"
        slowest = max(slowest, time.process_time() - start)
        if found in counts:
            counts[found] += 1
        else:
            faults[number] = found
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    result = {"faults": faults, **counts, "grown_bytes": grown, "slowest_seconds": slowest}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
