"""A method whose trials wait, between their two reports, for a test to let them go on."""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from embedding_studio import (
    FineTuningMethod,
    Parameters,
    PluginMeta,
    Scores,
    Session,
    Splits,
    TrialRun,
)

Vector = NDArray[np.float64]


class Gated(FineTuningMethod[Vector]):
    """The folder ES_GATE gets a file for each trial that waits, named by its node and its seed;
    they wait for a file `open` there."""

    meta = PluginMeta(name="Gated")
    main_metric = "skill"

    def load_initial_model(self) -> Vector:
        return np.array([0.2])

    def suggest(self, trial: optuna.Trial) -> Parameters:
        return {"skill": trial.suggest_float("skill", 0.3, 0.9)}

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        gate = Path(os.environ["ES_GATE"])
        run.report(self.evaluate(model, data.validation), 0)
        (gate / f"{Path(tempfile.gettempdir()).name}-{run.seed}").touch()
        while not (gate / "open").exists():
            time.sleep(0.02)
        run.report(self.evaluate(model, data.validation), 1)
        return np.array([params["skill"]])

    def evaluate(self, model: Vector, split: list[Session]) -> Scores:
        return {"skill": model[0] + np.linspace(-0.01, 0.01, len(split))}
