"""How a model is served: what `encode_query` and `encode_document` of its saved form do.

Training and judging go through here, so that what learns is what people get."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import SimilarityFunction
from torch import Tensor
from torch.nn.functional import normalize

from embedding_studio.errors import MethodError
from embedding_studio.training.inputs import Inputs, Ints

COSINE: Final = SimilarityFunction.COSINE.value
DOT: Final = SimilarityFunction.DOT_PRODUCT.value
SAME: Final = 1e-3
"""How far two vectors of one input may be apart, as a share of their length."""

Similarity = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Side:
    """What a model adds to a query, or to an item, before it encodes it.

    options: what else `preprocess` and `forward` are called with (the task, by which a Router
    chooses its route)."""

    prompt: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class _Asked(Exception):
    def __init__(self, side: Side) -> None:
        self.side = side


def sides_of(model: SentenceTransformer) -> tuple[Side, Side]:
    """Return what `encode_query` and `encode_document` add: prompt names, defaults and tasks are
    the library's business, so it is asked and not imitated."""

    def listen(inputs: Any, prompt: str | None = None, **options: Any) -> Any:
        raise _Asked(Side(prompt or "", options))

    def ask(encode: Callable[..., Any]) -> Side:
        try:
            encode(["?"], show_progress_bar=False)
        except _Asked as asked:
            return asked.side
        raise MethodError(f"{type(model).__name__} does not encode by preprocess and forward")

    was_training = model.training
    model.preprocess = listen  # type: ignore[method-assign]
    try:
        return ask(model.encode_query), ask(model.encode_document)
    finally:
        del model.preprocess
        model.train(was_training)


def forward(model: SentenceTransformer, inputs: Inputs, which: Ints) -> Tensor:
    """Return (n, d) embeddings of inputs of one group as `encode` gives them, in single precision
    and cut to the model's `truncate_dim`."""
    embeddings = run(model, inputs.features(which, model), inputs.options(which))
    return embeddings[:, : model.truncate_dim].float()


def run(
    model: SentenceTransformer, features: Mapping[str, Any], options: Mapping[str, Any]
) -> Tensor:
    """Return what the model's `forward` makes of what `preprocess` gave."""
    on_device = {
        name: value.to(model.device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in features.items()
    }
    embeddings: Tensor = model(on_device, **options)["sentence_embedding"]
    return embeddings


@torch.inference_mode()
def encode(
    model: SentenceTransformer, side: Side, texts: Sequence[str]
) -> tuple[NDArray[np.float32], list[int]]:
    """Return (n, d) vectors of texts in one pass, as `encode_query` or `encode_document` gives
    them, and how many tokens each has: as cut to what the model reads, with its prompt.

    The model is in `eval` mode. One that makes no tokens counts words."""
    features = model.preprocess(list(texts), prompt=side.prompt, **side.options)
    counts = _token_counts(features)
    vectors = run(model, features, side.options)[:, : model.truncate_dim].float()
    return vectors.cpu().numpy(), counts or [len(text.split()) for text in texts]


def _token_counts(features: Mapping[str, Any]) -> list[int]:
    if (mask := features.get("attention_mask")) is not None:
        counts: list[int] = mask.sum(dim=1).tolist()
        return counts
    if (offsets := features.get("offsets")) is not None:  # of texts whose tokens lie end to end
        ends = [*offsets.tolist()[1:], len(features["input_ids"])]
        return [end - start for start, end in zip(offsets.tolist(), ends, strict=True)]
    return []


def comparable(model: SentenceTransformer, embeddings: Tensor) -> Tensor:
    """Return unit vectors where the model compares by cosine, else the embeddings as they are."""
    return normalize(embeddings, dim=1) if model.similarity_fn_name == COSINE else embeddings


def similarity_functions(name: str) -> tuple[Similarity, Similarity]:
    """Return the similarity of all with all, (n, d) x (m, d) -> (n, m), and of pairs, (n,).

    Vectors are `comparable`: a cosine is a dot product."""
    name = DOT if name == COSINE else name
    return (
        SimilarityFunction.to_similarity_fn(name),
        SimilarityFunction.to_similarity_pairwise_fn(name),
    )


def unit_of(name: str, queries: Tensor, items: Tensor) -> float:
    """Return how much of a similarity is worth 1 of cosine: the ratio of their spreads.

    queries, items: (n, d) and (m, d), some of each, as the starting model embeds them. With it, a
    temperature or a margin means the same whatever the similarity and the vectors' lengths."""
    if name == COSINE:
        return 1.0
    own = similarity_functions(name)[0](queries, items).std()
    unit = own / (normalize(queries, dim=1) @ normalize(items, dim=1).T).std()
    return float(unit) if torch.isfinite(unit) and unit > 0 else 1.0
