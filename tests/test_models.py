"""Registered models: where a rollback leads, which former champions stay, what a person wishes for,
and what is refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from embedding_studio.errors import Conflict, NotFound
from embedding_studio.models import (
    MOST_REMEMBERED,
    MOST_SHARED,
    ChampionMove,
    ModelVersion,
    MoveKind,
    RegisteredModel,
    Wish,
)
from embedding_studio.tasks import Delivery, ModelFacts, ModelFile, StoredModel

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def to(model: RegisteredModel, number: int) -> RegisteredModel:
    """Make a version champion, registered if it is new."""
    move = ChampionMove(MoveKind.PROMOTED, NOW, model.champion, number, "a test", "because")
    known = number in [version.number for version in model.versions]
    files = (ModelFile("a.json", 1, "00"),)
    new = ModelVersion(number, StoredModel(f"run-{number}", "/a", files), NOW)
    return model.moved(move, None if known else new)


def after(*numbers: int) -> RegisteredModel:
    model = RegisteredModel("default", "m", "m")
    for number in numbers:
        model = to(model, number)
    return model


def test_a_rollback_leads_to_whose_place_was_taken() -> None:
    """Twice in a row it goes back twice, not to and fro; what was rolled back is not led to from
    the version that came after it."""
    model = after(1, 2, 3)
    model = to(model, model.previous_version())
    assert model.champion == 2
    model = to(model, model.previous_version())
    assert model.champion == 1
    with pytest.raises(Conflict, match="version 1 of 'm' took no other one's place"):
        model.previous_version()
    assert to(model, 4).previous_version() == 1


@pytest.mark.parametrize(
    ("numbers", "formers"),
    [
        ((1,), set()),
        ((1, 2, 3), {1, 2}),
        ((1, 2, 3, 4), {2, 3}),
        ((1, 2, 3, 2), {1, 3}),
        ((1, 2, 3, 2, 3, 2), {1, 3}),
        ((1, 2, 3, 4, 2, 5), {2, 4}),
    ],
)
def test_former_champions_are_the_latest_before_the_present_one(
    numbers: tuple[int, ...], formers: set[int]
) -> None:
    """By when they were champion last, whatever their numbers; moving to and fro adds none."""
    assert after(*numbers).former_champions(2) == formers
    assert after(*numbers).former_champions(0) == set()


def test_a_champion_and_the_last_before_it_are_not_retired() -> None:
    """What is retired is marked, without its files, and cannot become champion again."""
    model = after(1, 2, 3, 4)
    for needed in ("run-4", "run-3", "run-2"):
        with pytest.raises(Conflict, match="keeps its versions"):
            model.retired([needed, "another"], 2, NOW)
    assert model.retired(["another"], 2, NOW) == model
    retired = model.retired(["run-1"], 2, NOW)
    assert retired.version(1).removed_at == NOW
    assert retired.version(1).model.files == ()
    assert retired.kept_run_ids == {"run-2", "run-3", "run-4"}
    assert retired.retired(["run-1"], 2, NOW + timedelta(days=1)) == retired
    with pytest.raises(Conflict, match=r"files of version 1 of 'm' are gone .* 2, 3, 4 are kept"):
        to(retired, 1)
    assert model.retired(["run-3"], 0, NOW).kept_run_ids == {"run-1", "run-2", "run-4"}


def test_an_unknown_version_is_not_found() -> None:
    """The error names those there are."""
    with pytest.raises(NotFound, match=r"'m \(acme\)' has no version 7: there are 1, 2"):
        replace(after(1, 2), project="acme").version(7)


def test_the_record_does_not_grow_for_ever() -> None:
    """Of removed versions and of moves the latest hundred stay."""
    model = after(1)
    for number in range(2, 2 * MOST_REMEMBERED):
        model = to(model, number).retired([f"run-{number - 1}"], 0, NOW)
    assert len(model.moves) == MOST_REMEMBERED
    assert len(model.versions) == MOST_REMEMBERED + 1
    assert model.versions[-1].number == model.champion


def test_one_worker_at_a_time_sets_the_alias() -> None:
    """A claim holds until its time is over, and there is none when the alias is right."""
    model = after(1)
    until = NOW + timedelta(seconds=60)
    claimed = model.mirroring_to(until, NOW)
    assert claimed is not None
    assert (claimed.mirroring, claimed.mirroring_until) == (1, until)
    assert claimed.mirroring_to(until, NOW) is None
    assert claimed.mirroring_to(until + timedelta(1), until) is not None
    done = replace(claimed, mirrored=1, mirroring=None, mirroring_until=None)
    assert done.mirroring_to(until, NOW) is None


def test_a_version_that_is_numbered_anew_leaves_no_ghost() -> None:
    """MLflow's registry lost the champion: what led to its old number leads to the new one, and the
    champions before it are counted without it."""
    model = to(after(1, 2, 3), 2)
    lost = model.version(2)
    move = ChampionMove(MoveKind.ADOPTED, NOW, 2, 5, "a test", "registered anew")
    model = model.moved(move, replace(lost, number=5))
    assert model.former_champions(2) == {1, 3}
    assert to(model, 3).previous_version() == 5


def wish_for(number: int, by: str = "ann") -> Wish:
    files = (ModelFile("a.json", 1, "00"),)
    model = StoredModel(f"run-{number}", "/a", files)
    return Wish(f"task-{number}", model, by, "reads better", NOW)


def kinds(model: RegisteredModel) -> list[MoveKind]:
    return [move.kind for move in model.moves]


def test_a_wish_waits_for_a_number_and_is_granted_once() -> None:
    """Its model takes the place of whoever is champion by then; wished for again, or granted again,
    nothing changes."""
    wish = wish_for(7)
    model = after(1, 2).wished(wish)
    assert (model.champion, model.wanted, model.is_mirrored) == (2, wish, False)
    assert model.wished(wish_for(7, "bob")) == model
    granted = to(model, 3).granted(wish, 4, NOW)
    assert (granted.champion, granted.wanted, granted.previous) == (4, None, 3)
    assert granted.version(4).task_id == "task-7"
    move = granted.moves[-1]
    assert (move.kind, move.by, move.why) == (MoveKind.PROMOTED_BY_HAND, "ann", "reads better")
    assert granted.granted(wish, 4, NOW) == granted
    assert granted.wished(wish) == granted


def test_a_wish_for_a_former_champion_is_carried_out_at_once() -> None:
    """It has its number; once its files are gone, it is refused and what is there stays."""
    model = to(after(1, 2), 1)
    again = model.wished(wish_for(2))
    assert (again.champion, again.wanted) == (2, None)
    assert again.moves[-1].kind is MoveKind.PROMOTED_BY_HAND
    with pytest.raises(Conflict, match="files of version 2 of 'm' are gone"):
        model.retired(["run-2"], 0, NOW).wished(wish_for(2))


def test_of_two_wishes_the_last_counts() -> None:
    """The history says whose wish ended for what; so it does if what is wished for is champion."""
    model = after(1).wished(wish_for(7)).wished(wish_for(8, "bob"))
    assert model.wanted == wish_for(8, "bob")
    end = model.moves[-1]
    assert (end.kind, end.from_version, end.to_version) == (MoveKind.WISH_ENDED, 1, 1)
    assert end.by == "bob"
    assert end.why == (
        "the model of task task-7 does not become champion: that of task task-8 shall be instead"
    )
    assert model.granted(wish_for(7), 2, NOW) == model
    kept = model.wished(wish_for(1))
    assert (kept.champion, kept.wanted) == (1, None)


def test_a_rollback_ends_a_wish() -> None:
    """Without a number it leads to the champion as it is, so that it ends where it would lead once
    the wish were carried out; with one, it moves the champion too."""
    model = after(1, 2).wished(wish_for(7))
    ended = model.rolled_back(None, "bob", "", NOW)
    assert (ended.champion, ended.wanted) == (2, None)
    assert ended.moves[-1].why.endswith("does not become champion: it was rolled back")
    granted = model.granted(wish_for(7), 3, NOW)
    assert granted.rolled_back(None, "bob", "", NOW).champion == 2
    moved = model.rolled_back(1, "bob", "worse", NOW)
    assert (moved.champion, moved.wanted) == (1, None)
    assert kinds(moved)[-2:] == [MoveKind.WISH_ENDED, MoveKind.ROLLED_BACK]
    with pytest.raises(NotFound):
        model.rolled_back(9, "bob", "", NOW)


def test_a_wish_that_ended_moved_nothing() -> None:
    """Who is champion since when is told as before, and a method that never promoted anything may
    still begin with another initial model."""
    model = replace(after(1), moves=(replace(after(1).moves[0], kind=MoveKind.INITIAL),))
    ended = model.wished(wish_for(7)).without_wish("a worker", "its files are gone", NOW)
    assert ended.is_initial
    assert ended.say_champion() == model.say_champion()
    assert to(ended, 2).former_champions(2) == {1}


def test_what_is_wished_for_is_not_retired() -> None:
    """Nor is its run among those whose models may go, until the wish ends."""
    model = after(1).wished(wish_for(7))
    assert model.kept_run_ids == {"run-1", "run-7"}
    with pytest.raises(Conflict, match="the model of task task-7 shall be champion of 'm'"):
        model.retired(["run-7", "another"], 2, NOW)
    ended = model.without_wish("bob", "no", NOW)
    assert ended.retired(["run-7"], 2, NOW) == ended


def test_a_model_is_shared_with_so_many_projects() -> None:
    """One more is refused until it is taken back from one; the history has each, and who did it."""
    model = after(1)
    for number in range(MOST_SHARED):
        model = model.shared(f"p-{number}", "ann", NOW)
    assert model.shared("p-7", "bob", NOW) is model
    with pytest.raises(Conflict, match="take it back from one first"):
        model.shared("one-more", "ann", NOW)
    model = model.taken_back("p-7", "bob", NOW)
    assert (model.moves[-1].kind, model.moves[-1].by) == (MoveKind.TAKEN_BACK, "bob")
    assert model.taken_back("p-7", "bob", NOW) is model
    assert "one-more" in model.shared("one-more", "ann", NOW).shared_with
    assert model.champion == 1


def test_what_else_happens_pushes_no_champion_out() -> None:
    """However often a model is shared, what retention and rollbacks go by stays on record."""
    model = after(1, 2, 3)
    for number in range(MOST_SHARED):
        model = model.shared(f"p-{number}", "ann", NOW).taken_back(f"p-{number}", "ann", NOW)
    assert not model.is_initial
    assert model.former_champions(2) == {1, 2}
    assert "is version 3" in model.say_champion()
    assert len(model.moves) == 3 + MOST_REMEMBERED
    with pytest.raises(Conflict, match="keeps its versions"):
        model.retired(["run-2"], 2, NOW)


def heard(model: RegisteredModel, at: datetime | None = NOW) -> RegisteredModel:
    """Tell the address of the champion; at: when it answered, None: it did not."""
    return model.told(Delivery("msg", 1, delivered_at=at), None)


def of_items(model: RegisteredModel, **digests: str | None) -> RegisteredModel:
    """Give versions, as v1 and so on, the hash of what gives items their vectors."""
    versions = [
        replace(v, model=replace(v.model, facts=ModelFacts("ab", 1, items_sha256=digest)))
        for v, digest in zip(model.versions, digests.values(), strict=True)
    ]
    return replace(model, versions=tuple(versions))


def test_an_index_is_to_be_made_anew_unless_the_one_that_was_heard_of_will_do() -> None:
    """What counts is what the address heard of last, not what was champion before: a change that
    it never heard of is not forgotten, and one that it may have heard of is none that it knows."""
    model = of_items(after(1, 2, 3), v1="a", v2="b", v3="b").telling("https://a.example/", NOW)
    assert "not known" in (model.why_reindex() or "")  # nothing was heard yet
    first = heard(to(model, 1))
    assert "than by version 1" in (to(to(first, 2), 3).why_reindex() or "")  # 2 was never told
    second = heard(to(first, 2))
    assert to(second, 3).why_reindex() is None
    assert heard(to(second, 3), None).why_reindex() is None  # repeated in the same words
    assert "not known" in (to(heard(to(second, 1), None), 2).why_reindex() or "")
    moved = heard(to(second, 3)).telling("https://b.example/", NOW)
    assert "not known" in (moved.why_reindex() or "")
    unknown = of_items(second, v1="a", v2=None, v3=None)
    assert "not known" in (to(unknown, 3).why_reindex() or "")
