"""What two models find for the same queries, side by side: one file, as a report's page is."""

from collections.abc import Sequence
from dataclasses import dataclass

from embedding_studio.report_page import templates
from embedding_studio.tasks import MetricChange


@dataclass(frozen=True, slots=True)
class Result:
    """One result; in both lists it is the same."""

    text: str
    #: where it is known
    object_id: str | None = None
    #: as labels say, a share of the highest grade; None where they say nothing
    grade: float | None = None


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A query, what both models rank first for it, and how good that is, if it is known."""

    query: str
    before: Sequence[Result]
    after: Sequence[Result]
    score: tuple[float, float] | None = None


def compare_page_of(
    names: tuple[str, str],
    queries: Sequence[SideBySide],
    metrics: Sequence[MetricChange] = (),
    told: str = "",
    measure: str = "nDCG@10",
) -> str:
    """Return the page as HTML. names: of the two models; told: which queries these are; measure:
    what the scores are."""
    return (
        templates()
        .get_template("compare_page.html")
        .render(title=f"{names[0]} and {names[1]}", names=names, queries=queries, metrics=metrics,
                told=told, measure=measure)
    )  # fmt: skip
