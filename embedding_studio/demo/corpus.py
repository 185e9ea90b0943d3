"""Icon search in people's own words: the corpus of the demo and of the measurements."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from embedding_studio.clickstream import normalize_query
from embedding_studio.errors import ConfigurationError

ATTRIBUTION = (
    "Icons and search terms: Font Awesome Free 6.6.0 by @fontawesome, https://fontawesome.com, "
    "icons licensed CC BY 4.0, https://creativecommons.org/licenses/by/4.0/"
)

_METADATA = Path("static", "fontawesomefree", "metadata", "icons.json")


@dataclass(frozen=True, slots=True)
class Icon:
    """An item that can be searched for: a drawing and its title."""

    #: Font Awesome's name of it, such as "magnifying-glass"
    object_id: str
    label: str
    #: empty for an item of a corpus that has no drawings
    svg: str = ""


@dataclass(frozen=True)
class Corpus:
    """Items, queries, and which items are truly relevant to which query."""

    items: tuple[Icon, ...]
    #: distinct and normalized
    queries: tuple[str, ...]
    #: (n_queries, n_items)
    relevance: NDArray[np.bool_]
    #: indices into `queries` of those that are searched for
    posted: NDArray[np.int64]
    #: indices into `queries` of the others: what a model does on them is what it has learnt
    held_out: NDArray[np.int64]


def load_corpus() -> Corpus:
    """Read the corpus out of the installed package `fontawesomefree`.

    Items are the 1,393 icons that are no brand's. Queries are the search terms and alternative
    names that people gave them, but for single characters and the item's own label: 3,673 queries
    and 9,497 relevant pairs. A hash of the query alone decides whether it is held out: one in five.
    Raises ConfigurationError when the package is not installed."""
    package = importlib.util.find_spec("fontawesomefree")
    if package is None or package.origin is None:
        raise ConfigurationError("the demo needs its corpus: pip install 'embedding-studio[demo]'")
    file = Path(package.origin).parent / _METADATA
    icons = {
        name: icon
        for name, icon in json.loads(file.read_text(encoding="utf-8")).items()
        if "brands" not in icon["styles"]
    }
    pairs: set[tuple[str, int]] = set()
    for place, icon in enumerate(icons.values()):
        names = icon.get("aliases", {}).get("names", [])
        terms = [str(term) for term in icon["search"]["terms"]]
        terms += [name.replace("-", " ") for name in names]
        words = {normalize_query(term) for term in terms} - {normalize_query(icon["label"])}
        pairs.update((word, place) for word in words if len(word) > 1)
    queries = sorted({query for query, _ in pairs})
    row = {query: number for number, query in enumerate(queries)}
    relevance = np.zeros((len(queries), len(icons)), dtype=np.bool_)
    for query, place in pairs:
        relevance[row[query], place] = True
    is_held_out = np.array([_is_held_out(query) for query in queries])
    return Corpus(
        items=tuple(
            Icon(name, icon["label"], next(iter(icon["svg"].values()))["raw"])
            for name, icon in icons.items()
        ),
        queries=tuple(queries),
        relevance=relevance,
        posted=np.flatnonzero(~is_held_out),
        held_out=np.flatnonzero(is_held_out),
    )


def _is_held_out(query: str) -> bool:
    # not the hash by which an iteration splits the queries it is given: the two stay independent
    digest = hashlib.sha1(query.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest, "big") % 10 >= 8
