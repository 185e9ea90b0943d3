"""Sessions as they were at a moment, as columns in two parquet files that any engine reads.

`items.parquet` has each distinct result once: its number, object id, and content as JSON. In
`sessions.parquet`, a session a row, results name theirs by its number, so that texts are stored
once however often they were shown. Both are written page by page and read by row groups."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from functools import cached_property
from itertools import accumulate, chain, compress, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from embedding_studio.clickstream import (
    CLICK,
    OTHER_WEIGHT,
    SearchResult,
    Session,
    SessionEvent,
    Splits,
    event_kind,
    has_content,
    normalize_query,
    part_of_query,
)
from embedding_studio.items import Item, completed

Ints = NDArray[np.integer[Any]]
Document = Mapping[str, Any]

_GROUP = 20_000  # rows
_MOST_KNOWN = 2_000_000
_TEXT, _TIME = pa.string(), pa.timestamp("ms", "UTC")
_ITEMS = pa.schema({"item": pa.int32(), "object_id": _TEXT, "content": _TEXT})
_RESULT = pa.struct({"item": pa.int32(), "rank": pa.float64()})
_EVENT = pa.struct(
    {
        "event_id": _TEXT,
        "object_id": _TEXT,
        "created_at": _TIME,
        "event_type": _TEXT,
        "meta": _TEXT,
    }
)
_SESSIONS = pa.schema(
    {
        "session_id": _TEXT,
        "search_query": _TEXT,
        "search_meta": _TEXT,
        "user_id": _TEXT,
        "created_at": _TIME,
        "is_irrelevant": pa.bool_(),
        "results": pa.list_(_RESULT),
        "events": pa.list_(_EVENT),
    }
)
_COUNTED = (
    "search_query",
    "user_id",
    "is_irrelevant",
    "results.list.element.item",
    "events.list.element.object_id",
    "events.list.element.event_type",
)
_REPEATED = ("search_query", "user_id", *_COUNTED[-2:])


# -- writing --------------------------------------------------------------------------------------


class SnapshotWriter:
    """Writes a snapshot into a folder that it makes, in a with statement.

    find_items: returns items by their ids, for results that carry no content of their own. count:
    of the sessions. Of more than two million distinct results some are written more than once."""

    def __init__(
        self, folder: Path, find_items: Callable[[Collection[str]], Mapping[str, Item]]
    ) -> None:
        folder.mkdir(parents=True)
        self.count = 0
        self._find_items = find_items
        self._sessions = _Groups(folder / "sessions.parquet", _SESSIONS)
        self._items = _Groups(folder / "items.parquet", _ITEMS)
        #: what the last items share with the results that are them
        self._known = pa.array([], pa.large_string())
        self._n_items = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sessions.close()
        self._items.close()

    def add(self, documents: Sequence[Document]) -> None:
        """Add sessions as the store keeps them, each with its `events`; a result of which there is
        only an id may be that."""
        self.count += len(documents)
        results = [document["search_results"] for document in documents]
        shown = [*chain.from_iterable(results)]
        if {*map(type, shown)} <= {str}:
            keys, ranks = shown, pa.nulls(len(shown), pa.float64())
        else:
            keys = [one if isinstance(one, str) else _key_of(one) for one in shown]
            of_each = [None if isinstance(one, str) else one.get("rank") for one in shown]
            ranks = pa.array(of_each, pa.float64())
        of_results = [self._numbers(pa.array(keys, pa.large_string()), shown), ranks]
        events = [document["events"] for document in documents]
        columns = [
            *(_column(documents, field) for field in list(_SESSIONS)[:-2]),
            _lists(results, of_results, _RESULT),
            _lists(
                events,
                (_column([*chain.from_iterable(events)], field) for field in _EVENT),
                _EVENT,
            ),
        ]
        self._sessions.add(columns)

    def _numbers(self, keys: pa.Array, results: Sequence[Document | str]) -> pa.Array:
        """Return the numbers of results among the items, to which new ones are added."""
        places = pc.index_in(keys, self._known)
        if places.null_count:
            is_new = places.is_null()
            new = compress(results, is_new.to_pylist())
            new_keys = keys.filter(is_new).to_pylist()
            self._add_items(dict(zip(new_keys, map(_result_of, new), strict=True)))
            places = pc.index_in(keys, self._known)
        numbers = pc.add(places, pa.scalar(self._n_items - len(self._known), pa.int32()))
        if len(self._known) > _MOST_KNOWN:
            self._known = self._known[:0]
        return numbers

    def _add_items(self, new: Mapping[str, SearchResult]) -> None:
        bare = {one.object_id for one in new.values() if not has_content(one)}
        items = self._find_items(bare) if bare else {}
        rows: list[dict[str, Any]] = [
            {"item": n, "object_id": one.object_id, "content": completed(one, items).meta}
            for n, one in enumerate(new.values(), self._n_items)
        ]
        self._items.add([_column(rows, field) for field in _ITEMS])
        self._known = pa.concat_arrays([self._known, pa.array([*new], self._known.type)])
        self._n_items += len(new)


def _key_of(result: Document) -> str:
    """Return what results share that are one item."""
    object_id, meta = result["object_id"], result.get("meta")
    return f"{object_id}\0{json.dumps(meta)}" if meta else str(object_id)


def _result_of(result: Document | str) -> SearchResult:
    if isinstance(result, str):
        return SearchResult(result)
    return SearchResult(result["object_id"], meta=result.get("meta") or {})


class _Groups:
    """A parquet file to which row groups are written as they fill."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []

    def add(self, columns: Sequence[pa.Array]) -> None:
        self._waiting.append(pa.record_batch(columns, schema=self._schema))
        if sum(batch.num_rows for batch in self._waiting) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema))
            self._waiting = []

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _column(documents: Sequence[Document], field: pa.Field) -> pa.Array:
    """Return a column of documents; objects are JSON, and None where they are empty."""
    name = field.name
    default = CLICK if name == "event_type" else None
    values = [document.get(name, default) for document in documents]
    if name in ("search_meta", "meta", "content"):
        return pa.array([json.dumps(value) if value else None for value in values], _TEXT)
    if field.type == _TIME:
        return pa.array(values, pa.int64()).cast(_TIME)
    return pa.array(values, field.type)


def _lists(
    lists: Sequence[Sequence[Any]], columns: Iterable[pa.Array], kind: pa.StructType
) -> pa.ListArray:
    offsets = pa.array([0, *accumulate(map(len, lists))], pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.StructArray.from_arrays([*columns], fields=[*kind]))


# -- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionColumns:
    """Sessions as columns.

    query: (n_sessions,) places in `queries`, the distinct spellings; user: (n_sessions,) places in
    `users`, -1 where nobody is named; offsets: (n_sessions + 1,) places in the (n_results,) columns
    item, the place in `results`, and weight, as how many clicks the strongest event on it counts, 0
    where none does. results: the distinct ones, without their ranks; each loop reads them anew."""

    queries: Sequence[str]
    query: Ints
    users: Sequence[str]
    user: Ints
    offsets: Ints
    item: Ints
    weight: NDArray[np.float32]
    results: Collection[SearchResult]

    def __len__(self) -> int:
        return len(self.query)

    def shown(self, known: Ints | None = None) -> Iterator[tuple[int, SearchResult]]:
        """Give those of the results that are in a session, each with its place, but for those that
        are known, by their places."""
        is_wanted = np.zeros(len(self.results), np.bool_)
        is_wanted[self.item] = True
        if known is not None:
            is_wanted[known] = False
        if isinstance(self.results, SnapshotResults):
            return zip(
                np.flatnonzero(is_wanted).tolist(), self.results.some(is_wanted), strict=True
            )
        return compress(enumerate(self.results), is_wanted)

    def only(self, rows: Ints) -> "SessionColumns":
        """Return some of the sessions, by their places, which ascend."""
        lengths = np.diff(self.offsets)
        is_chosen = np.zeros(len(self), np.bool_)
        is_chosen[rows] = True
        of_results = np.repeat(is_chosen, lengths)
        return replace(
            self,
            query=self.query[rows],
            user=self.user[rows],
            offsets=np.concatenate([[0], np.cumsum(lengths[rows])]),
            item=self.item[of_results],
            weight=self.weight[of_results],
        )


def columns_of(sessions: Sequence[Session]) -> SessionColumns:
    """Return sessions as columns; those of a snapshot are read as such."""
    if isinstance(sessions, SnapshotSessions):
        return sessions.columns()
    queries, users = _Numbers(), _Numbers()
    results = [result for session in sessions for result in session.search_results]
    weights = [
        of_items.get(result.object_id, 0.0)
        for session in sessions
        for of_items in [session.click_weights()]
        for result in session.search_results
    ]
    lengths = [len(session.search_results) for session in sessions]
    user_ids = (session.user_id for session in sessions)
    return SessionColumns(
        query=queries.of(session.search_query for session in sessions),
        queries=[*queries],
        user=users.of(user_ids),
        users=[*users],
        offsets=np.cumsum([0, *lengths]),
        item=np.arange(len(results)),
        weight=np.array(weights, np.float32),
        results=results,
    )


class _Numbers(dict[str, int]):
    """What is distinct, numbered as it comes; None is -1."""

    def of(self, values: Iterable[str | None]) -> Ints:
        numbers = (-1 if one is None else self.setdefault(one, len(self)) for one in values)
        return np.fromiter(numbers, np.int32)


class Snapshot:
    """A snapshot that was written into a folder, with events that count as weights say.

    weights: as `merge_weights` has them."""

    def __init__(self, folder: Path, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._file = pq.ParquetFile(folder / "sessions.parquet", read_dictionary=_REPEATED)
        self.results = SnapshotResults(folder / "items.parquet")
        groups = range(self._file.num_row_groups)
        self.starts = np.cumsum([0, *(self._file.metadata.row_group(n).num_rows for n in groups)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def usable(self) -> "SnapshotSessions":
        """Return the sessions that are not marked irrelevant."""
        return SnapshotSessions(self, np.flatnonzero(~self._told[1]))

    @property
    def columns(self) -> SessionColumns:
        """All sessions."""
        return self._told[0]

    @property
    def is_irrelevant(self) -> NDArray[np.bool_]:
        """(n_sessions,) which are marked so."""
        return self._told[1]

    @property
    def posted_types(self) -> Counter[str]:
        """How many events all sessions have, by their types as posted."""
        return self._read.posted_types

    @property
    def events_not_shown(self) -> int:
        """How many events, of all sessions, are on items that theirs did not show."""
        return self._read.events_not_shown

    @property
    def event_types(self) -> Counter[str]:
        """How many events the usable sessions have, by their types as posted."""
        return self._read.event_types

    @property
    def strays(self) -> int:
        """How many items have an event that counts in a usable session that did not show them."""
        return self._read.strays

    @cached_property
    def _told(self) -> tuple[SessionColumns, NDArray[np.bool_]]:
        return self._read.told()

    @cached_property
    def _read(self) -> "_Columns":
        read = _Columns(self.results, self._weights)
        read.add(self._file.read_row_groups([], _COUNTED))  # for there may be none
        for number in range(self._file.num_row_groups):
            read.add(self._file.read_row_group(number, _COUNTED))
        return read

    def group(self, number: int) -> list[Session]:
        """Return the sessions of a row group."""
        rows = self._file.read_row_group(number).to_pylist()
        return [self._session_of(row).weighed(self._weights) for row in rows]

    def _session_of(self, row: dict[str, Any]) -> Session:
        return Session(
            session_id=row["session_id"],
            search_query=row["search_query"],
            search_results=tuple(
                replace(self._all_results[one["item"]], rank=one["rank"]) for one in row["results"]
            ),
            created_at=row["created_at"].astimezone(UTC),
            search_meta=_object_of(row["search_meta"]),
            user_id=row["user_id"],
            events=tuple(
                SessionEvent(
                    **{
                        **event,
                        "created_at": event["created_at"].astimezone(UTC),
                        "meta": _object_of(event["meta"]),
                    }
                )
                for event in row["events"]
            ),
            is_irrelevant=row["is_irrelevant"],
        )

    @cached_property
    def _all_results(self) -> list[SearchResult]:
        return [*self.results]


class SnapshotResults(Collection[SearchResult]):
    """The distinct results of a snapshot, read anew by each loop."""

    def __init__(self, file: Path) -> None:
        self._file = pq.ParquetFile(file)

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def __contains__(self, result: object) -> bool:
        return any(one == result for one in self)

    def __iter__(self) -> Iterator[SearchResult]:
        return self.some(np.ones(len(self), np.bool_))

    def some(self, chosen: NDArray[np.bool_]) -> Iterator[SearchResult]:
        """Give those that (n_results,) flags choose."""
        first = 0
        for part in self._file.iter_batches(columns=["object_id", "content"]):
            some = part.filter(pa.array(chosen[first : first + len(part)]))
            first += len(part)
            for object_id, content in zip(*(one.to_pylist() for one in some.columns), strict=True):
                yield SearchResult(object_id, meta=_object_of(content))

    def object_ids(self) -> pa.DictionaryArray:
        """Return (n_results,) their object ids."""
        column = self._file.read(columns=["object_id"]).column(0)
        return column.combine_chunks().dictionary_encode()


class SnapshotSessions(Sequence[Session]):
    """Sessions of a snapshot, by their rows, which ascend; read as they are looped over."""

    def __init__(self, snapshot: Snapshot, rows: Ints) -> None:
        self._snapshot = snapshot
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Session]:
        starts = self._snapshot.starts
        bounds = np.searchsorted(self._rows, starts)
        for number, (first, last) in enumerate(pairwise(bounds)):
            if first < last:
                group = self._snapshot.group(number)
                yield from (group[row - starts[number]] for row in self._rows[first:last])

    @overload
    def __getitem__(self, place: int) -> Session: ...

    @overload
    def __getitem__(self, place: slice) -> "SnapshotSessions": ...

    def __getitem__(self, place: int | slice) -> "Session | SnapshotSessions":
        if isinstance(place, slice):
            return SnapshotSessions(self._snapshot, np.sort(self._rows[place]))
        row = self._rows[place]
        return next(iter(SnapshotSessions(self._snapshot, np.array([row]))))

    def columns(self) -> SessionColumns:
        return self._snapshot.columns.only(self._rows)

    def without(self, queries: Collection[str]) -> "SnapshotSessions":
        """Return those of other queries than these, which are normalized."""
        columns = self._snapshot.columns
        is_other = [normalize_query(query) not in queries for query in columns.queries]
        chosen = np.array(is_other, np.bool_)[columns.query[self._rows]]
        return SnapshotSessions(self._snapshot, self._rows[chosen])

    def split_by_query(
        self, validation_share: float, test_share: float, folds: int = 1, fold: int | None = 0
    ) -> "Splits[SnapshotSessions]":
        """Do as `clickstream.split_by_query` does."""
        columns = self._snapshot.columns
        shares = validation_share, test_share
        parts = np.array([part_of_query(one, *shares, folds, fold) for one in columns.queries], "U")
        part = parts[columns.query[self._rows]]
        found = Splits.of(lambda name: SnapshotSessions(self._snapshot, self._rows[part == name]))
        return found if fold is not None else replace(found, test=found.validation)


class _Columns:
    """What is read of all sessions as columns, row group by row group."""

    def __init__(self, results: SnapshotResults, weights: Mapping[str, float]) -> None:
        self._results, self._weights = results, weights
        objects = results.object_ids()
        self._objects, self._of_items = objects.dictionary, objects.indices.to_numpy()
        self._named: list[pa.Table] = []
        self._groups: list[tuple[NDArray[Any], ...]] = []
        self.event_types, self.posted_types = Counter[str](), Counter[str]()
        self.strays = self.events_not_shown = 0

    def add(self, group: pa.Table) -> None:
        lengths, (item,) = _flat(group.column("results"))
        is_irrelevant = group.column("is_irrelevant").to_numpy()
        weight = self._weigh(group.column("events"), lengths, item, ~is_irrelevant)
        self._named.append(group.select(["search_query", "user_id"]))
        self._groups.append((lengths, item.to_numpy(), weight, is_irrelevant))

    def _weigh(
        self, events: pa.ChunkedArray, lengths: Ints, item: pa.Array, is_usable: NDArray[np.bool_]
    ) -> NDArray[np.float32]:
        """Return (n_results,) weights; count the events of usable sessions."""
        n_events, (object_id, event_type) = _flat(events)
        row = np.repeat(np.arange(len(n_events)), n_events)
        types, of_event = _distinct(event_type)
        for by_type, counted in (
            (self.event_types, of_event[is_usable[row]]),
            (self.posted_types, of_event),
        ):
            counts = np.bincount(counted, minlength=len(types)).tolist()
            by_type.update({one: count for one, count in zip(types, counts, strict=True) if count})
        of_type = [self._weights.get(event_kind(one), OTHER_WEIGHT) for one in types]
        weight = np.array(of_type, np.float32)[of_event]
        names, name = object_id.dictionary, object_id.indices.to_numpy()
        wanted = pc.index_in(names, self._objects).fill_null(-1).to_numpy()[name]
        # each event beside each result of its session
        beside = lengths[row]
        event = np.repeat(np.arange(len(row)), beside)
        first = (np.cumsum(lengths) - lengths)[row] - (np.cumsum(beside) - beside)
        place = np.arange(len(event)) + first[event]
        is_its = self._of_items[item.to_numpy()[place]] == wanted[event]
        result, event = place[is_its], event[is_its]
        strongest = np.zeros(len(item), np.float32)
        np.maximum.at(strongest, result, weight[event])
        is_stray = np.ones(len(row), np.bool_)
        is_stray[event] = False
        self.events_not_shown += int(is_stray.sum())
        is_stray &= (weight > 0) & is_usable[row]
        self.strays += len(np.unique(row[is_stray] * len(names) + name[is_stray]))
        return strongest

    def told(self) -> tuple[SessionColumns, NDArray[np.bool_]]:
        """Return the columns of all sessions, and (n_sessions,) which are marked irrelevant."""
        lengths, item, weight, is_irrelevant = (
            np.concatenate([group[n] for group in self._groups]) for n in range(4)
        )
        self._groups.clear()
        named = pa.concat_tables(self._named).unify_dictionaries()
        self._named.clear()
        (queries, query), (users, user) = map(_distinct, named.columns)
        columns = SessionColumns(
            queries=queries,
            query=query,
            users=users,
            user=user,
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            item=item,
            weight=weight,
            results=self._results,
        )
        return columns, is_irrelevant


def _flat(lists: pa.ChunkedArray) -> tuple[Ints, list[pa.Array]]:
    """Return how long lists are, and what is in them, end to end."""
    array = lists.combine_chunks()
    return np.diff(array.offsets.to_numpy()), array.flatten().flatten()


def _distinct(column: pa.ChunkedArray | pa.DictionaryArray) -> tuple[list[str], Ints]:
    """Return the distinct values of a column, and the place of each in them, -1 for None."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.dictionary.to_pylist(), array.indices.fill_null(-1).to_numpy()


def _object_of(text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text) if text else {}
    return found
