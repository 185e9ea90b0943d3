"""The registry: versions, champions, and models of somebody else."""

import os
import shutil
from pathlib import Path

import mlflow.sentence_transformers
import pytest
from mlflow.models import Model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from embedding_studio.errors import CorruptModel
from embedding_studio.projects import RegisteredName
from embedding_studio.tracking.tracking import Tracking
from tests.iterations import TOY
from tests.tracking.samples import save_arrays


def test_registering_can_be_repeated(tracking: Tracking, tmp_path: Path) -> None:
    """Registering twice gives one version; the alias moves when it is told to, and only then."""
    first = tracking.models.store_initial(RegisteredName("A"), save_arrays(tmp_path / "a"))
    second = tracking.models.store_initial(RegisteredName("B"), save_arrays(tmp_path / "b"))
    assert [tracking.registry.register(TOY, first, "why") for _ in range(2)] == [1, 1]
    assert tracking.registry.register(TOY, second, "why") == 2
    registry = tracking.registry
    assert (registry.champion_version(TOY), registry.champion(TOY)) == (None, None)
    for number, model in ((1, first), (2, second), (2, second)):
        registry.set_champion(TOY, number)
        assert (registry.champion_version(TOY), registry.champion(TOY)) == (number, model)
    assert tracking.registry.champion_versions() == {"Toy": 2}
    assert len(tracking.client.reading.search_model_versions("name = 'Toy'")) == 2


def register_foreign(tracking: Tracking, folder: Path, name: str = "Toy") -> None:
    """Register an MLflow model as somebody does who knows nothing of us."""
    tracking.client.reading.create_registered_model(name)
    version = tracking.client.reading.create_model_version(name, str(folder))
    tracking.client.reading.set_registered_model_alias(name, "champion", version.version)


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers:DeprecationWarning")
def test_a_sentence_transformers_model_of_somebody_else_may_be_champion(
    tracking: Tracking, tmp_path: Path
) -> None:
    """What MLflow's own flavor saved is found, checked and copied like a model of ours; registered
    with a run or without; the sweep leaves it alone."""
    encoder = SentenceTransformer(modules=[BoW(["a", "b", "c"])])
    flavor = mlflow.sentence_transformers
    flavor.save_model(encoder, tmp_path / "own", pip_requirements=["sentence-transformers"])
    register_foreign(tracking, tmp_path / "own")
    champion = tracking.registry.champion(TOY)
    assert champion is not None
    assert champion.run_id == "models:/Toy/1"
    tracking.models.download(champion, tmp_path / "copy")
    assert SentenceTransformer(str(tmp_path / "copy")).encode("a b").tolist() == [1, 1, 0]
    assert list(tracking.leftovers.find([])) == []
    (tmp_path / "own/model.sentence_transformer/pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(CorruptModel, match=r"version 1 of 'Toy'.*pytorch_model.bin.*roll back"):
        tracking.registry.champion(TOY)


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_a_model_has_no_links_and_devices(tracking: Tracking, tmp_path: Path, kind: str) -> None:
    """What is beside a model is no part of it, and what has no end is not read."""
    card = Model()
    card.add_flavor("sentence_transformers")
    payload = tmp_path / "own" / "model.sentence_transformer"
    payload.mkdir(parents=True)
    card.save(str(tmp_path / "own" / "MLmodel"))
    (payload / "modules.json").write_text("[]")
    register_foreign(tracking, tmp_path / "own")
    champion = tracking.registry.champion(TOY)
    assert champion is not None
    if kind == "fifo":
        os.mkfifo(payload / "a.json")
    else:
        (payload / "a.json").symlink_to("/dev/zero" if kind == "link" else payload)
    with pytest.raises(CorruptModel, match=r"a.json' is no plain file"):
        tracking.registry.champion(TOY)
    with pytest.raises(CorruptModel, match=r"a.json' is no plain file"):
        tracking.models.download(champion, tmp_path / "copy")


def test_a_champion_of_another_kind_is_refused_in_our_words(
    tracking: Tracking, tmp_path: Path
) -> None:
    """Neither ours nor of sentence-transformers: which version, of which kinds, and what to do."""
    card = Model()
    card.add_flavor("sklearn", pickled_model="model.pkl")
    (tmp_path / "own").mkdir()
    card.save(str(tmp_path / "own" / "MLmodel"))
    register_foreign(tracking, tmp_path / "own")
    with pytest.raises(CorruptModel, match=r"version 1 of 'Toy'.*\['sklearn'\].*roll back"):
        tracking.registry.champion(TOY)
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(CorruptModel, match=r"version 1 of 'Toy'.*cannot be read.*roll back"):
        tracking.registry.champion(TOY)
