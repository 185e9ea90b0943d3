"""The contract of every store: labels, and what they take."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from embedding_studio.clickstream import Usage
from embedding_studio.errors import Conflict, InvalidInput, NotFound, TooManyRequests
from embedding_studio.labels import Label, LabelCounts, LabelSet, LabelsPut
from embedding_studio.store import Store

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
RED = Label("Red shoes", "shoe-7", 3.0)


def read(store: Store, labels_id: str) -> set[Label]:
    return set(store.labels.read(labels_id))


def used(store: Store) -> int:
    return store.clickstream.usage().get(store.project, Usage()).bytes


def test_labels_from_put_to_delete(store: Store) -> None:
    """A set begins with its first labels, keeps when that was, and is not found once deleted."""
    blue = Label("blue hat", "hat-1", 0.0)
    assert store.labels.put("judged", [RED, blue], NOW) == LabelsPut(2, 0, 0)
    assert store.labels.get("judged") == LabelSet("judged", False, NOW)
    assert read(store, "judged") == {RED, blue}
    assert store.labels.count("judged") == LabelCounts(2, 2, 1, 2, 3.0)
    later = NOW + timedelta(hours=1)
    assert store.labels.put("judged", [blue], later, is_golden=True) == LabelsPut(0, 0, 1)
    assert store.labels.put("judged", [], later) == LabelsPut(0, 0, 0)
    assert store.labels.get("judged") == LabelSet("judged", True, NOW)
    store.labels.delete("judged")
    for call in (store.labels.get, store.labels.count, store.labels.delete):
        with pytest.raises(NotFound, match="'judged'"):
            call("judged")
    assert store.labels.put("judged", [RED], later) == LabelsPut(1, 0, 0)
    assert store.labels.get("judged") == LabelSet("judged", False, later)


def test_a_query_and_an_item_have_one_grade(store: Store) -> None:
    """The last one, of queries that are split as one, spelled as they first came."""
    again = [Label("red  SHOES", "shoe-7", 1.0), Label("RED shoes", "shoe-7", 2.0)]
    store.labels.put("judged", [RED], NOW)
    assert store.labels.put("judged", again, NOW) == LabelsPut(0, 1, 0)
    assert read(store, "judged") == {Label("Red shoes", "shoe-7", 2.0)}
    other = Label("red shoes", "shoe-8", 1.0)
    assert store.labels.put("judged", [other, *again], NOW) == LabelsPut(1, 0, 1)
    assert store.labels.count("judged") == LabelCounts(2, 1, 1, 2, 2.0)


def test_sets_may_be_at_odds(store: Store) -> None:
    """On what is relevant by one and not by the other, each by its own highest grade; a query is
    one however it is spelled, and what one of them does not have is no conflict."""
    mine = [Label(f"query {n}", "é" * (n % 3 + 1), n % 2) for n in range(40)]
    theirs = [Label(f"QUERY {n}", "é" * (n % 3 + 1), 5.0 * (n % 2 == (n < 7))) for n in range(60)]
    store.labels.put("mine", [*mine, Label("alone", "a", 1.0)], NOW)
    store.labels.put("theirs", theirs, NOW)
    found = store.labels.conflicts("mine", "theirs")
    assert found.pairs == 33
    assert len(found.examples) == 5
    wrong = {(f"query {n}", "é" * (n % 3 + 1)) for n in range(7, 40)}
    assert {(query.lower(), item) for query, item in found.examples} <= wrong
    assert store.labels.conflicts("mine", "mine").pairs == 0
    with pytest.raises(NotFound):
        store.labels.conflicts("mine", "nobody's")


def test_sets_and_labels_are_read_by_pages(store: Store) -> None:
    """Sets by their names, labels of a query one after the other; another project's are not
    there, and neither are another set's."""
    labels = [Label(f"query {n // 5}", f"i-{n}", float(n % 4)) for n in range(1200)]
    store.labels.put("b", labels, NOW)
    store.labels.put("a", [RED], NOW)
    store.in_project("other").labels.put("b", [RED], NOW)
    assert [one.labels_id for one in store.labels.sets()] == ["a", "b"]
    assert [one.labels_id for one in store.labels.sets("a", 1)] == ["b"]
    found = list(store.labels.read("b"))
    assert len(found) == len(labels)
    assert set(found) == set(labels)
    queries = [one.query for one in found]
    assert sum(a != b for a, b in pairwise(queries)) == 239
    assert store.labels.count("b") == LabelCounts(1200, 240, 240, 1200, 3.0)


def test_a_set_needs_a_name_that_can_be(store: Store) -> None:
    """It stands in addresses and names of files."""
    for wrong in ("", "a/b", ".a", "a b", "é", "x" * 101):
        with pytest.raises(InvalidInput, match="name of labels"):
            store.labels.put(wrong, [RED], NOW)
    assert store.labels.sets() == []


def test_what_labels_take_is_counted(store: Store) -> None:
    """New and deleted ones, no changed ones; other projects count for themselves."""
    store.labels.put("a", [RED], NOW)
    first = used(store)
    assert first > 0
    store.labels.put("a", [Label("RED SHOES", "shoe-7", 1.25)], NOW, is_golden=True)
    assert used(store) == first
    store.labels.put("a", [Label("red shoes", "shoe-8", 1)], NOW)
    assert used(store) > first
    store.in_project("other").labels.put("a", [RED], NOW)
    store.labels.delete("a")
    assert used(store) == 0


def test_a_project_has_room_for_so_much(store: Store) -> None:
    """What is beyond is refused and not kept, and begins no set."""
    store.labels.put("a", [RED], NOW)
    most = Usage(10, used(store) + 10)
    for labels_id in ("a", "b"):
        with pytest.raises(TooManyRequests, match="ES_MAX_PROJECT_MB"):
            store.labels.put(labels_id, [Label("x" * 100, "y", 1.0)], NOW, most=most)
    assert [one.labels_id for one in store.labels.sets()] == ["a"]
    assert read(store, "a") == {RED}
    assert store.labels.put("a", [RED], NOW, most=most) == LabelsPut(0, 0, 1)


def test_labels_that_are_put_at_once_are_counted_once(store: Store) -> None:
    """By several at a time, while the set is deleted: the count is that of what is there."""
    labels = [Label(f"query {n}", "i", 1.0) for n in range(20)]

    def put(number: int) -> None:
        if number == 5:
            store.labels.delete("a")
        else:
            with suppress(Conflict):  # it was deleted meanwhile
                store.labels.put("a", labels, NOW)

    store.labels.put("a", labels, NOW)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(8)))
    store.labels.put("a", labels, NOW)
    assert read(store, "a") == set(labels)
    store.labels.delete("a")
    assert used(store) == 0
