"""Fine-tune a text encoder on clicks: queries and the texts of results, one shared encoder, or one
for queries alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import Splits
from embedding_studio.methods import Parameters, PluginMeta, TrialRun
from embedding_studio.settings import Settings
from embedding_studio.training.encoder import QUERY_SIDE, save_encoder, split_sides
from embedding_studio.training.layers import EVERYWHERE, count_layers
from embedding_studio.training.loop import TrainingPlan, estimate_trained_tokens, train
from embedding_studio.training.method import EncoderMethod
from embedding_studio.training.towers import BiEncoder, KeptSide, Tower

if TYPE_CHECKING:
    import optuna


class DefaultFineTuningMethod(EncoderMethod):
    """A bi-encoder that learns which shown items a query's searchers meant."""

    meta = PluginMeta(
        name="Default Fine Tuning Method",
        description="Text queries and text items, a sentence-transformers encoder, debiased clicks",
    )
    recommended: ClassVar[Parameters] = {
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "frozen_layers": 2,
        "epochs": 3,
        "batch_size": 64,
        "temperature": 0.07,
        "negatives_per_click": 2,
    }
    lora_rank = 0
    """Above 0, adapters of this rank learn in place of the layers: for large encoders."""
    query_side_only: ClassVar[bool] = False
    """Whether items keep their vectors: queries get an encoder of their own, which learns."""

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 8e-4, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 1e-1, log=True),
            "frozen_layers": trial.suggest_int("frozen_layers", 1, 4),
            "epochs": trial.suggest_int("epochs", 2, 4),
            "batch_size": trial.suggest_categorical("batch_size", [32, 64]),
            "temperature": trial.suggest_float("temperature", 0.05, 0.12, log=True),
            "negatives_per_click": trial.suggest_int("negatives_per_click", 2, 6),
        }

    def train(
        self,
        model: SentenceTransformer,
        params: Parameters,
        data: Splits[Any],
        run: TrialRun,
    ) -> SentenceTransformer:
        texts, scope, kept = data.train.texts, EVERYWHERE, None
        if self.query_side_only:
            split_sides(model)
            texts = texts.for_model(model)
            kept = KeptSide(model, texts.only(is_item=True))
            texts, scope = texts.only(is_item=False), QUERY_SIDE
        tower = Tower(
            model,
            texts,
            frozen_layers=min(params["frozen_layers"], max(0, count_layers(model, scope) - 1)),
            learning_rate=params["learning_rate"],
            scope=scope,
            lora_rank=self.lora_rank,
            activations_mb=Settings().activations_mb,
        )
        train(BiEncoder(tower, kept or tower), TrainingPlan.of(params), data, self.main_metric, run)
        return model

    def estimate_trained_tokens(self, params: Parameters, data: Splits[Any]) -> int:
        texts = data.train.texts
        items = None if self.query_side_only else texts
        return estimate_trained_tokens(data.train, TrainingPlan.of(params), texts, items)

    def save(self, model: SentenceTransformer, folder: Path) -> None:
        save_encoder(model, folder, keeps_items=self.query_side_only)


class QuerySideFineTuningMethod(DefaultFineTuningMethod):
    """Items keep their vectors, so a catalogue need not be indexed anew; queries learn."""

    meta = PluginMeta(
        name="Query Side Fine Tuning Method",
        description="As the default method, but only queries learn: items keep their vectors",
    )
    recommended: ClassVar[Parameters] = {
        **DefaultFineTuningMethod.recommended,
        "epochs": 4,
        "negatives_per_click": 4,
    }
    query_side_only = True
