"""Items, and the sessions that name them."""

from contextlib import closing
from pathlib import Path

from embedding_studio.clickstream import SearchResult, Session, text_of
from embedding_studio.engine.lease import Lease
from embedding_studio.engine.snapshot import take_snapshot
from embedding_studio.items import Item, completed, without_content
from embedding_studio.snapshot import Snapshot
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from embedding_studio.tasks import TaskRequest
from tests.contracts.store_processes import NOW

SHOWN = (
    SearchResult("a", 0.5, {"price": 3}),
    SearchResult("b", 0.4, {"text": "its own"}),
    SearchResult("c"),
    SearchResult("d", 0.2, {"image": "x.jpg"}),
)
SESSION = Session("s", "q", SHOWN, NOW)


def test_an_item_has_a_text_or_that_of_its_fields() -> None:
    """Fields are read one after the other, empty ones left out; meta comes along."""
    assert Item("a", "x", {"t": "y"}).content() == {"text": "x", "fields": {"t": "y"}}
    item = Item(
        "a", fields={"title": "Trail", "none": " ", "color": "blue"}, url="u", meta={"n": 1}
    )
    fields = {"title": "Trail", "color": "blue"}
    assert item.content() == {"text": "Trail. blue", "fields": fields, "url": "u", "n": 1}
    assert Item("a", " ").content() == {}


def test_a_results_own_content_wins() -> None:
    """Items complete those results that have neither text nor image, beside what these have."""
    assert without_content(SESSION) == {"a", "c"}
    items = {name: Item(name, f"text of {name}", meta={"price": 9}) for name in "abd"}
    results = [completed(result, items) for result in SHOWN]
    assert [text_of(result) for result in results] == ["text of a", "its own", None, None]
    assert [result.meta.get("price") for result in results] == [3, None, None, None]
    assert [result.rank for result in results] == [0.5, 0.4, None, 0.2]


def test_a_snapshot_has_the_items_content(tmp_path: Path) -> None:
    """As the items are when it is taken, and of the task's project alone."""
    with closing(Store(MemoryDocuments())) as store:
        store.clickstream.register([SESSION], NOW)
        batch = store.clickstream.release("r", NOW)
        store.in_project("other").items.put([Item("c", "another's")])
        store.items.put([Item("a", "one")])
        store.tasks.add(TaskRequest("m", batch.batch_id), NOW)
        task = store.tasks.claim("w", NOW, 60)
        assert task is not None
        lease = Lease(store, task, "w", 60, lambda: NOW)
        folder = tmp_path / "snapshot"
        first = take_snapshot(store, lease, [batch.batch_id], folder, store.items.find)
        assert first[1] == 1
        [session] = Snapshot(folder, {}).usable()
        assert [text_of(one) for one in session.search_results] == ["one", "its own", None, None]
        store.items.put([Item("a", "two")])
        assert take_snapshot(store, lease, [batch.batch_id], folder, store.items.find) != first
