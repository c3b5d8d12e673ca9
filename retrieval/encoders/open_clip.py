"""Dual encoders of open_clip, on torch: CPU, CUDA and MPS.

`files_of_tag`, `files_of_repo` and `files_in_folder` find a model's files (through `hub`, so what is
cached asks no network); `OpenClipEncoder` builds the model from them. open_clip itself is never left to
download anything. Weights are read from safetensors, or by torch's restricted unpickler.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.retrieval.encoders import cache, hub
from mmsearch.retrieval.encoders.placement import Placement
from mmsearch.retrieval.encoders.presets import ENGLISH
from mmsearch.retrieval.errors import MissingExtra, ModelUnavailable, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders.cells import Cells

_log = logging.getLogger(__name__)

_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
_BATCH = {"cpu": 32, "mps": 64, "cuda": 256}
_TEXT_BATCH = {"cpu": 64, "mps": 128, "cuda": 512}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the parts of an open_clip model are, and how to build it.

    Attributes:
        source: what open_clip's factory takes: an architecture, or `local-dir:FOLDER`.
        weights: the checkpoint.
        text: the `text_cfg` of the model's configuration.
        tokenizer: the folder of a transformers tokenizer; None for CLIP's own.
        preprocess: settings that override the configuration's (those of a pretrained tag).
        quick_gelu: whether the weights were trained with QuickGELU though the architecture is not.
        languages: what texts may be in; () if that is not known.
    """

    source: str
    weights: Path
    text: dict[str, Any]
    tokenizer: Path | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    quick_gelu: bool = False
    languages: tuple[str, ...] = ()


def pretrained_tags(arch: str) -> list[str]:
    """The pretrained weights that open_clip knows of an architecture."""
    return list(_import_open_clip().list_pretrained_tags_by_model(arch))


def files_of_tag(tag: str, access: hub.Hub) -> ModelFiles:
    """The files of open_clip's `ARCH/PRETRAINED`, downloaded if need be.

    Raises:
        UsageError: the architecture has no such weights.
        ModelUnavailable: the files cannot be had.
    """
    open_clip = _import_open_clip()
    arch, _, pretrained = tag.partition("/")
    known = open_clip.get_pretrained_cfg(arch, pretrained)
    if not known:
        tags = ", ".join(f"{arch}/{name}" for name in pretrained_tags(arch))
        raise UsageError(f"`{tag}` is unknown to open_clip; it knows {tags or 'no weights for that'}")
    repo, name = os.path.split(known.get("hf_hub") or "")
    if not repo:
        raise ModelUnavailable(f"the weights of `{tag}` are on no model hub; use another")
    _, weights = access.model(repo, config=False, weights=name or None)
    text = open_clip.get_model_config(arch)["text_cfg"]
    return ModelFiles(
        source=arch,
        weights=weights,
        text=_with_local_tower(text, None, access),
        tokenizer=_tokenizer_folder(text, None, access),
        preprocess={key: known[key] for key in _PREPROCESS if key in known},
        quick_gelu=bool(known.get("quick_gelu")),
        languages=() if text.get("hf_tokenizer_name") else ENGLISH,
    )


def files_of_repo(repo: str, access: hub.Hub) -> ModelFiles:
    """The files of an open_clip model on the hub, downloaded if need be.

    Raises:
        ModelUnavailable: the files cannot be had, or are no open_clip model.
    """
    folder, weights = access.model(repo, config=True)
    return _files(folder, weights, access)


def files_in_folder(folder: Path) -> ModelFiles:
    """The files of an open_clip model in a folder, as `local-dir:` names it.

    Raises:
        ModelUnavailable: the folder holds no open_clip model.
    """
    if not folder.is_dir():
        raise ModelUnavailable(f"{folder} is no folder")
    weights = cache.weights_file(folder)
    if weights is None or not (folder / cache.CONFIG).is_file():
        raise ModelUnavailable(
            f"{folder} holds no open_clip model: it wants {cache.CONFIG} and open_clip_model.safetensors"
        )
    return _files(folder, weights, hub.Hub(offline=True))


def _files(folder: Path, weights: Path, access: hub.Hub) -> ModelFiles:
    try:
        text = json.loads((folder / cache.CONFIG).read_text(encoding="utf-8"))["model_cfg"]["text_cfg"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(f"{folder / cache.CONFIG} is damaged: no model_cfg.text_cfg in it") from error
    return ModelFiles(
        source=f"local-dir:{folder}",
        weights=weights,
        text=_with_local_tower(text, folder, access),
        tokenizer=_tokenizer_folder(text, folder, access),
        languages=() if text.get("hf_tokenizer_name") else ENGLISH,
    )


def architecture(files: ModelFiles) -> dict[str, Any]:
    """The `model_cfg` that a model is built from."""
    if files.source.startswith("local-dir:"):
        folder = Path(files.source.removeprefix("local-dir:"))
        found = json.loads((folder / cache.CONFIG).read_text(encoding="utf-8"))["model_cfg"]
    else:
        found = _import_open_clip().get_model_config(files.source)
    return dict(found)


def _tokenizer_folder(text: dict[str, Any], folder: Path | None, access: hub.Hub) -> Path | None:
    """The folder of the transformers tokenizer that a model wants; None if it wants CLIP's own."""
    name = text.get("hf_tokenizer_name")
    if not name:
        return None
    if folder and cache.has_tokenizer(folder):
        return folder
    if Path(name).is_dir():
        return Path(name)
    return access.tokenizer(name)


def _with_local_tower(text: dict[str, Any], folder: Path | None, access: hub.Hub) -> dict[str, Any]:
    """A text tower of transformers is built from its `config.json`: from that of a folder, here."""
    text = copy.deepcopy(text)
    name = text.get("hf_model_name")
    if name and not Path(name).is_dir():
        moved = folder is not None and (folder / "config.json").is_file()
        text["hf_model_name"] = str(folder if moved else access.tokenizer(name, config=True))
    return text


class OpenClipEncoder:
    """An `Encoder` on open_clip. Safe to call from several threads.

    Args:
        name: shown as the model's name.
        files: from one of the `files_*` functions.
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None takes the best that is here.
        precision: `fp32`, `bf16` or `fp16` (autocast: rows are normalised in fp32, and a batch that
            overflows is done again in fp32); None takes fp16 on CUDA, else fp32.
        threads: torch's processor threads, a setting of the whole process; None lowers torch's own
            choice where the container allows fewer.
        batch_size: images per call; None suits the device.

    Attributes:
        languages: ISO 639 codes of its texts; `mul` for many, () if not known.
        files: what it was built from.
        module: the model itself, for training.
        settings: open_clip's `preprocess_cfg` of it.

    Raises:
        UsageError: a device that is not here, or an unknown precision.
        ModelUnavailable: the files do not make a model.
    """

    backend = "torch"

    def __init__(
        self,
        name: str,
        files: ModelFiles,
        *,
        device: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        open_clip = _import_open_clip()
        self._torch = importlib.import_module("torch")
        self._placement = Placement(device, precision, threads)
        self._device = self._placement.device
        self.name = name
        self.files = files
        self.device = str(self._device)
        self.precision = self._placement.precision
        self.batch_size = batch_size or _BATCH[self._placement.kind]
        self._text_batch = _TEXT_BATCH[self._placement.kind]
        self._tokenizing = threading.Lock()
        self.module = _build(open_clip, files)
        settings = open_clip.get_model_preprocess_cfg(self.module)
        self.settings: dict[str, Any] = settings
        self._resize_mode = settings.get("resize_mode") or "shortest"
        self._transform_of = functools.cache(lambda times: _transform(open_clip, settings, times))
        self._transform = self._transform_of(1)
        self._tokenizer = _tokenizer(open_clip, files)
        self.module = self.module.to(self._device).eval()
        height, width = _pair(settings["size"])
        self.image_size = (height, width)
        self.max_tokens = int(self._tokenizer.context_length)
        self.languages = files.languages
        self.identity = _identity(files, settings, self.max_tokens)
        self.dim = int(self.encode_texts([""]).shape[1])

    def preprocess(self, image: Image.Image) -> NDArray[np.float32]:
        """open_clip's own evaluation transform of an upright RGB picture; (3, height, width)."""
        array: NDArray[np.float32] = self._transform(image).numpy()
        return array

    def encode_images(self, arrays: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """`preprocess` outputs to (n, dim) float32 rows of length 1."""
        import numpy as np

        return self._rows(
            self.module.encode_image,
            (
                self._torch.from_numpy(np.stack(arrays[start : start + self.batch_size]))
                for start in range(0, len(arrays), self.batch_size)
            ),
        )

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts to (n, dim) float32 rows of length 1; texts over `max_tokens` are cut at the end."""
        return self._rows(
            self.module.encode_text,
            (self.tokens(texts[start : start + self._text_batch]) for start in range(0, len(texts), self._text_batch)),
        )

    def heat_map(self, image: Image.Image, row: NDArray[np.float32]) -> Cells | None:
        """Scores the places of an upright RGB picture for a query; None if the tower is of no known kind."""
        from mmsearch.retrieval.encoders.cells import Cells
        from mmsearch.retrieval.encoders.towers import score_cells

        def pixels(times: int) -> Any:
            return self._transform_of(times)(image)[None].to(self._device)

        found = score_cells(self.module.visual, pixels, self._torch.from_numpy(row).to(self._device))
        return found and Cells(*found, self._box(image.size))

    def _box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """What `preprocess` lets the model see of a picture (width, height): less where it crops, more where it pads.

        Left, top, right, bottom as shares of the picture.
        """
        if self._resize_mode == "squash":
            return (0.0, 0.0, 1.0, 1.0)
        scales = (self.image_size[1] / size[0], self.image_size[0] / size[1])
        scale = min(scales) if self._resize_mode == "longest" else max(scales)
        across, down = (each / scale / 2 for each in scales)
        return (0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down)

    def count_tokens(self, text: str) -> int:
        """Tokens of `text` before any cut, with those that mark its ends."""
        inner = getattr(self._tokenizer, "tokenizer", None)
        with self._tokenizing:
            if inner is None:
                return len(self._tokenizer.encode(text)) + 2
            marks = self._tokenizer.tokenizer_mode == "clips"
            ids = inner(
                self._tokenizer.clean_fn(text), add_special_tokens=not marks, truncation=False, verbose=False
            ).input_ids
            return len(ids) + (3 if marks else 0)

    def tokens(self, texts: Sequence[str]) -> Any:
        """Texts as the token ids that the model takes, (n, length) int64 on the processor.

        A tower of transformers masks what is padding, so columns that are padding in all texts are left out:
        short texts cost a fraction of a long context.
        """
        return self.trimmed(self.padded(texts))

    def padded(self, texts: Sequence[str]) -> Any:
        """Token ids of texts, (n, max_tokens) int64 on the processor."""
        with self._tokenizing:  # fast tokenizers keep their padding settings in shared state
            return self._tokenizer(list(texts))

    def trimmed(self, ids: Any) -> Any:
        """`padded` ids without the columns that `tokens` leaves out."""
        text: Any = getattr(self.module, "text", None)
        if hasattr(text, "pooler"):
            used = (ids != text.config.pad_token_id).any(0).nonzero()
            ids = ids[:, : int(used[-1]) + 1 if len(used) else 1]
        return ids

    def _rows(self, encode: Callable[[Any], Any], batches: Iterator[Any]) -> NDArray[np.float32]:
        import numpy as np

        found: list[NDArray[np.float32]] = []
        for batch in batches:
            rows = self._placement.run(self.name, functools.partial(encode, batch.to(self._device)))
            found.append(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
        return np.concatenate(found) if found else np.zeros((0, self.dim), dtype=np.float32)


def _build(open_clip: Any, files: ModelFiles) -> Any:
    """The model with its weights, on the CPU in fp32."""
    refuse_unsafe_pickle(files.weights)
    try:
        with _quiet_root_logger():
            model = open_clip.create_model(
                files.source,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=files.quick_gelu,
                force_preprocess_cfg=files.preprocess,
                text_cfg={**files.text, "hf_model_pretrained": False} if "hf_model_name" in files.text else files.text,
            )
            open_clip.load_checkpoint(model, str(files.weights), weights_only=True)
    except Exception as error:  # whatever a damaged file makes of itself, it is the file's fault
        raise ModelUnavailable(f"{files.weights} does not load: {hub.one_line(error)}") from error
    return model


def _transform(open_clip: Any, settings: dict[str, Any], times: int) -> Any:
    """The model's evaluation transform, to that many times its size."""
    height, width = _pair(settings["size"])
    return open_clip.image_transform(
        (height * times, width * times),
        is_train=False,
        **{key: settings[key] for key in _PREPROCESS if settings.get(key) is not None},
        fill_color=settings.get("fill_color", 0),
    )


def _tokenizer(open_clip: Any, files: ModelFiles) -> Any:
    length = files.text.get("context_length", 77)
    options = files.text.get("tokenizer_kwargs", {})
    if files.tokenizer is None:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    mode = files.text.get("tokenizer_mode")
    try:
        return importlib.import_module("open_clip.tokenizer").HFTokenizer(
            str(files.tokenizer), context_length=length, tokenizer_mode=mode, **options
        )
    except ImportError as error:
        said = hub.one_line(error)
        raise MissingExtra(f"this tokenizer needs transformers: pip install transformers ({said})") from error
    except (OSError, ValueError) as error:
        raise ModelUnavailable(f"no tokenizer in {files.tokenizer}: {hub.one_line(error)}") from error


def refuse_unsafe_pickle(weights: Path) -> None:
    """Torch's restricted unpickler holds since 2.6; safetensors run no code anyway.

    Raises:
        ModelUnavailable: the weights are a pickle, and this torch is older.
    """
    version = importlib.import_module("torch").__version__
    if weights.suffix != ".safetensors" and tuple(int(part) for part in version.split(".")[:2]) < (2, 6):
        raise ModelUnavailable(f"reading {weights.name} safely needs torch 2.6: pip install -U torch")


def _identity(files: ModelFiles, settings: dict[str, Any], max_tokens: int) -> str:
    """Weights, preprocess and tokenizer as one hash; the same wherever the files lie."""
    parts = {
        "weights": file_hash(files.weights),
        "preprocess": {**settings, "size": _pair(settings["size"])},
        "quick_gelu": files.quick_gelu,
        "tokenizer": {
            "tables": tokenizer_hashes(files.tokenizer) if files.tokenizer else {},
            "max_tokens": max_tokens,
            "mode": files.text.get("tokenizer_mode") or "",
            "options": files.text.get("tokenizer_kwargs", {}),
        },
    }
    return identity_of("open_clip", parts)


def identity_of(kind: str, parts: dict[str, Any]) -> str:
    """What a model is made of, in JSON's types, as one name; the same wherever its files lie."""
    return f"{kind}-{hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]}"


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """`file_hash` of the files that decide how the folder's tokenizer cuts, by name."""
    return {table.name: file_hash(table) for table in cache.tokenizer_tables(folder)}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered in the user's cache by its path, size and modification time."""
    path = path.resolve()
    status = path.stat()
    key = f"{path}|{status.st_size}|{status.st_mtime_ns}"
    known = cache.read_notes("hashes.json")
    if isinstance(known.get(key), str):
        return str(known[key])
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    kept = {old: value for old, value in known.items() if old.split("|")[0] != str(path)}
    cache.write_notes("hashes.json", {**dict(list(kept.items())[-100:]), key: found})
    return found


def _pair(size: Any) -> tuple[int, int]:
    """A preprocess size, which may be one number, as (height, width)."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[-1]))


@contextlib.contextmanager
def _quiet_root_logger() -> Iterator[None]:
    """open_clip logs to the root logger, and that installs a handler where there is none."""
    root = logging.getLogger()
    silence = logging.NullHandler()

    def not_open_clip(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root.addFilter(not_open_clip)
    root.addHandler(silence)
    try:
        yield
    finally:
        root.removeFilter(not_open_clip)
        root.removeHandler(silence)


def _import_open_clip() -> Any:
    try:
        import_torchvision()
        with _quiet_root_logger():
            return importlib.import_module("open_clip")
    except ImportError as error:
        raise MissingExtra(
            f"this model runs on open_clip: pip install open_clip_torch ({hub.one_line(error)})"
        ) from error


def import_torchvision() -> None:
    """Imports torchvision even where its compiled half does not fit torch.

    Such pairs are common (a CPU torch beside a torchvision from another index). The import then ends
    with "operator torchvision::nms does not exist", though open_clip needs only the transforms. With
    the two schemas declared, everything but `torchvision.ops` and `torchvision.io` works.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, OSError) as error:
        _log.debug("torchvision does not fit torch (%s); declaring its operators", hub.one_line(error))
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declare_operators()
        try:
            importlib.import_module("torchvision")
        except (RuntimeError, OSError, AttributeError) as second:
            raise MissingExtra(
                "torch and torchvision do not fit each other; install them together: "
                f"pip install -U torch torchvision ({hub.one_line(second)})"
            ) from second


@functools.cache  # the declarations live as long as the object that made them
def _declare_operators() -> Any:
    torch = importlib.import_module("torch")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # declared already
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
