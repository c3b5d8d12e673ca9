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

from mmsearch.retrieval.errors import IndexCorrupt, UsageError
from mmsearch.retrieval.neighbours import hamming, hash_pairs, vector_pairs
from mmsearch.retrieval.types import DuplicateGroup, DuplicatePicture, DuplicateReport, Picture, Stamp

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mmsearch.retrieval.neighbours import Pairs
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
    sample = _unit(embeddings.rows(np.linspace(0, len(embeddings) - 1, count).astype(np.int64)))
    median = float(np.median((sample @ sample.T)[np.triu_indices(count, 1)]))
    typical = (count * median + _USUAL_WEIGHT * _USUAL) / (count + _USUAL_WEIGHT)
    return DuplicateRule.around(min(max(typical, 0.0), 1.0), threshold=threshold)


def find_duplicates(
    snapshot: Snapshot, *, threshold: float | None = None, progress: Callable[[int, int], None] | None = None
) -> DuplicateReport:
    """All near-duplicates among the pictures of an index; see the module.

    Args:
        snapshot: the index.
        threshold: cosine that is enough whatever the hashes say.
        progress: told how many pictures' worth of comparisons is done, and how many there are.
    """
    items = snapshot.picture_columns()
    items = items.take(_preference(items))
    contents = items.take(np.sort(np.unique(items.embedding_ids, return_index=True)[1]))
    vectors = _Vectors(snapshot.embeddings("image"), contents.embedding_ids)
    rule = rule_of(snapshot.embeddings("image"), threshold=threshold)

    def told(share: float) -> None:
        if progress is not None:
            progress(round(share * len(items)), len(items))

    pairs = near_duplicate_pairs(contents, vectors, rule, progress=told)
    involved = np.isin(items.embedding_ids, contents.embedding_ids[np.concatenate([pairs.first, pairs.second])])
    involved |= np.isin(items.embedding_ids, _repeated(items.embedding_ids))
    items = items.take(involved)
    records = _Files(snapshot, items)
    groups = _groups(items.take(records.there), contents, pairs, records.found)
    groups.sort(key=lambda group: (-group.bytes, group.keep.item_id))
    return DuplicateReport(tuple(groups), len(involved), records.left_out)
