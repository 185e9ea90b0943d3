from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedding_studio.errors import CorruptModel, MethodError
from embedding_studio.training.encoder import (
    count_layers,
    embed,
    embed_frozen,
    freeze_layers,
    load_encoder,
    require_same_tokenizer,
    save_encoder,
    tokenize,
)
from tests.training.tiny import PACKAGED_MODEL

TEXTS = ["a", "three little words", "", "cat", "a somewhat longer text about cats and dogs", "a"]


@pytest.fixture
def model(tiny_model_folder: Path) -> SentenceTransformer:
    return load_encoder(tiny_model_folder)


def test_token_ids_give_the_librarys_embeddings(model: SentenceTransformer) -> None:
    """Buckets, padding and reordering change nothing about what a text's embedding is."""
    expected = model.encode(TEXTS, normalize_embeddings=True)
    texts = tokenize(model, TEXTS)
    assert embed_frozen(model, texts, np.arange(len(TEXTS))) == pytest.approx(expected, abs=1e-5)
    in_small_chunks = embed(model, texts, np.arange(len(TEXTS)), max_tokens=8)
    normal = torch.nn.functional.normalize(in_small_chunks, dim=1).detach().numpy()
    assert normal == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_token_ids_give_the_librarys_embeddings_for_the_real_model() -> None:
    """The same for the packaged model."""
    model = load_encoder(PACKAGED_MODEL)
    texts = tokenize(model, TEXTS)
    found = embed_frozen(model, texts, np.arange(len(TEXTS)))
    assert found == pytest.approx(model.encode(TEXTS), abs=1e-5)


def test_texts_are_cut_at_the_models_length(model: SentenceTransformer) -> None:
    """No text has more tokens than the model takes."""
    model.max_seq_length = 5
    assert tokenize(model, ["one two three four five six seven"]).lengths(np.array([0])) == 5


def test_save_and_load_give_the_same_embeddings(model: SentenceTransformer, tmp_path: Path) -> None:
    """A saved model is the model, for this code and for the library alone."""
    save_encoder(model, tmp_path / "saved")
    expected = model.encode(TEXTS)
    assert load_encoder(tmp_path / "saved").encode(TEXTS) == pytest.approx(expected, abs=1e-6)
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert plain.encode(TEXTS) == pytest.approx(expected, abs=1e-6)


def test_no_pickle_is_written(model: SentenceTransformer, tmp_path: Path) -> None:
    """A saved model consists of safetensors and text."""
    save_encoder(model, tmp_path / "saved")
    suffixes = {file.suffix for file in (tmp_path / "saved").rglob("*") if file.is_file()}
    assert suffixes <= {".safetensors", ".json", ".txt", ".md"}
    assert ".safetensors" in suffixes


def test_a_failed_save_raises(model: SentenceTransformer, tmp_path: Path) -> None:
    """A place that cannot be written is an error."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        save_encoder(model, tmp_path / "file" / "model")


def test_a_diverged_model_is_not_saved(model: SentenceTransformer, tmp_path: Path) -> None:
    """Weights that are not finite are refused by name."""
    name = next(name for name, _ in model.named_parameters() if "layer.1.output" in name)
    with torch.no_grad():
        dict(model.named_parameters())[name][0] = torch.nan
    with pytest.raises(CorruptModel, match=f"{name} is not finite"):
        save_encoder(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_folder_without_a_model_is_corrupt(tmp_path: Path) -> None:
    """An empty folder names itself in the error."""
    with pytest.raises(CorruptModel, match=str(tmp_path)):
        load_encoder(tmp_path)


def test_frozen_is_what_comes_before(model: SentenceTransformer) -> None:
    """Embeddings and the first layers do not learn, the rest does."""
    assert count_layers(model) == 2
    freeze_layers(model, 1)
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not any(learns[name] for name in learns if ".embeddings." in name)
    assert not any(learns[name] for name in learns if ".layer.0." in name)
    assert all(learns[name] for name in learns if ".layer.1." in name)
    freeze_layers(model, 0)
    assert all(p.requires_grad for name, p in model.named_parameters() if ".layer." in name)


def test_freezing_more_layers_than_there_are_is_refused(model: SentenceTransformer) -> None:
    """The message tells how many there are."""
    with pytest.raises(MethodError, match="freeze 3 layers of a model with 2"):
        freeze_layers(model, 3)


def test_another_tokenizer_is_noticed(model: SentenceTransformer) -> None:
    """Token ids of one vocabulary mean nothing to another model."""
    texts = tokenize(model, TEXTS)
    require_same_tokenizer(model, texts)
    model.tokenizer.add_tokens(["unheardof"])
    with pytest.raises(MethodError, match="ES_INITIAL_MODEL"):
        require_same_tokenizer(model, texts)
