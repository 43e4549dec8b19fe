"""What a study found: printed as tables, written as a page, or as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgetune.cli.output_file import page_option
from edgetune.cli.show import out, out_json, table
from edgetune.files import unwritable, write_text
from edgetune.report.charts import Chart
from edgetune.report.studies import Heat, study_page
from edgetune.settings.spec import to_plain

html_option = page_option("--html", "Also write a page with the tables, shaded.")


def show(
    title: str,
    lead: str,
    heats: Sequence[Heat],
    html: Path | None,
    found: object,
    *,
    as_json: bool,
    charts: Sequence[Chart] = (),
) -> None:
    """Print a study and write its page, if one is wanted."""
    if html is not None:
        try:
            write_text(html, study_page(title, lead, heats, charts=charts))
        except OSError as error:
            raise unwritable("The page", html, error, "choose another place with --html") from error
    if as_json:
        out_json(to_plain(found))
        return
    out(lead)
    for heat in heats:
        rows = [
            (name, *("" if x is None else f"{x:.4g}" for x in row))
            for name, row in zip(heat.rows, heat.values, strict=True)
        ]
        out(f"\n{heat.caption}\n" + table(rows, (heat.corner, *heat.columns)))
    if html is not None:
        out(f"\nThe page is {html}")
