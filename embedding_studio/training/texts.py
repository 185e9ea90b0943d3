"""Texts as a model is given them: tokenized once per iteration, memory-mapped by every trial."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

from embedding_studio.deletion import remove_tree
from embedding_studio.training.inputs import DoesNotFit, Ints, padded_places
from embedding_studio.training.serving import SAME, Side, forward, sides_of

log = logging.getLogger(__name__)

Flags = NDArray[np.bool_]
Column = NDArray[np.int32]

_CHUNK = 512
_SAMPLES = 4  # of each side
_SAMPLE_TOKENS = 256
_PROBES = ["a", "Two words, " * 2, "many words " * 300]


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts by number, each a query or an item, as one model is given them.

    contents: the texts; is_item: (n_texts,). sides: what the model adds to a query and to an item.
    offsets: (n_texts + 1,) int64, places in each of the columns, (n_tokens,) int32, where the token
    ids of the texts (and what else the model is given for each token) lie end to end. filling: by
    name, what stands in the padding; a name without a column is that everywhere.
    constants: what else is given for a query and for an item, `prompt_length` say.
    Without columns the model's own `preprocess` is called each time.
    is_parted: whether queries and items must not share a pass. is_padded: whether texts of
    different lengths may; some models (those that count positions from the padding on) give a
    padded text another vector.
    twins: (n_texts,) the first text that the model encodes alike.
    fingerprint: of all that `preprocess` depends on. Arrays may be memory-mapped."""

    contents: Sequence[str]
    is_item: Flags
    sides: tuple[Side, Side]
    offsets: Ints
    columns: Mapping[str, Column]
    filling: Mapping[str, int]
    constants: tuple[Mapping[str, Any], Mapping[str, Any]]
    is_left_padded: bool
    is_parted: bool
    is_padded: bool
    twins: Ints
    fingerprint: str
    folder: Path | None = None
    is_fixed: bool = True

    def __len__(self) -> int:
        return len(self.contents)

    def for_model(self, model: SentenceTransformer) -> "TokenizedTexts":
        """Return the same texts as another model is given them, tokenized again if need be."""
        fingerprint = fingerprint_of(model)
        if fingerprint == self.fingerprint:
            return self
        if self.folder is None:
            return tokenize(model, self.contents, self.is_item)
        place = self.folder / f"texts-{fingerprint}"
        if not place.exists():
            part = Path(tempfile.mkdtemp(dir=self.folder, suffix=".part"))
            try:
                tokenize(model, self.contents, self.is_item).write(part)
                part.rename(place)
            except OSError:
                if not place.exists():  # else another process was first
                    raise
            finally:
                remove_tree(part, ignore_errors=True)
        return open_texts(place)

    def same_as(self, which: Ints) -> Ints:
        found: Ints = self.twins[which]
        return found

    def only(self, is_item: bool) -> "TokenizedTexts":
        """Return the texts, under the same numbers, for a tower that encodes queries alone, or
        items: each of the others counts as the first of these. Their sides are not alike."""
        own = self.is_item == is_item
        return replace(self, twins=np.where(own, self.twins, np.flatnonzero(own)[0]))

    def names(self, which: Ints) -> list[tuple[str, str, bool]]:
        is_item = self.is_item.tolist()
        return [
            (self.fingerprint, self.contents[n], is_item[n]) for n in self.same_as(which).tolist()
        ]

    def samples(self) -> Ints:
        return np.concatenate([self._samples_of(side) for side in (False, True)])

    def _samples_of(self, is_item: bool) -> Ints:
        """Return a few from the shortest on; long ones only where there are no others."""
        lengths = np.diff(self.offsets)
        is_distinct = self.twins == np.arange(len(self))
        members = np.flatnonzero((self.is_item == is_item) & is_distinct & (lengths > 0))
        order = members[np.argsort(lengths[members], kind="stable")]
        short = order[: max(1, int((lengths[order] <= _SAMPLE_TOKENS).sum()))]
        steps = np.linspace(0, len(short) - 1, min(_SAMPLES, len(short)))
        return short[steps.astype(np.int64)]

    def groups(self, which: Ints) -> Ints:
        group = (self.is_item[which] & self.is_parted).astype(np.int64)
        return group if self.is_padded else group + 2 * self.lengths(which)

    def lengths(self, which: Ints) -> NDArray[np.int64]:
        lengths: NDArray[np.int64] = self.offsets[which + 1] - self.offsets[which]
        return np.maximum(1, lengths)

    def features(self, which: Ints, model: SentenceTransformer) -> dict[str, Any]:
        """Return what the model's `preprocess` gives for the texts."""
        is_item = bool(self.is_item[which[0]])
        if not self.columns:
            side = self.sides[is_item]
            texts = [self.contents[number] for number in which]
            return dict(model.preprocess(texts, prompt=side.prompt, **side.options))
        places, mask = padded_places(self.offsets, which, self.is_left_padded)
        tensors = {"attention_mask": torch.from_numpy(mask.astype(np.int64))}
        for name, fill in self.filling.items():
            filled = np.full(mask.shape, fill, np.int64)
            if name in self.columns:
                filled[mask] = self.columns[name][places[mask]]
            tensors[name] = torch.from_numpy(filled)
        return {**tensors, **self.constants[is_item]}

    def options(self, which: Ints) -> dict[str, Any]:
        return dict(self.sides[bool(self.is_item[which[0]])].options)

    def write(self, folder: Path) -> None:
        """Write what `open_texts` maps into memory."""
        for name in ("is_item", "offsets", "twins"):
            np.save(folder / f"texts_{name}.npy", getattr(self, name))
        for name, column in self.columns.items():
            np.save(folder / f"tokens_{name}.npy", column)
        description = {
            "sides": [vars(side) for side in self.sides],
            "columns": list(self.columns),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        (folder / "texts.json").write_text(json.dumps(description), encoding="utf-8")


_PLAIN = (
    "contents",
    "filling",
    "constants",
    "is_left_padded",
    "is_parted",
    "is_padded",
    "fingerprint",
)


def open_texts(folder: Path) -> TokenizedTexts:
    """Map the texts that were written into a folder into memory."""

    def mapped(name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array

    description = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    query, item = (Side(**side) for side in description.pop("sides"))
    columns = {name: mapped(f"tokens_{name}") for name in description.pop("columns")}
    arrays: dict[str, Any] = {
        name: mapped(f"texts_{name}") for name in ("is_item", "offsets", "twins")
    }
    return TokenizedTexts(
        **description, **arrays, sides=(query, item), columns=columns, folder=folder
    )


def tokenize(
    model: SentenceTransformer, contents: Sequence[str], is_item: Flags | None = None
) -> TokenizedTexts:
    """Let the model's `preprocess` make of each text what it makes of it when it serves.

    is_item: (n_texts,) which of them are items; none by default. What it gives is kept if it is a
    row of integers per text that comes back the same, and is else made anew each time."""
    contents = list(contents)
    is_item = np.zeros(len(contents), np.bool_) if is_item is None else is_item
    sides = sides_of(model)
    is_training = model.training
    model.eval()
    is_alike = _are_alike(model, sides)
    words = [len(content.split()) for content in contents]
    plain = TokenizedTexts(
        contents=contents,
        is_item=is_item,
        sides=sides,
        # as if each word were a token: enough to cut passes by
        offsets=np.concatenate([[0], np.cumsum(words)]).astype(np.int64),
        columns={},
        filling={},
        constants=({}, {}),
        is_left_padded=False,
        is_parted=not is_alike,
        is_padded=True,
        twins=_twins(contents, np.zeros_like(is_item) if is_alike else is_item),
        fingerprint=fingerprint_of(model),
    )
    texts = _kept(plain, model) or plain
    texts = replace(texts, is_padded=_bears_padding(texts, model))
    model.train(is_training)
    return texts


def _kept(plain: TokenizedTexts, model: SentenceTransformer) -> TokenizedTexts | None:
    """Return the texts with token ids for all that `preprocess` gives, or None where these cannot
    stand for it."""
    try:
        kept = _with_columns(plain, model)
    except DoesNotFit as reason:
        log.info("texts go through the model's own preprocess each time: %s", reason)
        return None
    for samples in _by_side(kept):
        if not _are_equal(kept.features(samples, model), plain.features(samples, model)):
            log.info("kept token ids are not what preprocess gives, which is called each time")
            return None
    return kept


def _with_columns(plain: TokenizedTexts, model: SentenceTransformer) -> TokenizedTexts:
    lengths = np.zeros(len(plain), np.int64)
    rows: list[tuple[Ints, dict[str, Column]]] = []
    filling: dict[str, int] = {}
    constants: list[dict[str, Any]] = [{}, {}]
    is_left_padded = False
    for which in _chunks(plain):
        found = plain.features(which, model)
        tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
        mask = tensors.pop("attention_mask", None)
        if mask is None or "input_ids" not in tensors:
            raise DoesNotFit(f"it gives {', '.join(found)}")
        if any(tensor.shape != mask.shape for tensor in tensors.values()):
            raise DoesNotFit("what it gives are not all rows with a number for each token")
        constants[int(plain.is_item[which[0]])] = {
            name: value for name, value in found.items() if not isinstance(value, Tensor)
        }
        is_token = mask.numpy().astype(np.bool_)
        lengths[which] = is_token.sum(axis=1)
        arrays = {name: tensor.numpy().astype(np.int32) for name, tensor in tensors.items()}
        rows.append((which, {name: array[is_token] for name, array in arrays.items()}))
        if not is_token.all():
            filling |= {name: int(array[~is_token][0]) for name, array in arrays.items()}
            is_left_padded |= not is_token[is_token.any(axis=1), 0].all()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    names = {name for _, values in rows for name in values}
    columns = {name: np.zeros(offsets[-1], np.int32) for name in sorted(names)}
    for which, values in rows:
        places, mask_of = padded_places(offsets, which)
        for name, column in columns.items():
            column[places[mask_of]] = values[name]
    filling = {name: filling.get(name, 0) for name in columns}
    query, item = constants
    if json.loads(json.dumps(constants, default=repr)) != constants:
        raise DoesNotFit(f"it gives {query or item}")
    return replace(
        plain,
        offsets=offsets,
        # one number for all (the type of a token, mostly) need not be kept for each
        columns={
            name: column
            for name, column in columns.items()
            if name == "input_ids" or (column != filling[name]).any()
        },
        filling=filling,
        constants=(query, item),
        is_left_padded=is_left_padded,
        is_parted=query != item or _takes_options(model, plain.sides),
    )


def _chunks(texts: TokenizedTexts) -> Iterator[Ints]:
    """Yield the numbers of texts of one side and about one length."""
    for side in (False, True):
        members = np.flatnonzero(texts.is_item == side)
        order = members[np.argsort(texts.lengths(members), kind="stable")]
        yield from (order[start : start + _CHUNK] for start in range(0, len(order), _CHUNK))


def _by_side(texts: TokenizedTexts) -> Iterator[Ints]:
    """Yield the samples of each side that has texts."""
    samples = texts.samples()
    for side in (False, True):
        chosen = samples[texts.is_item[samples] == side]
        if len(chosen):
            yield chosen


@torch.inference_mode()
def _bears_padding(texts: TokenizedTexts, model: SentenceTransformer) -> bool:
    """Return whether a short text has the same vector alone as beside a long one."""
    for samples in _by_side(texts):
        alone, beside = forward(model, texts, samples[:1])[0], forward(model, texts, samples)[0]
        if (alone - beside).norm() > SAME * beside.norm():
            log.info("the model gives padded texts other vectors: only texts of a length go along")
            return False
    return True


def _are_alike(model: SentenceTransformer, sides: tuple[Side, Side]) -> bool:
    """Return whether a query and an item of one text are the same to the model."""
    query, item = sides
    if query.prompt != item.prompt or _takes_options(model, sides):
        return False
    first, second = (model.preprocess(_PROBES, prompt=s.prompt, **s.options) for s in sides)
    return _are_equal(first, second)


def _takes_options(model: SentenceTransformer, sides: tuple[Side, Side]) -> bool:
    """Return whether `forward` is told which side it encodes; a Router reads it elsewhere."""
    options = {name for side in sides for name in side.options}
    return not options.isdisjoint(model.get_model_kwargs())


def _twins(contents: Sequence[str], is_item: Flags) -> Ints:
    """Return for each text the first of its content and side."""
    numbers: dict[tuple[str, bool], int] = {}
    keys = zip(contents, is_item.tolist(), strict=True)
    return np.array([numbers.setdefault(key, n) for n, key in enumerate(keys)], dtype=np.int64)


def _are_equal(some: Mapping[str, Any], others: Mapping[str, Any]) -> bool:
    return some.keys() == others.keys() and all(
        value.shape == others[name].shape and bool((value == others[name]).all())
        if isinstance(value, Tensor)
        else value == others[name]
        for name, value in some.items()
    )


def fingerprint_of(model: SentenceTransformer) -> str:
    """Return what two models share that are given the same for every text."""
    digest = hashlib.sha256(_vocabulary_of(model.tokenizer).encode())
    digest.update(repr(model.max_seq_length).encode())
    for side in sides_of(model):
        given = model.preprocess(_PROBES, prompt=side.prompt, **side.options)
        digest.update(repr(side).encode())
        for name in sorted(given):
            value = given[name]
            digest.update(name.encode())
            digest.update(repr(value.tolist() if isinstance(value, Tensor) else value).encode())
    return digest.hexdigest()[:16]


def _vocabulary_of(tokenizer: Any) -> str:
    is_plain = not hasattr(tokenizer, "__len__")
    return _hash_of_vocabulary(
        tokenizer, len(tokenizer.get_vocab()) if is_plain else len(tokenizer)
    )


@lru_cache(maxsize=4)  # it takes as long as a small evaluation; a tokenizer may only gain tokens
def _hash_of_vocabulary(tokenizer: Any, size: int) -> str:
    vocabulary = tokenizer.get_vocab()
    words = sorted(vocabulary.items()) if isinstance(vocabulary, dict) else list(vocabulary)
    return hashlib.sha256(repr(words).encode()).hexdigest()
