"""What documents in MongoDB cost, and what is refused in MongoDB's own words."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from threading import Barrier
from typing import Any

import mongomock
import pymongo
import pytest

from embedding_studio.errors import ConfigurationError, InvalidInput
from embedding_studio.store.documents import Document, Documents, Entry, Kind, among
from embedding_studio.store.mongo import MongoDocuments
from tests.contracts.document_backends import mongo_place
from tests.contracts.store_backends import QueryListener

pytestmark = pytest.mark.slow

KIND = Kind("things", unique=(("project", "key"),), indexes=(("project", "number"),))
IDS = [f"{number:04}" for number in range(1_000)]
MANY: list[Document] = [
    {"id": its_id, "project": "p", "number": number, "log": [Entry("a", 1)]}
    for number, its_id in enumerate(IDS)
]
CALLS: dict[str, tuple[Callable[[Documents], Any], list[str]]] = {
    "insert": (lambda d: d.insert(KIND, [{"id": "a"}, {"id": "0001"}, {"id": "b"}]), ["insert"]),
    "find": (lambda d: d.find(KIND, {"project": "p"}, sort=["number"], limit=1_000), ["find"]),
    "change": (lambda d: d.change(KIND, {"id": "0001"}, set={"number": 2}), ["findAndModify"]),
    "append": (
        lambda d: d.change(KIND, {"id": "0001"}, append=[Entry("b", 2), Entry(None, 3)]),
        ["findAndModify"],
    ),
    "append what is there": (
        lambda d: d.change(KIND, {"id": "0001"}, append=[Entry("a", 2), Entry("b", 2)]),
        ["findAndModify", "find", "findAndModify"],
    ),
    "change_all": (lambda d: d.change_all(KIND, {"project": "p"}, {"key": None}), ["update"]),
    "logs": (lambda d: d.logs(KIND, IDS, limit=5), ["aggregate"]),
    "delete": (lambda d: d.delete(KIND, {"id": among(["0001", "0002"])}), ["delete"]),
    "ping": (lambda d: d.ping(), ["findAndModify"]),
}


@pytest.fixture
def counted(secantus_url: str) -> Iterator[tuple[Documents, list[str]]]:
    """A database with a thousand documents, and the names of the commands sent to it from now."""
    url = mongo_place(secantus_url).url or ""
    listener = QueryListener()
    client = pymongo.MongoClient[dict[str, Any]](url, event_listeners=[listener])
    with closing(MongoDocuments(url, client)) as documents:
        documents.insert(KIND, MANY)
        listener.queries.clear()
        yield documents, listener.queries


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_one_command(counted: tuple[Documents, list[str]], call: str) -> None:
    """However many documents it is about; but for entries of a log that are there already."""
    documents, commands = counted
    ask, expected = CALLS[call]
    ask(documents)
    assert commands == expected


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (2**64, "8-byte ints"),
        ("\ud800", "surrogates not allowed"),
        ({"a\0b": 1}, "NULL"),
        ("x" * 2**24, "it has 16777[0-9]* bytes as BSON, and a document has 16777216 at most"),
    ],
)
def test_what_mongodb_cannot_hold_is_refused(value: Any, why: str) -> None:
    """The others that are inserted with it are kept."""
    with closing(MongoDocuments("mongodb://nowhere", mongomock.MongoClient())) as documents:
        answers = documents.insert(KIND, [{"id": "a"}, {"id": "b", "value": value}, {"id": "c"}])
        assert (answers[0], answers[2]) == (True, True)
        assert isinstance(answers[1], InvalidInput)
        with pytest.raises(InvalidInput, match=f"MongoDB cannot store this: .*{why}"):
            raise answers[1]
        assert documents.count(KIND, {}) == 2


def test_a_database_of_0_1_is_not_opened() -> None:
    """It would look as if it were empty."""
    client: Any = mongomock.MongoClient()
    client["embedding_studio"]["batches"].insert_one({"status": "collecting"})
    with pytest.raises(ConfigurationError, match="embedding-studio migrate"):
        MongoDocuments("mongodb://nowhere", client)


def test_those_that_ping_first_at_once_are_all_told_the_time(secantus_url: str) -> None:
    """Whoever of them makes the document that a ping writes."""
    url = mongo_place(secantus_url).url
    assert url is not None
    together = Barrier(6)

    def ping(documents: MongoDocuments) -> int:
        together.wait(30)
        return documents.ping()

    with ExitStack() as stack, ThreadPoolExecutor(6) as pool:
        opened = [stack.enter_context(closing(MongoDocuments(url))) for _ in range(6)]
        assert min(pool.map(ping, opened)) > 0
