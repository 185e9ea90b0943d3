"""Small fine-tuning methods whose every outcome is known beforehand."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray

from embedding_studio import (
    Budget,
    FineTuningMethod,
    LabelledResult,
    Parameters,
    PluginMeta,
    Scores,
    Session,
    Splits,
    TrialRun,
)
from embedding_studio.errors import NotEnoughData
from embedding_studio.settings import Settings

Vector = NDArray[np.float64]


class Toy(FineTuningMethod[Vector]):
    """A model is one number, its skill; its score on a query is the skill, a little off per query.

    `skill` is both the hyperparameter and what training leads to.
    """

    meta = PluginMeta(name="Toy")
    main_metric = "skill"
    budget = Budget(max_trials=3)
    folds = 1

    def load_initial_model(self) -> Vector:
        return np.array([0.2])

    def suggest(self, trial: optuna.Trial) -> Parameters:
        return {
            "skill": trial.suggest_float("skill", 0.3, 0.9),
            "layers": trial.suggest_int("layers", 1, 3),
            "kind": trial.suggest_categorical("kind", ["a", "b"]),
            "shuffle": trial.suggest_categorical("shuffle", [True, False]),
        }

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        assert data.test is None
        for step in range(2):
            run.report(self.evaluate(model, data.validation), step)
        return np.array([params["skill"]])

    def evaluate(self, model: Vector, split: list[Session]) -> Scores:
        return {"skill": model[0] + np.linspace(-0.01, 0.01, len(split)), "size": float(len(split))}


class Choosy(Toy):
    """Takes nothing below 100 sessions."""

    meta = PluginMeta(name="Choosy")

    def prepare(self, sessions: Splits[Sequence[Session]], folder: Path) -> Mapping[str, float]:
        parts = (sessions.train, sessions.validation, sessions.test)
        if sum(map(len, parts)) < 100:
            raise NotEnoughData("fewer than 100 sessions: collect more")
        return super().prepare(sessions, folder)


class Worse(Toy):
    """Training always harms."""

    meta = PluginMeta(name="Worse")

    def suggest(self, trial: optuna.Trial) -> Parameters:
        return {"skill": trial.suggest_float("skill", 0.0, 0.1)}


class Failing(Toy):
    """Every set fails in training."""

    meta = PluginMeta(name="Failing")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        raise RuntimeError("the loss is NaN")


class FailingOnce(Toy):
    """The first set fails, the others do not."""

    meta = PluginMeta(name="Failing once")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        if run.seed == 0:
            raise RuntimeError("an unlucky set")
        return super().train(model, params, data, run)


class FailingToSave(Toy):
    """What was trained cannot be saved."""

    meta = PluginMeta(name="Failing to save")

    def save(self, model: Vector, folder: Path) -> None:
        if model[0] != 0.2:
            raise OSError("no space left on device")
        super().save(model, folder)


class Forgetful(Toy):
    """What is saved is not what was trained."""

    meta = PluginMeta(name="Forgetful")

    def save(self, model: Vector, folder: Path) -> None:
        super().save(model if model[0] == 0.2 else model * 0.5, folder)


class Collapsed(Toy):
    """The score of what was trained is not a number."""

    meta = PluginMeta(name="Collapsed")

    def suggest(self, trial: optuna.Trial) -> Parameters:
        return {"skill": float("nan")}


class Counting(Toy):
    """Counts 100 tokens per step. The set with seed 1 fails after its first step."""

    meta = PluginMeta(name="Counting")

    def estimate_trained_tokens(self, params: Parameters, data: Splits[Any]) -> int:
        assert data.test is None
        return 150 if params["skill"] > 0 else 0

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        for step in range(2):
            run.trained_tokens += 100
            run.report(self.evaluate(model, data.validation), step)
            if run.seed == 1:
                raise RuntimeError("an unlucky set")
        return np.array([params["skill"]])


class Crashing(Toy):
    """The trial's process dies."""

    meta = PluginMeta(name="Crashing")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        os.abort()


class Slow(Toy):
    """Reports every 50 ms for a minute, unless it is ended."""

    meta = PluginMeta(name="Slow")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        for step in range(1200):
            run.report(self.evaluate(model, data.validation), step)
            time.sleep(0.05)
        return np.array([params["skill"]])


class Heeding(Slow):
    """Slow, but returns what there is when it is asked to."""

    meta = PluginMeta(name="Heeding")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        for step in range(1200):
            run.report(self.evaluate(model, data.validation), step)
            if run.should_stop:
                break
            time.sleep(0.05)
        return np.array([params["skill"]])


class Silent(Toy):
    """Never reports, and returns at once."""

    meta = PluginMeta(name="Silent")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        return np.array([params["skill"]])


class Stuck(Toy):
    """Never reports."""

    meta = PluginMeta(name="Stuck")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        time.sleep(600)
        return model


class StuckOnce(Toy):
    """The second set never ends."""

    meta = PluginMeta(name="Stuck once")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        if run.seed % 100_000 == 1:
            time.sleep(600)
        return super().train(model, params, data, run)


class FailingToPrepare(Toy):
    """It prints something and fails with its data."""

    meta = PluginMeta(name="Failing to prepare")

    def prepare(self, sessions: Splits[Sequence[Session]], folder: Path) -> Mapping[str, float]:
        sys.stdout.write("Reading the sessions\n")
        return {"sessions": 1 / len(sessions.train[:0])}


class FailingToSuggest(Toy):
    """Proposes one set; asked for more once that was trained, it fails."""

    meta = PluginMeta(name="Failing to suggest")

    def suggest(self, trial: optuna.Trial) -> Parameters:
        if trial.study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            raise KeyError("learning_rate")
        return super().suggest(trial)


class ExitingToSuggest(Toy):
    """Ends the process that asks it for a set."""

    meta = PluginMeta(name="Exiting to suggest")

    def suggest(self, trial: optuna.Trial) -> Parameters:
        sys.exit(2)


class StuckSuggesting(Toy):
    """Never has a set to propose."""

    meta = PluginMeta(name="Stuck suggesting")

    def suggest(self, trial: optuna.Trial) -> Parameters:
        time.sleep(600)
        return {}


class Unmeasured(Toy):
    """Its scores lack the main metric."""

    meta = PluginMeta(name="Unmeasured")

    def evaluate(self, model: Vector, split: list[Session]) -> Scores:
        return {"size": float(len(split))}


class StuckPreparing(Toy):
    """Its data is never ready."""

    meta = PluginMeta(name="Stuck preparing")

    def prepare(self, sessions: Splits[Sequence[Session]], folder: Path) -> Mapping[str, float]:
        time.sleep(600)
        return {}


class Paced(Toy):
    """Ten reports, 50 ms apart."""

    meta = PluginMeta(name="Paced")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        for step in range(10):
            run.report(self.evaluate(model, data.validation), step)
            time.sleep(0.05)
        return np.array([params["skill"]])


class Shouting(Toy):
    """The trial's process says why, then dies."""

    meta = PluginMeta(name="Shouting")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        for number in range(100):
            sys.stderr.write(f"warning {number}\n")
        sys.stderr.write("CUDA error: the device is on fire\n")
        sys.stderr.flush()
        os.abort()


class Struck(Toy):
    """The process that prepares the data dies, once; where a file `doomed` lies in the data
    folder, each time."""

    meta = PluginMeta(name="Struck")

    def prepare(self, sessions: Splits[Sequence[Session]], folder: Path) -> Mapping[str, float]:
        struck = Settings().data_folder / "struck"
        if not struck.exists() or struck.with_name("doomed").exists():
            struck.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(sessions, folder)


class Talkative(Toy):
    """Prints what it is doing; the second trial fails."""

    meta = PluginMeta(name="Talkative")

    def prepare(self, sessions: Splits[Sequence[Session]], folder: Path) -> Mapping[str, float]:
        sys.stdout.write("Reading the sessions\n")
        return super().prepare(sessions, folder)

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        sys.stderr.write("Epoch 1 of 1\n")
        trained = super().train(model, params, data, run)
        if run.seed % 100_000 == 1:
            raise RuntimeError("an unlucky set")
        return trained


class Murderous(Toy):
    """Each trial kills the worker that runs it."""

    meta = PluginMeta(name="Murderous")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        worker = multiprocessing.parent_process()
        os.kill(os.getpid() if worker is None else worker.pid or 0, signal.SIGKILL)
        time.sleep(600)
        return model


class Heavy(Toy):
    """Eight megabytes, once it is trained."""

    meta = PluginMeta(name="Heavy")

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        return np.full(1_000_000, params["skill"])


class Climbing(Toy):
    """Reports 8 steps, on the way up to its skill; a stop is obeyed."""

    meta = PluginMeta(name="Climbing")
    pruner = "asha"

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        for step in range(8):
            run.trained_tokens += 100
            run.report(self.evaluate(model + params["skill"] * step / 8, data.validation), step)
        return np.array([params["skill"]])


class Chatty(Toy):
    """Reports a thousand steps as fast as it can."""

    meta = PluginMeta(name="Chatty")
    pruner = "none"

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        scores = self.evaluate(model, data.validation)
        for step in range(1000):
            run.report(scores, step)
        return np.array([params["skill"]])


class Few(Toy):
    """There are three sets, and no more."""

    meta = PluginMeta(name="Few")
    sampler = "grid"

    def suggest(self, trial: optuna.Trial) -> Parameters:
        return {"skill": trial.suggest_float("skill", 0.3, 0.9, step=0.3)}


class Meeting(Toy):
    """Each trial reports, then waits until a second one has begun: `meeting` in its parameters."""

    meta = PluginMeta(name="Meeting")

    def suggest(self, trial: optuna.Trial) -> Parameters:
        return {**super().suggest(trial), "meeting": os.environ["TOY_MEETING"]}

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        run.report(self.evaluate(model, data.validation), 0)
        meeting = Path(params["meeting"])
        (meeting / str(run.seed)).touch()
        while not (meeting / "go on").exists():
            time.sleep(0.01)
        return np.array([params["skill"]])


class Odd(Toy):
    """Names that MLflow refuses, values that JSON and MLflow refuse, numbers that are NumPy's."""

    meta = PluginMeta(name="Odd")
    main_metric = "skill@10"

    def suggest(self, trial: Any) -> Parameters:
        skills = np.linspace(0.3, 0.9, 30, dtype=np.float32)
        return {
            "lr(log)": np.float32(trial.suggest_float("lr(log)", 1e-3, 1.0, log=True)),
            "seed": trial.suggest_int("seed", 0, 9),
            "skill": trial.suggest_categorical("skill", skills),
            "dims": trial.suggest_categorical("dims", [(256, 64), (128,)]),
            "größe / 大小": trial.suggest_categorical("größe / 大小", [{"a": [1]}, {"b": int}]),
            "prompt": trial.suggest_categorical("prompt", ["long " * 2000, "other " * 2000]),
            **{f"constant {number}": None for number in range(100)},
        }

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: Any) -> Vector:
        assert isinstance(params["skill"], np.float32)
        assert isinstance(params["dims"], tuple)
        assert isinstance(params["größe / 大小"], dict)
        assert run.baseline is not None
        assert {"skill@10", "../share, %"} <= run.baseline.keys()
        for step in np.arange(2):
            run.trained_tokens += np.int64(100)
            run.report(self.evaluate(model, data.validation), step)
        return np.array([params["skill"]])

    def evaluate(self, model: Vector, split: list[Session]) -> Scores:
        scores: dict[str, Any] = {
            "skill@10": np.float32(model[0]),
            "trained_tokens": np.array(7),
            "../share, %": [0.5] * len(split),
        }
        return scores


class Folded(Toy):
    """Judged by three folds; it learns the better the more there is to learn from."""

    meta = PluginMeta(name="Folded")
    folds = 3


class FoldedWorse(Worse):
    """Training always harms, in each fold."""

    meta = PluginMeta(name="Folded and worse")
    folds = 3


class FailingInFolds(Toy):
    """A set that is trained a second time fails."""

    meta = PluginMeta(name="Failing in folds")
    folds = 3

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        queries = {session.search_query for session in data.train}
        if "query 5" in queries:  # which tests the trials
            raise RuntimeError("no luck")
        return super().train(model, params, data, run)


class WorseRefit(Toy):
    """The more it learns from, the worse it is on what it has seen."""

    meta = PluginMeta(name="Refit is worse")
    folds = 3

    def train(self, model: Vector, params: Parameters, data: Splits[Any], run: TrialRun) -> Vector:
        trained = super().train(model, params, data, run)
        return trained - 0.05 * (len(data.train) > 45)


class Explaining(Toy):
    """Tells of each query."""

    meta = PluginMeta(name="Explaining")
    folds = 2

    def explain(self, model: Vector, split: list[Session]) -> Mapping[str, float]:
        return {session.search_query: model[0] for session in split}

    def rank(self, model: Vector, split: list[Session]) -> Mapping[str, Sequence[str]]:
        return {session.search_query: ["<b>lamp</b>", f"{model[0]:.9f}"] for session in split}


class Noisy(Toy):
    """All sets are equal, but for noise in the scores of their models."""

    meta = PluginMeta(name="Noisy")

    def evaluate(self, model: Vector, split: list[Session]) -> Scores:
        noise = np.random.default_rng(int(model[0] * 1e6)).normal(size=len(split))
        return {"skill": 0.5 + noise}


class Taught(Toy):
    """Learns from labels too. The higher its skill, the better it is on every query but those that
    begin with "gold", on which it is the worse."""

    meta = PluginMeta(name="Taught")
    folds = 2

    def prepare(
        self,
        sessions: Splits[Sequence[Session]],
        folder: Path,
        labels: Splits[Sequence[LabelledResult]] | None = None,
    ) -> Mapping[str, float]:
        labels = labels or Splits((), (), ())
        left_out = 0
        for name, part in sessions.named().items():
            taught = [label for label in labels.named()[name] if label.result.meta]
            left_out += len(labels.named()[name]) - len(taught)
            queries = {session.search_query for session in part} | {one.query for one in taught}
            (folder / f"{name}.json").write_text(json.dumps(sorted(queries)))
        if left_out == sum(map(len, labels.named().values())) > 0:
            raise NotEnoughData("no label has an item with content")
        return {"labels_left_out": left_out}

    def load_data(self, folder: Path) -> Splits[list[str]]:
        return Splits.of(lambda name: json.loads((folder / f"{name}.json").read_text()))

    def evaluate(self, model: Vector, split: list[Any]) -> Scores:
        sign = np.array([-1 if query.startswith("gold") else 1 for query in split])
        return {"skill": sign * model[0] + np.linspace(-0.01, 0.01, len(split))}
