"""Fine-tune CLIP on clicks: text queries and the images of results, one tower each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentence_transformers import SentenceTransformer

from embedding_studio.clickstream import SearchResult, Session, Splits
from embedding_studio.labels import LabelledResult
from embedding_studio.methods import Parameters, PluginMeta, TrialRun
from embedding_studio.settings import Settings
from embedding_studio.tasks import Budget
from embedding_studio.training.augmentation import Augmentation
from embedding_studio.training.images import (
    ImageLists,
    image_of,
    open_image_clicks,
    prepare_image_clicks,
)
from embedding_studio.training.inputs import Inputs
from embedding_studio.training.layers import count_layers
from embedding_studio.training.loop import TrainingPlan, estimate_trained_tokens, train
from embedding_studio.training.method import EncoderMethod
from embedding_studio.training.towers import BiEncoder, Tower

if TYPE_CHECKING:
    import optuna

# a tower's layers, and what follows them; the scale of CLIP's own loss belongs to neither
_TEXT = ("text_model.", "text_projection.")
_IMAGE = ("vision_model.", "visual_projection.")


class ClipFineTuningMethod(EncoderMethod):
    """CLIP learns which shown images a query's searchers meant.

    Results name their image in meta {"image": ...}: a path, URL or data: URI; or, in S3, in
    {"bucket": ..., "file": ...}. Paths and objects are below ES_ALLOWED_ROOTS. To turn a change of
    the training images off, subclass with `augmentation = Augmentation(vertical_flip=False)`, say.
    """

    meta = PluginMeta("CLIP Fine Tuning Method", description="Text queries, image items, CLIP")
    budget = Budget(max_trials=8, max_minutes=120)
    initial_model_setting = "initial_image_model"
    augmentation = Augmentation()

    def item_image(self, result: SearchResult) -> str | None:
        """Return where an item's image is. Override to look it up by `result.object_id`."""
        return image_of(result)

    def items_of(self, split: ImageLists) -> Inputs:
        return split.images

    def suggest(self, trial: "optuna.Trial") -> Parameters:
        return {
            "text_learning_rate": trial.suggest_float("text_learning_rate", 1e-6, 1e-4, log=True),
            "image_learning_rate": trial.suggest_float("image_learning_rate", 1e-6, 1e-4, log=True),
            "text_frozen_layers": trial.suggest_int("text_frozen_layers", 4, 12),
            "image_frozen_layers": trial.suggest_int("image_frozen_layers", 4, 12),
            "weight_decay": trial.suggest_float("weight_decay", 1e-3, 1e-1, log=True),
            "epochs": trial.suggest_int("epochs", 2, 4),
            "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128]),
            # CLIP's cosines of text and image lie close together
            "temperature": trial.suggest_float("temperature", 0.01, 0.07, log=True),
            **{name: getattr(self.augmentation, name) for name in Augmentation.switches()},
        }

    def prepare(
        self,
        sessions: Splits[Sequence[Session]],
        folder: Path,
        labels: Splits[Sequence[LabelledResult]] | None = None,
    ) -> Mapping[str, float]:
        return prepare_image_clicks(
            sessions,
            self.item_image,
            self.load_initial_model(),
            folder,
            Settings().allow_private_addresses,
            labels,
        )

    def load_data(self, folder: Path) -> Splits[ImageLists]:
        return open_image_clicks(folder)

    def train(
        self, model: SentenceTransformer, params: Parameters, data: Splits[Any], run: TrialRun
    ) -> SentenceTransformer:
        def tower(side: str, inputs: Any, scope: tuple[str, ...]) -> Tower:
            frozen_layers = min(params[f"{side}_frozen_layers"], count_layers(model, scope))
            learning_rate, room = params[f"{side}_learning_rate"], Settings().activations_mb
            return Tower(model, inputs, frozen_layers, learning_rate, scope, activations_mb=room)

        images = data.train.images.augmented(self.augmentation, run.seed)
        encoder = BiEncoder(tower("text", data.train.texts, _TEXT), tower("image", images, _IMAGE))
        train(encoder, TrainingPlan.of(params), data, self.main_metric, run)
        return model

    def estimate_trained_tokens(self, params: Parameters, data: Splits[Any]) -> int:
        lists = data.train
        return estimate_trained_tokens(lists, TrainingPlan.of(params), lists.texts, lists.images)
