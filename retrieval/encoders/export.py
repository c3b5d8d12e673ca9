"""The starter model for torch: a folder that stock open_clip loads offline, and the module itself.

The folder is what open_clip calls `local-dir:`. Its text tower is built by transformers, which wants an absolute
path in the configuration: a folder that was moved has to be exported again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.encoders.starter import FOLDER, Weights
from mmsearch.retrieval.encoders.starter.tokenizer import BOS, EOS, META, PAD, UNK
from mmsearch.retrieval.errors import UsageError

if TYPE_CHECKING:
    import torch

_SPECIALS = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}


def export_open_clip(folder: Path) -> Path:
    """Write the starter model to `folder` in open_clip's `local-dir:` form.

    Returns:
        The absolute path of the folder; `local-dir:` + that path is the model's name for open_clip.

    Raises:
        UsageError: `folder` is a file, or holds something else already.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _is_export(folder))):
        raise UsageError(f"{folder} exists and is no earlier export; name an empty or a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    from safetensors.torch import save_file

    save_file(starter_state(), folder / "open_clip_model.safetensors")
    model = json.loads((FOLDER / "model.json").read_text("utf-8"))
    _write_tokenizer(folder, model["max_tokens"])
    text = model["text"]
    _write_json(
        folder / "config.json",
        {
            "model_type": "bert",
            "architectures": ["BertModel"],
            "vocab_size": len(Weights(FOLDER / "weights.safetensors")["text.pieces.scores"]),
            "hidden_size": text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "intermediate_size": text["hidden"],
            "hidden_act": "gelu",
            "layer_norm_eps": text["eps"],
            "max_position_embeddings": model["max_tokens"],
            "type_vocab_size": 1,
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
    )
    _write_json(
        folder / "open_clip_config.json",
        {
            "model_cfg": {
                "embed_dim": model["dim"],
                "vision_cfg": {
                    "image_size": model["image_size"],
                    "timm_model_name": "tf_efficientnet_lite2",
                    "timm_model_pretrained": False,
                    "timm_pool": "avg",
                    "timm_proj": "mlp",
                },
                "text_cfg": {
                    "hf_model_name": str(folder),
                    "hf_tokenizer_name": str(folder),
                    "hf_model_pretrained": False,
                    "hf_pooler_type": "mean_pooler",
                    "hf_proj_type": "linear",
                    "context_length": model["max_tokens"],
                },
            },
            "preprocess_cfg": {
                "size": model["image_size"],
                "mode": "RGB",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
                "interpolation": "bicubic",
                "resize_mode": "squash",
            },
        },
    )
    (folder / "MODEL_CARD.md").write_bytes((FOLDER / "MODEL_CARD.md").read_bytes())
    return folder


def starter_state() -> dict[str, torch.Tensor]:
    """The starter's weights, float32, under the names of open_clip's CustomTextCLIP."""
    import torch

    model = json.loads((FOLDER / "model.json").read_text("utf-8"))
    weights = Weights(FOLDER / "weights.safetensors")
    state: dict[str, torch.Tensor] = {"logit_scale": torch.tensor(np.log(model["logit_scale"]), dtype=torch.float32)}
    for stored in weights:
        name = stored.removesuffix(".q4").removesuffix(".q8")
        if name.endswith(".scale") or name == "text.pieces.scores":
            continue
        values = torch.from_numpy(np.array(weights.unpack(name)))
        if ".attention.self.qkv." in name:
            for part, third in zip(("query", "key", "value"), values.chunk(3), strict=True):
                state[name.replace("qkv", part)] = third.contiguous()
        else:
            state[name] = values
        if name.endswith(".running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    # Token type embeddings are part of the position embeddings in the bundle.
    state["text.transformer.embeddings.token_type_embeddings.weight"] = torch.zeros(1, model["text"]["width"])
    return state


def _is_export(folder: Path) -> bool:
    return (folder / "open_clip_config.json").exists() and (folder / "MODEL_CARD.md").exists()


def _write_tokenizer(folder: Path, max_tokens: int) -> None:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = (FOLDER / "pieces.txt").read_text("utf-8").split("\n")
    scores = Weights(FOLDER / "weights.safetensors")["text.pieces.scores"].tolist()
    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), UNK, False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement=META, prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{pieces[BOS]} $A {pieces[EOS]}",
        special_tokens=[(pieces[BOS], BOS), (pieces[EOS], EOS)],
    )
    tokenizer.add_special_tokens([pieces[i] for i in sorted(_SPECIALS.values())])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings: dict[str, Any] = {name: pieces[i] for name, i in _SPECIALS.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens}
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
