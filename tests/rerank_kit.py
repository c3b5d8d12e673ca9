"""Tiny checkpoints of the true classes, in the hub's format: what the rerankers' tests load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmsearch.retrieval.encoders.open_clip import import_torchvision

import_torchvision()
import torch  # noqa: E402 - after torchvision's guard
import transformers  # noqa: E402

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] a the cat dog red green on runs sleep ##s ##ing sofa . 猫 狗".split()
_BODY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_tokenizer(folder: Path, pieces: list[str] = PIECES) -> None:
    """A WordPiece tokenizer, as BERT's."""
    from tokenizers import BertWordPieceTokenizer

    words = BertWordPieceTokenizer({piece: place for place, piece in enumerate(pieces)})
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer,
        unk_token="[UNK]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        mask_token="[MASK]",
    ).save_pretrained(folder)


def save_weights(model: Any, folder: Path, weights: str) -> None:
    """Configuration and weights; `weights` is the name of the file."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    if weights.endswith(".safetensors"):
        from safetensors.torch import save_file

        save_file(state, folder / weights, metadata={"format": "pt"})
    else:
        torch.save(state, folder / weights)


def save_blip(folder: Path, *, weights: str = "model.safetensors", seed: int = 7, **preprocess: Any) -> Path:
    """An image-text matching model that reads 32 x 32 pixels and 16 tokens."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    text = {**_BODY, "vocab_size": len(PIECES), "encoder_hidden_size": 32, "max_position_embeddings": 16}
    vision = {**_BODY, "image_size": 32, "patch_size": 8, "initializer_range": 0.2}
    config = transformers.BlipConfig(
        text_config={**text, "pad_token_id": 0, "bos_token_id": 2, "sep_token_id": 3, "initializer_range": 0.2},
        vision_config=vision,
        image_text_hidden_size=16,
    )
    save_weights(transformers.BlipForImageTextRetrieval(config), folder, weights)
    save_tokenizer(folder)
    settings = {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}, **preprocess}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def save_cross_encoder(
    folder: Path, *, weights: str = "model.safetensors", seed: int = 7, labels: int = 1, kind: str = "classifier"
) -> Path:
    """A BERT that reads 24 tokens, with a head of `labels` (kind `classifier`) or without one (`body`)."""
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        **_BODY,
        vocab_size=len(PIECES),
        max_position_embeddings=24,
        num_labels=labels,
        pad_token_id=0,
        initializer_range=0.2,
    )
    classes = {"classifier": transformers.BertForSequenceClassification, "body": transformers.BertModel}
    save_weights(classes[kind](config), folder, weights)
    save_tokenizer(folder)
    return folder
