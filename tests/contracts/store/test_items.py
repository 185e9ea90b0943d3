"""The contract of every store: items, and what they take."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from embedding_studio.clickstream import Usage
from embedding_studio.errors import NotFound, TooManyRequests
from embedding_studio.items import Item, PutStatus
from embedding_studio.store import Store

SHOE = Item(
    "shoe-7", "Runner, red", {"brand": "A.$b"}, "https://a/7.jpg", "https://a/7", {"x": [1]}
)


def test_an_item_comes_back_whole_until_it_is_deleted(store: Store) -> None:
    """Every field is kept; putting it again changes nothing, putting another takes its place with
    all of its fields, and once it is deleted it is not found."""
    assert store.items.put([SHOE]) == [PutStatus.CREATED]
    assert store.items.put([SHOE]) == [PutStatus.UNCHANGED]
    assert store.items.get("shoe-7") == SHOE
    plain = Item("shoe-7", "Runner")
    assert store.items.put([plain]) == [PutStatus.UPDATED]
    assert store.items.get("shoe-7") == plain
    assert store.items.delete(["shoe-7", "shoe-8"]) == 1
    assert store.items.delete(["shoe-7"]) == 0
    with pytest.raises(NotFound, match="'shoe-7'"):
        store.items.get("shoe-7")


def test_the_last_of_several_with_one_id_stays(store: Store) -> None:
    """Each gets the answer of that one, in the order given."""
    items = [Item("a", "1"), Item("b", "1"), Item("a", "2")]
    assert store.items.put(items) == [PutStatus.CREATED] * 3
    assert store.items.find(["a", "b", "c"]) == {"a": Item("a", "2"), "b": Item("b", "1")}


def test_items_are_read_by_pages(store: Store) -> None:
    """In the order of their ids, each once; another project's are not there."""
    store.in_project("other").items.put([Item("a", "x"), Item("zz", "x")])
    items = [Item(f"i-{n:04}", "x") for n in range(25)]
    store.items.put(items)
    read: list[Item] = []
    while page := store.items.page(read[-1].object_id if read else "", 10):
        read += page
    assert read == items
    assert store.items.count() == 25
    assert len(store.items.find([item.object_id for item in items])) == 25


def test_more_than_a_query_names_are_put_and_found(store: Store) -> None:
    """Thousands at once."""
    items = [Item(f"i-{n}", "x") for n in range(2500)]
    store.items.put(items)
    assert set(store.items.put(items)) == {PutStatus.UNCHANGED}
    assert len(store.items.find([item.object_id for item in items])) == 2500


def used(store: Store) -> int:
    return store.clickstream.usage().get(store.project, Usage()).bytes


def test_what_items_take_is_counted(store: Store) -> None:
    """Larger, smaller, unchanged and deleted ones; other projects count for themselves."""
    store.items.put([Item("a", "x" * 100)])
    first = used(store)
    store.items.put([Item("a", "x" * 150), Item("b", "x" * 100)])
    assert used(store) == 2 * first + 50
    store.items.put([Item("a", "x" * 150), Item("b", "x" * 10)])
    assert used(store) == 2 * first - 40
    store.in_project("other").items.put([Item("a", "x" * 500)])
    store.items.delete(["a", "b"])
    assert used(store) == 0


def test_a_project_has_room_for_so_much(store: Store) -> None:
    """What is beyond is refused and not kept; putting again what is there needs no room."""
    store.items.put([Item("a", "x" * 100)])
    most = Usage(10, used(store) + 50)
    with pytest.raises(TooManyRequests, match="ES_MAX_PROJECT_MB"):
        store.items.put([Item("b", "x" * 100)], most)
    assert store.items.find(["b"]) == {}
    assert store.items.put([Item("a", "x" * 100)], most) == [PutStatus.UNCHANGED]
    assert store.items.put([Item("a", "x" * 90)], most) == [PutStatus.UPDATED]


def test_items_that_are_put_at_once_are_counted_once(store: Store) -> None:
    """Of the same ids, by several at a time: each is one of theirs as a whole, and the count is
    that of what is there."""
    ids = [f"i-{n}" for n in range(20)]

    def put(number: int) -> None:
        store.items.put([Item(one, "x" * (100 + number), meta={"by": number}) for one in ids])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(put, range(8)))
    for item in store.items.find(ids).values():
        assert item.text == "x" * (100 + item.meta["by"])
    store.items.delete(ids)
    assert used(store) == 0


def test_items_stay_counted_when_sessions_are_counted_anew(store: Store) -> None:
    """Batches go, and items with their bytes stay."""
    store.items.put([replace(SHOE, text="x" * 500)])
    before = used(store)
    store.clickstream.delete_older(0)
    assert used(store) == before
