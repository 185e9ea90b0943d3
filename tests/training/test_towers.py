import errno
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedding_studio.errors import MethodError
from embedding_studio.training import activations
from embedding_studio.training.encoder import embed_frozen, load_encoder
from embedding_studio.training.texts import TokenizedTexts, open_texts, tokenize
from embedding_studio.training.towers import BiEncoder, Tower
from tests.training.tiny import write_tiny_model

TEXTS = ["cat", "three little words", "a somewhat longer text about cats and dogs", "", "dog"]
EVERYTHING = np.arange(len(TEXTS))


@pytest.fixture(scope="module")
def deep_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "deep", layers=3)


@pytest.fixture
def model(deep_model_folder: Path) -> SentenceTransformer:
    return load_encoder(deep_model_folder)


@pytest.fixture
def texts(model: SentenceTransformer, tmp_path: Path) -> TokenizedTexts:
    tokenize(model, TEXTS).write(tmp_path)
    return open_texts(tmp_path)


def files(texts: TokenizedTexts) -> list[Path]:
    assert texts.folder is not None
    return sorted(texts.folder.glob("activations-*"))


@pytest.mark.parametrize("frozen_layers", [0, 1, 2, 3])
def test_a_tower_gives_the_models_embeddings(
    model: SentenceTransformer, texts: TokenizedTexts, frozen_layers: int
) -> None:
    """Whatever is recalled from disk, the vectors are the model's own to half precision."""
    tower = Tower(model, texts, frozen_layers, learning_rate=1e-3)
    model.eval()
    assert len(files(texts)) == (frozen_layers > 0)
    expected = embed_frozen(model, texts, EVERYTHING)
    assert tower.vectors(EVERYTHING) == pytest.approx(expected, abs=0.02)  # bfloat16 has 8 bits
    assert tower.vectors(EVERYTHING[[2, 0, 2]]) == pytest.approx(expected[[2, 0, 2]], abs=0.02)


def test_recalled_and_computed_layers_learn_the_same(
    deep_model_folder: Path, texts: TokenizedTexts
) -> None:
    """Gradients are those of the model without a cache, to half precision, and nowhere else."""

    def gradients(activations_mb: int) -> dict[str, torch.Tensor]:
        model = load_encoder(deep_model_folder)
        tower = Tower(model, texts, 2, learning_rate=1e-3, activations_mb=activations_mb)
        model.eval()
        vectors = tower.embed(EVERYTHING)
        torch.autograd.backward((vectors[0] @ vectors[1:].T).sum())
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    computed = gradients(0)
    assert not files(texts)
    recalled = gradients(10)
    assert len(files(texts)) == 1
    assert computed.keys() == recalled.keys()
    assert all(".layer.2." in name for name in recalled)
    for name, gradient in recalled.items():
        torch.testing.assert_close(gradient, computed[name], rtol=0.1, atol=0.02)


def test_activations_are_computed_once_per_model_and_depth(
    deep_model_folder: Path, texts: TokenizedTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second trial reads the first one's file; another depth or other weights make another."""
    written: list[Path] = []
    original = activations._write

    def remember(file: Path, *args: object) -> bool:
        written.append(file)
        return original(file, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(activations, "_write", remember)
    for frozen_layers in (1, 1, 2, 1):
        Tower(load_encoder(deep_model_folder), texts, frozen_layers, learning_rate=1e-3)
    assert len(written) == len(set(written)) == 2
    other = load_encoder(deep_model_folder)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    Tower(other, texts, 1, learning_rate=1e-3)
    assert len(set(written)) == 3
    # what learns does not matter to what the frozen layers compute
    tuned = load_encoder(deep_model_folder)
    with torch.no_grad():
        dict(tuned.named_parameters())[
            next(n for n, _ in tuned.named_parameters() if ".layer.2." in n)
        ].add_(1)
    Tower(tuned, texts, 1, learning_rate=1e-3)
    assert len(written) == 3


def test_there_is_a_bound_on_disk(model: SentenceTransformer, texts: TokenizedTexts) -> None:
    """What does not fit is computed anew each time, and nothing is left behind."""
    Tower(model, texts, 1, learning_rate=1e-3, activations_mb=0)
    assert not files(texts)
    assert texts.folder is not None
    assert not list(texts.folder.glob("*.part"))


def test_activations_beyond_half_precision_are_not_kept(
    model: SentenceTransformer, texts: TokenizedTexts
) -> None:
    """A model whose activations overflow 16 bits is used without a cache, and correctly."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer.0.output.LayerNorm" in name:
                parameter.fill_(1e6)
    tower = Tower(model, texts, 1, learning_rate=1e-3)
    assert not files(texts)
    assert texts.folder is not None
    assert not list(texts.folder.glob("*.part"))
    model.eval()
    assert tower.vectors(EVERYTHING) == pytest.approx(
        embed_frozen(model, texts, EVERYTHING), abs=0.02
    )


def test_activations_that_a_full_disk_has_no_room_for_are_not_kept(
    model: SentenceTransformer, texts: TokenizedTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may fill it after the look at what is free: they are computed each time."""

    def refuse(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    Tower(model, texts, 1, learning_rate=1e-3)
    assert texts.folder is not None
    assert not files(texts)
    assert not list(texts.folder.glob("*.part"))


def test_changing_inputs_are_not_recalled(
    model: SentenceTransformer, texts: TokenizedTexts
) -> None:
    """Inputs that differ each time (augmented images) pass through the frozen layers each time."""
    Tower(model, replace(texts, is_fixed=False), 1, learning_rate=1e-3)
    assert not files(texts)


def test_frozen_is_what_comes_before(model: SentenceTransformer, texts: TokenizedTexts) -> None:
    """Embeddings and the first layers do not learn, the rest does."""
    Tower(model, texts, 1, learning_rate=1e-3)
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not any(learns[name] for name in learns if ".embeddings." in name)
    assert not any(learns[name] for name in learns if ".layer.0." in name)
    assert all(learns[name] for name in learns if ".layer.1." in name or ".layer.2." in name)
    Tower(model, texts, 0, learning_rate=1e-3)
    assert all(p.requires_grad for name, p in model.named_parameters() if ".layer." in name)


def test_only_what_learns_has_dropout(model: SentenceTransformer, texts: TokenizedTexts) -> None:
    """Frozen layers are in evaluation mode while the others train."""
    for _ in range(2):  # the second finds what the first has kept
        tower = Tower(model, texts, 2, learning_rate=1e-3)
        tower.train()
        tower.embed(EVERYTHING)
        assert {name for name, m in model.named_modules() if m.training} == {
            name for name, _ in model.named_modules() if ".layer.2" in name
        }


def test_freezing_more_layers_than_there_are_is_refused(
    model: SentenceTransformer, texts: TokenizedTexts
) -> None:
    """The message tells how many there are."""
    with pytest.raises(MethodError, match="freeze 4 layers of a model with 3"):
        Tower(model, texts, 4, learning_rate=1e-3)


def test_two_towers_learn_at_their_own_rates(
    model: SentenceTransformer, deep_model_folder: Path, texts: TokenizedTexts
) -> None:
    """Each group of the optimizer has its tower's rate; biases and norms do not decay."""
    queries = Tower(model, texts, 2, learning_rate=1e-3)
    items = Tower(load_encoder(deep_model_folder), texts, 1, learning_rate=1e-4)
    groups = BiEncoder(queries, items).parameter_groups(weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (1e-3, 0.1), (1e-3, 0.0), (1e-4, 0.1), (1e-4, 0.0),
    ]  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == len(queries.learning) + len(
        items.learning
    )
    assert all(p.ndim > 1 for group in groups[::2] for p in group["params"])


def test_one_tower_encodes_a_text_once(model: SentenceTransformer, texts: TokenizedTexts) -> None:
    """What is both a query and an item is the same vector, and counts once."""
    tower = Tower(model, texts, 1, learning_rate=1e-3)
    encoder = BiEncoder(tower, tower)
    encoder.eval()
    queries, items = encoder.embed(np.array([0, 2]), np.array([1, 2, 4]))
    assert queries[1].equal(items[1])
    assert encoder.count_tokens(np.array([0, 2]), np.array([1, 2, 4])) == int(
        texts.lengths(np.array([0, 1, 2, 4])).sum()
    )
