"""Documents in one SQLite file, shared by the threads and processes of one machine.

Each kind is a table. A field that documents are looked up by is a column; all others are one packed
text, see `pack`. A second table has the entries of their logs.
"""

import json
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
from pydantic_core import PydanticSerializationError, to_json

from embedding_studio.errors import InvalidInput
from embedding_studio.store.documents import (
    Changed,
    Document,
    Documents,
    Entry,
    Filter,
    Kind,
    Result,
    among,
    op_of,
)
from embedding_studio.store.sqlite_file import SqliteFile

MOST = 2**63 - 1
COLUMNS = "pragma_table_info(? || ' documents')"

CONDITIONS = {
    "equal": "{} = ?",
    "absent": "{} IS NULL",
    "among": "{} IN (SELECT value FROM json_each(?))",
    "above": "{} > ?",
    "up to": "{} <= ?",
}
# what many texts have in common, from the rarest on; part of the layout: it never changes
WORDS = (
    b'"transaction""conversion""add to cart""purchase""click""batch_id""labels""url":"image":"'
    b'"fields":{"title":{"description":"category":"price":"brand":"meta":{"text":"The and of for "'
    b'"event_type":"view"},"event_id":"0","object_id":"item-1","created_at":17958000000000}'
    b'{"search_query":"red shoes","search_meta":{"rank":0.5,"meta":{}},"search_results":['
    b'{"object_id":"1"},{"object_id":"'
)
# SQLite's JSON has no words for these, but numbers that are too large
NOT_FINITE = {b"NaN": b"9e999", b"Infinity": b"1e999", b"-Infinity": b"-1e999"}
NAN = {"9e999": "nan"}
TRUTHS = {True: b"\1", False: b"\0"}
_json = msgspec.json.Decoder()
STRING_OR_NOT_FINITE = re.compile(rb'"(?:[^"\\]|\\.)*"|-?Infinity|NaN')


class SqliteDocuments(Documents):
    """Documents in the file that a URL names, as `SqliteFile` takes it."""

    def __init__(self, url: str, *, is_migrating: bool = False) -> None:
        self.file = SqliteFile(url, is_migrating=is_migrating, functions={"unpacked": _unpacked})
        self._tables: dict[Kind, _Table] = {}

    def insert(self, kind: Kind, documents: Sequence[Document]) -> list[bool | InvalidInput]:
        table = self._table(kind)
        rows = [table.row_of(document) for document in documents]

        def work(connection: sqlite3.Connection) -> list[bool | InvalidInput]:
            return [
                row if isinstance(row, InvalidInput) else table.insert(connection, row)
                for row in rows
            ]

        return self.file.write(work)

    def find(
        self,
        kind: Kind,
        where: Filter,
        *,
        sort: Sequence[str] = (),
        descending: bool = False,
        skip: int = 0,
        limit: int | None = None,
        fields: Collection[str] | None = None,
    ) -> list[Document]:
        table = self._table(kind)
        wanted = None if fields is None else {*fields}
        columns = [name for name in table.columns if wanted is None or name in wanted]
        is_packed = wanted is None or not wanted <= set(columns)
        what = ", ".join([*map(_quoted, columns), *(["rest"] if is_packed else [])])
        condition, values = table.condition(where)
        query = f"SELECT {what} FROM {table.name} WHERE {condition}"
        if sort:
            direction = " DESC" if descending else ""
            query += " ORDER BY " + ", ".join(f"{table.field(name)}{direction}" for name in sort)
        query += " LIMIT ? OFFSET ?"
        rows = self.file.read(query, [*values, -1 if limit is None else limit, skip])
        found = [_document(columns, row) for row in rows]
        if fields is None or not is_packed:
            return found
        return [{name: one[name] for name in fields if name in one} for one in found]

    def change(
        self,
        kind: Kind,
        where: Filter,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002 - the word for it
        add: Mapping[str, int] | None = None,
        append: Sequence[Entry] = (),
    ) -> Changed | None:
        table = self._table(kind)
        condition, values = table.condition(where)
        changes = from_packed(pack(set or {}))  # a copy
        entries = [(entry.key, pack(entry.value)) for entry in append]

        def work(connection: sqlite3.Connection) -> Changed | None:
            found = f"{table.select} WHERE {condition} LIMIT 1"
            one = connection.execute(found, values).fetchone()
            if one is None:
                return None
            row, *fields = one
            document = _document(table.columns, fields)
            _apply(document, changes, add or {})
            try:
                table.replace(connection, row, document)
            except sqlite3.IntegrityError:  # another has these values of a unique group
                return None
            return Changed(document, table.append(connection, row, entries))

        return self.file.write(work)

    def change_all(self, kind: Kind, where: Filter, set: Mapping[str, Any]) -> int:  # noqa: A002
        table = self._table(kind)
        condition, values = table.condition(where)
        if set.keys() <= table.columns and all(map(_fits, set.values())):
            # a row that would break a unique group is left as it is
            new = ", ".join(f"{_quoted(name)} = ?" for name in set)
            change = f"UPDATE OR IGNORE {table.name} SET {new} WHERE {condition}"
            bound = [*map(_bound, set.values()), *values]
            return self.file.write(lambda connection: connection.execute(change, bound).rowcount)

        def work(connection: sqlite3.Connection) -> int:
            changed = 0
            for row, *fields in connection.execute(f"{table.select} WHERE {condition}", values):
                document = _document(table.columns, fields)
                _apply(document, set, {})
                with suppress(sqlite3.IntegrityError):
                    table.replace(connection, row, document)
                    changed += 1
            return changed

        return self.file.write(work)

    def logs(
        self, kind: Kind, ids: Collection[str], *, after: int = 0, limit: int | None = None
    ) -> dict[str, list[Any]]:
        table = self._table(kind)
        condition, values = table.condition({"id": among(ids)})
        query = (
            f"SELECT id, value FROM {table.name} AS one LEFT JOIN {table.log} AS entry "
            "ON entry.row = one.row AND entry.number > ? AND entry.number <= ? "
            f"WHERE {condition} ORDER BY one.row, entry.number"
        )
        last = MOST if limit is None else after + limit
        found: dict[str, list[Any]] = {}
        for one, value in self.file.read(query, [after, last, *values]):
            log = found.setdefault(one, [])
            if value is not None:
                log.append(from_packed(value))
        return found

    def count(self, kind: Kind, where: Filter) -> int:
        table = self._table(kind)
        condition, values = table.condition(where)
        query = f"SELECT count(*) FROM {table.name} WHERE {condition}"
        ((count,),) = self.file.read(query, values)
        return int(count)

    def delete(self, kind: Kind, where: Filter) -> int:
        table = self._table(kind)
        condition, values = table.condition(where)

        def work(connection: sqlite3.Connection) -> int:
            leaving = f"SELECT row FROM {table.name} WHERE {condition}"
            connection.execute(f"DELETE FROM {table.log} WHERE row IN ({leaving})", values)
            return connection.execute(
                f"DELETE FROM {table.name} WHERE {condition}", values
            ).rowcount

        return self.file.write(work)

    def together(self, work: Callable[[], Result]) -> Result:
        return self.file.together(work)

    def ping(self) -> int:
        self.file.ping()
        return time.time_ns() // 1_000_000  # all who share the file share this machine

    def close(self) -> None:
        self.file.close()

    def _table(self, kind: Kind) -> "_Table":
        """Return the tables of a kind, which are there with all their columns and indexes."""
        table = self._tables.get(kind)
        if table is None:
            there = {name for (name,) in self.file.read(f"SELECT name FROM {COLUMNS}", [kind.name])}
            table = _Table(kind, there)
            present = {name for (name,) in self.file.read("SELECT name FROM sqlite_master", [])}
            missing = [text for name, text in table.definitions() if name not in present]
            if there:
                missing = [*table.additions(there), *missing]
            if missing:
                self.file.write(lambda connection: [connection.execute(text) for text in missing])
            if not self.file.is_joined:  # else they may be undone
                self._tables[kind] = table
        return table


class _Row(NamedTuple):
    """A document as its table has it."""

    #: one for each column, and what is packed
    values: list[Any]
    #: of its log: keys and packed values
    entries: list[tuple[str | None, bytes]]


class _Table:
    """The table of a kind and the one of its logs; a log's entries are numbered from 1.

    columns: the fields that have one, `id` first. there: those of a table that is there, which may
    be an older version's."""

    def __init__(self, kind: Kind, there: Collection[str]) -> None:
        self._kind = kind
        self.name = f'"{kind.name} documents"'
        self.log = f'"{kind.name} log"'
        fields = kind.looked_up.union(there).difference(["id", "row", "rest"])
        self.columns = dict.fromkeys(["id", *sorted(fields)]).keys()
        self._all = ", ".join([*map(_quoted, self.columns), "rest"])
        self.select = f"SELECT row, {self._all} FROM {self.name}"

    def definitions(self) -> Iterator[tuple[str, str]]:
        """Give what makes these tables and their indexes, by their names."""
        name = self._kind.name
        fields = ", ".join(_quoted(field) for field in self.columns if field != "id")
        yield (
            f"{name} documents",
            f"CREATE TABLE IF NOT EXISTS {self.name} (row INTEGER PRIMARY KEY, "
            f"id TEXT NOT NULL UNIQUE, {fields}{', ' if fields else ''}rest BLOB NOT NULL)",
        )
        yield (
            f"{name} log",
            f"CREATE TABLE IF NOT EXISTS {self.log} (row INTEGER NOT NULL, number INTEGER NOT NULL,"
            " key TEXT, value BLOB NOT NULL, PRIMARY KEY (row, number)) WITHOUT ROWID",
        )
        for word, groups, is_sparse in (
            ("UNIQUE INDEX", self._kind.unique, False),
            ("INDEX", self._kind.indexes, False),
            ("INDEX", self._kind.sparse, True),
        ):
            for group in groups:
                index = f"{name} {word.lower()}: {', '.join(group)}"
                which = " AND ".join(f"{_quoted(field)} IS NOT NULL" for field in group)
                yield (
                    index,
                    f'CREATE {word} IF NOT EXISTS "{index}" ON {self.name} '
                    f"({', '.join(map(_quoted, group))}){f' WHERE {which}' if is_sparse else ''}",
                )

    def additions(self, there: Collection[str]) -> Iterator[str]:
        """Give what adds the columns that a table does not have yet."""
        for name in self.columns:
            if name not in there:
                yield f"ALTER TABLE {self.name} ADD COLUMN {_quoted(name)}"
                yield f"UPDATE {self.name} SET {_quoted(name)} = unpacked(rest, '{name}')"

    def field(self, name: str) -> str:
        """Return what a field is in an SQL expression; what has no column is unpacked for it."""
        return _quoted(name) if name in self.columns else f"unpacked(rest, '{name}')"

    def condition(self, where: Filter) -> tuple[str, list[Any]]:
        """Return a filter as an SQL condition, and its values."""
        conditions, values = ["true"], []
        for name, condition in where.items():
            word, value = op_of(condition)
            conditions.append(CONDITIONS[word].format(self.field(name)))
            if word == "among":  # what has a NUL is nobody's, but json_each would cut it off there
                some = [one for one in value if not (isinstance(one, str) and "\0" in one)]
                values.append(_dump(some).decode())
            elif word != "absent":
                values.append(_bound(value))
        return " AND ".join(conditions), values

    def row_of(self, document: Document) -> _Row | InvalidInput:
        fields = dict(document)
        log = fields.pop("log", [])
        try:
            entries = [(entry.key, pack(entry.value)) for entry in log]
            for key, _ in entries:
                (key or "").encode()
            return _Row(self._values(fields), entries)
        except InvalidInput as refusal:
            return refusal
        except UnicodeEncodeError as error:
            return _refusal(error)

    def _values(self, document: Document) -> list[Any]:
        """Return what a row has of a document. Raises InvalidInput if it cannot be stored, or not
        be found."""
        rest = {name: value for name, value in document.items() if value is not None}
        columns = [
            rest.pop(name, None) if _fits(rest.get(name), name) else None for name in self.columns
        ]
        return [*map(_bound, columns), pack(rest)]

    def insert(self, connection: sqlite3.Connection, row: _Row) -> bool:
        marks = ", ".join("?" for _ in row.values)
        inserted = connection.execute(
            f"INSERT INTO {self.name} ({self._all}) VALUES ({marks}) ON CONFLICT DO NOTHING",
            row.values,
        )
        if inserted.rowcount == 0:
            return False
        assert inserted.lastrowid is not None
        self._append(connection, inserted.lastrowid, 0, row.entries)
        return True

    def replace(self, connection: sqlite3.Connection, row: int, document: Document) -> None:
        new = ", ".join(f"{name} = ?" for name in self._all.split(", "))
        change = f"UPDATE {self.name} SET {new} WHERE row = ?"
        connection.execute(change, (*self._values(document), row))

    def append(
        self, connection: sqlite3.Connection, row: int, entries: Sequence[tuple[str | None, bytes]]
    ) -> int:
        """Append those entries whose key the log does not have; return how many."""
        if not entries:
            return 0
        query = f"SELECT number, key FROM {self.log} WHERE row = ?"
        there = connection.execute(query, (row,)).fetchall()
        known = {key for _, key in there}
        new = [entry for entry in entries if entry[0] is None or entry[0] not in known]
        return self._append(connection, row, max((n for n, _ in there), default=0), new)

    def _append(
        self,
        connection: sqlite3.Connection,
        row: int,
        last: int,
        entries: Sequence[tuple[str | None, bytes]],
    ) -> int:
        """Append entries; of those of one key the first."""
        first: dict[Any, bytes] = {}
        for number, (key, value) in enumerate(entries):
            first.setdefault(number if key is None else key, value)
        connection.executemany(
            f"INSERT INTO {self.log} VALUES (?, ?, ?, ?)",
            [
                (row, last + place, key if isinstance(key, str) else None, value)
                for place, (key, value) in enumerate(first.items(), start=1)
            ],
        )
        return len(first)


def _document(columns: Collection[str], row: Sequence[Any]) -> Document:
    """Return the document of a row: a value for each column and, maybe, what is packed."""
    packed = row[len(columns) :]
    document: Document = from_packed(packed[0]) if packed else {}
    for name, value in zip(columns, row, strict=False):
        if value is not None:
            document[name] = value == b"\1" if isinstance(value, bytes) else value
    return document


def _fits(value: Any, name: str = "it") -> bool:
    """Tell whether a column can have a value and give it back. Raises InvalidInput for one that
    would not be found."""
    if isinstance(value, str):
        value.encode()  # half a surrogate pair is no UTF-8
        if "\0" in value:
            raise InvalidInput(f"SQLite cannot look up a NUL, as in {name} {value!r}")
        return True
    if isinstance(value, int) and not -MOST <= value <= MOST:
        raise InvalidInput(f"SQLite cannot look up a number of over 64 bits, as {name} is")
    return value is None or isinstance(value, int) or (isinstance(value, float) and value == value)


def _bound(value: Any) -> Any:
    return TRUTHS[value] if isinstance(value, bool) else value


def _quoted(name: str) -> str:
    return f'"{name}"'


def _refusal(error: Exception) -> InvalidInput:
    return InvalidInput(f"SQLite cannot store this: {error}")


def pack(value: Any) -> bytes:
    """Return JSON, compressed. Raises InvalidInput for what is none."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=WORDS)
    return packer.compress(_dump(value)) + packer.flush()


def from_packed(packed: bytes) -> Any:
    """Return what was packed."""
    return _load(zlib.decompressobj(-zlib.MAX_WBITS, zdict=WORDS).decompress(packed))


def _unpacked(packed: bytes, name: str) -> Any:
    """Return a field of what was packed, as a column has it; None for what none can have."""
    value = from_packed(packed).get(name)
    with suppress(InvalidInput, UnicodeEncodeError):
        return _bound(value) if _fits(value) else None
    return None


def _dump(value: Any) -> bytes:
    try:
        text = to_json(value)
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise _refusal(error) from error
    if b"NaN" in text or b"Infinity" in text:
        return STRING_OR_NOT_FINITE.sub(lambda found: NOT_FINITE.get(found[0], found[0]), text)
    return text


def _load(text: bytes) -> Any:
    if b"9e999" not in text:
        try:
            return _json.decode(text)
        except (msgspec.DecodeError, RecursionError):  # it takes less than JSON may be
            pass
    return json.loads(text, parse_float=lambda digits: float(NAN.get(digits, digits)))


def _apply(document: Document, changes: Mapping[str, Any], add: Mapping[str, int]) -> None:
    """Set fields of a document, and add to its numbers."""
    for name, value in changes.items():
        if value is None:
            document.pop(name, None)
        else:
            document[name] = value
    for name, number in add.items():
        *path, last = name.split(".")
        parent = document
        for part in path:
            parent = parent.setdefault(part, {})
        parent[last] = parent.get(last, 0) + number
