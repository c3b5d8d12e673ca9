"""Words, for lexical search: how texts and names are written into SQLite's FTS5, and how it is asked.

FTS5's `unicode61` splits at everything that is no letter or digit, and folds case and diacritics. It would take a
sentence without spaces for one word, so runs of Chinese and Japanese characters (and Hangul, whose words take
endings) are written as overlapping bigrams and the last character alone: `大花猫` as `大花 花猫 猫`. A word of two
or more characters is then a phrase of bigrams, and one of a single character a prefix.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

_UNSPACED = "\u2e80-\u2fdf\u3005-\u3007\u3040-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff" + (
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_CAMEL = re.compile(r"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|(?<=[a-zß-ÿ])(?=[A-ZÀ-Þ])")

_STOP_WORDS = frozenset(
    "a an and are as at be by for from has he her his in into is it its of on or she some that the their them there"
    " they this to was were while with".split()
)
"""English words that say nothing of a picture; left out of a query that has others."""

_BUDGET = 20_000
_COMMON_SHARE, _FEW_ROWS = 0.5, 100


@dataclass(frozen=True, slots=True)
class WordQuery:
    """What lexical search looks for.

    Attributes:
        match: an FTS5 expression.
        words: its words and phrases, each as an FTS5 expression of its own, rarest first.
        phrases: those that an item must have.
    """

    match: str
    words: tuple[str, ...]
    phrases: tuple[str, ...] = ()


def words_of(text: str) -> str:
    """A text as it is written into FTS5."""
    return _RUN.sub(lambda run: f" {' '.join([*_bigrams(run[0]), run[0][-1]])} ", _normal(text))


def name_words(uri: str) -> str:
    """The words of a file name and of its folders, out of a percent-encoded uri.

    `2023/SummerTrip/IMG_2041beach.jpg` has the words 2023, Summer, Trip, IMG, 2041, beach and jpg.
    """
    return words_of(_CAMEL.sub(" ", unquote_to_bytes(uri).decode("utf-8", "replace").replace("_", " ")))


def word_query(
    texts: Sequence[tuple[str, Sequence[str]]],
    excluded: Sequence[tuple[str, Sequence[str]]],
    frequency: Callable[[str, int], int],
    total: int,
) -> WordQuery | None:
    """The FTS5 expression for what a query looks for; None where there is nothing to look for.

    Rows with any of the words are found; phrases are required. Frequent words cost much and say little: words are
    taken from the rarest on while the rows that have them stay within a budget, and always the rarest; a word that is
    in more than half of the rows counts only if all are.

    Args:
        texts: of clauses to find, the text and its exact phrases.
        excluded: the same of clauses to leave out: rows with all the words, or the phrases, of one.
        frequency: in how many rows an expression is, counted up to a limit: (expression, limit).
        total: how many rows there are.
    """
    phrases = [phrase for _, quoted in texts for text in quoted if (phrase := _phrase(text))]
    words = {word: None for text, quoted in texts for word in _words(_without(text, quoted))}
    content = [word for word in words if word.strip('"').casefold() not in _STOP_WORDS]
    rare = _within_budget(phrases or content or list(words), frequency, total)
    if phrases:
        rare += _within_budget(content, frequency, total)
    if not rare:
        return None
    match = " OR ".join(rare)
    for phrase in phrases:
        match = f"{phrase} AND ({match})"
    unwanted = [part for text, quoted in excluded if (part := _all_of(text, quoted))]
    if unwanted:
        match = f"({match}) NOT ({' OR '.join(unwanted)})"
    return WordQuery(match, tuple(dict.fromkeys(rare)), tuple(phrases))


def _within_budget(words: Sequence[str], frequency: Callable[[str, int], int], total: int) -> list[str]:
    limit = _BUDGET + 1
    counted = sorted((frequency(word, limit), number, word) for number, word in enumerate(dict.fromkeys(words)))
    found = [(rows, word) for rows, _, word in counted if rows]
    if total > _FEW_ROWS and found and found[0][0] <= _COMMON_SHARE * total:
        found = [(rows, word) for rows, word in found if rows <= _COMMON_SHARE * total]
    taken: list[str] = []
    spent = 0
    for rows, word in found:
        if taken and spent + rows > _BUDGET:
            break
        spent += rows
        taken.append(word)
    return taken


def _all_of(text: str, quoted: Sequence[str]) -> str:
    parts = [*(phrase for one in quoted if (phrase := _phrase(one))), *_words(_without(text, quoted))]
    return f"({' AND '.join(parts)})" if parts else ""


def _without(text: str, quoted: Sequence[str]) -> str:
    """A text without its phrases, which are in it in this order."""
    rest, start = [], 0
    for phrase in quoted:
        at = text.find(phrase, start)
        if at >= 0:
            rest.append(text[start:at])
            start = at + len(phrase)
    return " ".join([*rest, text[start:]])


def _words(text: str) -> Iterator[str]:
    """The words of a query text, as FTS5 expressions; of a run of unspaced characters its bigrams."""
    normal = _normal(text)
    start = 0
    for run in _RUN.finditer(normal):
        yield from _spaced_words(normal[start : run.start()])
        start = run.end()
        bigrams = _bigrams(run[0])
        yield from map(_quoted, bigrams) if bigrams else (f"{_quoted(run[0])} *",)
    yield from _spaced_words(normal[start:])


def _spaced_words(text: str) -> Iterator[str]:
    for word in text.split():
        if any(char.isalnum() for char in word):
            yield _quoted("".join(char if char.isalnum() or unicodedata.combining(char) else " " for char in word))


def _phrase(text: str) -> str:
    """The FTS5 expression for consecutive words."""
    normal = _normal(text)
    if not any(char.isalnum() for char in normal):
        return ""
    spaced = _RUN.sub(lambda run: f" {' '.join(_bigrams(run[0]) or [run[0]])} ", normal)
    single = re.search(f"(?:^|[^{_UNSPACED}])[{_UNSPACED}]$", normal.rstrip())
    return f"{_quoted(spaced)}{' *' if single else ''}"


def _bigrams(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]


def _normal(text: str) -> str:
    return _UNSTORABLE.sub(" ", unicodedata.normalize("NFKC", text))


def _quoted(text: str) -> str:
    return '"' + " ".join(text.replace('"', " ").split()) + '"'
