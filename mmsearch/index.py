"""The facade: one object that fills an index and searches it. The CLI is a thin layer over this.

Nothing heavy is imported before it is needed: a text query on a starter index loads neither torch nor faiss nor
sqlalchemy.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from mmsearch.additions import batches, joined, sorted_out
from mmsearch.encoders import VECTORS, Encoders
from mmsearch.lease import Lease
from mmsearch.rerankers import Rerankers
from mmsearch.retrieval.errors import IndexNotFound, MMSearchError, ModelMismatch, UsageError
from mmsearch.retrieval.options import DEPTH
from mmsearch.retrieval.types import (
    Answer,
    DuplicateReport,
    Failure,
    FusionMethod,
    GroupBy,
    IndexInfo,
    ItemInfo,
    Modality,
    Mode,
    ReindexReport,
    Report,
    Selection,
    SortBy,
    TagCount,
    TagReport,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image

    from mmsearch.indexers.manifests import Columns
    from mmsearch.indexers.pipeline import AnySource, Observer, RunOptions
    from mmsearch.indexers.plan import RunEstimate
    from mmsearch.indexers.rows import BadRow, Item, Row
    from mmsearch.indexers.rowsources import RowsSource
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.explain import HeatMap
    from mmsearch.retrieval.query import Query
    from mmsearch.retrieval.rerank import Reranker
    from mmsearch.retrieval.store.doctor import Diagnosis
    from mmsearch.retrieval.store.local import LocalStore
    from mmsearch.retrieval.store.reader import Snapshot

_log = logging.getLogger(__name__)

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
        self._threads = threads
        self._encoders = Encoders(
            device=device,
            precision=precision,
            threads=threads,
            batch_size=batch_size,
            offline=offline,
            confirm=confirm,
            progress=download,
        )
        self._rerankers = Rerankers(
            device=device,
            precision=precision,
            threads=threads,
            offline=offline,
            confirm=confirm,
            progress=download,
        )
        self._lease: Lease | None = None
        self._lease_lock = threading.Lock()
        self._closed = False

    def add(
        self,
        *sources: str | os.PathLike[str] | Iterable[Item | Mapping[str, object]],
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        prune: bool = False,
        retry: bool = False,
        text_column: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
        skip_missing: bool = False,
        progress: Observer | None = None,
    ) -> Report:
        """Brings the index up to date with folders, files, globs and manifests; without any, with all its roots.

        Only new and changed files are read. Files that a completed scan no longer finds leave the index, unless
        their root looks unmounted. After it returns, everything that the report counts is committed; Ctrl-C makes
        it return early with `Report.interrupted` set.

        An iterable of items (`mmsearch.Item`, or dicts like it) is added too, a batch at a time. Items have ids: one
        that is given again replaces what was there, and each stays until `remove(ids=...)`.

        Args:
            sources: what to scan, folders recursively; or items.
            include: globs; only files that match one are looked at.
            exclude: globs of files and folders to leave out.
            prune: let files go even where their root looks unmounted.
            retry: read files again that failed before and have not changed.
            text_column: of manifests; by default `text`, `caption` or `captions`.
            image_column: of manifests, with paths; by default `image`, `path` or `file_name`.
            id_column: of manifests; by default `id`.
            skip_missing: for long lists: paths that do not exist or cannot be used are reported as failed, instead
                of raising, and what was taken out of the index stays out.
            progress: called with `Progress` during the run.

        Raises:
            PathNotFound: a path does not exist; nothing was done.
            UsageError: a manifest has neither a text nor an image column; something is neither a path nor items.
            IndexNotFound: no paths, and no index yet.
            IndexLocked: another process is writing.
            ModelMismatch: the index was made by another model than the one named.
        """
        from mmsearch.indexers.manifests import Columns

        paths, collections = sorted_out(sources)
        columns = Columns(text=text_column, image=image_column, id=id_column)
        reports = []
        if paths or not sources:
            reports.append(self._add_paths(paths, include, exclude, columns, prune, retry, progress, skip_missing))
        for items in collections:
            for rows in batches(items):
                if reports and reports[-1].interrupted:
                    break
                reports.append(self._run([self._rows_source(rows)], retry=retry, observer=progress))
        return joined(reports)

    def _add_paths(
        self,
        paths: Sequence[str],
        include: Sequence[str],
        exclude: Sequence[str],
        columns: Columns,
        prune: bool,
        retry: bool,
        progress: Observer | None,
        a_list: bool,
    ) -> Report:
        from mmsearch.indexers.removal import taken_back

        store = self._store()
        if store is None and not paths:
            raise IndexNotFound(f"there is no index at {self.path} yet; name a folder to index")
        unusable: list[Failure] = []
        report = self._run(
            self._sources(store, paths, include, exclude, columns, unusable if a_list else None),
            take_back=taken_back(store, paths) if store is not None and not a_list else (),
            complete=not paths and not (include or exclude),
            prune=prune,
            retry=retry,
            observer=progress,
        )
        return replace(report, failed=(*unusable, *report.failed)) if unusable else report

    def _run(self, sources: Sequence[AnySource], **options: Unpack[RunOptions]) -> Report:
        """An index run; makes the index if there is none and something was found."""
        from mmsearch.indexers.pipeline import index_sources
        from mmsearch.retrieval.encoders.models import token_identity

        store = self._store()
        if store is None:
            if not any(True for source in sources for _ in source.scan()):
                return self._nothing(sources)
            encoder = self._encoders.get(self._model)
            from mmsearch.retrieval.store.local import LocalStore

            store = LocalStore.create(
                self.path,
                model=encoder.name,
                identity=encoder.identity,
                dim=encoder.dim,
                max_tokens=encoder.max_tokens,
            )
            self._encoders.keep(store.model, encoder)
        model = store.model
        options["threads"] = self._threads
        options["token_identity"] = token_identity(model)
        return index_sources(sources, store, lambda: self._encoders.get(model), **options)

    def _rows_source(self, rows: Sequence[Row | BadRow]) -> RowsSource:
        from mmsearch.indexers.roots import Roots
        from mmsearch.indexers.rowsources import RowsSource

        store = self._store()
        roots = [root for root in store.info().roots if root.kind == "folder"] if store is not None else []
        whole, partial = ([root.path for root in roots if root.whole is kind] for kind in (True, False))
        return RowsSource(rows, Roots(whole, partial))

    def add_vectors(
        self,
        ids: Sequence[str | int],
        vectors: ArrayLike,
        *,
        modality: Modality = "image",
        texts: Sequence[str | None] | None = None,
        images: Sequence[str | os.PathLike[str] | None] | None = None,
        meta: Sequence[Mapping[str, object] | None] | None = None,
    ) -> Report:
        """Adds vectors that were computed elsewhere, so that an existing collection can be searched.

        Each becomes an item with its id; an id that is given again replaces what was there. Vectors are scaled to
        length 1. They must be of the model of the index: a new index takes the model that `open` was told, and
        without one it can be searched with vectors only.

        Args:
            ids: n different ids.
            vectors: n rows of `dim` numbers.
            modality: the space that they belong to: what the vectors are of.
            texts: of each, shown with hits.
            images: path of each picture, shown with hits; never opened.
            meta: fields of each.

        Raises:
            UsageError: a vector is not finite or all zeros; lengths or the width do not fit; ids repeat.
            IndexLocked: another process is writing.
        """
        import time

        from mmsearch.indexers import vectors as given
        from mmsearch.retrieval.store.local import LocalStore

        start = time.monotonic()
        if modality not in ("image", "text"):
            raise UsageError(f"modality {modality!r} is none of image, text")
        store = self._store()
        rows = given.checked(ids, vectors, None if store is None else store.dim)
        if store is None and self._model == "auto":
            dim = rows.shape[1]
            store = LocalStore.create(self.path, model=VECTORS, identity=f"{VECTORS}:{dim}", dim=dim)
        elif store is None:
            encoder = self._encoders.get(self._model)
            given.checked(ids, vectors, encoder.dim)
            store = LocalStore.create(
                self.path,
                model=encoder.name,
                identity=encoder.identity,
                dim=encoder.dim,
                max_tokens=encoder.max_tokens,
            )
        added, updated, unchanged = given.add_vectors(
            store,
            ids,
            rows,
            modality=modality,
            texts=texts,
            images=[None if image is None else os.fspath(image) for image in images] if images is not None else None,
            meta=meta,
        )
        return Report(
            added=added,
            updated=updated,
            unchanged=unchanged,
            items=self.info().items,
            seconds=round(time.monotonic() - start, 3),
            model=store.model,
        )

    def remove(self, *paths: str | os.PathLike[str], ids: Sequence[str | int] = ()) -> int:
        """Takes files, folders and manifests out of the index, and items by their ids; no file on disk is touched.

        Later runs pass over what was taken out, until it is named itself. Returns how many files and rows it was.

        Raises:
            PathNotFound: nothing of that path is in the index or on disk; nothing was removed.
            IndexNotFound: there is no index.
            IndexLocked: another process is writing.
        """
        from mmsearch.indexers.removal import remove

        return remove(self._existing(), [os.fspath(path) for path in paths], ids)

    def merge(self) -> int:
        """Makes one segment of each space and lets go of what nothing points to; returns how many were merged.

        Runs merge by themselves; this does it to the end, at the price of copying everything.
        """
        with self._existing().writer() as writer:
            return writer.merge(all_segments=True)

    def reindex(self, model: str, *, drop: bool = False, progress: Observer | None = None) -> ReindexReport:
        """Embeds everything again with another model, then changes to it at once; searches go on meanwhile.

        Interrupted or killed, it goes on where it was when called again. The old model is not needed. Texts come
        out of the index, pictures from their files. Afterwards the index is brought up to date with its roots.

        Args:
            model: as in `open`.
            drop: let go of what cannot be embedded again, such as pictures on a drive that is not there.
            progress: called with `Progress` during the run.

        Raises:
            IndexUnusable: something cannot be embedded again and `drop` is not set; nothing has changed, and what
                was done so far is kept for the next try.
            IndexLocked: another process is writing.
        """
        from mmsearch.indexers.reindex import reindex

        store = self._existing()
        encoder = self._encoders.get(model)
        self._encoders.keep(encoder.name, encoder)
        report = reindex(store, lambda: encoder, drop=drop, threads=self._threads, observer=progress)
        if report.interrupted:
            return report
        self._model = "auto"  # the index keeps what it has now
        return replace(report, interrupted=self.add(progress=progress).interrupted)

    def doctor(
        self,
        *,
        repair: bool = False,
        files: bool = False,
        model: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Diagnosis:
        """Checks every byte of the index, and repairs it if asked to.

        Args:
            repair: mend what can be mended; without it nothing is changed.
            files: compare the stamps of all files with the disk too.
            model: name of the model, where a lost catalog leaves that open.
            progress: called with the bytes of vectors that were read, and all there are; from another thread.

        Raises:
            IndexNotFound: there is no index, nor anything left of one.
            IndexLocked: another process is writing (with `repair`).
        """
        from mmsearch.retrieval.store.doctor import examine
        from mmsearch.retrieval.store.doctor import repair as mend

        if repair:
            return mend(self.path, model=model, progress=progress)
        return examine(self.path, files=files, progress=progress)

    def items(self) -> Iterator[ItemInfo]:
        """Every item of the index, by id, as they were when the iteration began."""
        with self._snapshot() as snapshot:
            for record in snapshot.all_items():
                yield ItemInfo(
                    item_id=record.item_id,
                    path=None if record.path is None else Path(record.path),
                    uri=record.uri,
                    fragment=record.fragment,
                    modality=record.modality,
                    text=record.text,
                    width=record.width,
                    height=record.height,
                    taken=record.taken,
                    id=record.id,
                    meta=json.loads(record.meta) if record.meta else {},
                )

    def failures(self) -> list[Failure]:
        """Every file and row that could not be indexed, and why."""
        with self._snapshot() as snapshot:
            return snapshot.failures()

    def estimate(
        self,
        *paths: str | os.PathLike[str],
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        text_column: str | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
        skip_missing: bool = False,
    ) -> RunEstimate:
        """What `add` would do and about how long it would take; changes nothing and downloads nothing."""
        from mmsearch.indexers.manifests import Columns
        from mmsearch.indexers.plan import estimate_run
        from mmsearch.retrieval.encoders.models import token_identity

        columns = Columns(text=text_column, image=image_column, id=id_column)
        store = self._store()
        if store is None and not paths:
            raise IndexNotFound(f"there is no index at {self.path} yet; name a folder to index")
        unusable: list[Failure] | None = [] if skip_missing else None
        sources = self._sources(store, [os.fspath(path) for path in paths], include, exclude, columns, unusable)
        model = store.model if store is not None else self._model

        def encoder() -> Encoder | None:
            try:
                return self._encoders.get(model, offline=True)
            except MMSearchError:
                return None

        complete = not paths and not (include or exclude)
        return estimate_run(sources, store, encoder, complete=complete, token_identity=token_identity(model))

    def search(
        self,
        query: str | Query | None = None,
        *,
        image: str | os.PathLike[str] | bytes | Image.Image | None = None,
        vector: ArrayLike | None = None,
        plus: Sequence[str] = (),
        minus: Sequence[str] = (),
        k: int = 10,
        offset: int = 0,
        modality: Selection | None = None,
        where: str | None = None,
        mode: Mode | None = None,
        fusion: FusionMethod | None = None,
        group: GroupBy | None = None,
        dedup: bool = False,
        diverse: float = 0.0,
        sort: SortBy = "relevance",
        min_relevance: float = 0.0,
        include_self: bool = False,
        rerank: str | Reranker | None = None,
        depth: int = DEPTH,
        budget_ms: int | None = None,
    ) -> Answer:
        """The k best hits for a query. What is given of `query`, `image`, `vector`, `plus`, `minus` is combined.

        Args:
            query: in the query language: `2:golden retriever + ./pool.jpg - fruit` (docs/query.md). A text that must
                be taken as it is: `Query.literal(text)`.
            image: path, file content or Pillow image. Items of the same content are left out of the answer.
            vector: a vector of the index's embedding space.
            plus: further clauses, such as `2:dog`, `./pool.jpg` or `id:17`; no operators in them.
            minus: further clauses to be pushed away.
            k: how many hits at most.
            offset: how many of the best to pass over: pages of one query fit together.
            modality: `image`, `text` or `all` (fused by rank); by default `image` if the index has images.
            where: a filter: `width >= 1000 and taken in 2024-05..2024-08` (docs/filters.md). What passes is ranked
                as if nothing else were in the index.
            mode: `dense` finds by meaning, `lexical` by the words of captions, texts, names and tags, `hybrid` both.
            fusion: how clauses are combined: `early` (one vector), `late` (a ranking each), or `both`.
            group: show the best item of each `file` or `folder` only, and count the others.
            dedup: show the best of near-duplicates only, with the others in `Hit.duplicates`.
            diverse: 0 to 1, how much hits should differ from those before them.
            sort: `relevance`, or `date` for the same hits, newest first.
            min_relevance: 0 to 1, leave out hits of less relevance.
            include_self: keep items with the content of a query image, and the items of `id:` clauses.
            rerank: what reads the query with each of the first candidates and orders them anew: a name (`minilm`,
                `blip-itm`, `hf-hub:ORG/NAME`, `local-dir:PATH`), or a reranker of yours (docs/rerank.md). One that is
                named is downloaded if it has to be, and kept.
            depth: how many candidates are reranked, before anything is left out or collapsed.
            budget_ms: how long that may take, without loading the reranker; what it has not scored by then comes
                after what it has.

        Raises:
            UsageError: the query cannot be meant (empty, k < 1, ...).
            QuerySyntaxError: the query cannot be read; FilterSyntaxError: the filter cannot.
            IndexNotFound: there is no index at this path yet.
            ModelMismatch: the index was made by another model than the one named.
            ModelUnavailable: the reranker cannot be had; MissingExtra: a package that it needs is not installed.
        """
        from mmsearch.retrieval.searcher import Searcher

        with self._snapshot() as snapshot:
            self._require_model(snapshot.model)
            searcher = Searcher(
                snapshot,
                lambda: self._encoders.get(snapshot.model),
                reranker=self._rerankers.get,
                scorer=self._rerankers.scorer() if rerank is not None else None,
            )
            return searcher.search(
                query,
                image=Path(image) if isinstance(image, os.PathLike) else image,
                vector=vector,
                plus=plus,
                minus=minus,
                k=k,
                offset=offset,
                modality=modality,
                where=where,
                mode=mode,
                fusion=fusion,
                group=group,
                dedup=dedup,
                diverse=diverse,
                sort=sort,
                min_relevance=min_relevance,
                include_self=include_self,
                rerank=rerank,
                depth=depth,
                budget_ms=budget_ms,
            )

    def heat_map(self, query: str, image: str | os.PathLike[str] | bytes | Image.Image) -> HeatMap:
        """Where in a picture a text is; the picture need not be in the index.

        Asks the model named in `open`, else that of the index; without an index the one that a new index would have.

        Args:
            query: literal text, in a language that the model reads.
            image: path, file content or Pillow image.

        Raises:
            UsageError: the query is empty.
            PathNotFound: there is no such picture.
            MediaError: it is no picture.
        """
        from mmsearch.retrieval.explain import heat_map

        model = self._model
        if model == "auto":
            try:
                with self._snapshot() as snapshot:
                    model = snapshot.model
            except IndexNotFound:
                _log.info("there is no index at %s yet: the default model looks", self.path)
        source = Path(image) if isinstance(image, os.PathLike) else image
        return heat_map(lambda: self._encoders.get(model), query, source)

    def duplicates(
        self,
        *,
        threshold: float | None = None,
        where: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> DuplicateReport:
        """Groups of pictures that are nearly the same, each with the one to keep; changes nothing.

        Every duplicate was compared with the picture that is kept: their content is equal, or their perceptual
        hashes and embeddings are close, or their embeddings very close. Only files that are there as they were
        indexed are told of.

        Args:
            threshold: cosine of embeddings that is enough by itself; by default it follows from how alike the
                pictures of this index are in general.
            where: a filter; only pictures that pass are compared with each other.
            progress: called with the pictures that are compared so far, and all there are.

        Raises:
            UsageError: the threshold is no cosine above 0.
            FilterSyntaxError: the filter cannot be read.
            IndexNotFound: there is no index at this path yet.
        """
        from mmsearch.retrieval.duplicates import find_duplicates

        with self._snapshot() as snapshot:
            return find_duplicates(snapshot, threshold=threshold, where=where, progress=progress)

    def tag(
        self,
        *labels: str,
        files: Sequence[str | os.PathLike[str]] = (),
        lists: Sequence[str] = (),
        where: str | None = None,
        min_relevance: float | None = None,
        most: int | None = None,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> TagReport:
        """Gives the pictures those of some labels as tags that they show; filters (`tag = dog`) and words find them.

        A run takes the place of earlier ones for the same tags, and leaves all others. Pictures that are indexed
        later have no tags before the next run. Nothing is written unless all is.

        Args:
            labels: each a tag, or a tag and the words that the model reads for it: `pool = a swimming pool`.
            files: with a label in each line; lines that begin with # are passed over.
            lists: that come with mmsearch: `everyday`, and `everyday-zh` with the same in Chinese.
            where: a filter (docs/filters.md); other pictures keep the tags that they have.
            min_relevance: 0 to 1, the least relevance of a tag, by default 0.5 (docs/tags.md says what that means).
            most: how many of these tags a picture gets at most, the best; 10 by default.
            dry_run: only say what would be done.
            progress: called with the pictures that were looked at so far, and all there are.

        Raises:
            UsageError: there are no labels, or one cannot be meant; too little is known to judge scores by.
            PathNotFound: a file does not exist.
            FilterSyntaxError: the filter cannot be read.
            IndexNotFound: there is no index at this path yet.
            IndexLocked: another process is writing.
        """
        from mmsearch.indexers import tagging
        from mmsearch.indexers.labels import gathered

        found = gathered(labels, files, lists)
        store = self._existing()
        self._require_model(store.model)
        return tagging.tag(
            store,
            found,
            lambda: self._encoders.get(store.model),
            where=where,
            min_relevance=tagging.LEAST if min_relevance is None else min_relevance,
            most=tagging.MOST if most is None else most,
            dry_run=dry_run,
            progress=progress,
        )

    def untag(
        self,
        *labels: str,
        files: Sequence[str | os.PathLike[str]] = (),
        lists: Sequence[str] = (),
        where: str | None = None,
    ) -> int:
        """Takes tags away that `tag` has given: those named, or all; returns from how many pictures.

        Args:
            labels: as in `tag`; only the tags count.
            files: as in `tag`.
            lists: as in `tag`.
            where: a filter; other pictures keep the tags that they have.

        Raises:
            UsageError: a label cannot be meant.
            FilterSyntaxError: the filter cannot be read.
            IndexNotFound: there is no index at this path yet.
            IndexLocked: another process is writing.
        """
        from mmsearch.indexers import tagging
        from mmsearch.indexers.labels import gathered

        every = not (labels or files or lists)
        tags = None if every else [label.tag for label in gathered(labels, files, lists)]
        return tagging.untag(self._existing(), tags, where=where)

    def tags(self) -> list[TagCount]:
        """Every tag of the index with the number of files that have it, by name."""
        with self._snapshot() as snapshot:
            return [TagCount(tag, count) for tag, count in snapshot.tag_counts()]

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
                fresh = Lease(Snapshot.open(self.path))
                if lease is not None:
                    lease.retire()
                self._lease = lease = fresh
            lease.take()
        try:
            yield lease.snapshot
        finally:
            lease.give_back()

    def _existing(self) -> LocalStore:
        """The index for writing, whatever model it is of."""
        from mmsearch.retrieval.store.local import LocalStore

        if self._closed:
            raise UsageError("this index is closed")
        return LocalStore.open(self.path)

    def _store(self) -> LocalStore | None:
        """The index for writing, or None if there is none yet."""
        from mmsearch.retrieval.store.layout import (
            is_index,
            refuse_network_filesystem,
            refuse_ruins,
            require_room_for_index,
        )
        from mmsearch.retrieval.store.local import LocalStore

        if self._closed:
            raise UsageError("this index is closed")
        if not is_index(self.path):
            refuse_ruins(self.path)
            require_room_for_index(self.path)
            refuse_network_filesystem(self.path)
            return None
        store = LocalStore.open(self.path)
        self._require_model(store.model)
        return store

    def _sources(
        self,
        store: LocalStore | None,
        paths: Sequence[str],
        include: Sequence[str],
        exclude: Sequence[str],
        columns: Columns,
        unusable: list[Failure] | None,
    ) -> list[AnySource]:
        from mmsearch.indexers.paths import open_sources
        from mmsearch.indexers.rescan import rescan_sources

        if store is not None and not paths:
            return rescan_sources(store, include=include, exclude=exclude)
        roots = [root for root in store.info().roots if root.kind == "folder"] if store is not None else []
        return [
            *open_sources(
                paths,
                include,
                exclude,
                index_path=self.path,
                known_roots=[root.path for root in roots if root.whole],
                partial_roots=[root.path for root in roots if not root.whole],
                columns=columns,
                unusable=unusable,
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

        if of_index == VECTORS or canonical_name(self._model) != canonical_name(of_index):
            raise ModelMismatch(
                f"the index at {self.path} was made by the model {of_index}, not {self._model}; "
                f"`mmsearch reindex --model {self._model}` changes it; or use another --index for {self._model}"
            )


def _index_path(path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        path = os.environ.get(ENVIRONMENT) or None
    if path is None:
        from mmsearch.retrieval.store.layout import default_index_path

        return default_index_path()
    return Path(os.path.abspath(os.path.expanduser(path)))
