"""Model folders that were made to do harm when they are loaded."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from embedding_studio.errors import CorruptModel, MethodError
from embedding_studio.training.encoder import load_encoder
from tests.training.tiny import write_tiny_model


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def folder(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound model, beside a module that must not be imported."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(sound, tmp_path / "model")
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit('imported')")
    return tmp_path / "model"


def change(file: Path, **changes: Any) -> None:
    found = json.loads(file.read_text())
    (found[0] if isinstance(found, list) else found).update(changes)
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    "module",
    [
        {"type": "evil.Evil"},
        {"type": "os.system"},
        {"type": "sentence_transformers.base.model.torch"},
        {"type": "sentence_transformers.no.such.thing"},
        {"path": "../../etc"},
        {"path": "/etc"},
    ],
)
def test_a_module_of_another_place_is_not_loaded(folder: Path, module: dict[str, str]) -> None:
    """modules.json names classes of sentence-transformers and folders within the model's own."""
    change(folder / "modules.json", **module)
    with pytest.raises((CorruptModel, MethodError), match=str(folder)):
        load_encoder(folder)
    assert "evil" not in sys.modules


def test_code_of_the_models_own_is_not_run(folder: Path) -> None:
    """Neither is a class of a known kind of model replaced by one that comes along."""
    own_classes = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    change(folder / "config.json", auto_map=own_classes)
    load_encoder(folder)
    change(folder / "config.json", auto_map=own_classes, model_type="evil")
    with pytest.raises((CorruptModel, MethodError), match=str(folder)):
        load_encoder(folder)
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 10**9},
        {"hidden_size": 12 * 10**5},
        {"max_position_embeddings": 10**12},
        {"hidden_size": "many"},
        {"dtype": "system"},
    ],
)
def test_a_config_that_lies_about_the_size_is_no_model(folder: Path, config: Any) -> None:
    """Nothing is allocated for weights that the files do not hold."""
    change(folder / "config.json", **config)
    with pytest.raises(CorruptModel, match=str(folder)):
        load_encoder(folder)


@pytest.mark.parametrize("weights", [b"", b"\xff" * 7 + b"\x00{}", b"\x80\x04cos\nsystem\n"])
def test_weights_that_are_none_are_no_model(folder: Path, weights: bytes) -> None:
    """An empty file, a header without end, a pickle in safetensors' clothes."""
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(CorruptModel, match=str(folder)):
        load_encoder(folder)


def test_a_nested_config_is_no_model(folder: Path) -> None:
    """What is nested deeper than Python parses is an error like others."""
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(CorruptModel, match=str(folder)):
        load_encoder(folder)
