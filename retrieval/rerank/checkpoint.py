"""A cross-encoder's folder in the hub's format, checked before it is loaded: configuration, weights, tokenizer."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsearch.retrieval.encoders import cache, hub
from mmsearch.retrieval.encoders.open_clip import (
    file_hash,
    identity_of,
    import_torchvision,
    refuse_unsafe_pickle,
    tokenizer_hashes,
)
from mmsearch.retrieval.errors import MissingExtra, ModelUnavailable

_VOLATILE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
"""Of a configuration: what says who saved it, where, and as what, not what the model computes."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The files of a model of transformers, all there; the weights are not read yet.

    Attributes:
        config: what `config.json` says.
    """

    folder: Path
    weights: Path
    config: dict[str, Any]

    def identity(self, kind: str, **settings: Any) -> str:
        """Weights, configuration, tokenizer and the adapter's own settings as one name, wherever the folder lies."""
        parts = {
            "weights": file_hash(self.weights),
            "config": _lasting(self.config),
            "tokenizer": tokenizer_hashes(self.folder),
            **settings,
        }
        return identity_of(kind, parts)

    def damaged(self, error: object) -> ModelUnavailable:
        """What to raise where the weights do not load."""
        said = hub.one_line(error) if isinstance(error, Exception) else error
        return ModelUnavailable(f"{self.weights} does not load: {said}; download it again")


def read_checkpoint(folder: Path, architecture: str, example: str) -> Checkpoint:
    """Finds the files of a model, and makes sure that it is one of the kind that is wanted.

    Args:
        folder: config.json, model.safetensors or pytorch_model.bin, and a tokenizer.
        architecture: how the name of the model's class ends.
        example: a model on the hub that is one, for the message.

    Raises:
        ModelUnavailable: no folder, files that are missing or damaged, or another kind of model.
    """
    if not folder.is_dir():
        raise ModelUnavailable(f"{folder} is no folder; name one that holds a model such as {example}")
    config = read_json(folder / "config.json")
    found = config.get("architectures") or ["a model that does not name its class"]
    if not str(found[0]).endswith(architecture):
        raise ModelUnavailable(f"{folder} holds {found[0]}, but a {architecture} is wanted, such as {example}")
    weights = next((folder / name for name in cache.TRANSFORMERS_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelUnavailable(f"{folder} holds no weights: it wants {' or '.join(cache.TRANSFORMERS_WEIGHTS)}")
    if not cache.has_tokenizer(folder):
        raise ModelUnavailable(f"{folder} holds no tokenizer: it wants tokenizer.json or vocab.txt")
    return Checkpoint(folder, weights, config)


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file.

    Raises:
        ModelUnavailable: it is missing, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{path.parent} holds no {path.name}: it is no model of transformers") from error
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"{path} is damaged: {hub.one_line(error)}; download it again") from error
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{path} is damaged: it holds no JSON object; download it again")
    return content


@contextlib.contextmanager
def loading(checkpoint: Checkpoint) -> Iterator[None]:
    """Around the loading of a model: transformers is quiet, and what goes wrong is the file's fault.

    Raises:
        ModelUnavailable: in place of whatever a damaged file makes of itself.
    """
    logging = transformers().utils.logging
    refuse_unsafe_pickle(checkpoint.weights)
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (ModelUnavailable, MissingExtra):
        raise
    except Exception as error:
        raise checkpoint.damaged(error) from error
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def transformers() -> Any:
    """The package, imported after torchvision's guard: it imports torchvision where there is one.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        with contextlib.suppress(ImportError):  # not installed, and not needed
            import_torchvision()
        return importlib.import_module("transformers")
    except ImportError as error:
        raise MissingExtra(f"rerankers need transformers: pip install transformers ({hub.one_line(error)})") from error


def _lasting(config: Any) -> Any:
    """A configuration without what says nothing of the model, at any depth."""
    if isinstance(config, dict):
        return {key: _lasting(value) for key, value in config.items() if key not in _VOLATILE}
    return config
