"""From a reranker's name to a loaded one: the grammar of names, and what can be had.

Names are a preset (`starter-joint`, `minilm`, `blip-itm`), `local-dir:PATH` or `hf-hub:ORG/NAME`. Of the last two the
`config.json` says which adapter runs them. Anything else is refused with the nearest names. Importing this loads
nothing heavy.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmsearch.retrieval.encoders import cache
from mmsearch.retrieval.errors import MissingExtra, ModelUnavailable, UsageError
from mmsearch.retrieval.rerank.presets import RERANKERS, RerankerKind, RerankerPreset

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import hub
    from mmsearch.retrieval.encoders.models import State
    from mmsearch.retrieval.rerank import Reranker

FAKE = "fake"
"""Loads `FakeReranker`; for tests, so no list shows it."""

BUNDLED = "starter-joint"
"""The preset that needs no download."""

_ARCHITECTURES: tuple[tuple[str, RerankerKind], ...] = (
    ("BlipForImageTextRetrieval", "blip-itm"),
    ("ForSequenceClassification", "cross-encoder"),
)
"""How the name of the class in `config.json` ends, and the adapter for it."""

_PACKAGES: dict[RerankerKind, tuple[str, ...]] = {
    "blip-itm": ("torch", "transformers"),
    "cross-encoder": ("torch", "transformers", "sentence_transformers"),
    "starter-joint": ("onnxruntime",),
}


@dataclass(frozen=True, slots=True)
class RerankerName:
    """A name that has been understood.

    Attributes:
        name: its canonical form, which loads the same reranker from any working folder.
        kind: what it names.
        target: the preset's name, the repository or the absolute folder.
    """

    name: str
    kind: Literal["preset", "repo", "folder", "fake"]
    target: str


@dataclass(frozen=True, slots=True)
class RerankerStatus:
    """A reranker as `mmsearch models` shows it.

    Attributes:
        name: what to give as `--rerank`.
        state: whether it can be had here.
        why: for `unavailable`, what is in the way.
        repo, reads, languages, licence, download_bytes, summary: as in `RerankerPreset`.
        kind: tells it from an encoder.
    """

    name: str
    state: State
    why: str
    repo: str
    reads: str
    languages: tuple[str, ...]
    licence: str
    download_bytes: int
    summary: str
    kind: Literal["reranker"] = "reranker"


def parse_name(name: str) -> RerankerName:
    """Understands the name of a reranker without asking the network.

    Raises:
        UsageError: not a name; the message has the nearest ones and the fix.
    """
    if name == FAKE:
        return RerankerName(FAKE, "fake", FAKE)
    if name in RERANKERS:
        return RerankerName(name, "preset", name)
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "local-dir":
        if not rest:
            raise UsageError("`local-dir:` wants a folder: local-dir:PATH")
        folder = str(Path(rest).expanduser().absolute())
        return RerankerName(f"local-dir:{folder}", "folder", folder)
    if colon and scheme == "hf-hub":
        parts = rest.split("/")
        if len(parts) != 2 or not all(parts):
            raise UsageError(f"`{name}` is not a hub model: write hf-hub:ORG/NAME")
        return RerankerName(name, "repo", rest)
    raise UsageError(_refusal(name))


def _refusal(name: str) -> str:
    """Why `name` is no name of a reranker, and what to write instead."""
    for preset in RERANKERS.values():
        if name and name.lower() in (preset.name, preset.repo.lower()):
            return f"no reranker is called `{name}`; write {preset.name}"
    if name.startswith((".", "/", "~")) or (name and Path(name).is_dir()):
        return f"`{name}` looks like a folder: write local-dir:{name}"
    said = f"no reranker is called `{name}`"
    if name.count("/") == 1 and all(name.split("/")) and ":" not in name:
        return f"{said}; for a model on the hub write hf-hub:{name}"
    import difflib

    if near := difflib.get_close_matches(name.lower(), RERANKERS, n=3, cutoff=0.5):
        return f"{said}; the nearest names are {', '.join(near)}"
    return f"{said}; choose one of {', '.join(RERANKERS)}, hf-hub:ORG/NAME, local-dir:PATH"


def load_reranker(
    name: str,
    *,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    offline: bool = False,
    confirm: hub.Confirm | None = None,
    progress: hub.Progress | None = None,
) -> Reranker:
    """Loads a reranker by name, downloading it if it is not here.

    Args:
        name: see the module.
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None takes the best that is here.
        precision: `fp32`, `bf16` or `fp16`; None takes fp16 on CUDA, else fp32.
        threads: processor threads, a setting of the whole process; None leaves it as it is.
        offline: never ask the network; `HF_HUB_OFFLINE` in the environment does the same.
        confirm: asked with (name, bytes) before more than 200 MB are downloaded; None downloads without asking.
        progress: told (file, bytes so far, bytes in all) during downloads.

    Raises:
        UsageError: not a name, device or precision.
        ModelUnavailable: it cannot be had, or is no reranker.
        MissingExtra: a package that it needs is not installed.
    """
    model = parse_name(name)
    if model.kind == "fake":
        from mmsearch.retrieval.rerank.fake import FakeReranker

        return FakeReranker()
    if model.target == BUNDLED:
        from mmsearch.retrieval.rerank.starter_joint import StarterJointReranker

        return StarterJointReranker(threads)
    if model.kind == "folder":
        folder = Path(model.target)
        kind = _kind(folder)
    else:
        from mmsearch.retrieval.encoders import hub

        access = hub.Hub(offline=offline, progress=progress, confirm=confirm)
        preset = RERANKERS.get(model.target) if model.kind == "preset" else None
        repo = preset.repo if preset else model.target
        kind = preset.kind if preset else _kind(access.config(repo))
        require_packages(kind)  # before a download for nothing
        folder = access.transformers(repo, preprocess=kind == "blip-itm")
    require_packages(kind)
    if kind == "blip-itm":
        from mmsearch.retrieval.rerank.blip import BlipReranker

        return BlipReranker(model.name, folder, device=device, precision=precision, threads=threads)
    from mmsearch.retrieval.rerank.cross_encoder import CrossEncoderReranker

    return CrossEncoderReranker(model.name, folder, device=device, precision=precision, threads=threads)


def list_rerankers(*, offline: bool = False, refresh: bool = False) -> list[RerankerStatus]:
    """Every preset. Asks the network for at most 5 s, and only if one is not cached.

    Args:
        offline: do not ask.
        refresh: ask a hub that was found unreachable today again.
    """
    cached = {preset.name for preset in RERANKERS.values() if _cached(preset)}
    why = ""
    if len(cached) < len(RERANKERS):
        from mmsearch.retrieval.encoders import hub

        if offline or hub.offline():
            why = "offline"
        elif not hub.reachable(refresh=refresh):
            why = f"{hub.endpoint()} cannot be reached"
    found = []
    for preset in RERANKERS.values():
        missing = _missing(preset.kind)
        obstacle = f"{missing} is not installed" if missing else "" if preset.name in cached else why
        here: State = "bundled" if preset.name == BUNDLED else "cached"
        found.append(
            RerankerStatus(
                name=preset.name,
                state="unavailable" if obstacle else here if preset.name in cached else "downloadable",
                why=obstacle,
                repo=preset.repo,
                reads=preset.reads,
                languages=preset.languages,
                licence=preset.licence,
                download_bytes=preset.download_bytes,
                summary=preset.summary,
            )
        )
    return found


def require_packages(kind: RerankerKind) -> None:
    """Raises MissingExtra where a package that a kind of reranker needs is not installed."""
    if missing := _missing(kind):
        raise MissingExtra(f"this reranker needs {missing}: pip install 'mmsearch[rerank]'")


def _missing(kind: RerankerKind) -> str | None:
    return next((name for name in _PACKAGES[kind] if importlib.util.find_spec(name) is None), None)


def _kind(folder: Path) -> RerankerKind:
    """Which adapter runs a model of transformers.

    Raises:
        ModelUnavailable: none does, or there is no such folder.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classes = [str(name) for name in config.get("architectures") or ()]
    except FileNotFoundError as error:
        raise ModelUnavailable(f"{folder} holds no reranker: it has no config.json") from error
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ModelUnavailable(f"{folder / 'config.json'} cannot be read: {error}") from error
    for ending, kind in _ARCHITECTURES:
        if classes and classes[0].endswith(ending):
            return kind
    found = classes[0] if classes else "a model that does not name its class"
    raise ModelUnavailable(
        f"{folder} holds {found}, and rerankers are BlipForImageTextRetrieval or ...ForSequenceClassification with one "
        f"label, such as {' and '.join(preset.repo for preset in RERANKERS.values() if preset.repo)}"
    )


def _cached(preset: RerankerPreset) -> bool:
    """Whether all files of a preset are here: bundled, or in the hub's cache."""
    if preset.name == BUNDLED:
        return True
    folder = cache.snapshot_folder(preset.repo)
    return folder is not None and cache.has_transformers(folder, preprocess=preset.kind == "blip-itm")
