"""What a model encodes, by number, and how it is cut into passes."""

import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor

Ints = NDArray[np.integer]

_MAX_TOKENS = 4096
_CALL_TOKENS = 64  # what one more pass through a model costs, in tokens


def new_array(file: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Make an .npy file, mapped into memory, for whose content the disk has set room aside.

    Raises OSError where there is none: a process that writes to a map of a file with holes, on a
    full disk, is killed instead."""
    array: np.memmap[Any, Any] = np.lib.format.open_memmap(
        file, mode="w+", dtype=dtype, shape=shape
    )
    if hasattr(os, "posix_fallocate"):
        with file.open("rb+") as content:
            os.posix_fallocate(content.fileno(), 0, file.stat().st_size)
    return array


class DoesNotFit(Exception):
    """What a model does cannot be kept and stood in for, and why."""


class Inputs(Protocol):
    """Texts or images by number, as a model is given them when it serves.

    is_fixed: whether an input is the same each time; False while inputs are augmented.
    is_left_padded: on which side of a shorter input the padding of a pass stands.
    folder: where what is computed from the inputs may be kept for other processes; None: nowhere.
    """

    @property
    def is_fixed(self) -> bool: ...

    @property
    def is_left_padded(self) -> bool: ...

    @property
    def folder(self) -> Path | None: ...

    def __len__(self) -> int: ...

    def for_model(self, model: SentenceTransformer) -> "Inputs":
        """Return the inputs as this model takes them."""

    def same_as(self, which: Ints) -> Ints:
        """Return for each input the first that the model encodes alike."""

    def names(self, which: Ints) -> Sequence[Hashable]:
        """Return what each input is: of one name, one model makes one vector."""

    def samples(self) -> Ints:
        """Return a few inputs that differ in how they are encoded and in length."""

    def groups(self, which: Ints) -> Ints:
        """Return a number for each input; those of one number may share a pass."""

    def lengths(self, which: Ints) -> NDArray[np.int64]:
        """Return how many tokens (of an image: patches and one) a transformer makes of each."""

    def features(self, which: Ints, model: SentenceTransformer) -> dict[str, Any]:
        """Return what the model's `forward` takes for inputs of one group."""

    def options(self, which: Ints) -> dict[str, Any]:
        """Return what else its `forward` is called with, by name."""


def padded_places(
    offsets: Ints, which: Ints, is_left: bool = False
) -> tuple[Ints, NDArray[np.bool_]]:
    """Return where the tokens of inputs that lie end to end are, and which of it is no padding.

    offsets: (n_inputs + 1,). Both are (n, longest); a place in the padding is 0."""
    lengths = offsets[which + 1] - offsets[which]
    longest = max(1, int(lengths.max()))  # a text may have no token at all
    columns = np.arange(longest) - (longest - lengths[:, None] if is_left else 0)
    mask = (columns >= 0) & (columns < lengths[:, None])
    return np.where(mask, offsets[which][:, None] + columns, 0), mask


def in_order(inputs: Inputs, which: Ints, encode: Callable[[Ints], Tensor]) -> Tensor:
    """Return (n, d), what `encode` makes of the inputs (at least one), in their order.

    Inputs of like length are encoded together, so that little time goes into padding."""
    chunks = passes(inputs, which)
    vectors = torch.cat([encode(which[chunk]) for chunk in chunks])
    return vectors[torch.from_numpy(np.argsort(np.concatenate(chunks))).to(vectors.device)]


def passes(inputs: Inputs, which: Ints) -> list[Ints]:
    """Return places in `which`, each once, cut into passes of one group and like length."""
    groups, lengths = inputs.groups(which), inputs.lengths(which)
    found: list[Ints] = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        order, slices = chunks_of_like_length(lengths[members])
        found += [members[order[chunk]] for chunk in slices]
    return found


def chunks_of_like_length(
    lengths: NDArray[np.int64], max_tokens: int = _MAX_TOKENS, call_tokens: int = _CALL_TOKENS
) -> tuple[NDArray[np.int64], list[slice]]:
    """Return an order by length, and the slices of it, first to last, that cost least.

    lengths: (n,) in tokens, at least 1 each. A slice costs its tokens once padded and `call_tokens`
    for each pass of at most `max_tokens`; the cheapest cut of the ordered lengths is found by
    dynamic programming over the distinct ones."""
    order = np.argsort(lengths, kind="stable")
    values, counts = np.unique(lengths, return_counts=True)
    ends = np.cumsum(counts)
    cost = np.zeros(len(values) + 1)  # of the inputs up to the k-th distinct length
    begins = np.zeros(len(values) + 1, dtype=np.int64)
    starts = np.concatenate([[0], ends[:-1]])
    for k, length in enumerate(values):
        tokens = (ends[k] - starts[: k + 1]) * length
        total = cost[: k + 1] + tokens + call_tokens * np.ceil(tokens / max_tokens)
        begins[k + 1] = total.argmin()
        cost[k + 1] = total.min()
    slices: list[slice] = []
    k = len(values)
    while k > 0:
        first, stop = int(starts[begins[k]]), int(ends[k - 1])
        step = max(1, max_tokens // int(values[k - 1]))
        slices += [slice(at, min(at + step, stop)) for at in range(first, stop, step)]
        k = int(begins[k])
    return order, sorted(slices, key=lambda chunk: chunk.start)
