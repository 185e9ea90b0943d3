"""Everything Optuna: the search of one iteration, its trials, and its pictures (`search.plots`)."""

from embedding_studio.search.study import Search, draw_sets
from embedding_studio.search.trial import (
    FinishedTrial,
    Outcome,
    PlannedTrial,
    Proposal,
    SuggestedSet,
    best_first,
)

__all__ = [
    "FinishedTrial",
    "Outcome",
    "PlannedTrial",
    "Proposal",
    "Search",
    "SuggestedSet",
    "best_first",
    "draw_sets",
]
