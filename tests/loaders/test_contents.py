"""Where contents of items come from, and what becomes of those that do not come."""

import gzip
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import mongomock
import pyarrow as pa
import pyarrow.parquet as pq
import pymongo
import pytest
import stamina
from bson import ObjectId
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from embedding_studio.errors import ConfigurationError, Draining, NotEnoughData
from embedding_studio.items import Item
from embedding_studio.loaders.cache import FRESH_SECONDS, Cache
from embedding_studio.loaders.contents import Contents
from embedding_studio.loaders.places import Reader
from embedding_studio.settings import Settings
from tests.strangers import OK, Server, once

ROWS: list[dict[str, Any]] = [
    {"sku": "1", "Title": "red shoe", "picture": "s3://a/1.jpg", "colour": "X", "price": 3},
    {"sku": "2", "Title": "hat", "picture": None, "colour": None, "price": None},
    {"sku": "3", "Title": None, "picture": None, "colour": "Y", "price": 5},
]
TABLE = {"fields": ["colour"], "meta": ["price"]}
RED_SHOE = Item(
    "1", fields={"title": "red shoe", "colour": "X"}, image="s3://a/1.jpg", meta={"price": 3}
)


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=2, cap=True):
        yield


def settings_for(folder: Path, *sources: str | Mapping[str, Any], **more: Any) -> Settings:
    """Return settings that name one source, or several in a file."""
    if len(sources) == 1 and isinstance(sources[0], str):
        named = sources[0]
    else:
        named = str(folder / "sources.yaml")
        Path(named).write_text(json.dumps(sources))
    return Settings(data_folder=folder / "data", items_from=named, **more)


def load(
    settings: Settings, *ids: str, stored: Mapping[str, Item] | None = None
) -> dict[str, Item]:
    with Contents(lambda asked: stored or {}, settings) as contents:
        return dict(contents.find(ids))


def write_parquet(folder: Path) -> Path:
    file = folder / "items.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file


def write_csv(folder: Path) -> Path:
    file = folder / "items.csv.gz"
    text = "sku;Title;picture;colour;price\n1;red shoe;s3://a/1.jpg;X;3\n2;hat;;;\n3;;;Y;5\n"
    file.write_bytes(gzip.compress(text.encode()))
    return file


def write_sqlite(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "shop.db")) as shop:
        shop.execute("CREATE TABLE items (sku INTEGER, Title, picture, colour, price)")
        shop.executemany("INSERT INTO items VALUES (:sku, :Title, :picture, :colour, :price)", ROWS)
        shop.commit()
    return f"sqlite:///{folder / 'shop.db'}#items"


@pytest.mark.parametrize("write", [write_parquet, write_csv, write_sqlite])
def test_a_table(tmp_path: Path, write: Any) -> None:
    """Columns are recognised, or kept by their names; what a row has not is not there."""
    settings = settings_for(tmp_path, {"at": str(write(tmp_path)), **TABLE})
    found = load(settings, "1", "2", "3", "4", "x", "'; --", "9" * 200)
    shoe = found.pop("1")
    assert str(shoe.meta["price"]) == "3"
    assert Item(**{**shoe_fields(shoe), "meta": {"price": 3}}) == RED_SHOE
    assert found == {
        "2": Item("2", fields={"title": "hat"}),
        "3": Item("3", fields={"colour": "Y"}, meta=found["3"].meta),
    }
    assert list(load(settings_for(tmp_path, str(write_parquet(tmp_path))), "1", "3")) == ["1"]


def texts(found: Mapping[str, Item]) -> dict[str, str]:
    return {one: item.content()["text"] for one, item in found.items()}


def shoe_fields(item: Item) -> dict[str, Any]:
    return {name: getattr(item, name) for name in ("object_id", "text", "fields", "image", "url")}


def test_a_collection_of_mongodb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids may be texts, numbers or MongoDB's own; without a column for them they are `_id`."""
    client: Any = mongomock.MongoClient(tz_aware=True)
    own = ObjectId()
    client.shop.items.insert_many(
        [{"_id": 1, "title": "shoe"}, {"_id": "b", "title": "hat"}, {"_id": own, "name": "coat"}]
    )
    monkeypatch.setattr(pymongo, "MongoClient", lambda url, **_: client)
    monkeypatch.setattr(client, "get_default_database", lambda: client.shop)
    settings = settings_for(tmp_path, "mongodb://reader:secret@db/shop#items")
    found = load(settings, "1", "b", str(own), "z")
    assert texts(found) == {
        "1": "shoe",
        "b": "hat",
        str(own): "coat",
    }


def test_a_file_for_each_item(tmp_path: Path) -> None:
    """A text, or JSON; images are named for those who read them."""
    folder = tmp_path / "texts"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1").write_text("red shoe")
    (folder / "2").write_text(json.dumps({"name": "hat", "link": "https://shop/2"}))
    (folder / "3").write_bytes(b"\xff\xfe")
    settings = settings_for(tmp_path, f"{folder}/{{object_id}}")
    assert load(settings, "a/1", "2", "3", "4") == {
        "a/1": Item("a/1", "red shoe"),
        "2": Item("2", fields={"name": "hat"}, url="https://shop/2"),
    }
    images = settings_for(tmp_path, "s3://shop/{object_id}.jpg")
    assert load(images, "1") == {"1": Item("1", image="s3://shop/1.jpg")}


def test_an_address_for_each_item(tmp_path: Path) -> None:
    """An id is a part of the path, whatever is in it, and is asked for once a day."""
    server = Server()
    server.answer = once(OK + b"Content-Length: 3\r\nConnection: close\r\n\r\nhat")
    settings = settings_for(tmp_path, f"{server.url}/items/{{object_id}}?lang=en")
    for _ in range(2):
        assert load(settings, "../a?b#c", "..") == {"../a?b#c": Item("../a?b#c", "hat")}
    assert [one.split(b" ")[1] for one in server.got] == [b"/items/..%2Fa%3Fb%23c?lang=en"]
    server.close()


def test_an_id_leads_nowhere_else(tmp_path: Path) -> None:
    """It comes from whoever posts sessions: only what is below the template's folder is read."""
    (tmp_path / "texts").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "secret")
    settings = settings_for(tmp_path, f"{tmp_path}/texts/{{object_id}}")
    with Contents(lambda ids: {}, settings) as contents:
        assert not contents.find(["../secret", "link", "/etc/passwd", "../../etc/passwd", ".", ""])
    assert "ES_ALLOWED_ROOTS" in contents.missing["../secret"]


def test_no_id_leads_out_of_a_folder(tmp_path: Path) -> None:
    """Whatever it is made of."""
    inside = tmp_path / "a" / "texts"
    inside.mkdir(parents=True)
    for secret in ("a.a", "E.a", "a/a.a", "a/texts.a", "a/E.a", "a/.a"):
        (tmp_path / secret).write_text("secret")

    @given(st.text("./\\%2eE~$a\0", min_size=1, max_size=12))
    @settings_of_hypothesis(max_examples=200, deadline=None)
    def check(object_id: str) -> None:
        assert not contents.find([object_id])

    with Contents(lambda ids: {}, settings_for(tmp_path, f"{inside}/{{object_id}}.a")) as contents:
        check()


def test_sources_are_asked_in_their_order(tmp_path: Path) -> None:
    """What is kept as an item comes first, and a source that fails costs no other."""
    (tmp_path / "2").write_text("a hat of a file")
    sources = [
        f"sqlite:///{tmp_path}/nothing.db#items",
        str(write_parquet(tmp_path)),
        f"{tmp_path}/{{object_id}}",
    ]
    (tmp_path / "4").write_text("a coat of a file")
    settings = settings_for(tmp_path, *({"at": one} for one in sources))
    found = load(settings, "1", "2", "4", stored={"1": Item("1", "a shoe that is kept")})
    assert texts(found) == {
        "1": "a shoe that is kept", "2": "hat", "4": "a coat of a file",
    }  # fmt: skip


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    """Counted, the first are named with the reason; beyond a share it is an error."""
    settings = settings_for(tmp_path, str(write_parquet(tmp_path)), max_missing_items=0.6)
    with Contents(lambda ids: {}, settings) as contents:
        contents.find(["1", "2", "4"])
        contents.require_most()
        assert contents.told() == (
            "1 of 3 items that are not kept here cannot be loaded from ES_ITEMS_FROM: "
            "'4': it is in none of the sources of ES_ITEMS_FROM"
        )
        contents.find([f"x{n}" for n in range(20)])
        with pytest.raises(
            NotEnoughData, match=r"21 of 23 items .*'x3': .*\.\.\.\. More than a share"
        ):
            contents.require_most()


def test_without_sources_nothing_is_missing(tmp_path: Path) -> None:
    """Methods that need no content go on without."""
    with Contents(lambda ids: {}, Settings(data_folder=tmp_path, max_missing_items=0)) as contents:
        assert not contents.find(["a"])
        contents.require_most()
    assert contents.told() == ""


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"at": "{folder}/nothing.csv"}, "No such file"),
        ({"at": "{folder}/wrong.csv"}, "no row is an item; row 2: no column is recognised"),
        ({"at": "{folder}/items.parquet", "columns": {"item": "colour"}}, "none of the sources"),
        ({"at": "sqlite:///{folder}/shop.db#items", "meta": ["size"]}, "no column 'size'"),
        ({"at": "sqlite:///{folder}/shop.db#things"}, "things"),
        ({"at": "{folder}/texts/{object_id}.txt"}, "FileNotFoundError"),
    ],
)
def test_a_source_that_cannot_be_read(tmp_path: Path, source: Any, reason: str) -> None:
    """The reason is told with the items that are missing for it."""
    write_parquet(tmp_path)
    write_sqlite(tmp_path)
    (tmp_path / "wrong.csv").write_text("what,is\nthis,table\n")
    at = source["at"].replace("{folder}", str(tmp_path))
    with Contents(lambda ids: {}, settings_for(tmp_path, {**source, "at": at})) as contents:
        contents.find(["1"])
    assert reason in contents.missing["1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("at: [", "no list of sources"),
        ("[{at: x, colums: {}}]", "0.colums: Extra inputs"),
        ("[{at: x, columns: {id: a}}]", "'id' is none of item, text"),
        ("- at: nonsense://user:secret@x#y", "'x#y' cannot be opened"),
        ("- at: s3://{object_id}", "no host and no bucket"),
        ("- at: https://a.{object_id}/x", "no host and no bucket"),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, text: str, reason: str) -> None:
    """Said when it is opened, without passwords."""
    file = tmp_path / "sources.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        Contents(lambda ids: {}, Settings(data_folder=tmp_path, items_from=str(file)))
    assert reason in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_table_is_read_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And only then: it is looked up in the cache."""
    settings = settings_for(tmp_path, str(write_csv(tmp_path)))
    opened: list[str] = []
    really = Reader.opened

    def counted(self: Reader, address: str) -> Any:
        opened.append(address)
        return really(self, address)

    monkeypatch.setattr(Reader, "opened", counted)
    assert load(settings, "1") == load(settings, "1")
    assert len(opened) == 1
    (tmp_path / "items.csv.gz").write_text("id,name\n1,another\n")
    assert load(settings, "1") == {"1": Item("1", fields={"name": "another"})}


def test_the_cache_is_bounded(tmp_path: Path) -> None:
    """What was not used for longest goes first, and what is a day old is made anew."""
    cache = Cache(tmp_path / "cache", max_bytes=25)
    for number, key in enumerate("abc"):
        file = cache.get(key, lambda new: new.write_bytes(b"x" * 10))
        os.utime(file, (time.time() - 100 + number, time.time()))
    kept = cache.get("a", lambda new: new.write_bytes(b"never"))
    cache.shrink()
    assert {one.stat().st_size for one in (tmp_path / "cache").iterdir()} == {10}
    assert len([*(tmp_path / "cache").iterdir()]) == 2
    assert kept.exists()
    old = time.time() - FRESH_SECONDS - 1
    for name in (".new-old", ".new-young"):
        (tmp_path / "cache" / name).mkdir()
    os.utime(tmp_path / "cache" / ".new-old", (old, old))
    cache.shrink()
    assert [one.name for one in (tmp_path / "cache").glob(".*")] == [".new-young"]
    os.utime(kept, (time.time(), old))
    assert cache.get("a", lambda new: new.write_bytes(b"new")).read_bytes() == b"new"


def test_a_search_for_contents_ends_with_its_task(tmp_path: Path) -> None:
    """Whoever is to end does not load on."""

    answers = iter([None, None, Draining("on purpose")])

    def check() -> None:
        if (error := next(answers)) is not None:
            raise error

    rows = "".join(f"{number},a text\n" for number in range(2500))
    (tmp_path / "items.csv").write_text(f"id,text\n{rows}")
    settings = settings_for(tmp_path, str(tmp_path / "items.csv"))
    with Contents(lambda ids: {}, settings, check) as contents, pytest.raises(Draining):
        contents.find(["1"])
    assert load(settings, "1")  # what was begun is not taken for a whole table
