"""The default method with its epochs fixed, and a clock around what runs in a trial's process.

The fork server loads this file as it loads any plugin, so that every job inherits the clock.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import embedding_studio.training.loop
from benchmarks.spans import Recorder
from embedding_studio import Parameters, PluginMeta
from embedding_studio.engine import jobs as trial
from embedding_studio.methods import discover_methods
from embedding_studio.settings import Settings

if TYPE_CHECKING:
    import optuna

EPOCHS = 2

PLUGINS = Path(__file__).parents[2] / "plugins"
DefaultMethod = type(discover_methods(PLUGINS).get("Default Fine Tuning Method"))


class Timed(DefaultMethod):  # type: ignore[misc,valid-type]
    meta = PluginMeta("Default method timed")

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {**super().suggest(trial), "epochs": EPOCHS}


def start_clock() -> None:
    recorder = Recorder(Settings().data_folder / "spans.jsonl")
    for job in (
        trial.SaveInitialModel,
        trial.PrepareData,
        trial.Train,
        trial.Score,
        trial.Examine,
        trial.ScoreBaseline,
    ):
        recorder.wrap(job, "__call__", "in jobs, other")
    recorder.wrap(trial.ReportingRun, "report", "waiting")
    recorder.wrap(embedding_studio.training.loop, "evaluate", "evaluation")
    for name, phase in (
        ("load_initial_model", "loading"),
        ("load", "loading"),
        ("load_data", "loading"),
        ("prepare", "preparing data"),
        ("train", "training"),
        ("note_start", "preparing data"),
        ("evaluate", "evaluation"),
        ("explain", "evaluation"),
        ("save", "saving"),
    ):
        recorder.wrap(Timed, name, phase)


start_clock()
