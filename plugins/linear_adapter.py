"""Learn one matrix over frozen query vectors from clicks."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from embedding_studio.clickstream import Session, Splits
from embedding_studio.methods import FineTuningMethod, Parameters, PluginMeta, Scores, TrialRun
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget
from embedding_studio.training.batches import Batches
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import embed_frozen, load_encoder, width_of
from embedding_studio.training.evaluation import evaluate_vectors
from embedding_studio.training.losses import listwise_softmax
from embedding_studio.training.serving import COSINE, similarity_functions, unit_of
from embedding_studio.training.texts import tokenize

if TYPE_CHECKING:
    import optuna

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Split:
    """vectors: (n_texts, d), what the frozen encoder makes of every text that `lists` names, as it
    serves them; similarity: the name of its own."""

    lists: QueryLists
    vectors: Matrix
    similarity: str

    def mapped(self, queries: Tensor, matrix: Tensor) -> Tensor:
        """Return the vectors to search with."""
        found = queries @ matrix
        return normalize(found, dim=1) if self.similarity == COSINE else found


class LinearAdapter(FineTuningMethod[Matrix]):
    """The encoder stays as it is; a query's vector is multiplied by a matrix before the search."""

    meta = PluginMeta("Linear adapter", description="One matrix over frozen query vectors")
    main_metric = "ndcg_at_10"
    direction = "maximize"
    budget = Budget(max_trials=8, max_minutes=10)
    test_share = 0.3
    epochs = 5

    def load_initial_model(self) -> Matrix:
        encoder = load_encoder(Settings().initial_model)
        return np.eye(width_of(encoder), dtype=np.float32)

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 2e-4, 2e-3, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-2, 10.0, log=True),
            "temperature": trial.suggest_float("temperature", 0.05, 0.12, log=True),
        }

    def prepare(self, sessions: Splits[list[Session]], folder: Path) -> Mapping[str, float]:
        encoder = load_encoder(Settings().initial_model)
        figures = prepare_clicks(sessions, text_of, partial(tokenize, encoder), folder)
        texts = open_clicks(folder).train.texts
        np.save(folder / "vectors.npy", embed_frozen(encoder, texts, np.arange(len(texts))))
        (folder / "similarity.json").write_text(json.dumps(encoder.similarity_fn_name))
        return figures

    def load_data(self, folder: Path) -> Splits[Split]:
        vectors = np.load(folder / "vectors.npy", mmap_mode="r", allow_pickle=False)
        similarity = json.loads((folder / "similarity.json").read_text())
        lists = open_clicks(folder)
        parts = (lists.train, lists.validation, lists.test)
        return Splits(*(Split(part, vectors, similarity) for part in parts))

    def train(
        self, model: Matrix, params: Parameters, data: Splits[Split], run: TrialRun
    ) -> Matrix:
        vectors = torch.from_numpy(np.array(data.train.vectors))
        start = torch.from_numpy(model)
        change = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.AdamW(
            [change], lr=params["learning_rate"], weight_decay=params["weight_decay"]
        )
        batches = Batches(data.train.lists, batch_size=64, negatives_per_click=4, debias=True)
        random = np.random.default_rng(run.seed)
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
            model = (start + change).detach().numpy()
            run.report(self.evaluate(model, data.validation), step=epoch)
            if run.should_stop:
                break
        return model

    def evaluate(self, model: Matrix, split: Split) -> Scores:
        queries = torch.from_numpy(split.vectors[split.lists.queries])
        mapped = split.mapped(queries, torch.from_numpy(model)).numpy()
        return evaluate_vectors(
            split.lists, mapped, lambda items: split.vectors[items], split.similarity
        )
