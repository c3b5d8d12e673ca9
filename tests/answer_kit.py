"""Hits and answers as a search would give them, and text that means harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmsearch.retrieval.types import Answer, ClauseScore, Explanation, Hit, HitExplanation

HARM = "<script>alert(1)</script>\"' onerror=x \x1b[31m\x1b]0;title\x07 \u202egpj.exe\u2066 a\nb\u2028c \x9b5m &amp;"
"""Markup, quotes, escape sequences, marks that reverse text, and line ends."""

OBEYED = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\u2028")
"""What a terminal or a reader of HARM would obey."""


def hit(rank: int = 1, path: Path | None = None, **fields: Any) -> Hit:
    """A hit of a picture, unless the fields say otherwise."""
    known: dict[str, Any] = {
        "score": 0.5,
        "relevance": None,
        "uri": path.name if path is not None else "row",
        "fragment": None,
        "modality": "image",
        "text": None,
        "item_id": rank,
    }
    return Hit(rank=rank, path=path, **{**known, **fields})


def answer(*hits: Hit, clauses: tuple[ClauseScore, ...] = (), query: str = "red", **fields: Any) -> Answer:
    """An answer with its explanation."""
    explained = tuple(HitExplanation(one.item_id, clauses, {"dense": one.rank}, ("red",)) for one in hits)
    explanation = Explanation(query=query, mode="hybrid", fusion="early", hits=explained, **fields)
    return Answer(hits, None, (), explanation)
