"""What people get: `python serve_encoders.py asked.json` loads saved models with the library alone.

asked.json: {"queries": [...], "items": [...], "folders": {name: folder}}. Writes beside it an npz
with <name>/queries and <name>/items, each encoded by itself, and <name>/similarity.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main(asked_file: Path) -> None:
    asked = json.loads(asked_file.read_text())
    found: dict[str, Any] = {}
    for name, folder in asked["folders"].items():
        model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": torch.float32})
        queries = np.stack([model.encode_query(text) for text in asked["queries"]])
        items = np.stack([model.encode_document(text) for text in asked["items"]])
        found[f"{name}/queries"], found[f"{name}/items"] = queries, items
        found[f"{name}/similarity"] = model.similarity(queries, items).numpy()
    np.savez(asked_file.with_suffix(".npz"), **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
