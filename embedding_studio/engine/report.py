"""The report on what an iteration learns from: as `Report` counts sessions, by columns."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedding_studio.clickstream import has_content, normalize_query, text_of
from embedding_studio.reports import LONG_TEXT, POSITIONS, BatchReport, Report
from embedding_studio.snapshot import Snapshot

Ints = NDArray[np.integer[Any]]

_PART = 50_000  # sessions


def report_on(snapshot: Snapshot, weights: Mapping[str, float]) -> BatchReport:
    """Return the report on all sessions of a snapshot. weights: as the snapshot has them."""
    columns, report = snapshot.columns, Report(weights)
    numbers: dict[str, int] = {}
    rows = [
        (numbers.setdefault(one.object_id, len(numbers)), has_content(one), len(text_of(one) or ""))
        for one in columns.results
    ]
    object_of, with_content, length = np.array(rows, np.int64).reshape(-1, 3).T
    is_shown, clicks = np.zeros(len(numbers), np.bool_), np.zeros(len(numbers), np.int64)
    shown, clicked = np.zeros(POSITIONS, np.int64), np.zeros(POSITIONS, np.int64)
    is_teaching = np.zeros(len(columns), np.bool_)
    for start in range(0, len(columns), _PART):
        offsets = columns.offsets[start : start + _PART + 1]
        item, weight = (part[offsets[0] : offsets[-1]] for part in (columns.item, columns.weight))
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        position = np.arange(len(row)) - (offsets - offsets[0])[row]
        is_clicked, is_first = weight > 0, position < POSITIONS
        shown += np.bincount(position[is_first], minlength=POSITIONS)
        clicked += np.bincount(position[is_first & is_clicked], minlength=POSITIONS)
        is_shown[object_of[item]] = True
        is_teaching[start + row[is_clicked]] = True
        clicks += np.bincount(_once(row, object_of[item], is_clicked), minlength=len(numbers))
        report.counts.update(
            results=len(item),
            results_without_content=len(_once(row, object_of[item], with_content[item] == 0)),
            long_texts=int((length[item] > LONG_TEXT).sum()),
        )
    is_teaching &= ~snapshot.is_irrelevant
    report.counts.update(
        sessions=len(columns),
        clicked_sessions=int(is_teaching.sum()),
        irrelevant_sessions=int(snapshot.is_irrelevant.sum()),
        events_not_shown=snapshot.events_not_shown,
    )
    queries = [*map(normalize_query, columns.queries)]
    for query, count in zip(
        queries, np.bincount(columns.query, minlength=len(queries)), strict=True
    ):
        report.queries[query] += int(count)
    report.clicked_queries = {queries[n] for n in np.unique(columns.query[is_teaching])}
    by_user = np.bincount(columns.user[columns.user >= 0], minlength=len(columns.users))
    report.users.update(dict(zip(columns.users, by_user.tolist(), strict=True)))
    report.events.update(snapshot.posted_types)
    names = [*numbers]
    length_of = np.zeros(len(numbers), np.int64)
    np.maximum.at(length_of, object_of, length)
    report.shown_items = {names[n]: int(length_of[n]) for n in np.flatnonzero(is_shown)}
    report.clicked_items.update({names[n]: int(clicks[n]) for n in np.flatnonzero(clicks)})
    report.shown, report.clicked = shown.tolist(), clicked.tolist()
    return report.told()


def _once(row: Ints, item: Ints, is_chosen: NDArray[np.bool_]) -> Ints:
    """Return the chosen items, each once a row."""
    size = int(item.max(initial=0)) + 1
    found: Ints = np.unique(row[is_chosen] * size + item[is_chosen]) % size
    return found
