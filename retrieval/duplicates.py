"""Near-duplicates of a whole index: which pictures are one photo, and which of them to keep.

Two pictures are near-duplicates if they have the same content, or if their embeddings are close: the closer, the
more their perceptual hashes differ. How close is said between the cosine that two pictures of this index typically
have and 1, because models differ in that:

| bits that differ, at most | 8 | 12 | 18 | any, or no hash |
| --- | --- | --- | --- | --- |
| of the way from typical to 1 | 0.40 | 0.88 | 0.92 | 0.975 |

Candidates come from `retrieval.neighbours`; every pair that is reported was compared with this rule. A group is a
star: each duplicate was compared with the picture that is kept, so that no chain of small changes leads from one
picture to another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.conditions import condition_of
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.neighbours import hamming, hash_pairs, unit_rows, vector_pairs
from mmsearch.retrieval.store.selection import pages_where
from mmsearch.retrieval.types import DuplicateGroup, DuplicatePicture, DuplicateReport, Picture, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.store.columns import Embeddings, PictureColumns
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.store.records import ItemRecord

UNHASHED = 65
"""Stands for the distance of hashes where one picture has none."""

# Chosen on variants and on different photos of the training half of Flickr8k with the starter: docs/duplicates.md.
_RUNGS = ((8, 0.40), (12, 0.88), (18, 0.92), (UNHASHED, 0.975))
_SAMPLE = 1000
_USUAL, _USUAL_WEIGHT = 0.5, 100
"""What pictures of most models have in common, and how many pictures it takes to outweigh that."""

_ROUNDING = 1e-4  # of a float32 inner product, and more
_HASH_SHARE = 0.3  # of the time, about
_BEST_NEIGHBOURS = 32
_BUFFER_PAIRS = 2**20
_VERIFY_ROWS = 4096
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class DuplicateRule:
    """The cosine that makes two pictures near-duplicates, by the distance of their hashes.

    Attributes:
        typical: cosine of two pictures that have nothing to do with each other.
        cosines: float64 (66): the least by distance in bits, the last where there is no hash; never falling.
    """

    typical: float
    cosines: NDArray[np.float64]

    @classmethod
    def around(cls, typical: float, *, threshold: float | None = None) -> DuplicateRule:
        """The rule for a model whose pictures have that cosine with each other.

        Args:
            typical: see above.
            threshold: cosine that is enough whatever the hashes say; by default it follows from `typical`.
        """
        if threshold is not None and not 0 < threshold <= 1:
            raise UsageError(f"the threshold is a cosine above 0 and up to 1, not {threshold}")
        cosines = np.empty(UNHASHED + 1)
        for bits, way in reversed(_RUNGS):
            cosines[: bits + 1] = typical + way * (1 - typical)
        if threshold is not None:
            cosines[_RUNGS[-2][0] + 1 :] = threshold
            cosines = np.minimum(cosines, threshold)
        return cls(typical, cosines)

    @property
    def hash_bits(self) -> int:
        """Up to how many bits only hashes lead to a pair, because embeddings may be far apart."""
        return _RUNGS[0][0]

    @property
    def least(self) -> float:
        """The smallest cosine of a pair that hashes alone do not lead to."""
        return float(self.cosines[self.hash_bits + 1])


def is_near_duplicate(
    cosines: NDArray[np.floating[Any]], distances: NDArray[np.integer[Any]], rule: DuplicateRule
) -> NDArray[np.bool_]:
    """For each pair of pictures whether they are near-duplicates, unless their content is the same anyway.

    Args:
        cosines: of their embeddings.
        distances: of their perceptual hashes, in bits; `UNHASHED` where one has none.
        rule: of the index, see `rule_of`.
    """
    near: NDArray[np.bool_] = cosines >= rule.cosines[distances]
    return near


def hash_distances(
    a: NDArray[np.int64], b: NDArray[np.int64], hashed: NDArray[np.bool_] | bool = True
) -> NDArray[np.uint8]:
    """Bits in which perceptual hashes differ, pair by pair; `UNHASHED` where `hashed` is not set."""
    return np.where(hashed, hamming(a.view(np.uint64), b.view(np.uint64)), np.uint8(UNHASHED))


def rule_of(embeddings: Embeddings, *, threshold: float | None = None) -> DuplicateRule:
    """The rule for an index: the typical cosine is the median of pairs of a sample of its pictures.

    An index of few pictures says little about its model, and two copies of one picture nothing: the median is
    drawn towards a usual value, the more the fewer there are.
    """
    count = min(len(embeddings), _SAMPLE)
    if count < 2:
        return DuplicateRule.around(_USUAL, threshold=threshold)
    sample = unit_rows(embeddings.rows(np.linspace(0, len(embeddings) - 1, count).astype(np.int64)))
    median = float(np.median((sample @ sample.T)[np.triu_indices(count, 1)]))
    typical = (count * median + _USUAL_WEIGHT * _USUAL) / (count + _USUAL_WEIGHT)
    return DuplicateRule.around(min(max(typical, 0.0), 1.0), threshold=threshold)


def find_duplicates(
    snapshot: Snapshot,
    *,
    threshold: float | None = None,
    where: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DuplicateReport:
    """All near-duplicates among the pictures of an index; see the module.

    Args:
        snapshot: the index.
        threshold: cosine that is enough whatever the hashes say.
        where: a filter; pictures that do not pass are left out. The rule stays that of the whole index.
        progress: told how many pictures' worth of comparisons is done, and how many there are.
    """
    items = snapshot.picture_columns()
    if where is not None:
        condition = condition_of(where, snapshot, "image")
        pages = [page[:, 1] for page in pages_where(snapshot, "image", condition, _PAGE)]
        items = items.take(np.isin(items.item_ids, np.concatenate([items.item_ids[:0], *pages])))
    items = items.take(_preference(items))
    contents = items.take(np.sort(np.unique(items.embedding_ids, return_index=True)[1]))
    embeddings = snapshot.embeddings("image")
    rule = rule_of(embeddings, threshold=threshold)

    def told(share: float) -> None:
        if progress is not None:
            progress(round(share * len(items)), len(items))

    pairs = near_duplicate_pairs(contents, embeddings, rule, progress=told)
    alike = np.concatenate([contents.embedding_ids[pairs.first], contents.embedding_ids[pairs.second]])
    ids, counts = np.unique(items.embedding_ids, return_counts=True)
    involved = items.take(np.isin(items.embedding_ids, np.concatenate([alike, ids[counts > 1]])))
    records, there, left_out = _as_indexed(snapshot, involved)
    groups = _stars(involved.take(there), contents.embedding_ids, pairs, records)
    groups.sort(key=lambda group: (-group.bytes, group.keep.item_id))
    return DuplicateReport(tuple(groups), len(items), left_out)


def _preference(items: PictureColumns) -> NDArray[np.intp]:
    """Places of pictures from the one to keep first: pixels, bytes, age, id."""
    return np.lexsort((items.item_ids, items.mtimes, -items.sizes, -items.areas))


# Pairs


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of contents that are near-duplicates: their places, the better first, and what was measured."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    cosines: NDArray[np.float64]
    distances: NDArray[np.uint8]


class _Vectors:
    """The vectors of contents by their place, of length one."""

    def __init__(self, embeddings: Embeddings, embedding_ids: NDArray[np.int64]) -> None:
        self._embeddings = embeddings
        self._at = embeddings.places(embedding_ids)

    def rows(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        return unit_rows(self._embeddings.rows(self._at[places]))

    def cosines(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        """Of pairs, in float64, each by itself: the same whatever it is computed with."""
        out = np.empty(len(a))
        for start in range(0, len(a), _VERIFY_ROWS):
            some = slice(start, start + _VERIFY_ROWS)
            left = self._embeddings.rows(self._at[a[some]]).astype(np.float64)
            right = self._embeddings.rows(self._at[b[some]]).astype(np.float64)
            lengths = np.sqrt((left * left).sum(axis=1) * (right * right).sum(axis=1))
            out[some] = (left * right).sum(axis=1) / np.where(lengths > 0, lengths, 1.0)
        return np.clip(out, -1.0, 1.0)


def near_duplicate_pairs(
    contents: PictureColumns,
    embeddings: Embeddings,
    rule: DuplicateRule,
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> NearPairs:
    """The pairs of contents that are near-duplicates, as far as candidates lead to them; each is verified.

    Args:
        contents: a row for each embedding, the better first.
        embeddings: the vectors of them.
        rule: of the index.
        progress: told what share is done.
    """
    vectors = _Vectors(embeddings, contents.embedding_ids)
    near = _Verified(contents, vectors, rule)
    hashed = np.flatnonzero(contents.hashed)
    hashes = contents.phashes[hashed].view(np.uint64)
    for a, b in hash_pairs(hashes, rule.hash_bits, progress=lambda share: progress(_HASH_SHARE * share)):
        near.offer(hashed[a], hashed[b])
    done = _HASH_SHARE

    def told(share: float) -> None:
        progress(done + (1 - done) * share)

    for i, j, scores in vector_pairs(vectors.rows, len(contents), rule.least, progress=told):
        likely = is_near_duplicate(scores + np.float32(_ROUNDING), near.distances(i, j), rule)
        near.offer(i[likely], j[likely])
    return near.pairs()


class _Verified:
    """Collects candidates, verifies each once, and keeps for each content the best of those that are better than it.

    So a picture that was saved ten thousand times needs memory for ten thousand small lists, not for all pairs.
    """

    def __init__(self, contents: PictureColumns, vectors: _Vectors, rule: DuplicateRule) -> None:
        self._contents, self._vectors, self._rule = contents, vectors, rule
        self._waiting: list[NDArray[np.int64]] = []
        self._count = 0
        self._codes = np.empty(0, np.int64)  # second * n + first: ascending, grouped by the worse of two
        self._cosines = np.empty(0)

    def distances(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Of the hashes of pairs."""
        contents = self._contents
        return hash_distances(contents.phashes[i], contents.phashes[j], contents.hashed[i] & contents.hashed[j])

    def offer(self, i: NDArray[np.int64], j: NDArray[np.int64]) -> None:
        """Takes candidates, i < j."""
        if len(i):
            self._waiting.append(j * len(self._contents) + i)
            self._count += len(i)
        if self._count >= _BUFFER_PAIRS:
            self._verify()

    def _verify(self) -> None:
        new = np.unique(np.concatenate([self._codes[:0], *self._waiting]))
        self._waiting, self._count = [], 0
        new = new[~np.isin(new, self._codes)]
        j, i = np.divmod(new, len(self._contents))
        cosines = self._vectors.cosines(i, j)
        near = is_near_duplicate(cosines, self.distances(i, j), self._rule)
        codes = np.concatenate([self._codes, new[near]])
        cosines = np.concatenate([self._cosines, cosines[near]])
        order = np.argsort(codes)
        second = codes[order] // len(self._contents)
        best = np.arange(len(order)) - np.searchsorted(second, second) < _BEST_NEIGHBOURS
        self._codes, self._cosines = codes[order][best], cosines[order][best]

    def pairs(self) -> NearPairs:
        """All that hold, sorted by the worse and then by the better content."""
        if self._count:
            self._verify()
        second, first = np.divmod(self._codes, max(1, len(self._contents)))
        return NearPairs(first, second, self._cosines, self.distances(first, second))


# Groups


def _as_indexed(snapshot: Snapshot, items: PictureColumns) -> tuple[dict[int, ItemRecord], NDArray[np.intp], int]:
    """What is known of items, the places of those whose files are as they were indexed, and how many are not.

    Nobody should delete the copies of a picture that is not there any more. Of several names of one file (links),
    one is taken, lest the file that is kept be deleted under its other name.
    """
    records: dict[int, ItemRecord] = {}
    there: dict[tuple[int, int] | int, int] = {}
    left_out = 0
    for start in range(0, len(items), _PAGE):
        page = snapshot.items(items.item_ids[start : start + _PAGE].tolist())
        records |= page
        for place in range(start, min(start + _PAGE, len(items))):
            record = records[int(items.item_ids[place])]
            if record.path is None:
                there[place] = place
                continue
            stat = _stat(record.path)
            stamp = Stamp(int(items.sizes[place]), int(items.mtimes[place]))
            if stat is None or (record.fragment is None and Stamp.of(stat) != stamp):
                left_out += 1
                continue
            other = there.setdefault((stat.st_dev, stat.st_ino), place)
            if other != place and os.path.realpath(record.path) == record.path and _is_link(records, items, other):
                there[stat.st_dev, stat.st_ino] = place
    return records, np.array(sorted(there.values()), np.intp), left_out


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def _is_link(records: dict[int, ItemRecord], items: PictureColumns, place: int) -> bool:
    path = records[int(items.item_ids[place])].path
    return path is not None and os.path.realpath(path) != path


def _stars(
    items: PictureColumns, embedding_ids: NDArray[np.int64], pairs: NearPairs, records: dict[int, ItemRecord]
) -> list[DuplicateGroup]:
    """Groups of items, which come best first: each that no better one has taken takes all that are left near it."""
    by_id = np.argsort(embedding_ids)
    contents = by_id[np.searchsorted(embedding_ids, items.embedding_ids, sorter=by_id)].tolist()
    members: dict[int, list[int]] = {}
    for place, content in enumerate(contents):
        members.setdefault(content, []).append(place)
    ranks = np.full(len(embedding_ids), -1)
    ranks[list(members)] = np.arange(len(members))
    taken: dict[int, int] = {}  # content -> the pair that ties it to the one that is kept
    stars: dict[int, list[int]] = {}
    for better, worse, pair in _from_the_best(pairs, ranks):
        if better not in taken and worse not in taken:
            taken[worse] = pair
            stars.setdefault(better, []).append(worse)
    groups = []
    for content, own in members.items():
        if content in taken:
            continue
        others = [place for worse in stars.get(content, ()) for place in members[worse]]
        if len(own) + len(others) < 2:
            continue
        keep, *rest = sorted(own + others)
        groups.append(
            DuplicateGroup(
                _picture(items, keep, records),
                tuple(_duplicate(items, place, records, pairs, taken.get(contents[place])) for place in rest),
            )
        )
    return groups


def _from_the_best(pairs: NearPairs, ranks: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """Pairs of contents that are there, better and worse, with their number: those of the best content first."""
    first, second = ranks[pairs.first], ranks[pairs.second]
    turned = first > second
    better, worse = np.where(turned, pairs.second, pairs.first), np.where(turned, pairs.first, pairs.second)
    order = np.lexsort((np.maximum(first, second), np.minimum(first, second)))
    order = order[np.minimum(first, second)[order] >= 0]
    for start in range(0, len(order), _PAGE):
        some = order[start : start + _PAGE]
        yield from zip(better[some].tolist(), worse[some].tolist(), some.tolist(), strict=True)


def _picture(items: PictureColumns, place: int, records: dict[int, ItemRecord]) -> Picture:
    record = records[int(items.item_ids[place])]
    path = None if record.path is None else Path(record.path)
    return Picture(record.item_id, path, record.uri, record.width, record.height, int(items.sizes[place]))


def _duplicate(
    items: PictureColumns, place: int, records: dict[int, ItemRecord], pairs: NearPairs, pair: int | None
) -> DuplicatePicture:
    one = _picture(items, place, records)
    cosine, distance = 1.0, 0 if items.hashed[place] else UNHASHED
    if pair is not None:
        cosine, distance = float(pairs.cosines[pair]), int(pairs.distances[pair])
    return DuplicatePicture(
        one.item_id,
        one.path,
        one.uri,
        one.width,
        one.height,
        one.size,
        phash_distance=None if distance == UNHASHED else distance,
        cosine=cosine,
    )
