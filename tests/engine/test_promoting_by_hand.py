"""A person promotes a model: a worker registers it and makes it champion, once, or says why not."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.clock import utc_now
from embedding_studio.engine.attempt import Attempt
from embedding_studio.engine.champions import Champions
from embedding_studio.errands.sweep import sweep
from embedding_studio.models import MoveKind, RegisteredModel, Wish
from embedding_studio.store.models import Models
from embedding_studio.store.tasks import Tasks
from embedding_studio.tasks import FineTuningTask, Promote, TaskStatus
from embedding_studio.tracking.iterations import Iterations
from embedding_studio.tracking.registry import Registry
from tests.engine.test_champions import alias, die, doing_first, registered, roll_back
from tests.iterations import Bench

pytestmark = pytest.mark.slow


@pytest.fixture
def refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> FineTuningTask:
    """A task that was done with a model that was not promoted and is no version, as they were
    once, and as those of tasks are that end with an error."""
    monkeypatch.setattr(Champions, "keep", lambda *_: None)
    task = bench.run_task(promote=Promote.NEVER)
    assert task.best_model is not None
    assert registered(bench).champion == 1
    return task


def wish(bench: Bench, task: FineTuningTask, by: str = "ann") -> None:
    assert task.best_model is not None
    wanted = Wish(task.id, task.best_model, by, "reads better", utc_now(), task.promotion)
    bench.house.store.models.update("Toy", lambda model: model.wished(wanted))


def check_promoted(bench: Bench, task: FineTuningTask, previous: int = 1) -> None:
    """The task's model is the champion, by one move and as one version."""
    model = registered(bench)
    assert (model.wanted, model.is_mirrored) == (None, True)
    champion = model.version(model.champion)
    assert (champion.model, champion.task_id) == (task.best_model, task.id)
    assert (champion.promotion, champion.previous) == (task.promotion, previous)
    (move,) = [move for move in model.moves if move.kind is MoveKind.PROMOTED_BY_HAND]
    assert (move.from_version, move.to_version, move.by) == (previous, champion.number, "ann")
    assert alias(bench) == champion.number
    found = bench.mlflow.search_model_versions("name = 'Toy'")
    assert [version.run_id for version in found].count(champion.model.run_id) == 1


def check_ended(bench: Bench, why: str) -> None:
    """Nothing is wanted any more, the champion is what it was, and the history says why."""
    model = registered(bench)
    assert (model.champion, model.wanted, model.is_mirrored) == (1, None, True)
    assert alias(bench) == 1
    move = model.moves[-1]
    assert (move.kind, move.by) == (MoveKind.WISH_ENDED, "a worker")
    assert why in move.why


@pytest.mark.quick
@pytest.mark.parametrize("is_version", [True, False])
def test_a_person_promotes_a_refused_model(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_version: bool
) -> None:
    """Over HTTP: at once where it is a version, else a worker carries it out. MLflow tells of it,
    the next task starts from it, and a rollback leads back."""
    if not is_version:
        monkeypatch.setattr(Champions, "keep", lambda *_: None)
    house, refused = bench.house, bench.run_task(promote=Promote.NEVER)
    with TestClient(
        create_app(house.store, house.settings), base_url="http://localhost/api/v1"
    ) as api:
        path, body = "/models/Toy/promote", {"task_id": refused.id}
        answer = api.post(path, json={**body, "reason": "reads better"}).json()
        if is_version:
            assert (answer["champion"], answer["wanted"]) == (2, None)
        else:
            assert (answer["champion"], answer["wanted"]["task_id"]) == (1, refused.id)
        bench.worker.mirror()
        answer = api.get("/models/Toy").json()
        assert (answer["champion"], answer["previous_version"]) == (2, 1)
        assert (answer["wanted"], answer["is_mirrored"], alias(bench)) == (None, True, 2)
        assert api.post(path, json=body).json() == answer
        told = "Promoted by hand, by somebody without a key: reads better"
        version = bench.mlflow.get_model_version("Toy", "2")
        assert (version.description or "").startswith(f"{told}. Not promoted: ")
        assert refused.experiment_id is not None
        note = bench.mlflow.get_experiment(refused.experiment_id).tags["mlflow.note.content"]
        assert note.startswith(f"{told}\n\nNot promoted: ")
        second = bench.run_task(start=1000, promote=Promote.NEVER)
        assert second.promotion is not None
        assert refused.promotion is not None
        assert second.promotion.baseline == refused.promotion.best
        assert api.post("/models/Toy/rollback", json={}).json()["champion"] == 1


STEPS: list[tuple[type, str]] = [
    (Registry, "register"),
    (Registry, "describe"),
    (Iterations, "tell_promotion"),
    (RegisteredModel, "granted"),
    (Registry, "set_champion"),
]


@pytest.mark.parametrize(("place", "step"), STEPS, ids=[step for _, step in STEPS])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_is_made_up_for(
    bench: Bench,
    refused: FineTuningTask,
    monkeypatch: pytest.MonkeyPatch,
    place: type,
    step: str,
    moment: str,
) -> None:
    """Wherever a worker dies, the next one ends it, once the dead one's time is over."""
    wish(bench, refused)

    def dying(*args: Any) -> Any:
        if moment == "after":
            then(*args)
        die()

    with monkeypatch.context() as crashing:
        then = getattr(place, step)
        crashing.setattr(place, step, dying)
        with pytest.raises(KeyboardInterrupt):
            Champions(bench.house).mirror("Toy")
    late = replace(bench.house, clock=lambda: utc_now() + timedelta(days=1))
    assert Champions(late).mirror("Toy")
    check_promoted(bench, refused)


def test_many_workers_carry_it_out_once(bench: Bench, refused: FineTuningTask) -> None:
    """Four at the same moment: one version, one move."""
    wish(bench, refused)
    with ThreadPoolExecutor(4) as threads:
        answers = [*threads.map(lambda _: Champions(bench.house).mirror("Toy"), range(4))]
    assert True in answers
    check_promoted(bench, refused)


def test_who_is_late_writes_nothing(
    bench: Bench, refused: FineTuningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that slept past its time before it registered the model finds it done."""
    wish(bench, refused)
    later = replace(bench.house, clock=lambda: utc_now() + timedelta(days=1))
    times = [utc_now()]

    def sleep() -> None:
        monkeypatch.undo()
        assert Champions(later).mirror("Toy")
        times[0] += timedelta(days=2)

    monkeypatch.setattr(Registry, "register", doing_first(sleep, Registry.register))
    assert not Champions(replace(bench.house, clock=lambda: times[0])).mirror("Toy")
    check_promoted(bench, refused)


def test_who_changes_their_mind_is_heard(
    bench: Bench, refused: FineTuningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback while a worker is at it ends the wish; wished for again, it is told anew."""
    wish(bench, refused, "bob")
    with monkeypatch.context() as racing:
        racing.setattr(
            Registry, "register", doing_first(lambda: roll_back(bench), Registry.register)
        )
        bench.worker.mirror()
    model = registered(bench)
    assert (model.champion, model.wanted, alias(bench)) == (1, None, 1)
    wish(bench, refused)
    bench.worker.mirror()
    check_promoted(bench, refused)
    version = bench.mlflow.get_model_version("Toy", "2")
    assert (version.description or "").startswith("Promoted by hand, by ann")


def test_an_iteration_begins_with_what_is_wanted(bench: Bench, refused: FineTuningTask) -> None:
    """A wish that came while no worker was there is carried out first."""
    wish(bench, refused)
    task = bench.run_task(start=1000)
    assert task.promotion is not None
    assert refused.promotion is not None
    assert task.promotion.baseline == refused.promotion.best
    first = registered(bench).version(2)
    assert first.model == refused.best_model


@pytest.mark.parametrize("place", ["search", "judge", "carry_out"])
def test_it_wins_over_an_iteration_at_work(
    bench: Bench, refused: FineTuningTask, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """That one promotes nothing and says why; what a person wanted is champion, with its files."""
    step = getattr(Attempt, place)
    monkeypatch.setattr(Attempt, place, doing_first(lambda: wish(bench, refused), step))
    monkeypatch.setattr(Attempt, "draw", lambda self, trials: None)
    task = bench.run_task(start=1000)
    assert task.status is TaskStatus.DONE
    assert task.promotion is not None
    assert f"{refused.id} shall be champion of 'Toy' (wanted by ann)" in task.promotion.reason
    bench.worker.mirror()
    check_promoted(bench, refused)
    assert refused.best_model is not None
    copy = bench.house.settings.data_folder / "copy"
    bench.house.tracking.models.download(refused.best_model, copy)


@pytest.mark.parametrize("change", ["models", "tasks"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_clean_up_leaves_what_is_wanted_or_ends_the_wish(
    bench: Bench,
    refused: FineTuningTask,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
    moment: str,
) -> None:
    """A wish that comes between the looks of a newer iteration's clean-up, and is carried out at
    once: the champion has its files, or the wish ended."""
    place, step = (Models, "update") if change == "models" else (Tasks, "forget_iteration")
    then = getattr(place, step)

    def wish_meanwhile() -> None:
        monkeypatch.setattr(place, step, then)
        wish(bench, refused)
        bench.worker.mirror()

    def both(*args: Any) -> Any:
        if moment == "before":
            wish_meanwhile()
        answer = then(*args)
        if moment == "after":
            wish_meanwhile()
        return answer

    def clean_up(*args: Any) -> Any:
        monkeypatch.setattr(place, step, both)
        return remove(*args)

    remove: Callable[..., Any] = Iterations.remove_older
    monkeypatch.setattr(Iterations, "remove_older", clean_up)
    bench.run_task(start=1000, promote=Promote.NEVER)
    bench.worker.mirror()
    model = registered(bench)
    assert model.is_mirrored
    copy = bench.house.settings.data_folder / "copy"
    bench.house.tracking.models.download(model.version(model.champion).model, copy)
    if (change, moment) == ("tasks", "after"):
        check_ended(bench, f"task {refused.id} has it no longer")
    else:
        check_promoted(bench, refused)


def test_what_is_wanted_outlasts_newer_iterations(bench: Bench, refused: FineTuningTask) -> None:
    """Without a worker that carries it out, its iteration stays whole; a sweep leaves it alone; and
    once the wish has ended, it goes."""
    house = bench.house

    def at_work(start: int) -> None:
        with pytest.MonkeyPatch.context() as waiting:
            waiting.setattr(Champions, "mirror", lambda *_: True)
            bench.run_task(start=start, promote=Promote.NEVER)

    wish(bench, refused)
    at_work(1000)
    assert sweep(house.store, house.tracking, house.settings, utc_now()) == []
    kept = house.store.tasks.get(refused.id)
    assert (kept.best_model, kept.experiment_id) == (refused.best_model, refused.experiment_id)
    roll_back(bench)
    at_work(2000)
    assert house.store.tasks.get(refused.id).best_model is None
    assert len(bench.experiments()) == 1


@pytest.mark.quick
def test_files_that_are_gone_end_the_wish(bench: Bench, refused: FineTuningTask) -> None:
    """Whoever removed them: nothing waits for ever."""
    assert refused.best_model is not None
    wish(bench, refused)
    shutil.rmtree(Path(refused.best_model.artifact_uri.removeprefix("file://")).parent)
    bench.worker.mirror()
    check_ended(bench, f"the model of run {refused.best_model.run_id} cannot be read")


def test_a_run_that_is_gone_ends_the_wish(bench: Bench, refused: FineTuningTask) -> None:
    """So it does when the task has another model by now, or none."""
    wish(bench, refused)
    store = bench.house.store
    assert refused.experiment_id is not None
    store.tasks.forget_iteration(refused.id, refused.experiment_id, utc_now(), "gone", True)
    bench.worker.mirror()
    check_ended(bench, "has it no longer")


def test_a_canceled_restart_keeps_what_is_wanted(
    bench: Bench, refused: FineTuningTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a canceled task wrote is removed, but not what a person wants."""
    wish(bench, refused)
    model = registered(bench)
    bench.house.tracking.iterations.discard_task(refused.id, model.kept_run_ids)
    bench.worker.mirror()
    check_promoted(bench, refused)
