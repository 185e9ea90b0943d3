"""A batch's report as a page for browsers: one file that needs no network and runs no script."""

from embedding_studio.reports import BatchReport

_MOST_TYPES = 20


def page_of(report: BatchReport, title: str) -> str:
    """Return the page as HTML, with plots as SVG; the tables beside them say the same."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("embedding_studio", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = [name for name in report.__slots__ if isinstance(getattr(report, name), int)]
    events = [*report.events.items()]
    return environment.get_template("report_page.html").render(
        title=title,
        report=report,
        counts={name.replace("_", " "): getattr(report, name) for name in names},
        rates=[one.clicked / one.shown for one in report.positions],
        events=events[:_MOST_TYPES],
        other_events=events[_MOST_TYPES:],
        shares={
            "of the queries: sessions": report.share_of_queries,
            "of the clicked items: clicks": report.share_of_items,
            "of the users: their sessions": report.share_of_users,
        },
    )
