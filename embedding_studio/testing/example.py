"""Example method: fine-tunes a text encoder on clicks, step by step."""

# What `embedding-studio methods check` holds, and what else a method may do, is told in
# docs/plugins.md. EncoderMethod loads, reads, judges and saves: override what is to be otherwise.
# What needs no change of yours can be left as it is: a working method.

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from embedding_studio import Budget, Parameters, PluginMeta, Splits, TrialRun
from embedding_studio.training.batches import Batch, Batches
from embedding_studio.training.encoder import learnable, round_as_stored
from embedding_studio.training.inputs import in_order
from embedding_studio.training.losses import listwise_softmax
from embedding_studio.training.method import EncoderMethod
from embedding_studio.training.serving import comparable, forward, similarity_functions
from embedding_studio.training.texts import TokenizedTexts

if TYPE_CHECKING:
    import optuna


class ExampleMethod(EncoderMethod):
    # what a task names; the registered model is called so, too
    meta = PluginMeta("Example method", description="A text encoder, fine-tuned on clicks")
    # what trials are compared by, one of the metrics that `evaluate` gives
    main_metric = "ndcg_at_10"
    # what a task spends unless it says otherwise
    budget = Budget(max_trials=8, max_minutes=60)

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        # Optuna's own trial; what is drawn here is what `train` gets
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
            "temperature": trial.suggest_float("temperature", 0.03, 0.2, log=True),
            "epochs": trial.suggest_int("epochs", 1, 3),
            "batch_size": trial.suggest_categorical("batch_size", [32, 64]),
        }

    def train(
        self, model: SentenceTransformer, params: Parameters, data: Splits[Any], run: TrialRun
    ) -> SentenceTransformer:
        # one seed, one model
        torch.manual_seed(run.seed)
        random = np.random.default_rng(run.seed)
        texts = data.train.texts.for_model(model)
        batches = Batches(data.train, params["batch_size"], negatives_per_click=4)
        optimizer = torch.optim.AdamW(learnable(model).values(), lr=params["learning_rate"])
        for epoch in range(params["epochs"]):
            model.train()
            for batch in batches.shuffled(random):
                loss = self.loss(model, texts, batch, params)
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                # what a trial costs; budgets may be in tokens
                run.trained_tokens += int(texts.lengths(batch.queries).sum())
                run.trained_tokens += int(texts.lengths(batch.items).sum())
            # weights are judged as they will be saved
            round_as_stored(model)
            # the one checkpoint: it logs, and raises when the trial is to end at once
            run.report(self.evaluate(model, data.validation), step=epoch)
            if run.should_stop:  # somebody wants to see what there is
                break
        return model

    def loss(
        self, model: SentenceTransformer, texts: TokenizedTexts, batch: Batch, params: Parameters
    ) -> torch.Tensor:
        # (b, d) and (n, d), with the prompts that the model has
        queries, items = (
            comparable(model, in_order(texts, which, lambda some: forward(model, texts, some)))
            for which in (batch.queries, batch.items)
        )
        compare, _ = similarity_functions(model.similarity_fn_name)
        scores = compare(queries, items)  # (b, n)
        # (b, n): how surely an item was meant by a query, and how surely it was not
        relevance = torch.from_numpy(batch.relevance).to(scores.device)
        negative_weight = torch.from_numpy(batch.negative_weight).to(scores.device)
        return listwise_softmax(scores, relevance, negative_weight, params["temperature"])
