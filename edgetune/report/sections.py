"""The sections of a report: what each says, as HTML under a heading."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import groupby

from edgetune.escapes import marked
from edgetune.report.contents import Plain, Report, figure, items, value
from edgetune.report.markup import DASH, block, bullets, facts, table, text
from edgetune.report.pictures import (
    loss_chart,
    memory_chart,
    parts_chart,
    phase_chart,
    rate_chart,
    speed_chart,
)
from edgetune.report.ranks import ranks
from edgetune.report.settings import settings
from edgetune.report.tiles import moment
from edgetune.units import format_bytes, format_seconds

EVENTS = {
    "pilot": "Pilot",
    "resumed": "Resumed",
    "smaller micro-batches": "Smaller micro-batches",
    "back to a checkpoint": "Back to a checkpoint",
    "over the plan": "Over the plan",
    "paused": "Paused",
    "the machine is under strain": "Machine under pressure",
    "ended early": "Ended early",
    "ended learning": "No lower validation loss",
    "checkpoint refused": "Checkpoint refused",
    "versions changed": "Versions changed",
    "kernels": "Kernels",
    "rates corrected": "Rates corrected",
    "steps shared": "Steps shared",
    "sums in another order": "Sums in another order",
    "learning rate chosen": "Learning rate chosen",
    "no adapter": "No adapter",
    "adapter written": "Adapter written",
    "goes on from an adapter": "Continues from an adapter",
}
"""Notes of the journal that are shown; the others are in the charts or among the reasons."""

BOUND = (
    '<p class="note">\u2264: the peak of a process never falls, so that a phase which did not raise '
    "it is only known to have taken no more.</p>"
)

SHOWN_EVENTS = 60

REWARDS = {
    "rewards/margins": "Margin of rewards",
    "rewards/accuracies": "Told apart",
    "rewards/chosen": "Reward of chosen answers",
    "rewards/rejected": "Reward of rejected answers",
    "kl": "Divergence from the base",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a report; ``html`` comes without the heading, ``key`` is the same in all reports."""

    key: str
    title: str
    html: str


def sections(report: Report) -> tuple[Section, ...]:
    """Return the sections of a report that have something to say, in their order."""
    found = (
        ("learned", "Learned and forgotten", _verdict(report)),
        ("loss", "Loss", _loss(report)),
        ("rates", _RACED[_of_methods(report)], _rates(report)),
        ("samples", "Before and after", _samples(report)),
        ("course", "Learning rate and speed", _course(report)),
        ("memory", "Memory, planned and measured", _memory(report)),
        ("ranks", "Ranks", ranks(report)),
        ("events", "What happened", _events(report)),
        ("rows", "Rows", _rows(report)),
        ("settings", "Settings and reasons", settings(report)),
        ("exports", "Exports", _exports(report)),
        ("versions", "Versions", _versions(report)),
    )
    return tuple(Section(key=key, title=title, html=html) for key, title, html in found if html)


def _verdict(report: Report) -> str:
    verdict = report.verdict
    if not verdict:
        return ""
    sentence = text(value(verdict, "sentence") or "", 1000)
    advice = bullets(text(item, 1000) for item in items(verdict, "advice")[:10])
    html = f'<p class="lead">{sentence}</p>' + (f"<h3>What to try</h3>{advice}" if advice else "")
    rows = [
        _compared("Held-out rows", verdict, "held_out"),
        _compared("Neutral text", verdict, "neutral"),
    ]
    found = [row for row in rows if row is not None]
    if found:
        header = ("on", "loss, base", "loss, tuned", "perplexity, base", "perplexity, tuned")
        html += table(found, header, "Before and after training")
    html += facts(_answers(verdict))
    notes = [text(item, 1000) for item in items(verdict, "notes")[:10]]
    return html + "".join(f'<p class="note">{note}</p>' for note in notes)


def _answers(verdict: Plain) -> Iterable[tuple[str, str]]:
    """Yield how base and tuned model answered the rows below."""
    count = figure(verdict, "answers", "count")
    for name, prefix in (("Base", "base_"), ("Tuned", "")):
        right, close = (figure(verdict, "answers", prefix + key) for key in ("right", "token_f1"))
        if count and right is not None and close is not None:
            said = f"{right:,.0f} of {count:,.0f} as expected, token F1 {close:.2f}"
            yield f"Sampled answers, {name.lower()}", said


def _compared(name: str, verdict: Plain, part: str) -> tuple[str, ...] | None:
    base, tuned = figure(verdict, part, "base_loss"), figure(verdict, part, "loss")
    if base is None or tuned is None:
        return None
    before, after = figure(verdict, part, "base_perplexity"), figure(verdict, part, "perplexity")
    shown = [DASH if one is None else f"{one:,.2f}" for one in (before, after)]
    return name, f"{base:.4f}", f"{tuned:.4f}", *shown


def _loss(report: Report) -> str:
    if not len(report.steps):
        return "<p>No step was taken yet.</p>"
    best, html = report.best, loss_chart(report)
    if best is not None and best.metrics:
        found = [(name, f"{number:.4g}") for key, name in REWARDS.items()
                 if (number := figure(best.metrics, key)) is not None]  # fmt: skip
        html += f"<h3>At the best validation loss</h3>{facts(found)}"
    return html


_RACED = ("Learning rates raced", "Methods raced")
"""The title of the races, by whether they were of methods."""


def _rates(report: Report) -> str:
    """Return what learning rates or methods came to that were raced before the run."""
    raced = [one for one in items(report.search, "races")[:20] if isinstance(one, dict)]
    if not raced:
        return ""
    steps, methods = figure(report.search, "steps"), _of_methods(report)
    chosen = value(report.search, "chosen") if methods else figure(report.search, "chosen")
    why = text(value(report.search, "because") or "", 600)
    rows = [_raced(one, chosen) for one in sorted(raced, key=lambda one: figure(one, "rate") or 0)]
    header = (
        "Method" if methods else "Learning rate",
        "Raced at",
        "Validation loss",
        "Neutral perplexity",
        "Time",
        "Result",
    )
    caption = f"After {steps or 0:,.0f} steps from the same start, which were undone"
    return (f'<p class="lead">{why}</p>' if why else "") + table(rows, header, caption)


def _of_methods(report: Report) -> bool:
    """Return whether methods were raced, not rates."""
    return any(isinstance(one, dict) and one.get("method") for one in items(report.search, "races"))


def _raced(race: Plain, chosen: object) -> tuple[str, ...]:
    rate, at, loss, perplexity = (
        figure(race, name) for name in ("rate", "raced_at", "loss", "perplexity")
    )
    seconds = figure(race, "seconds")
    method = text(race.get("method") or "", 40)
    won = (method or rate) == chosen and chosen is not None
    said = "chosen" if won else text(race.get("because") or "", 200)
    return (
        method or (DASH if rate is None else f"{rate:g}"),
        DASH if at is None else f"{at:g}",
        DASH if loss is None else f"{loss:.4f}",
        DASH if perplexity is None else f"{perplexity:,.1f}",
        DASH if seconds is None else format_seconds(max(0.0, seconds)),
        said,
    )


def _samples(report: Report) -> str:
    found = [one for one in items(report.samples, "samples") if isinstance(one, dict)][:20]
    if not found:
        return ""
    note = text(value(report.samples, "note") or "", 400)
    special = [one for one in items(report.samples, "special")[:200] if isinstance(one, str)]
    return f'<p class="note">{note}</p>' * bool(note) + "".join(
        f'<article class="sample"><h3>{text(one.get("place") or f"Row {number}", 80)}</h3>'
        + facts(_sample(one, special))
        + '<p class="note">Cut short, because time was up.</p>' * (one.get("cut") is True)
        + "</article>"
        for number, one in enumerate(found, 1)
    )


def _sample(one: Plain, special: Collection[str]) -> Iterable[tuple[str, str]]:
    names = {"prompt": "Asked", "expected": "Expected", "base": "Base", "tuned": "Tuned"}
    for key, name in names.items():
        if (found := one.get(key)) is not None:
            said = _as_asked(str(found), special) if key == "prompt" else str(found)
            shown = block(said, special=special) or '<span class="muted">(nothing)</span>'
            right = value(one, "right", key)
            so = {True: ": as expected", False: ": not as expected"}
            judged = so[right] if isinstance(right, bool) else ""
            yield f"{name}{judged}", f'<div class="text {key}">{shown}</div>'


def _as_asked(prompt: str, special: Collection[str]) -> str:
    """Return a prompt without what the template marks turns with.

    >>> _as_asked("<s>user\\nHow?<e>\\n<s>assistant\\n", ["<s>", "<e>"])
    'user\\nHow?\\nassistant'
    """
    return "".join(piece for piece, is_special in marked(prompt, special) if not is_special).strip()


def _course(report: Report) -> str:
    if not len(report.steps):
        return ""
    return f'<div class="pair">{rate_chart(report)}{speed_chart(report)}</div>'


def _memory(report: Report) -> str:
    phases, parts = phase_chart(report), parts_chart(report)
    html = memory_chart(report) if len(report.steps) else ""
    html += f'<div class="pair">{phases}{parts}</div>' if phases or parts else ""
    found = [
        ("Planned peak", figure(report.plan, "memory", "peak_bytes")),
        ("Measured peak", figure(report.memory, "peak_bytes")),
        ("Measured by the pilot", figure(report.memory, "pilot", "peak_bytes")),
        ("Budget", figure(report.plan, "device", "budget_bytes")),
    ]
    html += facts((name, format_bytes(size)) for name, size in found if size is not None)
    return html + BOUND if "\u2264" in phases else html


def _events(report: Report) -> str:
    """Return recoveries and notices; what repeats itself is one line."""
    notes = report.notes(*EVENTS)
    grouped = [
        list(same) for _, same in groupby(notes, lambda note: (note["what"], note.get("because")))
    ]
    rows = [_event(same) for same in grouped[-SHOWN_EVENTS:]]
    left = len(grouped) - len(rows)
    more = f'<p class="note">{left:,} older ones are in journal.jsonl.</p>' if left else ""
    header = ("What", "Step", "Why", "When")
    return table(rows, header, "What happened in the run", "words") + more if rows else ""


def _event(same: list[Plain]) -> tuple[str, ...]:
    note, times = same[-1], f" ({len(same):,} times)" if len(same) > 1 else ""
    step = figure(note, "step")
    why = text(note.get("because") or "", 600)
    if (rows := figure(note, "rows")) is not None and note["what"] == "smaller micro-batches":
        why += f"; {rows:.0f} rows at once from there"
    if (to := figure(note, "to")) is not None and (rate := figure(note, "learning_rate")):
        why += f"; back to step {to:,.0f}, learning rate {rate:.3g} from there"
    return (
        f"{EVENTS[note['what']]}{times}",
        DASH if step is None else f"{step:,.0f}",
        why,
        moment(figure(note, "time")),
    )


def _rows(report: Report) -> str:
    receipt = report.receipt
    if not receipt:
        return ""
    counts = {
        "Read": "rows_read", "Trained": "rows_trained", "Validation": "rows_validation",
        "Duplicates": "duplicates", "Too long": "rows_too_long", "Cut": "rows_cut",
        "Tokens trained": "tokens", "Tokens learned": "loss_tokens",
        "Tokens lost": "tokens_lost", "Context": "context", "Longest row": "longest",
    }  # fmt: skip
    numbers = {**receipt, "longest": figure(receipt, "lengths", "longest")}
    pairs = [(name, f"{found:,.0f}") for name, key in counts.items()
             if (found := figure(numbers, key)) is not None]  # fmt: skip
    dropped = [one for one in items(receipt, "dropped") if isinstance(one, dict)]
    pairs.insert(3, ("Dropped", f"{len(dropped):,}"))
    pairs += [(name, text(found)) for name, key in _ROW_WORDS.items()
              if (found := value(receipt, key))]  # fmt: skip
    files = [
        (text(value(one, "name")), f"{figure(one, 'rows') or 0:,.0f}",
         f"<code>{text(value(one, 'sha256') or '', 16)}</code>")
        for one in items(receipt, "files")[:20]
    ]  # fmt: skip
    html = facts(pairs) + (table(files, ("File", "rows", "SHA-256"), "Files") if files else "")
    if dropped:
        why = [(text(one.get("place")), text(one.get("because"))) for one in dropped[:20]]
        html += table(why, ("Dropped row", "Why"), "Rows that were dropped", "words")
        if len(dropped) > len(why):
            html += f'<p class="note">{len(dropped) - len(why):,} more are in receipt.json.</p>'
    return html + bullets(text(note) for note in items(receipt, "notes")[:20])


_ROW_WORDS = {
    "Format": "format", "Rows are": "rendering", "Template": "template",
    "Loss on": "loss_on", "Rows beyond the context": "long_rows",
}  # fmt: skip


def _exports(report: Report) -> str:
    rows = []
    for note in report.notes("exported")[-20:]:
        agreement, kl = figure(note, "check", "top1_agreement"), figure(note, "check", "kl_mean")
        checked = "not checked"
        if note.get("refused") is True:
            checked = f"refused, nothing was written: {text(note.get('because'), 600)}"
        if agreement is not None and kl is not None:
            tokens = figure(note, "check", "tokens") or 0
            checked = f"top-1 agreement {agreement:.1%} of {tokens:,.0f} tokens, KL {kl:.2e}"
        nbytes = figure(note, "nbytes")
        size = DASH if nbytes is None else format_bytes(nbytes)
        when = moment(figure(note, "time"))
        rows.append((text(note.get("to")), text(note.get("output")), size, checked, when))
    header = ("To", "Where", "Size", "Check against base + adapter", "When")
    return table(rows, header, "Exports of this run", "words") if rows else ""


def _versions(report: Report) -> str:
    return facts((text(name, 60), text(found, 60)) for name, found in report.versions.items())
