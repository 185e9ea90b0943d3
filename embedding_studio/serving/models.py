"""Registered models in memory: loaded when asked for, replaced when a champion moves."""

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedding_studio.errors import EmbeddingStudioError, NotFound, StoreUnavailable
from embedding_studio.models import CHAMPION, ModelVersion, RegisteredModel, split_reference
from embedding_studio.projects import name_in, split_owner
from embedding_studio.serving.batching import Vectors
from embedding_studio.serving.files import FetchedModels
from embedding_studio.settings import Settings
from embedding_studio.store import Store
from embedding_studio.training.encoder import load_encoder
from embedding_studio.training.serving import COSINE, encode, sides_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = logging.getLogger(__name__)

LOAD_SECONDS = 120.0
"""How long a request waits for its model to be loaded."""
RETRY_SECONDS = 60.0
"""When a champion that could not be loaded is tried again."""
_PROBES = ("a", "two words", "some more words than that " * 4)

Key = tuple[str, str, int]
"""A project, the name of a model, and the number of a version."""


class Loaded:
    """A version of a registered model in memory, as it serves queries and items."""

    def __init__(self, key: Key, model: "SentenceTransformer") -> None:
        model.eval()
        self.key = key
        self._model = model
        self._sides = sides_of(model)
        self.is_cosine = model.similarity_fn_name == COSINE
        self.encode(is_item=False, texts=_PROBES)  # the first pass takes longer
        #: how long its vectors are
        self.width = self.encode(is_item=True, texts=_PROBES)[0].shape[1]
        self.used_at = time.monotonic()
        #: whether it was asked for by its number
        self.is_pinned = False

    @property
    def number(self) -> int:
        return self.key[2]

    @property
    def reference(self) -> str:
        """How its project may ask for it again, whichever version is champion then."""
        return self.reference_in(self.key[0])

    def reference_in(self, project: str) -> str:
        """How a project may ask for it again."""
        owner, name, number = self.key
        return f"{name_in(project, owner, name)}/{number}"

    def encode(self, is_item: bool, texts: Sequence[str]) -> tuple[Vectors, list[int]]:
        return encode(self._model, self._sides[is_item], texts)


@dataclass
class _Failure:
    why: str
    at: float = field(default_factory=time.monotonic)


class Models:
    """The models that this process has in memory, of all projects.

    Files are fetched and models loaded by one thread, which also looks every `poll_seconds` which
    versions are champions. A champion is replaced once the new one is loaded and has encoded
    something; requests under way end with the one that they began with."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._files = FetchedModels(settings)
        self._loader = ThreadPoolExecutor(1, "load")
        self._lock = threading.Lock()
        self._loaded: dict[Key, Loaded] = {}
        #: the version that answers for the champion; that may have moved already
        self._champions: dict[tuple[str, str], int] = {}
        self._loading: dict[tuple[str, str], Future[Loaded]] = {}
        self._failures: dict[Key, _Failure] = {}
        self._is_over = threading.Event()
        #: whether the champions there were at the start are in memory, as far as there is room
        self.are_ready = False
        #: why the store was not read the last time; None: it was
        self.store_failure: str | None = None
        self._poller = threading.Thread(target=self._poll, name="champions", daemon=True)
        self._poller.start()

    def close(self) -> None:
        """End the threads; what is in memory stays."""
        self._is_over.set()
        self._loader.shutdown(wait=False, cancel_futures=True)

    @property
    def references(self) -> list[str]:
        """The versions in memory."""
        with self._lock:
            return sorted(loaded.reference for loaded in self._loaded.values())

    @property
    def failures(self) -> list[str]:
        """The champions that could not be loaded."""
        return [f"{name}/{number}" for _, name, number in self._failures]

    async def get(self, project: str, reference: str) -> Loaded:
        """Return the version of `name`, `name@champion` or `name/3`, if need be by loading it.
        Whether another project shares it is looked up each time.

        Raises NotFound, InvalidInput for no version, CorruptModel and MethodError for what is no
        sentence-transformers model, StoreUnavailable."""
        owner, own = split_owner(project, reference)
        if owner != project:
            shared = self._store.in_project(project).models.readable
            if await asyncio.to_thread(shared, _parts(reference)[0]) is None:
                raise NotFound(f"no model {_parts(reference)[0]!r} is shared with this project")
            project, reference = owner, own
        found = self._in_memory(project, reference)
        if found is not None:
            return found
        with self._lock:
            asked = project, reference
            loading = self._loading.get(asked)
            if loading is None:
                loading = self._loading[asked] = self._loader.submit(self._load, *asked)
                loading.add_done_callback(lambda _: self._loading.pop(asked, None))
        try:
            return await asyncio.wait_for(
                asyncio.shield(asyncio.wrap_future(loading)), LOAD_SECONDS
            )
        except TimeoutError:
            raise StoreUnavailable(f"the model {reference!r} is still being loaded") from None

    def _in_memory(self, project: str, reference: str) -> Loaded | None:
        name, version = _parts(reference)
        with self._lock:
            if version == CHAMPION:
                number = self._champions.get((project, name))
            else:
                number = int(version) if version.isdecimal() else None
            found = None if number is None else self._loaded.get((project, name, number))
            if found is not None:
                found.used_at = time.monotonic()
                found.is_pinned |= version != CHAMPION
            return found

    def _load(self, project: str, reference: str) -> Loaded:
        found = self._in_memory(project, reference)
        if found is not None:  # meanwhile
            return found
        name, version = _parts(reference)
        model = self._store.in_project(project).models.find(name)
        if model is None or not model.versions:
            raise NotFound(
                f"no model {name!r} is registered: the initial one is, once a task of its method "
                "has run"
            )
        loaded = self._put(model, model.named(version), is_pinned=version != CHAMPION)
        if version == CHAMPION:
            with self._lock:
                self._champions[project, name] = loaded.number
        return loaded

    def _put(self, model: RegisteredModel, version: ModelVersion, is_pinned: bool) -> Loaded:
        """Load a version, unless it is in memory, and make room for it."""
        key = model.project, model.name, version.number
        loaded = self._loaded.get(key)
        if loaded is None:
            if version.removed_at is not None:
                raise NotFound(f"the files of version {version.number} of {model.name!r} are gone")
            began = time.monotonic()
            loaded = Loaded(key, load_encoder(self._files.fetch(version.model)))
            log.info("loaded %s in %.1f s", loaded.reference, time.monotonic() - began)
        with self._lock:
            loaded.is_pinned |= is_pinned
            self._loaded[key] = loaded
            others = sorted(self._loaded.values(), key=lambda one: one.used_at)
            others.remove(loaded)
            for other in others[: len(self._loaded) - self._settings.serve_models]:
                self._forget(other)
        self._files.keep(2 * self._settings.serve_models)
        return loaded

    def _forget(self, loaded: Loaded) -> None:
        """Let go of a version: its memory is free once the requests under way have ended."""
        del self._loaded[loaded.key]
        project, name, number = loaded.key
        if self._champions.get((project, name)) == number:
            del self._champions[project, name]

    # -- who is champion ---------------------------------------------------------------------------

    def _poll(self) -> None:
        while not self._is_over.is_set():
            with suppress(RuntimeError, CancelledError):  # the loader has ended
                self._loader.submit(self._follow).result()
            self._is_over.wait(self._settings.poll_seconds)

    def _follow(self) -> None:
        """Load the champions that have moved; at first, those that were moved last."""
        try:
            if not self.are_ready:
                self._load_champions()
                self.are_ready = True
            else:
                for project, name in [*self._champions]:
                    found = self._store.in_project(project).models.find(name)
                    if found is not None:
                        self._replace_champion(found)
                        self._forget_removed(found)
            self.store_failure = None
        except EmbeddingStudioError as error:
            # what is in memory goes on to serve
            if self.store_failure is None:
                log.warning("the champions were not read: %s", error)
            self.store_failure = str(error)

    def _load_champions(self) -> None:
        models = [model for model in self._store.models.all() if model.champion is not None]
        models.sort(key=lambda model: model.moves[-1].at.timestamp() if model.moves else 0.0)
        for model in models[-self._settings.serve_models :]:
            self._replace_champion(model)

    def _replace_champion(self, model: RegisteredModel) -> None:
        """Load the champion, and let it answer in place of the former one, which is let go unless
        it was asked for by its number. One that cannot be loaded replaces nothing."""
        name = model.project, model.name
        former = self._champions.get(name)
        if model.champion is None or model.champion == former:
            return
        key = (*name, model.champion)
        failure = self._failures.get(key)
        if failure is not None and time.monotonic() - failure.at < RETRY_SECONDS:
            return
        try:
            loaded = self._put(model, model.version(model.champion), is_pinned=False)
        except StoreUnavailable:
            raise
        except EmbeddingStudioError as error:
            log.warning("version %d of %r cannot be served: %s", key[2], model.name, error)
            self._failures[key] = _Failure(str(error))
            return
        with self._lock:
            self._champions[name] = loaded.number
            old = self._loaded.get((*name, former)) if former is not None else None
            if old is not None and not old.is_pinned:
                self._forget(old)

    def _forget_removed(self, model: RegisteredModel) -> None:
        with self._lock:
            for version in model.versions:
                loaded = self._loaded.get((model.project, model.name, version.number))
                if loaded is not None and version.removed_at is not None:
                    self._forget(loaded)


def _parts(reference: str) -> tuple[str, str]:
    name, version = split_reference(reference)
    return name, version or CHAMPION
