"""``edgetune study robustness``: what attacks on prompts do to a prefix, and what tuning mends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from edgetune.cli.options import FilePath, Ref, common_options, over_options
from edgetune.cli.show import say
from edgetune.cli.study_page import html_option, show
from edgetune.report.studies import Heat
from edgetune.workflows.over import Over
from edgetune.workflows.robustness import TRIES, RobustnessRequest, Steering, robustness

STEERING = Steering()


@click.command("robustness")
@click.argument("name", type=Ref(), metavar="REF")
@click.option(
    "--data",
    type=FilePath(),
    required=True,
    metavar="FILE",
    help="Rows whose prompts are attacked.",
)
@click.option(
    "--clean",
    type=FilePath(),
    required=True,
    metavar="FILE",
    help="Rows of the task, such as those it was trained on; those answered right are the standard.",
)
@click.option(
    "--tuning-steps",
    type=click.IntRange(1, 1000),
    default=STEERING.tuning_steps,
    show_default=True,
    metavar="N",
    help="Steps for each batch.",
)
@click.option(
    "--tuning-rate",
    type=click.FloatRange(0, 10, min_open=True),
    default=STEERING.tuning_rate,
    show_default=True,
    help="Their learning rate.",
)
@click.option(
    "--tries",
    type=click.IntRange(1, 100),
    default=TRIES,
    show_default=True,
    metavar="N",
    help="Variants of each row, of which an attack takes the one that is predicted worst.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the attacks."
)
@html_option
@over_options
@common_options
def command(
    name: str,
    data: Path,
    clean: Path,
    tuning_steps: int,
    tuning_rate: float,
    tries: int,
    seed: int,
    html: Path | None,
    over: Over,
    as_json: bool,
) -> None:
    """Print how many of --data a prefix answers right when letters and words of prompts are changed.

    Each time alone, and with a prefix added that is tuned for each batch of rows, without their answers: it
    brings what the blocks compute nearer to what they compute where answers are right.
    """
    steering = Steering(tuning_steps=tuning_steps, tuning_rate=tuning_rate)
    asked = RobustnessRequest(
        name=name, data=data, clean=clean, over=over, steering=steering, tries=tries, seed=seed
    )
    found = robustness(asked, say)
    lead = (
        f"{found.rows} rows of {data.name}. The planes of right answers are made of {found.known} clean rows "
        f"and have {_range(found.dimensions)} dimensions."
    )
    heat = Heat(
        caption="Share of rows answered right",
        corner="attack",
        rows=[one.attack for one in found.attacks],
        columns=["prefix", "tuned", "distance", "tuned"],
        values=[
            [one.right / found.rows, one.steered / found.rows, one.before, one.after]
            for one in found.attacks
        ],
        low=0.0,
        high=1.0,
    )
    show(f"Attacks on {name}", lead, [heat], html, found, as_json=as_json)


def _range(sizes: Sequence[int]) -> str:
    """Return the least and the largest, once if they are one.

    >>> _range((4, 4)), _range((3, 7, 4))
    ('4', '3 to 7')
    """
    return " to ".join(str(size) for size in sorted({min(sizes), max(sizes)}))
