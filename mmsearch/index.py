"""The facade: one object that fills an index and searches it. The CLI is a thin layer over this.

Nothing heavy is imported before it is needed: a text query on a starter index loads neither torch nor faiss nor
sqlalchemy.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.retrieval.errors import IndexNotFound, MMSearchError, ModelMismatch, UsageError
from mmsearch.retrieval.types import Hit, IndexInfo, Report, Selection

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image

    from mmsearch.indexers.pipeline import AnySource, Observer
    from mmsearch.indexers.plan import RunEstimate
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store.local import LocalStore
    from mmsearch.retrieval.store.reader import Snapshot

ENVIRONMENT = "MMSEARCH_INDEX"
"""Environment variable that names the index folder when no path is given."""


def open(
    path: str | os.PathLike[str] | None = None,
    *,
    model: str = "auto",
    device: str | None = None,
    precision: str | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
    offline: bool = False,
) -> Index:
    """Opens an index for adding and searching; creates nothing on disk until the first `add` that finds files.

    Args:
        path: the index folder; by default $MMSEARCH_INDEX, else the index of this user.
        model: a preset (`mmsearch models` lists them) or a tag. `auto` keeps the model of an existing index; for a
            new one it takes the best preset whose files are here already and never downloads. A model named here
            is downloaded if it has to be.
        device: `cpu`, `cuda` or `mps`; chosen by default.
        precision: `fp32`, `bf16` or `fp16`; chosen by default.
        threads: how many threads decode, and how many the encoder computes with; chosen by default.
        batch_size: pictures per encoder call; chosen by default.
        offline: never touch the network.
    """
    return Index(
        path,
        model=model,
        device=device,
        precision=precision,
        threads=threads,
        batch_size=batch_size,
        offline=offline,
    )


class Index:
    """A corpus that can be added to and searched; see `open` for the arguments.

    Searching is safe from several threads, and each search sees what other processes have committed by then. One
    `add` at a time: a second one, here or in another process, raises IndexLocked.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        model: str = "auto",
        device: str | None = None,
        precision: str | None = None,
        threads: int | None = None,
        batch_size: int | None = None,
        offline: bool = False,
        confirm: Callable[[str, int], bool] | None = None,
        download: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """As `open`; with `confirm` (name, bytes), `auto` may download too, after asking.

        `download` is told (file, bytes so far, bytes in all).
        """
        for name, number in (("threads", threads), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise UsageError(f"{name} must be 1 or more, not {number}")
        self.path = _index_path(path)
        self._model = model
        self._device = device
        self._precision = precision
        self._threads = threads
        self._batch_size = batch_size
        self._offline = offline
        self._confirm = confirm
        self._download = download
        self._encoders: dict[tuple[str, bool], Encoder] = {}
        self._encoder_lock = threading.Lock()
        self._lease: _Lease | None = None
        self._lease_lock = threading.Lock()
        self._closed = False

    def add(
        self,
        *paths: str | os.PathLike[str],
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        prune: bool = False,
        retry: bool = False,
        progress: Observer | None = None,
    ) -> Report:
        """Brings the index up to date with folders, files and globs; without any, with all its roots.

        Only new and changed files are read. Files that a completed scan no longer finds leave the index, unless
        their root looks unmounted. After it returns, everything that the report counts is committed; Ctrl-C makes
        it return early with `Report.interrupted` set.

        Args:
            paths: what to scan; folders recursively.
            include: globs; only files that match one are looked at.
            exclude: globs of files and folders to leave out.
            prune: let files go even where their root looks unmounted.
            retry: read files again that failed before and have not changed.
            progress: called with `Progress` during the run.

        Raises:
            PathNotFound: a path does not exist; nothing was done.
            IndexNotFound: no paths, and no index yet.
            IndexLocked: another process is writing.
            ModelMismatch: the index was made by another model than the one named.
        """
        store = self._store()
        if store is None and not paths:
            raise IndexNotFound(f"there is no index at {self.path} yet; name a folder to index")
        sources = self._sources(store, paths, include, exclude)
        if store is None:
            if not _anything(sources):
                return self._nothing(sources)
            encoder = self._encoder(self._model)
            from mmsearch.retrieval.store.local import LocalStore

            store = LocalStore.create(
                self.path,
                model=encoder.name,
                identity=encoder.identity,
                dim=encoder.dim,
                max_tokens=encoder.max_tokens,
            )
            self._encoders[store.model, False] = encoder
        from mmsearch.indexers.pipeline import index_sources

        model = store.model
        return index_sources(
            sources,
            store,
            lambda: self._encoder(model),
            prune=prune,
            retry=retry,
            threads=self._threads,
            observer=progress,
        )

    def estimate(
        self, *paths: str | os.PathLike[str], include: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> RunEstimate:
        """What `add` would do and about how long it would take; changes nothing and downloads nothing."""
        from mmsearch.indexers.plan import estimate_run

        store = self._store()
        if store is None and not paths:
            raise IndexNotFound(f"there is no index at {self.path} yet; name a folder to index")
        sources = self._sources(store, paths, include, exclude)
        model = store.model if store is not None else self._model

        def encoder() -> Encoder | None:
            try:
                return self._encoder(model, offline=True)
            except MMSearchError:
                return None

        return estimate_run(sources, store, encoder)

    def search(
        self,
        query: str | None = None,
        *,
        image: str | os.PathLike[str] | bytes | Image.Image | None = None,
        vector: ArrayLike | None = None,
        k: int = 10,
        modality: Selection | None = None,
        include_self: bool = False,
    ) -> list[Hit]:
        """The k best hits for a text, a picture or a vector; exactly one of them.

        Args:
            query: literal text, in a language that the model reads.
            image: path, file content or Pillow image. Items of the same content are left out of the answer.
            vector: a vector of the index's embedding space.
            k: how many hits at most.
            modality: `image`, `text` or `all` (fused by rank); by default `image` if the index has images.
            include_self: keep items with the content of the query image.

        Raises:
            UsageError: the query cannot be meant (empty, k < 1, ...).
            IndexNotFound: there is no index at this path yet.
            ModelMismatch: the index was made by another model than the one named.
        """
        from mmsearch.retrieval.searcher import Searcher

        with self._snapshot() as snapshot:
            self._require_model(snapshot.model)
            searcher = Searcher(snapshot, lambda: self._encoder(snapshot.model))
            source = Path(image) if isinstance(image, os.PathLike) else image
            return searcher.search(
                query, image=source, vector=vector, k=k, modality=modality, include_self=include_self
            )

    def info(self) -> IndexInfo:
        """What the index holds now. Raises IndexNotFound if there is none."""
        with self._snapshot() as snapshot:
            return snapshot.info()

    def close(self) -> None:
        """Lets go of files; searches that are running finish. The object cannot be used afterwards."""
        with self._lease_lock:
            self._closed = True
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.retire()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"mmsearch.open({str(self.path)!r})"

    @contextmanager
    def _snapshot(self) -> Iterator[Snapshot]:
        """The newest generation, shared by all searches that see the same one."""
        from mmsearch.retrieval.store.reader import Snapshot

        with self._lease_lock:
            if self._closed:
                raise UsageError("this index is closed")
            lease = self._lease
            if lease is None or not lease.snapshot.is_current():
                fresh = _Lease(Snapshot.open(self.path))
                if lease is not None:
                    lease.retire()
                self._lease = lease = fresh
            lease.take()
        try:
            yield lease.snapshot
        finally:
            lease.give_back()

    def _store(self) -> LocalStore | None:
        """The index for writing, or None if there is none yet."""
        from mmsearch.retrieval.store.layout import is_index, refuse_network_filesystem, require_room_for_index
        from mmsearch.retrieval.store.local import LocalStore

        if self._closed:
            raise UsageError("this index is closed")
        if not is_index(self.path):
            require_room_for_index(self.path)
            refuse_network_filesystem(self.path)
            return None
        store = LocalStore.open(self.path)
        self._require_model(store.model)
        return store

    def _sources(
        self,
        store: LocalStore | None,
        paths: Sequence[str | os.PathLike[str]],
        include: Sequence[str],
        exclude: Sequence[str],
    ) -> list[AnySource]:
        from mmsearch.indexers.rescan import rescan_sources
        from mmsearch.indexers.sources import open_sources

        if store is not None and not paths:
            return rescan_sources(store, include=include, exclude=exclude)
        roots = store.info().roots if store is not None else ()
        return [
            *open_sources(
                [os.fspath(path) for path in paths],
                include,
                exclude,
                index_path=self.path,
                known_roots=[root.path for root in roots if root.whole],
                partial_roots=[root.path for root in roots if not root.whole],
            )
        ]

    def _nothing(self, sources: Sequence[AnySource]) -> Report:
        skipped: dict[str, int] = {}
        for source in sources:
            for extension, count in source.skipped.items():
                skipped[extension] = skipped.get(extension, 0) + count
        failed = tuple(failure for source in sources for failure in source.errors)
        return Report(skipped=skipped, failed=failed)

    def _require_model(self, of_index: str) -> None:
        """Raises ModelMismatch if another model was named than the index's."""
        if self._model in ("auto", of_index):
            return
        from mmsearch.retrieval.encoders.models import canonical_name

        if canonical_name(self._model) != canonical_name(of_index):
            raise ModelMismatch(
                f"the index at {self.path} was made by the model {of_index}, not {self._model}; "
                f"use another --index for {self._model}"
            )

    def _encoder(self, model: str, *, offline: bool = False) -> Encoder:
        with self._encoder_lock:
            if (model, offline) not in self._encoders:
                from mmsearch.retrieval.encoders.models import load_encoder

                self._encoders[model, offline] = load_encoder(
                    model,
                    device=self._device,
                    precision=self._precision,
                    threads=self._threads,
                    batch_size=self._batch_size,
                    offline=self._offline or offline,
                    confirm=self._confirm,
                    progress=self._download,
                )
            return self._encoders[model, offline]


class _Lease:
    """A snapshot that closes when it is retired and its last user has given it back."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._users = 1  # the index itself
        self._lock = threading.Lock()

    def take(self) -> None:
        with self._lock:
            self._users += 1

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.snapshot.close()

    retire = give_back


def _index_path(path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        path = os.environ.get(ENVIRONMENT) or None
    if path is None:
        from mmsearch.retrieval.store.layout import default_index_path

        return default_index_path()
    return Path(os.path.abspath(os.path.expanduser(path)))


def _anything(sources: Sequence[AnySource]) -> bool:
    return any(True for source in sources for _ in source.scan())
