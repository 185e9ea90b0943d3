"""What each hyperparameter is worth: `python -m benchmarks.hyperparameters`.

One factor at a time is moved away from a centre, on both corpora, with clicks examined as 1 / rank.
A row gives the gain in nDCG@10 on held-out queries against true relevance, and what training took.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.table import Table

from benchmarks.clicks import (
    CORPORA,
    METRIC,
    MODEL,
    Arena,
    Silent,
    console,
    prepared,
    say,
    with_clicks_as_labels,
)
from embedding_studio.clickstream import Splits
from embedding_studio.demo.searchers import Behaviour
from embedding_studio.training import towers
from embedding_studio.training.data import QueryLists
from embedding_studio.training.encoder import load_encoder
from embedding_studio.training.loop import TrainingPlan, train
from embedding_studio.training.towers import BiEncoder, Tower

CENTRE: Mapping[str, Any] = {
    "learning_rate": 2e-4,
    "frozen_layers": 4,
    "lora_rank": 0,
    "is_bfloat16": True,
    "is_near_masked": True,
    "weight_decay": 0.01,
    "epochs": 3,
    "batch_size": 64,
    "loss": "softmax",
    "temperature": 0.07,
    "negatives_per_click": 2,
    "is_debiased": True,
    "blends": (0.5, 0.75),
}
MOVES: tuple[Mapping[str, Any], ...] = (
    *({"learning_rate": rate} for rate in (5e-5, 1e-4, 4e-4, 8e-4)),
    {"frozen_layers": 5, "learning_rate": 4e-4},
    {"frozen_layers": 2},
    {"frozen_layers": 2, "learning_rate": 4e-4},
    {"frozen_layers": 0, "learning_rate": 1e-4},
    {"frozen_layers": 0},
    {"frozen_layers": 0, "learning_rate": 4e-4},
    *({"epochs": epochs} for epochs in (1, 5)),
    *({"batch_size": size} for size in (32, 128)),
    *({"temperature": temperature} for temperature in (0.03, 0.05, 0.1, 0.15)),
    *({"negatives_per_click": count} for count in (0, 4, 8, 20)),
    *({"negatives_per_click": count, "frozen_layers": 2} for count in (8, 20)),
    {"is_near_masked": False},
    {"is_debiased": False},
    {"blends": ()},
    *({"loss": "margin", "temperature": margin} for margin in (0.1, 0.3)),
    *({"loss": "prob_margin", "temperature": margin} for margin in (0.3, 1.0)),
    *({"lora_rank": 8, "learning_rate": rate} for rate in (4e-4, 2e-3)),
    {"weight_decay": 0.1},
    {"is_bfloat16": False},
)


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    options.add_argument("--sessions", type=int, default=30_000)
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--corpus", choices=[*CORPORA, "both"], default="both")
    args = options.parse_args()
    start = load_encoder(MODEL)
    corpora = [name for name in CORPORA if args.corpus in (name, "both")]
    gains: dict[str, dict[str, list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="hyperparameters-") as work:
        for seed in range(args.seeds):
            for name in corpora:
                arena = Arena(name, start)
                sessions = arena.sessions(args.sessions, seed, Behaviour())
                data = prepared(arena.model, sessions, Path(work, f"{name}-{seed}"))
                for move in ({}, *MOVES):
                    began = time.perf_counter()
                    gain = gain_of(arena, data, {**CENTRE, **move}, seed)
                    gains.setdefault(describe(move), {}).setdefault(name, []).append(gain)
                    seconds.setdefault(describe(move), []).append(time.perf_counter() - began)
                    say(f"{name} seed {seed} {describe(move)}: {gain:+.4f}")
    table = Table("moved from the centre", *corpora, "seconds")
    for label, found in gains.items():
        means = (f"{np.mean(found[name]):+.4f}" for name in corpora)
        table.add_row(label, *means, f"{np.mean(seconds[label]):.0f}")
    console.print(table)
    say(json.dumps({"sessions": args.sessions, "seeds": args.seeds, "gains": gains}))


def gain_of(arena: Arena, data: Splits[QueryLists], params: Mapping[str, Any], seed: int) -> float:
    params = dict(params)
    model = load_encoder(MODEL)
    if not params.pop("is_near_masked"):
        data = replace(data, train=replace(data.train, near=data.train.near[:0]))
    if not params.pop("is_debiased"):
        data = with_clicks_as_labels(data)
    exact = patch.object(towers, "fast_arithmetic", lambda device: nullcontext())
    with nullcontext() if params.pop("is_bfloat16") else exact:
        tower = Tower(
            model,
            data.train.texts,
            frozen_layers=params.pop("frozen_layers"),
            learning_rate=params.pop("learning_rate"),
            lora_rank=params.pop("lora_rank"),
        )
        train(BiEncoder(tower, tower), TrainingPlan(**params), data, METRIC, Silent(seed))
    return arena.quality(model) - arena.start


def describe(move: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in move.items()) or "nothing"


if __name__ == "__main__":
    main()
