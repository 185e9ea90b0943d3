"""A CLIP small enough to train in a test, and searchers who look for icons."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fontawesomefree
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from embedding_studio.clickstream import SearchResult, Session
from tests.training.tiny import PACKAGED_MODEL, WORDS, searches

SIZE = 32
_FONTS = Path(fontawesomefree.__file__).parent / "static" / "fontawesomefree"
# fmt: off
ICONS = dict(zip(WORDS, [
    "apple-whole", "dove", "cloud", "door-open", "crow", "fish", "seedling", "house", "mountain",
    "shirt", "key", "lightbulb", "moon", "egg", "water", "file", "chess-queen", "sailboat", "gem",
    "tree", "umbrella", "mountain-sun", "window-maximize", "worm", "horse", "bread-slice", "chair",
    "person-dress", "gears", "spa",
], strict=True))
# fmt: on


def write_tiny_clip(folder: Path) -> Path:
    """Write a randomly initialised CLIP, laid out as clip-ViT-B-32 is; return its folder."""
    inner = folder / "0_CLIPModel"
    inner.mkdir(parents=True)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED_MODEL, model_max_length=32, max_length=32)
    side = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    torch.manual_seed(0)
    config = CLIPConfig(
        projection_dim=32,
        text_config=side
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
        vision_config=side | {"image_size": SIZE, "patch_size": 8},
    )
    CLIPModel(config).save_pretrained(inner)
    cut = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}
    )
    processor: Any = CLIPProcessor
    processor(image_processor=cut, tokenizer=tokenizer).save_pretrained(inner)
    module = {"idx": 0, "name": "0", "path": inner.name}
    module["type"] = "sentence_transformers.models.CLIPModel"
    (folder / "modules.json").write_text(json.dumps([module]))
    return folder


def draw_icon(name: str, size: int = 48) -> Image.Image:
    """Draw a Font Awesome icon, black on white."""
    icons = json.loads((_FONTS / "metadata" / "icons.json").read_text(encoding="utf-8"))
    image = Image.new("RGB", (size, size), "white")
    ImageDraw.Draw(image).text(
        (size / 2, size / 2),
        chr(int(icons[name]["unicode"], 16)),
        fill="black",
        font=ImageFont.truetype(_FONTS / "webfonts" / "fa-solid-900.ttf", round(size * 0.75)),
        anchor="mm",
    )
    return image


def icon_searches(folder: Path, count: int, queries: int = 200) -> list[Session]:
    """Return what `searches` does, with icons drawn into the folder in place of texts."""
    folder.mkdir()
    for word, name in ICONS.items():
        draw_icon(name).save(folder / f"{word}.png")

    def pictured(result: SearchResult) -> SearchResult:
        return replace(result, meta={"image": str(folder / f"{result.object_id.split()[0]}.png")})

    return [
        replace(session, search_results=tuple(map(pictured, session.search_results)))
        for session in searches(count, queries=queries)
    ]
