"""Bi-encoders as the training loop sees them: numbers of inputs in, embeddings out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.functional import normalize

from embedding_studio.errors import MethodError
from embedding_studio.training.activations import Activations, open_activations
from embedding_studio.training.encoder import (
    Inputs,
    chunks_of_like_length,
    fast_arithmetic,
    forward,
    in_order,
    layers_of,
)
from embedding_studio.training.lora import add_lora, merge_lora

Ints = NDArray[np.integer]
Parameters = dict[str, nn.Parameter]


class Tower:
    """One side of a bi-encoder: a model on its inputs, with its first layers and all before frozen.

    scope: which of the model's parameters belong to this tower, by parts of their names; all of
    them by default. lora_rank: > 0 to learn adapters of the learning layers in place of their
    weights.

    What the frozen layers make of an input is computed once per model and depth and kept on disk in
    `inputs.folder` for all trials, as far as `activations_mb` reach; beyond that, or where inputs
    change from time to time, it is computed anew. Both give the same embeddings but for rounding.

    Raises MethodError when there are fewer layers.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        inputs: Inputs,
        frozen_layers: int,
        learning_rate: float,
        scope: tuple[str, ...] = ("",),
        lora_rank: int = 0,
        activations_mb: int = 4096,
    ) -> None:
        name, self._layers = layers_of(model, scope)
        if not 0 <= frozen_layers <= len(self._layers):
            raise MethodError(
                f"cannot freeze {frozen_layers} layers of a model with {len(self._layers)}"
            )
        self.model = model
        self.inputs = inputs
        self.learning_rate = learning_rate
        self._frozen_layers = frozen_layers
        frozen, self.weights = _split_parameters(model, scope, name, frozen_layers)
        self.learning = self.weights
        for parameter in frozen.values():
            parameter.requires_grad_(False)
        for parameter in self.weights.values():
            parameter.requires_grad_(True)
        self._activations = self._open_activations(frozen, activations_mb)
        if lora_rank:
            for parameter in self.weights.values():
                parameter.requires_grad_(False)
            self.weights, self.learning = add_lora(self._layers, frozen_layers, lora_rank)

    def embed(self, which: Ints) -> Tensor:
        """Return (n, d) unit vectors of the inputs, each named once, with gradients where enabled.

        In bfloat16 where that is the faster arithmetic."""
        with fast_arithmetic(self.model.device):
            return normalize(in_order(self.inputs, which, self._forward), dim=1)

    def vectors(self, which: Ints) -> NDArray[np.float32]:
        """Return (n, d) unit vectors of the inputs, each distinct one encoded once."""
        distinct, back = np.unique(which, return_inverse=True)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.embed(distinct).cpu().numpy()[back]
        return found

    def train(self) -> None:
        """Switch dropout on in what learns, and off in what does not."""
        self.model.eval()
        for layer in self._layers[self._frozen_layers :]:
            layer.train()

    def finish(self) -> None:
        """Turn adapters, if any, into weights."""
        if self.learning is not self.weights:
            merge_lora(self._layers)

    def _forward(self, which: Ints) -> Tensor:
        if self._activations is None:
            return forward(self.model, self.inputs.features(which))
        hidden = self._activations.padded(which).to(self.model.device, non_blocking=True)
        with _replaced(self._layers, self._frozen_layers, _Recalled(hidden)):
            return forward(self.model, self.inputs.features(which))

    def _open_activations(self, frozen: Parameters, max_mb: int) -> Activations | None:
        if not (self._frozen_layers and self.inputs.is_fixed and self.inputs.folder):
            return None
        everything = np.arange(len(self.inputs))
        return open_activations(
            self.inputs.folder,
            frozen.values(),
            self.inputs.lengths(everything),
            self._below(everything[:1]).shape[-1],
            self._compute_all,
            max_mb * 1_000_000,
        )

    def _compute_all(self) -> Iterator[tuple[Ints, Tensor]]:
        order, slices = chunks_of_like_length(self.inputs.lengths(np.arange(len(self.inputs))))
        for chunk in slices:
            yield order[chunk], self._below(order[chunk])

    @torch.inference_mode()
    def _below(self, which: Ints) -> Tensor:
        """Return what the frozen layers make of the inputs, (n, longest, d), in full precision."""
        self.model.eval()
        with _stopping_after(self._layers[self._frozen_layers - 1]) as reached:
            forward(self.model, self.inputs.features(which))
        return reached.pop()


@dataclass(frozen=True)
class BiEncoder:
    """queries and items: the same tower where one model encodes both alike."""

    queries: Tower
    items: Tower

    @property
    def towers(self) -> tuple[Tower, ...]:
        return (self.queries,) if self.queries is self.items else (self.queries, self.items)

    @property
    def learning(self) -> Parameters:
        """What the optimizer updates."""
        return {
            f"{n}.{name}": p for n, t in enumerate(self.towers) for name, p in t.learning.items()
        }

    @property
    def weights(self) -> Parameters:
        """What is different in the end, once `finish` was called."""
        return {
            f"{n}.{name}": p for n, t in enumerate(self.towers) for name, p in t.weights.items()
        }

    def parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Return AdamW's groups: each tower's learning rate, no decay of biases and norms."""
        return [
            {"params": chosen, "lr": tower.learning_rate, "weight_decay": decay}
            for tower in self.towers
            for is_matrix, decay in ((True, weight_decay), (False, 0.0))
            if (chosen := [p for p in tower.learning.values() if (p.ndim > 1) is is_matrix])
        ]

    def embed(self, queries: Ints, items: Ints) -> tuple[Tensor, Tensor]:
        """Return unit vectors, (b, d) and (n, d). What is both a query and an item of one tower is
        encoded once; queries are distinct, and so are items."""
        if self.queries is not self.items:
            return self.queries.embed(queries), self.items.embed(items)
        distinct, place = np.unique(np.concatenate([queries, items]), return_inverse=True)
        vectors = self.queries.embed(distinct)[torch.from_numpy(place)]
        return vectors[: len(queries)], vectors[len(queries) :]

    def count_tokens(self, queries: Ints, items: Ints) -> int:
        """Return how many tokens `embed` encodes, padding left out."""
        return count_tokens(self.queries.inputs, self.items.inputs, queries, items)

    def train(self) -> None:
        for tower in self.towers:
            tower.train()

    def eval(self) -> None:
        self.queries.model.eval()
        self.items.model.eval()

    def finish(self) -> None:
        for tower in self.towers:
            tower.finish()


def count_tokens(query_inputs: Inputs, item_inputs: Inputs, queries: Ints, items: Ints) -> int:
    """Return the tokens of a batch's distinct queries and items, padding left out."""
    if query_inputs is item_inputs:
        return int(query_inputs.lengths(np.union1d(queries, items)).sum())
    return int(query_inputs.lengths(queries).sum() + item_inputs.lengths(items).sum())


class _Recalled(nn.Module):
    """Stands in for a model's frozen layers and gives what they once gave."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._hidden


@contextmanager
def _replaced(layers: nn.ModuleList, first: int, stand_in: nn.Module) -> Iterator[None]:
    """Put `stand_in` in the place of each of the first layers."""
    originals = list(layers[:first])
    for number in range(first):
        layers[number] = stand_in
    try:
        yield
    finally:
        for number, original in enumerate(originals):
            layers[number] = original


class _Reached(Exception):
    pass


@contextmanager
def _stopping_after(layer: nn.Module) -> Iterator[list[Tensor]]:
    """End the forward pass inside once `layer` has run; the list then holds its output."""
    reached: list[Tensor] = []

    def stop(module: nn.Module, args: Any, output: Tensor) -> None:
        reached.append(output)
        raise _Reached

    hook = layer.register_forward_hook(stop)
    try:
        yield reached
    except _Reached:
        pass
    finally:
        hook.remove()


def _split_parameters(
    model: nn.Module, scope: tuple[str, ...], layers_name: str, frozen_layers: int
) -> tuple[Parameters, Parameters]:
    """Return what comes before the first learning layer, and the rest.

    Parameters come in the order in which an input passes through them.
    """
    frozen: Parameters = {}
    learning: Parameters = {}
    is_before_layers = True
    for name, parameter in model.named_parameters():
        if not any(part in name for part in scope):
            continue
        number, is_layer = 0, name.startswith(f"{layers_name}.")
        if is_layer:
            number = int(name.removeprefix(f"{layers_name}.").split(".")[0])
            is_before_layers = False
        is_frozen = is_before_layers or (is_layer and number < frozen_layers)
        (frozen if is_frozen else learning)[name] = parameter
    return frozen, learning
