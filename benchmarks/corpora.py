"""A second corpus to measure on: a catalogue whose searchers have words of their own."""

import hashlib
from collections.abc import Sequence

import numpy as np

from embedding_studio.demo.corpus import Corpus, Icon

# fmt: off
_ATTRIBUTES = (
    ("red", "blue", "green", "black", "white", "grey", "brown", "yellow", "pink", "purple",
     "orange", "golden"),
    ("wooden", "steel", "glass", "leather", "cotton", "ceramic", "plastic", "bamboo", "marble",
     "woollen", "paper", "copper"),
    ("foldable", "waterproof", "vintage", "handmade", "wireless", "padded", "striped", "minimalist",
     "heavy", "lightweight", "adjustable", "portable"),
    ("lamp", "chair", "mug", "backpack", "watch", "blanket", "table", "vase", "helmet",
     "notebook", "shelf", "basket", "jacket", "clock", "bottle", "mirror", "pillow", "knife",
     "tent", "speaker"),
)
_SYNONYMS = (
    ("scarlet", "azure", "emerald", "ebony", "ivory", "ashen", "chestnut", "lemon", "rosy",
     "violet", "tangerine", "gilded"),
    ("timber", "metallic", "crystal", "hide", "jersey", "porcelain", "polymer", "cane", "stone",
     "knitted", "cardboard", "bronze"),
    ("collapsible", "rainproof", "retro", "artisan", "bluetooth", "cushioned", "lined", "plain",
     "hefty", "featherweight", "variable", "mobile"),
    ("lantern", "seat", "cup", "rucksack", "timepiece", "throw", "desk", "urn", "hardhat",
     "journal", "rack", "hamper", "coat", "alarm", "flask", "reflector", "cushion", "blade",
     "shelter", "amplifier"),
)
_PLACES = ("the kitchen", "the office", "the garden", "travel", "children", "the bedroom")
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")
# fmt: on
_PRIVATE_SHARE = 0.4
_INVENTED_SHARE = 0.35


def generated_corpus(n_items: int = 1500, n_queries: int = 2500, seed: int = 0) -> Corpus:
    """Make a catalogue, "red wooden foldable lamp for travel", and queries in part in jargon.

    Every attribute has one invented word, "kurute", that searchers use and no item bears. A query
    names two or three attributes of some item, in any order, each in plain English or, at least
    one of them and half of the time, by its invented word. Every item with these attributes is
    relevant. Held-out queries, one in five by a hash, are new combinations of words that posted
    queries use too: what clicks teach about a word is all that can help.
    """
    random = np.random.default_rng(seed)
    sizes = [len(words) for words in _ATTRIBUTES]
    kinds = random.choice(np.prod(sizes), size=n_items, replace=False)
    attributes = np.stack(np.unravel_index(kinds, sizes), axis=1)
    items = tuple(
        Icon(
            f"item-{number}",
            f"{' '.join(_words(row))} for {_PLACES[random.integers(len(_PLACES))]}",
        )
        for number, row in enumerate(attributes)
    )
    jargon = _make_jargon(random)
    meanings: dict[str, np.ndarray] = {}
    while len(meanings) < n_queries:
        named = random.choice(len(sizes), size=random.integers(2, 4), replace=False)
        values = attributes[random.integers(n_items), named]
        is_private = random.random(len(named)) < _PRIVATE_SHARE
        is_private[random.integers(len(named))] = True
        query = " ".join(
            (jargon if private else _ATTRIBUTES)[attribute][value]
            for attribute, value, private in zip(named, values, is_private, strict=True)
        )
        meanings[query] = (attributes[:, named] == values).all(axis=1)
    is_held_out = np.array([_is_held_out(query) for query in meanings])
    return Corpus(
        items=items,
        queries=tuple(meanings),
        relevance=np.stack(list(meanings.values())),
        posted=np.flatnonzero(~is_held_out),
        held_out=np.flatnonzero(is_held_out),
    )


def _words(values: Sequence[int]) -> list[str]:
    return [words[value] for words, value in zip(_ATTRIBUTES, values, strict=True)]


def _make_jargon(random: np.random.Generator) -> tuple[tuple[str, ...], ...]:
    """Return the searchers' word for every attribute: a synonym, or distinct syllables."""
    invented: dict[str, None] = {}
    while len(invented) < sum(map(len, _SYNONYMS)):
        invented["".join(random.choice(_SYLLABLES, size=3, replace=False))] = None
    word = iter(invented)
    return tuple(
        tuple(next(word) if random.random() < _INVENTED_SHARE else synonym for synonym in synonyms)
        for synonyms in _SYNONYMS
    )


def _is_held_out(query: str) -> bool:
    digest = hashlib.sha1(query.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest, "big") % 10 >= 8
