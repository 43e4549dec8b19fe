"""What became of a run, as one page that needs nothing else: ``report.html``.

The way from a run folder to a page, each step usable alone:

- ``Report.of(folder)`` reads a run folder into frozen dataclasses (:mod:`~edgetune.report.contents`),
  also of an old, damaged or running one. Who looks again and again keeps a ``Reader.of(folder)`` and
  calls ``read()``: logs are read on from where they were left.
- ``render(report)`` is the whole page as text.
- Fragments for a page of one's own: ``summary(report)`` (status and main figures),
  ``sections(report)`` (each with key, title and HTML), ``body(report, prefix)`` (all of them under
  headings of level 2), ``style()`` (the sheet; put the class ``report`` on an element around the
  fragments). They have no style attributes and no scripts: a policy of
  ``style-src 'nonce-…'`` suffices.
- ``ReportWriter(folder)`` keeps ``report.html`` of a run at work, ``write_report`` writes one.
- ``line_chart(Chart(...))`` and ``bar_chart(...)`` (:mod:`~edgetune.report.charts`) draw any figures.

All text of a run is escaped in :mod:`~edgetune.report.markup`.
"""

from edgetune.report.charts import Band, Bar, Chart, Guide, Line, bar_chart, line_chart
from edgetune.report.contents import Evaluation, Report, Status, Steps
from edgetune.report.page import body, render, style, summary
from edgetune.report.reading import Reader
from edgetune.report.sections import Section, sections
from edgetune.report.writing import ReportWriter, write_report

__all__ = [
    "Band",
    "Bar",
    "Chart",
    "Evaluation",
    "Guide",
    "Line",
    "Reader",
    "Report",
    "ReportWriter",
    "Section",
    "Status",
    "Steps",
    "bar_chart",
    "body",
    "line_chart",
    "render",
    "sections",
    "style",
    "summary",
    "write_report",
]
