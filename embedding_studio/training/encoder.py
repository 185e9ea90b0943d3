"""SentenceTransformers: loaded in single precision, saved as they were stored, and encoding."""

import contextlib
import copy
from collections.abc import Hashable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router, Transformer
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from embedding_studio.errors import CorruptModel, MethodError
from embedding_studio.settings import Settings
from embedding_studio.training.activations import digest_of
from embedding_studio.training.card import note_origin, write_card
from embedding_studio.training.inputs import Inputs, Ints, in_order
from embedding_studio.training.serving import comparable, forward
from embedding_studio.training.texts import tokenize

QUERY_SIDE = ("sub_modules.query.",)
"""The scope of a tower for queries alone: what a Router calls the parameters of their route."""
_STORED = "_stored_dtypes"
_FIXED = "_fixed_parameters"
_EMBEDDED = "_embedded"
_MOST_REMEMBERED = 100_000


def device() -> torch.device:
    """Return the GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_encoder(
    place: str | Path, query_prompt: str | None = None, item_prompt: str | None = None
) -> SentenceTransformer:
    """Load from a folder, or by a model hub's name, in single precision whatever was stored.

    query_prompt, item_prompt: what comes before a query and an item, in place of what the model
    says; it is saved with the model. A tokenizer without a token for padding gets one, and inputs
    are cut at the number of positions that the model has: without, it could not be served.

    Raises CorruptModel when a folder does not hold a model, MethodError when it needs code of its
    own to run."""
    own = {"query": query_prompt, "document": item_prompt}
    prompts = {name: prompt for name, prompt in own.items() if prompt is not None}
    with without_progress_bars():
        try:
            model = SentenceTransformer(str(place), device=str(device()), prompts=prompts)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the libraries stumble over
            if "trust_remote_code" in str(error):
                raise MethodError(_NEEDS_CODE.format(place)) from error
            raise CorruptModel(
                f"no sentence-transformers model at {place}: {type(error).__name__}: {error}"
            ) from error
    note_origin(model, place)
    floats = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    chosen = Settings().model_dtype
    stored = {
        name: p.dtype if chosen == "stored" else getattr(torch, chosen)
        for name, p in floats.items()
    }
    setattr(model, _STORED, stored)
    setattr(model, _FIXED, {name for name, p in model.named_parameters() if not p.requires_grad})
    model.float()
    for module in model.modules():
        if isinstance(module, Transformer) and module.tokenizer is not None:
            _complete(module.tokenizer, module)
    return model


_NEEDS_CODE = (
    "{} runs code from its own repository (trust_remote_code), which Embedding Studio never does: "
    "name a model that transformers knows by itself, or write a method whose load_initial_model "
    "makes one"
)


def _complete(tokenizer: PreTrainedTokenizerBase, transformer: Transformer) -> None:
    """Give the tokenizer what it needs to make input that the transformer takes."""
    if tokenizer.pad_token_id is None:  # what stands in the padding is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    longest = getattr(transformer.config.get_text_config(), "max_position_embeddings", None) or -1
    if longest > 0:
        tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    for module in transformer.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, nn.Embedding):
            # RoBERTa and its kin count positions from the padding's id on
            first = getattr(module, "padding_idx", None)
            room = table.num_embeddings - (0 if first is None else first + 1)
            tokenizer.model_max_length = min(tokenizer.model_max_length, room)


def require_tunable(model: SentenceTransformer) -> SentenceTransformer:
    """Return the model. Raises MethodError when nothing of it can learn."""
    if not learnable(model):
        modules = ", ".join(type(module).__name__ for module in model)
        raise MethodError(
            f"nothing of the model can learn ({modules}): name another in ES_INITIAL_MODEL, or "
            "take the method 'Linear adapter', which leaves the encoder as it is"
        )
    return model


def learnable(model: SentenceTransformer) -> dict[str, nn.Parameter]:
    """Return the parameters that were not stored as ones that never learn."""
    fixed: set[str] = getattr(model, _FIXED, set())
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and name not in fixed
    }


def split_sides(model: SentenceTransformer) -> None:
    """Give queries, in place, an encoder of their own: a Router's route, a copy of the model, which
    stays as it is for items. A Router is left as it is.

    Raises MethodError where that has no route for queries that shares nothing with the items'."""
    if not any(isinstance(module, Router) for module in model):
        before = [name for name, _ in model.named_parameters()]
        modules: list[Any] = list(model)
        del model[:]
        model.append(Router.for_query_document(copy.deepcopy(modules), modules))
        names = [name for name, _ in model.named_parameters()]
        former = dict(zip(names, 2 * before, strict=True))
        stored: dict[str, torch.dtype] = getattr(model, _STORED, {})
        fixed: set[str] = getattr(model, _FIXED, set())
        setattr(model, _STORED, {new: stored[old] for new, old in former.items() if old in stored})
        setattr(model, _FIXED, {new for new, old in former.items() if old in fixed})
    everything = list(model.named_parameters(remove_duplicate=False))
    queries = {parameter for name, parameter in everything if QUERY_SIDE[0] in name}
    others = {parameter for name, parameter in everything if QUERY_SIDE[0] not in name}
    if not queries or queries & others:
        raise MethodError("the model's Router has no parameters for queries alone")


@torch.no_grad()
def round_as_stored(model: SentenceTransformer) -> None:
    """Round the weights, which stay in single precision, to the type that they are saved in.

    What is scored after it is what `save_encoder` writes."""
    for name, parameter in model.named_parameters():
        stored = _stored_dtype(model, name, parameter)
        if stored != parameter.dtype:
            parameter.copy_(parameter.to(stored))


def save_encoder(model: SentenceTransformer, folder: Path, keeps_items: bool = False) -> None:
    """Write a folder that `SentenceTransformer(folder)` loads: safetensors and JSON, no pickle.

    keeps_items: whether items have the vectors that they had before training; the card says so.
    Weights are written in the type that the model was stored in, unless ES_MODEL_DTYPE names one;
    the model then has the rounded weights too. Raises CorruptModel when they are not finite: such
    a model must not replace another."""
    round_as_stored(model)
    for name, weights in model.state_dict().items():
        if not weights.sum(dtype=torch.float32).isfinite():
            raise CorruptModel(f"{name} is not finite: the model diverged and is not saved")
    with without_progress_bars(), _as_stored(model):
        model.save(str(folder), create_model_card=False, safe_serialization=True)
    write_card(model, folder, keeps_items)


@contextlib.contextmanager
def _as_stored(model: SentenceTransformer) -> Iterator[None]:
    parameters = dict(model.named_parameters())
    before = {name: parameter.dtype for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = parameter.data.to(_stored_dtype(model, name, parameter))
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = parameter.data.to(before[name])


def _stored_dtype(model: SentenceTransformer, name: str, parameter: nn.Parameter) -> torch.dtype:
    stored: dict[str, torch.dtype] = getattr(model, _STORED, {})
    return stored.get(name, parameter.dtype)


def stored_dtype(model: SentenceTransformer) -> torch.dtype:
    """Return the type that the last of the weights are saved in: that of the embeddings served."""
    name, parameter = list(model.named_parameters())[-1]
    return _stored_dtype(model, name, parameter)


def embed_frozen(model: SentenceTransformer, inputs: Inputs, which: Ints) -> NDArray[np.float32]:
    """Return (n, d) embeddings of the inputs, each distinct one encoded once: unit vectors where
    the model compares by cosine.

    In single precision and without dropout: what a search index would hold."""
    inputs = inputs.for_model(model)
    distinct, back = np.unique(inputs.same_as(which), return_inverse=True)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        vectors = in_order(inputs, distinct, lambda some: forward(model, inputs, some))
    model.train(was_training)
    found: NDArray[np.float32] = comparable(model, vectors).cpu().numpy()[back]
    return found


def embed_once(model: SentenceTransformer, inputs: Inputs, which: Ints) -> NDArray[np.float32]:
    """Return what `embed_frozen` does, but remember it with the model, for as long as that stays as
    it is: what several splits or several scores need is embedded once."""
    inputs = inputs.for_model(model)
    known = _remembered(model)
    names = inputs.names(which)
    new = {name: n for name, n in zip(names, which.tolist(), strict=True) if name not in known}
    if new:
        vectors = embed_frozen(model, inputs, np.array([*new.values()]))
        known.update(zip(new, vectors, strict=True))
    return np.stack([known[name] for name in names])


def _remembered(model: SentenceTransformer) -> dict[Hashable, NDArray[np.float32]]:
    """Return the vectors that are known of a model, by the names of the inputs."""
    form = repr([model, model.truncate_dim, model.similarity_fn_name])
    state = digest_of(form, chain(model.parameters(), model.buffers()))
    former, known = getattr(model, _EMBEDDED, ("", {}))
    if former != state or len(known) > _MOST_REMEMBERED:
        known = {}
        setattr(model, _EMBEDDED, (state, known))
    return known


def width_of(model: SentenceTransformer) -> int:
    """Return the number of dimensions of the model's embeddings, as it serves them."""
    width: int = embed_frozen(model, tokenize(model, ["a"]), np.arange(1)).shape[1]
    return width


def fast_arithmetic(device: torch.device) -> torch.autocast:
    """Return a context that computes in bfloat16 where the processor has instructions for it."""
    if device.type == "cuda":
        has_fast_bfloat16 = torch.cuda.is_bf16_supported()
    else:
        cpu: Any = torch.cpu
        has_fast_bfloat16 = cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bfloat16)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Let transformers show no bars meanwhile."""
    progress: Any = transformers_logging
    was_enabled = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            progress.enable_progress_bar()
