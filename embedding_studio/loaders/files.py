"""Loaders of files: a table of all items, or a file for each."""

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from pydantic import TypeAdapter

from embedding_studio.errors import InvalidInput, Unreadable
from embedding_studio.imports.columns import values_of
from embedding_studio.imports.readers import read_rows
from embedding_studio.items import Item
from embedding_studio.loaders.cache import Cache
from embedding_studio.loaders.columns import Columns, item_in
from embedding_studio.loaders.places import Reader
from embedding_studio.loaders.sources import ID, Source
from embedding_studio.settings import Settings

IMAGES = {".jpg", ".jpeg", ".png", ".gif", ".webp", ".avif", ".bmp"}
_READERS = 16
_CHECKED_ROWS = 1000
_ITEM = TypeAdapter(Item)
_IDS = TypeAdapter(list[str])


def _place(source: Source) -> str:
    place = source.at.removeprefix("file://")
    return place if "://" in place else str(Path(place).absolute())


def _reader(place: str, settings: Settings) -> Reader:
    """Return what reads below the folder of a place that the operator named, and nowhere else."""
    folder = place.partition(ID)[0].rpartition("/")[0] or "/"
    if folder.endswith(":/"):
        raise ValueError(f"{ID} is no host and no bucket: who posts sessions chooses it")
    bounds = {} if place.startswith("http") else {"allowed_roots": folder}
    return Reader(settings.replaced(**bounds), allow_private=True)


class ItemFiles:
    """A file for each item, at an address with its id: JSON, text, or an image, which is left to
    who reads images."""

    def __init__(self, source: Source, settings: Settings, cache: Cache) -> None:
        self._source = source
        self._place = _place(source)
        self._cache = cache
        self._is_image = PurePosixPath(self._place.partition("?")[0]).suffix.lower() in IMAGES
        self._reader = _reader(self._place, settings)

    def load(self, object_ids: Collection[str]) -> Mapping[str, Item | Unreadable]:
        with ThreadPoolExecutor(_READERS) as readers:
            return dict(zip(object_ids, readers.map(self._load, object_ids), strict=True))

    def _load(self, object_id: str) -> Item | Unreadable:
        try:
            address = self._address(object_id)
            if self._is_image:
                return Item(object_id, image=address)
            file = self._cache.get(address, lambda new: new.write_bytes(self._reader.read(address)))
            return item_in(self._source, object_id, file.read_bytes())
        except Exception as error:  # noqa: BLE001 - file systems raise what they like
            return Unreadable(f"{type(error).__name__}: {str(error)[:500]}")

    def _address(self, object_id: str) -> str:
        if not self._place.startswith("http"):
            return self._place.replace(ID, object_id)
        if not object_id.strip("."):
            raise Unreadable("it would be another address")
        return self._place.replace(ID, quote(object_id, safe=""))

    def close(self) -> None:
        self._reader.__exit__()


class TableFile:
    """A file with a row for each item, in any form that is imported. It is read once, and then
    looked up in a database in the cache."""

    def __init__(
        self, source: Source, settings: Settings, cache: Cache, check: Callable[[], None]
    ) -> None:
        self._source = source
        self._place = _place(source)
        self._settings = settings
        self._check = check
        self._cache = cache
        self._rows: sqlite3.Connection | None = None

    def load(self, object_ids: Collection[str]) -> Mapping[str, Item | Unreadable]:
        if self._rows is None:
            self._rows = self._opened()
        sought = _IDS.dump_json([*object_ids]).decode()
        which = "SELECT content FROM items WHERE id IN (SELECT value FROM json_each(?))"
        found = (_ITEM.validate_json(content) for (content,) in self._rows.execute(which, [sought]))
        return {item.object_id: item for item in found}

    def _opened(self) -> sqlite3.Connection:
        with _reader(self._place, self._settings) as reader:
            version = reader.version(self._place)
            key = f"{self._source.model_dump_json()} {version}"
            file = self._cache.get(key, lambda new: self._write(reader, new))
            return sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)

    def _write(self, reader: Reader, file: Path) -> None:
        with closing(sqlite3.connect(file, isolation_level=None)) as rows:
            rows.execute("PRAGMA journal_mode=OFF")
            rows.execute("CREATE TABLE items (id TEXT PRIMARY KEY, content BLOB) WITHOUT ROWID")
            rows.execute("BEGIN")
            rows.executemany("INSERT OR REPLACE INTO items VALUES (?, ?)", self._items(reader))
            rows.execute("COMMIT")

    def _items(self, reader: Reader) -> Iterator[tuple[str, bytes]]:
        """Yield the items; a row that is none is left out. Raises InvalidInput if none is one."""
        known: dict[tuple[str, ...], Columns] = {}
        found, why = 0, "there are no rows"
        with reader.opened(self._place) as file:
            for row in read_rows(file.read, self._settings):
                if not row.number % _CHECKED_ROWS:
                    self._check()
                try:
                    values = values_of(row)
                    if (names := tuple(values)) not in known:
                        known[names] = Columns(self._source, names)
                    item = known[names].item(known[names].id_in(values), values)
                except (ValueError, InvalidInput, Unreadable) as error:
                    why = f"row {row.number}: {error}"
                    continue
                found += 1
                yield item.object_id, _ITEM.dump_json(item)
        if not found:
            raise InvalidInput(f"no row is an item; {why}")

    def close(self) -> None:
        if self._rows is not None:
            self._rows.close()
