"""The text files of TREC: runs, qrels and topics, in and out (trec_eval's README; https://trec.nist.gov/data/).

- A run has lines `query Q0 document rank score tag`. The score decides the order, as it does for trec_eval. Where
  scores are equal the rank decides; trec_eval looks at the ids there, later ones first. So what is to be measured
  alike everywhere is best written as ids without scores: `write_run` then makes up scores that are all different.
- Qrels have lines `topic 0 document grade`.
- Topics have lines of an id, a tab and the text, or are marked up: `<top> <num> 301 <title> a text </top>`.
"""

from __future__ import annotations

import html
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import TypeVar

from mmsearch.retrieval.errors import MediaError, UsageError
from mmsearch.retrieval.media import decode_text

Results = Mapping[str, float] | Sequence[tuple[str, float]] | Sequence[str]
"""What was found for a query, best first: documents with their scores, or documents alone."""

_Value = TypeVar("_Value")

_TOP = re.compile(r"<top>(.*?)(?:</top>|(?=<top>)|\Z)", re.DOTALL | re.IGNORECASE)
_NUM = re.compile(r"<num>\s*(?:Number:)?\s*([^<]*?)\s*(?:<|\Z)", re.IGNORECASE)
_TITLE = re.compile(r"<title>\s*(?:Topic:)?\s*([^<]*?)\s*(?:<|\Z)", re.IGNORECASE)


def write_run(path: str | os.PathLike[str], run: Mapping[str, Results], *, tag: str = "mmsearch") -> None:
    """Writes a run that `read_run` reads as it is here, order and scores.

    Args:
        path: of the file; it is replaced.
        run: query -> results, best first. Those without scores get the numbers n, n - 1, ... 1.
        tag: names the system; white space becomes `-`.

    Raises:
        UsageError: an id is empty or has white space, a document comes twice, a score is no number, or a score is
            higher than the one before it, as those of different stages may be.
    """
    name = "-".join(tag.split()) or "mmsearch"
    lines = [
        f"{_word(query, 'query')} Q0 {_word(document, 'document')} {rank} {score!r} {name}\n"
        for query, results in run.items()
        for rank, (document, score) in enumerate(_scored(query, results), 1)
    ]
    Path(path).write_text("".join(lines), "utf-8", newline="\n")


def _scored(query: str, results: Results) -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    found: Sequence[tuple[str, float] | str] = list(results.items()) if isinstance(results, Mapping) else results
    for number, each in enumerate(found):
        if isinstance(each, str):
            pairs.append((each, float(len(found) - number)))
        else:
            pairs.append((each[0], float(each[1])))
    if len({document for document, _ in pairs}) < len(pairs):
        raise UsageError(f"query {query}: a document is among the results twice; leave one out")
    for number, (document, score) in enumerate(pairs):
        if isnan(score):
            raise UsageError(f"query {query}: the score of {document} is no number; leave it out")
        if number and score > pairs[number - 1][1]:
            raise UsageError(
                f"query {query}: {document} has a higher score than the document before it, and the score decides "
                "the order of a run; sort by score, or give the documents alone, best first"
            )
    return pairs


def read_run(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Query -> documents with their scores, best first; equal scores in the order of the ranks, then of the lines.

    Raises:
        MediaError: the file cannot be read, a line is malformed, or a document comes twice in a query.
    """
    shape = "query Q0 document rank score tag"
    rows: dict[str, dict[str, tuple[float, int]]] = _read(
        Path(path), 6, shape, lambda cells: (_number(cells[4]), int(cells[3]))
    )
    return {
        query: {
            document: score
            for document, (score, _) in sorted(found.items(), key=lambda pair: (-pair[1][0], pair[1][1]))
        }
        for query, found in rows.items()
    }


def write_qrels(path: str | os.PathLike[str], qrels: Mapping[str, Mapping[str, int]]) -> None:
    """Writes qrels: topic -> documents with their grades.

    Raises:
        UsageError: an id is empty or has white space.
    """
    lines = [
        f"{_word(topic, 'topic')} 0 {_word(document, 'document')} {int(grade)}\n"
        for topic, grades in qrels.items()
        for document, grade in grades.items()
    ]
    Path(path).write_text("".join(lines), "utf-8", newline="\n")


def read_qrels(path: str | os.PathLike[str]) -> dict[str, dict[str, int]]:
    """Topic -> documents with their grades, in the order of the file.

    Raises:
        MediaError: the file cannot be read, a line is malformed, or a document comes twice in a topic.
    """
    return _read(Path(path), 4, "topic 0 document grade", lambda cells: int(cells[3]))


def write_topics(path: str | os.PathLike[str], topics: Mapping[str, str]) -> None:
    """Writes topics as lines of id, tab and text; white space within a text becomes one blank.

    Raises:
        UsageError: an id is empty or has white space, or a text is empty.
    """
    lines = []
    for topic, text in topics.items():
        if not text.strip():
            raise UsageError(f"topic {topic} has no text; leave it out")
        lines.append(f"{_word(topic, 'topic')}\t{' '.join(text.split())}\n")
    Path(path).write_text("".join(lines), "utf-8", newline="\n")


def read_topics(path: str | os.PathLike[str]) -> dict[str, str]:
    """Topic -> text, in the order of the file, of either form. Of marked-up topics the title is the text.

    Raises:
        MediaError: the file cannot be read or has no topics, one of them is malformed, or one comes twice.
    """
    topics: dict[str, str] = {}
    text = _text(Path(path))
    for line, topic, said in _marked_up(text) if text.lstrip().startswith("<") else _tabbed(text):
        if not said or not re.fullmatch(r"\S+", topic):
            expected = "an id without blanks, a tab, and a text; or <top> with <num> and <title>"
            raise MediaError(f"{path}, line {line}: not a topic; expected {expected}")
        if topic in topics:
            raise MediaError(f"{path}, line {line}: topic {topic} comes twice; remove one")
        topics[topic] = said
    if not topics:
        raise MediaError(f"{path} has no topics; expected lines of an id, a tab, and a text")
    return topics


def _tabbed(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in _lines(text):
        topic, _, said = line.partition("\t")
        yield number, topic.strip(), " ".join(said.split())


def _marked_up(text: str) -> Iterator[tuple[int, str, str]]:
    for top in _TOP.finditer(text):
        topic, title = (pattern.search(top[1]) for pattern in (_NUM, _TITLE))
        line = text.count("\n", 0, top.start()) + 1
        yield line, topic[1] if topic else "", " ".join(html.unescape(title[1]).split()) if title else ""


def _read(
    path: Path, fields: int, shape: str, value_of: Callable[[Sequence[str]], _Value]
) -> dict[str, dict[str, _Value]]:
    found: dict[str, dict[str, _Value]] = {}
    for number, line in _lines(_text(path)):
        cells = line.split()
        try:
            if len(cells) != fields:
                raise ValueError
            value = value_of(cells)
        except ValueError:
            raise MediaError(f"{path}, line {number}: expected `{shape}`, found `{line.strip()[:80]}`") from None
        of_query = found.setdefault(cells[0], {})
        if cells[2] in of_query:
            raise MediaError(f"{path}, line {number}: {cells[2]} comes twice in {cells[0]}; remove one")
        of_query[cells[2]] = value
    return found


def _number(cell: str) -> float:
    value = float(cell)
    if isnan(value):
        raise ValueError
    return value


def _word(text: str, what: str) -> str:
    """An id as these files can have it."""
    if text.split() != [text]:
        raise UsageError(f"{what} {text!r} has white space or is empty, and files of TREC separate by it; rename it")
    return text


def _text(path: Path) -> str:
    try:
        return decode_text(path.read_bytes())
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from None
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that say something, with their numbers."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")
