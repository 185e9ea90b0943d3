"""One thread that encodes for all requests: what they ask shares passes through the model."""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedding_studio.errors import StoreUnavailable, TooManyRequests

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

SMALL_TEXTS = 4
"""A request of at most so many texts, a search say, does not wait behind large ones."""
PASS_TEXTS = 32
PASS_CHARS = 16 * 1024
"""What goes through a model at once: so long does a search wait for what was there before it."""
LONGEST = 2048
"""Characters; more of a text is hardly read by any model."""
WINDOW_TEXTS = 256
"""How many texts of large requests are sorted by length together."""


class Encodes(Protocol):
    """A loaded model."""

    def encode(self, is_item: bool, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        """Return (n, d) vectors, and the number of tokens of each text."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a request: (n, d) vectors in the order of its texts, and all tokens."""

    vectors: Vectors
    tokens: int


@dataclass(slots=True, eq=False)
class _Job:
    model: Encodes
    is_item: bool
    texts: Sequence[str]
    future: "Future[Encoded]" = field(default_factory=Future)
    vectors: Vectors | None = None
    tokens: int = 0
    left: int = 0

    @property
    def group(self) -> tuple[int, bool]:
        """What requests must have in common to share a pass."""
        return id(self.model), self.is_item


_Place = tuple[_Job, int]
"""A text of a request."""


class Batching:
    """Requests that wait, and the thread that encodes them: small ones and the others in turns."""

    def __init__(self, most_texts: int) -> None:
        self._most_texts = most_texts
        self._small: deque[_Job] = deque()
        self._large: deque[_Job] = deque()
        self._window: deque[list[_Place]] = deque()
        self._waiting = 0
        self._is_small_next = True
        self._is_over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="encode", daemon=True)
        self._thread.start()

    def submit(self, model: Encodes, is_item: bool, texts: Sequence[str]) -> "Future[Encoded]":
        """Return the future of the vectors of at least one text. It may be canceled.

        Raises TooManyRequests when too many texts wait, unless none does."""
        job = _Job(model, is_item, texts, left=len(texts))
        with self._changed:
            if self._is_over:
                raise StoreUnavailable("this server is about to end")
            if self._waiting and self._waiting + len(texts) > self._most_texts:
                raise TooManyRequests(
                    f"{self._waiting} texts wait to be encoded, and with these there would be more "
                    f"than {self._most_texts} (ES_SERVE_QUEUE): come again"
                )
            self._waiting += len(texts)
            (self._small if len(texts) <= SMALL_TEXTS else self._large).append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Encode what waits, and end."""
        with self._changed:
            self._is_over = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while (places := self._take()) is not None:
            wanted = [place for place in places if not place[0].future.done()]
            if wanted:
                try:
                    _encode(wanted)
                except Exception as error:
                    log.exception("a pass of %d texts failed", len(wanted))
                    for job in {job for job, _ in wanted}:
                        if job.future.set_running_or_notify_cancel():
                            job.future.set_exception(error)
            with self._changed:
                self._waiting -= len(places)

    def _take(self) -> list[_Place] | None:
        """Return the next pass; None when there is nothing left and the end was asked for."""
        with self._changed:
            while not (self._small or self._large or self._window):
                if self._is_over:
                    return None
                self._changed.wait()
            has_large = bool(self._large or self._window)
            if self._small and (self._is_small_next or not has_large):
                self._is_small_next = False
                return _drain(self._small, PASS_TEXTS)
            self._is_small_next = True
            if not self._window:
                self._window.extend(_passes(_drain(self._large, WINDOW_TEXTS)))
            return self._window.popleft()


def _drain(jobs: "deque[_Job]", most_texts: int) -> list[_Place]:
    """Take the first job, and those of its group as long as there is room; the others stay in their
    order."""
    group, places, others = jobs[0].group, list[_Place](), list[_Job]()
    while jobs and len(places) < most_texts:
        job = jobs.popleft()
        if job.group == group:
            places += [(job, number) for number in range(len(job.texts))]
        else:
            others.append(job)
    jobs.extendleft(reversed(others))
    return places


def _passes(places: list[_Place]) -> list[list[_Place]]:
    """Cut texts into passes of like length, the shortest first."""
    lengths = {place: min(LONGEST, len(place[0].texts[place[1]])) for place in places}
    found: list[list[_Place]] = []
    for place in sorted(places, key=lengths.__getitem__):
        size = len(found[-1]) if found else PASS_TEXTS
        if size >= PASS_TEXTS or (size + 1) * lengths[place] > PASS_CHARS:
            found.append([])
        found[-1].append(place)
    return found


def _encode(places: list[_Place]) -> None:
    job = places[0][0]
    texts = [one.texts[number] for one, number in places]
    vectors, tokens = job.model.encode(job.is_item, texts)
    for (one, number), vector, count in zip(places, vectors, tokens, strict=True):
        if one.vectors is None:
            one.vectors = np.empty((len(one.texts), len(vector)), np.float32)
        one.vectors[number] = vector
        one.tokens += count
        one.left -= 1
        if not one.left and one.future.set_running_or_notify_cancel():
            one.future.set_result(Encoded(one.vectors, one.tokens))
