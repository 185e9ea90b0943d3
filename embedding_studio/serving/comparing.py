"""Two registered models on the same queries and items."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embedding_studio.compare_page import Result, SideBySide
from embedding_studio.engine.promotion import changes_of
from embedding_studio.errors import InvalidInput
from embedding_studio.imports.columns import Columns, values_of
from embedding_studio.imports.formats import ALIASES
from embedding_studio.imports.readers import read_rows
from embedding_studio.serving.judging import Catalogue, Found, Judged, metrics_of
from embedding_studio.settings import Settings
from embedding_studio.tasks import MetricChange

MOST_SHOWN = 20
"""How many queries that gained most, and as many that lost most, are shown."""
_TEXT_CHARS = 200


@dataclass(frozen=True)
class Comparison:
    """Two models on the same queries.

    metrics: by labels, of the second model over the first; none without them. queries: those
    that changed most. overlap: the mean share of the first's ten that the second has, too."""

    metrics: Sequence[MetricChange]
    queries: Sequence[SideBySide]
    overlap: float
    told: str


def compare(
    before: Found,
    after: Found,
    queries: Sequence[str],
    items: Catalogue,
    judged: Judged | None,
    seed: int,
) -> Comparison:
    """Return what differs between what two models found for the same queries.

    With labels the queries that gained and that lost most are shown, by nDCG; else those whose
    lists have least in common."""
    shared = [len({*one} & {*other}) for one, other in zip(before.top, after.top, strict=True)]
    overlap = float(np.mean(shared) / before.top.shape[1])
    if judged is None:
        order = np.argsort(shared, kind="stable")[: 2 * MOST_SHOWN]
        lists = [_lists_of(int(row), queries, before, after, items, None) for row in order]
        told = f"The {len(lists)} of {len(queries)} queries whose lists have least in common."
        return Comparison((), lists, overlap, told)
    scores = metrics_of(before, judged), metrics_of(after, judged)
    name = next(iter(scores[0]))
    first, second = scores[0][name], scores[1][name]
    gains = np.round(second - first, 6)
    order = np.argsort(-gains, kind="stable")
    gained = [row for row in order if gains[row] > 0][:MOST_SHOWN]
    lost = [row for row in order[::-1] if gains[row] < 0][:MOST_SHOWN]
    lists = [
        _lists_of(int(row), queries, before, after, items, judged, (first[row], second[row]))
        for row in [*gained, *lost]
    ]
    told = (
        f"Of {len(queries)} queries with labels {int((gains > 0).sum())} gained and "
        f"{int((gains < 0).sum())} lost: the {len(gained)} that gained most, then the {len(lost)} "
        "that lost most."
    )
    return Comparison(changes_of(*scores, seed), lists, overlap, told)


def _lists_of(
    row: int,
    queries: Sequence[str],
    before: Found,
    after: Found,
    items: Catalogue,
    judged: Judged | None,
    ndcg: tuple[float, float] | None = None,
) -> SideBySide:
    def shown(places: list[int]) -> list[Result]:
        return [
            Result(
                items.texts[place][:_TEXT_CHARS],
                items.ids[place],
                (float(judged.relevance[row, place]) or None) if judged else None,
            )
            for place in places
        ]

    return SideBySide(
        queries[row], shown(before.top[row].tolist()), shown(after.top[row].tolist()), ndcg
    )


def read_queries(file: Path, settings: Settings) -> list[str]:
    """Return the distinct queries of a file: a table with a column for them, or a query a line.

    Raises InvalidInput when there is none."""
    if file.suffix == ".txt":
        found = file.read_text(encoding="utf-8").splitlines()
    else:
        columns, found = Columns({"query": ALIASES["query"]}), []
        with file.open("rb") as content:
            for row in read_rows(content.read, settings):
                try:
                    values = values_of(row)
                    found.append(str(values[columns.named_by(values)["query"]]))
                except (ValueError, KeyError) as error:
                    why = "has no query" if isinstance(error, KeyError) else error
                    raise InvalidInput(f"{file}, row {row.number}: {why}") from error
    queries = list(dict.fromkeys(query.strip() for query in found if query.strip()))
    if not queries:
        raise InvalidInput(f"{file} has no query")
    return queries
