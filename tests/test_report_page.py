"""A batch's report as a page."""

from dataclasses import replace
from html.parser import HTMLParser

from embedding_studio.report_page import page_of
from tests.test_reports import good_searches, report_on, search


class Elements(HTMLParser):
    """Which elements a page has, with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]


def test_a_page_stands_alone_and_can_be_read_aloud() -> None:
    """Nothing is loaded from elsewhere, no script runs, plots have names, and tables headers."""
    page = Elements(page_of(report_on(*good_searches()), "Batch b-1"))
    assert page.named("html") == [{"lang": "en"}]
    assert "Batch b-1" in page.text
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.found}
    assert not [one for _, one in page.found if {"src", "href"} & one.keys()]
    assert all("scope" in header for header in page.named("th"))
    assert all("aria-label" in plot or "aria-hidden" in plot for plot in page.named("svg"))
    assert [one["aria-label"] for one in page.named("svg") if "aria-label" in one] == [
        "Click-through by position"
    ]


def test_what_people_posted_is_no_markup() -> None:
    """Types and names are told as they are."""
    report = report_on(search(1, ["a"], "<script>alert(1)</script>"))
    page = Elements(page_of(replace(report, warnings=("<b>look",)), "<i>x"))
    assert not page.named("script") + page.named("b") + page.named("i")
    assert "<script>alert(1)</script>" in page.text


def test_an_empty_batch_has_a_page() -> None:
    """Plots of nothing are left out; of many types the last are counted together."""
    page = Elements(page_of(report_on(), "Batch"))
    assert page.named("svg") == []
    many = report_on(*(search(n, ["a"], f"type {n}") for n in range(30)))
    assert "10 more events are of 10 other types" in page_of(many, "Batch")
