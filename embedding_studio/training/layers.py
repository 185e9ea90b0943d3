"""A model's layers: which run one after another, what they depend on, what stands in for them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from embedding_studio.training.inputs import DoesNotFit, Inputs, Ints, passes
from embedding_studio.training.serving import forward, run, sides_of

EVERYWHERE = ("",)

_TEXT = "some words, to see which layers run"

Parameters = dict[str, nn.Parameter]


def count_layers(model: SentenceTransformer, scope: Sequence[str] = EVERYWHERE) -> int:
    """Return the number of the transformer's layers, 0 if it has none; scope: see `stacks_of`.

    A layer that a model runs several times (ALBERT's) is one."""
    return max((len(stack) for stack in stacks_of(model, scope)), default=0)


def stacks_of(model: SentenceTransformer, scope: Sequence[str] = EVERYWHERE) -> list[nn.ModuleList]:
    """Return the lists of layers that a query and an item pass through, each once.

    Of the lists whose elements run in their order, the one with most parameters; of those that do
    not run on texts (an image tower's), the largest. None where a model has no lists.
    scope: parts of names; where a model has several transformers, which of them is meant."""
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and any(part in f"{name}." for part in scope)
    ]
    stacks: list[nn.ModuleList] = []
    for ran in _runs(model, lists) if lists else ():
        in_order = [each for each in lists if _ran_in_order(each, ran)]
        stack = max(in_order, key=_size, default=None)
        if stack is not None and not any(stack is other for other in stacks):
            stacks.append(stack)
    return stacks or ([max(lists, key=_size)] if lists else [])


def _size(layers: nn.ModuleList) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())


def _ran_in_order(layers: nn.ModuleList, ran: Mapping[nn.Module, int]) -> bool:
    turns = [ran.get(layer, -1) for layer in layers]
    return turns[0] >= 0 and turns == sorted(turns)


@torch.inference_mode()
def _runs(
    model: SentenceTransformer, lists: Iterable[nn.ModuleList]
) -> Iterator[dict[nn.Module, int]]:
    """Yield, for a query and for an item, the elements of lists that ran, each with its turn."""
    was_training = model.training
    model.eval()
    for side in sides_of(model):
        ran: dict[nn.Module, int] = {}

        def note(layer: nn.Module, args: Any, ran: dict[nn.Module, int] = ran) -> None:
            ran.setdefault(layer, len(ran))

        elements = {layer for each in lists for layer in each}
        with _hooked(layer.register_forward_pre_hook(note) for layer in elements):
            features = model.preprocess([_TEXT], prompt=side.prompt, **side.options)
            run(model, features, side.options)
        yield ran
    model.train(was_training)


@contextmanager
def _hooked(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Set hooks, and remove them in the end."""
    handles = list(hooks)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Cut:
    """Where frozen layers end: `depth` layers of a stack, and what these depend on, are below."""

    stack: nn.ModuleList
    depth: int

    @property
    def below(self) -> list[nn.Module]:
        return list(self.stack[: self.depth])

    @property
    def above(self) -> list[nn.Module]:
        return list(self.stack[self.depth :])


def dependencies(
    model: SentenceTransformer, cuts: Sequence[Cut], inputs: Inputs
) -> tuple[set[nn.Parameter], set[nn.Parameter]]:
    """Return all parameters that what passes the cuts depends on, wherever they stand, and all
    that the embeddings depend on.

    Found by running samples and following the computation back from there."""
    parameters = list(model.parameters())
    learned = [parameter.requires_grad for parameter in parameters]
    below: set[nn.Parameter] = set()
    used: set[nn.Parameter] = set()
    model.eval()
    try:
        for parameter in parameters:
            parameter.requires_grad_(parameter.is_floating_point())
        samples = inputs.samples()
        for chunk in passes(inputs, samples):
            with torch.inference_mode(False), torch.enable_grad(), _watching(cuts) as reached:
                used |= _leaves_of(forward(model, inputs, samples[chunk[:1]]))
            for cut, hidden in zip(cuts, reached, strict=True):
                if hidden:  # a layer that runs several times: before the first, or after the last
                    below |= _leaves_of(hidden[-1 if cut.depth else 0])
    finally:
        for parameter, was_learned in zip(parameters, learned, strict=True):
            parameter.requires_grad_(was_learned)
    return below, used


@contextmanager
def _watching(cuts: Sequence[Cut]) -> Iterator[list[list[Tensor]]]:
    """Collect, for each cut, the hidden states at each passage."""
    reached: list[list[Tensor]] = [[] for _ in cuts]
    with _hooked(_hook_at(cut, at.append) for cut, at in zip(cuts, reached, strict=True)):
        yield reached


def _hook_at(cut: Cut, reached: Callable[[Tensor], None]) -> RemovableHandle:
    if cut.depth == 0:
        return cut.stack[0].register_forward_pre_hook(
            lambda layer, args, kwargs: reached(
                hidden_in([*args, kwargs.get("hidden_states"), *kwargs.values()])
            ),
            with_kwargs=True,
        )
    return cut.stack[cut.depth - 1].register_forward_hook(
        lambda layer, args, output: reached(hidden_in(output))
    )


def hidden_in(value: Any) -> Tensor:
    """Return the hidden states in what a layer takes or gives: they come first. Empty if there
    are none."""
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, Mapping) else value
    found: Tensor = next((each for each in values if isinstance(each, Tensor)), torch.empty(0))
    return found


def _leaves_of(tensor: Tensor) -> set[nn.Parameter]:
    """Return the parameters that a tensor was computed from."""
    nodes: list[Any] = [tensor.grad_fn]
    seen, found = set(), set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        nodes += [before for before, _ in node.next_functions]
    return found


class _Reached(Exception):
    """Ends a forward pass at a cut."""


@torch.inference_mode()
def hidden_at(cut: Cut, model: SentenceTransformer, inputs: Inputs, which: Ints) -> Tensor:
    """Return what the layers below a cut make of inputs of one group, (n, longest, d).

    Raises DoesNotFit when it is not that, or when the inputs do not come there."""
    reached: list[Tensor] = []

    def stop(layer: nn.Module, args: Any, output: Any) -> None:
        reached.append(hidden_in(output))
        raise _Reached

    model.eval()
    with _hooked([cut.stack[cut.depth - 1].register_forward_hook(stop)]), suppress(_Reached):
        forward(model, inputs, which)
    expected = (len(which), int(inputs.lengths(which).max()))
    if not reached or tuple(reached[0].shape[:2]) != expected:
        raise DoesNotFit("not every input passes its layers as a row of tokens")
    return reached[0]


Form = Callable[[Callable[..., Any], Mapping[Any, Any], Tensor], Any]
"""Makes a layer's output of: the layer, what it is given by place or name, its hidden states."""


@torch.inference_mode()
def forms_below(
    cut: Cut, model: SentenceTransformer, inputs: Inputs, which: Ints
) -> dict[nn.Module, Form]:
    """Return the form in which each layer below a cut gives its hidden states.

    Raises DoesNotFit when they do not run once each."""
    found: dict[nn.Module, Form] = {}

    def note(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if layer in found:
            raise DoesNotFit("its layers run more than once")
        found[layer] = _form_of(_given(args, kwargs), output)

    model.eval()
    with _hooked(layer.register_forward_hook(note, with_kwargs=True) for layer in cut.below):
        forward(model, inputs, which)
    return found


def _given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[Any, Any]:
    return {**dict(enumerate(args)), **kwargs}


def _form_of(given: Mapping[Any, Any], output: Any) -> Form:
    if isinstance(output, Tensor):
        return lambda compute, given, hidden: hidden
    if not isinstance(output, tuple):
        raise DoesNotFit(f"its layers give {type(output).__name__}")
    passed_on = {}
    for place, value in enumerate(output[1:]):
        if isinstance(value, Tensor):
            names = [name for name, each in given.items() if each is value]
            if not names:  # T5's first layer makes the bias of positions for all of them
                return lambda compute, given, hidden: (hidden, *compute()[1:])
            passed_on[place] = names[0]
    others = [None if isinstance(value, Tensor) else value for value in output[1:]]

    def give(compute: Callable[..., Any], given: Mapping[Any, Any], hidden: Tensor) -> Any:
        return (
            hidden,
            *(
                given[passed_on[place]] if place in passed_on else value
                for place, value in enumerate(others)
            ),
        )

    return give


@contextmanager
def recalling(forms: Mapping[nn.Module, Form], hidden: Tensor) -> Iterator[None]:
    """Let layers give `hidden`, in their form, without computing it.

    They stay in their places with all their attributes."""

    def stand_in(layer: nn.Module, form: Form) -> Callable[..., Any]:
        compute = layer.forward

        def give(*args: Any, **kwargs: Any) -> Any:
            return form(lambda: compute(*args, **kwargs), _given(args, kwargs), hidden)

        return give

    for layer, form in forms.items():
        layer.forward = stand_in(layer, form)
    try:
        yield
    finally:
        for layer in forms:
            del layer.forward
