"""A batch's report as a page for browsers: one file that needs no network and runs no script."""

from functools import cache
from typing import TYPE_CHECKING, Any

from embedding_studio.reports import BatchReport

if TYPE_CHECKING:
    from jinja2 import Environment

_MOST_TYPES = 20


def page_of(report: BatchReport, title: str) -> str:
    """Return the page as HTML, with plots as SVG; the tables beside them say the same."""
    return templates().get_template("report_page.html").render(title=title, **parts_of(report))


@cache
def templates() -> "Environment":
    """Return the templates of this package. What they are given is text, never markup."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("embedding_studio", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def parts_of(report: BatchReport) -> dict[str, Any]:
    """Return what `report_body.html` is drawn from."""
    names = [name for name in report.__slots__ if isinstance(getattr(report, name), int)]
    events = [*report.events.items()]
    return {
        "report": report,
        "counts": {name.replace("_", " "): getattr(report, name) for name in names},
        "rates": [one.clicked / one.shown for one in report.positions],
        "events": events[:_MOST_TYPES],
        "other_events": events[_MOST_TYPES:],
        "shares": {
            "of the queries: sessions": report.share_of_queries,
            "of the clicked items: clicks": report.share_of_items,
            "of the users: their sessions": report.share_of_users,
        },
    }
