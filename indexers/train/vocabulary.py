"""Which pieces of the text backbone's vocabulary the starter model keeps.

Pieces are dropped from the end of a ranking, and a word whose piece is gone is spelled with smaller ones, so
every text can still be written. First come all that can occur in English or Chinese, then other languages'.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmsearch.indexers.train.backbones import TextBackbone
from mmsearch.retrieval.encoders.starter.tokenizer import META, UNK

_HAN = (("\u3400", "\u4dbf"), ("\u4e00", "\u9fff"), ("\uf900", "\ufaff"), ("\U00020000", "\U0003134f"))
_CJK_PUNCTUATION = ("\u3000", "\u303f")


def _english_or_chinese(piece: str) -> bool:
    han = any(low <= c <= high for c in piece for low, high in (*_HAN, _CJK_PUNCTUATION))
    return han or all(c == META or c.isascii() for c in piece)


def choose_pieces(backbone: TextBackbone, size: int) -> NDArray[np.int64]:
    """Ids of the `size` pieces to keep, ascending; the four specials are among them.

    All pieces of ASCII characters or with Chinese ones, and all single characters, then the rest by score.
    """
    pieces = [piece.decode("utf-8", "replace") for piece in backbone.pieces]
    ranks = [
        (0 if i <= UNK else 1 if _english_or_chinese(p) or len(p) == 1 else 2, -float(backbone.scores[i]), i)
        for i, p in enumerate(pieces)
        if i < len(backbone.pieces) and "\ufffd" not in p
    ]
    return np.array(sorted(i for _, _, i in sorted(ranks)[:size]), np.int64)
