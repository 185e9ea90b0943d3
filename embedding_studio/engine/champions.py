"""A registered model's champion: the store says which version it is, and MLflow's alias follows.

Everything here may be interrupted anywhere, repeated, and done by several workers at once."""

from dataclasses import replace
from datetime import timedelta

from embedding_studio.engine.house import House
from embedding_studio.errors import Conflict, CorruptModel
from embedding_studio.models import (
    STAYING,
    ChampionMove,
    ModelVersion,
    MoveKind,
    RegisteredModel,
    Training,
    Wish,
)
from embedding_studio.tasks import FineTuningTask, Promotion, StoredModel
from embedding_studio.tracking import story


class Champions:
    """The champions of one project's models."""

    def __init__(self, house: House) -> None:
        """Take the house as that project sees it."""
        self._house = house

    def of(self, name: str, method: str) -> RegisteredModel:
        """Return what is registered under a name, after MLflow's alias was followed if somebody
        moved it by hand, or if it is from before the store knew champions.

        Raises Conflict if its versions are not made by this method."""

        def follow(model: RegisteredModel) -> RegisteredModel:
            model.ensure_made_by(method)
            # asked only now: a worker that sets the alias after this look fails the change
            shown = self._house.tracking.registry.champion_version(model.registered_name)
            if shown is None:  # nothing yet, or removed by hand: it is set again
                return replace(model, mirrored=None)
            if shown in (model.champion, model.mirrored, model.mirroring):
                return model
            found = self._house.tracking.registry.champion(model.registered_name)
            assert found is not None
            why = "its alias was moved by hand" if model.moves else "as its registry had it before"
            move = self._move(MoveKind.ADOPTED, model.champion, shown, "MLflow", why)
            changed = model.moved(move, self._new(model, shown, found))
            return replace(changed, mirrored=shown, mirroring=None, mirroring_until=None)

        return self._house.store.models.update(name, follow, method)

    def begin_with(self, task: FineTuningTask, initial: StoredModel) -> RegisteredModel:
        """Register an initial model, the method's or the one that the task names, and make it
        champion, unless another one was meanwhile."""
        number = self._house.tracking.registry.register(
            task.registered_name, initial, "The initial model."
        )

        def begin(model: RegisteredModel) -> RegisteredModel:
            if not model.is_initial:
                return model
            named, new = task.initial_model, self._new(model, number, initial)
            why = f"it is {named}" if named else "the method starts from it"
            why += " now" if model.moves and not named else ""
            if named and new is not None:
                new = replace(new, training=Training(parent=named))
            move = self._move(MoveKind.INITIAL, model.champion, number, f"task {task.id}", why)
            return model.moved(move, new)

        method = task.fine_tuning_method
        return self._house.store.models.update(task.registered_as, begin, method)

    def promote(
        self,
        task: FineTuningTask,
        model: StoredModel,
        promotion: Promotion,
        start_run_id: str,
        training: Training | None = None,
    ) -> None:
        """Make a task's model champion in the place of the one that it was compared with.

        Once: if that happened before, nothing does, whoever is champion by now. Raises Conflict
        when another one has become champion meanwhile, or is wanted."""
        seen = self.of(task.registered_as, task.fine_tuning_method)
        if seen.was_champion(model.run_id):
            return
        start = seen.version_of(start_run_id)
        expected = start.number if start else None
        seen.ensure_champion(expected)
        seen.ensure_unwanted()
        verdict = story.verdict(promotion)
        number = self._house.tracking.registry.register(task.registered_name, model, verdict)
        now = self._house.clock()
        new = ModelVersion(number, model, now, task.id, promotion, training=training)
        move = self._move(MoveKind.PROMOTED, expected, number, f"task {task.id}", verdict)

        def take_the_place(found: RegisteredModel) -> RegisteredModel:
            if found.was_champion(model.run_id):
                return found
            found.ensure_unwanted()
            return found.moved(move, new)

        self._house.store.models.update(task.registered_as, take_the_place)

    def keep(
        self,
        task: FineTuningTask,
        model: StoredModel,
        promotion: Promotion,
        training: Training,
        awaits_decision: bool,
    ) -> None:
        """Register a task's model that is not promoted: a person may decide otherwise. Repeating it
        is safe."""
        seen = self.of(task.registered_as, task.fine_tuning_method)
        if seen.version_of(model.run_id) is not None:
            return
        verdict = story.verdict(promotion)
        number = self._house.tracking.registry.register(task.registered_name, model, verdict)
        new = ModelVersion(
            number,
            model,
            self._house.clock(),
            task.id,
            promotion,
            awaits_decision=awaits_decision,
            training=training,
        )
        self._house.store.models.update(task.registered_as, lambda found: found.with_refused(new))

    def mirror(self, name: str) -> bool:
        """Carry out the wish that waits, if any, remove what a person deleted, and point MLflow's
        alias to the champion; False while another worker is at it.

        Nobody else does either for this model for as long as a lease."""
        seen = self._house.store.models.find(name)
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
                raise Conflict(
                    f"another worker may be setting the alias of {claimed.registered_name!r}"
                )

        guarded = self._house.guarded(ensure_in_time)
        try:
            if claimed.leaving:
                Champions(guarded)._remove(claimed)
                return self.mirror(name)
            if claimed.wanted is not None:
                Champions(guarded)._grant(claimed, claimed.wanted)
                return self.mirror(name)
            if not guarded.tracking.registry.has_version(claimed.registered_name, claimed.champion):
                self._register_anew(claimed)
                return False
            Champions(guarded)._tell(claimed)
            guarded.tracking.registry.set_champion(claimed.registered_name, claimed.champion)
        except Conflict:
            return False
        self._house.store.models.update(name, lambda model: model.mirrored_as(claimed))
        return True

    def _remove(self, claimed: RegisteredModel) -> None:
        """Remove the files of deleted versions, and their entries in MLflow, and let the claim
        go."""
        tracking = self._house.tracking
        for run_id in claimed.leaving:
            tracking.registry.delete_versions_of(claimed.registered_name, run_id)
            tracking.models.delete(run_id)
        self._house.store.models.update(
            claimed.name,
            lambda model: model.without_leaving(claimed.leaving).let_go(claimed),
        )

    def _grant(self, claimed: RegisteredModel, wish: Wish) -> None:
        """Make champion what a person wished for, and let the claim go.

        The wish ends if its model is not there any more."""
        tracking, now = self._house.tracking, self._house.clock()
        told = story.promoted_by_hand(wish.by, wish.why)
        try:
            self._ensure_kept(wish)
            number = tracking.registry.register(claimed.registered_name, wish.model, told)
        except CorruptModel as error:
            why = str(error)

            def carry_out(model: RegisteredModel) -> RegisteredModel:
                return model.without_wish("a worker", why, now) if model.wanted == wish else model

        else:

            def carry_out(model: RegisteredModel) -> RegisteredModel:
                return model.granted(wish, number, now)

        self._house.store.models.update(
            claimed.name, lambda model: carry_out(model).let_go(claimed)
        )

    def _tell(self, claimed: RegisteredModel) -> None:
        """Say in MLflow that a person made the champion what it is, if one did."""
        move = next(move for move in reversed(claimed.moves) if move.kind not in STAYING)
        if move.kind is not MoveKind.PROMOTED_BY_HAND:
            return
        version, tracking = claimed.version(claimed.champion), self._house.tracking
        told = story.promoted_by_hand(move.by, move.why)
        verdict = f". {story.verdict(version.promotion)}" if version.promotion else ""
        tracking.registry.describe(claimed.registered_name, version.number, told + verdict)
        if version.task_id is not None:
            tracking.iterations.tell_promotion(version.model.run_id, told)

    def _ensure_kept(self, wish: Wish) -> None:
        """Raise CorruptModel unless a wish's model is there to stay.

        Who removes models takes them from their tasks first, and then looks for wishes again."""
        kept = self._house.store.tasks.get(wish.task_id).best_model
        if kept is None or kept.run_id != wish.model.run_id:
            raise CorruptModel(f"task {wish.task_id} has it no longer")
        if self._house.tracking.models.stored(wish.model.run_id).files != wish.model.files:
            raise CorruptModel(f"the files of run {wish.model.run_id} are not those of the task")

    def _register_anew(self, model: RegisteredModel) -> None:
        """Give the champion another number, for somebody deleted its version in MLflow."""
        lost = model.version(model.champion)
        number = self._house.tracking.registry.register(
            model.registered_name, lost.model, "Registered anew."
        )
        why = f"MLflow's registry has no version {lost.number} any more: it is registered anew"
        move = self._move(MoveKind.ADOPTED, lost.number, number, "MLflow", why)

        def renumber(found: RegisteredModel) -> RegisteredModel:
            if found.champion != lost.number:
                return found
            changed = found.moved(move, self._new(found, number, lost.model))
            return replace(changed, mirroring=None, mirroring_until=None)

        self._house.store.models.update(model.name, renumber)

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
