"""What is on this disk: the hub's cache, the files of a model, and our own small notes.

Nothing here asks the network or imports anything heavy. The cache is the hub's own (`HF_HUB_CACHE`,
`HF_HOME`), so models that other tools have downloaded are found.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
"""The file that makes a folder of weights an open_clip model."""

_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)  # the order in which open_clip itself prefers them
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
TOKENIZER = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "bpe.codes",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
        "sentencepiece.model",
        "config.json",  # tokenizer classes are looked up in it where tokenizer_config.json is silent
    }
)
"""The files that a transformers tokenizer may consist of."""

TOKENIZER_TABLES = TOKENIZER - {
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
}
"""Those of `TOKENIZER` that hold a vocabulary."""

PREPROCESSOR = "preprocessor_config.json"
"""What a model of transformers does to pictures."""

TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""The weights of a model of transformers, in the order in which it prefers them."""


def cache_folder() -> Path:
    """The hub cache, as `huggingface_hub` places it."""
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if not cache:
        xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = os.environ.get("HF_HOME") or os.path.join(xdg, "huggingface")
        cache = os.path.join(home, "hub")
    return Path(os.path.expandvars(cache)).expanduser()


def user_cache() -> Path:
    """The folder of our own small cache files."""
    from platformdirs import user_cache_path

    return user_cache_path("mmsearch")


def read_notes(name: str) -> dict[str, Any]:
    """A small JSON object from `user_cache`; empty if it is missing or damaged."""
    try:
        notes = json.loads((user_cache() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def write_notes(name: str, notes: dict[str, Any]) -> None:
    """Replaces a `read_notes` file atomically; a cache that cannot be written is no error."""
    path = user_cache() / name
    part = path.with_name(f"{name}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part.write_text(json.dumps(notes, indent=1), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        _log.debug("cannot write %s: %s", path, error)


def snapshot_folder(repo: str) -> Path | None:
    """The cached files of a repository's `main`, whichever of them are there; None if none is."""
    store = cache_folder() / f"models--{repo.replace('/', '--')}"
    try:
        commit = (store / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    folder = store / "snapshots" / commit
    return folder if folder.is_dir() else None


def cached_repos() -> list[str]:
    """Repositories whose open_clip config and weights are both cached."""
    found = []
    with contextlib.suppress(OSError):
        for store in sorted(cache_folder().glob("models--*--*")):
            repo = store.name.removeprefix("models--").replace("--", "/")
            folder = snapshot_folder(repo)
            if folder and (folder / CONFIG).is_file() and weights_file(folder):
                found.append(repo)
    return found


def pick_weights(names: Iterable[str], wanted: str | None = None) -> str | None:
    """The weights among the files of a model, as open_clip would choose; safetensors first.

    Args:
        names: file names, paths relative to the model's folder.
        wanted: take this file, or its safetensors twin, and no other.
    """
    top = sorted(name for name in names if "/" not in name and name.endswith(_WEIGHT_SUFFIXES))
    if wanted is not None:
        twin = os.path.splitext(wanted)[0] + ".safetensors"
        return next((name for name in (twin, wanted) if name in top), None)
    for name in _WEIGHTS:
        if name in top:
            return name
    return min(top, key=lambda name: not name.endswith(".safetensors"), default=None)


def weights_file(folder: Path) -> Path | None:
    """`pick_weights` of a folder."""
    name = pick_weights(path.name for path in folder.iterdir() if path.is_file())
    return folder / name if name else None


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a transformers tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_TABLES)


def has_transformers(folder: Path, *, preprocess: bool) -> bool:
    """Whether the folder holds a model of transformers: configuration, tokenizer and weights, all in one file.

    Args:
        folder: of the files.
        preprocess: whether it is to say what is done to pictures, too.
    """
    needed = ("config.json", *([PREPROCESSOR] if preprocess else ()))
    return (
        has_tokenizer(folder)
        and all((folder / name).is_file() for name in needed)
        and any((folder / name).is_file() for name in TRANSFORMERS_WEIGHTS)
    )


def tokenizer_tables(folder: Path) -> list[Path]:
    """The files that decide how the folder's tokenizer cuts: tokenizer.json, or else its vocabularies.

    Which of the lesser files are cached depends on who downloaded them, so they are left out.
    """
    if (folder / "tokenizer.json").is_file():
        return [folder / "tokenizer.json"]
    return [folder / name for name in sorted(TOKENIZER_TABLES) if (folder / name).is_file()]
