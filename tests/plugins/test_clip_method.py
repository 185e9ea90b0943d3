"""The image method, used as an iteration uses it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import Splits, split_by_query
from embedding_studio.methods import AnyMethod, Parameters, discover_methods
from embedding_studio.training.augmentation import Augmentation
from embedding_studio.training.encoder import embed_frozen
from embedding_studio.training.images import ImageLists
from embedding_studio.training.towers import Tower
from tests.training.tiny import Reports
from tests.training.tiny_clip import icon_searches, write_tiny_clip

pytestmark = pytest.mark.slow

PLUGINS = Path(__file__).parents[2] / "plugins"
PARAMS: Parameters = {
    "text_learning_rate": 3e-3,
    "image_learning_rate": 3e-3,
    "text_frozen_layers": 0,
    "image_frozen_layers": 0,
    "weight_decay": 0.01,
    "epochs": 1,
    "batch_size": 16,
    "temperature": 0.07,
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def method(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AnyMethod:
    monkeypatch.setenv("ES_INITIAL_IMAGE_MODEL", str(model_folder))
    return discover_methods(PLUGINS).get("CLIP Fine Tuning Method")


@pytest.fixture(scope="module")
def data_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Searches for 30 icons in 500 ways, prepared."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ES_INITIAL_IMAGE_MODEL", str(model_folder))
        patch.setenv("ES_ALLOWED_ROOTS", str(folder))
        made = discover_methods(PLUGINS).get("CLIP Fine Tuning Method")
        sessions = icon_searches(folder / "icons", 12_000, queries=500)
        (folder / "prepared").mkdir()
        splits = split_by_query(sessions, made.validation_share, made.test_share)
        made.prepare(splits, folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def data(method: AnyMethod, data_folder: Path) -> Splits[Any]:
    return replace(method.load_data(data_folder), test=None)


def still(method: AnyMethod) -> AnyMethod:
    """Return the method as its author would subclass it, with every augmentation off."""
    off = Augmentation(**dict.fromkeys(Augmentation.switches(), False))
    made: AnyMethod = type("Still", (type(method),), {"augmentation": off})()
    return made


def suggestion(method: AnyMethod, seed: int = 0) -> Parameters:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    return method.suggest(study.ask())


def weights_of(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    return {name: values.detach().clone() for name, values in model.named_parameters()}


def changed_by(method: AnyMethod, data: Splits[Any], **params: Any) -> set[str]:
    """Return the names of the parameters that a training changes."""
    model = method.load_initial_model()
    before = weights_of(model)
    method.train(model, PARAMS | params, data, Reports())
    return {name for name, now in weights_of(model).items() if not now.equal(before[name])}


def ndcg(method: AnyMethod, model: SentenceTransformer, split: ImageLists) -> float:
    return float(np.mean(method.evaluate(model, split)["ndcg_at_10"]))


@pytest.mark.parametrize(("is_augmented", "gain"), [(False, 0.6), (True, 0.05)])
def test_clicks_on_icons_make_the_model_better(
    method: AnyMethod, data: Splits[Any], is_augmented: bool, gain: float
) -> None:
    """On unseen queries, without augmentation and, more slowly, with all of it."""
    method = method if is_augmented else still(method)
    model = method.load_initial_model()
    before = ndcg(method, model, data.validation)
    run = Reports()
    model = method.train(model, PARAMS | {"epochs": 8}, data, run)
    assert ndcg(method, model, data.validation) > before + gain
    assert run.trained_tokens > 0


def test_a_seed_fixes_the_outcome(method: AnyMethod, data: Splits[Any]) -> None:
    """Augmentation and all: one seed gives the same weights twice, another one others."""

    def outcome(seed: int) -> torch.Tensor:
        model = method.load_initial_model()
        method.train(model, PARAMS, data, Reports(seed))
        return torch.cat([weights.flatten() for weights in weights_of(model).values()])

    assert outcome(1).equal(outcome(1))
    assert not outcome(1).equal(outcome(2))


def test_a_trial_runs_through(method: AnyMethod, data: Splits[Any], tmp_path: Path) -> None:
    """Any suggestion trains even this shallow model, and what is saved loads as the same."""
    model = method.load_initial_model()
    run = Reports()
    model = method.train(model, suggestion(method), data, run)
    method.save(model, tmp_path)
    again = method.load(tmp_path)
    assert ndcg(method, again, data.validation) == ndcg(method, model, data.validation)
    assert all("ndcg_at_10" in scores for scores in run.scores)
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} <= {
        ".safetensors",
        ".json",
        ".md",
    }


def test_models_are_judged_by_clicks_on_what_the_start_showed(
    method: AnyMethod, data_folder: Path, tmp_path: Path
) -> None:
    """Each held-out query has a value then, whose mean is no more than 1; some are explained."""
    folder = tmp_path / "data"
    shutil.copytree(data_folder, folder)
    model = method.load_initial_model()
    assert sum(name.endswith("_chosen") for name in method.note_start(model, folder)) == 1
    split = method.load_data(folder).test
    values = np.asarray(method.evaluate(model, split)["ndcg_at_10"])
    assert values.shape == (len(split),)
    assert 0 < values.mean() <= 1
    found = method.explain(model, split)
    assert set(found) <= set(split.spellings())
    assert found


def test_each_tower_has_its_own_frozen_depth(method: AnyMethod, data: Splits[Any]) -> None:
    """What is frozen stays bit for bit; the last norm and the projection always learn."""
    changed = changed_by(method, data, text_frozen_layers=2, image_frozen_layers=1)
    text = {name for name in changed if "text_" in name}
    assert text == {
        "0.model.text_model.final_layer_norm.weight",
        "0.model.text_model.final_layer_norm.bias",
        "0.model.text_projection.weight",
    }
    assert "0.model.visual_projection.weight" in changed
    assert any(".vision_model.encoder.layers.1." in name for name in changed)
    assert not any(".vision_model.encoder.layers.0." in name for name in changed)
    assert not any("embedding" in name or "logit_scale" in name for name in changed)


def test_each_tower_has_its_own_learning_rate(method: AnyMethod, data: Splits[Any]) -> None:
    """A rate of zero leaves one tower as it was, bit for bit, while the other learns."""
    images_alone = changed_by(method, data, text_learning_rate=0.0)
    assert images_alone
    assert all("vision" in name or "visual" in name for name in images_alone)
    texts_alone = changed_by(method, data, image_learning_rate=0.0)
    assert texts_alone
    assert all(".text_" in name for name in texts_alone)


def test_kept_activations_of_frozen_layers_change_nothing(
    method: AnyMethod, data: Splits[Any]
) -> None:
    """A tower that reads back what its frozen layers gave embeds like one that computes it."""
    model = method.load_initial_model()
    for inputs, scope in (
        (data.train.texts, ("text_model.", "text_projection.")),
        (data.train.images, ("vision_model.", "visual_projection.")),
    ):
        which = np.arange(len(inputs))
        tower = Tower(model, inputs, frozen_layers=1, learning_rate=0.0, scope=scope)
        assert tower.vectors(which) == pytest.approx(embed_frozen(model, inputs, which), abs=0.02)


def test_evaluation_sees_images_as_they_are(method: AnyMethod, data: Splits[Any]) -> None:
    """Augmentation or none: a model's scores are the same, and the same twice."""
    model = method.load_initial_model()
    score = ndcg(method, model, data.validation)
    assert score == ndcg(method, model, data.validation)
    assert score == ndcg(still(method), model, data.validation)


def test_the_switches_are_parameters(method: AnyMethod) -> None:
    """Every suggestion says what is on, so that MLflow shows it; all values are plain."""
    suggested = suggestion(method)
    assert all(suggested[switch] is True for switch in Augmentation.switches())
    assert not any(suggestion(still(method))[switch] for switch in Augmentation.switches())
    assert all(isinstance(value, str | int | float | bool) for value in suggested.values())
    assert suggested.keys() - set(Augmentation.switches()) == PARAMS.keys()


def test_the_cost_of_a_training_is_known_before(method: AnyMethod, data: Splits[Any]) -> None:
    """The estimate is near what the training counts in the end."""
    run = Reports()
    method.train(method.load_initial_model(), PARAMS, data, run)
    estimate = method.estimate_trained_tokens(PARAMS, data)
    assert estimate is not None
    assert estimate == pytest.approx(run.trained_tokens, rel=0.1)
