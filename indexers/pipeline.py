"""An index run: what the sources found, embedded and committed.

In this order: each source is scanned and compared with the catalog; new and changed files are read, looked up,
decoded, encoded and added (`ingest`); what is gone is removed; pictures that lack tokens are read again (`tokens`);
small segments are merged. Commits come every few seconds, in long runs with merges between them, and whatever was
committed stays, however the run ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from mmsearch.indexers.drives import Drives, on_lost_drives
from mmsearch.indexers.ingest import Ingest, Job, Observer, Progress
from mmsearch.indexers.interrupt import Interrupt, Stopped
from mmsearch.indexers.paths import Source
from mmsearch.indexers.patterns import Filter
from mmsearch.indexers.rescan import AbsentRoot
from mmsearch.indexers.rowsources import ManifestSource
from mmsearch.indexers.sources import FileSource, FolderSource
from mmsearch.indexers.tokens import MissingTokens
from mmsearch.retrieval.types import ItemRef, Report, Root
from mmsearch.retrieval.uris import path_to_uri

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store import Diff, LocalStore, Writer

__all__ = ["AnySource", "Observer", "Progress", "index_source", "index_sources"]

_log = logging.getLogger(__name__)

_SCAN_TICK = 512

AnySource = Source | AbsentRoot


class RunOptions(TypedDict, total=False):
    """The options of `index_sources`."""

    prune: bool
    retry: bool
    threads: int | None
    commit_seconds: float
    observer: Observer | None
    complete: bool
    take_back: Sequence[tuple[str, str]]
    token_identity: str | None


def index_source(
    source: AnySource, store: LocalStore, encoder: Callable[[], Encoder], **options: Unpack[RunOptions]
) -> Report:
    """Brings the index up to date with one source; options as `index_sources`."""
    return index_sources([source], store, encoder, **options)


def index_sources(
    sources: Sequence[AnySource],
    store: LocalStore,
    encoder: Callable[[], Encoder],
    *,
    prune: bool = False,
    retry: bool = False,
    threads: int | None = None,
    commit_seconds: float = 4.0,
    observer: Observer | None = None,
    complete: bool = False,
    take_back: Sequence[tuple[str, str]] = (),
    token_identity: str | None = None,
) -> Report:
    """Brings the index up to date with several sources.

    After it returns, everything that the report counts is committed. Ctrl-C (in the main thread) ends the run
    after the step at hand, commits, and sets `Report.interrupted`. On an error, what was finished before it is
    committed too, and the error is raised.

    Args:
        sources: each is scanned once.
        store: an existing index; its write lock is held for the whole run.
        encoder: called at most once, and only when something has to be embedded.
        prune: remove what a scan did not find even where the root looks unmounted.
        retry: read files again that failed before and have not changed since.
        threads: how many files are read and decoded at a time; chosen by default.
        commit_seconds: work that an abrupt end may lose, at most.
        observer: called with the state of the run, from this thread, at most a few hundred times a second.
        complete: the sources are all there are; vectors of a lost catalog that still wait for their content then go,
            unless a program gave rows, which no scan finds.
        take_back: (root, uri) of what was taken out of the index and is wanted again.
        token_identity: of the tokens that the encoder makes, where that is known without loading it. Without it,
            only runs that load the encoder anyway see to pictures that lack tokens.

    Raises:
        IndexLocked: somebody else is writing.
        ModelMismatch: `encoder()` is not the index's.
    """
    start = time.monotonic()
    interrupted = False
    kept = 0
    scanned: list[AnySource] = []
    with store.writer() as writer, Interrupt() as interrupt:
        ingest = Ingest(
            store,
            writer,
            encoder,
            interrupt,
            threads=threads,
            commit_seconds=commit_seconds,
            observer=observer,
        )
        try:
            for root, uri in take_back:
                writer.take_back(root, uri)
            writer.commit()
            jobs: deque[Job] = deque()
            rows: deque[Job] = deque()
            waiting = deque(sources)
            while waiting:
                source = waiting.popleft()
                diff, missing = _scan(source, store, writer, ingest, interrupt, prune=prune)
                waiting.extend(source.followers())
                scanned.append(source)
                kept += missing
                if _is_whole(source) and diff.new:
                    _cover(source, diff.new, store, ingest)
                if not _is_listed(source):
                    ingest.committed["unchanged"] += diff.unchanged
                todo = rows if source.root.kind != "folder" else jobs
                todo.extend(Job.of(ref) for ref in diff.new)
                todo.extend(Job.of(ref, new=False) for ref in diff.changed)
                if retry:
                    todo.extend(Job.of(ref) for ref in diff.failed)
                else:
                    ingest.failures.extend(diff.known_failures)
            ingest.index(jobs)
            ingest.index(rows)  # after the pictures that they name
            ingest.remove_gone()
            if any(isinstance(source, ManifestSource) and source.complete for source in scanned):
                writer.forget_unnamed()
            if complete and not kept and all(_is_seen(source) for source in scanned) and not _has_given_rows(store):
                writer.forget_salvaged()
            ingest.commit()
            wanted = token_identity or ingest.token_identity
            roots = token_roots(scanned, complete=complete)
            if wanted is not None and (roots is None or roots):
                MissingTokens(store, writer, ingest, interrupt, wanted, roots, ingest.threads).make()
                ingest.commit()
            ingest.tell("merge", 0, None)
            ingest.merge()
        except Stopped:
            interrupted = True
            ingest.commit()
        except KeyboardInterrupt:  # a second Ctrl-C, or one that we do not see first: anything may be half-done
            interrupted = True
            writer.rollback()
    return _report(scanned, store, ingest, kept=kept, interrupted=interrupted, seconds=time.monotonic() - start)


def _scan(
    source: AnySource, store: LocalStore, writer: Writer, ingest: Ingest, interrupt: Interrupt, *, prune: bool
) -> tuple[Diff, int]:
    """Scans a source and compares it with the index; returns also how many missing files are kept."""
    found = 0
    drives = Drives(store)
    listed: list[str] = []

    def refs() -> Iterator[ItemRef]:
        nonlocal found
        for ref in source.scan():
            found += 1
            if ref.listed:
                listed.append(ref.uri)
            if found % _SCAN_TICK == 0:
                interrupt.check()
                ingest.tell("scan", found, None)
            yield ref if prune else drives.keep(ref)

    ingest.tell("scan", 0, None)
    diff = store.diff(source.root, refs(), scope=source.scope, partial=source.few)
    interrupt.check()
    missing = set(diff.missing) if source.complete else set()
    kept: set[str] = set()
    if not prune:
        unmounted = diff.had_items and (diff.device_changed or (not found and _is_empty(source)))
        kept = missing if unmounted else on_lost_drives(source.root, diff.mounts, missing)
    if kept:
        _log.warning(
            "%s looks unmounted or replaced: %d files that are not there now were kept; "
            "if they are gone for good, run again with prune (--prune)",
            source.root.path,
            len(kept),
        )
    if source.complete and not isinstance(source, AbsentRoot):
        _note_root(source, writer, diff, everything_found=not kept)
    elif (diff.new or _is_listed(source)) and not diff.had_items:  # a drive that came or went during its first scan
        writer.root(source.root)
    if listed:
        writer.expect(str(source.root.path), listed)
    ingest.gone.setdefault(str(source.root.path), set()).update(missing - kept)
    return diff, len(kept)


def _cover(source: AnySource, found: Sequence[ItemRef], store: LocalStore, ingest: Ingest) -> None:
    """Notes which files of a new root are in the index already, because they were named under a root above it."""
    folder = source.root.path.resolve()
    for root in store.info().roots:
        path = Path(root.path)
        if not root.whole and path.resolve() in folder.parents:
            prefix = path_to_uri(str(folder.relative_to(path.resolve())))
            named = set(store.diff(Root(path, source.root.device), ()).missing)
            ingest.covered.setdefault(root.path, set()).update(named & {f"{prefix}/{ref.uri}" for ref in found})


def _is_whole(source: AnySource) -> bool:
    """Whether everything under the root was looked at."""
    if isinstance(source, ManifestSource):
        return True
    return isinstance(source, FolderSource) and not source.start and source.filter.glob is None


def token_roots(sources: Sequence[AnySource], *, complete: bool) -> list[Path] | None:
    """The folders in which a run sees to pictures that lack tokens; None for all folders, where it scans them all."""
    if complete:
        return None
    return [source.root.path for source in sources if _is_whole(source) and source.root.kind == "folder"]


def _has_given_rows(store: LocalStore) -> bool:
    return any(root.kind == "rows" for root in store.info().roots)


def _is_seen(source: AnySource) -> bool:
    return source.complete and not isinstance(source, AbsentRoot)


def _is_listed(source: AnySource) -> bool:
    return isinstance(source, FileSource) and source.listed


def _note_root(source: Source, writer: Writer, diff: Diff, *, everything_found: bool) -> None:
    whole = _is_whole(source)
    # The device of a known root is updated only by a whole scan that missed nothing: otherwise the next run would
    # take another drive, mounted there for a while, for the right one.
    if not (diff.had_items and diff.device_changed) or (whole and everything_found):
        writer.root(source.root)
    mounts = source.mounts if whole and everything_found else {*source.mounts, *diff.mounts}
    if whole:
        writer.scanned(source.root)
    if mounts != set(diff.mounts):
        writer.mounted(source.root, sorted(mounts))


def _report(
    sources: Sequence[AnySource],
    store: LocalStore,
    ingest: Ingest,
    *,
    kept: int,
    interrupted: bool,
    seconds: float,
) -> Report:
    skipped: Counter[str] = Counter()
    for source in sources:
        skipped.update(source.skipped)
        ingest.failures.extend(source.errors)
    failed = {failure.path: failure for failure in ingest.failures}
    counts = ingest.committed
    with store.snapshot() as snapshot:
        items = sum(snapshot.counts.values())
    return Report(
        added=counts["added"],
        updated=counts["updated"],
        moved=counts["moved"],
        copied=counts["copied"],
        removed=counts["removed"],
        unchanged=counts["unchanged"],
        skipped=dict(sorted(skipped.items())),
        failed=tuple(failed[path] for path in sorted(failed)),
        items=items,
        seconds=round(seconds, 3),
        model=store.model,
        interrupted=interrupted,
        kept=kept,
        tokens=counts["tokens"],
    )


def _is_empty(source: AnySource) -> bool:
    """Whether a scan that found nothing may mean an unmounted drive.

    Not where a part of the root was scanned and the rest of the root is plainly there.
    """
    if isinstance(source, AbsentRoot | ManifestSource):
        return True
    if isinstance(source, FolderSource) and not source.start and source.filter == Filter():
        return True
    try:
        return all(name.startswith(".") for name in os.listdir(source.root.path))
    except OSError:
        return True
