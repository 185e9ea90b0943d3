"""The best model of an iteration so far: uploaded, read back, and only then put in place."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from embedding_studio.deletion import remove_tree
from embedding_studio.engine.failures import writing_to_ledger
from embedding_studio.engine.jobs import Score
from embedding_studio.engine.scores import are_close, mean_metrics
from embedding_studio.errors import CorruptModel
from embedding_studio.methods import MetricValues, is_better
from embedding_studio.search import Trial
from embedding_studio.tasks import StoredModel, TaskEventKind

if TYPE_CHECKING:
    from embedding_studio.engine.attempt import Attempt


class Best:
    """The best model so far, and the trial that gave it."""

    def __init__(self, attempt: "Attempt", experiment_id: str) -> None:
        self._attempt = attempt
        self._experiment_id = experiment_id
        self.model: StoredModel | None = None
        self.trial: Trial | None = None
        #: its main metric on the validation split, per query where the method gives it so
        self.scores: MetricValues | None = None

    def is_beaten_by(self, trial: Trial, scores: MetricValues) -> bool:
        """Return whether a trial is to be the best: of two within the noise, the one that was
        proposed first is, whichever ends first."""
        direction = self._attempt.method.direction
        if self.trial is not None and self.scores is not None and trial.number < self.trial.number:
            return not is_better(direction, self.scores, scores)
        return is_better(direction, scores, self.scores)

    def upload(
        self, trial: Trial, folder: Path, value: float, meanwhile: Callable[[], None]
    ) -> StoredModel:
        """Upload a trial's model. Raises as `upload`."""
        workspace = self._attempt.workspace
        return upload(self._attempt, trial.run_id, folder, workspace.data, value, meanwhile)

    def become(self, trial: Trial, model: StoredModel, scores: MetricValues) -> None:
        """Take a trial's stored model for the best; only now may the former best's files go."""
        attempt = self._attempt
        self.model, self.trial, self.scores = model, trial, scores
        attempt.lease.check()
        # of this experiment, one may have been champion and rolled back, if the task was restarted
        find, name = attempt.house.store.models.find, attempt.task.registered_as
        registered = attempt.lease.patiently(find, name)
        kept = registered.kept_run_ids if registered else ()
        attempt.house.tracking.runs.keep_best(self._experiment_id, model.run_id, kept)
        attempt.record(
            TaskEventKind.BEST_MODEL_STORED,
            f"the best model so far is that of run {model.run_id}",
            {"run_id": model.run_id, "value": trial.value},
            best_model=model,
        )
        attempt.lease.show(best_so_far=trial.value)


def upload(
    attempt: "Attempt",
    run_id: str,
    folder: Path,
    data: Path,
    value: float,
    meanwhile: Callable[[], None] = lambda: None,
) -> StoredModel:
    """Upload a run's model, then load it back and score it on the validation split of some data:
    only then may it become the best. The copy stays in the workspace.

    value: the main metric that it had. Raises CorruptModel when the model read back has another."""
    tracking, workspace = attempt.house.tracking, attempt.workspace
    metric = attempt.method.main_metric
    with writing_to_ledger():
        model = tracking.models.upload(run_id, folder)
    attempt.lease.has_model = True
    copy = workspace.folder / f"copy-{run_id}"
    with writing_to_ledger():
        tracking.models.download(model, copy)
    scores = workspace.run(Score(workspace.method, copy, data), meanwhile)
    read_back = mean_metrics(scores, metric)[metric]
    if not are_close(value, read_back):
        raise CorruptModel(
            f"the model of run {run_id} scored {value:.6f} before it was saved and "
            f"{read_back:.6f} after it was loaded back: does `save` write all?"
        )
    with writing_to_ledger():
        tracking.models.confirm(model)
    remove_tree(workspace.best, ignore_errors=True)
    copy.rename(workspace.best)
    return model
