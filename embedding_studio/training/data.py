"""Sessions as columns on disk: prepared once per iteration, memory-mapped by every trial."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import expit

from embedding_studio.clickstream import (
    LEAST_QUERIES,
    SearchResult,
    Session,
    Splits,
    busy_users,
    normalize_query,
)
from embedding_studio.clickstream import text_of as text_of  # plugins look for it here
from embedding_studio.errors import NotEnoughData
from embedding_studio.labels import LabelledResult
from embedding_studio.snapshot import SessionColumns, columns_of
from embedding_studio.training.browsing import (
    MOST_SHOWINGS,
    clicks_like_a_person,
    count_cells,
    fit_likeliest,
    some_queries,
)
from embedding_studio.training.clicks import Showings
from embedding_studio.training.judge import Start, open_start, padded, positional_features
from embedding_studio.training.metrics import RELEVANT_FROM
from embedding_studio.training.near import find_near_identical
from embedding_studio.training.texts import TokenizedTexts, open_texts

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]
Flags = NDArray[np.bool_]
Numbers = dict[tuple[str, bool], int]
"""Numbers of queries and items: by what it is, and whether it is an item."""

SPLITS = tuple(Splits.of(str).named())
_COLUMNS = ("queries", "offsets", "items", "relevance", "clicked", "near")
_ASKED = ("queries", "offsets", "items", "split", "position", "label")
_SHOWINGS = ("session", "pair", "position", "weight")
_DISTRACTORS = 100
_UNASKED = -2


@dataclass(frozen=True)
class ShownLists:
    """Queries, each with the items it was ever shown.

    queries: (n_queries,) indices of texts, and so are items and distractors, unless the method
    numbers its items apart (see `prepare_clicks`);
    offsets: (n_queries + 1,) places in the (n_pairs,) columns, sorted by item: items, for one;
    distractors: (n_distractors,) random items, presumed irrelevant where they were not shown."""

    queries: Ints
    offsets: Ints
    items: Ints
    distractors: Ints

    def __len__(self) -> int:
        return len(self.queries)

    def pair_queries(self) -> Ints:
        """Return (n_pairs,) the place in `queries` of each pair's query."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def padded(self, column: NDArray[Any], fill: float) -> NDArray[Any]:
        """Return a (n_pairs,) column as (n_queries, longest list), `fill` where a list is shorter.

        Padding is where `padded(ones, 0)` is 0."""
        return padded(column, self.offsets, fill)


@dataclass(frozen=True)
class QueryLists(ShownLists):
    """One split: lists with what clicks and labels say of them, and the texts that they name.

    relevance: (n_pairs,) in [0, 1], that of its label, or else the click model's probability;
    clicked: (n_pairs,) how often, and of what is labelled whether it is relevant.
    near: (n_near, 2) places in `queries` of two that are spelled almost alike, by the first; each
    pair stands there both ways. Only the training split has any.
    start: what a model is judged by, if it was noted. spelled: the file of the queries as people
    spell them, one by one; the training split has none."""

    texts: TokenizedTexts
    relevance: NDArray[np.float32]
    clicked: NDArray[np.int32]
    near: Ints = field(default_factory=lambda: np.empty((0, 2), np.int64))
    start: Start | None = None
    spelled: Path | None = None

    def spellings(self) -> list[str]:
        """Return each query as people spell it."""
        if self.spelled is None:
            return []
        spellings: list[str] = json.loads(self.spelled.read_text(encoding="utf-8"))
        return spellings


@dataclass(frozen=True)
class Asked(ShownLists):
    """All queries of all splits, the training split's first, and what people did with their lists.

    split: (n_queries,) the place in SPLITS of each one's; position: (n_pairs,) the highest place
    that each was shown at, the last there is where it was not; label: (n_pairs,) relevance by
    labels, NaN where there is none; showings: those of people."""

    split: Ints
    position: Ints
    label: Floats
    showings: Showings

    def in_split(self, name: str) -> Flags:
        """Return (n_queries,) which are of a split."""
        of_split: Flags = self.split == SPLITS.index(name)
        return of_split


def prepare_clicks(
    sessions: Splits[Sequence[Session]],
    item_key: Callable[[SearchResult], str | None],
    tokenize: Callable[[Sequence[str], Flags], TokenizedTexts],
    folder: Path,
    seed: int = 0,
    encode_items: Callable[[Sequence[str]], None] | None = None,
    labels: Splits[Sequence[LabelledResult]] | None = None,
) -> Mapping[str, float]:
    """Write the columns of all three splits and the tokens of every distinct text.

    The click model is fitted on the training sessions alone, of people: what no person clicked
    teaches nothing and judges nothing (see `browsing`); where there are many, on some of the
    queries. Of the training queries, those with a click are kept; of the others all, for clicked
    ones favour the ranking that was shown. Results of one key are one item; those without a key are
    left out and counted. item_key is asked once for each distinct result.

    Labels are lists too, and say more than clicks: what is labelled has the relevance of its label,
    and counts as clicked if it is relevant. Clicking is fitted to clicks alone. Where all three
    parts have the same labels they are only to judge by, and one relevant query is enough.

    Without encode_items a key is the item's text, and queries and items share one numbering, in
    which a text that is both has two numbers: a model may take them differently. With it a key is
    whatever tells items apart, an image's address, say: only queries are texts, items are numbered
    on their own, and encode_items is called once with the distinct keys in the order of their
    numbers, to write what the method reads of them.

    Returns counts and the click model's parameters, worth seeing in MLflow. Raises NotEnoughData
    when no result has a key, or in a split too few queries have a probably relevant one."""
    texts: Numbers = {}
    items: Numbers = texts if encode_items is None else {}
    keys = _Keys(item_key, items)
    labels = labels or Splits((), (), ())
    tables = dict[str, _Table]()
    parts = list[Showings]()
    for name, part in sessions.named().items():
        tables[name], shown = _tabulate(columns_of(part), labels.named()[name], keys, texts)
        parts.append(shown)
    left_out = sum(table.left_out for table in tables.values())
    labels_left_out = sum(table.labels_left_out for table in tables.values())
    without = left_out + labels_left_out
    if without and not any(len(table.row) for table in tables.values()):
        raise NotEnoughData(
            f"the method finds nothing to learn from in any of {without} results (object_id "
            f"{keys.without!r}, say): a text method takes results posted with meta "
            '{"text": ...}, or items with a text, or overrides item_text'
        )
    contents = [content for content, _ in texts]
    showings = Showings.joined(parts)
    del parts, shown  # they are most of what there is
    is_person = clicks_like_a_person(showings) & ~_are_busy([*tables.values()])
    position = np.minimum(showings.highest_position(), showings.position.max(initial=0))
    showings = showings.of_sessions(is_person)
    clicks = showings.times_clicked()
    relevance, of_clicking = _by_clicks(showings, position, tables["train"])
    label = np.concatenate([table.label for table in tables.values()])
    is_labelled = np.isfinite(label)
    relevance = np.where(is_labelled, label, relevance)
    clicked = np.where(is_labelled, label >= RELEVANT_FROM, clicks)
    _write_asked(showings, position, label, [*tables.values()], folder)
    del showings
    figures: dict[str, float] = {
        "results_left_out": left_out,
        "sessions_of_no_person": int((~is_person).sum()),
    }
    begin = 0
    for name, table in tables.items():
        pairs = slice(begin, begin + len(table.row))
        figures[f"{name}_sessions"] = len(table.user)
        figures[f"{name}_clicks"] = float(clicks[pairs].sum())
        figures |= _write_split(name, table, relevance[pairs], clicked[pairs], contents, folder)
        begin = pairs.stop
    if any(labels.named().values()):
        figures["labels_left_out"] = labels_left_out
    if labels.train is not labels.test or not labels.train:
        _require_enough(figures)

    every_item = np.flatnonzero(np.bincount(np.concatenate([t.pair_item for t in tables.values()])))
    count = min(_DISTRACTORS, len(every_item))
    distractors = np.random.default_rng(seed).choice(every_item, size=count, replace=False)
    np.save(folder / "distractors.npy", distractors)
    tokenize(contents, np.array([is_item for _, is_item in texts])).write(folder)
    if encode_items is not None:
        encode_items([key for key, _ in items])
    return {**figures, "items": len(every_item), **of_clicking}


def _by_clicks(
    showings: Showings, position: Ints, train: "_Table"
) -> tuple[Floats, Mapping[str, float]]:
    """Return (n_pairs,) how relevant clicks say that each pair is, and what they say of clicking;
    nothing where nothing was shown. train: the first pairs', to which clicking is fitted."""
    is_fitted = np.zeros(showings.n_pairs, np.bool_)
    shown = np.bincount(showings.pair, minlength=showings.n_pairs)[: len(train.row)]
    of_queries = np.bincount(train.row, shown, len(train.queries))
    is_fitted[: len(train.row)] = some_queries(of_queries, MOST_SHOWINGS)[train.row]
    fitted = showings.of_pairs(is_fitted)
    if not len(fitted.pair):
        return np.zeros(showings.n_pairs), {}
    features = positional_features(position)
    chances = fit_likeliest(count_cells(fitted, "position"), features[is_fitted], trusts=False)
    evidence = chances.evidence_of(showings, "position")
    at_top, at_10 = chances.clicks_1[0], chances.clicks_1[min(9, position.max(initial=0))]
    return expit(features @ chances.weights + evidence), {
        "click_attraction_relevant": float(at_top),
        "click_attraction_irrelevant": float(chances.clicks_0[0]),
        "click_examination_at_10": float(at_10 / at_top),
    }


def open_clicks(folder: Path) -> Splits[QueryLists]:
    """Map what `prepare_clicks` wrote into memory."""

    def column(name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array

    texts = open_texts(folder)
    distractors = column("distractors")

    def lists(split: str) -> QueryLists:
        columns = {name: column(f"{split}_{name}") for name in _COLUMNS}
        spelled = None if split == "train" else _spelled(folder, split)
        start = open_start(folder, split)
        return QueryLists(
            texts=texts, distractors=distractors, start=start, spelled=spelled, **columns
        )

    return Splits.of(lists)


def write_relevance(folder: Path, asked: Asked, relevance: Floats) -> None:
    """Put other probabilities in place of those of `prepare_clicks`. relevance: (n_pairs,) of
    asked."""
    row = asked.pair_queries()
    for name, split in open_clicks(folder).named().items():
        own = (asked.in_split(name) & np.isin(asked.queries, split.queries))[row]
        path = folder / f"{name}_relevance.npy"
        written = path.with_suffix(".new.npy")
        np.save(written, relevance[own].astype(np.float32))
        written.replace(path)  # what is mapped into memory stays as it was


def open_asked(folder: Path) -> Asked:
    """Read what `prepare_clicks` wrote for judging."""

    def column(name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", allow_pickle=False)
        return array

    asked = {name: column(f"asked_{name}") for name in _ASKED}
    columns = {name: column(f"showings_{name}") for name in _SHOWINGS}
    showings = Showings(
        **columns,
        n_pairs=len(asked["items"]),
        n_sessions=int(columns["session"].max(initial=-1)) + 1,
    )
    return Asked(**asked, distractors=column("distractors"), showings=showings)


def _spelled(folder: Path, split: str) -> Path:
    return folder / f"{split}_spelled.json"


class _Keys:
    """Numbers of the items that results are, asked for once each. without: the object id of one
    that has no key."""

    def __init__(self, item_key: Callable[[SearchResult], str | None], items: Numbers) -> None:
        self._item_key, self._items = item_key, items
        self._known: tuple[Any, Ints] = None, np.empty(0, np.int32)
        self.without: str | None = None

    def of(self, columns: SessionColumns) -> Ints:
        """Return (n_results,) numbers, -1 for what has no key."""
        results, known = self._known
        if results is not columns.results:  # those of a snapshot are the same for all splits
            results, known = columns.results, np.full(len(columns.results), _UNASKED, np.int32)
            self._known = results, known
        for place, result in columns.shown(np.flatnonzero(known != _UNASKED)):
            known[place] = self.of_result(result)
        return known[columns.item]

    def of_result(self, result: SearchResult) -> int:
        """Return the number of one, -1 for what has no key."""
        key = self._item_key(result)
        if not key:
            self.without = self.without or result.object_id
        return self._items.setdefault((key, True), len(self._items)) if key else -1

    def of_labels(self, labels: Sequence[LabelledResult]) -> Ints:
        """Return (n_labels,) numbers of their items."""
        results = {id(label.result): label.result for label in labels}  # labels share them
        known = {its_id: self.of_result(result) for its_id, result in results.items()}
        return np.array([known[id(label.result)] for label in labels], np.int64)


@dataclass(frozen=True)
class _Table:
    """One split. queries: (n_queries,) text indices, ascending; row: (n_pairs,) the place of each
    pair's query in them; pair_item: (n_pairs,) item indices, sorted within a query; label:
    (n_pairs,) relevance by labels, NaN where there is none. left_out, labels_left_out: how many
    results, and labels, had no key; user: (n_sessions,) places in users, -1 where nobody is named.
    """

    queries: Ints
    row: Ints
    pair_item: Ints
    label: Floats
    left_out: int
    labels_left_out: int
    user: Ints
    users: Sequence[str]


def _tabulate(
    columns: SessionColumns, labels: Sequence[LabelledResult], keys: _Keys, texts: Numbers
) -> tuple[_Table, Showings]:
    spelling: dict[str, str] = {}

    def number_of(query: str) -> int:
        # the first spelling stands for all
        first = spelling.setdefault(normalize_query(query), query)
        return texts.setdefault((first, False), len(texts))

    asked = np.zeros(len(columns.queries), np.bool_)
    asked[columns.query] = True
    of_spelling = np.zeros(len(columns.queries), np.int32)
    # by their places, which are in the order they came
    for place, query in compress(enumerate(columns.queries), asked):
        of_spelling[place] = number_of(query)
    item, labelled = keys.of(columns), keys.of_labels(labels)
    lengths = np.diff(columns.offsets)
    is_known, is_kept = item >= 0, labelled >= 0
    of_items = np.repeat(of_spelling[columns.query], lengths)[is_known]
    of_labels = np.array([number_of(one.query) for one in labels], np.int32)[is_kept]
    pairs, places = _distinct_pairs(
        np.concatenate([of_items, of_labels]), np.concatenate([item[is_known], labelled[is_kept]])
    )
    pair, label = places[: len(of_items)], np.full(len(pairs), -1.0)
    relevance = np.array([one.relevance for one in labels], np.float64)
    np.maximum.at(label, places[len(pair) :], relevance[is_kept])  # of items of one key the best
    queries, row = np.unique(pairs[:, 0], return_inverse=True)
    session = np.repeat(np.arange(len(columns), dtype=np.int32), lengths)
    first = columns.offsets[:-1].astype(np.int32)
    position = np.arange(len(item), dtype=np.int32) - first[session]
    table = _Table(
        queries=queries,
        row=row.astype(np.int32),
        pair_item=pairs[:, 1],
        label=np.where(label < 0, np.nan, label),
        left_out=len(item) - len(pair),
        labels_left_out=int((~is_kept).sum()),
        user=columns.user,
        users=columns.users,
    )
    return table, Showings(
        session=session[is_known],
        pair=pair,
        position=position[is_known],
        weight=columns.weight[is_known],
        n_pairs=len(pairs),
        n_sessions=len(columns),
    )


def _distinct_pairs(query: Ints, item: Ints) -> tuple[Ints, Ints]:
    """Return (n_pairs, 2) distinct queries and items, ascending, and (n,) the place of each."""
    order = _ascending(item)
    order = order[_ascending(query[order])]
    query, item = query[order], item[order]
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (query[1:] != query[:-1]) | (item[1:] != item[:-1])
    places = np.empty(len(order), np.int32)
    places[order] = np.cumsum(is_new, dtype=np.int32) - 1
    return np.stack([query[is_new], item[is_new]], axis=1), places


def _ascending(numbers: Ints) -> Ints:
    """Return the places of small numbers from the smallest on, equal ones in their order.

    By counting, in the time of their number, as a sparse row becomes columns."""
    row = np.arange(len(numbers), dtype=np.int32), numbers, [0, len(numbers)]
    places: Ints = csr_matrix(row, (1, int(numbers.max(initial=0)) + 1)).tocsc().data
    return places


def _are_busy(tables: Sequence[_Table]) -> Flags:
    """Return (n_sessions,) which are of users who search far more than others."""
    counts = Counter[str]()
    for table in tables:
        which, count = np.unique(table.user[table.user >= 0], return_counts=True)
        counts.update(dict(zip((table.users[n] for n in which), count.tolist(), strict=True)))
    busy = busy_users(counts, sum(len(table.user) for table in tables))
    flags = [
        np.array([*(one in busy for one in table.users), False])[table.user] for table in tables
    ]
    return np.concatenate(flags)


def _write_split(
    name: str,
    table: _Table,
    relevance: Floats,
    clicked: Floats,
    texts: Sequence[str],
    folder: Path,
) -> dict[str, float]:
    """Write the columns of one split, and return its counts.

    relevance, clicked: (n_pairs,) of the table."""
    queries, row = table.queries, table.row
    is_clicked = np.bincount(row, clicked, len(queries)) > 0
    is_judged = np.bincount(row, relevance >= RELEVANT_FROM, len(queries)) > 0
    is_kept = is_clicked if name == "train" else np.ones_like(is_clicked)
    pairs = is_kept[row]
    near = find_near_identical([texts[q] for q in queries[is_kept]] if name == "train" else [])
    columns = {
        "queries": queries[is_kept],
        "offsets": np.concatenate(
            [[0], np.cumsum(np.bincount(row, minlength=len(queries))[is_kept])]
        ),
        "items": table.pair_item[pairs],
        "relevance": relevance[pairs].astype(np.float32),
        "clicked": clicked[pairs].astype(np.int32),
        "near": near,
    }
    for column in _COLUMNS:
        np.save(folder / f"{name}_{column}.npy", columns[column])
    if name != "train":
        spelled = json.dumps([texts[q] for q in queries], ensure_ascii=False)
        _spelled(folder, name).write_text(spelled, encoding="utf-8")
    return {
        f"{name}_queries": len(queries),
        f"{name}_queries_with_relevant": int(is_judged.sum()),
        f"{name}_pairs": int(pairs.sum()),
    }


def _write_asked(
    showings: Showings, position: Ints, label: Floats, tables: Sequence[_Table], folder: Path
) -> None:
    """Write what `Asked` holds."""
    lengths = [np.bincount(table.row) for table in tables]
    columns = {
        "asked_queries": np.concatenate([table.queries for table in tables]),
        "asked_offsets": np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
        "asked_items": np.concatenate([table.pair_item for table in tables]),
        "asked_split": np.repeat(np.arange(len(tables)), [len(table.queries) for table in tables]),
        "asked_position": position,
        "asked_label": label,
    } | {f"showings_{name}": getattr(showings, name) for name in _SHOWINGS}
    for name, column in columns.items():
        np.save(folder / f"{name}.npy", column)


def _require_enough(figures: Mapping[str, float]) -> None:
    if all(
        figures[f"{name}_queries_with_relevant"] >= least for name, least in LEAST_QUERIES.items()
    ):
        return
    counts = "; ".join(
        f"{name}: {figures[f'{name}_queries_with_relevant']:.0f} of "
        f"{figures[f'{name}_queries']:.0f} distinct queries in "
        f"{figures[f'{name}_sessions']:.0f} sessions, at least {least} needed"
        for name, least in LEAST_QUERIES.items()
    )
    raise NotEnoughData(
        f"too few queries with a result that clicks or labels show to be relevant ({counts}): "
        "collect more sessions with clicks, or put labels, on more distinct queries"
    )
