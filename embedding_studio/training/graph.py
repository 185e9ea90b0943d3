"""An encoder as a graph in ONNX, from token ids to the vector that is served."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from torch import Tensor, nn

from embedding_studio.errors import MethodError
from embedding_studio.training.serving import Side, sides_of

OUTPUT = "sentence_embedding"
_PROBES = ["a lamp", "some more words about a window in a house by the river"]


class _Served(nn.Module):
    """What `forward` makes of the tensors that `preprocess` gives, in the order of their names."""

    def __init__(
        self,
        model: SentenceTransformer,
        side: Side,
        names: list[str],
        constants: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self._side, self._names, self._constants = side, names, constants

    def forward(self, *tensors: Tensor) -> Tensor:
        features = {**self._constants, **dict(zip(self._names, tensors, strict=True))}
        vectors: Tensor = self.model(features, **self._side.options)[OUTPUT]
        return vectors[:, : self.model.truncate_dim]


def write_graphs(model: SentenceTransformer, folder: Path) -> tuple[str, str]:
    """Write `model.onnx`, or, where queries and documents take different ways, `query.onnx` and
    `document.onnx`; return the names for queries and for documents.

    A graph takes (n, tokens) ids, mask and the like, of any n and any number of tokens. Raises
    MethodError for a model that does not encode so, or that cannot be written."""
    sides = sides_of(model)
    seen = [_features(model, side) for side in sides]
    constants = [_constants(features) for features in seen]
    has_routes = any(isinstance(module, Router) for module in model.modules())
    is_one = constants[0] == constants[1] and not has_routes
    names = ("model.onnx",) * 2 if is_one else ("query.onnx", "document.onnx")
    for side, features, name in zip(sides, seen, names, strict=True):
        if not (folder / name).exists():
            _write(model, side, features, folder / name)
    return names


def _features(model: SentenceTransformer, side: Side) -> dict[str, Any]:
    found = dict(model.preprocess(_PROBES, prompt=side.prompt, **side.options))
    if not isinstance(found.get("input_ids"), Tensor) or found["input_ids"].ndim != 2:
        raise MethodError("the model does not read texts as rows of token ids: it has no graph")
    return found


def _constants(features: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in features.items() if not isinstance(value, Tensor)}


def _write(model: SentenceTransformer, side: Side, features: Mapping[str, Any], file: Path) -> None:
    names = [name for name, value in features.items() if isinstance(value, Tensor)]
    served = _Served(model, side, names, _constants(features)).eval()
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        with _quiet():
            torch.onnx.export(
                served,
                tuple(features[name] for name in names),
                str(file),
                input_names=names,
                output_names=[OUTPUT],
                dynamic_shapes={"tensors": tuple(dynamic for _ in names)},
                dynamo=True,
                external_data=False,
            )
    except Exception as error:
        raise MethodError(
            f"the model cannot be written as a graph: {type(error).__name__}: {str(error)[:500]}"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's steps, and its warnings of other people's code, to ourselves."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        yield
