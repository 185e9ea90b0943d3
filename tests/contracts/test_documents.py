"""The contract of the narrow waist: each sentence of `embedding_studio/store/documents.py`."""

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import mongomock
import pytest

from embedding_studio.errors import InvalidInput
from embedding_studio.store.documents import (
    Documents,
    Entry,
    Filter,
    Kind,
    above,
    absent,
    among,
    equal,
    new_id,
    up_to,
)
from embedding_studio.store.memory import MemoryDocuments
from embedding_studio.store.mongo import MongoDocuments
from tests.contracts import document_backends
from tests.contracts.conftest import PROCESSES
from tests.contracts.document_backends import THINGS, Place, mongo_place, sqlite_place
from tests.contracts.store_backends import MONGO_VARIABLE, PARAMS

ROOT = Path(__file__).parents[2]
ODD_JSON = {
    "dotted.key": 1,
    "$dollar": {"$nested.key": [1, 2.5, None, True, {"": "empty key"}]},
    "ключ": "значение ☕ \U0001f600",
    "quoted": '"\\ \n\t',
    "large": 2**62,
}


@pytest.fixture(params=["mongomock", *PARAMS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty database of each kind."""
    if request.param == "memory":
        one = MemoryDocuments()
        return Place(lambda: one)
    if request.param == "sqlite":
        return sqlite_place(tmp_path)
    if request.param == "mongomock":
        client: Any = mongomock.MongoClient()
        return Place(lambda: MongoDocuments("mongodb://nowhere", client))
    if request.param == "secantus":
        return mongo_place(request.getfixturevalue("secantus_url"))
    return mongo_place(os.environ[MONGO_VARIABLE])


@pytest.fixture
def documents(place: Place) -> Iterator[Documents]:
    with closing(place.open()) as documents:
        yield documents


@pytest.fixture
def threaded(place: Place, request: pytest.FixtureRequest) -> Place:
    """A database that threads may share."""
    if "mongomock" in request.node.name:
        pytest.skip("mongomock is not atomic between threads")
    return place


@pytest.fixture
def url(place: Place) -> str:
    """The URL of a database that processes may share."""
    if place.url is None:
        pytest.skip("it lives in one process")
    return place.url


def ids(documents: Documents, where: Filter, **options: Any) -> list[str]:
    return [found["id"] for found in documents.find(THINGS, where, **options)]


def one(documents: Documents, its_id: str) -> dict[str, Any] | None:
    return documents.find_one(THINGS, {"id": its_id})


def race(calls: Sequence[Any]) -> list[Any]:
    """Call all at once, each in a thread of its own."""
    barrier = Barrier(len(calls))

    def run(call: Any) -> Any:
        barrier.wait(30)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


# -- insert --------------------------------------------------------------------------------------


def test_a_document_comes_back_as_it_was_inserted(documents: Documents) -> None:
    """Free-form JSON included; a field that is None is absent, and what is in it is kept."""
    posted: dict[str, Any] = {
        "id": "a",
        "group": "g",
        "none": None,
        "odd": ODD_JSON,
        "list": [None, [], {}],
        "f": 2.0,
    }
    assert documents.insert(THINGS, [posted]) == [True]
    del posted["none"]
    assert documents.find(THINGS, {"id": "a"}) == [posted]


def test_what_is_given_or_returned_is_its_owners(documents: Documents) -> None:
    """Changing it later changes nothing that is stored."""
    posted: dict[str, Any] = {"id": "a", "inner": {"list": [1]}}
    more: dict[str, Any] = {"list": [1]}
    documents.insert(THINGS, [posted])
    changed = documents.change(THINGS, {"id": "a"}, set={"more": more}, append=[Entry(None, more)])
    assert changed is not None
    for changing in (posted["inner"], more, changed.document["more"]):
        changing["list"].append(2)
    found = one(documents, "a")
    assert found == {"id": "a", "inner": {"list": [1]}, "more": {"list": [1]}}
    found["inner"]["list"].append(3)
    documents.logs(THINGS, ["a"])["a"][0]["list"].append(4)
    assert one(documents, "a") == {"id": "a", "inner": {"list": [1]}, "more": {"list": [1]}}
    assert documents.logs(THINGS, ["a"]) == {"a": [{"list": [1]}]}


def test_numbers_that_are_not_finite_come_back(documents: Documents) -> None:
    """A metric may be one; what only looks like one is a text."""
    values = [math.inf, -math.inf, "NaN", 'a "NaN', 1e300]
    documents.insert(THINGS, [{"id": "a", "nan": math.nan, "values": values}])
    documents.change(THINGS, {"id": "a"}, add={"n": 1})
    found = one(documents, "a")
    assert found is not None
    assert math.isnan(found["nan"])
    assert found["values"] == values


@pytest.mark.parametrize("depth", [50, 150, 220, 400])
def test_what_is_nested_deeply_comes_back_or_is_refused(documents: Documents, depth: int) -> None:
    """Nothing is taken that could not be read again."""
    nested: Any = 1
    for _ in range(depth):
        nested = {"a": nested}
    [answer] = documents.insert(THINGS, [{"id": "a", "nested": nested}])
    if isinstance(answer, InvalidInput):
        assert one(documents, "a") is None
    else:
        assert one(documents, "a") == {"id": "a", "nested": nested}


def test_one_answer_for_each_in_order(documents: Documents) -> None:
    """False for an id or a unique group that is there, or came before in the same call; what was
    there stays as it was."""
    first = {"id": "a", "group": "g", "number": 1}
    assert documents.insert(THINGS, [first]) == [True]
    more: list[dict[str, Any]] = [
        {"id": "a", "group": "other", "number": 9},
        {"id": "b", "group": "g", "number": 1},
        {"id": "c", "group": "g", "number": 2},
        {"id": "d", "group": "g", "number": 2},
        {"id": "e", "group": "g"},
        {"id": "f", "group": "g"},
        {"id": "g", "group": "h", "number": 1, "key": "k"},
        {"id": "h", "key": "k"},
    ]
    answers = [False, False, True, False, True, True, True, False]
    assert documents.insert(THINGS, more) == answers
    assert sorted(ids(documents, {})) == ["a", "c", "e", "f", "g"]
    assert one(documents, "a") == first
    assert documents.insert(THINGS, []) == []


def test_a_refused_document_keeps_no_other_out(documents: Documents) -> None:
    """What the database cannot hold is answered by InvalidInput, or is found again; the others are
    in."""
    odd: list[dict[str, Any]] = [
        {"id": "half \ud800"}, {"id": "n\0l"}, {"id": "key", "key": "\ud800"},
        {"id": "meta", "meta": {"a": "\ud800"}}, {"id": "name", "meta": {"\0": 1}},
        {"id": "number", "meta": 2**70}, {"id": "place", "group": "o", "number": 2**70},
        {"id": "log", "log": [Entry("\ud800", 1)]}, {"id": "value", "log": [Entry("k", "\ud800")]},
        {"id": "large", "meta": "x" * 17_000_000},
    ]  # fmt: skip
    posted = [{"id": "first"}, *odd, {"id": "last"}]
    answers = documents.insert(THINGS, posted)
    assert (answers[0], answers[-1]) == (True, True)
    for document, answer in zip(posted, answers, strict=True):
        if isinstance(answer, InvalidInput):
            assert document["id"].encode("utf-8", "replace").decode() not in ids(documents, {})
        else:
            assert answer is True
            its_id = document["id"]
            log = [entry.value for entry in document.pop("log", [])]
            assert one(documents, its_id) == document
            assert documents.logs(THINGS, [its_id]) == {its_id: log}


def test_the_first_entries_of_a_log_come_with_it(documents: Documents) -> None:
    """Of two with one key the first; those without a key are all taken."""
    entries = [Entry("k", 1), Entry(None, 2), Entry("k", 3), Entry(None, 2), Entry("", {"a": None})]
    assert documents.insert(THINGS, [{"id": "a", "log": entries}]) == [True]
    assert documents.insert(THINGS, [{"id": "a", "log": [Entry("new", 5)]}]) == [False]
    assert documents.logs(THINGS, ["a"]) == {"a": [1, 2, 2, {"a": None}]}
    assert documents.find(THINGS, {}) == [{"id": "a"}]


def test_kinds_are_apart(documents: Documents) -> None:
    """The same id is another document in another kind."""
    other = Kind("others")
    for kind in (THINGS, other):
        assert documents.insert_one(kind, {"id": "a", "key": "k"})
    assert documents.delete(other, {}) == 1
    assert documents.count(THINGS, {}) == 1


# -- find and count ------------------------------------------------------------------------------


FOUND: list[tuple[Filter, str]] = [
    ({}, "abcd"),
    ({"id": "b"}, "b"),
    ({"state": "x"}, "ab"),
    ({"state": equal("x")}, "ab"),
    ({"state": "x", "at": 2}, "b"),
    ({"state": None}, "d"),
    ({"state": absent}, "d"),
    ({"missing": absent, "at": above(1)}, "bc"),
    ({"state": among(["y", "x", "x", "none"])}, "abc"),
    ({"id": among(["d", "a", "z"])}, "ad"),
    ({"id": among(["d", "a", "z"]), "state": absent}, "d"),
    ({"at": among([1, 3])}, "ac"),
    ({"state": among([])}, ""),
    ({"at": above(2)}, "c"),
    ({"at": up_to(2)}, "ab"),
    ({"at": up_to(0)}, ""),
    ({"id": above("b")}, "cd"),
    ({"is_on": True}, "a"),
    ({"is_on": False}, "b"),
    ({"share": up_to(0.5)}, "a"),
    ({"state": "x\0"}, ""),
    ({"state": among(["x\0", "y"])}, "c"),
    ({"state": "X"}, ""),
    ({"unindexed": 'it"s'}, "c"),
]


@pytest.fixture
def four(documents: Documents) -> Documents:
    documents.insert(
        THINGS,
        [
            {"id": "c", "state": "y", "at": 3, "unindexed": 'it"s'},
            {"id": "a", "state": "x", "at": 1, "is_on": True, "share": 0.5},
            {"id": "d", "group": "g"},
            {"id": "b", "state": "x", "at": 2, "is_on": False, "share": 0.75},
        ],
    )
    return documents


@pytest.mark.parametrize(("where", "found"), FOUND, ids=[str(where) for where, _ in FOUND])
def test_a_filter_has_five_words(four: Documents, where: Filter, found: str) -> None:
    """All conditions hold; what is absent is neither above nor up to anything."""
    assert ids(four, where, sort=["id"]) == list(found)
    assert four.count(THINGS, where) == len(found)
    assert four.change_all(THINGS, where, {"seen": 1}) == len(found)
    assert ids(four, {"seen": 1}, sort=["id"]) == list(found)
    assert four.delete(THINGS, where) == len(found)
    assert ids(four, {}, sort=["id"]) == [name for name in "abcd" if name not in found]


def test_sorted_and_by_pages(four: Documents) -> None:
    """All fields in one direction, absent first; skip and limit go by that order."""
    assert ids(four, {}, sort=["state", "at"]) == ["d", "a", "b", "c"]
    assert ids(four, {}, sort=["at"], descending=True) == ["c", "b", "a", "d"]
    assert ids(four, {}, sort=["id"], skip=1, limit=2) == ["b", "c"]
    assert ids(four, {}, sort=["id"], skip=3, limit=9) == ["d"]
    assert ids(four, {}, sort=["id"], skip=4) == []
    assert ids(four, {}, limit=0) == []
    assert [found["id"] for found in four.each(THINGS, {}, sort=["id"])] == list("abcd")


def test_only_some_fields_are_read(four: Documents) -> None:
    """Those that are absent are not there."""
    assert four.find(THINGS, {"at": up_to(1)}, fields=["at", "group", "share"]) == [
        {"at": 1, "share": 0.5}
    ]
    assert four.find(THINGS, {}, fields=["id"], sort=["id"], limit=1) == [{"id": "a"}]
    assert four.find(THINGS, {"id": "d"}, fields=["state"]) == [{}]


def test_values_beyond_a_database_are_refused_or_nobodys(four: Documents) -> None:
    """A filter with such a value raises InvalidInput or finds nothing."""
    for value in ("\ud800", 2**70, "\0"):
        for where in ({"id": value}, {"state": value}, {"at": value}, {"state": among([value])}):
            try:
                found = four.find(THINGS, where)
            except InvalidInput:
                continue
            assert found == []


# -- change --------------------------------------------------------------------------------------


def test_a_change_compares_sets_adds_and_appends(documents: Documents) -> None:
    """In one step, and returns the whole document as it is then."""
    documents.insert(THINGS, [{"id": "a", "state": "x", "n": 1, "gone": 1}])
    changed = documents.change(
        THINGS,
        {"id": "a", "state": "x"},
        set={"state": "y", "gone": None, "new": ODD_JSON},
        add={"n": 2, "m": -3, "counts.b": 4},
        append=[Entry("k", 1), Entry("k", 2), Entry(None, 3)],
    )
    assert changed is not None
    expected = {"id": "a", "state": "y", "new": ODD_JSON, "n": 3, "m": -3, "counts": {"b": 4}}
    assert changed == (expected, 2)
    assert one(documents, "a") == expected
    again = documents.change(THINGS, {"id": "a"}, add={"counts.b": 1, "counts.c": 1})
    assert again is not None
    assert again.document["counts"] == {"b": 5, "c": 1}
    assert documents.logs(THINGS, ["a"]) == {"a": [1, 3]}


def test_a_change_that_finds_nothing_does_nothing(documents: Documents) -> None:
    """None, whichever condition does not hold."""
    documents.insert(THINGS, [{"id": "a", "state": "x", "at": 5}])
    missing: list[Filter] = [{"id": "b"}, {"id": "a", "state": "y"}, {"id": "a", "at": up_to(4)}]
    for where in missing:
        assert documents.change(THINGS, where, set={"n": 1}, append=[Entry(None, 1)]) is None
    assert one(documents, "a") == {"id": "a", "state": "x", "at": 5}
    assert documents.logs(THINGS, ["a"]) == {"a": []}


def test_a_change_goes_by_a_unique_group_too(documents: Documents) -> None:
    """Where every field of it is named."""
    documents.insert(THINGS, [{"id": str(n), "group": "g", "number": n} for n in range(3)])
    changed = documents.change(THINGS, {"group": "g", "number": 1}, set={"number": 9})
    assert changed is not None
    assert changed.document == {"id": "1", "group": "g", "number": 9}
    assert documents.insert(THINGS, [{"id": "x", "group": "g", "number": 1}]) == [True]


def test_a_change_breaks_no_unique_group(documents: Documents) -> None:
    """Neither the fields nor the log are changed; None tells it."""
    documents.insert(THINGS, [{"id": "a", "key": "k"}, {"id": "b"}])
    entries = [Entry(None, 1)]
    assert documents.change(THINGS, {"id": "b"}, set={"key": "k"}, append=entries) is None
    assert one(documents, "b") == {"id": "b"}
    assert documents.logs(THINGS, ["b"]) == {"b": []}
    assert documents.change(THINGS, {"id": "a"}, set={"key": None}) is not None
    assert documents.change(THINGS, {"id": "b"}, set={"key": "k"}, append=entries) is not None


def test_keys_of_a_log_are_taken_once(documents: Documents) -> None:
    """Whoever appends them, whatever the value; another document's log has keys of its own."""
    documents.insert(THINGS, [{"id": "a"}, {"id": "b", "log": [Entry("k", 0)]}])
    for key, appended in (("k", 1), ("k", 0), ("K", 1), ("", 1), ("", 0), (None, 1), (None, 1)):
        changed = documents.change(THINGS, {"id": "a"}, append=[Entry(key, {"key": key})])
        assert changed is not None
        assert changed == ({"id": "a"}, appended)
    kept = ["k", "K", "", None, None]
    assert documents.logs(THINGS, ["a"]) == {"a": [{"key": key} for key in kept]}
    assert documents.logs(THINGS, ["b"]) == {"b": [0]}


def test_a_change_that_cannot_be_stored_changes_nothing(documents: Documents) -> None:
    """It raises InvalidInput, or comes back."""
    documents.insert(THINGS, [{"id": "a", "n": 1}])
    for value in ("\ud800", {"x": 2**70}, "x" * 17_000_000):
        for options in ({"set": {"meta": value}}, {"append": [Entry(None, value)]}):
            before = one(documents, "a"), documents.logs(THINGS, ["a"])
            try:
                changed = documents.change(THINGS, {"id": "a"}, add={"n": 1}, **options)
            except InvalidInput:
                assert (one(documents, "a"), documents.logs(THINGS, ["a"])) == before
            else:
                assert changed is not None
                assert changed.document == one(documents, "a")


def test_all_that_meet_a_filter_are_changed(documents: Documents) -> None:
    """Fields are set and removed; repeating it is harmless; logs stay."""
    documents.insert(THINGS, [{"id": n, "state": "x", "log": [Entry(None, n)]} for n in "abc"])
    for _ in range(2):
        where = {"id": among(["a", "b", "z"])}
        assert documents.change_all(THINGS, where, {"at": 7, "state": None, "odd": ODD_JSON}) == 2
    assert documents.find(THINGS, {}, sort=["id"]) == [
        {"id": "a", "at": 7, "odd": ODD_JSON},
        {"id": "b", "at": 7, "odd": ODD_JSON},
        {"id": "c", "state": "x"},
    ]
    assert documents.logs(THINGS, ["a", "c"]) == {"a": ["a"], "c": ["c"]}


# -- logs and delete -----------------------------------------------------------------------------


def test_logs_are_read_by_pages(documents: Documents) -> None:
    """Of each log so many entries, in the order in which they came, without the first ones."""
    for name, length in (("a", 5), ("b", 1), ("c", 0)):
        documents.insert(THINGS, [{"id": name}])
        for number in range(length):
            documents.change(THINGS, {"id": name}, append=[Entry(None, number)])
    asked = ["c", "a", "z", "b"]
    assert documents.logs(THINGS, asked) == {"a": [0, 1, 2, 3, 4], "b": [0], "c": []}
    assert documents.logs(THINGS, asked, after=1, limit=2) == {"a": [1, 2], "b": [], "c": []}
    assert documents.logs(THINGS, asked, after=9) == {"a": [], "b": [], "c": []}
    assert documents.logs(THINGS, ["a"], limit=0) == {"a": []}
    assert documents.logs(THINGS, []) == {}


def test_what_is_deleted_takes_its_log_along(documents: Documents) -> None:
    """A document of the same id, or of the same unique group, begins anew."""
    log = [Entry("k", 1)]
    posted: list[dict[str, Any]] = [{"id": n, "group": n, "number": 1, "log": log} for n in "abc"]
    documents.insert(THINGS, posted)
    assert documents.delete(THINGS, {"id": among(["a", "c", "z"])}) == 2
    assert documents.logs(THINGS, ["a", "b", "c"]) == {"b": [1]}
    again: list[dict[str, Any]] = [
        {"id": "c"},
        {"id": "d", "group": "a", "number": 1},
        {"id": "a", "log": [Entry("k", 2)]},
    ]
    assert documents.insert(THINGS, again) == [True, True, True]
    assert documents.logs(THINGS, ["a", "c"]) == {"a": [2], "c": []}


def test_ids_sort_by_when_they_were_made() -> None:
    """The first of two sorts first; none comes twice."""
    made = [new_id() for _ in range(1000)]
    assert len(set(made)) == len(made)
    assert [name[:10] for name in made] == sorted(name[:10] for name in made)
    assert {len(name) for name in made} == {16}


def test_a_ping_tells_the_time(documents: Documents) -> None:
    """By the database's clock, in whole milliseconds."""
    first, second = documents.ping(), documents.ping()
    assert isinstance(first, int)
    assert 1_600_000_000_000 < first <= second


def test_it_is_there_after_reopening(place: Place, url: str) -> None:
    """With another's index besides, what was there is found by it."""
    with closing(place.open()) as documents:
        documents.insert(THINGS, [{"id": "a", "n": 1, "log": [Entry("k", 1)]}])
    more = Kind(THINGS.name, THINGS.unique, (*THINGS.indexes, ("n",)))
    with closing(place.open()) as documents:
        assert documents.find(more, {"n": 1}) == [{"id": "a", "n": 1}]
        assert documents.logs(more, ["a"]) == {"a": [1]}
        assert documents.insert(more, [{"id": "a"}]) == [False]


def test_work_done_together_is_done(documents: Documents) -> None:
    """It returns what the work returns, and each call sees what the ones before it did."""

    def work() -> list[Any]:
        documents.insert(THINGS, [{"id": "a", "n": 1}])
        documents.change(THINGS, {"id": "a"}, set={"n": 2}, append=[Entry(None, "e")])
        return [documents.find(THINGS, {}), documents.logs(THINGS, ["a"])]

    expected = [[{"id": "a", "n": 2}], {"a": ["e"]}]
    assert documents.together(work) == expected
    assert [documents.find(THINGS, {}), documents.logs(THINGS, ["a"])] == expected


# -- races ---------------------------------------------------------------------------------------


def test_threads_insert_one_each(threaded: Place) -> None:
    """Of eight that insert the same id or unique group at once one is in."""
    with closing(threaded.open()) as documents:
        for number in range(5):
            same: dict[str, Any] = {"group": "g", "number": number}
            named = [{"id": f"{number}-{n}", **same} for n in range(8)]
            answers = race([lambda one=one: documents.insert(THINGS, [one]) for one in named])
            assert sorted(answers) == [[False]] * 7 + [[True]]
            again = [{"id": "same", "by": n, "at": number} for n in range(8)]
            answers = race([lambda one=one: documents.insert(THINGS, [one]) for one in again])
            assert sorted(answers) == [[False]] * 7 + [[True]]
            assert documents.delete(THINGS, {"id": "same"}) == 1


def test_threads_count_and_append_together(threaded: Place) -> None:
    """No addition is lost, no key is taken twice, and one that cannot be done costs no other."""
    with closing(threaded.open()) as documents:
        documents.insert(THINGS, [{"id": "one"}, {"id": "free", "state": "free"}])

        def work(name: int) -> int:
            appended = 0
            for number in range(10):
                entries = [Entry(f"{name}-{number}", 0), Entry(f"all-{number}", 1)]
                changed = documents.change(THINGS, {"id": "one"}, add={"n": 1}, append=entries)
                assert changed is not None
                appended += changed.appended
                with suppress(InvalidInput):  # where no id is like that
                    assert documents.change(THINGS, {"id": "\ud800"}, add={"n": 1}) is None
            return appended

        appended = race([lambda name=name: work(name) for name in range(8)])
        assert sum(appended) == 90
        assert one(documents, "one") == {"id": "one", "n": 80}
        assert sum(documents.logs(THINGS, ["one"])["one"]) == 10
        where = {"id": "free", "state": "free"}
        taken = race([lambda: documents.change(THINGS, where, set={"state": None})] * 8)
        assert sum(changed is not None for changed in taken) == 1


def test_processes_open_a_new_database_at_once(url: str, processes: ProcessPoolExecutor) -> None:
    """None of those that make it finds it half made."""
    opened = processes.map(document_backends.open_and_ping, [url] * PROCESSES)
    assert list(opened) == [True] * PROCESSES


def test_processes_race_for_numbers(place: Place, url: str, processes: ProcessPoolExecutor) -> None:
    """Each number is one's, and there is no gap."""
    with closing(place.open()) as documents:
        documents.count(THINGS, {})
    names = [f"p{n}" for n in range(PROCESSES)]
    each = processes.map(document_backends.take_numbers, [url] * PROCESSES, names, [20] * PROCESSES)
    taken = sorted(number for numbers in each for number in numbers)
    assert taken == list(range(1, 20 * PROCESSES + 1))


def test_processes_count_and_append_together(
    place: Place, url: str, processes: ProcessPoolExecutor
) -> None:
    """No addition is lost, and each key is taken from one of them."""
    with closing(place.open()) as documents:
        documents.insert(THINGS, [{"id": "one"}])
        names = [f"p{n}" for n in range(PROCESSES)]
        appended = processes.map(
            document_backends.add_and_append, [url] * PROCESSES, names, [30] * PROCESSES
        )
        assert sum(appended) == 30 * PROCESSES + 30
        assert one(documents, "one") == {"id": "one", "n": 30 * PROCESSES}
        log = documents.logs(THINGS, ["one"])["one"]
    assert {value: log.count(value) for value in log} == {**dict.fromkeys(names, 30), "all": 30}


def test_processes_take_each_once(place: Place, url: str, processes: ProcessPoolExecutor) -> None:
    """Of those that compare at the same time one finds what it saw."""
    with closing(place.open()) as documents:
        documents.insert(THINGS, [{"id": f"{n:02}", "state": "free", "at": n} for n in range(30)])
    names = [f"p{n}" for n in range(PROCESSES)]
    taken = list(processes.map(document_backends.take_states, [url] * PROCESSES, names))
    assert sorted(name for names in taken for name in names) == [f"{n:02}" for n in range(30)]


@pytest.mark.slow
def test_a_killed_process_loses_nothing_that_was_answered(place: Place, url: str) -> None:
    """After kill -9 each answered write is there once, whole, and others go on."""
    program = f"from tests.contracts.document_backends import *; write_until_killed({url!r})"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(20)]
        writer.kill()
        lines += writer.stdout.readlines()
    answered = [line.strip() for line in lines if line.endswith("\n")]
    with closing(place.open()) as documents:
        for number in answered:
            assert one(documents, f"{number}-a") == {"id": f"{number}-a", "n": 1}
            names = [f"{number}-a", f"{number}-b"]
            logs = documents.logs(THINGS, names)
            assert logs == {names[0]: [int(number)] * 2, names[1]: [int(number)]}
        assert documents.insert_one(THINGS, {"id": "next"})
        for found in documents.find(THINGS, {}):  # what was not answered is whole or not there
            assert found.keys() <= {"id", "n"}
