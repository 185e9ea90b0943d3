"""The contract of every store: how ends of tasks and changes of champions are told."""

from dataclasses import replace
from datetime import datetime, timedelta

from embedding_studio.models import ChampionMove, ModelVersion, MoveKind
from embedding_studio.store import Store
from embedding_studio.tasks import Claim, StoredModel, TaskRequest, TaskStatus
from tests.contracts.store_processes import NOW

URL = "https://example.com/hook"


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def end_task(store: Store, url: str | None = URL) -> str:
    task, _ = store.tasks.add(TaskRequest("m", webhook_url=url), NOW)
    claimed = store.tasks.claim("w", NOW, 60)
    assert claimed is not None
    store.tasks.finish(Claim(task.id, claimed.attempt, "w"), later(1), TaskStatus.DONE)
    return task.id


def test_an_end_is_due_to_be_told(store: Store) -> None:
    """Not before the task has ended, not for tasks without a webhook, and to one claimant."""
    end_task(store, None)
    waiting, _ = store.tasks.add(TaskRequest("m", webhook_url=URL), NOW)
    assert store.deliveries.claim(later(9), 30) is None
    store.tasks.cancel(waiting.id, later(9))
    claimed = store.deliveries.claim(later(9), 30)
    assert claimed is not None
    assert (claimed.id, claimed.status) == (waiting.id, TaskStatus.CANCELED)
    assert claimed.delivery is not None
    assert store.deliveries.claim(later(10), 30) is None


def test_projects_may_be_left_alone(store: Store) -> None:
    """A claimant that skips projects gets the oldest end of the others."""
    end_task(store)
    other = end_task(store.in_project("acme"))
    claimed = store.deliveries.claim(later(9), 30, skip_projects={"default"})
    assert claimed is not None
    assert claimed.id == other
    assert store.deliveries.claim(later(9), 30, skip_projects={"default", "acme"}) is None
    assert store.deliveries.claim(later(9), 30) is not None


def test_a_delivery_is_repeated_under_its_id_until_it_is_heard(store: Store) -> None:
    """A claimant that died, and one that failed, are counted and followed by another; then nothing
    is due."""
    end_task(store)
    first = store.deliveries.claim(later(9), 30)
    again = store.deliveries.claim(later(39), 30)
    assert first is not None
    assert again is not None
    assert first.delivery is not None
    assert again.delivery == replace(first.delivery, attempts=2)
    assert not store.deliveries.settle(first, later(39), None, None)
    assert store.deliveries.settle(again, later(40), "503", later(60))
    assert store.deliveries.claim(later(59), 30) is None
    last = store.deliveries.claim(later(60), 30)
    assert last is not None
    assert last.delivery is not None
    assert again.delivery is not None
    assert last.delivery == replace(again.delivery, attempts=3, error="503")
    assert store.deliveries.settle(last, later(61), None, None)
    assert store.deliveries.claim(later(9999), 30) is None
    heard = store.tasks.get(last.id).delivery
    assert heard is not None
    assert (heard.attempts, heard.error, heard.delivered_at) == (3, None, later(61))


def test_a_restarted_task_tells_its_next_end_anew(store: Store) -> None:
    """Under another id, and a delivery of the former end that is under way settles nothing."""
    task_id = end_task(store)
    store.deliveries.claim(later(2), 30)
    other, _ = store.tasks.add(TaskRequest("m", webhook_url=URL), NOW)
    store.tasks.cancel(other.id, NOW)
    former = store.deliveries.claim(later(3), 30)
    assert former is not None
    assert former.id == other.id
    store.tasks.restart(other.id, later(4))
    assert not store.deliveries.settle(former, later(5), None, None)
    assert store.deliveries.claim(later(6), 30) is None
    store.tasks.cancel(other.id, later(7))
    anew = store.deliveries.claim(later(8), 30)
    assert anew is not None
    assert anew.id != task_id
    assert anew.delivery is not None
    assert former.delivery is not None
    assert anew.delivery.id != former.delivery.id


def move_champion(store: Store, number: int, at: datetime, name: str = "m") -> None:
    """Make another version champion."""
    found = store.models.find(name)
    former = found.champion if found else None
    version = ModelVersion(number, StoredModel(f"run-{number}", "mlruns", ()), at)
    move = ChampionMove(MoveKind.PROMOTED, at, former, number, "a test", "")
    store.models.update(name, lambda model: model.moved(move, version))


def test_a_change_of_the_champion_is_told_like_an_end(store: Store) -> None:
    """To one claimant at a time, again until it is heard, and only where there is an address: what
    is champion when that is given is told, too."""
    move_champion(store, 1, NOW)
    move_champion(store.in_project("acme"), 1, NOW)
    assert store.champion_deliveries.claim(later(1), 30) is None
    store.models.update("m", lambda model: model.telling(URL, later(1)))
    assert store.champion_deliveries.claim(later(2), 30, skip_projects={"default"}) is None
    claimed = store.champion_deliveries.claim(later(2), 30)
    assert claimed is not None
    assert (claimed.project, claimed.champion, claimed.webhook_url) == ("default", 1, URL)
    assert store.champion_deliveries.claim(later(3), 30) is None
    assert store.champion_deliveries.settle(claimed, later(3), "503", later(9))
    again = store.champion_deliveries.claim(later(9), 30)
    assert again is not None
    assert again.delivery is not None
    assert claimed.delivery is not None
    assert (again.delivery.id, again.delivery.attempts) == (claimed.delivery.id, 2)
    assert store.champion_deliveries.settle(again, later(10), None, None)
    assert store.champion_deliveries.claim(later(9999), 30) is None


def test_a_champion_that_moves_while_it_is_told_is_told_anew(store: Store) -> None:
    """Under another id, and the delivery that is under way settles nothing; what else happens to
    the model does not stand in its way."""
    move_champion(store, 1, NOW)
    store.models.update("m", lambda model: model.telling(URL, NOW))
    former = store.champion_deliveries.claim(later(1), 30)
    assert former is not None
    move_champion(store, 2, later(2))
    assert not store.champion_deliveries.settle(former, later(3), None, None)
    anew = store.champion_deliveries.claim(later(3), 30)
    assert anew is not None
    assert anew.champion == 2
    assert anew.delivery is not None
    assert former.delivery is not None
    assert anew.delivery.id != former.delivery.id
    store.models.update("m", lambda model: replace(model, mirrored=2))
    assert store.champion_deliveries.settle(anew, later(4), None, None)
    store.models.update("m", lambda model: model.telling(None, later(5)))
    move_champion(store, 3, later(6))
    assert store.champion_deliveries.claim(later(7), 30) is None
