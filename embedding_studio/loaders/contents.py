"""The contents of items, from wherever they are: kept here, or elsewhere."""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Protocol, Self

from embedding_studio.errors import (
    ConfigurationError,
    Draining,
    LeaseLost,
    NotEnoughData,
    Unreadable,
)
from embedding_studio.items import Item
from embedding_studio.loaders.cache import Cache
from embedding_studio.loaders.sources import ID, Source, sources_of
from embedding_studio.settings import Settings

Find = Callable[[Collection[str]], Mapping[str, Item]]

_AT_ONCE = 128
_NAMED = 5
_MOST_TIME = 0.5
"""How much of ES_MAX_JOB_MINUTES may be spent on contents."""
_TOO_LATE = Unreadable("half of ES_MAX_JOB_MINUTES was over before it was its turn")


class Loader(Protocol):
    """A source of contents."""

    def load(self, object_ids: Collection[str]) -> Mapping[str, Item | Unreadable]:
        """Return items by their ids, a few at once, or why one cannot be had; those that are not
        there are left out. Raises what databases, file systems and their drivers raise."""
        ...

    def close(self) -> None: ...


class Contents:
    """What finds items' contents, in a with statement: those that are kept, then those of the
    sources that ES_ITEMS_FROM names, in their order.

    Where there are sources, it is counted how many had to be found and which were not.
    check: is called now and then, and may raise LeaseLost and Draining, which end the search."""

    def __init__(
        self, stored: Find, settings: Settings, check: Callable[[], None] = lambda: None
    ) -> None:
        """Raises ConfigurationError."""
        self._stored = stored
        self._check = check
        self._most_missing = settings.max_missing_items
        self._ends_at = time.monotonic() + _MOST_TIME * 60 * settings.max_job_minutes
        max_bytes = settings.items_cache_mb * 1024 * 1024
        self._cache = Cache(settings.data_folder.absolute() / "items", max_bytes)
        sources = sources_of(settings)
        self._loaders = [loader_of(one, settings, self._cache, check) for one in sources]
        #: how many were looked for and are not kept here
        self.sought = 0
        #: of these, the first that are nowhere to be had, and why
        self.missing: dict[str, str] = {}
        self.missing_count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for loader in self._loaders:
            loader.close()
        self._cache.shrink()

    def find(self, object_ids: Collection[str]) -> Mapping[str, Item]:
        """Return those items that are to be had, by their ids."""
        found = dict(self._stored(object_ids))
        if not self._loaders:
            return found
        left = [one for one in object_ids if one not in found]
        self.sought += len(left)
        for first in range(0, len(left), _AT_ONCE):
            self._check()
            found |= self._load(left[first : first + _AT_ONCE])
        return found

    def _load(self, object_ids: Collection[str]) -> dict[str, Item]:
        found: dict[str, Item] = {}
        why = dict.fromkeys(object_ids, "it is in none of the sources of ES_ITEMS_FROM")
        for loader in self._loaders:
            for its_id, item in _loaded(loader, why, self._ends_at).items():
                if isinstance(item, Item):
                    found[its_id] = item
                    why.pop(its_id, None)
                elif its_id in why:
                    why[its_id] = str(item)
        self.missing_count += len(why)
        for its_id in [*why][: _NAMED - len(self.missing)]:
            self.missing[its_id] = why[its_id]
        return found

    def told(self) -> str:
        """Say what is missing; nothing if all was found."""
        if not self.missing_count:
            return ""
        named = "; ".join(f"{its_id!r}: {reason}" for its_id, reason in self.missing.items())
        more = ", ..." if self.missing_count > len(self.missing) else ""
        return (
            f"{self.missing_count} of {self.sought} items that are not kept here cannot be loaded "
            f"from ES_ITEMS_FROM: {named}{more}"
        )

    def require_most(self) -> None:
        """Raise NotEnoughData where more are missing than ES_MAX_MISSING_ITEMS allows."""
        if self.missing_count > self._most_missing * self.sought:
            raise NotEnoughData(
                f"{self.told()}. More than a share of {self._most_missing:g} is missing "
                "(ES_MAX_MISSING_ITEMS)"
            )


def _loaded(
    loader: Loader, object_ids: Collection[str], ends_at: float
) -> Mapping[str, Item | Unreadable]:
    if not object_ids:
        return {}
    if time.monotonic() > ends_at:
        return dict.fromkeys(object_ids, _TOO_LATE)
    try:
        return loader.load([*object_ids])
    except (LeaseLost, Draining):
        raise
    except Exception as error:  # noqa: BLE001 - drivers raise what they like
        why = Unreadable(f"{type(error).__name__}: {str(error)[:500]}")
        return dict.fromkeys(object_ids, why)


def loader_of(
    source: Source, settings: Settings, cache: Cache, check: Callable[[], None]
) -> Loader:
    """Return what loads from a source. Raises ConfigurationError."""
    from embedding_studio.loaders.databases import MongoDocuments, SqlTable
    from embedding_studio.loaders.files import ItemFiles, TableFile

    try:
        if ID in source.at:
            return ItemFiles(source, settings, cache)
        if source.at.startswith("mongodb"):
            return MongoDocuments(source)
        if "#" in source.at:
            return SqlTable(source)
        return TableFile(source, settings, cache, check)
    except Exception as error:
        where = source.at.rpartition("@")[2]  # without a password
        raise ConfigurationError(f"ES_ITEMS_FROM: {where!r} cannot be opened: {error}") from error
