"""Model files from a Hugging Face hub: is it there, and downloads that resume.

What is cached is used without asking the network. A download goes to `blobs/ETAG.mmsearch-part` in the
hub's own cache, continues there after any interruption (also in a later process), is checked against
the hub's size and hash, and only then renamed into place, where other tools find it too.

Everything here reads the environment when it is called, imports `huggingface_hub` only to download, and
asks the network only where a docstring says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from mmsearch.retrieval.encoders.cache import (
    CONFIG,
    PREPROCESSOR,
    TOKENIZER,
    TOKENIZER_TABLES,
    TRANSFORMERS_WEIGHTS,
    cache_folder,
    has_tokenizer,
    has_transformers,
    pick_weights,
    read_notes,
    snapshot_folder,
    write_notes,
)
from mmsearch.retrieval.errors import MissingExtra, ModelUnavailable

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called during a download with (file name, bytes here so far, bytes in all)."""

Confirm = Callable[[str, int], bool]
"""Asked with (repository, bytes to download) before a large download; False refuses it."""

ASK_ABOVE = 200_000_000
"""Downloads of more bytes than this are confirmed first."""

_DEFAULT_ENDPOINT = "https://huggingface.co"
_REMEMBER_SECONDS = 24 * 3600
_PROBE_SECONDS = 4.5  # in all; users are promised an answer within 5 s
_STALL_SECONDS = 20.0
_RETRIES = 5
_BLOCK = 1 << 20


def endpoint() -> str:
    """The hub's address: `HF_ENDPOINT`, or the public one."""
    return (os.environ.get("HF_ENDPOINT") or _DEFAULT_ENDPOINT).rstrip("/")


def offline() -> bool:
    """Whether the environment forbids the network (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`)."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


# -- is the hub there? ------------------------------------------------------------------------------


def reachable(*, refresh: bool = False) -> bool:
    """Whether the hub answers. Asks the network for at most 5 s; a "no" is remembered for a day.

    Args:
        refresh: ask again, whatever is remembered.
    """
    if offline():
        return False
    address = endpoint()
    notes = read_notes("hub.json")
    since = notes.get(address)
    if not refresh and isinstance(since, int | float) and 0 <= time.time() - since < _REMEMBER_SECONDS:
        _log.debug("%s could not be reached earlier today; `mmsearch models --refresh` asks again", address)
        return False
    answer = _answers(address)
    if answer:
        changed = notes.pop(address, None) is not None
    else:
        changed = True
        notes[address] = time.time()
        _log.info("%s cannot be reached; remembered for a day", address)
    if changed:
        write_notes("hub.json", notes)
    return answer


def _answers(address: str) -> bool:
    """Probes in a thread of its own, because a name look-up has no time limit."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_probe(address)), daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return bool(answers and answers[0])


def _probe(address: str) -> bool:
    url = f"{address}/api/models?limit=1"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mmsearch"})
        with urllib.request.urlopen(request, timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500 and error.code not in {403, 407, 451}  # those come from a wall, not a hub
    except (OSError, ValueError):
        return False


# -- downloads --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hub:
    """Access to model files: the cache first, then the network unless `offline`.

    Attributes:
        offline: never ask the network.
        progress: told about downloads; None for silence.
        confirm: asked before more than `ASK_ABOVE` bytes are downloaded; None goes ahead.
    """

    offline: bool = False
    progress: Progress | None = None
    confirm: Confirm | None = None

    def model(self, repo: str, *, config: bool, weights: str | None = None) -> tuple[Path, Path]:
        """A repository's folder and weights in the cache, downloaded if they are not there.

        Args:
            repo: `org/name`.
            config: whether `open_clip_config.json` is needed too.
            weights: the weights' file name, or that of its safetensors twin; None lets the
                repository's files decide.

        Raises:
            ModelUnavailable: the files are neither cached nor to be had.
        """
        folder = snapshot_folder(repo)
        if folder and (not config or (folder / CONFIG).is_file()):
            cached = pick_weights((path.name for path in folder.iterdir() if path.is_file()), weights)
            if cached:
                return folder, folder / cached
        names = self._names(repo)
        chosen = pick_weights(names, weights)
        if chosen is None:
            raise ModelUnavailable(f"{repo} on {endpoint()} holds no open_clip weights")
        if config and CONFIG not in names:
            raise ModelUnavailable(f"{repo} on {endpoint()} is no open_clip model: it has no {CONFIG}")
        small = [name for name in names if name == CONFIG or name in TOKENIZER]
        folder = self._download(repo, [*small, chosen])  # the weights last: where they are, all is
        return folder, folder / chosen

    def tokenizer(self, repo: str, *, config: bool = False) -> Path:
        """A folder with a repository's tokenizer, downloaded if not cached.

        Args:
            repo: `org/name`.
            config: whether its `config.json` (the architecture of a text tower) is needed too.

        Raises:
            ModelUnavailable: the files are neither cached nor to be had.
        """
        folder = snapshot_folder(repo)
        if folder and has_tokenizer(folder) and (not config or (folder / "config.json").is_file()):
            return folder
        names = [name for name in self._names(repo) if name in TOKENIZER]
        if not TOKENIZER_TABLES.intersection(names):
            raise ModelUnavailable(f"{repo} on {endpoint()} holds no tokenizer")
        return self._download(repo, names)

    def transformers(self, repo: str, *, preprocess: bool) -> Path:
        """The folder of a model of transformers, downloaded if not cached: config.json, tokenizer, weights in one file.

        Args:
            repo: `org/name`.
            preprocess: whether its `preprocessor_config.json` is needed too.

        Raises:
            ModelUnavailable: the files are neither cached nor to be had.
        """
        small = ["config.json", *([PREPROCESSOR] if preprocess else [])]
        folder = snapshot_folder(repo)
        if folder and has_transformers(folder, preprocess=preprocess):
            return folder
        names = self._names(repo)
        weights = next((name for name in TRANSFORMERS_WEIGHTS if name in names), None)
        if weights is None or not TOKENIZER_TABLES.intersection(names) or not set(small) <= set(names):
            wanted = ", ".join((*small, "a tokenizer", " or ".join(TRANSFORMERS_WEIGHTS)))
            raise ModelUnavailable(f"{repo} on {endpoint()} is no model that can be used here: it wants {wanted}")
        tables = [name for name in names if name in TOKENIZER and name not in small]
        return self._download(repo, [*small, *tables, weights])  # the weights last: where they are, all is

    def config(self, repo: str) -> Path:
        """A folder with the `config.json` of a repository, downloaded if not cached.

        Raises:
            ModelUnavailable: the file is neither cached nor to be had.
        """
        folder = snapshot_folder(repo)
        if folder and (folder / "config.json").is_file():
            return folder
        if "config.json" not in self._names(repo):
            raise ModelUnavailable(f"{repo} on {endpoint()} is no model of transformers: it has no config.json")
        return self._download(repo, ["config.json"])

    def _names(self, repo: str) -> list[str]:
        """The repository's files, from the network."""
        if self.offline or offline():
            raise ModelUnavailable(f"{repo} is not cached, and the network is not to be used (offline)")
        if not reachable(refresh=True):
            raise ModelUnavailable(f"{repo} is not cached, and {endpoint()} cannot be reached")
        with _hub_errors(repo):
            from huggingface_hub import HfApi

            info = HfApi(endpoint=endpoint()).model_info(repo, timeout=10.0)
            return sorted(sibling.rfilename for sibling in info.siblings or ())

    def _download(self, repo: str, names: Sequence[str]) -> Path:
        with _hub_errors(repo):
            return _Download(repo, self.progress).run(names, self.confirm)


class _Download:
    """One repository's files into the cache.

    The cache's layout stays huggingface_hub's business: this fetches blobs (huggingface_hub throws a
    broken download away when its process ends), and `hf_hub_download`, which finds them there, makes
    refs and links.
    """

    def __init__(self, repo: str, progress: Progress | None) -> None:
        self._repo = repo
        self._progress = progress
        self._endpoint = endpoint()
        self._cache = cache_folder()
        self._blobs = self._cache / f"models--{repo.replace('/', '--')}" / "blobs"

    def run(self, names: Sequence[str], confirm: Confirm | None) -> Path:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

        plan = []
        for name in names:
            url = hf_hub_url(self._repo, name, endpoint=self._endpoint)
            found = get_hf_file_metadata(url, timeout=10.0)
            if found.etag is None or found.commit_hash is None:
                raise ModelUnavailable(f"{self._endpoint} does not answer like a model hub ({name})")
            plan.append((name, found.location or url, found.etag, found.size))
        missing = sum((size or 0) - self._have(etag) for _, _, etag, size in plan if not (self._blobs / etag).exists())
        if missing > ASK_ABOVE and confirm is not None and not confirm(self._repo, missing):
            raise ModelUnavailable(f"the download of {self._repo} ({megabytes(missing)}) was declined")
        path = ""
        for name, url, etag, size in plan:
            self._fetch(name, url, etag, size)
            path = hf_hub_download(self._repo, name, cache_dir=self._cache, endpoint=self._endpoint)
        return Path(path).parent

    def _have(self, etag: str) -> int:
        try:
            return self._part(etag).stat().st_size
        except OSError:
            return 0

    def _part(self, etag: str) -> Path:
        return self._blobs / f"{etag}.mmsearch-part"

    def _fetch(self, name: str, url: str, etag: str, size: int | None) -> None:
        """One blob, under a lock of its own; leaves the part file where it stopped."""
        blob = self._blobs / etag
        locks = self._cache / ".locks" / self._blobs.parent.name
        self._blobs.mkdir(parents=True, exist_ok=True)
        locks.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock

        with FileLock(locks / f"{etag}.mmsearch.lock"):
            if blob.exists():
                return
            with open(self._part(etag), "ab") as part:
                for attempt in range(_RETRIES + 1):
                    before = part.tell()
                    try:
                        size = self._stream(name, url, part, size)
                        break
                    except (OSError, EOFError, http.client.HTTPException) as error:
                        fatal = isinstance(error, urllib.error.HTTPError) and error.code < 500
                        if fatal or attempt == _RETRIES:
                            raise
                        _log.info("%s: %s at byte %d; continuing", name, one_line(error), part.tell())
                        if part.tell() == before:
                            time.sleep(min(0.5 * 2**attempt, 8.0))
                part.flush()
                os.fsync(part.fileno())
            if not _matches(self._part(etag), etag):
                self._part(etag).unlink()
                raise ModelUnavailable(f"{name} of {self._repo} arrived damaged; try again")
            os.replace(self._part(etag), blob)

    def _stream(self, name: str, url: str, part: BinaryIO, size: int | None) -> int:
        """Appends what is missing; returns the full size. Raises EOFError if the answer ends early."""
        have = part.tell()
        if size is not None and have > size:
            have = part.truncate(0)
            part.seek(0)
        if size is not None and have == size:
            return size
        request = urllib.request.Request(url, headers={"User-Agent": "mmsearch", "Accept-Encoding": "identity"})
        if urlsplit(url).netloc == urlsplit(self._endpoint).netloc and (token := _token()):
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        if have:
            request.add_header("Range", f"bytes={have}-")
        with urllib.request.urlopen(request, timeout=_STALL_SECONDS) as answer:
            if have and answer.status != 206:  # the server starts over, so do we
                have = part.truncate(0)
                part.seek(0)
            length = answer.headers.get("Content-Length")
            total = size if size is not None else have + int(length or 0)
            while block := answer.read1(_BLOCK):
                part.write(block)
                have += len(block)
                if self._progress:
                    self._progress(name, have, total)
        if have < total:
            raise EOFError(f"the connection ended at {have} of {total} bytes")
        return have


def _matches(path: Path, etag: str) -> bool:
    """Whether a file is what its etag says: git's hash for small files, SHA-256 for large ones."""
    if len(etag) == 64:
        digest: Any = hashlib.sha256()
    elif len(etag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True  # a mirror with etags of its own: only the size was checked
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return bool(digest.hexdigest() == etag)


def megabytes(count: int) -> str:
    """A size as people read it: `606 MB`, `1.5 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, round(count / 1e6))} MB"


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


@contextlib.contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Whatever goes wrong between us and a hub, as a ModelUnavailable of one line."""
    try:
        yield
    except ModelUnavailable:
        raise
    except ImportError as error:
        raise MissingExtra(f"to download models: pip install huggingface_hub ({error})") from error
    except urllib.error.HTTPError as error:
        error.close()
        raise ModelUnavailable(f"{repo}: {endpoint()} answered {error.code} {error.reason}") from error
    except Exception as error:
        names = {cls.__name__ for cls in type(error).__mro__}
        if "RepositoryNotFoundError" in names:
            said = "there is no such model, or it needs a login (`hf auth login`)"
        elif isinstance(error, OSError | EOFError | ValueError | http.client.HTTPException) or (
            # the HTTP client's own errors, whichever client huggingface_hub happens to use
            type(error).__module__.split(".")[0] in {"huggingface_hub", "httpx", "httpx2", "requests"}
        ):
            said = one_line(error)
        else:
            raise
        raise ModelUnavailable(f"{repo} cannot be had from {endpoint()}: {said}") from error


def one_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
