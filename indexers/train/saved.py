"""A fine-tuned model as the folder that `local-dir:` names: weights, configuration, tokenizer, card, curves."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mmsearch.retrieval.encoders import cache
from mmsearch.retrieval.encoders.open_clip import OpenClipEncoder, architecture
from mmsearch.retrieval.errors import TrainingFailed

WEIGHTS = "open_clip_model.safetensors"
CURVES = "curves.json"
CARD = "README.md"


def write_model(folder: Path, encoder: OpenClipEncoder, card: str, curve: list[dict[str, float]]) -> None:
    """Writes the encoder's module, as it is now, to a folder that is there.

    The configuration comes last: until then the folder is no model. Each file is written beside its place and
    renamed.

    Raises:
        TrainingFailed: a file cannot be written.
    """
    files = encoder.files
    config = {"model_cfg": _model_config(folder, encoder), "preprocess_cfg": _plain(encoder.settings)}
    state = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.module.state_dict().items()}
    try:
        _replace(folder / WEIGHTS, lambda path: save_file(state, path))
        for source in filter(None, (files.tokenizer, _tower_folder(encoder))):
            for path in sorted(source.iterdir()):
                if path.name in cache.TOKENIZER and path.is_file():
                    _replace(folder / path.name, lambda new, path=path: shutil.copyfile(path, new))  # type: ignore[misc]
        _write(folder / CARD, card)
        write_curve(folder, curve)
        _write(folder / cache.CONFIG, json.dumps(config, indent=2) + "\n")
    except (OSError, RuntimeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise TrainingFailed(f"the model cannot be written to {folder}: {reason}; run it again to go on") from error


def write_curve(folder: Path, curve: list[dict[str, float]]) -> None:
    """Writes losses and figures by step: a list of objects, in `curves.json`."""
    lines = ",\n".join(json.dumps({k: round(v, 6) for k, v in row.items()}) for row in curve)
    _write(folder / CURVES, f"[\n{lines}\n]\n")


def write_card(folder: Path, card: str) -> None:
    """Writes the model card anew."""
    _write(folder / CARD, card)


def _model_config(folder: Path, encoder: OpenClipEncoder) -> dict[str, Any]:
    """The `model_cfg` of the base, for this folder and with what training added."""
    files = encoder.files
    config: dict[str, Any] = copy.deepcopy(architecture(files))
    if files.quick_gelu:
        config["quick_gelu"] = True
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    text = config["text_cfg"]
    if "hf_model_name" in text:
        text |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    if files.tokenizer is not None:
        text["hf_tokenizer_name"] = str(folder)
    if getattr(encoder.module, "logit_bias", None) is not None:
        config.setdefault("init_logit_bias", 0.0)  # without it open_clip makes a model that has no bias to load
    return config


def _tower_folder(encoder: OpenClipEncoder) -> Path | None:
    """Where the `config.json` of a text tower of transformers lies."""
    name = encoder.files.text.get("hf_model_name")
    return Path(name) if name and Path(name).is_dir() else None


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _write(path: Path, text: str) -> None:
    _replace(path, lambda new: new.write_text(text, "utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    new = path.with_name(f"{path.name}.tmp")
    try:
        write(new)
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
