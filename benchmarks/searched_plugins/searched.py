"""Bundled methods over spaces as wide as one knows nothing of them, each trial of 27 epochs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_studio import Parameters, PluginMeta, Scores, TrialRun
from embedding_studio.methods import discover_methods

if TYPE_CHECKING:
    import optuna

EPOCHS = 27

catalog = discover_methods(Path(__file__).parents[2] / "plugins")
Adapter = type(catalog.get("Linear adapter"))
Encoder = type(catalog.get("Default Fine Tuning Method"))


class SearchedAdapter(Adapter):  # type: ignore[misc,valid-type]
    meta = PluginMeta("adapter")
    epochs = EPOCHS

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 1e2, log=True),
            "temperature": trial.suggest_float("temperature", 0.01, 1.0, log=True),
        }

    def train(self, model: Any, params: Parameters, data: Any, run: TrialRun) -> Any:
        """It counts no tokens, and every epoch costs the same: an epoch counts as one."""
        report = run.report

        def count(scores: Scores, step: int) -> None:
            run.trained_tokens += 1
            report(scores, step)

        run.report = count  # type: ignore[method-assign]
        return super().train(model, params, data, run)


class SearchedEncoder(Encoder):  # type: ignore[misc,valid-type]
    meta = PluginMeta("encoder")

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 1e-1, log=True),
            "frozen_layers": trial.suggest_int("frozen_layers", 3, 5),
            "epochs": EPOCHS,
            "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128]),
            "temperature": trial.suggest_float("temperature", 0.01, 0.5, log=True),
            "negatives_per_click": trial.suggest_int("negatives_per_click", 1, 4),
        }
