"""Documents in MongoDB, a standalone server or a replica set, without transactions.

Each kind is a collection; a document's log is an array in it, which no call but `logs` reads."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from bson import CodecOptions, encode
from bson.errors import BSONError
from pymongo import ASCENDING, DESCENDING, MongoClient, ReadPreference, ReturnDocument, WriteConcern
from pymongo import errors as mongo_errors
from pymongo.collection import Collection as MongoCollection
from pymongo.read_concern import ReadConcern

from embedding_studio.errors import ConfigurationError, InvalidInput, StoreUnavailable
from embedding_studio.store.codec import milliseconds
from embedding_studio.store.documents import (
    Changed,
    Document,
    Documents,
    Entry,
    Filter,
    Kind,
    Op,
    among,
)

DEFAULT_DATABASE = "embedding_studio"
COLLECTION = "documents"
"""The names of our collections begin with it."""
FORMER_COLLECTION = "batches"
"""What a database in the layout of 0.1 has."""
ANSWER_MS = 20_000
CLIENT_DEFAULTS: dict[str, Any] = {
    "serverSelectionTimeoutMS": 5_000,
    "connectTimeoutMS": 5_000,
    "socketTimeoutMS": ANSWER_MS,
}
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024
ONE_ANSWER = 10_000
"""Up to so many documents come in one answer, if they are not too large for it."""
WITHOUT_LOG = {"log": 0}

NO_CODE = 0
DUPLICATE_KEY = 11000
# BSONObjectTooLarge, two codes of growing one by an update, DollarPrefixedFieldName, too deep
UNSTORABLE = {10334, 17419, 17420, 52, 15}
# OutOfDiskSpace, over Atlas's quota, UserWritesBlocked, Unauthorized: it may write again later
TAKES_NO_WRITES = {14031, 8000, 371, 13}


class MongoDocuments(Documents):
    """A database of a MongoDB server.

    url: mongodb://host/database; a timeout in it wins over CLIENT_DEFAULTS.
    client: an open client to use instead of one made from the url; closed with this.
    is_migrating: what it has in the layout of 0.1 is just being brought along."""

    def __init__(
        self, url: str, client: MongoClient[Document] | None = None, *, is_migrating: bool = False
    ) -> None:
        self._client = client or _connect(url)
        self._indexed: set[str] = set()
        name = unquote(urlsplit(url).path.lstrip("/")) or DEFAULT_DATABASE
        try:
            with answering():
                level = "local" if client else _durable_level(self._client)
                self.database = self._client.get_database(
                    name,
                    codec_options=CodecOptions(tz_aware=True),
                    read_preference=ReadPreference.PRIMARY,
                    write_concern=WriteConcern(w="majority", j=True, wtimeout=ANSWER_MS),
                    read_concern=ReadConcern(level),
                )
                if self.is_former and not is_migrating:
                    raise ConfigurationError(
                        f"the database {name!r} is one of Embedding Studio 0.1: stop the API and "
                        "all workers, make a backup, and run `embedding-studio migrate` once"
                    )
        except Exception:
            self.close()
            raise

    @property
    def is_former(self) -> bool:
        """Whether it has what 0.1 kept, which was not brought along."""
        return FORMER_COLLECTION in self.database.list_collection_names()

    def _collection(self, kind: Kind) -> MongoCollection[Document]:
        """Return where a kind lies, with its indexes."""
        collection = self.database[f"{COLLECTION}.{kind.name}"]
        if kind.name not in self._indexed:
            for group in kind.unique:
                collection.create_index(
                    [(_field(name), ASCENDING) for name in group],
                    name=f"unique {' '.join(group)}",
                    unique=True,
                    partialFilterExpression={_field(name): {"$exists": True} for name in group},
                )
            for names in kind.indexes:
                collection.create_index(
                    [(_field(name), ASCENDING) for name in names], name=f"by {' '.join(names)}"
                )
            for names in kind.sparse:
                present = {name: {"$exists": True} for name in names if name != "id"}
                collection.create_index(
                    [(_field(name), ASCENDING) for name in names],
                    name=f"by {' '.join(names)}",
                    partialFilterExpression=present,
                )
            self._indexed.add(kind.name)
        return collection

    def insert(self, kind: Kind, documents: Sequence[Document]) -> list[bool | InvalidInput]:
        answers: list[bool | InvalidInput] = [True] * len(documents)
        kept: list[tuple[int, Document]] = []
        for place, document in enumerate(documents):
            stored = _stored(document)
            if (refusal := _refusal(stored)) is not None:
                answers[place] = refusal
            else:
                kept.append((place, stored))
        if not kept:
            return answers
        with answering():
            try:
                self._collection(kind).insert_many([stored for _, stored in kept], ordered=False)
            except mongo_errors.BulkWriteError as error:
                for one in error.details["writeErrors"]:
                    place, _ = kept[one["index"]]
                    if one["code"] == DUPLICATE_KEY:
                        answers[place] = False
                    elif one["code"] in UNSTORABLE:
                        answers[place] = _cannot_store(one["errmsg"])
                    else:
                        raise
                if error.details.get("writeConcernErrors"):
                    raise
        return answers

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
        if limit is not None and limit < 1:
            return []  # to MongoDB a limit of 0 means none
        direction = DESCENDING if descending else ASCENDING
        wanted = WITHOUT_LOG if fields is None else {_field(name): 1 for name in ("id", *fields)}
        with answering():
            found = self._collection(kind).find(
                _conditions(where),
                wanted,
                sort=[(_field(name), direction) for name in sort] or None,
                skip=skip,
                limit=limit or 0,
                batch_size=min(limit or ONE_ANSWER, ONE_ANSWER),
            )
            documents = [_given(stored) for stored in found]
        if fields is not None and "id" not in fields:
            for document in documents:
                del document["id"]
        return documents

    def change(
        self,
        kind: Kind,
        where: Filter,
        *,
        set: Mapping[str, Any] | None = None,  # noqa: A002 - the word for it
        add: Mapping[str, int] | None = None,
        append: Sequence[Entry] = (),
    ) -> Changed | None:
        update = _setting(set or {})
        if add:
            update["$inc"] = dict(add)
        entries = _first_of_each_key(append)
        with answering():
            collection = self._collection(kind)
            while True:
                changed = self._change(collection, _conditions(where), update, entries)
                keys = [entry.key for entry in entries if entry.key is not None]
                if changed is not None or not keys:
                    break
                # compared to what the document is now: some of the keys may be there
                seen = collection.find_one(_conditions(where), {"log.key": 1})
                if seen is None:
                    return None
                there = {entry["key"] for entry in seen.get("log", ()) if "key" in entry}
                if not there.intersection(keys):
                    return None
                entries = [entry for entry in entries if entry.key not in there]
        return None if changed is None else Changed(_given(changed), len(entries))

    def _change(
        self,
        collection: MongoCollection[Document],
        which: Document,
        update: Document,
        entries: Sequence[Entry],
    ) -> Document | None:
        if entries:
            update = {**update, "$push": {"log": {"$each": _log(entries)}}}
            keys = [entry.key for entry in entries if entry.key is not None]
            which = {**which, "log.key": {"$nin": keys}} if keys else which
        if not update:
            return collection.find_one(which, WITHOUT_LOG)
        try:
            return collection.find_one_and_update(
                which, update, WITHOUT_LOG, return_document=ReturnDocument.AFTER
            )
        except mongo_errors.DuplicateKeyError:
            return None

    def change_all(self, kind: Kind, where: Filter, set: Mapping[str, Any]) -> int:  # noqa: A002
        with answering():
            changed = self._collection(kind).update_many(_conditions(where), _setting(set))
        return changed.matched_count

    def logs(
        self, kind: Kind, ids: Collection[str], *, after: int = 0, limit: int | None = None
    ) -> dict[str, list[Any]]:
        if limit is not None and limit < 1:
            known = self.find(kind, {"id": among(ids)}, fields=["id"])
            return {document["id"]: [] for document in known}
        # a slice of as many as there can be at most: an entry takes more than a byte
        part = {"$slice": ["$log", after, limit or MAX_DOCUMENT_BYTES]}
        with answering():
            found = self._collection(kind).aggregate(
                [{"$match": {"_id": {"$in": list(ids)}}}, {"$project": {"log": part}}],
                batchSize=ONE_ANSWER,
            )
            return {one["_id"]: [entry["value"] for entry in one.get("log") or ()] for one in found}

    def count(self, kind: Kind, where: Filter) -> int:
        with answering():
            return self._collection(kind).count_documents(_conditions(where))

    def delete(self, kind: Kind, where: Filter) -> int:
        with answering():
            return self._collection(kind).delete_many(_conditions(where)).deleted_count

    def ping(self) -> int:
        pinged = None
        while pinged is None:  # where another one makes the document meanwhile
            with answering():
                pinged = self.database[COLLECTION].find_one_and_update(
                    {"_id": "ping"},
                    {"$currentDate": {"at": True}},
                    upsert=True,
                    return_document=ReturnDocument.AFTER,
                )
        at: datetime = pinged["at"]
        return milliseconds(at)

    def close(self) -> None:
        self._client.close()


def _connect(url: str) -> MongoClient[Document]:
    try:
        chosen = {name.lower() for name in parse_qs(urlsplit(url).query)}
        defaults = {
            name: value for name, value in CLIENT_DEFAULTS.items() if name.lower() not in chosen
        }
        return MongoClient(url, **defaults)
    except (mongo_errors.ConfigurationError, mongo_errors.InvalidURI, ValueError) as error:
        raise ConfigurationError(f"ES_STORE_URL is no usable MongoDB URL: {error}") from error


def _durable_level(client: MongoClient[Document]) -> str:
    """Return the read concern under which nothing read is rolled back: gaps would come of it."""
    hello = client.admin.command("hello")
    return "majority" if "setName" in hello else "local"


# -- our words in MongoDB's ----------------------------------------------------------------------


def _field(name: str) -> str:
    return "_id" if name == "id" else name


def _conditions(where: Filter) -> Document:
    return {_field(name): _condition(condition) for name, condition in where.items()}


def _condition(condition: Any) -> Any:
    match condition:
        case None | Op("absent"):
            return None
        case Op("among", values):
            return {"$in": list(values)}
        case Op("above", value):
            return {"$gt": value}
        case Op("up to", value):
            return {"$lte": value}
        case Op("equal", value):
            return {"$eq": value}
    return {"$eq": condition}


def _setting(changes: Mapping[str, Any]) -> Document:
    """Return the update that sets fields, and removes those that are None."""
    present = {name: value for name, value in changes.items() if value is not None}
    removed = dict.fromkeys(changes.keys() - present.keys(), "")
    return {**({"$set": present} if present else {}), **({"$unset": removed} if removed else {})}


def _stored(document: Mapping[str, Any]) -> Document:
    stored = {_field(name): value for name, value in document.items() if value is not None}
    if "log" in stored:
        stored["log"] = _log(_first_of_each_key(stored["log"]))
    return stored


def _given(stored: Document) -> Document:
    return {"id": stored.pop("_id"), **stored}


def _log(entries: Sequence[Entry]) -> list[Document]:
    return [
        {"value": entry.value} if entry.key is None else {"key": entry.key, "value": entry.value}
        for entry in entries
    ]


def _first_of_each_key(entries: Sequence[Entry]) -> list[Entry]:
    keys: set[str] = set()
    first = []
    for entry in entries:
        if entry.key not in keys:
            first.append(entry)
        if entry.key is not None:
            keys.add(entry.key)
    return first


# -- what MongoDB refuses, in our errors ---------------------------------------------------------


@contextmanager
def answering() -> Iterator[None]:
    """Say in our own errors that the database does not answer or cannot hold a document."""
    try:
        yield
    except mongo_errors.PyMongoError as error:
        code, reason = _code_and_reason(error)
        if code in UNSTORABLE:
            raise _cannot_store(reason) from None
        if code is None or error.timeout:
            raise StoreUnavailable(f"MongoDB does not answer: {reason}") from error
        if code in TAKES_NO_WRITES:
            raise StoreUnavailable(f"MongoDB takes no writes: {reason}") from error
        raise
    except (BSONError, OverflowError, UnicodeEncodeError) as error:
        raise _cannot_store(error) from error


def _code_and_reason(error: mongo_errors.PyMongoError) -> tuple[int | None, str]:
    """Return the server's code for refusing, None where it gave no answer, and the reason."""
    if isinstance(error, mongo_errors.BulkWriteError):
        refused = [one for one in error.details["writeErrors"] if one["code"] != DUPLICATE_KEY]
        if not refused:
            return None, str(error.details["writeConcernErrors"])
        return refused[0]["code"], refused[0]["errmsg"]  # its own text repeats the documents
    if isinstance(error, mongo_errors.ConnectionFailure | mongo_errors.WriteConcernError):
        return None, str(error)
    details = getattr(error, "details", None) or {}
    return getattr(error, "code", NO_CODE) or NO_CODE, details.get("errmsg") or str(error)


def _refusal(stored: Document) -> InvalidInput | None:
    """Return why no document can be as this one is, if none can."""
    try:
        size_bytes = len(encode(stored))
    except (BSONError, OverflowError, UnicodeEncodeError) as error:
        return _cannot_store(error)
    if size_bytes > MAX_DOCUMENT_BYTES:
        return _cannot_store(
            f"it has {size_bytes} bytes as BSON, and a document has {MAX_DOCUMENT_BYTES} at most; "
            "post fewer results or less meta"
        )
    return None


def _cannot_store(reason: object) -> InvalidInput:
    return InvalidInput(f"MongoDB cannot store this: {reason}")
