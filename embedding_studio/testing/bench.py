"""One method at work on a small batch: each step of an iteration done once, in this process."""

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from embedding_studio.clickstream import Session, Splits, merge_weights
from embedding_studio.engine.jobs import ReportingRun
from embedding_studio.engine.scores import mean_metrics, read_scores
from embedding_studio.errors import NotFound
from embedding_studio.executors.base import Report, Verdict, obey
from embedding_studio.methods import AnyMethod, Parameters
from embedding_studio.search import draw_sets
from embedding_studio.settings import Settings
from embedding_studio.snapshot import Snapshot
from embedding_studio.testing.encoders import write_image_encoder, write_text_encoder

RECORDED = Path(__file__).parent / "batch"
"""1,440 sessions of 180 queries, whose results have a text, an image and a rank each."""
PROMPTS = {"query": "query: ", "document": "text: "}

Numbers = Mapping[str, float | NDArray[np.float64]]


@dataclass
class Recorder:
    """Keeps what `train` reports, and answers each report as it is told."""

    verdict: Verdict = Verdict.CONTINUE
    reports: list[Report] = field(default_factory=list)

    def __call__(self, report: Report) -> Verdict:
        self.reports.append(report)
        return obey(self.verdict)


@dataclass(frozen=True)
class Trained:
    """What a training came to. folder: where its model is saved."""

    model: Any
    run: ReportingRun
    reports: Sequence[Report]
    folder: Path


@dataclass
class Bench:
    """A method, and what its checks share.

    folder: an empty one, for all that is written. batch: a folder with a snapshot, as `batch
    export --parquet` writes one. params: what it is trained with, by default what it recommends,
    else a set drawn at random. frozen: tensors that training must leave as they are, as patterns of
    their names in the saved files, "encoder.layer.0.*" say. keeps_items: whether items have the
    vectors that they had before training."""

    method: AnyMethod
    folder: Path
    batch: Path = RECORDED
    params: Parameters | None = None
    frozen: Sequence[str] = ()
    keeps_items: bool = False

    def __post_init__(self) -> None:
        """Raises NotFound where the batch is none."""
        if not (self.batch / "sessions.parquet").is_file():
            raise NotFound(
                f"{self.batch} has no sessions.parquet: name a folder that `embedding-studio batch "
                "export BATCH FOLDER --parquet` wrote"
            )
        self._made = 0

    @contextmanager
    def standing_in(
        self, initial_model: str | None = None, prompts: Mapping[str, str] = PROMPTS
    ) -> Iterator[None]:
        """Let ES_INITIAL_MODEL name another model meanwhile, by default one that is small and knows
        nothing; so for images."""
        texts, images = self.new_folder(), self.new_folder()
        initial_model = initial_model or str(write_text_encoder(texts, prompts))
        image_model = str(write_image_encoder(images, prompts))
        settings = Settings(initial_model=initial_model, initial_image_model=image_model)
        with patch.dict(os.environ, settings.as_environment()):
            yield

    def new_folder(self) -> Path:
        """Return an empty folder."""
        self._made += 1
        made = self.folder / str(self._made)
        made.mkdir(parents=True)
        return made

    @cached_property
    def sessions(self) -> Splits[Sequence[Session]]:
        """The sessions of the batch, split by query as an iteration's are."""
        snapshot = Snapshot(self.batch, merge_weights(self.method.event_weights))
        shares = self.method.validation_share, self.method.test_share
        return snapshot.usable().split_by_query(*shares)

    @cached_property
    def start(self) -> Path:
        """The folder of the initial model, saved."""
        return self.save(self.method.load_initial_model())

    @cached_property
    def data_folder(self) -> Path:
        """What `prepare` and `note_start` wrote."""
        return self.prepare(self.sessions, self.start)

    def prepare(self, sessions: Splits[Sequence[Session]], start: Path) -> Path:
        folder = self.new_folder()
        read_scores(self.method.prepare(sessions, folder), "prepare")
        read_scores(self.method.note_start(self.method.load(start), folder), "note_start")
        return folder

    def load_data(self) -> Splits[Any]:
        return self.method.load_data(self.data_folder)

    def save(self, model: Any) -> Path:
        folder = self.new_folder()
        self.method.save(model, folder)
        return folder

    @cached_property
    def start_scores(self) -> Numbers:
        """How the initial model scores on validation, saved and loaded."""
        return self.scores(self.method.load(self.start))

    def scores(self, model: Any, split: str = "validation") -> Numbers:
        """Raises MethodError where they are none, or lack the main metric."""
        scores = read_scores(self.method.evaluate(model, self.load_data().named()[split]))
        mean_metrics(scores, self.method.main_metric)
        return scores

    @cached_property
    def drawn(self) -> Parameters:
        """The hyperparameter set that it is trained with."""
        chosen = self.params or self.method.recommended
        return dict(chosen) if chosen else draw_sets(self.method.suggest, 1, seed=0)[0]

    @cached_property
    def trained(self) -> Trained:
        """One training to its end."""
        return self.train()

    def train(self, verdict: Verdict = Verdict.CONTINUE, others_seed: int = 0) -> Trained:
        """Train from the saved start with seed 0; `verdict` answers each report.

        others_seed: of what draws at random by no seed of its own."""
        baseline = mean_metrics(self.start_scores, self.method.main_metric)
        recorder = Recorder(verdict)
        run = ReportingRun(
            seed=0, baseline=baseline, main_metric=self.method.main_metric, send=recorder
        )
        data = replace(self.load_data(), test=None)
        start = self.method.load(self.start)
        random.seed(others_seed)
        np.random.seed(others_seed)
        torch.manual_seed(others_seed)
        model = self.method.train(start, self.drawn, data, run)
        return Trained(model, run, recorder.reports, self.save(model))
