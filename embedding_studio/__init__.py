"""What the author of a fine-tuning method imports."""

from embedding_studio.clickstream import SearchResult, Session, SessionEvent, Splits
from embedding_studio.labels import LabelledResult
from embedding_studio.methods import FineTuningMethod, Parameters, PluginMeta, Scores, TrialRun
from embedding_studio.tasks import Budget

__all__ = [
    "Budget",
    "FineTuningMethod",
    "LabelledResult",
    "Parameters",
    "PluginMeta",
    "Scores",
    "SearchResult",
    "Session",
    "SessionEvent",
    "Splits",
    "TrialRun",
]
