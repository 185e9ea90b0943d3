"""SentenceTransformers: loading, saving, and encoding inputs that are known by number."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from embedding_studio.errors import CorruptModel, MethodError

Ints = NDArray[np.integer]

_MAX_TOKENS = 4096
_CALL_TOKENS = 64  # what one more pass through a model costs, in tokens


class Inputs(Protocol):
    """What a model encodes, by number: texts as token ids, images as pixels.

    is_fixed: whether an input is the same each time; False while inputs are augmented.
    folder: where what is computed from the inputs may be kept for other processes; None: nowhere.
    """

    @property
    def is_fixed(self) -> bool: ...

    @property
    def folder(self) -> Path | None: ...

    def __len__(self) -> int: ...

    def lengths(self, which: Ints) -> NDArray[np.int64]:
        """Return how many tokens (of an image: patches and one) a transformer makes of each."""

    def features(self, which: Ints) -> dict[str, Any]:
        """Return what a SentenceTransformer's `forward` takes, padded to the longest."""


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids, special tokens included, end to end.

    tokens: (n_tokens,) int32; offsets: (n_texts + 1,) int64; both may be memory-mapped.
    tokenizer: the fingerprint of what made them; pad: its padding token's id.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    tokenizer: str
    pad: int = 0
    folder: Path | None = None
    is_fixed: bool = True

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, which: Ints) -> NDArray[np.int64]:
        return np.asarray(self.offsets[which + 1] - self.offsets[which])

    def features(self, which: Ints) -> dict[str, Tensor]:
        """Return input_ids and attention_mask, both (n, longest) int64."""
        places, mask = padded_places(self.offsets, which)
        ids = np.where(mask, self.tokens[places], self.pad)
        return {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }

    def write(self, folder: Path) -> None:
        """Write what `open_texts` maps into memory."""
        np.save(folder / "tokens.npy", self.tokens)
        np.save(folder / "token_offsets.npy", self.offsets)
        description = {"tokenizer": self.tokenizer, "pad": self.pad}
        (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")


def padded_places(offsets: Ints, which: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Return where the tokens of inputs that lie end to end are, and which of it is no padding.

    offsets: (n_inputs + 1,). Both are (n, longest); a place in the padding is 0."""
    lengths = offsets[which + 1] - offsets[which]
    columns = np.arange(lengths.max())
    mask = columns < lengths[:, None]
    return np.where(mask, offsets[which][:, None] + columns, 0), mask


def open_texts(folder: Path) -> TokenizedTexts:
    """Map the texts that were written into a folder into memory."""
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return TokenizedTexts(
        np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False),
        np.load(folder / "token_offsets.npy", mmap_mode="r", allow_pickle=False),
        **description,
        folder=folder,
    )


def device() -> torch.device:
    """Return the GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_encoder(place: str | Path) -> SentenceTransformer:
    """Load from a folder, or by a model hub's name.

    Raises CorruptModel when a folder does not hold a model."""
    with _without_progress_bars():
        try:
            return SentenceTransformer(str(place), device=str(device()))
        except (OSError, ValueError, KeyError) as error:
            raise CorruptModel(f"no sentence-transformers model at {place}: {error}") from error


def save_encoder(model: SentenceTransformer, folder: Path) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads: safetensors and JSON, no pickle.

    Raises CorruptModel when the weights are not finite: such a model must not replace another."""
    for name, weights in model.state_dict().items():
        if not weights.sum(dtype=torch.float32).isfinite():
            raise CorruptModel(f"{name} is not finite: the model diverged and is not saved")
    with _without_progress_bars():
        model.save(str(folder), create_model_card=False, safe_serialization=True)


def tokenize(model: SentenceTransformer, texts: Sequence[str]) -> TokenizedTexts:
    """Tokenize each text once, cut at the length the model takes."""
    encoded = model.tokenizer(
        list(texts), truncation=True, max_length=model.max_seq_length, padding=False
    )["input_ids"]
    lengths = [len(ids) for ids in encoded]
    return TokenizedTexts(
        tokens=np.array([token for ids in encoded for token in ids], dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        tokenizer=tokenizer_fingerprint(model),
        pad=model.tokenizer.pad_token_id or 0,
    )


def tokenizer_fingerprint(model: SentenceTransformer) -> str:
    """Return what two tokenizers share when they give every word the same ids."""
    return _fingerprint(model.tokenizer, len(model.tokenizer))


@lru_cache(maxsize=4)  # it takes as long as a small evaluation; a tokenizer may only gain tokens
def _fingerprint(tokenizer: Any, size: int) -> str:
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    return hashlib.sha256(repr(sorted(vocabulary.items())).encode()).hexdigest()[:16]


def require_same_tokenizer(model: SentenceTransformer, texts: TokenizedTexts) -> None:
    """Raises MethodError when the texts were tokenized for another model."""
    if tokenizer_fingerprint(model) != texts.tokenizer:
        raise MethodError(
            "the prepared data was tokenized for another model: does ES_INITIAL_MODEL name "
            "another than the one the champion came from?"
        )


def forward(model: SentenceTransformer, features: dict[str, Any]) -> Tensor:
    """Return (n, d) embeddings as the model's last module gives them, in single precision."""
    on_device = {
        name: value.to(model.device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in features.items()
    }
    embeddings: Tensor = model(on_device)["sentence_embedding"]
    return embeddings.float()


def embed_frozen(model: SentenceTransformer, inputs: Inputs, which: Ints) -> NDArray[np.float32]:
    """Return (n, d) unit embeddings of the inputs, each distinct one encoded once.

    In single precision and without dropout: what a search index would hold."""
    distinct, back = np.unique(which, return_inverse=True)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        vectors = in_order(inputs, distinct, lambda some: forward(model, inputs.features(some)))
    model.train(was_training)
    found: NDArray[np.float32] = nn.functional.normalize(vectors, dim=1).cpu().numpy()[back]
    return found


def in_order(inputs: Inputs, which: Ints, encode: Callable[[Ints], Tensor]) -> Tensor:
    """Return (n, d), what `encode` makes of the inputs (at least one), in their order.

    Inputs of like length are encoded together, so that little time goes into padding."""
    order, slices = chunks_of_like_length(inputs.lengths(which))
    vectors = torch.cat([encode(which[order[chunk]]) for chunk in slices])
    return vectors[torch.from_numpy(np.argsort(order)).to(vectors.device)]


def chunks_of_like_length(
    lengths: NDArray[np.int64], max_tokens: int = _MAX_TOKENS, call_tokens: int = _CALL_TOKENS
) -> tuple[NDArray[np.int64], list[slice]]:
    """Return an order by length, and the slices of it, first to last, that cost least.

    lengths: (n,) in tokens. A slice costs its tokens once padded and `call_tokens` for each pass
    of at most `max_tokens`; the cheapest cut of the ordered lengths is found by dynamic
    programming over the distinct ones.
    """
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


def fast_arithmetic(device: torch.device) -> torch.autocast:
    """Return a context that computes in bfloat16 where the processor has instructions for it."""
    if device.type == "cuda":
        has_fast_bfloat16 = torch.cuda.is_bf16_supported()
    else:
        cpu: Any = torch.cpu
        has_fast_bfloat16 = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16)


def count_layers(model: SentenceTransformer, scope: Sequence[str] = ("",)) -> int:
    """Return the number of the transformer's layers; scope: see `layers_of`."""
    return len(layers_of(model, scope)[1])


def layers_of(
    model: SentenceTransformer, scope: Sequence[str] = ("",)
) -> tuple[str, nn.ModuleList]:
    """Return the name of the largest list of layers, and the list.

    scope: parts of names; where a model has several transformers, which of them is meant."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and any(part in f"{name}." for part in scope)
    ]
    if not lists:
        raise MethodError("the model has no list of layers: it is not a transformer")
    return max(lists, key=lambda named: sum(p.numel() for p in named[1].parameters()))


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    progress: Any = transformers_logging
    was_enabled = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            progress.enable_progress_bar()
