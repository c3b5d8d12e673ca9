"""Search by words, in the table that `store.words` fills."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import compress, islice
from typing import TYPE_CHECKING

from mmsearch.retrieval.store.records import Candidate, Condition
from mmsearch.retrieval.store.selection import passing, spread

if TYPE_CHECKING:
    from mmsearch.retrieval.lexicon import WordQuery
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.types import Modality

_RANKED = (
    "SELECT rowid, -bm25(words, 1.0, 1.0, 1.0) AS score FROM words WHERE words MATCH ? AND rowid >= ?"
    " ORDER BY score DESC, rowid LIMIT ?"
)
_OWNERS = (
    "SELECT items.item_id, pictures.item_id FROM items JOIN assets USING (asset_id)"
    " JOIN assets AS owners ON owners.root_id = assets.owner_root_id AND owners.uri = assets.owner_uri"
    " JOIN items AS pictures ON pictures.asset_id = owners.asset_id AND pictures.modality = 'image'"
    " WHERE items.item_id IN (SELECT value FROM json_each(?)) ORDER BY pictures.item_id"
)
_WORDED = (
    "SELECT item_id, item_id FROM items WHERE item_id IN (SELECT value FROM json_each(?1)) UNION ALL"
    " SELECT pictures.item_id, texts.item_id FROM items AS pictures JOIN assets USING (asset_id)"
    " JOIN assets AS owned ON owned.owner_root_id = assets.root_id AND owned.owner_uri = assets.uri"
    " JOIN items AS texts ON texts.asset_id = owned.asset_id AND texts.modality = 'text'"
    " WHERE pictures.modality = 'image' AND pictures.item_id IN (SELECT value FROM json_each(?1))"
)
# The plus sign: FTS5 begins anew for each rowid that it is asked for, which takes far longer than reading all of them.
_HAVING = "SELECT rowid FROM words WHERE words MATCH ? AND +rowid IN (SELECT value FROM json_each(?))"
_HAVING_EACH = _HAVING.replace("+rowid", "rowid")
_PER_ROW = 400
"""Rather than ask for a row, so many rows that have a word can be read."""
_OLDEST = "SELECT MIN(rowid) FROM (SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid DESC LIMIT ?)"
_COUNT = "SELECT COUNT(*) FROM (SELECT rowid FROM words WHERE words MATCH ? LIMIT ?)"
_EXACTLY, _WINDOWS, _WINDOW = 20_000, 16, 256
"""More rows than so many are told by those of some windows of so many ids each, which is faster than to count."""
_IN_WINDOWS = "FROM json_each(?) AS first CROSS JOIN {0} WHERE {0}.{1} BETWEEN first.value AND first.value + ?"
_OF_MODALITY = "SELECT item_id FROM items WHERE modality = ? AND item_id IN (SELECT value FROM json_each(?))"


def search_words(
    snapshot: Snapshot,
    query: WordQuery,
    modality: Modality,
    k: int,
    where: Condition | None = None,
    most: int | None = None,
) -> list[Candidate]:
    """The k items of a modality whose words fit best (BM25).

    A picture has the words of its name, its folders and its tags, and it is found by its captions too: texts beside
    it and rows that name it. Its score is that of the best of these; equal scores go by the id of what has the words.

    Args:
        snapshot: what to search.
        query: what to look for.
        modality: what to look at.
        k: at least 1, and not much more than there are items.
        where: a filter; what passes is ranked as if nothing else were there.
        most: of how many with the words only the newest are ranked; None for all.
    """
    oldest = 0
    if most is not None and query.most_rows > most:
        oldest = snapshot.select(_OLDEST, (query.match, most))[0][0] or 0
    depth = 2 * k + 50
    while True:
        rows = snapshot.select(_RANKED, (query.match, oldest, depth))
        found = _of_modality(snapshot, rows, modality)
        if where is not None:
            passed = passing(snapshot, list(found), where)
            found = {item_id: score for item_id, score in found.items() if item_id in passed}
        if len(rows) < depth or len(found) >= k:
            return [Candidate(item_id, score) for item_id, score in islice(found.items(), k)]
        depth *= 4


def word_frequency(snapshot: Snapshot, match: str, limit: int) -> int:
    """How many items have words that an FTS5 expression matches, up to a limit; many are estimated, not counted."""
    ((counted,),) = snapshot.select(_COUNT, (match, min(limit, _EXACTLY)))
    if counted < _EXACTLY or limit <= _EXACTLY:
        return int(counted)
    ((last,),) = snapshot.select("SELECT MAX(item_id) FROM items")
    windows = json.dumps(spread(last, _WINDOWS)), _WINDOW - 1
    ((there,),) = snapshot.select(f"SELECT COUNT(*) {_IN_WINDOWS.format('items', 'item_id')}", windows)
    having = f"SELECT COUNT(*) {_IN_WINDOWS.format('words', 'rowid')} AND words MATCH ?"
    ((found,),) = snapshot.select(having, (*windows, match))
    estimated: int = round(found / max(1, there) * sum(snapshot.counts.values()))
    return min(limit, max(int(counted), estimated))


def found_words(snapshot: Snapshot, query: WordQuery, item_ids: list[int]) -> dict[int, tuple[str, ...]]:
    """Which words of a query some items have, or the texts that belong to them."""
    found: dict[int, dict[str, None]] = {item_id: {} for item_id in item_ids}
    for item_id, has in _has_words(snapshot, query, item_ids):
        found[item_id] |= {word.text: None for word in compress(query.words, has)}
    return {item_id: tuple(words) for item_id, words in found.items()}


def word_shares(snapshot: Snapshot, query: WordQuery, item_ids: list[int]) -> dict[int, float]:
    """How much of what a query asks for some items have, 0 to 1: themselves, or the best text that belongs to them."""
    best = dict.fromkeys(item_ids, 0.0)
    for item_id, has in _has_words(snapshot, query, item_ids):
        best[item_id] = max(best[item_id], sum(compress(query.shares, has)))
    return best


def _has_words(snapshot: Snapshot, query: WordQuery, item_ids: list[int]) -> Iterator[tuple[int, list[bool]]]:
    """For each item, and for each text that belongs to one: the item, and which of the words of a query it has."""
    rows = snapshot.select(_WORDED, (json.dumps(item_ids),))
    ids = json.dumps([row_id for _, row_id in rows])
    having = []
    for word, count in zip(query.words, query.rows, strict=True):
        statement = _HAVING_EACH if count > _PER_ROW * len(rows) else _HAVING
        having.append({row_id for (row_id,) in snapshot.select(statement, (word.match, ids))})
    for item_id, row_id in rows:
        yield item_id, [row_id in those for those in having]


def _of_modality(snapshot: Snapshot, rows: Sequence[tuple[int, float]], modality: Modality) -> dict[int, float]:
    """The items of a modality that rows stand for, each with the score of the first, in the order of the rows."""
    ids = json.dumps([row_id for row_id, _ in rows])
    own = {item_id for (item_id,) in snapshot.select(_OF_MODALITY, (modality, ids))}
    pictures: dict[int, list[int]] = {}
    if modality == "image":
        for text_id, picture_id in snapshot.select(_OWNERS, (ids,)):
            pictures.setdefault(text_id, []).append(picture_id)
    found: dict[int, float] = {}
    for row_id, score in rows:
        for item_id in [row_id] if row_id in own else pictures.get(row_id, ()):
            found.setdefault(item_id, score)
    return found
