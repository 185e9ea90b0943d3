"""What a search found, for people: Optuna's plots as a page and as pictures, the sets as a table,
the study as a file.

search.html          all plots, to hover over; needs no network
<plot>.png           each plot
sets.csv             the hyperparameter sets in the order they were tried
study.db             the study in Optuna's SQLite storage, for optuna-dashboard"""

import csv
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib as mpl
import optuna
from matplotlib import pyplot as plt
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as pictures

from embedding_studio.methods import Direction
from embedding_studio.search import Trial

mpl.use("agg")

STUDY_FILE = "study.db"
_STUDY = "search"
MIN_TO_COMPARE = 10
"""Of fewer complete trials, importances and coordinates show chance."""


def draw_search(trials: Sequence[Trial], direction: Direction, metric: str, folder: Path) -> None:
    """Write plots, table and study into an empty folder; plots that say nothing yet are left out.

    trials: in the order of their numbers."""
    _write_table(trials, metric, folder / "sets.csv")
    storage = InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name=_STUDY, direction=direction)
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))  # number 0: ours count from 1
    study.add_trials([_numbered_as_logged(trial) for trial in trials])
    complete = [trial for trial in trials if trial.value is not None]
    figures = []
    with warnings.catch_warnings():
        # Optuna calls its pictures experimental, and tells of trials that it leaves out
        warnings.simplefilter("ignore")
        study.set_metric_names([metric])
        _write_study(storage, folder / STUDY_FILE)
        for name, interactive, picture in _plots(study, metric, len(complete)):
            figures.append(interactive())
            if picture is None:
                continue
            axes = picture()
            figure = (axes.ravel()[0] if hasattr(axes, "ravel") else axes).figure
            figure.savefig(folder / f"{name}.png", dpi=100, bbox_inches="tight")
            plt.close("all")
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0)  # the library once
        for number, figure in enumerate(figures)
    ]
    head = "<!doctype html><meta charset='utf-8'><title>Search</title>"
    (folder / "search.html").write_text(head + "".join(parts))


def _numbered_as_logged(trial: Trial) -> FrozenTrial:
    """Return a trial whose steps are MLflow's, not the pruner's."""
    frozen = trial.frozen()
    frozen.intermediate_values = trial.reports
    frozen.user_attrs = {"run_id": trial.run_id, "trained_tokens": trial.trained_tokens}
    if trial.ended:
        ended = datetime.fromtimestamp(trial.ended / 1000)  # noqa: DTZ006 - as Optuna's own are
        frozen.datetime_complete = ended
        frozen.datetime_start = ended - timedelta(seconds=trial.seconds)
    return frozen


def _write_study(storage: InMemoryStorage, file: Path) -> None:
    url = f"sqlite:///{file}"
    optuna.copy_study(
        from_study_name=_STUDY, from_storage=storage, to_storage=(written := RDBStorage(url))
    )
    written.remove_session()
    written.engine.dispose()


_Plot: TypeAlias = tuple[str, Callable[[], Any], Callable[[], Any] | None]


def _plots(study: optuna.Study, metric: str, complete: int) -> Iterator[_Plot]:
    """Yield the name of each plot worth drawing, and who draws it: for a page, as a picture."""

    def both(name: str, **options: Any) -> _Plot:
        page = getattr(optuna.visualization, f"plot_{name}")
        picture = getattr(pictures, f"plot_{name}")
        return name, partial(page, study, **options), partial(picture, study, **options)

    if complete:
        yield both("optimization_history", target_name=metric)
    if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
        yield both("intermediate_values")
    if complete >= MIN_TO_COMPARE and study.best_trial.params:
        name, page, _ = both("parallel_coordinate", target_name=metric)
        yield name, page, None  # a picture's lines cannot be told apart; the page's are picked out
        yield both("param_importances", evaluator=PedAnovaImportanceEvaluator())


def _write_table(trials: Sequence[Trial], metric: str, path: Path) -> None:
    names = sorted({name for trial in trials for name in trial.params})
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(["trial", "outcome", metric, "reports", "seconds", *names, "run_id"])
        for trial in trials:
            params = trial.params
            row = [trial.number + 1, trial.outcome, trial.value]
            row += [len(trial.reports), round(trial.seconds, 1)]
            writer.writerow([*row, *(params.get(name) for name in names), trial.run_id])
