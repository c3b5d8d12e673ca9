"""Search by words, in the table that `store.words` fills."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import compress
from typing import TYPE_CHECKING

from mmsearch.retrieval.store.records import Candidate, Condition
from mmsearch.retrieval.store.selection import passing

if TYPE_CHECKING:
    from mmsearch.retrieval.lexicon import WordQuery
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.types import Modality

_RANKED = "SELECT rowid, -bm25(words, 1.0, 1.0, 1.0) AS score FROM words WHERE words MATCH ? ORDER BY score DESC, rowid"
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
_OF_MODALITY = "SELECT item_id FROM items WHERE modality = ? AND item_id IN (SELECT value FROM json_each(?))"


def search_words(
    snapshot: Snapshot, query: WordQuery, modality: Modality, k: int, where: Condition | None = None
) -> list[Candidate]:
    """The k items of a modality whose words fit best (BM25), equal scores by `item_id`.

    A picture has the words of its name, its folders and its tags, and it is found by its captions too: texts beside
    it and rows that name it. Its score is that of the best of these.

    Args:
        snapshot: what to search.
        query: what to look for.
        modality: what to look at.
        k: at least 1, and not much more than there are items.
        where: a filter; what passes is ranked as if nothing else were there.
    """
    depth = 4 * k + 100
    while True:
        rows = snapshot.select(f"{_RANKED} LIMIT ?", (query.match, depth))
        scores = _of_modality(snapshot, dict(rows), modality)
        if where is not None:
            passed = passing(snapshot, list(scores), where)
            scores = {item_id: score for item_id, score in scores.items() if item_id in passed}
        # Rows that were not read may score as the last one did, and be of items with smaller ids.
        if len(rows) < depth or sum(score > rows[-1][1] for score in scores.values()) >= k:
            ranked = sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))
            return [Candidate(item_id, score) for item_id, score in ranked[:k]]
        depth *= 4


def word_frequency(snapshot: Snapshot, match: str, limit: int) -> int:
    """How many items have words that an FTS5 expression matches, counted up to a limit."""
    statement = "SELECT COUNT(*) FROM (SELECT rowid FROM words WHERE words MATCH ? LIMIT ?)"
    return int(snapshot.select(statement, (match, limit))[0][0])


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
    having = [{row_id for (row_id,) in snapshot.select(_HAVING, (word.match, ids))} for word in query.words]
    for item_id, row_id in rows:
        yield item_id, [row_id in those for those in having]


def _of_modality(snapshot: Snapshot, scores: dict[int, float], modality: Modality) -> dict[int, float]:
    ids = json.dumps(list(scores))
    best = {item_id: scores[item_id] for (item_id,) in snapshot.select(_OF_MODALITY, (modality, ids))}
    if modality == "image":
        for text_id, picture_id in snapshot.select(_OWNERS, (ids,)):
            best[picture_id] = max(best.get(picture_id, scores[text_id]), scores[text_id])
    return best
