"""The contract of every store: registered models and their champions."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest

from embedding_studio.errors import Conflict, NotFound, StoreUnavailable
from embedding_studio.models import ChampionMove, ModelVersion, MoveKind, RegisteredModel, Wish
from embedding_studio.store import Store
from embedding_studio.store.models import MODELS, document_of
from embedding_studio.tasks import ModelFile, Promotion, StoredModel
from tests.contracts.store_backends import Backend
from tests.contracts.store_processes import NOW

VERDICT = Promotion(True, "better", "mrr", 0.5, 0.75, 0.25, (0.125, 0.5), 40)


def version(number: int) -> ModelVersion:
    model = StoredModel(f"run-{number}", "/artifacts", (ModelFile("a.json", 3, "ab" * 32),))
    return ModelVersion(number, model, NOW, f"task-{number}", VERDICT)


def move(from_version: int | None, to_version: int, by: str = "ann") -> ChampionMove:
    return ChampionMove(MoveKind.ROLLED_BACK, NOW, from_version, to_version, by, "why ☕")


def fill(store: Store, count: int = 2) -> RegisteredModel:
    """Register so many versions of the method `m`, each champion after the one before."""
    for number in range(1, count + 1):
        moved = move(number - 1 or None, number)
        new = version(number)
        store.models.update("m", lambda model, moved=moved, new=new: model.moved(moved, new))  # type: ignore[misc]
    found = store.models.find("m")
    assert found is not None
    return found


def test_a_model_comes_back_as_it_was_kept(store: Store) -> None:
    """Every field is read back equal, under its project and method alone, its revision counted."""
    assert store.models.find("m") is None
    wish = Wish("task-3", version(3).model, "ann", "why ☕", NOW, VERDICT)
    kept = replace(fill(store), wanted=wish, mirrored=1, mirroring=2, mirroring_until=NOW)
    changed = store.models.change(kept)
    assert changed == replace(kept, revision=3)
    assert store.models.find("m") == changed
    assert store.models.find("n") is None
    other = store.in_project("other")
    assert other.models.find("m") is None
    assert fill(other).project == "other"
    assert store.models.find("m") == changed


def test_models_of_one_method_are_kept_by_their_names(store: Store) -> None:
    """Each has versions of its own, and says which method makes them."""
    fill(store)
    new = RegisteredModel("default", "n", "m", champion=1)
    store.models.update("n", lambda model: replace(model, champion=1), "m")
    found = store.models.find("n")
    assert found == replace(new, revision=1)
    assert [model.name for model in store.models.all()] == ["m", "n"]
    with pytest.raises(Conflict, match="the models of 'n' are made by 'm', not by 'n'"):
        found.ensure_made_by("n")


def test_a_shared_model_is_read_and_never_changed_by_another_project(store: Store) -> None:
    """It is `owner:name` there, listed apart from what is its own; a third project has nothing of
    it, and neither has the one that it is taken back from."""
    fill(store)
    assert store.models.readable("m") == store.models.find("m")
    acme, third = (store.in_project(project).models for project in ("acme", "third"))
    assert acme.readable("default:m") is None
    shared = store.models.update("m", lambda model: model.shared("acme", "ann", NOW))
    assert store.models.find("m") == shared
    assert shared.shared_with == ("acme",)
    seen = acme.readable("default:m")
    assert seen == shared.seen_in("acme")
    assert seen is not None
    assert (seen.name_in("acme"), seen.champion) == ("default:m", 2)
    assert (acme.shared(), acme.of_project(), store.models.shared()) == ([seen], [], [])
    for reference, number in (("default:m", 2), ("default:m@champion", 2), ("default:m/1", 1)):
        found = acme.referred(reference)
        assert found is not None
        assert found.number == number
    assert acme.find("default:m") is acme.find("m") is acme.readable("m") is None
    assert third.shared() == []
    assert third.readable("default:m") is None
    with pytest.raises(NotFound, match="no model 'default:m' is shared with project 'third'"):
        third.referred("default:m/1")
    store.models.update("m", lambda model: model.taken_back("acme", "ann", NOW))
    assert acme.readable("default:m") is None
    assert acme.shared() == []
    with pytest.raises(NotFound, match="no model 'default:m' is shared with project 'acme'"):
        acme.referred("default:m")


def test_a_model_from_before_names_is_its_methods(store: Store) -> None:
    """What was kept by project and method is found by the method's name, and changed in place."""
    fill(store)
    document = document_of(fill(store.in_project("other")))
    document |= {"id": "acme/m", "project": "acme", "method": "m"}
    del document["name"], document["fine_tuning_method"]
    assert store._documents.insert_one(MODELS, document)
    acme = store.in_project("acme").models
    found = acme.find("m")
    assert found is not None
    assert (found.name, found.fine_tuning_method, found.champion) == ("m", "m", 2)
    acme.update("m", lambda model: model.moved(move(2, 1)))
    changed = acme.find("m")
    assert changed is not None
    assert (changed.champion, changed.name) == (1, "m")
    assert len(store.models.all()) == 3


def test_a_change_returns_what_is_found_afterwards(store: Store) -> None:
    """Times are cut to the millisecond in both: a claim is known again by the time it ends at."""
    until = NOW + timedelta(microseconds=1_234_567)
    first = store.models.change(RegisteredModel("default", "m", "m", mirroring_until=until))
    assert first is not None
    assert first == store.models.find("m")
    later = store.models.change(replace(first, mirroring_until=until + timedelta(seconds=1)))
    assert later is not None
    assert later == store.models.find("m")


def test_a_change_of_what_was_changed_meanwhile_is_refused(store: Store) -> None:
    """Of two changes of one revision the first is kept, be it the model's first or a later one."""
    new = RegisteredModel("default", "m", "m")
    assert store.models.change(replace(new, champion=1)) is not None
    assert store.models.change(replace(new, champion=2)) is None
    seen = store.models.find("m")
    assert seen is not None
    assert store.models.change(replace(seen, champion=3)) is not None
    assert store.models.change(replace(seen, champion=4)) is None
    after = store.models.find("m")
    assert after is not None
    assert (after.champion, after.revision) == (3, 2)


def test_a_rule_is_asked_again_when_somebody_was_quicker(backend: Backend, store: Store) -> None:
    """A rollback between another one's look and its write makes that one judge anew."""
    fill(store, 3)

    def be_quicker() -> None:
        store.models.update("m", lambda model: model.moved(move(3, 1, "bob")))

    # the first call is the look, the second the write
    with backend.interrupted(2, be_quicker) as interruption:
        with pytest.raises(Conflict, match=r"is version 1 \(rolled back by bob .* not version 3"):
            store.models.update("m", lambda model: model.moved(move(3, 2)))
        assert interruption.happened
    after = store.models.find("m")
    assert after is not None
    assert (after.champion, len(after.moves)) == (1, 4)


def test_of_moves_at_once_one_is_made(backend: Backend) -> None:
    """Eight threads move the champion from the same version: one of them does, with one event."""
    with closing(backend.open()) as store:
        fill(store, 9)

        def roll_back(to_version: int) -> bool:
            try:
                store.models.update("m", lambda model: model.moved(move(9, to_version)))
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(roll_back, range(1, 9))).count(True) == 1
        after = store.models.find("m")
        assert after is not None
        assert len(after.moves) == 10
        assert after.moves[-1].to_version == after.champion


def test_a_change_whose_answer_was_lost_is_repeated(backend: Backend, store: Store) -> None:
    """The call fails although the change was made; repeated, it changes nothing more."""
    fill(store, 2)
    for moment in ("before", "after"):
        with backend.failing(1, moment), pytest.raises(StoreUnavailable):
            store.models.update("m", lambda model: model.moved(move(2, 1)))
    again = store.models.update("m", lambda model: model.moved(move(2, 1)))
    assert (again.champion, len(again.moves)) == (1, 3)


def test_models_of_all_projects_are_found_by_what_is_mirrored(store: Store) -> None:
    """Who tidies up sees every project; asked for those whose alias is behind, only these."""
    fill(store)
    fill(store.in_project("other"))
    assert [model.project for model in store.models.all()] == ["default", "other"]
    assert len(store.in_project("other").models.all(are_mirrored=False)) == 2
    until = NOW + timedelta(seconds=60)

    def claim(model: RegisteredModel) -> RegisteredModel:
        return model.mirroring_to(until, NOW) or model

    store.models.update("m", claim)
    assert len(store.models.all(are_mirrored=False)) == 2  # somebody is at it
    store.models.update("m", lambda model: replace(model, mirrored=2, mirroring=None))
    assert [model.project for model in store.models.all(are_mirrored=False)] == ["other"]
    assert [model.project for model in store.models.all(are_mirrored=True)] == ["default"]
    wish = Wish("task-3", version(3).model, "ann", "", NOW)
    store.models.update("m", lambda model: model.wished(wish))  # so is a wish
    assert len(store.models.all(are_mirrored=False)) == 2
