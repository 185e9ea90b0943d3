"""What methods that tune a sentence-transformers encoder share: all but `suggest` and `train`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import SearchResult, Session, Splits
from embedding_studio.labels import LabelledResult
from embedding_studio.methods import FineTuningMethod, Scores
from embedding_studio.settings import Settings
from embedding_studio.training import evaluation
from embedding_studio.training.data import QueryLists, open_clicks, prepare_clicks, text_of
from embedding_studio.training.encoder import load_encoder, require_tunable, save_encoder
from embedding_studio.training.inputs import Inputs
from embedding_studio.training.places import require_model
from embedding_studio.training.texts import tokenize


class EncoderMethod(FineTuningMethod[SentenceTransformer]):
    """An encoder of queries and of the texts of results. It learns from clicks, which are freed of
    position bias by a click model before anything is learnt or scored, and from labels.

    A method whose items are no texts overrides `items_of`, `prepare` and `load_data`."""

    main_metric = "ndcg_at_10"
    # to judge by clicks takes more queries than to learn from them
    test_share = 0.3
    num_gpus = 1
    initial_model_setting: ClassVar[str] = "initial_model"
    """The setting that says what the first iteration starts from."""
    query_prompt: str | None = None
    item_prompt: str | None = None
    """What comes before a query and an item, in place of the prompts that the initial model has."""

    def item_text(self, result: SearchResult) -> str | None:
        """Return an item's text. Override to look it up elsewhere, by `result.object_id`."""
        return text_of(result)

    def items_of(self, split: Any) -> Inputs | None:
        """Return what a split's items are; None: the texts that its queries are among."""
        return None

    def load_initial_model(self) -> SentenceTransformer:
        return self.load_model(getattr(Settings(), self.initial_model_setting))

    def load_model(self, place: str) -> SentenceTransformer:
        return require_tunable(load_encoder(place, self.query_prompt, self.item_prompt))

    def check_initial_model(self) -> None:
        name = self.initial_model_setting
        require_model(getattr(Settings(), name), f"ES_{name.upper()}")

    def prepare(
        self,
        sessions: Splits[Sequence[Session]],
        folder: Path,
        labels: Splits[Sequence[LabelledResult]] | None = None,
    ) -> Mapping[str, float]:
        read = partial(tokenize, self.load_initial_model())
        return prepare_clicks(sessions, self.item_text, read, folder, labels=labels)

    def load_data(self, folder: Path) -> Splits[Any]:
        return open_clicks(folder)

    def note_start(self, model: SentenceTransformer, folder: Path) -> Mapping[str, float]:
        split = self.load_data(folder).test
        return evaluation.note_start(model, folder, split, self.items_of(split))

    def evaluate(self, model: SentenceTransformer, split: QueryLists) -> Scores:
        return evaluation.evaluate(model, split, self.items_of(split))

    def explain(self, model: SentenceTransformer, split: QueryLists) -> Mapping[str, float]:
        return evaluation.explain(model, split, self.items_of(split))

    def rank(self, model: SentenceTransformer, split: QueryLists) -> Mapping[str, Sequence[str]]:
        return evaluation.rank(model, split) if self.items_of(split) is None else {}

    def save(self, model: SentenceTransformer, folder: Path) -> None:
        save_encoder(model, folder)

    def load(self, folder: Path) -> SentenceTransformer:
        return load_encoder(folder)
