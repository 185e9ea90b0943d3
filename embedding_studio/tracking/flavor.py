"""What lies beside a model's own files so that MLflow's tools load it, serve it and show it."""

import json
import platform
from importlib.metadata import version
from pathlib import Path

import mlflow.pyfunc
import numpy as np
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

PAYLOAD = "model.sentence_transformer"
"""The folder of a sentence-transformers model: where MLflow's flavor looks for it."""
_EXAMPLE = ["winter jacket", "down parka"]
_PYTHON_ENV = "python_env.yaml"
_CONDA_ENV = "conda.yaml"
_PACKAGES = ("mlflow", "sentence-transformers", "transformers", "torch", "numpy", "pillow")


def write_flavor(saved: Path, folder: Path) -> str:
    """Write the file `MLmodel`, and what it names, for what a method saved; return the name of the
    folder beside it that this is to be put into.

    A sentence-transformers model gets MLflow's flavor: strings in, vectors out, and what `encode`
    takes to tell queries from items. Of anything else MLflow knows only that it is there."""
    model, is_known = Model(), (saved / "modules.json").exists()
    if is_known:
        texts, vectors = ColSpec("string"), TensorSpec(np.dtype("float32"), (-1, -1))
        names = [ParamSpec(name, "string", None) for name in ("prompt_name", "task")]
        model.signature = ModelSignature(Schema([texts]), Schema([vectors]), ParamSchema(names))
        model.saved_input_example_info = _write_example(folder)
        _write_environment(folder)
        mlflow.pyfunc.add_to_model(
            model,
            loader_module="mlflow.sentence_transformers",
            data=PAYLOAD,
            conda_env=_CONDA_ENV,
            python_env=_PYTHON_ENV,
        )
        release = version("sentence-transformers")
        model.add_flavor("sentence_transformers", sentence_transformers_version=release, code=None)
    model.save(str(folder / "MLmodel"))
    return PAYLOAD if is_known else "data"


def _write_example(folder: Path) -> dict[str, str]:
    (folder / "input_example.json").write_text(json.dumps(_EXAMPLE))
    (folder / "serving_input_example.json").write_text(json.dumps({"inputs": _EXAMPLE}))
    return {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "json_object",
    }


def _write_environment(folder: Path) -> None:
    # a local build, such as 2.13.0+cpu, is in no registry
    pins = [f"{package}=={version(package).partition('+')[0]}" for package in _PACKAGES]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n")
    python = platform.python_version()
    # JSON is YAML
    environment = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / _PYTHON_ENV).write_text(json.dumps(environment, indent=2))
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": pins}],
    }
    (folder / _CONDA_ENV).write_text(json.dumps(conda, indent=2))
