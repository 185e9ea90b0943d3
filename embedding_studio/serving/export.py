"""Registered models in forms that run without torch, and how near these are to the original."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING, Any

import numpy as np

from embedding_studio.errors import ConfigurationError, Conflict
from embedding_studio.serving.batching import Vectors
from embedding_studio.training.encoder import load_encoder
from embedding_studio.training.graph import OUTPUT, write_graphs
from embedding_studio.training.serving import sides_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

SIDES = ("query", "document")
ABOUT = "embedding_studio.json"
_PASS_TEXTS = 32

Encode = Callable[[str, Sequence[str]], Vectors]
"""Returns (n, d) vectors of the texts of a side, `query` or `document`."""


class ExportFormat(StrEnum):
    """What a model is written as."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    ONNX_INT8 = "onnx-int8"
    OPENVINO = "openvino"


_NEEDS: Mapping[ExportFormat, Sequence[str]] = {
    ExportFormat.SAFETENSORS: (),
    ExportFormat.ONNX: ("onnx", "onnxscript", "onnxruntime"),
    ExportFormat.ONNX_INT8: ("onnx", "onnxscript", "onnxruntime"),
    ExportFormat.OPENVINO: ("onnx", "onnxscript", "openvino"),
}


@dataclass(frozen=True, slots=True)
class Closeness:
    """Cosines of the vectors of an exported model to those of the original, for the same texts."""

    texts: int
    mean_cosine: float
    min_cosine: float


def check_may_export(wanted: ExportFormat, out: Path) -> None:
    """Raise ConfigurationError unless what a format takes is installed, Conflict where there is
    something already."""
    check_installed(wanted)
    if out.exists() and any(out.iterdir()):
        raise Conflict(f"{out} has other files: name a new folder, or an empty one")


def check_installed(wanted: ExportFormat) -> None:
    """Raise ConfigurationError unless what a format takes is installed."""
    if missing := [name for name in _NEEDS[wanted] if find_spec(name) is None]:
        raise ConfigurationError(
            f"{wanted} takes {', '.join(missing)}: pip install 'embedding-studio[export]'"
        )


def export(source: Path, out: Path, wanted: ExportFormat, model: str) -> Encode:
    """Write the model in a folder as another form of it; return what encodes by that form.

    model: as it is called, "name/3". The tokenizer lies beside a graph, and a file, which is
    written last, says which graph and which prompt a side takes. Raises MethodError for a model
    that cannot be written so."""
    if wanted is ExportFormat.SAFETENSORS:
        copytree(source, out, dirs_exist_ok=True)
        return encode_by(load_encoder(out))
    out.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(source)
    encoder.to("cpu")
    encoder.eval()
    graphs = write_graphs(encoder, out)
    if wanted is ExportFormat.ONNX_INT8:
        for name in {*graphs}:
            _quantize(out / name)
    elif wanted is ExportFormat.OPENVINO:
        graphs = _as_openvino(graphs, out)
    encoder.tokenizer.save_pretrained(str(out))
    prompts = [side.prompt for side in sides_of(encoder)]
    about = {
        "model": model,
        "format": wanted.value,
        "graphs": dict(zip(SIDES, graphs, strict=True)),
        "prompts": dict(zip(SIDES, prompts, strict=True)),
        "max_tokens": encoder.get_max_seq_length(),
        "similarity": encoder.similarity_fn_name,
    }
    (out / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")
    return encode_by_graphs(out, encoder)


def encode_by_graphs(folder: Path, original: "SentenceTransformer") -> Encode:
    """Return what encodes by graphs that `export` wrote. original: makes tokens of texts."""
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    run = _run_openvino if about["format"] == ExportFormat.OPENVINO else _run_onnx
    runs = {side: run(folder / name) for side, name in about["graphs"].items()}
    sides = dict(zip(SIDES, sides_of(original), strict=True))

    def encode(side: str, texts: Sequence[str]) -> Vectors:
        by_length = sorted(range(len(texts)), key=lambda n: len(texts[n]))  # so less is padded
        parts = []
        for start in range(0, len(texts), _PASS_TEXTS):
            some = [texts[n] for n in by_length[start : start + _PASS_TEXTS]]
            features = original.preprocess(some, prompt=sides[side].prompt, **sides[side].options)
            tensors = {name: v.numpy() for name, v in features.items() if hasattr(v, "numpy")}
            parts.append(runs[side](tensors))
        vectors = np.concatenate(parts)
        return vectors[np.argsort(by_length)]

    return encode


def encode_by(model: "SentenceTransformer") -> Encode:
    """Return what encodes by a loaded model."""

    def encode(side: str, texts: Sequence[str]) -> Vectors:
        by = model.encode_query if side == "query" else model.encode_document
        found: Vectors = by([*texts], batch_size=_PASS_TEXTS, show_progress_bar=False)
        return found

    return encode


def closeness(original: Encode, exported: Encode, texts: Sequence[str]) -> Closeness:
    """Return how near the two are for at least one text, as queries and as documents."""
    cosines = []
    for side in SIDES:
        one, other = original(side, texts), exported(side, texts)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosines.append((one * other).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny))
    found = np.concatenate(cosines)
    return Closeness(len(texts), float(found.mean()), float(found.min()))


def _quantize(file: Path) -> None:
    """Write the weights of matrix products in 8 bits; what goes in is scaled as it comes."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_suffix(".float32")
    file.rename(whole)
    logging.getLogger().setLevel(logging.ERROR)  # it recommends steps that are not ours
    quantize_dynamic(whole, file, weight_type=QuantType.QInt8, per_channel=True)
    whole.unlink()


def _as_openvino(graphs: Sequence[str], out: Path) -> tuple[str, str]:
    import openvino

    for name in {*graphs}:
        model = openvino.convert_model(out / name)
        openvino.save_model(model, (out / name).with_suffix(".xml"), compress_to_fp16=False)
        (out / name).unlink()
    query, document = (Path(name).with_suffix(".xml").name for name in graphs)
    return query, document


Run = Callable[[Mapping[str, Any]], Vectors]


def _threads() -> int:
    """Return how many threads an operator may have, as torch reads it; 0: one a core."""
    return int(os.environ.get("OMP_NUM_THREADS", 0))


def _run_onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(tensors: Mapping[str, Any]) -> Vectors:
        found: Vectors = session.run([OUTPUT], {name: tensors[name] for name in names})[0]
        return found

    return run


def _run_openvino(file: Path) -> Run:
    import openvino

    threads = {"INFERENCE_NUM_THREADS": _threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", threads)
    names = [one.get_any_name() for one in compiled.inputs]

    def run(tensors: Mapping[str, Any]) -> Vectors:
        found: Vectors = compiled({name: tensors[name] for name in names})[OUTPUT]
        return found

    return run
