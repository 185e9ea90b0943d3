"""The contract of every store: what one project holds, another neither sees nor touches."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from embedding_studio.clickstream import BatchCount, SessionEvent
from embedding_studio.errors import InvalidInput, NotFound
from embedding_studio.schedules import Schedule
from embedding_studio.store import Store
from embedding_studio.store.memory import MemoryDocuments
from embedding_studio.tasks import Claim, TaskRequest, TaskStatus
from embedding_studio.workers import WorkerRecord
from tests.contracts.store_processes import NOW, batch_of, make_session, number_of, register

CLICK = SessionEvent("e", "item-1", NOW)
KEYED = TaskRequest("m", idempotency_key="key")

# what another project asks about the ids of this one, and how it is answered
ASK_ABOUT_IDS: dict[str, Callable[[Store, str, str], object]] = {
    "clickstream.get": lambda store, batch_id, task_id: store.clickstream.get("s"),
    "clickstream.append_events": lambda store, batch_id, task_id: store.clickstream.append_events(
        "s", [CLICK]
    ),
    "clickstream.add_counts": lambda store, batch_id, task_id: store.clickstream.add_counts(
        batch_id, {BatchCount.LATE_EVENTS: 1}
    ),
    "clickstream.mark_irrelevant": lambda store, batch_id, task_id: (
        store.clickstream.mark_irrelevant("s")
    ),
    "clickstream.get_batch": lambda store, batch_id, task_id: store.clickstream.get_batch(batch_id),
    "clickstream.release": lambda store, batch_id, task_id: store.clickstream.release(
        "new", NOW, batch_id
    ),
    "clickstream.read": lambda store, batch_id, task_id: store.clickstream.read(batch_id, 0, 10),
    "clickstream.read_documents": (
        lambda store, batch_id, task_id: store.clickstream.read_documents(batch_id, 0, 10)
    ),
    "clickstream.last_number": lambda store, batch_id, task_id: store.clickstream.last_number(
        batch_id
    ),
    "clickstream.count_clicked": lambda store, batch_id, task_id: store.clickstream.count_clicked(
        batch_id
    ),
    "schedules.get": lambda store, batch_id, task_id: store.schedules.get("sched"),
    "schedules.pause": lambda store, batch_id, task_id: store.schedules.pause("sched", True, NOW),
    "schedules.remove": lambda store, batch_id, task_id: store.schedules.remove("sched"),
    "tasks.get": lambda store, batch_id, task_id: store.tasks.get(task_id),
    "tasks.cancel": lambda store, batch_id, task_id: store.tasks.cancel(task_id, NOW),
    "tasks.stop": lambda store, batch_id, task_id: store.tasks.stop(task_id, NOW),
    "tasks.restart": lambda store, batch_id, task_id: store.tasks.restart(task_id, NOW),
    "tasks.forget_iteration": lambda store, batch_id, task_id: store.tasks.forget_iteration(
        task_id, "7", NOW, "gone", is_whole=True
    ),
    "tasks.events": lambda store, batch_id, task_id: store.tasks.events(task_id),
    "tasks.events, a later page": lambda store, batch_id, task_id: store.tasks.events(task_id, 5),
}
NO_SLUGS = ["", "A", "a b", "-a", "a.b", "a:b", "a/b", "a" * 64, "é", "a\n"]
PAIRS = [("default", "other"), ("other", "default"), ("a", "a-b")]


def everything(store: Store, batch_id: str, task_id: str) -> list[Any]:
    """Return all that a project's clients may read."""
    return [
        store.clickstream.get("s"),
        store.clickstream.get_batch(batch_id),
        store.clickstream.read(batch_id, 0, 10),
        store.tasks.get(task_id),
        store.tasks.events(task_id),
        store.tasks.page(),
        store.clickstream.collecting_batch(),
        store.clickstream.page(),
        store.schedules.all(),
    ]


@pytest.mark.parametrize("ask", ASK_ABOUT_IDS)
@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_an_id_of_another_project_is_not_found(
    store: Store, ask: str, mine: str, theirs: str
) -> None:
    """Asked with another project's ids, each method raises NotFound and changes nothing there."""
    owner, stranger = store.in_project(mine), store.in_project(theirs)
    owner.clickstream.register([make_session("s", ["e-0"])], NOW)
    batch_id = batch_of(owner, "s")
    task, _ = owner.tasks.add(KEYED, NOW)
    owner.schedules.add(Schedule("sched", mine, "m", NOW, NOW, interval_seconds=60.0))
    before = everything(owner, batch_id, task.id)
    with pytest.raises(NotFound):
        ASK_ABOUT_IDS[ask](stranger, batch_id, task.id)
    assert everything(owner, batch_id, task.id) == before


def test_every_method_of_clients_is_asked_about() -> None:
    """A client-side method that takes the id of a session, a batch, a task or a schedule has its
    case above; an owner's takes a claim, or a schedule as seen."""
    asked = {name.split(",")[0] for name in ASK_ABOUT_IDS}
    store = Store(MemoryDocuments())
    with_ids = {
        f"{noun}.{name}"
        for noun, kept in vars(store).items()
        for name, method in vars(type(kept)).items()
        if not name.startswith("_")
        and {"session_id", "batch_id", "task_id", "schedule_id"} & set(_arguments_of(method))
        and not {"claim", "seen"} & set(_arguments_of(method))
    }
    assert with_ids == asked


def _arguments_of(method: object) -> dict[str, Any]:
    return getattr(method, "__annotations__", {})


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_lists_and_searches_stay_in_the_project(store: Store, mine: str, theirs: str) -> None:
    """Tasks, counts, keys and the collecting batch of one project are not another's."""
    owner, stranger = store.in_project(mine), store.in_project(theirs)
    owner.clickstream.register([make_session("s")], NOW)
    task, _ = owner.tasks.add(KEYED, NOW)
    assert task.project == mine
    assert owner.tasks.page() == owner.tasks.page(TaskStatus.PENDING) == [task]
    assert stranger.tasks.page() == stranger.tasks.page(TaskStatus.PENDING) == []
    assert (owner.tasks.count(TaskStatus.PENDING), stranger.tasks.count(TaskStatus.PENDING)) == (
        1,
        0,
    )
    assert owner.tasks.count(TaskStatus.DONE) == 0
    assert owner.tasks.find("key") == task
    assert stranger.tasks.find("key") is None
    assert store.tasks.claim("w", NOW, 60) is not None
    store.tasks.finish(Claim(task.id, 1, "w"), NOW, TaskStatus.DONE)
    assert owner.tasks.last_done(task.fine_tuning_method) == owner.tasks.get(task.id)
    assert owner.tasks.last_done("another") is None
    assert stranger.tasks.last_done(task.fine_tuning_method) is None
    owner.schedules.add(Schedule("sched", mine, "m", NOW, NOW, interval_seconds=60.0))
    assert [one.id for one in owner.schedules.all()] == ["sched"]
    assert stranger.schedules.all() == []
    assert [one.id for one in stranger.schedules.due(NOW)] == ["sched"]  # a worker's: of all
    assert owner.clickstream.collecting_batch() is not None
    assert stranger.clickstream.collecting_batch() is None
    with pytest.raises(NotFound, match="nothing to release"):
        stranger.clickstream.release("r", NOW)


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_ids_chosen_by_clients_are_free_in_each_project(
    store: Store, mine: str, theirs: str
) -> None:
    """Session ids, event ids, release ids and idempotency keys may be the same in two projects."""
    first, second = store.in_project(mine), store.in_project(theirs)
    red = make_session("s", ["e"], query="red")
    blue = make_session("s", ["e", "f"], query="blue")
    for view, session in ((first, red), (second, blue)):
        (answer,) = register(view, [session])
        assert (answer.is_new, answer.new_events) == (True, len(session.events))
        assert number_of(view, "s") == 1
    second.clickstream.mark_irrelevant("s")
    assert second.clickstream.append_events("s", [replace(CLICK, event_id="g")]).new_events == 1
    assert first.clickstream.get("s") == red
    assert [one.event_id for one in second.clickstream.get("s").events] == ["e", "f", "g"]
    batches = [view.clickstream.release("r", NOW) for view in (first, second)]
    assert batches[0].batch_id != batches[1].batch_id
    for view, batch in zip((first, second), batches, strict=True):
        assert view.clickstream.release("r", NOW) == batch
        assert batch.session_count == len(view.clickstream.read(batch.batch_id, 0, 10)) == 1
    tasks = [view.tasks.add(KEYED, NOW) for view in (first, second)]
    assert [is_new for _, is_new in tasks] == [True, True]
    assert first.tasks.add(KEYED, NOW) == (tasks[0][0], False)


@pytest.mark.parametrize(
    ("project", "session_id"),
    [("default", "p:other:s"), ("default", "p:default:s"), ("default", "p:"), ("default", "s:s")],
)
def test_no_session_id_reaches_into_another_project(
    store: Store, project: str, session_id: str
) -> None:
    """An id made to look like another project's stored key is a session of its own."""
    for name in ("default", "other"):
        store.in_project(name).clickstream.register([make_session("s", query=name)], NOW)
    view = store.in_project(project)
    (answer,) = register(view, [make_session(session_id, query="sly")])
    assert answer.is_new
    assert view.clickstream.get(session_id).search_query == "sly"
    for name in ("default", "other"):
        assert store.in_project(name).clickstream.get("s").search_query == name


def test_numbers_and_batches_run_on_their_own(store: Store) -> None:
    """Each project has its own collecting batch with its own numbers, however posts interleave."""
    views = [store.in_project(name) for name in ("default", "a", "b")]
    for number in range(4):
        for view in views:
            view.clickstream.register([make_session(f"s-{number}")], NOW)
        if number == 1:
            views[1].clickstream.release("r", NOW)
    for view, expected in zip(views, (4, 2, 4), strict=True):
        collecting = view.clickstream.collecting_batch()
        assert collecting is not None
        page = view.clickstream.read(collecting.batch_id, 0, 10)
        assert [member.number for member in page] == list(range(1, expected + 1))


def test_old_batches_go_in_their_project_only(store: Store) -> None:
    """Deleting the older released batches of one project leaves those of another."""
    batches = {}
    for project in ("default", "a"):
        view = store.in_project(project)
        view.clickstream.register([make_session("s")], NOW)
        batches[project] = view.clickstream.release("r", NOW).batch_id
    assert store.in_project("a").clickstream.delete_older(0) == [batches["a"]]
    assert len(store.clickstream.read(batches["default"], 0, 10)) == 1
    assert number_of(store, "s") == 1


def test_an_owner_works_for_all_projects(store: Store) -> None:
    """One worker claims the tasks of every project, oldest first, and its writes reach them."""
    projects = ["a", "default", "b"]
    ids = [store.in_project(project).tasks.add(KEYED, NOW)[0].id for project in projects]
    for task_id, project in zip(ids, projects, strict=True):
        task = store.tasks.claim("w", NOW, 60)
        assert task is not None
        assert (task.id, task.project) == (task_id, project)
        claim = Claim(task.id, task.attempt, "w")
        store.in_project("c").tasks.record(claim, NOW, batch_id="batch")
        store.tasks.finish(claim, NOW, TaskStatus.DONE)
        assert store.in_project(project).tasks.get(task.id).status is TaskStatus.DONE
    store.in_project("a").workers.record(WorkerRecord("w", ("m",), NOW))
    assert len(store.workers.seen(NOW.replace(year=2000))) == 1


def test_an_opened_store_is_the_default_projects(store: Store) -> None:
    """A store just opened, and its view of `default`, are the same."""
    store.clickstream.register([make_session("s")], NOW)
    assert number_of(store.in_project("other").in_project("default"), "s") == 1
    assert store.project == "default"


@pytest.mark.parametrize("project", NO_SLUGS)
def test_what_cannot_be_a_project_is_refused(store: Store, project: str) -> None:
    """A project's id is a short slug; anything else raises InvalidInput that says so."""
    with pytest.raises(InvalidInput, match="1 to 63 of a-z"):
        store.in_project(project)
