"""What two models find for the same queries, side by side: one file, as a report's page is."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedding_studio.report_page import templates
from embedding_studio.tasks import MetricChange


@dataclass(frozen=True, slots=True)
class Shown:
    """One result in one of two lists."""

    object_id: str
    text: str
    #: as labels say, a share of the highest grade; None where they say nothing
    grade: float | None
    #: its place in the other list, from 1; None where that does not have it
    other_place: int | None


@dataclass(frozen=True, slots=True)
class QueryLists:
    """A query, its lists by both models, and nDCG by both, if labels say."""

    query: str
    before: Sequence[Shown]
    after: Sequence[Shown]
    ndcg: tuple[float, float] | None = None


def compare_page_of(
    names: tuple[str, str],
    queries: Sequence[QueryLists],
    metrics: Sequence[MetricChange] = (),
    told: str = "",
) -> str:
    """Return the page as HTML. names: of the two models; told: which queries these are."""
    return (
        templates()
        .get_template("compare_page.html")
        .render(title=f"{names[0]} and {names[1]}", names=names, queries=queries, metrics=metrics,
                told=told)
    )  # fmt: skip
