"""The examination of an index: every byte of its segments, the catalog, and whether the two fit. Changes nothing.

Segments are read in a thread of their own, each once, while SQLite checks the catalog.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.errors import IndexCorrupt, IndexNotFound, IndexTooNew
from mmsearch.retrieval.store import layout, reader
from mmsearch.retrieval.store.diagnosis import Problem, counted, some
from mmsearch.retrieval.store.findings import INDEX, REPAIR, REPAIR_AND_INDEX, SALVAGE, Findings
from mmsearch.retrieval.store.lock import is_held
from mmsearch.retrieval.store.quiet import READ_ERRORS, open_quietly, read_format
from mmsearch.retrieval.store.segment_check import Progress, Reading, SegmentCheck
from mmsearch.retrieval.store.segments import KEY_BYTES, Segment
from mmsearch.retrieval.store.words import is_sound, wrong_words
from mmsearch.retrieval.uris import absolute_path

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ATTEMPTS = 5
_PAGE = 5_000
_TEXTS = 250
_LINES = 10_000  # of SQLite's integrity check

DEAD = (
    "SELECT embedding_id, segment_id FROM embeddings NOT INDEXED WHERE segment_id NOT NULL"
    " AND model_id = (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'model_id')"
    " AND embedding_id NOT IN (SELECT embedding_id FROM items)"
    " AND embedding_id NOT IN (SELECT embedding_id FROM salvaged)"
)
"""The embeddings that must have a tombstone."""

EMPTY = (
    "status = 'ok' AND content_hash NOT NULL AND asset_id NOT IN (SELECT asset_id FROM items)"
    " AND root_id IN (SELECT root_id FROM roots WHERE kind = 'folder')"
)
"""Files that were read, and of which no item is there. (A row of a manifest may have none.)"""


def look(path: Path, *, files: bool = False, locked: bool = False, progress: Progress | None = None) -> Findings:
    """Examines an index; see `doctor.examine`. `locked`: the caller is the writer.

    A writer that commits or merges meanwhile can make a sound index look damaged: then it is examined again.
    """
    path = Path(path).absolute()
    require_remains(path)
    for _ in range(_ATTEMPTS):
        before = _marks(path)
        found = Findings(path, not locked and is_held(path))
        _look(found, files, progress or (lambda done, total: None))
        if not found.damage or _marks(path) == before:
            break
    return found


def require_remains(path: Path) -> None:
    """Raises IndexNotFound unless there is an index or what is left of one."""
    try:
        layout.require_index(path)
    except IndexCorrupt:
        return
    except IndexNotFound:
        remains = any((path / name).exists() for name in (layout.CATALOG, layout.OLD_CATALOG))
        if not (remains and (path / layout.SEGMENTS).is_dir()):
            raise


def _marks(path: Path) -> list[tuple[int, int, int] | None]:
    """What changes with every commit and merge."""
    marks: list[tuple[int, int, int] | None] = []
    for name in (layout.CATALOG, f"{layout.CATALOG}-wal"):
        try:
            status = os.stat(path / name)
            marks.append((status.st_ino, status.st_size, status.st_mtime_ns))
        except OSError:
            marks.append(None)
    return marks


def _look(found: Findings, files: bool, progress: Progress) -> None:
    on_disk = _segment_files(found.path)
    with ThreadPoolExecutor(1, thread_name_prefix="mmsearch-doctor") as pool:
        reading = Reading(found.path / layout.SEGMENTS, pool, progress, on_disk)
        catalog = found.path / layout.CATALOG
        if not catalog.exists():
            found.add("catalog-missing", layout.CATALOG, "it is missing", REPAIR_AND_INDEX)
        else:
            found.bytes += catalog.stat().st_size
            found.format = read_format(catalog)
            try:
                with open_quietly(catalog, busy=found.busy) as connection:
                    _look_at_catalog(found, connection, reading, files)
            except READ_ERRORS as error:
                found.distrust()
                reason = " ".join(str(error).split()) or type(error).__name__
                found.add("catalog-damaged", layout.CATALOG, f"it cannot be read ({reason})", REPAIR_AND_INDEX)
        _look_at_the_rest(found, reading, on_disk)
    found.problems.sort(key=lambda problem: not problem.damage)


def _segment_files(path: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(path / layout.SEGMENTS) if layout.is_segment_name(name))
    except FileNotFoundError:
        return []


# The catalog


def _look_at_catalog(found: Findings, connection: sqlite3.Connection, reading: Reading, files: bool) -> None:
    format_ = _one(connection, "PRAGMA user_version")
    if format_ > layout.FORMAT_VERSION:
        raise IndexTooNew(layout.too_new(found.path, format_))
    faults = _schema_faults(found, connection)
    if not faults:
        rows, tokens = _segment_rows(connection), _token_rows(connection)
        found.named = {row["filename"]: row["segment_id"] for row in rows}
        found.tokens = {row["filename"]: row["segment_id"] for row in tokens}
        for row in (*rows, *tokens):
            reading.start(row["filename"], row)
        faults = _faults(found, connection, rows, tokens, reading, files)
    if faults:
        more = f" and {len(faults) - 1:,} more" if len(faults) > 1 else ""
        found.add("catalog-damaged", layout.CATALOG, f"it is damaged ({faults[0]}{more})", REPAIR_AND_INDEX)
        found.distrust()


def _faults(
    found: Findings,
    connection: sqlite3.Connection,
    rows: list[dict[str, Any]],
    tokens: list[dict[str, Any]],
    reading: Reading,
    files: bool,
) -> list[str]:
    """What makes a catalog unusable, or problems in it. SQLite's own check, the slowest, goes on beside the others."""
    before = len(found.problems)
    with ThreadPoolExecutor(1, thread_name_prefix="mmsearch-integrity") as pool:
        whole = pool.submit(_integrity_faults, found)
        error: Exception | None = None
        faults: list[str] = []
        try:
            faults = _text_faults(connection) or _meta_faults(connection)
            if not faults:
                _check_references(found, connection)
                _check_derived(found, connection)
                _tell_what_waits(found, connection)
                if files:
                    _compare_files(found, connection)
                _compare_segments(found, connection, rows, reading)  # waits for the reading
                _compare_tokens(found, tokens, reading)
        except READ_ERRORS as raised:
            error = raised
        damage = whole.result()
    if damage or faults:
        del found.problems[before:]  # what a damaged catalog says of segments means nothing
    elif error is not None:
        raise error
    return damage or faults


def _integrity_faults(found: Findings) -> list[str]:
    with open_quietly(found.path / layout.CATALOG, busy=found.busy) as connection:
        return [line for line in integrity(connection) if line != "ok"]


def _one(connection: sqlite3.Connection, query: str, *parameters: object) -> int:
    return int(connection.execute(query, parameters).fetchone()[0])


def integrity(connection: sqlite3.Connection) -> list[str]:
    """What SQLite finds wrong with a catalog, indexes included; `ok` where it finds nothing."""
    lines: list[str] = []
    for (text,) in connection.execute(f"PRAGMA integrity_check({_LINES})"):
        lines += [" ".join(line.split()) for line in text.splitlines() if not line.startswith("*** in database")]
    return lines


def _schema_faults(found: Findings, connection: sqlite3.Connection) -> list[str]:
    from mmsearch.retrieval.store.schema import compact, statements

    if not layout.is_index(found.path) or found.format < 1:
        return ["no catalog of mmsearch"]
    query = "SELECT sql FROM sqlite_master WHERE sql NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    there = {compact(sql) for (sql,) in connection.execute(f"{query} AND name NOT LIKE 'words\\_%' ESCAPE '\\'")}
    return [] if there == statements() else ["other tables than an index has"]


def _text_faults(connection: sqlite3.Connection) -> list[str]:
    """Tables with text that is none, which SQLite does not look for and readers would stumble over."""
    faults = []
    tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'embeddings'"  # whose text is in an index
    for (table,) in connection.execute(tables).fetchall():
        columns = [name for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})") if kind == "TEXT"]
        if columns:
            try:
                _read_texts(connection, table, columns)
            except sqlite3.OperationalError as error:
                if "decode" not in str(error):
                    raise
                faults.append(f"text in {table} that is none")
    return faults


def _read_texts(connection: sqlite3.Connection, table: str, columns: list[str]) -> None:
    """Has every text decoded, many at once: one by one takes three times as long. Commas keep them apart."""
    page = f"FROM {table} NOT INDEXED WHERE rowid BETWEEN ? AND ?"
    together = ", ".join(f'GROUP_CONCAT("{name}")' for name in columns)
    beyond = f"SELECT MIN(rowid) FROM {table} NOT INDEXED WHERE rowid > ?"
    first, last = connection.execute(f"SELECT MIN(rowid), MAX(rowid) FROM {table} NOT INDEXED").fetchone()
    while first is not None and first <= last:
        span = (first, first + _TEXTS - 1)
        try:
            connection.execute(f"SELECT {together} {page}", span).fetchone()
        except sqlite3.DataError:  # longer together than SQLite's longest text
            for _ in connection.execute(f"SELECT {', '.join(columns)} {page}", span):
                pass
        (first,) = connection.execute(beyond, span[1:]).fetchone()


def _meta_faults(connection: sqlite3.Connection) -> list[str]:
    meta = dict(connection.execute(reader.SQL["meta"]))
    missing = [key for key in ("dtype", "generation", "model_id") if key not in meta]
    if missing:
        return [f"no {missing[0]}"]
    if meta["dtype"] not in ("float16", "float32") or not meta["generation"].isdecimal():
        return ["senseless words about itself"]
    if connection.execute(reader.SQL["model"]).fetchone() is None:
        return ["no model"]
    return []


def _segment_rows(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    query = "SELECT segments.*, models.identity FROM segments LEFT JOIN models USING (model_id) ORDER BY segment_id"
    return _dicts(connection.execute(query))


def _token_rows(connection: sqlite3.Connection) -> list[dict[str, Any]]:
    return _dicts(connection.execute("SELECT * FROM tokens ORDER BY segment_id"))


def _dicts(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def _compare_segments(
    found: Findings, connection: sqlite3.Connection, rows: list[dict[str, Any]], reading: Reading
) -> None:
    """Each segment against its row, then the embeddings against all sound segments."""
    checks = {check.name: check for check in reading.results()}
    found.segments.update((name, check) for name, check in checks.items() if not layout.is_token_name(name))
    held: dict[int, Segment] = {}
    unusable: set[int] = set()
    for row in rows:
        check, segment_id = checks[row["filename"]], row["segment_id"]
        if check.segment is None:
            unusable.add(segment_id)
            _tell_lost(found, connection, segment_id, check)
        elif any(check.segment.header[name] != row[name] for name in ("count", "dim", "dtype", "identity", "space")):
            unusable.add(segment_id)
            found.add("segment-ids", check.name, "the catalog says other things of it than its header")
        else:
            held[segment_id] = check.segment
    for segment_id in _mismatched(found, connection, held, unusable):
        name = next(row["filename"] for row in rows if row["segment_id"] == segment_id)
        found.add("segment-ids", name, "its embeddings are not those that the catalog names")
    other = _one(
        connection,
        "SELECT COUNT(*) FROM embeddings JOIN segments USING (segment_id)"
        " WHERE embeddings.model_id != segments.model_id OR embeddings.space != segments.space",
    )
    if other:
        found.add("segment-ids", layout.CATALOG, f"{counted(other, 'embedding')} in a segment of another kind")


def _compare_tokens(found: Findings, rows: list[dict[str, Any]], reading: Reading) -> None:
    """Each file of tokens against its row. They are derived, so that whatever is wrong with one costs only time."""
    checks = {check.name: check for check in reading.results()}
    for row in rows:
        check = checks[row["filename"]]
        kind, message = check.kind, check.message
        if check.segment is not None:
            said = {**row, "shape": [row["length"], row["width"]], "dtype": "int8"}
            if any(check.segment.header.get(name) != said[name] for name in ("count", "identity", "shape", "dtype")):
                kind, message = "segment-ids", "the catalog says other things of it than its header"
        if kind is not None:
            found.lost_tokens.append(check.name)
            remedy = f"{REPAIR_AND_INDEX}, which makes the tokens of {counted(row['count'], 'picture')} anew"
            found.add(kind.replace("segment", "tokens"), check.name, message, remedy)


def _tell_lost(found: Findings, connection: sqlite3.Connection, segment_id: int, check: SegmentCheck) -> None:
    lost = "FROM items JOIN embeddings USING (embedding_id) WHERE segment_id = ?"
    number = _one(connection, f"SELECT COUNT(*) {lost}", segment_id)
    assets = f"FROM assets WHERE asset_id IN (SELECT asset_id {lost})"
    uris = [uri for (uri,) in connection.execute(f"SELECT uri {assets} ORDER BY asset_id LIMIT 3", (segment_id,))]
    total = _one(connection, f"SELECT COUNT(*) {assets}", segment_id)
    given = _one(connection, f"SELECT COUNT(*) {assets} AND root_id IN ({_GIVEN})", segment_id)
    remedy = REPAIR_AND_INDEX
    if number:
        remedy += f", which encodes {counted(number, 'item')} again: {some(uris, total)}"
    if given:
        remedy += f"; {counted(given, 'row')} that a program gave must be given again"
    found.add(str(check.kind), check.name, check.message, remedy, lost_items=number)


_GIVEN = "SELECT root_id FROM roots WHERE kind = 'rows'"


def _mismatched(
    found: Findings, connection: sqlite3.Connection, held: Mapping[int, Segment], unusable: set[int]
) -> list[int]:
    """Ids of segments whose ids and keys are not exactly those of their embeddings, in one pass over these."""
    matched = dict.fromkeys(held, 0)
    wrong: set[int] = set()
    nowhere = 0
    cursor = connection.execute("SELECT embedding_id, COALESCE(segment_id, 0), content_key FROM embeddings NOT INDEXED")
    while rows := cursor.fetchmany(_PAGE):
        columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True))
        ids, owners = np.array(columns[0], np.int64), np.array(columns[1], np.int64)
        keys = np.frombuffer(b"".join(columns[2]), np.uint8).reshape(len(rows), KEY_BYTES)
        for owner in np.unique(owners).tolist():
            mine = owners == owner
            if owner in held:
                good = _held(held[owner], ids[mine], keys[mine])
                matched[owner] += int(good.sum())
                if not good.all():
                    wrong.add(owner)
            elif owner not in unusable:
                nowhere += int(mine.sum())
    if nowhere:
        message = f"{counted(nowhere, 'embedding')} in no segment"
        found.add("embedding-lost", layout.CATALOG, message, REPAIR_AND_INDEX)
    return sorted(wrong | {id_ for id_, segment in held.items() if matched[id_] != segment.count})


def _held(segment: Segment, ids: NDArray[np.int64], keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
    at = segment.positions(ids)
    good = at >= 0
    good[good] = (segment.keys[at[good]] == keys[good]).all(axis=1)
    return good


def _check_references(found: Findings, connection: sqlite3.Connection) -> None:
    broken: dict[tuple[str, str], int] = {}
    for table, _rowid, parent, _key in connection.execute("PRAGMA foreign_key_check"):
        broken[table, parent] = broken.get((table, parent), 0) + 1
    for (table, parent), number in broken.items():
        kind = "item-lost" if table == "items" else "reference"
        message = f"{counted(number, 'row')} of {table} without their row of {parent}"
        lost = number if table == "items" else 0
        found.add(kind, layout.CATALOG, message, REPAIR_AND_INDEX, lost_items=lost)
    other = _one(
        connection,
        "SELECT COUNT(*) FROM items JOIN embeddings USING (embedding_id) WHERE embeddings.space != items.modality"
        " OR model_id != (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'model_id')",
    )
    if other:
        message = f"{counted(other, 'item')} with an embedding of another kind"
        found.add("item-lost", layout.CATALOG, message, REPAIR_AND_INDEX, lost_items=other)


def _check_derived(found: Findings, connection: sqlite3.Connection) -> None:
    """What the catalog keeps although it could be counted."""
    meta = dict(connection.execute(reader.SQL["meta"]))
    counts = dict(connection.execute("SELECT modality, COUNT(*) FROM items GROUP BY modality").fetchall())
    found.items = sum(counts.values())
    for modality in ("image", "text"):
        said, there = meta.get(f"items.{modality}", "0"), counts.get(modality, 0)
        if said != str(there):
            found.add("count", layout.CATALOG, f"it counts {said} {modality} items and has {there}")
    wrong = len(set(connection.execute(DEAD)) ^ set(connection.execute(_TOMBSTONES)))
    if wrong:
        found.add("tombstones", layout.CATALOG, f"{counted(wrong, 'tombstone')} missing or too many")
    if not is_sound(connection):
        found.add("words", layout.CATALOG, "what words are searched with is damaged")
    elif wrong := wrong_words(connection):
        found.add("words", layout.CATALOG, f"the words of {counted(wrong, 'item')} are missing, wrong or too many")
    empty = _one(connection, f"SELECT COUNT(*) FROM assets WHERE {EMPTY}")
    if empty:
        uris = [uri for (uri,) in connection.execute(f"SELECT uri FROM assets WHERE {EMPTY} LIMIT 3")]
        message = f"{counted(empty, 'file')} without items: {some(uris, empty)}"
        found.add("asset-empty", layout.CATALOG, message, REPAIR_AND_INDEX)


_TOMBSTONES = "SELECT embedding_id, segment_id FROM tombstones"


def _tell_what_waits(found: Findings, connection: sqlite3.Connection) -> None:
    waiting = _one(connection, "SELECT COUNT(*) FROM salvaged")
    if waiting:
        message = f"{counted(waiting, 'salvaged embedding')} wait for their files to be found again"
        found.add("salvaged-waiting", layout.CATALOG, message, INDEX)
    query = "SELECT name, (SELECT COUNT(*) FROM embeddings WHERE model_id = models.model_id) FROM models"
    other = "WHERE model_id != (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'model_id')"
    for name, number in connection.execute(f"{query} {other}"):
        message = f"a change to the model {name} is unfinished ({counted(number, 'embedding')} so far)"
        found.add("staged-model", layout.CATALOG, message, f"`mmsearch reindex --model {name}` goes on with it")
    if found.format < layout.FORMAT_VERSION:
        message = f"it has format {found.format}; the newest is {layout.FORMAT_VERSION}"
        found.add("old-format", layout.CATALOG, message, "nothing: it is migrated when it is next used")


def _compare_files(found: Findings, connection: sqlite3.Connection) -> None:
    """The stamps of all files against the disk; opens none."""
    for root in reader.read_roots(found.path, connection.execute(reader.SQL["roots"])):
        if not root.present():
            found.add("file-missing", root.path, "it is not there (on a drive that is not mounted?)", INDEX)
            continue
        if root.kind != "folder":
            continue
        gone: list[str] = []
        changed: list[str] = []
        waiting: list[str] = []
        for uri, size, mtime_ns, *_ in connection.execute(reader.SQL["assets"], (root.root_id,)):
            try:
                status = os.stat(absolute_path(root.path, uri))
            except OSError:
                gone.append(uri)
                continue
            if size < 0:
                waiting.append(uri)
            elif (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
                changed.append(uri)
        for kind, uris, what in (
            ("file-missing", gone, "not there now"),
            ("file-changed", changed, "changed since"),
            ("file-waiting", waiting, "to be read again"),
        ):
            if uris:
                found.add(kind, root.path, f"{counted(len(uris), 'file')} {what}: {some(uris, len(uris))}", INDEX)


# What the catalog does not name


def _look_at_the_rest(found: Findings, reading: Reading, on_disk: list[str]) -> None:
    """Files that no row names. Without a catalog, or with vectors lost, they are what can be salvaged, and are read."""
    salvage = any(problem.kind in SALVAGE for problem in found.problems)
    finished = [name for name in on_disk if name.endswith(".seg")]
    found.orphans = [name for name in finished if name not in found.named and not layout.is_token_name(name)]
    found.orphan_tokens = [name for name in finished if name not in found.tokens and layout.is_token_name(name)]
    if salvage or found.lost:
        for name in found.orphans:
            reading.start(name)
        checks = {check.name: check for check in reading.results() if not layout.is_token_name(check.name)}
        found.segments.update(checks)
    found.bytes += sum(check.size for check in reading.results())
    if salvage and not found.named:
        _tell_what_is_there(found)
    elif not salvage:
        note = "; a writer is at work, it may be its own" if found.busy else ""
        for name in (*found.orphans, *found.orphan_tokens):
            found.add("orphan", name, f"the catalog does not name it{note}", _NEXT_WRITER)
    temporary = [f"{layout.SEGMENTS}/{name}" for name in on_disk if name.endswith(".tmp")]
    of_repair = (layout.NEW_CATALOG, layout.OLD_CATALOG)
    halves = sorted(name for name in os.listdir(found.path) if name.startswith(of_repair)) if not salvage else []
    found.leftovers = [*temporary, *halves]
    for name in found.leftovers:
        note = "; a writer is at work, it may be its own" if found.busy else ""
        remedy = _NEXT_WRITER if name in temporary else REPAIR
        found.add("leftover", name, f"something that was not finished left it{note}", remedy)


_NEXT_WRITER = f"nothing: the next {INDEX} removes it; so does {REPAIR}"


def _tell_what_is_there(found: Findings) -> None:
    """Adds to the first problem, of the catalog, what its segments still hold; and what is wrong with these."""
    sound = [check.segment for check in found.segments.values() if check.segment is not None]
    rows = sum(segment.count for segment in sound)
    first = found.problems[0]
    message = f"{first.message}; {counted(rows, 'vector')} in {counted(len(sound), 'segment')} can be saved"
    found.problems[0] = Problem(first.kind, first.where, message, first.remedy)
    for check in found.segments.values():
        if check.kind is not None:
            found.add(check.kind, check.name, check.message, REPAIR_AND_INDEX)
