"""Files to tokenized examples, every row accepted or refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from edgetune.data import cache
from edgetune.data.chunks import Chunk
from edgetune.data.encode import LossOn
from edgetune.data.examples import Examples, RowLocations
from edgetune.data.fields import Mapped, refuse_unknown
from edgetune.data.files import Source
from edgetune.data.labels import MOST_LABELS
from edgetune.data.problems import Problems, printable
from edgetune.data.receipt import FileRead
from edgetune.data.row_digests import Hashes
from edgetune.data.rows import FIELDS_NAMED, BlockEncoder, Outcome
from edgetune.data.token_store import TokenStore, TokenStoreWriter
from edgetune.data.tokenizer import Tokenizer
from edgetune.data.turn_places import ELSEWHERE
from edgetune.data.workers import MOST, encode_in_processes, usable_cores
from edgetune.errors import DataError
from edgetune.files import sha256_file
from edgetune.objectives import Rows

CACHED_FROM = 1 << 20
"""Files smaller than this many bytes are tokenized in a second or two, each time, in memory."""

_MOST_PROBLEMS = 100_000  # then the file is something else, and reading on tells nothing new
_PROCESSES_FROM = 1 << 23  # below, they would not have started before the work is done


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """How far reading has come: bytes of all files, and rows."""

    done: int
    total: int
    rows: int


Report = Callable[[ReadProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """All rows of all files as examples, and what was learned about the files on the way."""

    examples: Examples
    digests: Hashes
    files: tuple[FileRead, ...]
    format: str
    is_chat: bool
    prompt_cut: str
    notes: tuple[str, ...]
    labels: Mapping[str, int]
    """How many rows have each label, the most frequent first; empty for rows without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How rows are read: for which model, what is learned, and what our fields are called."""

    tokenizer: Tokenizer
    loss_on: LossOn
    fields: Mapping[str, str] = field(default_factory=dict)
    processes: int | None = None
    kind: Rows | None = None
    """What rows are to an objective over answers; None: plain answers."""
    label_names: tuple[str, ...] = ()
    """The names of labels that are numbers, the first for 0."""

    def encoder(self, format_: str | None = None) -> BlockEncoder:
        """Return what turns rows into tokens, for a format if it is known."""
        return BlockEncoder(
            self.tokenizer, self.loss_on, self.fields, format_, self.kind, self.label_names
        )


def read_rows(sources: Sequence[Source], options: Options, report: Report) -> Reading:
    """Return every row of some files, from the cache if they were read before.

    Raises:
        DataError: if there are no rows, or with everything that is wrong with them.
        UsageError: if ``fields`` names what the rows do not have.
    """
    hashes = [_hashed(source) for source in sources]
    if sum(source.size() for source in sources) < CACHED_FROM:
        writer = TokenStoreWriter()
        facts = _Pass(sources, hashes, options, report).run(writer)
        return _reading(writer.finish(), facts, sources, options.kind)
    named = [[*source.kind, hashed] for source, hashed in zip(sources, hashes, strict=True)]
    key = cache.key_of(
        named, options.tokenizer.fingerprint, options.loss_on, sorted(options.fields.items()),
        options.kind, options.label_names,
    )  # fmt: skip
    entry = cache.find(key)
    if entry is None:
        with cache.new_entry(key) as new:
            entry = new.finish(_Pass(sources, hashes, options, report).run(new.writer))
    return _reading(entry.columns, entry.facts, sources, options.kind)


class _Pass:
    """One pass over all files."""

    def __init__(
        self, sources: Sequence[Source], hashes: Sequence[str], options: Options, report: Report
    ) -> None:
        self._sources, self._hashes, self._options, self._report = sources, hashes, options, report
        self._sizes = [source.size() for source in sources]
        self._problems = Problems()
        self._rows = [0] * len(sources)
        self._format: str | None = None
        self._is_chat = False
        self._unused: set[str] = set()
        self._mapped = Mapped()
        self._altered = 0
        self._first_altered: list[int] | None = None
        self._ignored: Counter[str] = Counter()
        self._cuts: Counter[str] = Counter()
        self._unended = 0
        self._same = 0
        self._labels: Counter[str] = Counter()
        self._done = 0

    def run(self, writer: TokenStoreWriter) -> dict[str, Any]:
        """Write every row; return the facts about them as plain values."""
        for outcome in self._outcomes():
            self._note(outcome)
            if not self._problems.count:
                writer.append(outcome.columns)
            self._report(ReadProgress(self._done, sum(self._sizes), sum(self._rows)))
            if self._problems.count > _MOST_PROBLEMS or len(self._labels) > MOST_LABELS:
                break
        self._refuse_problems()
        return {
            "files": list(map(list, zip(self._rows, self._hashes, strict=True))),
            "format": self._format,
            "is_chat": self._is_chat,
            "unused": sorted(self._unused),
            "shadowed": sorted(self._mapped.shadowed),
            "altered": self._altered,
            "first_altered": self._first_altered,
            "unended": self._unended,
            "same": self._same,
            "labels": dict(self._labels.most_common()),
            "cuts": dict(self._cuts.most_common(FIELDS_NAMED)),
            "unwritten": dict(self._ignored.most_common(FIELDS_NAMED)),
            "without_template": self._is_chat and not self._options.tokenizer.has_template,
            "dated": self._is_chat and self._options.tokenizer.template.writes_dates,
        }

    def _outcomes(self) -> Iterator[Outcome]:
        """Yield what becomes of each block, the first ones here until the format is known."""
        blocks = self._blocks()
        encoder = self._options.encoder()
        for block in blocks:
            yield encoder.encode(block, only_check=self._has_problems())
            if encoder.format is not None and self._processes() > 1:
                make = partial(self._options.encoder, encoder.format)
                yield from encode_in_processes(make, blocks, self._processes(), self._has_problems)

    def _blocks(self) -> Iterator[Chunk]:
        before = [0, *accumulate(self._sizes)]
        for number, source in enumerate(self._sources):
            yield from source.blocks(number, partial(self._set_done, before[number]))

    def _processes(self) -> int:
        if self._options.processes is not None:
            return self._options.processes
        return min(usable_cores(), MOST) if sum(self._sizes) >= _PROCESSES_FROM else 1

    def _set_done(self, before: int, position: int) -> None:
        self._done = before + position

    def _has_problems(self) -> bool:
        return self._problems.count > 0

    def _note(self, outcome: Outcome) -> None:
        source = self._sources[outcome.file]
        for number, what, is_alike in outcome.problems:
            place = source.name if number is None else f"{source.prefix}{number}"
            self._problems.add(place, what, is_alike=is_alike)
        self._rows[outcome.file] += len(outcome.columns)
        self._format = self._format or outcome.format
        self._is_chat |= outcome.is_chat
        self._unused |= outcome.unused
        self._mapped.join(outcome.mapped)
        self._altered += len(outcome.altered)
        self._ignored.update(outcome.unwritten)
        self._cuts.update(outcome.cuts)
        self._unended += outcome.unended
        self._same += outcome.same
        self._labels.update(outcome.labels)
        if outcome.altered and self._first_altered is None:
            self._first_altered = [outcome.file, outcome.altered[0]]

    def _refuse_problems(self) -> None:
        self._mapped.refuse_missing(self._options.fields)
        changed = [s.name for s, h in zip(self._sources, self._sizes, strict=True) if s.size() != h]
        for name in changed:
            self._problems.add(name, "The file changed while it was read. Read it again.")
        self._problems.raise_if_any("Problems in the data")
        if len(self._labels) > MOST_LABELS:
            raise DataError(
                f"There are more than {MOST_LABELS:,} different labels. If they are answers, say so:"
                " --fields prompt=text,completion=label"
            )
        if self._format is None:
            names = ", ".join(source.name for source in self._sources)
            raise DataError(printable(f"{names} has no rows in it."))
        refuse_unknown(self._options.fields, self._format)


def _hashed(source: Source) -> str:
    try:
        return sha256_file(source.path)
    except OSError as error:
        raise DataError(f"{source.path} cannot be read: {error}.") from error


def _reading(
    columns: TokenStore, facts: Mapping[str, Any], sources: Sequence[Source], kind: Rows | None
) -> Reading:
    bounds = np.array([0, *accumulate(rows for rows, _ in facts["files"])], np.int64)
    locations = RowLocations(tuple(source.prefix for source in sources), bounds, columns.lines)
    return Reading(
        examples=Examples.of(columns, locations, kind),
        digests=columns.digests,
        files=tuple(
            FileRead(name=source.name, rows=rows, sha256=sha256)
            for source, (rows, sha256) in zip(sources, facts["files"], strict=True)
        ),
        format=facts["format"],
        is_chat=facts["is_chat"],
        prompt_cut=_prompt_cut(facts["cuts"]),
        notes=tuple(_notes(facts, sources)),
        labels=facts["labels"],
    )


def _prompt_cut(cuts: Mapping[str, int]) -> str:
    """Return what all answers lack of the generation prompt, nothing if they differ."""
    return "" if len(cuts) != 1 or ELSEWHERE in cuts else next(iter(cuts))


def _notes(facts: Mapping[str, Any], sources: Sequence[Source]) -> Iterator[str]:
    if facts["unused"]:
        yield printable(f"fields not used: {', '.join(facts['unused'])}")
    if facts["shadowed"]:
        names = ", ".join(facts["shadowed"])
        yield printable(f"columns not used, as --fields gives their names to others: {names}")
    if facts["altered"]:
        file, line = facts["first_altered"]
        yield (
            f"rows of which the template leaves out or changes a part: {facts['altered']:,},"
            f" the first is {sources[file].prefix}{line}"
        )
    if facts["unwritten"]:
        named = ", ".join(f"{name} (rows: {rows:,})" for name, rows in facts["unwritten"].items())
        yield printable(f"fields of messages that the template does not write: {named}")
    yield from _prompt_notes(facts["cuts"])
    if facts["unended"]:
        yield (
            f"rows with a turn that is learned without an end, as the template writes none:"
            f" {facts['unended']:,}"
        )
    if facts["same"]:
        yield f"pairs whose answers are the same, of which nothing is learned: {facts['same']:,}"
    if facts["without_template"]:
        yield "the model has no chat template, so a default stands in; export carries it along"
    if facts["dated"]:
        yield "the template writes today's date; a fixed one is used, which keeps runs repeatable"


def _prompt_notes(cuts: Mapping[str, int]) -> Iterator[str]:
    does = "does" if _prompt_cut(cuts) else "does not"
    for cut, rows in cuts.items():
        if cut == ELSEWHERE:
            yield f"rows whose last answer does not begin after the generation prompt: {rows:,}"
        elif cut:
            yield printable(
                f"rows whose last answer begins without {cut!r}, the end of the generation prompt:"
                f" {rows:,}; edgetune generate {does} so too"
            )
