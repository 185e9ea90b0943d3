"""Encoders that are made in a second and know nothing: what methods start from while they are
checked."""

import json
import string
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerBase,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from embedding_studio.training.encoder import without_progress_bars

_IMAGE_SIZE = 16
_WIDTH = 32
_SIDE: Mapping[str, Any] = {
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_MOST_TOKENS = 64


def write_text_encoder(folder: Path, prompts: Mapping[str, str]) -> Path:
    """Write a BERT of two layers with random weights, which reads letter by letter; return its
    folder. prompts: what comes before a "query" and a "document"."""
    tokenizer = _letters()
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=_MOST_TOKENS, **_SIDE)
    with tempfile.TemporaryDirectory() as parts, without_progress_bars():
        BertModel(config).save_pretrained(parts)
        tokenizer.save_pretrained(parts)
        modules = [
            Transformer(parts, max_seq_length=_MOST_TOKENS),
            Pooling(_WIDTH),
        ]
        model = SentenceTransformer(modules=modules, prompts=dict(prompts), device="cpu")
        model.save(str(folder), create_model_card=False)
    return folder


def write_image_encoder(folder: Path, prompts: Mapping[str, str]) -> Path:
    """Write a CLIP of two layers a side with random weights; return its folder. prompts: as for a
    text encoder."""
    tokenizer = _letters()
    torch.manual_seed(0)
    config = CLIPConfig(
        projection_dim=_WIDTH,
        text_config={
            **_SIDE,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": _MOST_TOKENS,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
        vision_config={**_SIDE, "image_size": _IMAGE_SIZE, "patch_size": 8},
    )
    cut = CLIPImageProcessorPil(
        size={"shortest_edge": _IMAGE_SIZE},
        crop_size={"height": _IMAGE_SIZE, "width": _IMAGE_SIZE},
    )
    processor: Any = CLIPProcessor
    inner = folder / "0_CLIPModel"
    with without_progress_bars():
        CLIPModel(config).save_pretrained(inner)
    processor(image_processor=cut, tokenizer=tokenizer).save_pretrained(inner)
    module = {"idx": 0, "name": "0", "path": inner.name}
    module["type"] = "sentence_transformers.models.CLIPModel"
    (folder / "modules.json").write_text(json.dumps([module]))
    config_file = folder / "config_sentence_transformers.json"
    config_file.write_text(json.dumps({"prompts": dict(prompts)}))
    return folder


def _letters() -> PreTrainedTokenizerBase:
    """Return a tokenizer to which each letter is a token."""
    signs = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [*signs, *(f"##{sign}" for sign in signs)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    tokenizer: PreTrainedTokenizerBase = BertTokenizer(
        {word: number for number, word in enumerate(words)},
        model_max_length=_MOST_TOKENS,
        max_length=_MOST_TOKENS,
    )
    return tokenizer
