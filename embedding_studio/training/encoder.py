"""A SentenceTransformer as the training loop sees it: token ids in, embeddings out."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from embedding_studio.errors import CorruptModel, MethodError


@dataclass(frozen=True)
class TokenizedTexts:
    """Texts as token ids, special tokens included, end to end.

    tokens: (n_tokens,) int32; offsets: (n_texts + 1,) int64; both may be memory-mapped.
    tokenizer: the fingerprint of what made them.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    tokenizer: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self, texts: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the number of tokens of each of the texts."""
        return np.asarray(self.offsets[texts + 1] - self.offsets[texts])

    def padded(self, texts: NDArray[np.integer], pad: int) -> dict[str, Tensor]:
        """Return input_ids and attention_mask, both (n, longest) int64."""
        lengths = self.lengths(texts)
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        places = np.where(mask, self.offsets[texts][:, None] + columns, 0)
        ids = np.where(mask, self.tokens[places], pad)
        return {
            "input_ids": torch.from_numpy(ids.astype(np.int64)),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }


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
        if not torch.isfinite(weights).all():
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
    )


def tokenizer_fingerprint(model: SentenceTransformer) -> str:
    """Return what two tokenizers share when they give every word the same ids."""
    vocabulary: dict[str, int] = model.tokenizer.get_vocab()
    return hashlib.sha256(repr(sorted(vocabulary.items())).encode()).hexdigest()[:16]


def require_same_tokenizer(model: SentenceTransformer, texts: TokenizedTexts) -> None:
    """Raises MethodError when the texts were tokenized for another model."""
    if tokenizer_fingerprint(model) != texts.tokenizer:
        raise MethodError(
            "the prepared data was tokenized for another model: does ES_INITIAL_MODEL name "
            "another than the one the champion came from?"
        )


def embed(
    model: SentenceTransformer,
    texts: TokenizedTexts,
    which: NDArray[np.integer],
    max_tokens: int = 4096,
) -> Tensor:
    """Return (n, d) embeddings of texts[which] in that order, with gradients where enabled.

    `which` should name at least one text, and each once. Texts of like length are encoded
    together, at most `max_tokens` padded tokens at a time, so little time goes into padding.
    """
    pad = model.tokenizer.pad_token_id or 0
    order = np.argsort(texts.lengths(which), kind="stable")
    chunks = []
    for chunk in _chunks_of_like_length(texts.lengths(which)[order], max_tokens):
        features = texts.padded(which[order[chunk]], pad)
        on_device = {name: values.to(model.device) for name, values in features.items()}
        chunks.append(model(on_device)["sentence_embedding"].float())
    back = torch.from_numpy(np.argsort(order, kind="stable")).to(model.device)
    return torch.cat(chunks)[back]


def embed_frozen(
    model: SentenceTransformer, texts: TokenizedTexts, which: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return (n, d) unit embeddings of texts[which], each distinct text encoded once.

    In full precision and without dropout: what a search index would hold."""
    distinct, back = np.unique(which, return_inverse=True)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        vectors = nn.functional.normalize(embed(model, texts, distinct), dim=1).cpu().numpy()
    model.train(was_training)
    found: NDArray[np.float32] = vectors[back]
    return found


def count_layers(model: SentenceTransformer) -> int:
    """Return the number of the transformer's layers."""
    return len(_layers(model)[1])


def freeze_layers(model: SentenceTransformer, frozen_layers: int) -> None:
    """Let only what follows the first `frozen_layers` layers learn. The embeddings never do.

    Raises MethodError when there are fewer layers."""
    name, layers = _layers(model)
    if not 0 <= frozen_layers <= len(layers):
        raise MethodError(f"cannot freeze {frozen_layers} layers of a model with {len(layers)}")
    learns = False
    first = f"{name}.{frozen_layers}."
    last = f"{name}.{len(layers) - 1}."
    for parameter_name, parameter in model.named_parameters():
        # parameters come in the order in which a text passes through them
        learns = learns or parameter_name.startswith(first)
        learns = learns or (frozen_layers == len(layers) and not parameter_name.startswith(last))
        parameter.requires_grad_(learns)


def _layers(model: SentenceTransformer) -> tuple[str, nn.ModuleList]:
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)]
    if not lists:
        raise MethodError("the model has no list of layers: it is not a transformer")
    return max(lists, key=lambda named: sum(p.numel() for p in named[1].parameters()))


def _chunks_of_like_length(lengths: NDArray[np.int64], max_tokens: int) -> Iterator[slice]:
    """Yield slices of ascending lengths that hold at most max_tokens tokens once padded."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * lengths[stop] > max_tokens:
            yield slice(start, stop)
            start = stop


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
