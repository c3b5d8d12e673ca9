"""Words, for lexical search: how texts and names are written into SQLite's FTS5, and how it is asked.

FTS5's `unicode61` splits at everything that is no letter or digit, and folds case and diacritics. It would take a
sentence without spaces for one word, so runs of Chinese and Japanese characters (and Hangul, whose words take
endings) are written as overlapping bigrams and the last character alone: `大花猫` as `大花 花猫 猫`. A word of two
or more characters is then a phrase of bigrams, and one of a single character a prefix. Thai, Lao, Khmer and Burmese,
which have no spaces either, are left to `unicode61`.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

_UNSPACED = "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf" + (
    "\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_INVISIBLE = re.compile("[\u00ad\u034f\u180b-\u180f\u2060\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]")
"""Soft hyphens, joiners and variation selectors, which stand inside words."""
_NAME_WORD = re.compile(rf"[^\W_{_UNSPACED}]+")
_NAME_PART = re.compile("0+|A+(?!a)|A?a+")

_STOP_WORDS = frozenset(
    "a an and are as at be by for from has he her his in into is it its of on or she some that the their them there"
    " they this to was were while with".split()
)
"""English words that say nothing of a picture; left out of a query that has others."""

_MOST_WORDS = 64
"""Further words of a text are not looked for; models read about as many."""
_BUDGET = 5_000
_COUNTED = _BUDGET + 1
_COMMON_SHARE, _FEW_ROWS = 0.5, 100


@dataclass(frozen=True, slots=True)
class Word:
    """A word or a phrase of a query.

    Attributes:
        text: as people know it, case folded.
        match: an FTS5 expression.
    """

    text: str
    match: str


@dataclass(frozen=True, slots=True)
class WordQuery:
    """What lexical search looks for.

    Attributes:
        match: an FTS5 expression.
        words: its phrases, then its words, rarest first.
        phrases: those that an item must have.
        shares: of each of `words`, by how rare it is, in all that is asked for: words that nothing has count too, so
            they sum to 1 at most.
        rows: in how many rows each of `words` is; where that is many it may be more.
    """

    match: str
    words: tuple[Word, ...]
    phrases: tuple[Word, ...] = ()
    shares: tuple[float, ...] = ()
    rows: tuple[int, ...] = ()

    @property
    def most_rows(self) -> int:
        """In how many rows `match` is, at most, as far as `rows` go."""
        return min(self.rows[: len(self.phrases)]) if self.phrases else sum(self.rows)


def has_unspaced(text: str) -> bool:
    """Whether a text has characters of a script that puts no spaces between words."""
    return _RUN.search(text) is not None


def word_count(text: str) -> float:
    """How many words a text has; of scripts without spaces, two characters are taken for one."""
    unspaced = sum(map(len, _RUN.findall(text)))
    return len(_NAME_WORD.findall(text)) + unspaced / 2


def words_of(text: str) -> str:
    """A text as it is written into FTS5."""
    return _RUN.sub(lambda run: f" {' '.join([*_bigrams(run[0]), run[0][-1]])} ", _normal(text))


def name_words(uri: str) -> str:
    """The words of a file name and of its folders, out of a percent-encoded uri: as they are, then their parts.

    `SummerTrip/IMG_2041beach.jpg` has the words SummerTrip, IMG, 2041beach, jpg, Summer, Trip, 2041 and beach.
    """
    path = unquote_to_bytes(uri.encode("utf-8", "replace")).decode("utf-8", "replace")
    name = unicodedata.normalize("NFKC", path)
    parts = [part for word in _NAME_WORD.findall(name) if len(found := _name_parts(word)) > 1 for part in found]
    return words_of(" ".join([name, *parts]))


def word_query(
    texts: Sequence[tuple[str, Sequence[str]]],
    excluded: Sequence[tuple[str, Sequence[str]]],
    frequency: Callable[[str, int], int],
    total: int,
    *,
    common: bool = True,
) -> WordQuery | None:
    """The FTS5 expression for what a query looks for; None where nothing can be found.

    Rows with any of the words are found; phrases are required. Frequent words cost much and say little: function
    words count only where there are no others; words are taken from the rarest on while the rows that have them stay
    within a budget, and always the rarest; a word that is in more than half of the rows counts only if all are.

    Args:
        texts: of clauses to find, the text and its exact phrases.
        excluded: the same of clauses to leave out: rows with all the words and phrases of one.
        frequency: in how many rows an expression is, up to a limit: (expression, limit).
        total: how many rows there are.
        common: whether words that more than half of the rows have count where there are no others.
    """
    phrases = tuple(_distinct(phrase for _, quoted in texts for phrase in _phrases(quoted)))
    counted = {phrase: frequency(phrase.match, _COUNTED) for phrase in phrases}
    if not all(counted.values()):
        return None
    words = _distinct(word for text, quoted in texts for word in _words(_without(text, quoted)))[:_MOST_WORDS]
    content = [word for word in words if word.text not in _STOP_WORDS]
    wanted = content or ([] if phrases else words)
    counted |= _counted(wanted, frequency, total)
    found = _within_budget([(counted[word], word) for word in wanted], total, common)
    if not (phrases or found):
        return None
    match = " AND ".join(phrase.match for phrase in phrases)
    if found:
        any_of = " OR ".join(word.match for word in (*phrases[:1], *found))
        match = f"{match} AND ({any_of})" if phrases else any_of
    unwanted = [f"({' AND '.join(parts)})" for text, quoted in excluded if (parts := _all_of(text, quoted))]
    if unwanted:
        match = f"({match}) NOT ({' OR '.join(unwanted)})"
    looked_for = tuple(_distinct((*phrases, *found)))
    rarity = {word: _rarity(rows, total) for word, rows in counted.items() if not rows or word in looked_for}
    shares = tuple(rarity[word] / sum(rarity.values()) for word in looked_for)
    return WordQuery(match, looked_for, phrases, shares, tuple(counted[word] for word in looked_for))


def _counted(words: Sequence[Word], frequency: Callable[[str, int], int], total: int) -> dict[Word, int]:
    """How many rows have each word, up to a limit that one of them does not reach, or that is half of all."""
    counted = {word: frequency(word.match, _COUNTED) for word in words}
    found = [word for word, rows in counted.items() if rows]
    half = int(_COMMON_SHARE * total) + 1
    if half > _COUNTED and all(counted[word] == _COUNTED for word in found):
        counted |= {word: frequency(word.match, half) for word in found}
    return counted


def _rarity(rows: int, total: int) -> float:
    """The inverse document frequency of BM25, in the form that is above zero for all."""
    return math.log(1 + (max(total - rows, 0) + 0.5) / (rows + 0.5))


def _within_budget(counted: Sequence[tuple[int, Word]], total: int, common: bool) -> list[Word]:
    """The words that are looked for, of words and how many rows have them, rarest first; none that no row has."""
    found = sorted(((rows, word) for rows, word in counted if rows), key=lambda pair: pair[0])
    if total > _FEW_ROWS and found and (found[0][0] <= _COMMON_SHARE * total or not common):
        found = [(rows, word) for rows, word in found if rows <= _COMMON_SHARE * total]
    taken: list[Word] = []
    spent = 0
    for rows, word in found:
        spent += rows
        if taken and spent > _BUDGET:
            break
        taken.append(word)
    return taken


def _all_of(text: str, quoted: Sequence[str]) -> list[str]:
    """Expressions that together say that a row has all of a text; function words only where it has no others."""
    words = [word for one in _without(text, quoted).split() if (word := _phrase(one))]
    content = [word for word in words if word.text not in _STOP_WORDS]
    phrases = list(_phrases(quoted))
    return [word.match for word in _distinct([*phrases, *(content or ([] if phrases else words))])]


def _without(text: str, quoted: Sequence[str]) -> str:
    """A text without its phrases, which are in it in this order."""
    rest, start = [], 0
    for phrase in quoted:
        at = text.find(phrase, start)
        if at >= 0:
            rest.append(text[start:at])
            start = at + len(phrase)
    return " ".join([*rest, text[start:]])


def _words(text: str) -> Iterator[Word]:
    """The words of a query text; of a run of unspaced characters its bigrams."""
    for piece, is_run in _pieces(text):
        if not is_run:
            yield Word(piece, _quoted(piece))
        elif len(piece) == 1:
            yield Word(piece, f"{_quoted(piece)} *")
        else:
            yield from (Word(bigram, _quoted(bigram)) for bigram in _bigrams(piece))


def _phrases(quoted: Iterable[str]) -> Iterator[Word]:
    return (phrase for text in quoted if (phrase := _phrase(text)))


def _phrase(text: str) -> Word | None:
    """Consecutive words; None where a text has none. A run at the end may go on in the text that is found."""
    pieces = list(_pieces(text))
    if not pieces:
        return None
    tokens: list[str] = []
    for piece, is_run in pieces:
        tokens += [*_bigrams(piece), piece[-1]] if is_run else [piece]
    last, is_run = pieces[-1]
    if is_run and len(last) > 1:
        tokens.pop()
    prefix = " *" if is_run and len(last) == 1 else ""
    written = last if len(pieces) == 1 else " ".join(_normal(text).split())
    return Word(written, f"{_quoted(' '.join(tokens))}{prefix}")


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """The words of a text in order, and whether each is a run of unspaced characters."""
    normal = _normal(text)
    start = 0
    for run in _RUN.finditer(normal):
        yield from ((word, False) for word in _spaced_words(normal[start : run.start()]))
        yield run[0], True
        start = run.end()
    yield from ((word, False) for word in _spaced_words(normal[start:]))


def _spaced_words(text: str) -> Iterator[str]:
    """Words between blanks, without the punctuation around them: FTS5 splits at what is inside."""
    for word in text.split():
        lettered = [at for at, char in enumerate(word) if char.isalnum()]
        if lettered:
            end = lettered[-1] + 1
            while end < len(word) and unicodedata.category(word[end]).startswith("M"):
                end += 1
            yield word[lettered[0] : end]


def _name_parts(word: str) -> list[str]:
    """`IMG2041BeachHTML` as IMG, 2041, Beach, HTML, in any script that has capitals."""
    shape = "".join("0" if char.isdigit() else "A" if char.isupper() else "a" for char in word)
    return [word[part.start() : part.end()] for part in _NAME_PART.finditer(shape)]


def _bigrams(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]


def _normal(text: str) -> str:
    """Full-width and half-width forms alike, case folded (`ß` is `ss`), nothing that SQLite cannot store."""
    visible = _INVISIBLE.sub("", text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return _UNSTORABLE.sub(" ", folded)


def _quoted(text: str) -> str:
    return '"' + " ".join(text.replace('"', " ").split()) + '"'


def _distinct(words: Iterable[Word]) -> list[Word]:
    return list(dict.fromkeys(words))
