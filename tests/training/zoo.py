"""Encoders of many kinds, each small enough to train in a test, with random weights."""

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Router,
    StaticEmbedding,
    Transformer,
    WeightedLayerPooling,
)
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from tests.training.tiny import WORDS
from tests.training.tiny_clip import write_tiny_clip

LAYERS = 3
WIDTH = 32
_LONGEST = 64
_SPREAD = 0.2  # of the weights: layers that change what they are given
_SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
_CHAT = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{{ message['content'][0]['text'] }}{% endif %}. {% endfor %}"
)
_PIECES = [*string.ascii_lowercase, *string.punctuation, *WORDS]
_VOCABULARY = [*_SPECIAL, *_PIECES, *(f"##{piece}" for piece in _PIECES)]

Kind = Callable[[Path], SentenceTransformer]


def _tokenizer(is_bare: bool = False, **options: Any) -> tf.PreTrainedTokenizerFast:
    """Return one for words and letters; a bare one adds no special tokens."""
    pieces = {piece: number for number, piece in enumerate(_VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    if not is_bare:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    names: dict[str, Any] = {
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "eos_token": "[SEP]",
        "mask_token": "[MASK]",
        "unk_token": "[UNK]",
        "model_max_length": _LONGEST - 2,
    }
    made: Any = tf.PreTrainedTokenizerFast
    found: tf.PreTrainedTokenizerFast = made(tokenizer_object=tokenizer, **names | options)
    return found


def _transformer(
    folder: Path,
    model: tf.PreTrainedModel,
    tokenizer: tf.PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype = torch.float32,
    config_kwargs: dict[str, Any] | None = None,
) -> Transformer:
    stored: Any = model
    stored.to(dtype).save_pretrained(folder)
    (tokenizer or _tokenizer()).save_pretrained(folder)
    made: Transformer = Transformer(str(folder), config_kwargs=config_kwargs or {})
    return made


def _encoder(
    config: type[tf.PretrainedConfig], model: type[tf.PreTrainedModel], **options: Any
) -> tf.PreTrainedModel:
    sizes = {
        "vocab_size": len(_VOCABULARY),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": _LONGEST,
        "pad_token_id": 0,
        "initializer_range": _SPREAD,
    }
    return model(config(**sizes | options))


def _bert() -> tf.PreTrainedModel:
    return _encoder(tf.BertConfig, tf.BertModel)


def _t5(**options: Any) -> tf.PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": WIDTH, "d_kv": 16, "d_ff": 64, "num_heads": 2}
    return tf.T5EncoderModel(
        tf.T5Config(vocab_size=len(_VOCABULARY), num_layers=LAYERS, **sizes | options)
    )


def _gpt2() -> tf.PreTrainedModel:
    return tf.GPT2Model(
        tf.GPT2Config(
            vocab_size=len(_VOCABULARY),
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=2,
            n_positions=_LONGEST,
        )
    )


def _decoder(**options: Any) -> tf.PreTrainedModel:
    return _encoder(tf.Qwen3Config, tf.Qwen3Model, num_key_value_heads=1, head_dim=16, **options)


def _mean(make: Callable[[], tf.PreTrainedModel], **options: Any) -> Kind:
    """A transformer and the mean of its tokens."""
    return lambda folder: SentenceTransformer(
        modules=[_transformer(folder, make(), **options), Pooling(WIDTH)], device="cpu"
    )


def _last(make: Callable[[], tf.PreTrainedModel], **options: Any) -> Kind:
    """A decoder, and its last token."""
    return lambda folder: SentenceTransformer(
        modules=[_transformer(folder, make(), **options), Pooling(WIDTH, "lasttoken"), Normalize()],
        device="cpu",
    )


def _with(kind: Kind, **options: Any) -> Kind:
    """A model with options of its own, prompts say."""
    return lambda folder: SentenceTransformer(modules=list(kind(folder)), device="cpu", **options)


def _pipeline(folder: Path) -> SentenceTransformer:
    modules = [
        _transformer(folder, _bert()),
        Pooling(WIDTH, ("mean", "cls")),
        Dense(2 * WIDTH, 24),
        LayerNorm(24),
        Normalize(),
    ]
    return SentenceTransformer(modules=modules, device="cpu")


def _weighted_layers(folder: Path) -> SentenceTransformer:
    transformer = _transformer(folder, _bert(), config_kwargs={"output_hidden_states": True})
    layers = WeightedLayerPooling(WIDTH, num_hidden_layers=LAYERS, layer_start=1)
    return SentenceTransformer(modules=[transformer, layers, Pooling(WIDTH)], device="cpu")


def _static(folder: Path) -> SentenceTransformer:
    module = StaticEmbedding(_tokenizer(), embedding_dim=WIDTH)
    return SentenceTransformer(modules=[module], device="cpu")


def _router(folder: Path) -> SentenceTransformer:
    document = [_transformer(folder, _bert()), Pooling(WIDTH)]
    router = Router.for_query_document(
        query_modules=[StaticEmbedding(_tokenizer(), embedding_dim=WIDTH)],
        document_modules=document,
    )
    return SentenceTransformer(modules=[router, Normalize()], device="cpu")


def _without_prompt(folder: Path) -> SentenceTransformer:
    prompts = {"query": "find what fits: ", "document": "this is a text: "}
    model = _with(_mean(_t5), prompts=prompts)(folder)
    model.set_pooling_include_prompt(False)
    return model


PROMPTS = {"query": "query: ", "document": "a longer passage: "}
KINDS: dict[str, Kind] = {
    "bert": _mean(_bert),
    "distilbert": _mean(
        lambda: tf.DistilBertModel(
            tf.DistilBertConfig(
                vocab_size=len(_VOCABULARY),
                dim=WIDTH,
                n_layers=LAYERS,
                n_heads=2,
                hidden_dim=64,
                max_position_embeddings=_LONGEST,
                initializer_range=_SPREAD,
            )
        )
    ),
    "xlm-roberta": _mean(lambda: _encoder(tf.XLMRobertaConfig, tf.XLMRobertaModel)),
    "mpnet": _mean(lambda: _encoder(tf.MPNetConfig, tf.MPNetModel)),
    "albert": _mean(lambda: _encoder(tf.AlbertConfig, tf.AlbertModel, embedding_size=16)),
    "deberta": _mean(
        lambda: _encoder(
            tf.DebertaV2Config, tf.DebertaV2Model, relative_attention=True, pos_att_type="p2c|c2p"
        )
    ),
    "t5": _mean(_t5),
    "modernbert": _mean(
        lambda: _encoder(
            tf.ModernBertConfig,
            tf.ModernBertModel,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
            global_attn_every_n_layers=2,
            local_attention=8,
        )
    ),
    "longformer": _mean(
        lambda: _encoder(tf.LongformerConfig, tf.LongformerModel, attention_window=[8] * LAYERS)
    ),
    "xlm": _mean(
        lambda: tf.XLMModel(
            tf.XLMConfig(
                vocab_size=len(_VOCABULARY),
                emb_dim=WIDTH,
                n_layers=LAYERS,
                n_heads=2,
                max_position_embeddings=_LONGEST,
                pad_token_id=0,
            )
        )
    ),
    "qwen3, left padded": _last(_decoder, tokenizer=_tokenizer(padding_side="left")),
    "gpt2, no token for padding": _last(
        _gpt2, tokenizer=_tokenizer(is_bare=True, pad_token=None, model_max_length=10**30)
    ),
    "gpt2, left padded": _last(_gpt2, tokenizer=_tokenizer(padding_side="left")),
    "chat template": _with(
        _last(_decoder, tokenizer=_tokenizer(chat_template=_CHAT)),
        prompts={"query": "find what fits", "document": ""},
    ),
    "static": _static,
    "pipeline": _pipeline,
    "weighted layers": _weighted_layers,
    "router": _router,
    "bert in bf16": _mean(_bert, dtype=torch.bfloat16),
    "bert in fp16": _mean(_bert, dtype=torch.float16),
    "qwen3 in bf16": _last(_decoder, dtype=torch.bfloat16),
    "prompts": _with(_mean(_bert), prompts=PROMPTS),
    "default prompt": _with(
        _mean(_bert), prompts={"any": "text: ", "query": "query: "}, default_prompt_name="any"
    ),
    "prompts that are not pooled": _without_prompt,
    "truncated": _with(_mean(_bert), truncate_dim=8),
    "dot product": _with(_mean(_bert), similarity_fn_name="dot"),
    "euclidean": _with(_mean(_bert), similarity_fn_name="euclidean"),
    "manhattan": _with(_mean(_bert), similarity_fn_name="manhattan"),
    "no length": _mean(_bert, tokenizer=_tokenizer(model_max_length=10**30)),
    "no special tokens": _mean(_bert, tokenizer=_tokenizer(is_bare=True)),
}


CLIP = "clip"


def write_kind(kind: str, folder: Path) -> Path:
    """Write a model of a kind below a new folder; return where."""
    torch.manual_seed(0)
    if kind == CLIP:
        return write_tiny_clip(folder / "clip")
    KINDS[kind](folder / "transformer").save(str(folder / "made"), create_model_card=False)
    return folder / "made"
