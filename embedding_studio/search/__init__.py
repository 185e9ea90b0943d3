"""Everything Optuna: the search of one iteration, its trials, and its pictures (`search.plots`)."""

from embedding_studio.search.space import Suggest, check_names, narrow
from embedding_studio.search.study import Search, draw_again, draw_sets
from embedding_studio.search.trial import Outcome, Trial, best_first

__all__ = [
    "Outcome", "Search", "Suggest", "Trial", "best_first", "check_names", "draw_again", "draw_sets",
    "narrow",
]  # fmt: skip
