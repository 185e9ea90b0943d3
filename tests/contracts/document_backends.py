"""The databases that the narrow waist's contract is held against, and what other processes do with
them; kept light, for each of them imports it."""

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from embedding_studio.store.documents import Documents, Entry, Kind
from embedding_studio.store.sqlite import SqliteDocuments
from tests.contracts.store_processes import START_SECONDS

THINGS = Kind(
    "things",
    unique=(("group", "number"), ("key",)),
    indexes=(("group", "at", "id"), ("state", "at")),
)


@dataclass(frozen=True)
class Place:
    """Where documents lie: empty at first."""

    #: opens what is there, each time on its own; in memory there is one alone
    open: Callable[[], Documents]
    #: None: no other process can open it
    url: str | None = None


def open_documents(url: str) -> Documents:
    if url.startswith("sqlite"):
        return SqliteDocuments(url)
    from embedding_studio.store.mongo import MongoDocuments

    return MongoDocuments(url)


def place_at(url: str) -> Place:
    return Place(lambda: open_documents(url), url)


def mongo_place(server_url: str) -> Place:
    return place_at(urlsplit(server_url)._replace(path=f"/test_{secrets.token_hex(6)}").geturl())


def sqlite_place(folder: Path) -> Place:
    return place_at(f"sqlite:///{folder / 'new' / 'documents.db'}")


def meet() -> None:
    from tests.contracts import store_processes

    store_processes.start_line.wait(START_SECONDS)


def open_and_ping(url: str) -> bool:
    """Open a database that is not there yet, when all others do."""
    meet()
    documents = open_documents(url)
    documents.insert_one(THINGS, {"id": secrets.token_hex(4)})
    documents.ping()
    documents.close()
    return True


def take_numbers(url: str, name: str, how_many: int) -> list[int]:
    """Insert at the next free number of a group, again and again; return the numbers taken."""
    documents = open_documents(url)
    meet()
    taken: list[int] = []
    while len(taken) < how_many:
        last = documents.find(THINGS, {"group": "g"}, sort=["number"], descending=True, limit=1)
        number = last[0]["number"] + 1 if last else 1
        one = {"id": f"{name}-{number}", "group": "g", "number": number}
        if documents.insert_one(THINGS, one):
            taken.append(number)
    documents.close()
    return taken


def add_and_append(url: str, name: str, times: int) -> int:
    """Count to one document, with an entry of its own and one that is everybody's each time."""
    documents = open_documents(url)
    meet()
    appended = 0
    for number in range(times):
        entries = [Entry(f"{name}-{number}", name), Entry(f"all-{number}", "all")]
        changed = documents.change(THINGS, {"id": "one"}, add={"n": 1}, append=entries)
        assert changed is not None
        appended += changed.appended
    documents.close()
    return appended


def take_states(url: str, name: str) -> list[str]:
    """Take what is free, one after the other, until nothing is; return the ids."""
    documents = open_documents(url)
    meet()
    taken: list[str] = []
    while free := documents.find(THINGS, {"state": "free"}, sort=["at"], limit=1):
        where = {"id": free[0]["id"], "state": "free"}
        if documents.change(THINGS, where, set={"state": "taken", "by": name}):
            taken.append(free[0]["id"])
    documents.close()
    return taken


def write_until_killed(url: str) -> None:
    """Insert and change for ever, writing each number in a line once both are answered."""
    documents = open_documents(url)
    for number in count():
        documents.insert(
            THINGS, [{"id": f"{number}-{place}", "log": [Entry("k", number)]} for place in "ab"]
        )
        documents.change(THINGS, {"id": f"{number}-a"}, set={"n": 1}, append=[Entry("l", number)])
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
