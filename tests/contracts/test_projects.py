"""The contract of every store: what one project holds, another neither sees nor touches."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedding_studio.clickstream import BatchCount, SessionEvent
from embedding_studio.errors import InvalidInput, NotFound
from embedding_studio.schedules import Schedule
from embedding_studio.store import Store
from embedding_studio.store.mongo import MongoStore
from embedding_studio.store.sqlite import SqliteStore
from embedding_studio.tasks import Claim, TaskRequest, TaskStatus
from embedding_studio.workers import WorkerRecord
from tests.contracts import store_processes
from tests.contracts.conftest import PROCESSES
from tests.contracts.store_backends import Backend, MongoBackend
from tests.contracts.store_processes import NOW, make_session, register

CLICK = SessionEvent("e", "item-1", NOW)
KEYED = TaskRequest("m", idempotency_key="key")

# what another project asks about the ids of this one, and how it is answered
ASK_ABOUT_IDS: dict[str, Callable[[Store, str, str], object]] = {
    "get_session": lambda store, batch_id, task_id: store.clickstream.get("s"),
    "append_events": lambda store, batch_id, task_id: store.clickstream.append_events("s", [CLICK]),
    "add_counts": lambda store, batch_id, task_id: store.clickstream.add_counts(
        batch_id, {BatchCount.LATE_EVENTS: 1}
    ),
    "mark_irrelevant": lambda store, batch_id, task_id: store.clickstream.mark_irrelevant("s"),
    "get_batch": lambda store, batch_id, task_id: store.clickstream.get_batch(batch_id),
    "release_batch": lambda store, batch_id, task_id: store.clickstream.release(
        "new", NOW, batch_id
    ),
    "read_batch": lambda store, batch_id, task_id: store.clickstream.read(batch_id, 0, 10),
    "count_clicked_sessions": lambda store, batch_id, task_id: store.clickstream.count_clicked(
        batch_id
    ),
    "get_schedule": lambda store, batch_id, task_id: store.schedules.get("sched"),
    "pause_schedule": lambda store, batch_id, task_id: store.schedules.pause("sched", True, NOW),
    "remove_schedule": lambda store, batch_id, task_id: store.schedules.remove("sched"),
    "get_task": lambda store, batch_id, task_id: store.tasks.get(task_id),
    "cancel_task": lambda store, batch_id, task_id: store.tasks.cancel(task_id, NOW),
    "stop_task": lambda store, batch_id, task_id: store.tasks.stop(task_id, NOW),
    "restart_task": lambda store, batch_id, task_id: store.tasks.restart(task_id, NOW),
    "forget_iteration": lambda store, batch_id, task_id: store.tasks.forget_iteration(
        task_id, "7", NOW, "gone", is_whole=True
    ),
    "list_events": lambda store, batch_id, task_id: store.tasks.events(task_id),
    "list_events, a later page": lambda store, batch_id, task_id: store.tasks.events(task_id, 5),
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
        store.schedules.all(),
    ]


@pytest.mark.parametrize("ask", ASK_ABOUT_IDS)
@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_an_id_of_another_project_is_not_found(
    store: Store, ask: str, mine: str, theirs: str
) -> None:
    """Asked with another project's ids, each method raises NotFound and changes nothing there."""
    owner, stranger = store.in_project(mine), store.in_project(theirs)
    owner.register_sessions([make_session("s", ["e-0"])], NOW)
    batch_id = owner.get_session("s").batch_id
    task, _ = owner.add_task(KEYED, NOW)
    owner.add_schedule(Schedule("sched", mine, "m", NOW, NOW, interval_seconds=60.0))
    before = everything(owner, batch_id, task.id)
    with pytest.raises(NotFound):
        ASK_ABOUT_IDS[ask](stranger, batch_id, task.id)
    assert everything(owner, batch_id, task.id) == before


def test_every_method_of_clients_is_asked_about() -> None:
    """A client-side method that takes the id of a session, a batch, a task or a schedule has its
    case above; an owner's takes a claim, or a schedule as seen."""
    asked = {name.split(",")[0] for name in ASK_ABOUT_IDS}
    with_ids = {
        name
        for name, method in vars(Store).items()
        if {"session_id", "batch_id", "task_id", "schedule_id"} & set(_arguments_of(method))
        and not {"claim", "seen"} & set(_arguments_of(method))
    }
    assert with_ids == asked


def _arguments_of(method: object) -> dict[str, Any]:
    return getattr(method, "__annotations__", {})


@pytest.mark.parametrize(("mine", "theirs"), PAIRS)
def test_lists_and_searches_stay_in_the_project(store: Store, mine: str, theirs: str) -> None:
    """Tasks, counts, keys and the collecting batch of one project are not another's."""
    owner, stranger = store.in_project(mine), store.in_project(theirs)
    owner.register_sessions([make_session("s")], NOW)
    task, _ = owner.add_task(KEYED, NOW)
    assert task.project == mine
    assert owner.list_tasks() == owner.list_tasks(TaskStatus.PENDING) == [task]
    assert stranger.list_tasks() == stranger.list_tasks(TaskStatus.PENDING) == []
    assert (owner.count_tasks(TaskStatus.PENDING), stranger.count_tasks(TaskStatus.PENDING)) == (
        1,
        0,
    )
    assert owner.count_tasks(TaskStatus.DONE) == 0
    assert owner.find_task("key") == task
    assert stranger.find_task("key") is None
    owner.add_schedule(Schedule("sched", mine, "m", NOW, NOW, interval_seconds=60.0))
    assert [one.id for one in owner.list_schedules()] == ["sched"]
    assert stranger.list_schedules() == []
    assert [one.id for one in stranger.due_schedules(NOW)] == ["sched"]  # a worker's: of all
    assert owner.collecting_batch() is not None
    assert stranger.collecting_batch() is None
    with pytest.raises(NotFound, match="nothing to release"):
        stranger.release_batch("r", NOW)


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
        assert view.get_session("s").number == 1
    second.mark_irrelevant("s")
    assert second.append_events("s", [replace(CLICK, event_id="g")]).new_events == 1
    assert first.get_session("s").session == red
    assert [one.event_id for one in second.get_session("s").session.events] == ["e", "f", "g"]
    batches = [view.release_batch("r", NOW) for view in (first, second)]
    assert batches[0].batch_id != batches[1].batch_id
    for view, batch in zip((first, second), batches, strict=True):
        assert view.release_batch("r", NOW) == batch
        assert batch.session_count == len(view.read_batch(batch.batch_id, 0, 10)) == 1
    tasks = [view.add_task(KEYED, NOW) for view in (first, second)]
    assert [is_new for _, is_new in tasks] == [True, True]
    assert first.add_task(KEYED, NOW) == (tasks[0][0], False)


@pytest.mark.parametrize(
    ("project", "session_id"),
    [("default", "p:other:s"), ("default", "p:default:s"), ("default", "p:"), ("default", "s:s")],
)
def test_no_session_id_reaches_into_another_project(
    store: Store, project: str, session_id: str
) -> None:
    """An id made to look like another project's stored key is a session of its own."""
    for name in ("default", "other"):
        store.in_project(name).register_sessions([make_session("s", query=name)], NOW)
    view = store.in_project(project)
    (answer,) = register(view, [make_session(session_id, query="sly")])
    assert answer.is_new
    assert view.get_session(session_id).session.search_query == "sly"
    for name in ("default", "other"):
        assert store.in_project(name).get_session("s").session.search_query == name


def test_numbers_and_batches_run_on_their_own(store: Store) -> None:
    """Each project has its own collecting batch with its own numbers, however posts interleave."""
    views = [store.in_project(name) for name in ("default", "a", "b")]
    for number in range(4):
        for view in views:
            view.register_sessions([make_session(f"s-{number}")], NOW)
        if number == 1:
            views[1].release_batch("r", NOW)
    for view, expected in zip(views, (4, 2, 4), strict=True):
        collecting = view.collecting_batch()
        assert collecting is not None
        page = view.read_batch(collecting.batch_id, 0, 10)
        assert [member.number for member in page] == list(range(1, expected + 1))


def test_old_batches_go_in_their_project_only(store: Store) -> None:
    """Deleting the older released batches of one project leaves those of another."""
    batches = {}
    for project in ("default", "a"):
        view = store.in_project(project)
        view.register_sessions([make_session("s")], NOW)
        batches[project] = view.release_batch("r", NOW).batch_id
    assert store.in_project("a").delete_older_batches(0) == [batches["a"]]
    assert len(store.clickstream.read(batches["default"], 0, 10)) == 1
    assert store.clickstream.get("s").number == 1


def test_an_owner_works_for_all_projects(store: Store) -> None:
    """One worker claims the tasks of every project, oldest first, and its writes reach them."""
    projects = ["a", "default", "b"]
    ids = [store.in_project(project).add_task(KEYED, NOW)[0].id for project in projects]
    for task_id, project in zip(ids, projects, strict=True):
        task = store.tasks.claim("w", NOW, 60)
        assert task is not None
        assert (task.id, task.project) == (task_id, project)
        claim = Claim(task.id, task.attempt, "w")
        store.in_project("c").record(claim, NOW, batch_id="batch")
        store.tasks.finish(claim, NOW, TaskStatus.DONE)
        assert store.in_project(project).get_task(task.id).status is TaskStatus.DONE
    store.in_project("a").record_worker(WorkerRecord("w", ("m",), NOW))
    assert len(store.workers.seen(NOW.replace(year=2000))) == 1


def test_an_opened_store_is_the_default_projects(store: Store) -> None:
    """A store just opened, and its view of `default`, are the same."""
    store.clickstream.register([make_session("s")], NOW)
    assert store.in_project("other").in_project("default").get_session("s").number == 1
    assert store.project == "default"


@pytest.mark.parametrize("project", NO_SLUGS)
def test_what_cannot_be_a_project_is_refused(store: Store, project: str) -> None:
    """A project's id is a short slug; anything else raises InvalidInput that says so."""
    with pytest.raises(InvalidInput, match="1 to 63 of a-z"):
        store.in_project(project)


# -- databases from before there were projects ---------------------------------------------------


def fill(store: Store) -> tuple[str, str]:
    """Leave a released batch, a collecting one and a task; return the batch's and task's ids."""
    odd = make_session("p:other:s", ["e"])
    store.clickstream.register([make_session("s", ["e"]), odd], NOW)
    batch = store.clickstream.release("r", NOW)
    store.clickstream.register([make_session("t")], NOW)
    task, _ = store.tasks.add(KEYED, NOW)
    return batch.batch_id, task.id


def assert_is_the_default_projects(store: Store, batch_id: str, task_id: str) -> None:
    """Check that what `fill` left is in `default`, whole, and that other projects may begin."""
    assert [m.session.session_id for m in store.clickstream.read(batch_id, 0, 9)] == [
        "s",
        "p:other:s",
    ]
    assert store.clickstream.release("r", NOW).batch_id == batch_id
    assert len(store.clickstream.get("p:other:s").session.events) == 1
    again = register(store, [make_session(id_) for id_ in ("s", "p:other:s", "t")])
    assert not any(answer.is_new for answer in again)
    store.clickstream.register([make_session("u")], NOW)
    assert store.clickstream.get("u").number == 2
    task, is_new = store.tasks.add(KEYED, NOW)
    assert (task.id, task.project, is_new) == (task_id, "default", False)
    other = store.in_project("other")
    assert other.list_tasks() == []
    with pytest.raises(NotFound):
        other.get_session("s")
    other.register_sessions([make_session("s")], NOW)
    assert other.release_batch("r", NOW).batch_id != batch_id
    assert other.add_task(KEYED, NOW)[1]


def make_old_file(path: Path) -> tuple[str, str]:
    """Write a file as it was before there were projects."""
    with closing(SqliteStore(f"sqlite:///{path}")) as store:
        ids = fill(store)
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE events SET session_id = 'p:other:s' WHERE session_id LIKE 'p:%'")
        database.execute("UPDATE sessions SET session_id = 'p:other:s' WHERE session_id LIKE 'p:%'")
        indexes = "SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '%project%'"
        for (kind,) in database.execute(indexes).fetchall():
            database.execute(f"DROP INDEX {kind}")
        database.execute("ALTER TABLE batches DROP COLUMN project")
        database.execute("ALTER TABLE tasks DROP COLUMN project")
        database.execute("DROP TABLE api_keys")
        for index in (
            "one_collecting_batch ON batches (status) WHERE status = 'collecting'",
            "release_ids ON batches (release_id) WHERE release_id IS NOT NULL",
            "idempotency_keys ON tasks (idempotency_key) WHERE idempotency_key IS NOT NULL",
        ):
            database.execute(f"CREATE UNIQUE INDEX {index}")
        database.commit()
    return ids


def make_old_database(backend: MongoBackend) -> tuple[str, str]:
    """Write a MongoDB database as it was before there were projects."""
    store = backend.open()
    assert isinstance(store, MongoStore)
    ids = fill(store)
    for collection in (store._batches, store._tasks):
        collection.update_many({}, {"$unset": {"project": ""}})
        for name in collection.index_information():
            if name.startswith("project_"):
                collection.drop_index(name)
    store._batches.create_index("ordinal", unique=True)
    store._batches.create_index("release_id", unique=True, sparse=True)
    store._tasks.create_index("idempotency_key", unique=True, sparse=True)
    if backend.is_shared:
        store.close()
    return ids


def make_old(backend: Backend) -> tuple[str, str]:
    if isinstance(backend, MongoBackend):
        return make_old_database(backend)
    path = Path(backend.url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_old_file(path)


def test_older_data_is_the_default_projects(backend: Backend) -> None:
    """A database from before there were projects opens, and opens again, with its data in
    `default` and its unique indexes per project."""
    ids = make_old(backend)
    if backend.is_shared:
        backend.open().close()
    store = backend.open()
    assert_is_the_default_projects(store, *ids)
    store.close()


def test_processes_may_open_an_older_database_at_once(
    shared: Backend, processes: ProcessPoolExecutor
) -> None:
    """Three processes bring the same older database up to date, each of them without an error."""
    ids = make_old(shared)
    opened = [processes.submit(store_processes.open_first, shared.url) for _ in range(PROCESSES)]
    assert [one.result(120) for one in opened] == [True] * PROCESSES
    with closing(shared.open()) as store:
        assert_is_the_default_projects(store, *ids)
