"""From a model's name to a loaded encoder: the grammar of names, what `auto` means, what can be had.

Names are, in this order: `auto`; a preset (`starter`, `fast`, `balanced`, `best`); `local-dir:PATH`;
`hf-hub:ORG/NAME`; open_clip's `ARCH/PRETRAINED`. Anything else is refused with the nearest names.
Importing this module loads no numpy, torch or hub library.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmsearch.retrieval.encoders import cache
from mmsearch.retrieval.encoders.presets import AUTO, AUTO_PRESET, PRESETS, STARTER, Preset
from mmsearch.retrieval.errors import MMSearchError, ModelUnavailable, UsageError

if TYPE_CHECKING:  # a query with the bundled model needs nothing of the network
    from mmsearch.retrieval.encoders import Encoder, hub

_log = logging.getLogger(__name__)

FAKE = "fake"
"""Loads `FakeEncoder`; for tests, so no list shows it."""

FAKE_TOKENS = "fake-tokens"
"""The same with tokens of pictures."""
_FAKE_SHAPE = (4, 8)

State = Literal["bundled", "cached", "downloadable", "unavailable"]


@dataclass(frozen=True, slots=True)
class ModelName:
    """A name that has been understood.

    Attributes:
        name: its canonical form, which loads the same model from any working folder.
        kind: what it names.
        target: the preset's name, the `ARCH/PRETRAINED` tag, the repository or the absolute folder.
    """

    name: str
    kind: Literal["preset", "tag", "repo", "folder", "fake"]
    target: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What a name stands for here and now.

    Attributes:
        name: a model name that is not `auto`.
        notice: one line for the user when `auto` took less than it could have; else None.
        confirmed: the user has agreed to the download already.
    """

    name: str
    notice: str | None = None
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model as `mmsearch models` shows it.

    Attributes:
        name: what to give as `--model`.
        tag: open_clip's `ARCH/PRETRAINED`, where there is one.
        state: whether it can be had here.
        why: for `unavailable`, what is in the way.
        default: whether `auto` takes it (after asking, if it is to be downloaded).
        summary, languages, licence, download_bytes, dim, coco, flickr30k, source: as in `Preset`.
        kind: tells it from a reranker.
    """

    name: str
    tag: str | None
    state: State
    why: str
    default: bool
    summary: str
    languages: tuple[str, ...]
    licence: str
    download_bytes: int | None
    dim: int | None
    coco: float | None
    flickr30k: float | None
    source: str
    kind: Literal["encoder"] = "encoder"


def parse_name(name: str) -> ModelName:
    """Understands a model name without asking the network. `auto` is `resolve`'s business.

    Raises:
        UsageError: not a model name; the message has the nearest ones and the fix.
    """
    if name in (FAKE, FAKE_TOKENS):
        return ModelName(name, "fake", name)
    if name in PRESETS:
        return ModelName(name, "preset", name)
    scheme, colon, rest = name.partition(":")
    if colon and scheme == "local-dir":
        if not rest:
            raise UsageError("`local-dir:` wants a folder: local-dir:PATH")
        folder = str(Path(rest).expanduser().absolute())
        return ModelName(f"local-dir:{folder}", "folder", folder)
    if colon and scheme == "hf-hub":
        parts = rest.split("/")
        if len(parts) != 2 or not all(parts):
            raise UsageError(f"`{name}` is not a hub model: write hf-hub:ORG/NAME")
        return ModelName(name, "repo", rest)
    architectures = _architectures()
    arch, slash, pretrained = name.partition("/")
    if arch in architectures and slash and pretrained and "/" not in pretrained:
        return ModelName(name, "tag", name)
    raise UsageError(_refusal(name, architectures))


def canonical_name(name: str) -> str:
    """One spelling per model: the preset's name for its tag, absolute folders; `auto` stays itself.

    Raises:
        UsageError: not a model name.
    """
    if name == AUTO:
        return name
    found = parse_name(name).name
    return next((preset.name for preset in PRESETS.values() if preset.tag == found), found)


def _refusal(name: str, architectures: list[str]) -> str:
    """Why `name` is no model name, and what to write instead."""
    arch, slash, _ = name.partition("/")
    if arch in architectures and not name.count("/") > 1:
        tags = _tags(arch)
        if tags:
            several = ", ".join(f"{arch}/{tag}" for tag in tags[:6]) + (", ..." if len(tags) > 6 else "")
            return f"`{name}` does not say which weights; choose one of {several}"
    if name.startswith((".", "/", "~")) or (name and Path(name).is_dir()):
        return f"`{name}` looks like a folder: write local-dir:{name}"
    known = {known.lower(): known for known in (AUTO, *PRESETS, *architectures)}
    if arch.lower() in known:
        return f"no model is called `{name}`; write {known[arch.lower()]}{name[len(arch) :]}"
    import difflib

    near = [known[key] for key in difflib.get_close_matches(arch.lower(), known, n=3, cutoff=0.5)]
    said = f"no model is called `{name}`"
    if near:
        said += "; the nearest names are " + ", ".join(
            found if found in PRESETS or found == AUTO else f"{found}/PRETRAINED" for found in near
        )
    if slash and name.count("/") == 1:
        said += f"; for a model on the hub write hf-hub:{name}"
    elif not near:
        said += f"; choose one of {', '.join(PRESETS)}, ARCH/PRETRAINED, hf-hub:ORG/NAME, local-dir:PATH"
    return said


def resolve(
    name: str = AUTO, *, offline: bool = False, confirm: hub.Confirm | None = None, refresh: bool = False
) -> Choice:
    """What `name` stands for here. Only `auto` can mean different things.

    `auto` is `balanced` where it is cached. Otherwise, given `confirm`, and a hub that answers within
    5 s, the user is asked; without any of these it is the bundled `starter`.

    Args:
        name: see the module.
        offline: never ask the network.
        confirm: asked about the download; None (no terminal, or Python) never downloads for `auto`.
        refresh: ask the hub again even if it was found unreachable today.

    Raises:
        UsageError: not a model name.
    """
    if name != AUTO:
        return Choice(parse_name(name).name)
    best = AUTO_PRESET
    if not _torch_is_here():
        return Choice(STARTER.name, f"using `starter`: `{best.name}` needs open_clip_torch")
    if _cached(best):
        return Choice(best.name)
    from mmsearch.retrieval.encoders import hub

    size = hub.megabytes(best.download_bytes)
    if offline or hub.offline():
        return Choice(STARTER.name, f"using `starter`: `{best.name}` is not here (offline)")
    if confirm is None:
        how = f"`--model {best.name}` downloads the better one ({size})"
        return Choice(STARTER.name, f"using the bundled `starter`; {how}")
    if not hub.reachable(refresh=refresh):
        how = "`mmsearch models --refresh` asks again"
        return Choice(STARTER.name, f"using `starter`: {hub.endpoint()} cannot be reached; {how}")
    if not confirm(best.name, best.download_bytes):
        return Choice(STARTER.name, f"using `starter`; `--model {best.name}` downloads the better one")
    return Choice(best.name, confirmed=True)


def load_encoder(
    name: str = AUTO,
    *,
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    offline: bool = False,
    confirm: hub.Confirm | None = None,
    progress: hub.Progress | None = None,
    refresh: bool = False,
) -> Encoder:
    """Loads a model by name, downloading it if it is named and not here.

    Args:
        name: see the module; `auto` as `resolve` explains.
        device: `cpu`, `cuda`, `cuda:N` or `mps`; None takes the best that is here.
        precision: `fp32`, `bf16` or `fp16`; None takes fp16 on CUDA, else fp32.
        threads: processor threads; None takes what the process may use.
        batch_size: images per call; None suits the device.
        offline: never ask the network; `HF_HUB_OFFLINE` in the environment does the same.
        confirm: asked with (name, bytes) before more than 200 MB are downloaded. None: a named model
            is downloaded without asking, and `auto` downloads nothing.
        progress: told (file, bytes so far, bytes in all) during downloads.
        refresh: ask a hub that was found unreachable today again.

    Raises:
        UsageError: not a model name, device or precision.
        ModelUnavailable: the model cannot be had; the message lists what can.
        MissingExtra: a package that the model needs is not installed.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"the batch size must be at least 1, not {batch_size}")
    choice = resolve(name, offline=offline, confirm=confirm, refresh=refresh)
    if choice.notice:
        _log.info("%s", choice.notice)
    options = _Options(device, precision, threads, batch_size)
    model = parse_name(choice.name)
    local = _load_local(model, options)
    if local is not None:
        return local
    from mmsearch.retrieval.encoders import hub

    asked = None if choice.confirmed else confirm
    try:
        return _load(model, hub.Hub(offline=offline, progress=progress, confirm=asked), options)
    except ModelUnavailable as error:
        starter = _load_local(parse_name(STARTER.name), options) if name == AUTO else None
        if starter is not None:
            _log.warning("using `starter`: %s", error)
            return starter
        raise ModelUnavailable(f"{error}. {_at_hand()}") from error


def token_identity(name: str) -> str | None:
    """The `token_identity` of the encoder of this name, without loading it; None where it makes no tokens.

    An index run asks for it, to see whether pictures lack tokens, and loads the model only if some do.
    """
    if name == FAKE_TOKENS:
        from mmsearch.retrieval.encoders.fake import FakeEncoder

        return FakeEncoder(name, tokens=_FAKE_SHAPE).token_identity
    if name == STARTER.name:
        from mmsearch.retrieval.encoders.starter import joint

        return joint.token_identity()
    return None


@dataclass(frozen=True, slots=True)
class _Options:
    device: str | None
    precision: str | None
    threads: int | None
    batch_size: int | None


def _load_local(model: ModelName, options: _Options) -> Encoder | None:
    """The encoders that need neither torch nor files from elsewhere; None for all others."""
    encoder: Encoder
    if model.kind == "fake":
        from mmsearch.retrieval.encoders.fake import FakeEncoder

        shape = _FAKE_SHAPE if model.name == FAKE_TOKENS else None
        return FakeEncoder(model.name, batch_size=options.batch_size or 8, tokens=shape)
    if model.kind != "preset" or not PRESETS[model.target].bundled:
        return None
    from mmsearch.retrieval.encoders.starter import StarterEncoder

    if options.device not in (None, "cpu") or options.precision not in (None, "fp32"):
        _log.warning("`starter` runs on the processor in fp32; --device and --precision do nothing")
    encoder = StarterEncoder(threads=options.threads)
    if options.batch_size:
        encoder.batch_size = options.batch_size
    return encoder


def _load(model: ModelName, access: hub.Hub, options: _Options) -> Encoder:
    preset = PRESETS[model.target] if model.kind == "preset" else None
    from mmsearch.retrieval.encoders import open_clip

    if model.kind == "folder":
        files = open_clip.files_in_folder(Path(model.target))
    elif model.kind == "repo":
        files = open_clip.files_of_repo(model.target, access)
    else:
        files = open_clip.files_of_tag((preset and preset.tag) or model.target, access)
    if preset:
        files = replace(files, languages=preset.languages)
    return open_clip.OpenClipEncoder(
        model.name,
        files,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        batch_size=options.batch_size,
    )


def list_models(*, offline: bool = False, refresh: bool = False) -> list[ModelStatus]:
    """Every preset, then the other open_clip models of the hub's cache.

    Asks the network for at most 5 s, and only if a preset is not cached.

    Args:
        offline: do not ask.
        refresh: ask a hub that was found unreachable today again.
    """
    from mmsearch.retrieval.encoders import hub

    torch_is_here = _torch_is_here()
    cached = {preset.name for preset in PRESETS.values() if not preset.bundled and _cached(preset)}
    why = ""
    if not torch_is_here:
        why = "open_clip_torch is not installed"
    elif offline or hub.offline():
        why = "offline"
    elif len(cached) < len(PRESETS) - 1 and not hub.reachable(refresh=refresh):
        why = f"{hub.endpoint()} cannot be reached"
    found = []
    for preset in PRESETS.values():
        state: State
        if preset.bundled:
            state = "bundled"
        elif torch_is_here and preset.name in cached:
            state = "cached"
        else:
            state = "unavailable" if why else "downloadable"
        found.append(
            ModelStatus(
                name=preset.name,
                tag=preset.tag,
                state=state,
                why=why if state == "unavailable" else "",
                default=False,
                summary=preset.summary,
                languages=preset.languages,
                licence=preset.licence,
                download_bytes=preset.download_bytes,
                dim=preset.dim,
                coco=preset.coco,
                flickr30k=preset.flickr30k,
                source=preset.source,
            )
        )
    usable = {status.name for status in found if status.state in ("cached", "downloadable")}
    default = AUTO_PRESET.name if AUTO_PRESET.name in usable else STARTER.name
    found = [replace(status, default=status.name == default) for status in found]
    known = {preset.repo for preset in PRESETS.values()}
    if torch_is_here:
        found += [_cached_status(repo) for repo in cache.cached_repos() if repo not in known]
    return found


def _cached_status(repo: str) -> ModelStatus:
    return ModelStatus(
        name=f"hf-hub:{repo}",
        tag=None,
        state="cached",
        why="",
        default=False,
        summary="",
        languages=(),
        licence="",
        download_bytes=None,
        dim=None,
        coco=None,
        flickr30k=None,
        source="",
    )


def _at_hand() -> str:
    """What can be had without the network, as a sentence."""
    names = [STARTER.name]
    if _torch_is_here():
        names += [preset.name for preset in PRESETS.values() if not preset.bundled and _cached(preset)]
        known = {preset.repo for preset in PRESETS.values()}
        names += [f"hf-hub:{repo}" for repo in cache.cached_repos() if repo not in known]
    return f"Models that can be had here: {', '.join(names)}"


def _cached(preset: Preset) -> bool:
    """Whether all files of a preset are in the hub's cache."""
    folder = cache.snapshot_folder(preset.repo or "")
    if folder is None or cache.weights_file(folder) is None:
        return False
    arch = (preset.tag or "").partition("/")[0]
    tokenizer = _architecture(arch).get("text_cfg", {}).get("hf_tokenizer_name")
    if not tokenizer:
        return True
    other = cache.snapshot_folder(str(tokenizer))
    return other is not None and cache.has_tokenizer(other)


def _torch_is_here() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "open_clip"))


def _configs() -> Path | None:
    """open_clip's folder of architectures, found without importing it."""
    spec = importlib.util.find_spec("open_clip")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) / "model_configs" if places else None


def _architectures() -> list[str]:
    folder = _configs()
    return sorted(path.stem for path in folder.glob("*.json")) if folder else []


def _architecture(arch: str) -> dict[str, dict[str, object]]:
    folder = _configs()
    try:
        config = json.loads((folder / f"{arch}.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _tags(arch: str) -> list[str]:
    """The pretrained weights of an architecture; imports open_clip."""
    try:
        from mmsearch.retrieval.encoders import open_clip

        return open_clip.pretrained_tags(arch)
    except MMSearchError:
        return []
