"""Verifying an index, repairing what can be derived, and saying what must be indexed again.

- `examine` reads every byte and changes nothing, also where the catalog is missing or damaged.
- `repair` does what it can under the lock of the writer: counts, tombstones and leftovers are put right; segments
  that are missing or damaged leave the catalog, and their files look changed to the next scan; a catalog that is
  missing or damaged is made anew (`store.salvage`). Nothing is deleted that could be of use: it goes to `damaged/`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mmsearch.retrieval.errors import IndexCorrupt, IndexUnusable
from mmsearch.retrieval.store import layout
from mmsearch.retrieval.store.checks import look, require_remains
from mmsearch.retrieval.store.diagnosis import Diagnosis as Diagnosis
from mmsearch.retrieval.store.diagnosis import Problem as Problem
from mmsearch.retrieval.store.findings import INDEX, REPAIR, SALVAGE, Findings
from mmsearch.retrieval.store.lock import Lock
from mmsearch.retrieval.store.segment_check import Progress

Steps = Callable[[str], None]
"""Told the name of each step just before it happens; tests end the repair there."""

_ROUNDS = 3
_SWEPT = ("leftover", "orphan")


def examine(path: Path, *, files: bool = False, progress: Progress | None = None) -> Diagnosis:
    """Reads every byte of an index and says what is wrong with it. Changes nothing and takes no lock.

    Args:
        path: the index folder.
        files: compare also the stamps of all indexed files with the disk.
        progress: told how many bytes of how many were read, from another thread.

    Raises:
        IndexNotFound: there is no index, and nothing that is left of one.
        IndexTooNew: it was written by a newer mmsearch.
        IndexUnusable: a file of it may not be read.
    """
    try:
        return _diagnosis(look(path, files=files, progress=progress))
    except OSError as error:
        raise _unusable("read", path, error) from error


def repair(
    path: Path,
    *,
    model: str | None = None,
    progress: Progress | None = None,
    steps: Steps = lambda name: None,
) -> Diagnosis:
    """Repairs an index and says what was found and what became of it; leaves a sound one as it is.

    Where it ends early, by whatever, another repair goes on with it.

    Args:
        path: the index folder.
        model: name of the model that made the vectors, for a lost catalog whose segments do not say it.
        progress: as `examine`.
        steps: told each step before it happens.

    Raises:
        IndexNotFound: there is no index, and nothing that is left of one.
        IndexLocked: somebody is writing to it.
        IndexTooNew: it was written by a newer mmsearch.
        IndexCorrupt: nothing of it can be saved, or the model must be named.
        IndexUnusable: the disk is full, or the index may not be written to.
        UnsafeFilesystem: it lies on a network drive.
    """
    path = Path(path).absolute()
    layout.refuse_network_filesystem(path)
    try:
        require_remains(path)  # before the lock, whose file a foreign folder should not get
        lock = Lock(path)
        try:
            return _repair(path, model, progress, steps)
        finally:
            lock.release()
    except (OSError, sqlite3.Error) as error:
        raise _unusable("repair", path, error) from error


def _unusable(what: str, path: Path, error: Exception) -> IndexUnusable:
    return IndexUnusable(f"cannot {what} the index at {path}: {getattr(error, 'strerror', None) or error}")


def _repair(path: Path, model: str | None, progress: Progress | None, steps: Steps) -> Diagnosis:
    done: list[Problem] = []
    for last in (False,) * _ROUNDS + (True,):
        found = look(path, locked=True, progress=progress)
        todo = [problem for problem in found.problems if problem.damage or problem.kind in _SWEPT]
        if last or not todo:
            break
        if found.format < layout.FORMAT_VERSION and _migrated(path):
            continue
        done += _treat(found, todo, model, steps)
    left = _diagnosis(found)
    return replace(left, problems=(*done, *left.problems))


def _migrated(path: Path) -> bool:
    """Whether the catalog has the current format now; a damaged one keeps what it has, and is salvaged."""
    from mmsearch.retrieval.store.migrations import migrate
    from mmsearch.retrieval.store.schema import CATALOG_ERRORS

    try:
        migrate(path)
    except (IndexCorrupt, *CATALOG_ERRORS):
        return False
    return True


def _treat(found: Findings, todo: list[Problem], model: str | None, steps: Steps) -> list[Problem]:
    """One round of repair; returns the problems with what became of them."""
    from mmsearch.retrieval.store import repairs

    if not found.must_salvage:
        if found.damage:
            repairs.mend(found, steps)
        repairs.sweep(found, steps)
        return [replace(problem, remedy=_left_to_do(problem), repaired=True) for problem in todo]
    from mmsearch.retrieval.store.salvage import Salvage

    outcome = Salvage(found, model, steps).run()
    first = next((problem for problem in todo if problem.kind in SALVAGE), todo[0])
    told = replace(first, message=f"{first.message}; {outcome.told}", lost_items=outcome.lost_items)
    others = [replace(problem, lost_items=0) for problem in todo if problem is not first]
    return [replace(problem, remedy=INDEX, repaired=True) for problem in (told, *others)]


def _left_to_do(problem: Problem) -> str:
    if problem.kind in _SWEPT:
        return "nothing"
    return problem.remedy.removeprefix(REPAIR).removeprefix(", then ") or "nothing"


def _diagnosis(found: Findings) -> Diagnosis:
    sound = sum(check.kind is None for check in found.segments.values())
    return Diagnosis(found.path, tuple(found.problems), sound, found.items, found.bytes)
