"""The card of a saved encoder, in the form that model hubs read: where it is from, how to use it.

An encoder that was loaded from one of our cards keeps what that says of its base model."""

import re
from pathlib import Path

from sentence_transformers import SentenceTransformer

from embedding_studio.tracking.reader import CARD

_OURS = "embedding-studio"
_ORIGIN = "_embedding_studio_origin"

_TEMPLATE = """---
base_model: {base}
license: {license}
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags:
- sentence-transformers
- {ours}
---
## How to load

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("the folder of this file")
queries = model.encode_query(["winter jacket"])
items = model.encode_document(["down parka"])
scores = model.similarity(queries, items)
```

It was judged as `encode_query` and `encode_document` serve it.{items}

## Prompts

{prompts}
"""

_ITEMS_KEPT = (
    " Queries alone learn by its method: items have the vectors that the model it started from "
    "gives them, so an index of these stays valid and nothing is indexed anew."
)


def note_origin(model: SentenceTransformer, place: str | Path) -> None:
    """Keep with a loaded encoder where it is from: the name of its base model, and its licence."""
    text: str = getattr(model, "_model_card_text", None) or ""
    head = text.split("---")[1] if text.startswith("---") else ""
    licence = _entry(head, "license") or "unknown"
    base = _entry(head, "base_model") if f"- {_OURS}" in head else None
    path = Path(place)
    name = "/".join(path.absolute().parts[-2:]) if path.is_dir() else str(place)
    setattr(model, _ORIGIN, (base or name, licence))


def _entry(head: str, name: str) -> str | None:
    found = re.search(rf"^{name}: *(\S.*)$", head, re.MULTILINE)
    return found[1].strip() if found else None


def write_card(model: SentenceTransformer, folder: Path, keeps_items: bool = False) -> None:
    """Write the card of an encoder that is saved in a folder."""
    base, licence = getattr(model, _ORIGIN, ("unknown", "unknown"))
    texts = {name: text for name, text in (model.prompts or {}).items() if text}
    lines = [f"- `{name}`: `{text!r}`" for name, text in texts.items()]
    if model.default_prompt_name:
        lines.append(f"- by default: `{model.default_prompt_name}`")
    prompts = "\n".join(lines) or "None: texts are encoded as they are."
    items = _ITEMS_KEPT if keeps_items else ""
    card = _TEMPLATE.format(base=base, license=licence, ours=_OURS, prompts=prompts, items=items)
    (folder / CARD).write_text(card, encoding="utf-8")
