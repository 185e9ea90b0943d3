"""The default method with trials that take about as long as each other, none of them pruned."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.spans import Recorder
from embedding_studio import Parameters, PluginMeta
from embedding_studio.engine import jobs as trial
from embedding_studio.methods import discover_methods
from embedding_studio.settings import Settings

if TYPE_CHECKING:
    import optuna

PLUGINS = Path(__file__).parents[2] / "plugins"
DefaultMethod = type(discover_methods(PLUGINS).get("Default Fine Tuning Method"))
FIXED: Parameters = {
    "epochs": 4,
    "frozen_layers": 4,
    "negatives_per_click": 2,
    "batch_size": 64,
}


class Long(DefaultMethod):  # type: ignore[misc,valid-type]
    meta = PluginMeta("Default method long")
    pruner = "none"

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {**super().suggest(trial), **FIXED}


Recorder(Settings().data_folder / "spans.jsonl").wrap(trial.ReportingRun, "report", "reports")
