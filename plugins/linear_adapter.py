"""Learn one matrix over frozen query vectors from clicks."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Module, Router
from sentence_transformers.sentence_transformer.modules import Normalize
from torch import Tensor
from torch.nn.functional import normalize

from embedding_studio.clickstream import Session, Splits
from embedding_studio.labels import LabelledResult
from embedding_studio.methods import FineTuningMethod, Parameters, PluginMeta, Scores, TrialRun
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget
from embedding_studio.tracking.files import link_tree
from embedding_studio.training.batches import Batches
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import (
    embed_frozen,
    load_encoder,
    save_encoder,
    stored_dtype,
    width_of,
)
from embedding_studio.training.evaluation import (
    evaluate_vectors,
    explain_vectors,
    note_start_vectors,
    rank_vectors,
)
from embedding_studio.training.losses import listwise_softmax
from embedding_studio.training.places import require_model
from embedding_studio.training.serving import COSINE, similarity_functions, unit_of
from embedding_studio.training.texts import tokenize

if TYPE_CHECKING:
    import optuna

Matrix = NDArray[np.float32]

_ENCODER = "encoder"
_WEIGHTS = "linear.weight"


@dataclass(frozen=True)
class Adapter:
    """What is learnt, and for which encoder.

    matrix: (d, d), what a query's vector is multiplied by. encoder: the folder of the encoder;
    None for that of ES_INITIAL_MODEL."""

    matrix: Matrix
    encoder: Path | None = None


@dataclass(frozen=True)
class Split:
    """One part of the data, with the frozen encoder's vectors.

    vectors: (n_texts, d), what the frozen encoder makes of every text that `lists` names, as it
    serves them; similarity: the name of its own; encoder: its folder."""

    lists: QueryLists
    vectors: Matrix
    similarity: str
    encoder: Path

    def mapped(self, queries: Tensor, matrix: Tensor) -> Tensor:
        """Return the vectors to search with."""
        found = queries @ matrix
        return normalize(found, dim=1) if self.similarity == COSINE else found

    def searched(self, queries: NDArray[np.integer], model: Adapter) -> Matrix:
        """Return the vectors that the adapter searches with for these texts."""
        vectors = torch.from_numpy(self.vectors[queries])
        mapped: Matrix = self.mapped(vectors, torch.from_numpy(model.matrix)).numpy()
        return mapped


class LinearAdapter(FineTuningMethod[Adapter]):
    """The encoder stays as it is; a query's vector is multiplied by a matrix before the search.

    Saved, it is a sentence-transformers model whose `encode_query` does both."""

    meta = PluginMeta("Linear adapter", description="One matrix over frozen query vectors")
    main_metric = "ndcg_at_10"
    direction = "maximize"
    budget = Budget(max_trials=8, max_minutes=10)
    test_share = 0.3
    epochs = 5

    def load_initial_model(self) -> Adapter:
        encoder = load_encoder(Settings().initial_model)
        return Adapter(np.eye(width_of(encoder), dtype=np.float32))

    def check_initial_model(self) -> None:
        require_model(Settings().initial_model, "ES_INITIAL_MODEL")

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 2e-4, 2e-3, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-2, 10.0, log=True),
            "temperature": trial.suggest_float("temperature", 0.05, 0.12, log=True),
        }

    def prepare(
        self,
        sessions: Splits[Sequence[Session]],
        folder: Path,
        labels: Splits[Sequence[LabelledResult]] | None = None,
    ) -> Mapping[str, float]:
        encoder = load_encoder(Settings().initial_model)
        read = partial(tokenize, encoder)
        figures = prepare_clicks(sessions, text_of, read, folder, labels=labels)
        texts = open_clicks(folder).train.texts
        np.save(folder / "vectors.npy", embed_frozen(encoder, texts, np.arange(len(texts))))
        (folder / "similarity.json").write_text(json.dumps(encoder.similarity_fn_name))
        _save_with_route(encoder, folder / _ENCODER)
        return figures

    def load_data(self, folder: Path) -> Splits[Split]:
        vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        similarity = json.loads((folder / "similarity.json").read_text())
        encoder = folder / _ENCODER
        return open_clicks(folder).map(lambda lists: Split(lists, vectors, similarity, encoder))

    def train(
        self, model: Adapter, params: Parameters, data: Splits[Split], run: TrialRun
    ) -> Adapter:
        vectors = torch.from_numpy(np.array(data.train.vectors))
        start = torch.from_numpy(model.matrix)
        change = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.AdamW(
            [change], lr=params["learning_rate"], weight_decay=params["weight_decay"]
        )
        batches = Batches(data.train.lists, batch_size=64, negatives_per_click=4)
        random = np.random.default_rng(run.seed)
        stored = _route_weights(data.train.encoder).dtype
        compare, _ = similarity_functions(data.train.similarity)
        unit = unit_of(data.train.similarity, vectors[:64], vectors[:64])
        for epoch in range(self.epochs):
            for batch in batches.shuffled(random):
                queries = data.train.mapped(vectors[batch.queries], start + change)
                loss = listwise_softmax(
                    compare(queries, vectors[batch.items]) / unit,
                    torch.from_numpy(batch.relevance),
                    torch.from_numpy(batch.negative_weight),
                    params["temperature"],
                )
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
            matrix = (start + change).detach().to(stored).float()  # as it will be saved
            model = Adapter(matrix.numpy(), data.train.encoder)
            run.report(self.evaluate(model, data.validation), step=epoch)
            if run.should_stop:
                break
        return model

    def note_start(self, model: Adapter, folder: Path) -> Mapping[str, float]:
        split = self.load_data(folder).test
        return note_start_vectors(
            folder,
            lambda queries: split.searched(queries, model),
            lambda items: split.vectors[items],
            split.similarity,
        )

    def evaluate(self, model: Adapter, split: Split) -> Scores:
        return evaluate_vectors(
            split.lists,
            split.searched(split.lists.queries, model),
            lambda items: split.vectors[items],
            split.similarity,
        )

    def explain(self, model: Adapter, split: Split) -> Mapping[str, float]:
        return explain_vectors(
            split.lists,
            split.searched(split.lists.queries, model),
            lambda items: split.vectors[items],
            split.similarity,
        )

    def rank(self, model: Adapter, split: Split) -> Mapping[str, Sequence[str]]:
        return rank_vectors(
            split.lists,
            split.searched(split.lists.queries, model),
            lambda items: split.vectors[items],
            split.similarity,
        )

    def save(self, model: Adapter, folder: Path) -> None:
        """Write encoder and matrix. The encoder's files share their bytes with those in the data,
        so that a trial costs no second copy of it."""
        if model.encoder is None:
            _save_with_route(load_encoder(Settings().initial_model), folder)
        else:
            link_tree(model.encoder, folder)
        weights = _route_weights(folder)
        weights[: len(model.matrix), : len(model.matrix)] = torch.from_numpy(model.matrix.T)
        file = _route_file(folder)
        file.unlink()  # its bytes are the data's too
        save_file({_WEIGHTS: weights.contiguous()}, file)

    def load(self, folder: Path) -> Adapter:
        """Read the matrix alone: the encoder's vectors are in the data."""
        if not (folder / "modules.json").exists():  # as version 0.1 saved it
            return Adapter(load_file(folder / "arrays.safetensors")["array"].numpy())
        config = json.loads((folder / "config_sentence_transformers.json").read_text())
        served = slice(config.get("truncate_dim"))
        return Adapter(_route_weights(folder)[served, served].T.float().contiguous().numpy())


def _save_with_route(encoder: SentenceTransformer, folder: Path) -> None:
    """Write an encoder with a last step, for queries alone, that multiplies by a matrix: one that
    changes nothing yet. It acts before vectors are cut to `truncate_dim`, on what will be left."""
    save_encoder(encoder, folder)
    with encoder.truncate_embeddings(None):
        width = width_of(encoder)
    dense = Dense(width, width, bias=False, activation_function=torch.nn.Identity())
    dense.linear.weight.data = torch.eye(width, dtype=stored_dtype(encoder))
    steps: list[Module] = [dense]
    if encoder.similarity_fn_name == COSINE:
        steps.append(Normalize())
    file = folder / "modules.json"
    modules = json.loads(file.read_text(encoding="utf-8"))
    place = f"{len(modules)}_Router"
    kind = f"{Router.__module__}.{Router.__name__}"
    modules.append({"idx": len(modules), "name": place, "path": place, "type": kind})
    (folder / place).mkdir()
    Router({"query": steps, "document": []}, default_route="document").save(str(folder / place))
    file.write_text(json.dumps(modules, indent=2), encoding="utf-8")


def _route_file(folder: Path) -> Path:
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    return folder / str(modules[-1]["path"]) / "query_0_Dense" / "model.safetensors"


def _route_weights(folder: Path) -> Tensor:
    """Return (width, width), what a query's vector is multiplied by from the left."""
    return load_file(_route_file(folder))[_WEIGHTS]
