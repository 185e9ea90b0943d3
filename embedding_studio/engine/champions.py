"""A method's champion: the store says which version it is, and MLflow's alias follows.

Everything here may be interrupted anywhere, repeated, and done by several workers at once."""

from dataclasses import replace
from datetime import timedelta

from embedding_studio.engine.house import House
from embedding_studio.errors import Conflict
from embedding_studio.models import ChampionMove, ModelVersion, MoveKind, RegisteredModel
from embedding_studio.tasks import FineTuningTask, Promotion, StoredModel
from embedding_studio.tracking import story


class Champions:
    """The champions of one project's methods."""

    def __init__(self, house: House) -> None:
        """Take the house as that project sees it."""
        self._house = house

    def of(self, method: str) -> RegisteredModel:
        """Return what is registered of a method, after MLflow's alias was followed if somebody
        moved it by hand, or if it is from before the store knew champions."""

        def follow(model: RegisteredModel) -> RegisteredModel:
            # asked only now: a worker that sets the alias after this look fails the change
            shown = self._house.tracking.registry.champion_version(model.name)
            if shown is None:  # nothing yet, or removed by hand: it is set again
                return replace(model, mirrored=None)
            if shown in (model.champion, model.mirrored, model.mirroring):
                return model
            found = self._house.tracking.registry.champion(model.name)
            assert found is not None
            why = "its alias was moved by hand" if model.moves else "as its registry had it before"
            move = self._move(MoveKind.ADOPTED, model.champion, shown, "MLflow", why)
            changed = model.moved(move, self._new(model, shown, found))
            return replace(changed, mirrored=shown, mirroring=None, mirroring_until=None)

        return self._house.store.models.update(method, follow)

    def begin_with(self, task: FineTuningTask, initial: StoredModel) -> RegisteredModel:
        """Register an initial model and make it champion, unless another one was meanwhile."""
        number = self._house.tracking.registry.register(
            task.registered_name, initial, "The initial model."
        )

        def begin(model: RegisteredModel) -> RegisteredModel:
            if not model.is_initial:
                return model
            why = "the method starts from it" + (" now" if model.moves else "")
            move = self._move(MoveKind.INITIAL, model.champion, number, f"task {task.id}", why)
            return model.moved(move, self._new(model, number, initial))

        return self._house.store.models.update(task.fine_tuning_method, begin)

    def promote(
        self, task: FineTuningTask, model: StoredModel, promotion: Promotion, start_run_id: str
    ) -> None:
        """Make a task's model champion in the place of the one that it started from.

        Once: if that happened before, nothing does, whoever is champion by now. Raises Conflict
        when another one has become champion meanwhile."""
        seen = self.of(task.fine_tuning_method)
        if seen.version_of(model.run_id) is not None:
            return
        start = seen.version_of(start_run_id)
        expected = start.number if start else None
        seen.ensure_champion(expected)
        verdict = story.verdict(promotion)
        number = self._house.tracking.registry.register(task.registered_name, model, verdict)
        new = ModelVersion(number, model, self._house.clock(), task.id, promotion)
        move = self._move(MoveKind.PROMOTED, expected, number, f"task {task.id}", verdict)

        def take_the_place(found: RegisteredModel) -> RegisteredModel:
            return found if found.version_of(model.run_id) else found.moved(move, new)

        self._house.store.models.update(task.fine_tuning_method, take_the_place)

    def mirror(self, method: str) -> bool:
        """Point MLflow's alias to the champion; False while another worker is at it.

        Nobody else sets the alias of this method for as long as a lease."""
        seen = self._house.store.models.find(method)
        if seen is None or seen.is_mirrored:
            return True
        now = self._house.clock()
        until = now + timedelta(seconds=self._house.settings.lease_seconds)
        claimed = seen.mirroring_to(until, now)
        if claimed is None or (claimed := self._house.store.models.change(claimed)) is None:
            return False
        assert claimed.champion is not None

        def ensure_in_time() -> None:
            if self._house.clock() >= until:
                raise Conflict(f"another worker may be setting the alias of {claimed.name!r}")

        if not self._house.tracking.registry.has_version(claimed.name, claimed.champion):
            self._register_anew(claimed)
            return False
        try:
            guarded = self._house.tracking.guarded(ensure_in_time)
            guarded.registry.set_champion(claimed.name, claimed.champion)
        except Conflict:
            return False
        self._house.store.models.update(method, lambda model: model.mirrored_as(claimed))
        return True

    def _register_anew(self, model: RegisteredModel) -> None:
        """Give the champion another number, for somebody deleted its version in MLflow."""
        lost = model.version(model.champion)
        number = self._house.tracking.registry.register(model.name, lost.model, "Registered anew.")
        why = f"MLflow's registry has no version {lost.number} any more: it is registered anew"
        move = self._move(MoveKind.ADOPTED, lost.number, number, "MLflow", why)

        def renumber(found: RegisteredModel) -> RegisteredModel:
            if found.champion != lost.number:
                return found
            changed = found.moved(move, self._new(found, number, lost.model))
            return replace(changed, mirroring=None, mirroring_until=None)

        self._house.store.models.update(model.method, renumber)

    def _new(self, model: RegisteredModel, number: int, stored: StoredModel) -> ModelVersion | None:
        """Return what is to be on record of a model that MLflow has under this number; None if it
        is so already."""
        known = model.version_of(stored.run_id)
        if known is None:
            return ModelVersion(number, stored, self._house.clock())
        if known.number == number and known.removed_at is None:
            return None
        return replace(known, number=number, model=stored, removed_at=None)

    def _move(
        self, kind: MoveKind, from_version: int | None, to_version: int, by: str, why: str
    ) -> ChampionMove:
        return ChampionMove(kind, self._house.clock(), from_version, to_version, by, why)
