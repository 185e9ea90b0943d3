"""Trials that cost what they sleep: what remains is the orchestrator's."""

import time
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from embedding_studio import (
    Budget,
    FineTuningMethod,
    Parameters,
    PluginMeta,
    Scores,
    Session,
    Splits,
    TrialRun,
)

Vector = NDArray[np.float64]
NOISE = 0.03


class Synthetic(FineTuningMethod[Vector]):
    """Reports `reports` times, sleeping `pause_seconds` before each.

    Both, and num_cpus, are set on the worker's instance: they reach a trial as parameters. The
    space is as wide as the default method's. A model is one number, how near its set is to the best
    one, give or take its seed's luck: the search learns, and few sets beat the best.
    """

    meta = PluginMeta("Synthetic")
    main_metric = "quality"
    budget = Budget(max_trials=4)
    reports = 10
    pause_seconds = 0.5

    def load_initial_model(self) -> Vector:
        return np.array([0.0])

    def suggest(self, trial: optuna.Trial) -> Parameters:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 8e-4, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 1e-1, log=True),
            "temperature": trial.suggest_float("temperature", 0.05, 0.12, log=True),
            "frozen_layers": trial.suggest_int("frozen_layers", 1, 4),
            "epochs": trial.suggest_int("epochs", 2, 4),
            "negatives_per_click": trial.suggest_int("negatives_per_click", 2, 6),
            "batch_size": trial.suggest_categorical("batch_size", [32, 64]),
            "reports": self.reports,
            "pause_seconds": self.pause_seconds,
        }

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        for step in range(params["reports"]):
            time.sleep(params["pause_seconds"])
            run.trained_tokens += 100
            # the same of every trial, so that none is pruned
            run.report(self.evaluate(model + step / 1000, data.validation), step)
        distance = abs(np.log(params["learning_rate"] / 3e-4)) + abs(params["temperature"] - 0.07)
        luck = np.random.default_rng(run.seed).normal(0, NOISE)
        return np.array([1.0 - distance + luck])

    def evaluate(self, model: Vector, split: list[Session]) -> Scores:
        spread = np.linspace(-0.01, 0.01, len(split))
        return {
            "quality": model[0] + spread,
            "mrr_at_10": model[0] / 2 + spread,
            "similarity_gap": float(model[0]),
        }
