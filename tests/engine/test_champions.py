"""Champions: moved in the store, by whoever is first; MLflow's alias follows."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from embedding_studio.api.app import create_app
from embedding_studio.clock import utc_now
from embedding_studio.engine.attempt import Attempt
from embedding_studio.engine.champions import Champions
from embedding_studio.engine.jobs import MethodRef
from embedding_studio.engine.worker import Worker
from embedding_studio.errands.sweep import sweep
from embedding_studio.errors import Conflict
from embedding_studio.models import MoveKind, RegisteredModel, Training, VersionState
from embedding_studio.projects import RegisteredName
from embedding_studio.store.models import MODELS
from embedding_studio.tasks import Budget, FineTuningTask, Promote, TaskEventKind, TaskStatus
from embedding_studio.tracking.iterations import Iterations
from embedding_studio.tracking.registry import Registry
from tests.engine.test_attempt import after_trials
from tests.iterations import TOY, Bench

pytestmark = pytest.mark.slow


def registered(bench: Bench, method: str = "Toy") -> RegisteredModel:
    found = bench.house.store.models.find(method)
    assert found is not None
    return found


def alias(bench: Bench, method: str = "Toy") -> int | None:
    return bench.house.tracking.registry.champion_version(RegisteredName(method))


def roll_back(bench: Bench, to_version: int | None = None) -> None:
    bench.house.store.models.update(
        "Toy", lambda model: model.rolled_back(to_version, "ann", "it was worse", utc_now())
    )


def doing_first(act: Callable[[], object], then: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        act()
        return then(*args, **kwargs)

    return both


def die(*_: object) -> None:
    raise KeyboardInterrupt  # no handler of ours catches it: like a killed worker


def work_later(bench: Bench) -> None:
    house = replace(bench.house, clock=lambda: utc_now() + timedelta(days=1))
    assert Worker(house, bench.worker._catalog).work_once()


def test_the_initial_model_is_champion_from_the_first(bench: Bench) -> None:
    """A method's first task registers it as version 1 with the alias, also if no set gives a
    model."""
    task = bench.run_task("Failing")
    assert task.status is TaskStatus.ERROR
    assert (registered(bench, "Failing").champion, alias(bench, "Failing")) == (1, 1)
    model = bench.house.tracking.registry.champion(RegisteredName("Failing"))
    assert model == registered(bench, "Failing").version(1).model
    (move,) = registered(bench, "Failing").moves
    assert (move.kind, move.from_version, move.to_version) == (MoveKind.INITIAL, None, 1)
    assert move.by == f"task {task.id}"


@pytest.mark.quick
def test_a_task_may_leave_the_champion_to_a_person(bench: Bench) -> None:
    """A better model is judged and kept for download; the champion stays."""
    task = bench.run_task(promote=Promote.NEVER)
    assert task.promotion is not None
    assert (task.status, task.promotion.promoted) == (TaskStatus.DONE, False)
    assert task.promotion.reason.startswith("better on held-out queries: ")
    assert task.best_model is not None
    assert (registered(bench).champion, alias(bench)) == (1, 1)


def test_a_promotion_is_a_version_with_its_verdict(bench: Bench) -> None:
    """It names the task and whose place it took, and MLflow's alias shows it."""
    task = bench.run_task()
    model = registered(bench)
    assert (model.champion, alias(bench), model.is_mirrored) == (2, 2, True)
    version = model.version(2)
    assert (version.model, version.promotion) == (task.best_model, task.promotion)
    assert (version.task_id, version.previous) == (task.id, 1)
    assert [move.kind for move in model.moves] == [MoveKind.INITIAL, MoveKind.PROMOTED]


def test_a_model_that_is_not_promoted_is_a_version_too(bench: Bench) -> None:
    """Refused, or a candidate where a person is to decide; what it was made of is kept, and it is
    what MLflow knows under that number. Promoted by its number, it is champion at once."""
    first = bench.run_task("Worse")
    model = registered(bench, "Worse")
    version = model.version(2)
    assert (model.champion, alias(bench, "Worse")) == (1, 1)
    assert model.state_of(version) is VersionState.REFUSED
    assert (version.task_id, version.model) == (first.id, first.best_model)
    assert version.training is not None
    assert version.training.parent == "Worse/1"
    assert version.training.batch_ids == (first.batch_id,)
    assert version.training.method_version == "1.0.0"
    assert set(version.training.parameters) == {"skill", "seed"}
    assert isinstance(version.training.parameters["skill"], float)
    assert version.model.facts is not None
    assert version.model.facts.size_bytes == sum(one.size_bytes for one in version.model.files)
    candidate = bench.run_task(promote=Promote.NEVER, start=1000)
    model = registered(bench)
    assert candidate.best_model == model.version(2).model
    assert model.state_of(model.version(2)) is VersionState.CANDIDATE
    bench.house.store.models.update("Toy", lambda one: one.promoted(2, "ann", "", utc_now()))
    bench.worker.mirror()
    assert (registered(bench).champion, alias(bench)) == (2, 2)
    assert registered(bench).previous == 1


def test_a_task_narrows_the_search_and_says_the_seed(bench: Bench) -> None:
    """What is not in the method's space ends it before its batch is released, naming what is;
    the same seed draws the same sets."""
    wrong = bench.run_task(parameters={"skil": 0.5})
    assert (wrong.status, wrong.batch_id) == (TaskStatus.ERROR, None)
    assert "asks for no 'skil'; it asks for 'skill', 'layers', 'kind'" in (wrong.error or "")
    narrowed = {"skill": [0.5, 0.6], "layers": 2, "shuffle": [True]}
    values: list[list[dict[str, Any]]] = []
    for name in ("A", "B"):
        task = bench.run_task(model_name=name, seed=7, parameters=narrowed, start=len(values) * 99)
        assert task.status is TaskStatus.DONE
        drawn = [bench.suggested(run) for run in bench.runs(task)]
        assert all(0.5 <= one["skill"] <= 0.6 and one["layers"] == 2 for one in drawn)
        values.append(drawn)
    assert values[0] == values[1]
    assert bench.runs(task)[0].data.params["seed"] == "7"


def test_a_model_begins_with_another_ones_version(bench: Bench) -> None:
    """A new name's first version is a copy of it, which outlasts the original; its next task goes
    on from there, and not from the method's initial model."""
    shoes = bench.run_task(model_name="Shoes", parameters={"skill": 0.5})
    assert (registered(bench, "Shoes").champion, shoes.status) == (2, TaskStatus.DONE)
    worse = {"skill": [0.3, 0.4]}
    for number in (1, 2):
        task = bench.run_task(
            model_name="Boots",
            initial_model="Shoes@champion" if number == 1 else None,
            parameters=worse,
            start=1000 * number,
        )
        assert task.promotion is not None
        assert task.promotion.baseline == pytest.approx(0.5)
        boots = registered(bench, "Boots")
        assert (boots.champion, alias(bench, "Boots")) == (1, 1)
    first = boots.version(1)
    assert first.training is not None
    assert first.training.parent == "Shoes@champion"
    assert first.model.run_id != registered(bench, "Shoes").version(2).model.run_id
    assert first.model.files == registered(bench, "Shoes").version(2).model.files
    refused = boots.versions[-1].training
    assert refused is not None
    assert refused.parent == "Boots/1"


def test_a_model_begins_with_what_another_project_shares(bench: Bench) -> None:
    """Its first version is a copy, which stays when the original is taken back; a task that begins
    after that ends by an error that says so."""
    bench.run_task(model_name="Shoes", parameters={"skill": 0.5})
    models, now = bench.house.store.models, utc_now()
    models.update("Shoes", lambda model: model.shared("books", "ann", now))
    books = Bench(bench.house.in_project("books"), bench.worker)
    wanted: dict[str, Any] = {"initial_model": "default:Shoes/2", "parameters": {"skill": 0.3}}
    task = books.run_task(model_name="Boots", **wanted)
    assert task.promotion is not None
    assert task.promotion.baseline == pytest.approx(0.5)
    models.update("Shoes", lambda model: model.taken_back("books", "ann", now))
    first, original = registered(books, "Boots").version(1), registered(bench, "Shoes").version(2)
    assert first.training == Training(parent="default:Shoes/2")
    assert first.model.files == original.model.files
    assert first.model.run_id != original.model.run_id
    late = books.run_task(start=1000, model_name="Hats", **wanted)
    assert (late.status, late.batch_id) == (TaskStatus.ERROR, None)
    assert "no model 'default:Shoes' is shared with project 'books'" in (late.error or "")


def test_what_is_started_from_is_not_what_is_compared_with(bench: Bench) -> None:
    """A task that starts from an older version must still be better than the champion, whose place
    its model takes; then the champion's is the figure before."""
    bench.run_task(parameters={"skill": 0.5})
    worse = bench.run_task(start=1000, initial_model="Toy/1", parameters={"skill": [0.3, 0.4]})
    assert worse.promotion is not None
    assert (worse.promotion.promoted, registered(bench).champion) == (False, 2)
    assert worse.promotion.baseline == pytest.approx(0.5)
    assert worse.progress is not None
    assert worse.progress.baseline == pytest.approx(0.2)
    better = bench.run_task(start=2000, initial_model="Toy/1", parameters={"skill": 0.8})
    assert better.promotion is not None
    assert better.promotion.promoted
    model = registered(bench)
    assert (model.champion, model.previous) == (4, 2)
    training = model.version(4).training
    assert training is not None
    assert training.parent == "Toy/1"


def test_a_folder_below_an_allowed_root_is_started_from(bench: Bench, tmp_path: Path) -> None:
    """Any other one ends the task before its batch is released, and so does a hub's model for a
    method that knows no hub."""
    toy = MethodRef("Toy", bench.house.settings.plugins_folder).load()
    folder = tmp_path / "roots" / "mine"
    folder.mkdir(parents=True)
    toy.save(np.array([0.25]), folder)
    refused = bench.run_task(model_name="Mine", initial_model=str(folder))
    assert (refused.status, refused.batch_id) == (TaskStatus.ERROR, None)
    assert "not below ES_ALLOWED_ROOTS" in (refused.error or "")
    hub = bench.run_task(model_name="Mine", initial_model="acme/e5", start=1000)
    assert "takes no model of a hub" in (hub.error or "")
    settings = bench.house.settings.model_copy(update={"allowed_roots": str(tmp_path / "roots")})
    house = replace(bench.house, settings=settings)
    bench.post_sessions(2000)
    task = bench.post_task(model_name="Mine", initial_model=str(folder))
    assert Worker(house, bench.worker._catalog).work_once()
    done = bench.house.store.tasks.get(task.id)
    assert done.progress is not None
    assert done.progress.baseline == pytest.approx(0.25)
    assert registered(bench, "Mine").version(1).training == Training(parent=str(folder))


def test_a_done_search_goes_on_with_a_larger_budget(bench: Bench) -> None:
    """Its finished trials count, in the same experiment; what is judged then is the best of all."""
    task = bench.run_task("Worse", trials=2)
    store = bench.house.store
    assert task.promotion is not None
    assert not task.promotion.promoted
    values = [bench.suggested(run) for run in bench.runs(task)]
    store.tasks.restart(task.id, utc_now(), more=Budget(4))
    assert bench.worker.work_once()
    again = store.tasks.get(task.id)
    assert (again.status, again.experiment_id) == (TaskStatus.DONE, task.experiment_id)
    runs = bench.runs(again)
    assert len(runs) == 4
    assert [bench.suggested(run) for run in runs[:2]] == values
    assert again.promotion is not None


@pytest.mark.parametrize("step", ["register", "with_refused", "describe_verdict"])
def test_a_crash_registers_a_refused_model_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Wherever a worker dies between the verdict and its being told, the next one ends it."""
    with monkeypatch.context() as dying:
        if step == "register":
            keep = Registry.register

            def register(*given: Any) -> int:
                number = keep(*given)
                if number == 2:
                    die()
                return number

            dying.setattr(Registry, "register", register)
        elif step == "with_refused":
            dying.setattr(RegisteredModel, "with_refused", die)
        else:
            dying.setattr(Iterations, "describe_verdict", die)
        with pytest.raises(KeyboardInterrupt):
            bench.run_task("Worse")
    work_later(bench)
    model = registered(bench, "Worse")
    assert [version.number for version in model.versions] == [1, 2]
    assert model.state_of(model.version(2)) is VersionState.REFUSED
    assert len(bench.mlflow.search_model_versions("name = 'Worse'")) == 2


def test_a_worker_removes_what_a_person_deleted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files and MLflow's version, once, also where the worker dies in between; the champion's stay,
    and so does what is on record."""
    bench.run_task(promote=Promote.NEVER)
    assert len(bench.model_files()) == 2
    bench.house.store.models.update("Toy", lambda one: one.deleted(2, "ann", "odd", utc_now()))
    with monkeypatch.context() as dying:
        dying.setattr(Registry, "delete_version", doing_first(die, Registry.delete_version))
        with pytest.raises(KeyboardInterrupt):
            bench.worker.mirror()
    late = replace(bench.house, clock=lambda: utc_now() + timedelta(days=1))
    assert Champions(late).mirror("Toy")
    model = registered(bench)
    assert (model.leaving, model.is_mirrored, model.champion) == ((), True, 1)
    assert len(bench.model_files()) == 1
    assert not bench.house.tracking.registry.has_version(TOY, 2)
    assert model.state_of(model.version(2)) is VersionState.REMOVED
    assert model.version(2).model.facts is not None
    with pytest.raises(Conflict, match="files of version 2 of 'Toy' are gone"):
        model.promoted(2, "ann", "", utc_now())


def test_models_of_one_method_live_side_by_side(bench: Bench) -> None:
    """A task that names its model makes versions of that one: the other keeps its champion, its
    iterations, and what its next search goes on from."""
    first = bench.run_task()
    other = bench.run_task(start=1000, model_name="Boots")
    assert (registered(bench, "Boots").champion, alias(bench, "Boots")) == (2, 2)
    assert registered(bench, "Boots").fine_tuning_method == "Toy"
    assert (registered(bench).champion, alias(bench)) == (2, 2)
    assert registered(bench).version(2).model == first.best_model
    assert bench.house.store.tasks.get(first.id).best_model is not None
    assert other.promotion is not None
    assert other.promotion.baseline == pytest.approx(0.2)  # the method's initial model
    tags = {one.tags["es.task_id"]: one.tags for one in bench.experiments()}
    assert tags[other.id]["es.generation"] == "1"
    assert (tags[other.id]["es.method"], tags[other.id]["es.plugin"]) == ("Boots", "Toy")
    wrong = bench.run_task("Worse", start=2000, model_name="Boots")
    assert wrong.status is TaskStatus.ERROR
    assert "the models of 'Boots' are made by 'Toy', not by 'Worse'" in (wrong.error or "")
    assert wrong.batch_id is None


def test_another_initial_model_is_started_from_until_one_is_promoted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed ES_INITIAL_MODEL is the next version and champion; after a promotion it changes
    nothing."""
    bench.run_task("Worse")
    worse = type(MethodRef("Worse", bench.house.settings.plugins_folder).load())
    monkeypatch.setattr(worse, "load_initial_model", lambda self: np.array([0.15]))
    task = bench.run_task("Worse", start=1000)
    assert task.promotion is not None
    assert task.promotion.baseline == pytest.approx(0.15)
    assert (registered(bench, "Worse").champion, alias(bench, "Worse")) == (3, 3)
    searching = type(bench.worker._catalog.methods["Worse"])
    monkeypatch.setattr(searching, "suggest", lambda *_: {"skill": 0.5})
    bench.run_task("Worse", start=2000)
    monkeypatch.setattr(worse, "load_initial_model", lambda self: np.array([0.1]))
    last = bench.run_task("Worse", start=3000)
    assert last.promotion is not None
    assert last.promotion.baseline == pytest.approx(0.5)
    assert registered(bench, "Worse").champion == 5


@pytest.mark.parametrize("place", ["search", "judge"])
def test_a_rollback_during_an_iteration_wins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """The verdict says who moved the champion, which stays; the next iteration starts from it."""
    first = bench.run_task()
    with monkeypatch.context() as racing:
        step = getattr(Attempt, place)
        racing.setattr(Attempt, place, doing_first(lambda: roll_back(bench), step))
        racing.setattr(Attempt, "draw", lambda self, trials: None)
        second = bench.run_task(start=1000)
    assert second.status is TaskStatus.DONE
    assert second.promotion is not None
    assert not second.promotion.promoted
    assert "is version 1 (rolled back by ann" in second.promotion.reason
    assert "start a new task" in second.promotion.reason
    assert registered(bench).champion == 1
    bench.worker.mirror()
    assert alias(bench) == 1
    third = bench.run_task(start=2000)
    assert third.promotion is not None
    assert third.promotion.promoted
    assert third.promotion.baseline == pytest.approx(0.2)
    assert registered(bench).version(registered(bench).champion).previous == 1
    assert first.best_model is not None


def test_a_rollback_between_verdict_and_consequence_wins(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded verdict is taken back, in the task, its history and MLflow's note."""
    bench.run_task()
    promote = doing_first(lambda: roll_back(bench), Champions.promote)
    monkeypatch.setattr(Champions, "promote", promote)
    task = bench.run_task(start=1000)
    assert task.status is TaskStatus.DONE
    assert task.promotion is not None
    assert not task.promotion.promoted
    assert "rolled back by ann" in task.promotion.reason
    assert (registered(bench).champion, alias(bench)) == (1, 1)
    kinds = [numbered.event.kind for numbered in bench.house.store.tasks.events(task.id)]
    assert kinds[-3:] == [TaskEventKind.PROMOTED, TaskEventKind.REFUSED, TaskEventKind.DONE]
    assert task.experiment_id is not None
    note = bench.mlflow.get_experiment(task.experiment_id).tags["mlflow.note.content"]
    assert note.startswith("Not promoted")


def test_a_crash_between_champion_and_alias_is_made_up_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next worker moves the alias, once the dead one's time for that is over."""
    bench.run_task()
    bench.post_sessions(1000)
    task = bench.post_task()
    with monkeypatch.context() as dying:
        dying.setattr(Registry, "set_champion", die)
        with pytest.raises(KeyboardInterrupt):
            bench.worker.work_once()
    assert (registered(bench).champion, alias(bench)) == (3, 2)
    bench.worker.mirror()
    assert alias(bench) == 2  # somebody may still be at it
    work_later(bench)
    assert bench.house.store.tasks.get(task.id).status is TaskStatus.DONE
    assert (registered(bench).champion, alias(bench)) == (3, 3)
    assert len(registered(bench).moves) == 3


def test_a_crash_does_not_undo_a_rollback(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promoted, dead before the end, rolled back: the attempt that finishes the task leaves the
    champion alone, and its verdict stays true."""
    bench.post_sessions()
    task = bench.post_task()
    with monkeypatch.context() as dying:
        dying.setattr(Iterations, "remove_older", die)
        with pytest.raises(KeyboardInterrupt):
            bench.worker.work_once()
    roll_back(bench)
    work_later(bench)
    done = bench.house.store.tasks.get(task.id)
    assert done.status is TaskStatus.DONE
    assert done.promotion is not None
    assert done.promotion.promoted
    assert (registered(bench).champion, alias(bench)) == (1, 1)


def stopped_after_promotion(bench: Bench) -> FineTuningTask:
    bench.post_sessions()
    task = bench.post_task()
    stop = doing_first(
        lambda: bench.house.store.tasks.stop(task.id, utc_now()), Attempt.score_baseline
    )
    with pytest.MonkeyPatch.context() as stopping:
        stopping.setattr(Attempt, "score_baseline", stop)
        stopping.setattr("embedding_studio.engine.lease.Lease.has_model", True, raising=False)
        bench.worker.work_once()
    return bench.house.store.tasks.get(task.id)


def test_a_stopped_tasks_model_that_was_rolled_back_is_not_promoted_again(bench: Bench) -> None:
    """A restart finds it again as the best, and says where it was."""
    task = stopped_after_promotion(bench)
    assert task.status is TaskStatus.STOPPED
    assert registered(bench).champion == 2
    roll_back(bench)
    bench.house.store.tasks.restart(task.id, utc_now())
    bench.worker.work_once()
    again = bench.house.store.tasks.get(task.id)
    assert again.promotion is not None
    assert again.promotion.reason == "it was champion as version 2 and was rolled back"
    assert registered(bench).champion == 1


@pytest.mark.quick
def test_an_alias_moved_by_hand_is_followed(bench: Bench) -> None:
    """The next iteration starts from where somebody put it in MLflow, and the history says so."""
    bench.run_task()
    bench.mlflow.set_registered_model_alias("Toy", "champion", "1")
    task = bench.run_task(start=1000)
    assert task.promotion is not None
    assert task.promotion.baseline == pytest.approx(0.2)
    kinds = [move.kind for move in registered(bench).moves]
    assert kinds == [MoveKind.INITIAL, MoveKind.PROMOTED, MoveKind.ADOPTED, MoveKind.PROMOTED]
    assert (registered(bench).champion, alias(bench)) == (3, 3)
    bench.mlflow.delete_registered_model_alias("Toy", "champion")
    bench.run_task(start=2000)
    assert alias(bench) == registered(bench).champion


def test_champions_from_before_are_brought_along(bench: Bench) -> None:
    """A worker that starts on an older installation takes them over from MLflow, in all
    projects, and asks for them once."""
    task = bench.run_task()
    store = bench.house.store
    store._documents.delete(MODELS, {})
    assert store.models.find("Toy") is None
    tracking = bench.house.tracking
    # one whose files nobody can read keeps none of the others from being taken over
    bench.mlflow.create_registered_model("Climbing")
    bench.mlflow.create_model_version("Climbing", str(bench.house.settings.data_folder / "none"))
    tracking.registry.set_champion(RegisteredName("Climbing"), 1)
    assert task.best_model is not None
    for name in (RegisteredName("Toy (acme)"), RegisteredName("Alien")):
        tracking.registry.set_champion(name, tracking.registry.register(name, task.best_model, ""))
    bench.worker.mirror()
    assert registered(bench).champion == 2
    assert registered(bench).version(2).model == task.best_model
    assert registered(bench).is_mirrored
    acme = store.in_project("acme").models.find("Toy")
    assert acme is not None
    assert acme.champion == 1
    assert len(store.models.all()) == 2


@pytest.mark.quick
def test_a_rollback_reaches_the_alias_without_an_iteration(bench: Bench) -> None:
    """A worker's errand sets it; what nobody moved is not asked about."""
    bench.run_task()
    roll_back(bench)
    bench.worker.mirror()
    assert (alias(bench), registered(bench).is_mirrored) == (1, True)


def test_who_is_late_does_not_set_the_alias(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that slept between its claim and the call leaves it to whoever came after it."""
    bench.run_task()
    house = bench.house
    roll_back(bench)
    late = Champions(house)
    other = Champions(replace(house, clock=lambda: utc_now() + timedelta(seconds=1)))

    def sleep() -> None:
        monkeypatch.undo()
        later = Champions(replace(house, clock=lambda: utc_now() + timedelta(days=1)))
        roll_back(bench, 2)
        assert later.mirror("Toy")
        monkeypatch.setattr(
            late, "_house", replace(house, clock=lambda: utc_now() + timedelta(days=2))
        )

    monkeypatch.setattr(Registry, "set_champion", doing_first(sleep, Registry.set_champion))
    assert other.mirror("Nothing")
    assert not late.mirror("Toy")
    assert (registered(bench).champion, alias(bench)) == (2, 2)


def promote_four(bench: Bench, **settings: int) -> list[FineTuningTask]:
    """Promote four times in a row: each of the versions 2 to 5 is champion once."""
    house = replace(bench.house, settings=bench.house.settings.replaced(**settings))
    bench.worker._house = house
    toy = type(bench.worker._catalog.methods["Toy"])
    tasks = []
    for number in range(4):
        with pytest.MonkeyPatch.context() as rising:
            rising.setattr(toy, "suggest", lambda *_, n=number: {"skill": 0.3 + n / 10})
            tasks.append(bench.run_task(start=1000 * number, trials=1))
    return [bench.house.store.tasks.get(task.id) for task in tasks]


@pytest.mark.parametrize(
    ("chosen", "kept"),
    [
        ({}, [3, 4]),
        ({"keep_champions": 0}, []),
        ({"keep_champions": 1, "keep_iterations": 4}, [4]),
        ({"keep_champions": 1, "keep_iterations": 4, "keep_models": 3}, [3, 4]),
    ],
)
def test_the_last_champions_stay(bench: Bench, chosen: dict[str, int], kept: list[int]) -> None:
    """Files, registered versions, experiments and tasks' links, whatever becomes of other
    iterations; what went is told, and cannot be rolled back to. The initial model always stays."""
    tasks = promote_four(bench, **chosen)
    model = registered(bench)
    assert [move.to_version for move in model.moves] == [1, 2, 3, 4, 5]
    assert {v.number for v in model.versions if v.removed_at is None} == {1, *kept, 5}
    for version in model.versions:
        if version.removed_at is None:
            copy = bench.house.settings.data_folder / f"copy-{version.number}"
            bench.house.tracking.models.download(version.model, copy)
    found = bench.mlflow.search_model_versions("name = 'Toy'")
    assert {int(version.version) for version in found} == {1, *kept, 5}
    experiments = {experiment.experiment_id for experiment in bench.experiments()}
    for number, task in enumerate(tasks, start=2):
        assert (task.best_model is not None) == (number in {*kept, 5})
        is_there = number in {*kept, 5} or chosen.get("keep_iterations", 1) > 5 - number
        assert (task.experiment_id in experiments) == is_there
        assert task.experiment_id is None or is_there
    if 3 not in kept:
        with pytest.raises(Conflict, match="files of version 3 of 'Toy' are gone"):
            roll_back(bench, 3)
    house = bench.house
    assert sweep(house.store, house.tracking, house.settings, utc_now()) == []


def test_what_is_rolled_back_to_meanwhile_is_not_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback between the look and the write of the clean-up keeps what it leads to."""
    retired = RegisteredModel.retired
    rolled_back: list[int] = []

    def roll_back_too(model: RegisteredModel, *args: Any) -> RegisteredModel:
        changed = retired(model, *args)
        if changed != model and not rolled_back:
            rolled_back.append(2)
            roll_back(bench, 2)
        return changed

    monkeypatch.setattr(RegisteredModel, "retired", roll_back_too)
    promote_four(bench)
    model = registered(bench)
    assert rolled_back == [model.champion] == [2]
    assert model.version(2).removed_at is None
    copy = bench.house.settings.data_folder / "copy"
    bench.house.tracking.models.download(model.version(2).model, copy)


def test_a_canceled_restart_keeps_what_was_champion(bench: Bench) -> None:
    """A stopped task's promoted model outlives its cancellation after a restart."""
    task = stopped_after_promotion(bench)
    roll_back(bench)
    store = bench.house.store
    store.tasks.restart(task.id, utc_now())
    cancel = doing_first(lambda: store.tasks.cancel(task.id, utc_now()), Attempt.judge)
    with pytest.MonkeyPatch.context() as canceling:
        canceling.setattr(Attempt, "judge", cancel)
        bench.worker.work_once()
    assert store.tasks.get(task.id).status is TaskStatus.CANCELED
    copy = bench.house.settings.data_folder / "copy"
    bench.house.tracking.models.download(registered(bench).version(2).model, copy)


def test_former_initial_models_are_swept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a method no longer begins with go, but for the last champions, with a dry run
    told first; the present one stays."""
    worse = type(MethodRef("Worse", bench.house.settings.plugins_folder).load())
    for number in range(4):
        start = np.array([0.15 + number / 100])
        monkeypatch.setattr(worse, "load_initial_model", lambda self, start=start: start)
        bench.run_task("Worse", start=1000 * number)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    house = bench.house
    for dry_run in (True, False):
        found = sweep(house.store, house.tracking, house.settings, utc_now(), dry_run)
        assert "repeats the initial model of Worse" in found[0]
    assert "version 1 of Worse has no files" in found
    left = registered(bench, "Worse")
    assert {v.number for v in left.versions if v.removed_at is None} == {3, 5, 7, 8}
    assert sweep(house.store, house.tracking, house.settings, utc_now()) == []


def test_a_rollback_is_what_the_next_iteration_starts_from(bench: Bench) -> None:
    """From the first task to the way back, over HTTP: the alias follows, the next task starts from
    the version that was gone back to, and its model's verdict is against that one."""
    house = bench.house
    with TestClient(
        create_app(house.store, house.settings), base_url="http://localhost/api/v1"
    ) as api:
        first = bench.run_task()
        assert api.get("/models/Toy").json()["champion"] == 2
        answer = api.post("/models/Toy/rollback", json={}).json()
        assert (answer["champion"], answer["is_mirrored"]) == (1, False)
        bench.worker.mirror()
        assert api.get("/models/Toy").json()["is_mirrored"]
        assert house.tracking.registry.champion_version(TOY) == 1
        second = bench.run_task(start=1000)
        assert second.promotion is not None
        assert first.promotion is not None
        assert second.promotion.baseline == first.promotion.baseline
        answer = api.get("/models/Toy").json()
        assert (answer["champion"], answer["previous_version"]) == (3, 1)
        assert answer["versions"][0]["task_id"] == second.id
        gone_back = api.post("/models/Toy/rollback", json={"version": 2})
        assert gone_back.json()["champion"] == 2


def test_a_link_goes_with_its_iteration(bench: Bench) -> None:
    """A done task whose experiment was removed has no link any more, and its history says why."""
    house = bench.house
    with TestClient(
        create_app(house.store, house.settings), base_url="http://localhost/api/v1"
    ) as api:
        first = bench.run_task("Worse")
        url = f"/fine-tuning/task/{first.id}"
        assert api.get(url).json()["mlflow_url"]
        second = bench.run_task("Worse", start=1000)
        task = api.get(url).json()
        assert (task["status"], task["mlflow_url"]) == (TaskStatus.DONE, None)
        assert "best_model_url" not in task
        last = api.get(f"{url}/events").json()["events"][-1]
        assert last["kind"] == "iteration_removed"
        assert second.id in last["detail"]


def test_a_registry_that_somebody_emptied_is_filled_again(bench: Bench) -> None:
    """The champion is registered anew, under the number that MLflow gives it, with an event; what
    it took the place of can be rolled back to."""
    bench.run_task()
    bench.mlflow.delete_registered_model("Toy")
    task = bench.run_task(start=1000)
    assert task.status is TaskStatus.DONE
    model = registered(bench)
    assert model.is_mirrored
    run_id = model.version(model.champion).model.run_id
    assert bench.mlflow.get_model_version_by_alias("Toy", "champion").run_id == run_id
    assert MoveKind.ADOPTED in [move.kind for move in model.moves]
    roll_back(bench)
    bench.worker.mirror()
    bench.worker.mirror()
    champion = registered(bench)
    shown = bench.mlflow.get_model_version_by_alias("Toy", "champion")
    assert shown.run_id == champion.version(champion.champion).model.run_id


def test_a_restart_does_not_delete_what_was_champion(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopped task's model was promoted and rolled back; a restart that finds a better one in the
    same experiment leaves its files."""
    toy = type(MethodRef("Toy", bench.house.settings.plugins_folder).load())
    monkeypatch.setattr(toy, "train", lambda self, *_: np.array([0.4]))
    bench.post_sessions()
    store = bench.house.store
    task = bench.post_task(trials=4)
    with monkeypatch.context() as stopping:
        after_trials(stopping, bench, 2, lambda: store.tasks.stop(task.id, utc_now()))
        bench.worker.work_once()
    assert (store.tasks.get(task.id).status, registered(bench).champion) == (TaskStatus.STOPPED, 2)
    roll_back(bench)
    monkeypatch.setattr(toy, "train", lambda self, *_: np.array([0.8]))
    store.tasks.restart(task.id, utc_now())
    bench.worker.work_once()
    assert len(bench.experiments()) == 1
    assert registered(bench).champion == 3
    for version in registered(bench).versions:
        copy = bench.house.settings.data_folder / f"copy-{version.number}"
        bench.house.tracking.models.download(version.model, copy)


def test_one_alias_that_cannot_be_set_holds_up_no_other(bench: Bench) -> None:
    """A version that was deleted in MLflow, and whose model was never ours, stays behind alone."""
    bench.run_task("Worse")
    bench.run_task(start=1000)
    bench.mlflow.delete_model_version("Worse", "1")
    lost = registered(bench, "Worse")
    gone = replace(
        lost.versions[0], model=replace(lost.versions[0].model, run_id="models:/Worse/1")
    )
    bench.house.store.models.change(replace(lost, versions=(gone,), mirrored=None))
    roll_back(bench)
    bench.worker.mirror()
    assert (alias(bench), registered(bench, "Worse").is_mirrored) == (1, False)
