"""Registered models: where a rollback leads, which former champions stay, and what is refused."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from embedding_studio.errors import Conflict, NotFound
from embedding_studio.models import (
    MOST_REMEMBERED,
    ChampionMove,
    ModelVersion,
    MoveKind,
    RegisteredModel,
)
from embedding_studio.tasks import ModelFile, StoredModel

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def to(model: RegisteredModel, number: int) -> RegisteredModel:
    """Make a version champion, registered if it is new."""
    move = ChampionMove(MoveKind.PROMOTED, NOW, model.champion, number, "a test", "because")
    known = number in [version.number for version in model.versions]
    files = (ModelFile("a.json", 1, "00"),)
    new = ModelVersion(number, StoredModel(f"run-{number}", "/a", files), NOW)
    return model.moved(move, None if known else new)


def after(*numbers: int) -> RegisteredModel:
    model = RegisteredModel("default", "m")
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
