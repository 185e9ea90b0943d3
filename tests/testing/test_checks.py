"""The kit for plugin authors: each check passes what is right and tells what is wrong."""

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedding_studio import FineTuningMethod, Parameters, PluginMeta, Scores, Session, TrialRun
from embedding_studio.clickstream import Splits, merge_weights
from embedding_studio.errors import EmbeddingStudioError, MethodError
from embedding_studio.methods import AnyMethod, discover_methods
from embedding_studio.snapshot import Snapshot
from embedding_studio.testing import MethodTestCase
from embedding_studio.testing.bench import RECORDED, Bench
from embedding_studio.testing.checks import CHECKS
from embedding_studio.training.evaluation import evaluate_vectors
from tests.testing.recorder import record, write

PLUGINS = Path(__file__).parents[2] / "plugins"


class Scale(FineTuningMethod[Any]):
    """How much to trust the search engine's own score, which is as small as a method gets."""

    meta = PluginMeta("Scale")
    main_metric = "likelihood"

    def load_initial_model(self) -> Any:
        return np.array([1.0])

    def suggest(self, trial: Any) -> Parameters:
        return {"rate": trial.suggest_float("rate", 0.01, 1.0, log=True)}

    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        for epoch in range(3):
            model = model * (1 + params["rate"])
            run.report(self.evaluate(model, data.validation), step=epoch)
            if run.should_stop:
                break
        return model

    def evaluate(self, model: Any, split: Any) -> Scores:
        return {"likelihood": np.array([_of_click(model, one) for one in split])}


def _of_click(model: Any, session: Session) -> float:
    scores = model[0] * np.array([result.rank or 0.0 for result in session.search_results])
    clicked = [result.object_id in session.clicked_ids() for result in session.search_results]
    return float(np.log((np.exp(scores)[clicked].sum() + 1e-3) / np.exp(scores).sum()))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One in ten of the recorded sessions."""
    return write(tmp_path_factory.mktemp("batch") / "few", one_in=10)


class TestScale(MethodTestCase):
    """A method that is right passes, named by its class."""

    method = Scale


def test_the_batch_is_the_one_that_its_recorder_makes() -> None:
    """What the package carries can be made anew."""
    kept = [*Snapshot(RECORDED, merge_weights()).usable()]
    made = [session.weighed(merge_weights()) for session in record()]
    assert kept == made


class DrawsByItself(Scale):
    def suggest(self, trial: Any) -> Parameters:
        return {"rate": random.random()}


class RecommendsWhatItCannotDraw(Scale):
    recommended = {"rate": 7.0}  # noqa: RUF012


class Silent(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        return model * 2


class Repeating(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        for _ in range(2):
            run.report(self.evaluate(model, data.validation), step=0)
        return model * 2


class ReturningNothing(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        super().train(model, params, data, run)

    def save(self, model: Any, folder: Path) -> None:
        super().save(np.zeros(1) if model is None else model, folder)


class Lazy(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        super().train(model, params, data, run)
        return model


class ChangingNoWeights(Lazy):
    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        (folder / "place.json").write_text(f'"{folder}"')


class ForetellingInVain(Scale):
    def estimate_trained_tokens(self, params: Parameters, data: Splits[Any]) -> int:
        return 1000


class WithoutItsMetric(Scale):
    main_metric = "ndcg"


class NotFinite(Scale):
    def evaluate(self, model: Any, split: Any) -> Scores:
        return {**super().evaluate(model, split), "other": np.array([0.0, np.nan])}


class OfOneNumber(Scale):
    def evaluate(self, model: Any, split: Any) -> Scores:
        return {"likelihood": float(np.mean(super().evaluate(model, split)["likelihood"]))}


class DrawingScores(Scale):
    def evaluate(self, model: Any, split: Any) -> Scores:
        return {"likelihood": np.random.default_rng().random(len(split))}


class BlindToItsModel(Scale):
    def evaluate(self, model: Any, split: Any) -> Scores:
        return {"likelihood": np.full(len(split), 0.5)}


class ChoosingItsQueries(Scale):
    def evaluate(self, model: Any, split: Any) -> Scores:
        return super().evaluate(model, list(split)[: 10 if model[0] == 1 else 11])


class Forgetful(Scale):
    def save(self, model: Any, folder: Path) -> None:
        super().save(np.round(model), folder)


class SavingNothing(Scale):
    def save(self, model: Any, folder: Path) -> None:
        pass

    def load(self, folder: Path) -> Any:
        return np.array([1.0])


class Pickling(Scale):
    def save(self, model: Any, folder: Path) -> None:
        super().save(model, folder)
        (folder / "model.pkl").write_bytes(b"")


class Deaf(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        for epoch in range(3):
            model = model * (1 + params["rate"])
            run.report(self.evaluate(model, data.validation), step=epoch)
        return model


class Swallowing(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        with suppress(Exception):
            return super().train(model, params, data, run)
        return model


class Unseeded(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        return super().train(model * (1 + torch.rand(1).item()), params, data, run)


class WritingIntoTheData(Scale):
    def prepare(self, sessions: Splits[Sequence[Session]], folder: Path) -> Mapping[str, float]:
        (folder / "count.txt").write_text("")
        return super().prepare(sessions, folder)

    def load_data(self, folder: Path) -> Splits[Any]:
        self.folder = folder
        return super().load_data(folder)

    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        with (self.folder / "count.txt").open("a") as file:
            file.write("x")
        return super().train(model, params, data, run)


class ChangingItsSet(Scale):
    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        params["rate"] *= 0.5
        return super().train(model, params, data, run)


class ScoringByLearning(Scale):
    def evaluate(self, model: Any, split: Any) -> Scores:
        model *= 1.01
        return super().evaluate(model, split)


class Frozen(Scale):
    """Of two numbers, the second should stay."""

    def load_initial_model(self) -> Any:
        return {"learning": np.array([1.0]), "still": np.array([1.0])}

    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        learnt = super().train(model["learning"], params, data, run)
        return {"learning": learnt, "still": learnt}

    def evaluate(self, model: Any, split: Any) -> Scores:
        return super().evaluate(model["learning"] if isinstance(model, dict) else model, split)


class FrozenModule(Scale):
    """A layer that says that it does not learn, and does."""

    def load_initial_model(self) -> Any:
        model: Any = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1))
        model[0].weight.requires_grad_(False).fill_(1.0)
        return model

    def train(self, model: Any, params: Parameters, data: Splits[Any], run: TrialRun) -> Any:
        model[0].weight.mul_(2)
        run.report(self.evaluate(model, data.validation), step=0)
        return model

    def evaluate(self, model: Any, split: Any) -> Scores:
        return super().evaluate(model[0].weight[0].numpy(), split)

    def save(self, model: Any, folder: Path) -> None:
        super().save({"weight": model[0].weight.numpy()}, folder)

    def load(self, folder: Path) -> Any:
        model = self.load_initial_model()
        model[0].weight.copy_(torch.from_numpy(super().load(folder)["weight"]))
        return model


@pytest.mark.parametrize(
    ("check", "method", "told"),
    [
        ("suggest", DrawsByItself, "`suggest` is not deterministic"),
        ("suggest", RecommendsWhatItCannotDraw, "the recommended set is left out"),
        ("train", Silent, "never calls run.report"),
        ("train", Repeating, r"reports the steps \[0, 0\]"),
        ("train", ReturningNothing, "`train` returns None"),
        ("train", Lazy, "unchanged, with {'rate'"),
        ("train", ChangingNoWeights, "unchanged, with {'rate'"),
        ("train", ForetellingInVain, "foretells 1000 tokens and `train` counts none"),
        ("evaluate", WithoutItsMetric, r"the scores \['likelihood'\] lack the main metric 'ndcg'"),
        ("evaluate", NotFinite, "other is not finite for 1 of 2 values"),
        ("evaluate", OfOneNumber, "one number for all queries"),
        ("evaluate", DrawingScores, "`evaluate` is not deterministic"),
        ("evaluate", BlindToItsModel, "does `evaluate` compute it from the model"),
        ("evaluate", ChoosingItsQueries, "10 values for the initial model and 11"),
        ("save_and_load", Forgetful, "the trained model's likelihood was .* another value for"),
        ("save_and_load", SavingNothing, "`save` writes no file"),
        ("save_and_load", Pickling, "'model.pkl' is no kind of file"),
        ("stop", Deaf, "asked to stop at its first report, `train` reported again"),
        ("stop", Swallowing, "went on after its trial was pruned"),
        ("seeds", Unseeded, "two trainings with one seed gave different models"),
        ("frozen", WritingIntoTheData, "changed count.txt in the folder of data"),
        ("frozen", ChangingItsSet, "changed its hyperparameters from"),
        ("frozen", ScoringByLearning, "`evaluate` changes the model"),
        ("frozen", FrozenModule, "0.weight with requires_grad = False, and training changed it"),
    ],
)
def test_a_wrong_method_is_told_what_is_wrong(
    check: str, method: type[Scale], told: str, tmp_path: Path, few: Path
) -> None:
    """Each mistake fails the check that is for it, in words that name it."""
    with pytest.raises(EmbeddingStudioError, match=told):
        CHECKS[check](Bench(method(), tmp_path, few))


@pytest.mark.parametrize(
    ("pattern", "told"),
    [("st*", "still, which is to stay frozen, was changed"), ("stil", "there is learning, still")],
)
def test_tensors_that_are_to_stay_are_looked_at(
    pattern: str, told: str, tmp_path: Path, few: Path
) -> None:
    """They are named by patterns, which must name some."""
    with pytest.raises(MethodError, match=told):
        CHECKS["frozen"](Bench(Frozen(), tmp_path, few, frozen=[pattern]))


def test_every_check_has_a_wrong_method() -> None:
    """No check is there that nothing fails."""
    marks: Any = test_a_wrong_method_is_told_what_is_wrong
    (cases,) = [mark.args[1] for mark in marks.pytestmark]
    assert {check for check, *_ in cases} | {"served"} == set(CHECKS)


def test_every_check_is_in_the_test_case() -> None:
    """`MethodTestCase` has a test for each, and no other."""
    tests = {name for name in vars(MethodTestCase) if name.startswith("test_")}
    assert tests == {f"test_{name}" for name in CHECKS}


@pytest.mark.slow
def test_what_is_judged_must_be_what_is_served(tmp_path: Path) -> None:
    """An `evaluate` that forgets the prompts, and a `load` that changes the encoder, are told."""
    base: Any = type(discover_methods(PLUGINS).get("Default Fine Tuning Method"))

    class WithoutPrompts(base):  # type: ignore[misc]
        def evaluate(self, model: Any, split: Any) -> Scores:
            def bare(which: Any) -> Any:
                texts = [split.texts.contents[n] for n in which]
                return model.encode(texts, prompt="", normalize_embeddings=True)

            return evaluate_vectors(split, bare(split.queries), bare)

    class CuttingByItself(base):  # type: ignore[misc]
        def save(self, model: Any, folder: Path) -> None:
            with model.truncate_embeddings(None):
                super().save(model, folder)

        def load(self, folder: Path) -> Any:
            model = super().load(folder)
            model.truncate_dim = 8
            return model

    wrong: list[tuple[type[AnyMethod], str]] = [
        (WithoutPrompts, "does not score what is served: with the prompts"),
        (CuttingByItself, "loaded by sentence-transformers alone, gives other vectors"),
    ]
    for number, (method, told) in enumerate(wrong):
        bench = Bench(method(), tmp_path / str(number))
        with bench.standing_in(), pytest.raises(MethodError, match=told):
            CHECKS["served"](bench)


@pytest.mark.slow
def test_items_that_are_to_keep_their_vectors_are_looked_at(tmp_path: Path) -> None:
    """The default method changes them, and is told."""
    method = discover_methods(PLUGINS).get("Default Fine Tuning Method")
    bench = Bench(method, tmp_path, keeps_items=True)
    with bench.standing_in(), pytest.raises(MethodError, match="items are to keep their vectors"):
        CHECKS["frozen"](bench)
