"""How a receipt is written: first when rows are read, again when they are fitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgetune.data.examples import Examples
from edgetune.data.fit import Fitted, LongRows
from edgetune.data.labels import LabelSet
from edgetune.data.problems import printable
from edgetune.data.read import Options, Reading
from edgetune.data.receipt import Dropped, Receipt, length_percentiles
from edgetune.data.row_digests import count_duplicates
from edgetune.data.splits import Found, Split
from edgetune.data.token_store import digest_of

_UNEVEN = 4 / 3  # within this ratio, Ethayarajh et al. 2024 (section 4.2) leave weights alone
_FEW = 2  # the end of a turn alone is one; an answer of one token and its end are two


def receipt_of(
    reading: Reading, found: Found, splits: Split, options: Options, *, seed: int
) -> Receipt:
    """Return the account of the files once they are split, and not fitted yet."""
    tokenizer = options.tokenizer
    repeated = tuple(
        Dropped(
            place=reading.examples.place(row),
            because="the same row is trained, so it would say nothing in validation",
        )
        for row in splits.repeated.tolist()
    )
    receipt = Receipt(
        files=reading.files,
        format=reading.format,
        rendering="rendered as a chat" if reading.is_chat else "as plain text",
        template=tokenizer.template.name if reading.is_chat else None,
        special_tokens=tokenizer.special_tokens(),
        loss_on=options.loss_on,
        seed=seed,
        rows_read=len(reading.examples),
        dropped=repeated,
        duplicates=count_duplicates(reading.digests),
        prompt_cut=reading.prompt_cut,
        lengths=length_percentiles(reading.examples.lengths),
        answers=_answers(reading.examples),
        notes=(
            *reading.notes,
            *map(printable, found.notes),
            *_near_empty(reading.examples),
            *_balance(reading),
        ),
    )
    train, validation = map(reading.examples.take, (splits.train, splits.validation))
    return with_split(
        _with_labels(receipt, reading, (train, validation), options), train, validation
    )


def _with_labels(
    receipt: Receipt, reading: Reading, sides: Sequence[Examples], options: Options
) -> Receipt:
    """Return the receipt with the rows of each label on both sides, where rows have labels."""
    if not reading.labels:
        return receipt
    labels = LabelSet.of(options.tokenizer, tuple(reading.labels))
    trained, validation = (labels.counts(side, options.tokenizer) for side in sides)
    counts = {"trained": trained, "validation": validation}
    return replace(receipt, labels=counts, label_names=options.label_names)


def _answers(examples: Examples) -> dict[str, dict[str, int]]:
    """Return how many tokens answers have, by what they are to the objective."""
    if examples.kind is None:
        return {}
    paired = examples.kind == "pairs"
    names = ("chosen", "rejected") if paired else ("desirable", "undesirable")
    begins = (examples.starts, examples.starts + examples.firsts)
    there = np.stack((examples.has_better, examples.has_worse), 1).ravel()
    learned = np.add.reduceat(examples.mask, np.stack(begins, 1).ravel()[there], dtype=np.int32)
    side = np.tile([0, 1], len(examples))[there]
    return {name: length_percentiles(learned[side == n]) for n, name in enumerate(names)}


def _balance(reading: Reading) -> Iterator[str]:
    """Yield how many answers are desirable; the paper weighs both sides about equally."""
    examples = reading.examples
    if examples.kind != "unpaired":
        return
    better, worse = (int(x.sum()) for x in (examples.has_better, examples.has_worse))
    said = f"answers that are desirable: {better:,}, undesirable: {worse:,}"
    if np.any(examples.has_better & examples.has_worse):
        said = f"pairs are taken apart, each answer is learned by itself; {said}"
    if not better or not worse:
        said += "; without the others, nothing says what is to be told apart"
    elif max(better, worse) > _UNEVEN * min(better, worse):
        rarer = "desirable" if better < worse else "undesirable"
        share = max(better, worse) / min(better, worse)
        said += f"; --{rarer}-weight {share:.2g} would make both count alike"
    yield said
    both = _rated_both_ways(reading)
    if len(both):
        place = examples.place(int(both[0]))
        yield f"rows whose answer is desirable, and undesirable in another row: {len(both):,}, the first is {place}"


def _rated_both_ways(reading: Reading) -> NDArray[np.int64]:
    """Return the desirable rows of which there is the same prompt and answer as undesirable."""
    examples, digests = reading.examples, reading.digests
    worse = set(digests[~examples.has_better].tolist())
    return np.array(
        [
            row
            for row in np.flatnonzero(~examples.has_worse).tolist()
            if int.from_bytes(digest_of(*examples[row], 0), "little") in worse
        ],
        np.int64,
    )


def _near_empty(examples: Examples) -> Iterator[str]:
    few = np.flatnonzero(examples.loss_tokens < _FEW)
    if len(few):
        place = examples.place(int(few[0]))
        yield f"rows with fewer than {_FEW} learned tokens: {len(few):,}, the first is {place}"


def with_split(receipt: Receipt, train: Examples, validation: Examples) -> Receipt:
    """Return the receipt with the rows of each side, none of them fitted yet."""
    return replace(
        receipt,
        rows_trained=len(train),
        rows_validation=len(validation),
        examples_trained=len(train),
        examples_validation=len(validation),
        tokens=train.token_count,
        loss_tokens=int(train.loss_tokens.sum(dtype=np.int64)),
        shared=int(train.shared.sum(dtype=np.int64)),
    )


def with_fit(
    receipt: Receipt,
    context: int,
    rule: LongRows,
    whole: Sequence[Examples],
    fitted: Sequence[Fitted],
) -> Receipt:
    """Return the receipt with what the length rule did to both sides."""
    train, validation = fitted
    dropped = (_dropped(*pair, context, rule) for pair in zip(whole, fitted, strict=True))
    too_long, gone = (sum(side.long for side in fitted), sum(len(side.dropped) for side in fitted))
    return replace(
        with_split(receipt, train.examples, validation.examples),
        rows_trained=train.rows,
        rows_validation=validation.rows,
        dropped=(*receipt.dropped, *(row for rows in dropped for row in rows)),
        context=context,
        long_rows=rule,
        rows_too_long=too_long,
        rows_cut=too_long - gone if rule == "cut" else 0,
        rows_too_long_dropped=gone,
        tokens_lost=sum(side.tokens_lost for side in fitted),
    )


def _dropped(whole: Examples, fitted: Fitted, context: int, rule: LongRows) -> list[Dropped]:
    because = {
        "cut": f"nothing that is learned lies within the context of {context:,}",
        "drop": f"more than the context of {context:,}",
    }
    lengths = whole.lengths
    return [
        Dropped(
            place=whole.place(index),
            because=f"{lengths[index]:,} tokens, {because.get(rule, 'nothing is learned')}",
        )
        for index in fitted.dropped.tolist()
    ]
