import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import BoW

from embedding_studio.errors import CorruptModel, MethodError
from embedding_studio.training import encoder
from embedding_studio.training.encoder import (
    embed_frozen,
    embed_once,
    load_encoder,
    require_tunable,
    save_encoder,
    width_of,
)
from embedding_studio.training.inputs import chunks_of_like_length, in_order
from embedding_studio.training.layers import count_layers
from embedding_studio.training.serving import forward
from embedding_studio.training.texts import open_texts, tokenize
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
    with torch.inference_mode():
        one_by_one = in_order(
            texts,
            np.arange(len(TEXTS)),
            lambda some: torch.cat([forward(model, texts, some[[k]]) for k in range(len(some))]),
        )
    normal = torch.nn.functional.normalize(one_by_one, dim=1).numpy()
    assert normal == pytest.approx(expected, abs=1e-5)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_chunks_hold_each_input_once_and_keep_to_the_limit(lengths: list[int]) -> None:
    """Every input is in one slice of the order; no slice has more than 50 tokens once padded."""
    order, slices = chunks_of_like_length(np.array(lengths), max_tokens=50, call_tokens=5)
    chunks = [order[chunk] for chunk in slices]
    assert np.concatenate(chunks).tolist() == order.tolist()
    assert sorted(order.tolist()) == list(range(len(lengths)))
    for chunk in chunks:
        assert len(chunk) * max(lengths[number] for number in chunk) <= 50


def test_what_is_embedded_once_is_remembered_while_the_model_stays_as_it_is(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of other data, too, are known by what they say; a changed weight, or another length of
    the vectors, lets all be forgotten."""
    passed = list[int]()

    def count(*about: Any) -> torch.Tensor:
        passed.append(len(about[2]))
        return forward(*about)

    monkeypatch.setattr(encoder, "forward", count)
    texts, others = tokenize(model, TEXTS), tokenize(model, ["new", *TEXTS[::-1]])
    every = np.arange(len(TEXTS))
    first = embed_once(model, texts, every)
    assert first == pytest.approx(embed_frozen(model, texts, every), abs=1e-5)
    passed.clear()
    again = embed_once(model, others, every + 1)
    assert (again == first[::-1]).all()
    assert passed == []
    embed_once(model, others, np.array([3, 0, 0]))
    assert passed == [1]
    next(model.parameters()).data.mul_(1.1)
    changed = embed_once(model, texts, every)
    assert changed == pytest.approx(embed_frozen(model, texts, every), abs=1e-5)
    assert not np.allclose(changed, first)
    with model.truncate_embeddings(2):
        assert embed_once(model, texts, every).shape == (len(TEXTS), 2)


def test_vectors_come_back_in_the_order_asked_for(model: SentenceTransformer) -> None:
    """However many passes it takes, each input has its own vector: here, its number."""
    random = np.random.default_rng(0)
    texts = tokenize(model, ["word " * count for count in random.integers(1, 30, size=100)])
    asked = random.permutation(100)
    passes = []

    def number(which: np.ndarray) -> torch.Tensor:
        passes.append(len(which))
        return torch.from_numpy(which[:, None])

    assert in_order(texts, asked, number)[:, 0].tolist() == asked.tolist()
    assert len(passes) > 2


def test_chunks_by_hand() -> None:
    """Padding six texts by 7 tokens costs more than a call, padding one of them by one does not."""
    lengths = np.array([3, 10, 3, 10, 3, 3, 10, 3, 3, 9])
    order, slices = chunks_of_like_length(lengths, call_tokens=40)
    assert sorted(lengths[order[chunk]].tolist() for chunk in slices) == [[3] * 6, [9, 10, 10, 10]]
    order, slices = chunks_of_like_length(lengths, call_tokens=43)
    assert len(slices) == 1


def test_texts_written_and_opened_are_the_same(model: SentenceTransformer, tmp_path: Path) -> None:
    """Tokens come back memory-mapped, with what is needed to pad them."""
    texts = tokenize(model, TEXTS)
    texts.write(tmp_path)
    opened = open_texts(tmp_path)
    everything = np.arange(len(TEXTS))
    features = opened.features(everything, model)
    for name, expected in texts.features(everything, model).items():
        assert np.array_equal(features[name], expected)
    assert (opened.sides, opened.fingerprint) == (texts.sides, texts.fingerprint)
    assert opened.folder == tmp_path
    assert isinstance(opened.columns["input_ids"], np.memmap)


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


def test_layers_are_counted(model: SentenceTransformer) -> None:
    """The tiny model has two."""
    assert count_layers(model) == 2


def test_another_tokenizer_gets_token_ids_of_its_own(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    """Token ids of one vocabulary mean nothing to another model: they are made again, once."""
    tokenize(model, ["an apple"]).write(tmp_path)
    texts = open_texts(tmp_path)
    assert texts.for_model(model) is texts
    model.tokenizer.add_tokens(["pple"])
    assert model.transformers_model is not None
    model.transformers_model.resize_token_embeddings(len(model.tokenizer))
    own = texts.for_model(model)
    assert own.lengths(np.array([0])) > texts.lengths(np.array([0]))
    assert own.folder is not None
    assert own.folder.parent == tmp_path
    again = texts.for_model(model)
    assert isinstance(again.columns["input_ids"], np.memmap)
    assert again.folder == own.folder
    assert texts.fingerprint == open_texts(tmp_path).fingerprint


def test_a_text_on_both_sides_is_one_where_both_are_prompted_alike(
    tiny_model_folder: Path,
) -> None:
    """Then it is encoded once; a prompt for one side makes two of it."""
    contents, is_item = ["apple", "bird", "apple"], np.array([False, True, True])
    everything = np.arange(3)
    alike = tokenize(load_encoder(tiny_model_folder), contents, is_item)
    assert alike.same_as(everything).tolist() == [0, 1, 0]
    model = load_encoder(tiny_model_folder, query_prompt="find: ")
    apart = tokenize(model, contents, is_item)
    assert apart.same_as(everything).tolist() == [0, 1, 2]
    vectors = embed_frozen(model, apart, everything)
    assert vectors[0] == pytest.approx(model.encode_query("apple", normalize_embeddings=True))
    assert vectors[2] == pytest.approx(model.encode_document("apple", normalize_embeddings=True))


def test_prompts_of_ones_own_are_saved(tiny_model_folder: Path, tmp_path: Path) -> None:
    """Whoever loads the saved model gets them too."""
    model = load_encoder(tiny_model_folder, query_prompt="find: ", item_prompt="text: ")
    save_encoder(model, tmp_path / "saved")
    plain = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    expected = plain.encode("find: a shoe")
    assert plain.encode_query("a shoe") == pytest.approx(expected)
    assert plain.encode_document("a shoe") == pytest.approx(plain.encode("text: a shoe"))


def test_a_setting_names_the_type_that_weights_are_saved_in(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masters are in single precision, and hold what was written."""
    monkeypatch.setenv("ES_MODEL_DTYPE", "bfloat16")
    model = load_encoder(tiny_model_folder)
    assert model.dtype == torch.float32
    save_encoder(model, tmp_path / "saved")
    assert model.dtype == torch.float32
    stored = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert stored.dtype == torch.bfloat16
    for mine, theirs in zip(model.parameters(), stored.parameters(), strict=True):
        assert mine.equal(theirs.float())


def test_a_model_that_runs_code_of_its_own_is_refused(tmp_path: Path) -> None:
    """Whether transformers or a module asks for it, the refusal says what to do instead."""
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mine.py").write_text("raise SystemExit")
    with pytest.raises(MethodError, match=r"runs code from its own repository.*load_initial_model"):
        load_encoder(tmp_path)
    module = {"idx": 0, "name": "0", "path": "", "type": "mine.Mine"}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    with pytest.raises(MethodError, match="runs code from its own repository"):
        load_encoder(tmp_path)


def test_a_model_in_which_nothing_learns_is_refused(tmp_path: Path) -> None:
    """A bag of words has no weights; the refusal names the method that needs none."""
    words = SentenceTransformer(modules=[BoW(vocab=["apple", "bird"])], device="cpu")
    words.save(str(tmp_path / "words"), create_model_card=False)
    model = load_encoder(tmp_path / "words")
    with pytest.raises(
        MethodError, match=r"nothing of the model can learn \(BoW\).*Linear adapter"
    ):
        require_tunable(model)
    assert width_of(model) == 2
