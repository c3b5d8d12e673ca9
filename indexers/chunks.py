"""Cuts a text into pieces that an encoder can take whole, at the ends of sentences where there are any."""

from __future__ import annotations

import re
import unicodedata

from mmsearch.retrieval.types import TextChunk

_WIDE = re.compile(
    "[\u1100-\u11ff\u2e80-\u303f\u3040-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)
_WIDE_WEIGHT = 10 / 3  # a Chinese character is about one token, four Latin letters are
_MOST_CHARS = 400
_CHARS_PER_TOKEN = 3  # four in English, less in other languages

_BREAK = re.compile(
    r"""
      \n[^\S\n]*\n\s*                                   # an empty line: the end of a paragraph
    | \n(?=[^\S\n]*(?:\#{1,6}\s|[-*+>]\s|\d+[.)]\s|```)) # a heading, list item, quote or code fence of Markdown
    | [。！？；｡…]+[」』”’）》"')\]]*\s*                  # the end of a Chinese or Japanese sentence
    | (?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|No|vs))(?<!\bMrs) # (not after an initial or a title)
      [.!?]+["'”’»)\]*_]*\s+(?![a-z])                   # of a Latin one; "e.g. this" goes on
    | [।؟۔։።]+\s*                                       # of a Hindi, Arabic, Urdu, Armenian, Amharic one
    """,
    re.VERBOSE,
)
_FRAGMENT = re.compile(r"(?P<before>(?:.*&)?)char=(?P<first>\d+)-\d+")
_SOFT_BREAK = re.compile(r"[,;:)\]}–—]\s+|[，、：）》]\s*|\s+")


def chunk_chars(max_tokens: int | None) -> int:
    """How long chunks are for a model that reads `max_tokens` of a text; None where that is not known."""
    return _MOST_CHARS if max_tokens is None else min(_MOST_CHARS, _CHARS_PER_TOKEN * max_tokens)


def chunk_text(text: str, *, max_chars: int = _MOST_CHARS) -> list[TextChunk]:
    """Cuts `text` into chunks of whole sentences, in order and without overlap.

    Each chunk is a slice of the text, `text[start:end] == chunk.text`, without white space around it; together
    they hold everything that is not white space. A sentence that is too long is cut after a comma or a space, and
    where there is none (a URL, an unpunctuated Thai text) anywhere but inside a character with its accents.

    Args:
        text: any text; Markdown is taken as it stands.
        max_chars: the most Latin characters in a chunk; about 100 tokens. East Asian characters count 10/3, so a
            Chinese chunk has at most 120.
    """
    chunks: list[TextChunk] = []
    begin = end = 0
    weight = 0.0
    for start, stop in _sentences(text, float(max_chars)):
        added = _weight(text[start:stop])
        if weight and weight + added > max_chars:
            _append(chunks, text, begin, end)
            begin, weight = start, 0.0
        weight += added
        end = stop
    _append(chunks, text, begin, end)
    return chunks


def cut_further(fragment: str | None, text: str, *, max_chars: int) -> list[tuple[str | None, str]]:
    """Fragments and texts of a chunk that was cut for another model; only itself where it is short enough.

    Offsets go on counting where the chunk's own start, so they are those of the text that it was cut from.
    """
    full = max_chars + 0.5  # weights are sums of thirds: a full chunk may seem a little over
    pieces = [] if _weight(text) < full else chunk_text(text, max_chars=max_chars)
    if len(pieces) < 2:
        return [(fragment, text)]
    known = _FRAGMENT.fullmatch(fragment or "char=0-0")
    before, first = (known["before"], int(known["first"])) if known else (f"{fragment}&", 0)
    return [(f"{before}char={first + piece.start}-{first + piece.end}", piece.text) for piece in pieces]


def _sentences(text: str, most: float) -> list[tuple[int, int]]:
    """Adjoining spans that cover `text`, each of at most the weight `most`."""
    spans: list[tuple[int, int]] = []
    start = 0
    for stop in [*(match.end() for match in _BREAK.finditer(text)), len(text)]:
        if start < stop:
            spans.extend(_cut(text, start, stop, most))
            start = stop
    return spans


def _cut(text: str, start: int, stop: int, most: float) -> list[tuple[int, int]]:
    """Cuts an overlong sentence, at the last soft break of the second half of what fits if there is one."""
    spans: list[tuple[int, int]] = []
    while stop - start > most / _WIDE_WEIGHT and _weight(text[start : min(stop, start + int(most) + 1)]) > most:
        fits = _fitting(text, start, stop, most)
        soft = [match.end() for match in _SOFT_BREAK.finditer(text, start + (fits - start) // 2, fits)]
        at = soft[-1] if soft else _before_character(text, start, fits)
        spans.append((start, at))
        start = at
    spans.append((start, stop))
    return spans


def _fitting(text: str, start: int, stop: int, most: float) -> int:
    """How far a slice from `start` may reach without weighing more than `most`; at least one character."""
    weight, at = 0.0, start
    while at < stop:
        weight += _WIDE_WEIGHT if _WIDE.match(text[at]) else 1.0
        if weight > most:
            break
        at += 1
    return max(at, start + 1)


def _before_character(text: str, start: int, at: int) -> int:
    """Steps back from between a letter and its accents, or from inside a joined emoji."""
    back = at
    while back > start + 1 and at - back < 16 and _joins(text, back):
        back -= 1
    return back if back > start and not _joins(text, back) else at


def _joins(text: str, at: int) -> bool:
    if at >= len(text):
        return False
    following = text[at]
    return (
        unicodedata.category(following) in ("Mn", "Me", "Mc")
        or following == "\u200d"
        or text[at - 1] == "\u200d"
        or "\U0001f3fb" <= following <= "\U0001f3ff"  # skin tones
    )


def _weight(text: str) -> float:
    return len(text) if text.isascii() else len(text) + (_WIDE_WEIGHT - 1) * len(_WIDE.findall(text))


def _append(chunks: list[TextChunk], text: str, start: int, end: int) -> None:
    piece = text[start:end]
    stripped = piece.strip()
    if stripped:
        start += len(piece) - len(piece.lstrip())
        chunks.append(TextChunk(stripped, start, start + len(stripped)))
