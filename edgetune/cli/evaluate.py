"""``edgetune eval``: how well runs and adapters predict rows, beside their base model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import click

from edgetune.cli.label_text import label_text
from edgetune.cli.options import FilePath, Ref, common_options, over_options
from edgetune.cli.score_text import measured
from edgetune.cli.show import VERBOSE, out, out_json, say, table
from edgetune.escapes import without
from edgetune.settings.spec import to_plain
from edgetune.workflows.ensemble import Ensemble, ensemble
from edgetune.workflows.opened import Opened
from edgetune.workflows.over import Over
from edgetune.workflows.references import opened_references
from edgetune.workflows.scoring import (
    ScoredRow,
    Scores,
    dataset_of,
    labels_of,
    replies_of,
    score_replies,
)

_BASE, _EXAMPLES, _ENSEMBLE = "base", "examples", "ensemble"


@click.command("eval", short_help="Score runs or adapters on rows, beside their base model.")
@click.argument("names", type=Ref(), nargs=-1, required=True, metavar="REF...")
@click.option(
    "--data",
    type=FilePath(),
    required=True,
    metavar="FILE",
    help="The rows to score on: a file or a folder of files.",
)
@click.option(
    "--exact-match",
    is_flag=True,
    help="Also let all models answer, and compare: exact match, token F1, ROUGE-L, JSON.",
)
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Show the first N rows: input, expected, each model's answer and loss.",
)
@click.option(
    "--ensemble",
    "as_one",
    is_flag=True,
    help="Also score all adapters as one: answers by vote, labels by mean probability.",
)
@over_options
@common_options
def command(
    names: tuple[str, ...],
    data: Path,
    exact_match: bool,
    show: int,
    as_one: bool,
    over: Over,
    as_json: bool,
) -> None:
    """Print loss, perplexity and token accuracy of each REF on all rows of a file.

    A REF is a run's folder, an adapter's (over its own base or --model), or a model. The base
    model without the adapter is scored on the same rows, to show the gain. It is loaded once, so
    all REFs must be over the same one; rows are read as the first REF reads them.
    """
    with opened_references(names, over) as opened:
        _scored(opened, data, exact_match=exact_match, show=show, as_one=as_one, as_json=as_json)


def _scored(
    opened: list[Opened],
    data: Path,
    *,
    exact_match: bool,
    show: int,
    as_one: bool,
    as_json: bool,
) -> None:
    """Print how well what was opened predicts rows."""
    for one in opened:
        say(f"Opened {one.model.folder} for {one.name}", level=VERBOSE)
        for notice in one.notices:
            say(notice)
    dataset = dataset_of(opened[0], data, opened[1:])
    labels, notices = labels_of(opened, dataset)
    for notice in notices:
        say(notice)
    tuned = [one for one in opened if one.adapter is not None]
    called = ["tuned"] if len(tuned) == 1 else [_name(one.name) for one in tuned]
    each = {_BASE: opened[0].base(), **dict(zip(called, tuned, strict=True))}
    rows, adapted = dataset.train, {name: each[name] for name in called}
    replies = replies_of(each, rows, labels, exact_match=exact_match, show=show)
    together = ensemble(adapted, rows, labels, replies, exact_match=exact_match) if as_one else None
    scores, examples = score_replies(
        each, rows, labels, replies, exact_match=exact_match, show=show
    )
    if as_json:
        shown = {_EXAMPLES: to_plain(examples)} if show else {}
        as_one_shown = {} if together is None else {_ENSEMBLE: to_plain(together)}
        out_json({**to_plain(scores), **as_one_shown, **shown})
        return
    for text in _tables(scores):
        out(text)
    for name, found in scores.items():
        if found.labels is not None:
            out("\n" + label_text(name, found.labels))
    if together is not None:
        out("\n" + "\n".join(_as_one(together)))
    for example in examples:
        out("\n" + "\n".join(_example(example, opened[0].tokenizer.special_texts)))


def _as_one(found: Ensemble) -> Iterator[str]:
    """Yield the lines of an ensemble."""
    if found.answers is not None:
        texts = found.answers
        yield (
            f"As one, by vote: exact match {texts.exact_match:.1%}, token F1 {texts.token_f1:.1%}, "
            f"ROUGE-L {texts.rouge_l:.1%}"
        )
    if found.labels is not None:
        yield label_text("as one, by mean probability", found.labels)


def _name(name: str) -> str:
    """Return what a run is called beside the base model."""
    return f"./{name}" if name in {_BASE, _EXAMPLES, _ENSEMBLE} else name


def _tables(scores: Mapping[str, Scores]) -> Iterator[str]:
    """Yield the scores of predicted tokens, then those of answers, where there are any."""
    for asked in ("predicted", "weighed", "answered"):
        columns = measured(asked, scores.values())
        if columns:
            rows = [(name, *(one.text(found) for one in columns)) for name, found in scores.items()]
            yield table(rows, ("", *(one.title for one in columns)))


def _example(row: ScoredRow, special: Collection[str]) -> Iterator[str]:
    """Yield the lines of one row, without the texts of special tokens."""
    said = {f"{name} (loss {row.losses[name]:.4f})": answer for name, answer in row.answers.items()}
    yield row.place
    for title, text in {"input": row.input, "expected": row.expected, **said}.items():
        yield f"  {title}:"
        yield from (f"    {line}" for line in without(text, special).splitlines() or [""])
