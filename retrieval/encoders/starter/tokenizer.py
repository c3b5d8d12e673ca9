"""The starter model's tokenizer: a unigram vocabulary, the best segmentation found by Viterbi.

The algorithm is that of SentencePiece's unigram model (Kudo 2018, arXiv 1804.10959). It gives the ids that the
`tokenizers` library gives for the exported `tokenizer.json` (tested), and starts several times faster, which
is what a query from a cold process waits for.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

BOS, PAD, EOS, UNK = 0, 1, 2, 3
"""Ids of the special pieces, which come first in the vocabulary."""

META = "\N{LOWER ONE EIGHTH BLOCK}"
"""Stands for a space inside pieces, as in SentencePiece."""

_DROPPED = [*range(0x01, 0x09), 0x0B, *range(0x0E, 0x20), 0x7F, 0x8F, 0x9F]
_SPACES = [0x09, 0x0A, 0x0C, 0x0D, 0x1680, *range(0x200B, 0x2010), 0x2028, 0x2029, 0x2581, 0xFEFF, 0xFFFD]
_NMT: dict[int, str] = dict.fromkeys(_DROPPED, "") | dict.fromkeys(_SPACES, " ")
"""SentencePiece's `nmt` rules: control characters go, every kind of space is a space."""

_SPACE_RUNS = re.compile(" +")


def normalise(text: str) -> str:
    """The `nmt_nfkc` normalisation, words parted by single spaces and each space written as `META`."""
    words = _SPACE_RUNS.split(unicodedata.normalize("NFKC", text.translate(_NMT)))
    return "".join(META + word for word in words if word)


class UnigramTokenizer:
    """Text to piece ids, `<s>` and `</s>` included.

    Args:
        pieces: the vocabulary in id order; ids 0-3 are `<s> <pad> </s> <unk>`.
        scores: log probability of each piece.
        max_tokens: longest id sequence `encode` returns, specials included.
    """

    def __init__(self, pieces: Sequence[str], scores: Sequence[float], *, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self._scores = scores
        self._ids = dict(zip(pieces, range(len(pieces)), strict=True))
        for special in pieces[: UNK + 1]:
            del self._ids[special]
        self._longest = max(map(len, self._ids))
        self._unknown = min(scores) - 10.0

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, cut to `max_tokens` (the end-of-text id is kept)."""
        ids = self._segment(normalise(text))
        return [BOS, *ids[: self.max_tokens - 2], EOS]

    def count(self, text: str) -> int:
        """Number of ids that `text` has before any cut, specials included."""
        return len(self._segment(normalise(text))) + 2

    def _segment(self, text: str) -> list[int]:
        ids, scores, longest, unknown = self._ids, self._scores, self._longest, self._unknown
        length = len(text)
        best = [0.0] + [-1e30] * length
        came: list[tuple[int, int]] = [(0, UNK)] * (length + 1)
        for start in range(length):
            here = best[start]
            for end in range(start + 1, min(start + longest, length) + 1):
                piece = ids.get(text[start:end])
                if piece is not None and here + scores[piece] > best[end]:
                    best[end] = here + scores[piece]
                    came[end] = (start, piece)
            if here + unknown > best[start + 1]:
                best[start + 1] = here + unknown
                came[start + 1] = (start, UNK)
        return list(_backtrack(came))[::-1]


def _backtrack(came: Sequence[tuple[int, int]]) -> Iterable[int]:
    end, previous = len(came) - 1, -1
    while end > 0:
        end, piece = came[end]
        if piece != UNK or previous != UNK:
            yield piece
        previous = piece
