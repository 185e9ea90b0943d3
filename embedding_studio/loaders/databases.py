"""Loaders of databases: a row, or a document, for each item."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy
import stamina
from sqlalchemy.exc import InterfaceError, OperationalError

from embedding_studio.errors import InvalidInput, Unreadable
from embedding_studio.items import Item
from embedding_studio.loaders.columns import Columns
from embedding_studio.loaders.sources import Source

if TYPE_CHECKING:
    from pymongo.collection import Collection as MongoCollection

_ATTEMPTS = 3


class SqlTable:
    """A table, or a view, of a database that SQLAlchemy opens: url#table."""

    def __init__(self, source: Source) -> None:
        url, _, name = source.at.rpartition("#")
        self._source = source
        self._engine = sqlalchemy.create_engine(url, pool_pre_ping=True)
        schema, _, self._name = name.rpartition(".")
        self._schema = schema or None
        self._table: sqlalchemy.Table | None = None

    def load(self, object_ids: Collection[str]) -> Mapping[str, Item | Unreadable]:
        caller = stamina.RetryingCaller(attempts=_ATTEMPTS)
        return caller((OperationalError, InterfaceError), self._load, [*object_ids])

    def _load(self, object_ids: list[str]) -> dict[str, Item | Unreadable]:
        with self._engine.connect() as database:
            if self._table is None:
                self._table = sqlalchemy.Table(
                    self._name, sqlalchemy.MetaData(), schema=self._schema, autoload_with=database
                )
            columns = Columns(self._source, self._table.columns.keys())
            named = (*self._source.columns.values(), *columns.names)
            if missing := [name for name in named if name not in self._table.columns]:
                raise InvalidInput(f"the table {self._name!r} has no column {missing[0]!r}")
            its_id = self._table.columns[columns.id]
            sought: list[Any] = [*object_ids]
            if issubclass(its_id.type.python_type, int):
                sought = _numbers(object_ids)
            chosen = [self._table.columns[name] for name in columns.names]
            rows = database.execute(sqlalchemy.select(*chosen).where(its_id.in_(sought)))
            return _items(columns, [dict(row) for row in rows.mappings()])

    def close(self) -> None:
        self._engine.dispose()


class MongoDocuments:
    """A collection of MongoDB: url#collection. Without a column for the ids, these are `_id`."""

    def __init__(self, source: Source) -> None:
        from pymongo import MongoClient

        url, _, name = source.at.rpartition("#")
        self._source = source.model_copy(update={"columns": {"item": "_id", **source.columns}})
        self._client: MongoClient[dict[str, Any]] = MongoClient(url, tz_aware=True)
        self._documents: MongoCollection[dict[str, Any]] = self._client.get_default_database()[name]

    def load(self, object_ids: Collection[str]) -> Mapping[str, Item | Unreadable]:
        from pymongo.errors import ConnectionFailure

        caller = stamina.RetryingCaller(attempts=_ATTEMPTS)
        return caller(ConnectionFailure, self._load, [*object_ids])

    def _load(self, object_ids: list[str]) -> dict[str, Item | Unreadable]:
        from bson import ObjectId

        sought: list[Any] = [*object_ids, *_numbers(object_ids)]
        sought += [ObjectId(one) for one in object_ids if ObjectId.is_valid(one)]
        found = self._documents.find({self._source.columns["item"]: {"$in": sought}})
        return {
            its_id: item
            for document in found
            for its_id, item in _items(Columns(self._source, document), [document]).items()
        }

    def close(self) -> None:
        self._client.close()


def _numbers(object_ids: list[str]) -> list[int]:
    """Return those that are numbers of 64 bits."""
    return [int(one) for one in object_ids if one.isascii() and one.isdigit() and len(one) < 19]


def _items(columns: Columns, rows: list[dict[str, Any]]) -> dict[str, Item | Unreadable]:
    found: dict[str, Item | Unreadable] = {}
    for row in rows:
        its_id = columns.id_in(row)
        try:
            found[its_id] = columns.item(its_id, row)
        except Unreadable as error:
            found[its_id] = error
    return found
