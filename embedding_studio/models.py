"""A registered model: its versions, and which of them is the champion.

Everything here is a value; the store changes one registered model in one compare-and-set, so what
a rule below decides is still true when it is written."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Self

from embedding_studio.clock import is_held
from embedding_studio.errors import Conflict, InvalidInput, NotFound
from embedding_studio.projects import RegisteredName, check_project, name_in, registered_name
from embedding_studio.tasks import Delivery, ModelFacts, Promotion, StoredModel

MOST_REMEMBERED = 100
"""How many removed versions, moves of the champion, and other events stay on record."""
MOST_SHARED = 100
"""How many projects one may be shared with."""


class VersionState(StrEnum):
    """What a version is by now."""

    CHAMPION = "champion"
    #: it was champion
    FORMER = "former"
    #: its verdict was against it
    REFUSED = "refused"
    #: a person is to decide
    CANDIDATE = "candidate"
    #: its files are gone
    REMOVED = "removed"


class MoveKind(StrEnum):
    """Why another version became champion."""

    INITIAL = "initial"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ADOPTED = "adopted"
    PROMOTED_BY_HAND = "promoted_by_hand"
    #: none did: a person's wish came to nothing
    WISH_ENDED = "wish_ended"
    #: none did: a person deleted another version
    DELETED = "deleted"
    #: none did: another project may use it from now on
    SHARED = "shared"
    #: none did: another project may no longer
    TAKEN_BACK = "taken_back"


STAYING = frozenset({MoveKind.WISH_ENDED, MoveKind.DELETED, MoveKind.SHARED, MoveKind.TAKEN_BACK})
"""What is told of a model while its champion stays."""


@dataclass(frozen=True, slots=True)
class Training:
    """What a version was made of, as its iteration knew it."""

    #: what it started from: a version, "name/3", or where an initial model is from
    parent: str | None = None
    batch_ids: tuple[str, ...] = ()
    labels_id: str | None = None
    judge_labels_id: str | None = None
    method_version: str | None = None
    #: the hyperparameter set, with its seed
    parameters: Mapping[str, int | float | bool | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model that is, or was, in MLflow's registry under a number."""

    number: int
    model: StoredModel
    created_at: datetime
    #: whose iteration made it; None for an initial model
    task_id: str | None = None
    #: the verdict of that iteration
    promotion: Promotion | None = None
    #: the champion whose place it took
    previous: int | None = None
    #: when its files were removed, by retention or by a person
    removed_at: datetime | None = None
    #: False of one that was judged and never promoted
    was_champion: bool = True
    #: whether a person is to decide on it, for the task's `promote` is never
    awaits_decision: bool = False
    #: None of a method's own initial model, and of one from before this was kept
    training: Training | None = None


@dataclass(frozen=True, slots=True)
class ChampionMove:
    """One change of the champion."""

    kind: MoveKind
    at: datetime
    from_version: int | None
    to_version: int
    #: who moved it, for people
    by: str
    #: one sentence
    why: str


@dataclass(frozen=True, slots=True)
class Wish:
    """A person's word that a task's model shall be champion.

    It waits for a worker where MLflow's registry has yet to give the model a number."""

    task_id: str
    model: StoredModel
    #: whose wish it is, for people
    by: str
    #: the reason given
    why: str
    at: datetime
    #: the verdict of that task; None if it ended without one
    promotion: Promotion | None = None


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """The versions of one name, which of them is champion, and how it came to be.

    name: unique in its project; that of its method, unless a task names its models otherwise.
    fine_tuning_method: by which all its versions are made.
    versions: oldest first; champion: the number of one of them; moves: oldest first.
    wanted: the wish that a worker is yet to carry out; of several, the last.
    mirrored: the version that MLflow's alias shows, as far as we set it. mirroring: what a worker
    is setting it to, until mirroring_until at the latest. leaving: the runs of versions that a
    person deleted, whose files a worker is yet to remove. webhook_url: where a worker tells which
    version is champion, after each change; delivery: how far the last one was told, and
    delivery_due_at when to try (again); heard: the version that the address heard of last, None
    where that is not known. shared_with: the other projects that may use it. revision:
    0 before it is first kept, then one higher with every change."""

    project: str
    name: str
    fine_tuning_method: str
    versions: tuple[ModelVersion, ...] = ()
    champion: int | None = None
    moves: tuple[ChampionMove, ...] = ()
    wanted: Wish | None = None
    mirrored: int | None = None
    mirroring: int | None = None
    mirroring_until: datetime | None = None
    leaving: tuple[str, ...] = ()
    webhook_url: str | None = None
    delivery: Delivery | None = None
    delivery_due_at: datetime | None = None
    heard: int | None = None
    shared_with: tuple[str, ...] = ()
    revision: int = 0

    @property
    def registered_name(self) -> RegisteredName:
        """Its name in MLflow's registry."""
        return registered_name(self.project, self.name)

    def name_in(self, project: str) -> str:
        """How a project names it."""
        return name_in(project, self.project, self.name)

    def seen_in(self, project: str) -> Self | None:
        """Return it as a project sees it; None in one that it is not shared with. Another one than
        its own sees how good each version is and what it is made of, and nothing of the queries,
        sessions, labels, tasks and people behind it."""
        if project == self.project:
            return self
        if project not in self.shared_with:
            return None
        owner = f"project {self.project}"
        return type(self)(  # named one by one: what is added to it is not shared by itself
            self.project,
            self.name,
            self.fine_tuning_method,
            tuple(map(_without_its_data, self.versions)),
            self.champion,
            tuple(replace(m, by=owner, why="") for m in self.moves if m.kind not in STAYING),
            mirrored=self.mirrored,
            mirroring=self.mirroring,
            revision=self.revision,
        )

    def ensure_made_by(self, method: str) -> None:
        """Raise Conflict if its versions are another method's."""
        if self.fine_tuning_method != method:
            raise Conflict(
                f"the models of {self.name!r} are made by {self.fine_tuning_method!r}, not by "
                f"{method!r}: give the task another model_name"
            )

    @property
    def is_mirrored(self) -> bool:
        """Whether no worker has anything to do for it in MLflow."""
        is_shown = self.mirrored == self.champion and self.mirroring is None
        return is_shown and self.wanted is None and not self.leaving

    def version(self, number: int | None) -> ModelVersion:
        """Return one version. Raises NotFound."""
        for version in self.versions:
            if version.number == number:
                return version
        known = ", ".join(str(version.number) for version in self.versions) or "none"
        raise NotFound(f"{self.registered_name!r} has no version {number}: there are {known}")

    def named(self, version: str) -> ModelVersion:
        """Return the version of a number or an alias. Raises NotFound, InvalidInput."""
        if version == CHAMPION:
            return self.version(self.champion)
        if not (version.isascii() and version.isdigit() and len(version) < 10):
            raise InvalidInput(f"{version!r} is no version: name a number, or {CHAMPION!r}")
        return self.version(int(version))

    def version_of(self, run_id: str) -> ModelVersion | None:
        """Return the version whose model is that run's."""
        return next((v for v in self.versions if v.model.run_id == run_id), None)

    def state_of(self, version: ModelVersion) -> VersionState:
        """Return what one of its versions is by now."""
        if version.number == self.champion:
            return VersionState.CHAMPION
        if version.removed_at is not None:
            return VersionState.REMOVED
        if version.was_champion:
            return VersionState.FORMER
        return VersionState.CANDIDATE if version.awaits_decision else VersionState.REFUSED

    def was_champion(self, run_id: str) -> bool:
        """Return whether that run's model is, or ever was, champion."""
        version = self.version_of(run_id)
        return version is not None and version.was_champion

    def is_champion(self, run_id: str) -> bool:
        """Return whether the champion is that run's model."""
        version = self.version_of(run_id)
        return version is not None and version.number == self.champion

    @property
    def kept_run_ids(self) -> frozenset[str]:
        """The runs whose models are those of versions that were not removed, or wished for."""
        kept = {v.model.run_id for v in self.versions if v.removed_at is None}
        return frozenset(kept | ({self.wanted.model.run_id} if self.wanted else set()))

    @property
    def kept_numbers(self) -> frozenset[int]:
        """The versions that were not removed."""
        return frozenset(v.number for v in self.versions if v.removed_at is None)

    @property
    def is_initial(self) -> bool:
        """Whether nothing but initial models was champion so far."""
        return all(move.kind in {MoveKind.INITIAL, *STAYING} for move in self.moves)

    @property
    def is_named_initial(self) -> bool:
        """Whether its champion is an initial model that a task named: the method's own takes its
        place no more."""
        if not self.is_initial or self.champion is None:
            return False
        return self.version(self.champion).training is not None

    def former_initial_runs(self) -> list[str]:
        """Return the runs of the initial models but the last one, which is always kept."""
        initial = [move.to_version for move in self.moves if move.kind is MoveKind.INITIAL]
        return [
            version.model.run_id
            for version in self.versions
            if version.number in initial[:-1] and version.number != initial[-1]
        ]

    # -- changes -----------------------------------------------------------------------------------

    def moved(self, move: ChampionMove, new: ModelVersion | None = None) -> Self:
        """Return it with another champion; new: a version that is not on record yet.

        A version that is champion already changes nothing. Raises Conflict when the champion is not
        the one that the move is from, or when the files of the other one are gone; NotFound."""
        if self.champion == move.to_version:
            return self
        self.ensure_champion(move.from_version)
        versions = self.versions
        if new is not None:
            # the registry numbers anew what it had lost
            known = self.version_of(new.model.run_id)
            previous = known.previous if known and known.was_champion else self.champion
            others = [
                replace(v, previous=new.number) if known and v.previous == known.number else v
                for v in versions
                if v.number != new.number and v != known
            ]
            versions = (*others, replace(new, previous=previous))
        elif not self.version(move.to_version).was_champion:
            versions = tuple(
                replace(v, previous=self.champion, was_champion=True)
                if v.number == move.to_version
                else v
                for v in versions
            )
        changed = replace(self, versions=versions)
        if changed.version(move.to_version).removed_at is not None:
            kept = ", ".join(str(v.number) for v in versions if v.removed_at is None)
            raise Conflict(
                f"the files of version {move.to_version} of {self.registered_name!r} are gone "
                f"(ES_KEEP_CHAMPIONS, or a person deleted it); those of {kept} are kept"
            )
        moves = _remembered((*self.moves, move))
        return replace(changed, champion=move.to_version, moves=moves)._to_be_told(move.at)

    def _to_be_told(self, now: datetime) -> Self:
        """Return it with its champion due to be told, if it is to be told to anybody."""
        due_at = None if self.webhook_url is None else now
        # what was told without an answer may have been heard, or not
        is_known = self.delivery is None or self.delivery.delivered_at is not None
        heard = self.heard if is_known else None
        return replace(self, heard=heard, delivery=None, delivery_due_at=due_at)

    def telling(self, url: str | None, now: datetime) -> Self:
        """Return it with another address to tell the champion to, beginning now; None: to none."""
        if url == self.webhook_url:
            return self
        return replace(self, webhook_url=url, delivery=None, heard=None)._to_be_told(now)

    def told(self, delivery: Delivery, due_at: datetime | None) -> Self:
        """Return it with how far its champion is told by now."""
        heard = self.heard if delivery.delivered_at is None else self.champion
        return replace(self, heard=heard, delivery=delivery, delivery_due_at=due_at)

    def why_reindex(self) -> str | None:
        """Return why who is told of its champion needs a new index of items; None: the one by the
        version that was heard of last will do, for it gives items the same vectors."""
        former = next((one for one in self.versions if one.number == self.heard), None)
        if former is None:
            return "it is not known by which version the present index is"
        facts, known = self.version(self.champion).model.facts, former.model.facts
        if facts is None or known is None or facts.items_sha256 is None:
            return "it is not known what gives items their vectors"
        if facts.items_sha256 != known.items_sha256:
            return f"items have other vectors than by version {former.number}"
        return None

    def with_refused(self, new: ModelVersion) -> Self:
        """Return it with a version that was judged and not promoted; as it is if that is known."""
        if self.version_of(new.model.run_id) is not None:
            return self
        return replace(self, versions=(*self.versions, replace(new, was_champion=False)))

    def deleted(self, number: int, by: str, why: str, now: datetime) -> Self:
        """Return it without the files of a version, which a worker is to remove; the version stays
        on record. One that was removed before changes nothing.

        Raises NotFound; Conflict for the champion, and for what is wished for."""
        version = self.version(number)
        if version.removed_at is not None:
            return self
        if number == self.champion:
            raise Conflict(
                f"version {number} of {self.registered_name!r} is champion: make another version "
                "champion first"
            )
        run_id = version.model.run_id
        changed = self.retired([run_id], 0, now)
        told = f"version {number} was deleted" + (f": {why}" if why else "")
        changed = changed._staying(MoveKind.DELETED, by, told, now)
        return replace(changed, leaving=(*self.leaving, run_id))

    def without_leaving(self, run_ids: Collection[str]) -> Self:
        """Return it once the files of these runs are gone."""
        return replace(self, leaving=tuple(one for one in self.leaving if one not in run_ids))

    def ensure_champion(self, expected: int | None) -> None:
        """Raise Conflict, telling of the last move, when another version is champion."""
        if self.champion != expected:
            raise Conflict(f"{self.say_champion()}, not version {expected}")

    def ensure_unwanted(self) -> None:
        """Raise Conflict when a person wants another model to be champion."""
        if self.wanted is not None:
            raise Conflict(
                f"the model of task {self.wanted.task_id} shall be champion of "
                f"{self.registered_name!r} (wanted by {self.wanted.by})"
            )

    def say_champion(self) -> str:
        """Return in words which version is champion, and since when."""
        moves = [move for move in self.moves if move.kind not in STAYING]
        if not moves:
            return f"{self.registered_name!r} has no champion yet"
        last = moves[-1]
        return (
            f"the champion of {self.registered_name!r} is version {self.champion} "
            f"({last.kind.value.replace('_', ' ')} by {last.by} at {last.at:%F %T} UTC)"
        )

    def rolled_back(self, to_version: int | None, by: str, why: str, now: datetime) -> Self:
        """Return it with an earlier champion, None: the one whose place the present one took. A
        wish that waits ends.

        Raises Conflict and NotFound as `moved` does, and Conflict if there is no previous one, or
        for a version that never was champion."""
        target = self.previous_version() if to_version is None else to_version
        if not self.version(target).was_champion:
            raise Conflict(
                f"version {target} of {self.registered_name!r} never was champion, so nothing "
                "leads back to it: promote it"
            )
        move = ChampionMove(MoveKind.ROLLED_BACK, now, self.champion, target, by, why)
        return self.without_wish(by, why or "it was rolled back", now).moved(move)

    @property
    def previous(self) -> int | None:
        """The version whose place the champion took, if any; while a wish waits the champion, whose
        place is about to be taken."""
        if self.wanted is not None or self.champion is None:
            return self.champion
        return self.version(self.champion).previous

    def previous_version(self) -> int:
        """Return what a rollback without a number leads to. Raises Conflict if there is nothing."""
        if self.previous is None:
            raise Conflict(
                f"version {self.champion} of {self.registered_name!r} took no other one's place: "
                "there is no previous version; name one"
            )
        return self.previous

    def wished(self, wish: Wish) -> Self:
        """Return it with a wish carried out where the model is a version already, else waiting. A
        wish for another model ends; what is so already changes nothing.

        Raises Conflict when the files of that version are gone."""
        run_id = wish.model.run_id
        if self.wanted is not None and self.wanted.model.run_id == run_id:
            return self
        instead = f"that of task {wish.task_id} shall be instead"
        changed = self.without_wish(wish.by, instead, wish.at)
        version = self.version_of(run_id)
        if version is None:
            return replace(changed, wanted=wish)
        return changed.moved(_by_hand(wish, self.champion, version.number, wish.at))

    def promoted(self, number: int, by: str, why: str, now: datetime) -> Self:
        """Return it with a version as champion that a person chose; a wish that waits ends.

        Raises NotFound, and Conflict when the files of that version are gone."""
        instead = f"version {number} shall be instead"
        move = ChampionMove(MoveKind.PROMOTED_BY_HAND, now, self.champion, number, by, why)
        return self.without_wish(by, instead, now).moved(move)

    def granted(self, wish: Wish, number: int, now: datetime) -> Self:
        """Return it with a wish carried out, the model being registered under this number; as it is
        if that is no longer wished for."""
        if self.wanted != wish:
            return self
        new = ModelVersion(number, wish.model, now, wish.task_id, wish.promotion)
        move = _by_hand(wish, self.champion, number, now)
        return replace(self.moved(move, new), wanted=None)

    def without_wish(self, by: str, why: str, now: datetime) -> Self:
        """Return it without the wish that waits, if any, which comes to nothing: the history says
        who ended it, and why."""
        if self.wanted is None or self.champion is None:
            return self
        told = f"the model of task {self.wanted.task_id} does not become champion: {why}"
        return replace(self._staying(MoveKind.WISH_ENDED, by, told, now), wanted=None)

    def shared(self, project: str, by: str, now: datetime) -> Self:
        """Return it shared with another project, which may then read all its versions; as it is if
        it was. Raises InvalidInput for what is no other project, Conflict above MOST_SHARED."""
        if check_project(project) == self.project:
            raise InvalidInput(f"{self.name!r} is of project {project!r} itself: name another one")
        if project in self.shared_with:
            return self
        if len(self.shared_with) >= MOST_SHARED:
            raise Conflict(
                f"{self.name!r} is shared with {MOST_SHARED} projects, and no more may be: take it "
                "back from one first"
            )
        changed = replace(self, shared_with=tuple(sorted({*self.shared_with, project})))
        return changed._staying(MoveKind.SHARED, by, f"with project {project}", now)

    def taken_back(self, project: str, by: str, now: datetime) -> Self:
        """Return it no longer shared with a project; as it is if it was not."""
        if project not in self.shared_with:
            return self
        left = tuple(one for one in self.shared_with if one != project)
        changed = replace(self, shared_with=left)
        return changed._staying(MoveKind.TAKEN_BACK, by, f"from project {project}", now)

    def _staying(self, kind: MoveKind, by: str, why: str, now: datetime) -> Self:
        """Return it with what became of it in its history; its champion, if any, stays."""
        if self.champion is None:
            return self
        move = ChampionMove(kind, now, self.champion, self.champion, by, why)
        return replace(self, moves=_remembered((*self.moves, move)))

    def former_champions(self, count: int) -> frozenset[int]:
        """Return the last so many versions that were champion before the present one."""
        there = {v.number for v in self.versions} - {self.champion}
        formers: list[int] = []
        for move in reversed(self.moves):
            number = move.from_version
            if number in there and number not in formers:
                formers.append(number)
        return frozenset(formers[:count])

    def retired(self, run_ids: Collection[str], keep: int, now: datetime) -> Self:
        """Return it with the versions of some runs marked as removed.

        Raises Conflict when one of them is the champion or one of the `keep` champions before it,
        or wished for."""
        if self.wanted is not None and self.wanted.model.run_id in run_ids:
            self.ensure_unwanted()
        leaving = {v.number for v in self.versions if v.model.run_id in run_ids}
        needed = leaving & {self.champion, *self.former_champions(keep)}
        if needed:
            raise Conflict(
                f"{self.registered_name!r} keeps its versions {sorted(map(int, needed))}"
            )
        versions = [
            replace(v, removed_at=now, model=replace(v.model, files=()))
            if v.number in leaving and v.removed_at is None
            else v
            for v in self.versions
        ]
        forgotten = [v.number for v in versions if v.removed_at is not None][:-MOST_REMEMBERED]
        return replace(self, versions=tuple(v for v in versions if v.number not in forgotten))

    def without_task(self, task_id: str, now: datetime) -> Self:
        """Return it with the versions of a canceled task marked as removed, but for those that were
        champion or are wished for."""
        wanted = self.wanted and self.wanted.model.run_id
        leaving = [
            v.model.run_id
            for v in self.versions
            if v.task_id == task_id and not v.was_champion and v.model.run_id != wanted
        ]
        return self.retired(leaving, 0, now)

    def mirroring_to(self, until: datetime, now: datetime) -> Self | None:
        """Return it as claimed by a worker that sets MLflow's alias; None if there is nothing to
        set or another worker is at it."""
        if self.is_mirrored or is_held(self.mirroring_until, now):
            return None
        return replace(self, mirroring=self.champion, mirroring_until=until)

    def mirrored_as(self, claimed: Self) -> Self:
        """Return it with the alias where that claim has set it; as it is if the claim is over."""
        if self.mirroring_until != claimed.mirroring_until:
            return self
        return replace(self, mirrored=claimed.mirroring, mirroring=None, mirroring_until=None)

    def let_go(self, claimed: Self) -> Self:
        """Return it without that claim; as it is if the claim is over."""
        if self.mirroring_until != claimed.mirroring_until:
            return self
        return replace(self, mirroring=None, mirroring_until=None)


CHAMPION = "champion"
"""The alias by which a version may be named."""


def is_hub_id(text: str) -> bool:
    """Return whether a text may be the id of a model on a hub."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) is not None


def split_reference(text: str) -> tuple[str, str | None]:
    """Return the name and the version, a number or the alias, of `name`, `name/3` or
    `name@champion`; the name may be `owner:name`, which another project shares."""
    name, separator, version = text.partition("/" if "/" in text else "@")
    return name, version if separator else None


def _remembered(moves: Sequence[ChampionMove]) -> tuple[ChampionMove, ...]:
    """Return the last MOST_REMEMBERED moves of the champion, and as many of what else happened: the
    latter must not push out what retention and rollbacks go by."""
    kept = {
        id(move)
        for some in (
            [move for move in moves if move.kind in STAYING],
            [move for move in moves if move.kind not in STAYING],
        )
        for move in some[-MOST_REMEMBERED:]
    }
    return tuple(move for move in moves if id(move) in kept)


_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE)


def beware_of(facts: ModelFacts) -> list[str]:
    """Return what speaks against using a model, by what its files say of its base model."""
    if facts.base_model is None and facts.dimensions is None:
        return []  # nothing that anybody gave a licence for, as far as is known
    base = f"base model {facts.base_model}" if facts.base_model else "base model"
    if facts.license is None:
        return [f"no licence of its {base} is known: find out whether you may use it"]
    if _NON_COMMERCIAL.search(facts.license):
        return [f"the licence of its {base}, {facts.license}, forbids commercial use"]
    return []


def _without_its_data(version: ModelVersion) -> ModelVersion:
    """Return a version as other projects see it: its figures without the queries that they are of,
    and without what names its owner's data."""
    verdict, made = version.promotion, version.training
    if verdict is not None:
        told = "promoted" if verdict.promoted else "not promoted"
        verdict = replace(verdict, reason=told, gained=(), lost=(), judge_labels_id=None, others=())
    if made is not None:
        made = Training(method_version=made.method_version, parameters=made.parameters)
    return replace(version, task_id=None, promotion=verdict, training=made)


def _by_hand(wish: Wish, champion: int | None, number: int, now: datetime) -> ChampionMove:
    return ChampionMove(MoveKind.PROMOTED_BY_HAND, now, champion, number, wish.by, wish.why)
