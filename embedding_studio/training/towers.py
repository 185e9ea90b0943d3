"""Bi-encoders as the training loop sees them: numbers of inputs in, embeddings out."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from embedding_studio.errors import MethodError
from embedding_studio.training.activations import Activations, activations_file, open_activations
from embedding_studio.training.encoder import embed_frozen, fast_arithmetic, learnable
from embedding_studio.training.inputs import DoesNotFit, Inputs, Ints, in_order, passes
from embedding_studio.training.layers import (
    EVERYWHERE,
    Cut,
    Form,
    Parameters,
    dependencies,
    forms_below,
    hidden_at,
    recalling,
    stacks_of,
)
from embedding_studio.training.lora import add_lora, merge_lora
from embedding_studio.training.serving import (
    COSINE,
    SAME,
    comparable,
    forward,
    similarity_functions,
    unit_of,
)

log = logging.getLogger(__name__)

_UNIT_SAMPLE = 64


class Tower:
    """One side of a bi-encoder: a model on its inputs, with its first layers frozen and all that
    these depend on, wherever it stands.

    scope: which of the model's parameters belong to this tower, by parts of their names; all of
    them by default. lora_rank: > 0 to learn adapters of the learning layers in place of their
    weights. A model without layers (static embeddings) learns as a whole; where a Router has a
    transformer for each side, both are frozen to the same depth, as far as they have it.

    What the frozen layers make of an input is computed once per model and depth and kept on disk in
    `inputs.folder` for all trials, as far as `activations_mb` reach; beyond that, where inputs
    change from time to time, or where the layers do not allow it, it is computed anew. Both give
    the same embeddings but for rounding.

    Raises MethodError when there are fewer layers."""

    def __init__(
        self,
        model: SentenceTransformer,
        inputs: Inputs,
        frozen_layers: int,
        learning_rate: float,
        scope: tuple[str, ...] = EVERYWHERE,
        lora_rank: int = 0,
        activations_mb: int = 4096,
    ) -> None:
        self.model = model
        self.inputs = inputs.for_model(model)
        self.learning_rate = learning_rate
        self._cuts = _cuts(model, scope, frozen_layers)
        frozen, self.weights = self._split_parameters(scope)
        self.learning = self.weights
        self._activations = self._open_activations(frozen, activations_mb)
        if lora_rank:
            self._learn_adapters(lora_rank)

    def embed(self, which: Ints) -> Tensor:
        """Return (n, d) embeddings of the inputs, each named once, with gradients where enabled:
        unit vectors where the model compares by cosine.

        In bfloat16 where that is the faster arithmetic."""
        with fast_arithmetic(self.model.device):
            return comparable(self.model, in_order(self.inputs, which, self._forward))

    def vectors(self, which: Ints) -> NDArray[np.float32]:
        """Return (n, d) what `embed` gives for the inputs, each distinct one encoded once."""
        distinct, back = np.unique(self.inputs.same_as(which), return_inverse=True)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.embed(distinct).cpu().numpy()[back]
        return found

    def train(self) -> None:
        """Switch dropout on in what learns, and off in what does not."""
        if not self._cuts:
            self.model.train()
            return
        self.model.eval()
        for cut in self._cuts:
            for layer in cut.above:
                layer.train()

    def finish(self) -> None:
        """Turn adapters, if any, into weights."""
        if self.learning is not self.weights:
            for cut in self._cuts:
                merge_lora(cut.stack)

    def _split_parameters(self, scope: tuple[str, ...]) -> tuple[Parameters, Parameters]:
        """Return the parameters below the cuts and those that learn, of the scope; let no others
        have gradients."""
        below, used = dependencies(self.model, self._cuts, self.inputs)
        # samples need not come to every expert of a mixture
        used |= {p for cut in self._cuts for layer in cut.above for p in layer.parameters()}
        can_learn = learnable(self.model)
        frozen: Parameters = {}
        learning: Parameters = {}
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in scope):
                learns = name in can_learn and parameter in used - below
                parameter.requires_grad_(learns)
                if learns:
                    learning[name] = parameter
                elif parameter in below:
                    frozen[name] = parameter
        return frozen, learning

    def _learn_adapters(self, rank: int) -> None:
        for parameter in self.weights.values():
            parameter.requires_grad_(False)
        self.weights, self.learning = {}, {}
        for number, cut in enumerate(self._cuts):
            weights, learning = add_lora(cut.stack, cut.depth, rank)
            self.weights |= {f"{number}.{name}": weight for name, weight in weights.items()}
            self.learning |= {f"{number}.{name}": weight for name, weight in learning.items()}

    def _forward(self, which: Ints) -> Tensor:
        if self._activations is None:
            return forward(self.model, self.inputs, which)
        hidden = self._activations.padded(self.inputs.same_as(which)).to(
            self.model.device, non_blocking=True
        )
        with recalling(self._forms, hidden):
            return forward(self.model, self.inputs, which)

    def _forms_below(self) -> Mapping[nn.Module, Form]:
        (cut,) = self._cuts
        return forms_below(cut, self.model, self.inputs, self.inputs.samples()[:1])

    def _open_activations(self, frozen: Parameters, max_mb: int) -> Activations | None:
        folder = self.inputs.folder
        if not (max_mb and folder and self.inputs.is_fixed and any(c.depth for c in self._cuts)):
            return None
        file = activations_file(folder, frozen.values(), [cut.depth for cut in self._cuts])
        if not file.exists() and (reason := self._why_not_kept()):
            log.info("what frozen layers give is computed each time: %s", reason)
            return None
        self._forms = self._forms_below()
        everything = np.arange(len(self.inputs))
        is_own = self.inputs.same_as(everything) == everything
        return open_activations(
            file,
            self.inputs.lengths(everything) * is_own,
            lambda: self._compute_all(np.flatnonzero(is_own)),
            max_mb * 1_000_000,
            self.inputs.is_left_padded,
        )

    @torch.inference_mode()
    def _why_not_kept(self) -> str | None:
        """Return why what the frozen layers give cannot be kept; None if samples come out as when
        it is computed, though it was computed for each by itself."""
        if len(self._cuts) > 1:
            return "queries and items have transformers of their own"
        (cut,) = self._cuts
        samples = self.inputs.samples()
        try:
            forms = self._forms_below()
            for chunk in passes(self.inputs, samples):
                which = samples[chunk]
                rows = [
                    hidden_at(cut, self.model, self.inputs, which[[n]])[0]
                    for n in range(len(which))
                ]
                side = "left" if self.inputs.is_left_padded else "right"
                hidden = pad_sequence(rows, batch_first=True, padding_side=side)
                with recalling(forms, hidden):
                    recalled = forward(self.model, self.inputs, which)
                computed = forward(self.model, self.inputs, which)
                apart = (recalled - computed).norm(dim=1)
                if not (apart <= SAME * computed.norm(dim=1)).all():
                    return "the layers above it take more than it"
        except DoesNotFit as reason:
            return str(reason)
        except Exception as error:  # noqa: BLE001 - a model may do with its layers what it likes
            return f"{type(error).__name__}: {error}"
        return None

    def _compute_all(self, which: Ints) -> Iterator[tuple[Ints, Tensor]]:
        (cut,) = self._cuts
        for chunk in passes(self.inputs, which):
            yield which[chunk], hidden_at(cut, self.model, self.inputs, which[chunk])


class KeptSide(Tower):
    """A side that learns nothing: each of its inputs is encoded once, as it is served."""

    def __init__(self, model: SentenceTransformer, inputs: Inputs) -> None:
        self.model = model
        self.inputs = inputs.for_model(model)
        self.learning_rate = 0.0
        self.weights = self.learning = {}
        first = self.inputs.same_as(np.arange(len(self.inputs)))
        distinct, self._place = np.unique(first, return_inverse=True)
        self._vectors = torch.from_numpy(embed_frozen(model, self.inputs, distinct))

    def embed(self, which: Ints) -> Tensor:
        return self._vectors[torch.from_numpy(self._place[which])].to(self.model.device)

    def train(self) -> None:
        """Leave everything to the other side."""


def _cuts(model: SentenceTransformer, scope: tuple[str, ...], frozen_layers: int) -> list[Cut]:
    stacks = stacks_of(model, scope)
    most = max(map(len, stacks), default=0)
    if stacks and not 0 <= frozen_layers <= most:
        raise MethodError(f"cannot freeze {frozen_layers} layers of a model with {most}")
    return [Cut(stack, min(frozen_layers, len(stack))) for stack in stacks]


@dataclass(frozen=True)
class BiEncoder:
    """Two towers, or one where a model encodes queries and items.

    unit: how much of the models' similarity, as they are now, is worth 1 of cosine."""

    queries: Tower
    items: Tower
    unit: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        def some(tower: Tower) -> Tensor:
            distinct = np.unique(tower.inputs.same_as(np.arange(len(tower.inputs))))
            steps = np.unique(np.linspace(0, len(distinct) - 1, _UNIT_SAMPLE).astype(np.int64))
            return torch.from_numpy(tower.vectors(distinct[steps]))

        if self.similarity != COSINE:
            self.eval()
            unit = unit_of(self.similarity, some(self.queries), some(self.items))
            object.__setattr__(self, "unit", unit)

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
        """Return embeddings, (b, d) and (n, d). What is both a query and an item of one tower is
        encoded once; queries are distinct, and so are items."""
        if self.queries is not self.items:
            return self.queries.embed(queries), self.items.embed(items)
        both = self.queries.inputs.same_as(np.concatenate([queries, items]))
        distinct, place = np.unique(both, return_inverse=True)
        vectors = self.queries.embed(distinct)[torch.from_numpy(place)]
        return vectors[: len(queries)], vectors[len(queries) :]

    @property
    def similarity(self) -> str:
        """The name of the models' own."""
        return self.queries.model.similarity_fn_name

    def scores(self, queries: Tensor, items: Tensor) -> Tensor:
        """Return (b, n), how similar they are, in units of cosine: see `unit_of`."""
        return similarity_functions(self.similarity)[0](queries, items) / self.unit

    def count_tokens(self, queries: Ints, items: Ints) -> int:
        """Return how many tokens `embed` encodes, padding left out."""
        item_inputs = self.items.inputs if self.items.learning else None
        return count_tokens(self.queries.inputs, item_inputs, queries, items)

    def train(self) -> None:
        for tower in self.towers:
            tower.train()

    def eval(self) -> None:
        self.queries.model.eval()
        self.items.model.eval()

    def finish(self) -> None:
        for tower in self.towers:
            tower.finish()


def count_tokens(
    query_inputs: Inputs, item_inputs: Inputs | None, queries: Ints, items: Ints
) -> int:
    """Return the tokens of a batch's distinct queries and items, padding left out.

    item_inputs: None where items keep their vectors, and cost nothing."""
    if item_inputs is None:
        return int(query_inputs.lengths(queries).sum())
    if query_inputs is item_inputs:
        distinct = np.unique(query_inputs.same_as(np.concatenate([queries, items])))
        return int(query_inputs.lengths(distinct).sum())
    return int(query_inputs.lengths(queries).sum() + item_inputs.lengths(items).sum())
