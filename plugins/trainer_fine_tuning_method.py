"""Fine-tune a text encoder with sentence-transformers' own trainer and losses, on negatives mined
from the whole catalogue."""

import copy
import tempfile
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from embedding_studio.clickstream import Splits
from embedding_studio.methods import Parameters, PluginMeta, TrialRun
from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import round_as_stored, width_of
from embedding_studio.training.method import EncoderMethod
from embedding_studio.training.metrics import RELEVANT_FROM
from embedding_studio.training.negatives import mine_negatives
from embedding_studio.training.serving import sides_of

if TYPE_CHECKING:
    import optuna

_SIDES = {"anchor": "query", "positive": "document", "negative": "document"}


class TrainerFineTuningMethod(EncoderMethod):
    """Rows of a query, an item that was probably meant, and one that is near but was not."""

    meta = PluginMeta(
        "Trainer Fine Tuning Method", description="The trainer and losses of sentence-transformers"
    )
    recommended: ClassVar[Parameters] = {
        "loss": "gist",
        "matryoshka": False,
        "margin": 0.05,
        "learning_rate": 1e-4,
        "temperature": 0.05,
        "epochs": 2,
        "batch_size": 64,
    }

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {
            "loss": trial.suggest_categorical("loss", ["gist", "cached_mnrl"]),
            "matryoshka": trial.suggest_categorical("matryoshka", [False, True]),
            # by how much less similar than what was meant an item must be to count as a negative
            "margin": trial.suggest_float("margin", 0.0, 0.3),
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 5e-4, log=True),
            "temperature": trial.suggest_float("temperature", 0.02, 0.1, log=True),
            "epochs": trial.suggest_int("epochs", 1, 3),
            "batch_size": trial.suggest_categorical("batch_size", [32, 64]),
        }

    def train(
        self, model: SentenceTransformer, params: Parameters, data: Splits[Any], run: TrialRun
    ) -> SentenceTransformer:
        from datasets import Dataset
        from sentence_transformers import (
            SentenceTransformerTrainer,
            SentenceTransformerTrainingArguments,
        )

        start = copy.deepcopy(model)  # what negatives are near by, and the guide of GIST
        lists, contents = data.train, data.train.texts.contents
        pairs = np.flatnonzero(np.asarray(lists.relevance) >= RELEVANT_FROM)
        negatives = mine_negatives(start, lists, pairs, params["margin"])
        queries = lists.queries[lists.pair_queries()[pairs]]
        rows = np.stack([queries, lists.items[pairs], negatives], axis=1)[negatives >= 0]
        columns = {
            name: [contents[n] for n in column] for name, column in zip(_SIDES, rows.T, strict=True)
        }
        of_query, of_item = (side.prompt for side in sides_of(model))
        has_routes = any(isinstance(module, Router) for module in model)
        with tempfile.TemporaryDirectory() as nothing:
            arguments = SentenceTransformerTrainingArguments(
                nothing,
                num_train_epochs=params["epochs"],
                learning_rate=params["learning_rate"],
                per_device_train_batch_size=params["batch_size"],
                prompts={"anchor": of_query, "positive": of_item, "negative": of_item},
                router_mapping=_SIDES if has_routes else {},
                warmup_steps=0.1,
                seed=run.seed,
                batch_sampler="no_duplicates",
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            SentenceTransformerTrainer(
                model=model,
                args=arguments,
                train_dataset=Dataset.from_dict(columns),
                loss=self.loss(model, start, params),
                callbacks=[_Reports(self, model, data.validation, run)],
            ).train()
        round_as_stored(model)
        return model

    def loss(
        self, model: SentenceTransformer, start: SentenceTransformer, params: Parameters
    ) -> Any:
        """Return the loss that a hyperparameter set names."""
        from sentence_transformers.sentence_transformer import losses

        temperature = params["temperature"]
        loss: Any = (
            losses.GISTEmbedLoss(model, start, temperature)
            if params["loss"] == "gist"
            else losses.CachedMultipleNegativesRankingLoss(model, 1 / temperature)
        )
        if not params["matryoshka"]:
            return loss
        width = width_of(model)
        return losses.MatryoshkaLoss(model, loss, [width, width // 2, width // 4])


class _Reports(TrainerCallback):
    """Reports each epoch as it ends, and ends the training when the trial is to stop."""

    def __init__(
        self,
        method: TrainerFineTuningMethod,
        model: SentenceTransformer,
        split: QueryLists,
        run: TrialRun,
    ) -> None:
        self._method, self._model, self._split, self._run = method, model, split, run

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        scores = self._method.evaluate(self._model, self._split)
        self._run.report(scores, step=round(state.epoch or 0) - 1)
        control.should_training_stop = self._run.should_stop
