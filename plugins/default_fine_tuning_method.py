"""Fine-tune a text encoder on clicks: queries and the texts of results, one shared encoder, or one
for queries alone."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import SearchResult, Session, Splits
from embedding_studio.labels import LabelledResult
from embedding_studio.methods import FineTuningMethod, Parameters, PluginMeta, Scores, TrialRun
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import (
    QUERY_SIDE,
    load_encoder,
    require_tunable,
    save_encoder,
    split_sides,
)
from embedding_studio.training.evaluation import evaluate, explain, note_start
from embedding_studio.training.layers import EVERYWHERE, count_layers
from embedding_studio.training.loop import TrainingPlan, estimate_trained_tokens, train
from embedding_studio.training.places import require_model
from embedding_studio.training.texts import tokenize
from embedding_studio.training.towers import BiEncoder, KeptSide, Tower

if TYPE_CHECKING:
    import optuna


class DefaultFineTuningMethod(FineTuningMethod[SentenceTransformer]):
    """A sentence-transformers bi-encoder that learns which shown items a query's searchers meant.

    Clicks are freed of position bias by a click model before anything is learnt or scored."""

    meta = PluginMeta(
        name="Default Fine Tuning Method",
        description="Text queries and text items, a sentence-transformers encoder, debiased clicks",
    )
    main_metric = "ndcg_at_10"
    direction = "maximize"
    budget = Budget(max_trials=8, max_minutes=60)
    # to judge by clicks takes more queries than to learn from them
    test_share = 0.3
    num_gpus = 1
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
    query_prompt: str | None = None
    item_prompt: str | None = None
    """What comes before a query and an item, in place of the prompts that the initial model has."""

    def item_text(self, result: SearchResult) -> str | None:
        """Return an item's text. Override to look it up elsewhere, by `result.object_id`."""
        return text_of(result)

    def load_initial_model(self) -> SentenceTransformer:
        return self.load_model(Settings().initial_model)

    def load_model(self, place: str) -> SentenceTransformer:
        return require_tunable(load_encoder(place, self.query_prompt, self.item_prompt))

    def check_initial_model(self) -> None:
        require_model(Settings().initial_model, "ES_INITIAL_MODEL")

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

    def prepare(
        self,
        sessions: Splits[Sequence[Session]],
        folder: Path,
        labels: Splits[Sequence[LabelledResult]] | None = None,
    ) -> Mapping[str, float]:
        model = self.load_initial_model()
        read = partial(tokenize, model)
        return prepare_clicks(sessions, self.item_text, read, folder, labels=labels)

    def load_data(self, folder: Path) -> Splits[QueryLists]:
        return open_clicks(folder)

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

    def note_start(self, model: SentenceTransformer, folder: Path) -> Mapping[str, float]:
        return note_start(model, folder, open_clicks(folder).test)

    def evaluate(self, model: SentenceTransformer, split: QueryLists) -> Scores:
        return evaluate(model, split)

    def explain(self, model: SentenceTransformer, split: QueryLists) -> Mapping[str, float]:
        return explain(model, split)

    def save(self, model: SentenceTransformer, folder: Path) -> None:
        save_encoder(model, folder, keeps_items=self.query_side_only)

    def load(self, folder: Path) -> SentenceTransformer:
        return load_encoder(folder)


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
