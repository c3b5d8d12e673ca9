"""How an answer is printed: lines for programs, a table for people, and how each hit was found."""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch.output import plain, safe, say, write, write_json, write_path0
from mmsearch.retrieval.lexicon import has_unspaced

if TYPE_CHECKING:
    from mmsearch.retrieval.types import Answer, Explanation, GroupBy, Hit, HitExplanation, Reranking

_SNIPPET = 160
_BEFORE = 40
"""How many characters of a text are shown before the first word that was looked for."""
_LOOKED_AT = 4000
"""How many characters of a text are looked at for words: passages have fewer, rows of tables may have more."""

_DUPLICATES_SHOWN = 5
_NARROWEST = 24
_PIECES = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]\s*|[^\s\u2e80-\u9fff\uac00-\ud7af\uff00-\uffef]+\s*")
"""Words with the blanks after them; Chinese and Japanese characters, between which a line may end, one by one."""


def say_notices(answer: Answer, *, offset: int = 0) -> None:
    """What the person who asked should know before the hits, on stderr."""
    for notice in answer.notices:
        say(safe(notice))
    if not answer.hits:
        say("no hits from there on" if offset else "nothing found")
    elif answer.matched is False:
        say("nothing here matches well; the nearest are:")


def write_hits(
    answer: Answer,
    *,
    people: bool,
    group: GroupBy | None = None,
    draw: Callable[[Hit, int], None] | None = None,
) -> None:
    """Hits as lines: rank, score, path, and for texts the fragment and a snippet.

    Args:
        answer: what a search gave.
        people: laid out for a terminal; otherwise separated by tabs, with nothing left out but line ends.
        group: what hits stand for, where they are grouped.
        draw: called after the lines of each hit, with the column of its path, to draw its picture (people only).
    """
    if not people:
        for hit in answer.hits:
            fields = [str(hit.rank), f"{hit.score:.6f}", safe(shown_path(hit))]
            if hit.text is not None:
                fields += [hit.fragment or "", safe(one_line(hit.text))]
            write("\t".join(fields))
    elif answer.hits:
        words = {item_id: found.words for item_id, found in _explained(answer.explanation).items()}
        _write_table(answer.hits, words, group, draw)


def write_hits_json(answer: Answer, *, explain: bool = False) -> None:
    """A hit a line and nothing else; with `explain` each line has how it was found."""
    explained = _explained(answer.explanation)
    for hit in answer.hits:
        line = plain(hit)
        if explain and answer.explanation is not None:
            line["explanation"] = _explanation_object(answer.explanation, explained.get(hit.item_id))
        write_json(line)


def write_paths0(answer: Answer) -> None:
    """The paths of the hits as bytes, each once and ended by a NUL character; hits without a path are left out."""
    for path in hit_paths(answer.hits):
        write_path0(os.fspath(path))


def explanation_lines(answer: Answer) -> list[str]:
    """How the answer was found, for people; nothing where the answer has no explanation."""
    explanation = answer.explanation
    if explanation is None:
        return []
    lines = []
    for name, value in _facts(explanation):
        first, *more = folded(safe(value), _room(12)) or [""]
        lines += [f"{name:<11} {first}", *(f"{'':12}{line}" for line in more)]
    explained = _explained(explanation)
    for hit in answer.hits:
        lines += ["", f"{hit.rank}  {safe(shown_path(hit))}"]
        if hit.item_id in explained:
            lines += [f"   {line}" for line in _reasons(explained[hit.item_id], hit.rank_before)]
    return lines


def shown_path(hit: Hit) -> str:
    """The path of a hit, or its uri where it is no file of this machine."""
    return str(hit.path) if hit.path is not None else hit.uri


def hit_paths(hits: Sequence[Hit]) -> list[Path]:
    """The paths of hits in their order, each once: several passages may be of one file."""
    return list(dict.fromkeys(hit.path for hit in hits if hit.path is not None))


def others_line(hit: Hit, group: GroupBy | None) -> str:
    """How many further items of its file or folder a hit stands for; "" for none."""
    if not hit.others:
        return ""
    return f"and {hit.others:,} more in this {group}" if group else f"and {hit.others:,} more"


def duplicate_name(duplicate: Hit, hit: Hit) -> str:
    """A near-duplicate as it is shown below its hit: in the same folder its name alone."""
    if duplicate.path is not None and hit.path is not None and duplicate.path.parent == hit.path.parent:
        return duplicate.path.name
    return shown_path(duplicate)


def ranks_line(ranks: Mapping[str, int]) -> str:
    """The ranks of an item in the lists that were fused."""
    return ", ".join(f"{name} {rank:,}" for name, rank in ranks.items())


def folded(text: str, width: int) -> list[str]:
    """A text as lines of at most a number of columns, broken between words where it can be."""
    lines, line, used = [], "", 0
    for piece in _PIECES.findall(text):
        size = _columns(piece.rstrip())
        if line and used + size > width:
            lines.append(line.rstrip())
            line, used = "", 0
        while size > width and len(piece) > 1:
            at = next(n for n in range(len(piece), 0, -1) if n == 1 or _columns(piece[:n]) <= width)
            lines.append(piece[:at])
            piece = piece[at:]
            size = _columns(piece.rstrip())
        line += piece
        used += _columns(piece)
    return [*lines, line.rstrip()] if line.strip() else lines


def one_line(text: str, most: int | None = None) -> str:
    """A text without line ends, cut to a number of characters."""
    text = " ".join(text.split())
    return text if most is None or len(text) <= most else text[: most - 1].rstrip() + "…"


def excerpt(text: str, words: Sequence[str], most: int) -> str:
    """The part of a text that has most of some words, on one line: its beginning, where that has as many as any.

    Args:
        text: of any length.
        words: case folded.
        most: how many characters it has at most, the marks of what is left out included.
    """
    line = one_line(text, _LOOKED_AT)
    places = sorted(
        (found.start(), found.end(), number) for number, word in enumerate(words) for found in _places(word, line)
    )
    if len(line) <= most or not places:
        return one_line(line, most)
    best, start = len({number for _, end, number in places if end < most}), 0
    for at, _, _ in places:
        begin = _word_start(line, max(0, min(at - _BEFORE, len(line) - most + 1)))
        has = {number for place, end, number in places if place >= begin and end <= begin + most - 2}
        if len(has) > best:
            best, start = len(has), begin
    return one_line(line, most) if not start else "…" + one_line(line[start:], most - 1)


def _places(word: str, line: str) -> Iterator[re.Match[str]]:
    """Where a text has a word, as a whole where its script has spaces."""
    pattern = r"\W+".join(map(re.escape, word.split()))
    if not has_unspaced(word):
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return re.finditer(pattern, line, re.IGNORECASE)


def _word_start(line: str, at: int) -> int:
    """The first place from `at` on where a word of a text begins."""
    while 0 < at < len(line) and line[at - 1].isalnum() and not has_unspaced(line[at]):
        at += 1
    return at


# --- the table for people --------------------------------------------------------------------------------------


def _write_table(
    hits: Sequence[Hit],
    words: Mapping[int, Sequence[str]],
    group: GroupBy | None,
    draw: Callable[[Hit, int], None] | None,
) -> None:
    rank_width = max(len(str(hit.rank)) for hit in hits)
    rated = any(hit.relevance is not None for hit in hits)
    reranked = [len(str(hit.rank_before)) for hit in hits if hit.rank_before is not None]
    before_width = max(len("before"), *reranked) if reranked else 0
    head = f"{'#':>{rank_width}}  " + (f"{'before':>{before_width}}  " if reranked else "")
    head += f"{'score':>7}" + ("  relevance" if rated else "") + "  "
    write(f"{head}path")
    for hit in hits:
        cells = [f"{hit.rank:>{rank_width}}"]
        if reranked:
            cells.append(f"{'-' if hit.rank_before is None else hit.rank_before:>{before_width}}")
        cells.append(f"{hit.score:>7.4f}")
        if rated:
            cells.append(f"{'-' if hit.relevance is None else f'{hit.relevance:.2f}':>9}")
        cells.append(safe(shown_path(hit)))
        write("  ".join([*cells, safe(hit.fragment)] if hit.fragment else cells))
        for line in _below(hit, words.get(hit.item_id, ()), group, _room(len(head))):
            write(f"{'':{len(head)}}{line}")
        if draw is not None:
            draw(hit, len(head))


def _below(hit: Hit, words: Sequence[str], group: GroupBy | None, width: int) -> list[str]:
    """What stands below the path of a hit, its text folded to a number of columns."""
    lines = folded(safe(excerpt(hit.text, words, _SNIPPET)), width) if hit.text is not None else []
    lines += [f"= {safe(duplicate_name(other, hit))}" for other in hit.duplicates[:_DUPLICATES_SHOWN]]
    if len(hit.duplicates) > _DUPLICATES_SHOWN:
        lines.append(f"= {len(hit.duplicates) - _DUPLICATES_SHOWN:,} more")
    if hit.others:
        lines.append(others_line(hit, group))
    if hit.tags:
        lines.append(f"tags: {safe(', '.join(hit.tags))}")
    return lines


def _room(indent: int) -> int:
    """The columns of the terminal to the right of an indentation."""
    return max(_NARROWEST, shutil.get_terminal_size().columns - indent)


def _columns(text: str) -> int:
    """The width of a text on a terminal."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


# --- explanations ----------------------------------------------------------------------------------------------


def _explained(explanation: Explanation | None) -> dict[int, HitExplanation]:
    return {found.item_id: found for found in explanation.hits} if explanation is not None else {}


def _explanation_object(explanation: Explanation, found: HitExplanation | None) -> dict[str, Any]:
    shared: dict[str, Any] = plain(explanation)
    del shared["hits"]
    nothing: dict[str, Any] = {"clauses": [], "ranks": {}, "words": [], "rerank_score": None, "rerank_ms": None}
    own: dict[str, Any] = plain(found) if found is not None else nothing
    own.pop("item_id", None)
    return shared | own


def _facts(explanation: Explanation) -> list[tuple[str, str]]:
    facts = [("query", explanation.query), ("mode", explanation.mode), ("fusion", explanation.fusion)]
    if explanation.where is not None:
        facts.append(("filter", explanation.where))
        if explanation.selectivity is not None:
            facts.append(("selectivity", f"{_percent(explanation.selectivity)} of the items"))
        if explanation.plan is not None:
            facts.append(("plan", explanation.plan))
    if explanation.rerank is not None:
        facts.append(("rerank", _reranking(explanation.rerank)))
    if explanation.background:
        spread = (f"{name} {mean:.4f} ± {width:.4f}" for name, (mean, width) in explanation.background.items())
        facts.append(("background", ", ".join(spread)))
    if explanation.milliseconds:
        stages = ", ".join(f"{stage} {spent:,.1f}" for stage, spent in explanation.milliseconds.items())
        facts.append(("time", f"{sum(explanation.milliseconds.values()):,.1f} ms: {stages}"))
    return facts


def _reranking(rerank: Reranking) -> str:
    budget = "" if rerank.budget_ms is None else f" in {rerank.budget_ms:,} ms"
    said = f"{rerank.reranker}: {rerank.scored:,} of {rerank.candidates:,} scored, depth {rerank.depth:,}{budget}"
    if rerank.failure is not None:
        said += f"; failed: {rerank.failure}"
    return f"{said}; time is up" if rerank.out_of_time else said


def _reasons(found: HitExplanation, rank_before: int | None) -> list[str]:
    lines = []
    if rank_before is not None:
        score = "not scored" if found.rerank_score is None else f"score {found.rerank_score:.4f}"
        spent = "" if found.rerank_ms is None else f", {found.rerank_ms:,.1f} ms"
        lines.append(f"rerank  {score}, rank {rank_before:,} before{spent}")
    if found.clauses:
        lines.append("weight   score  contribution  clause")
    for clause in found.clauses:
        score = "-" if clause.score is None else f"{clause.score:.4f}"
        lines.append(f"{clause.weight:>+6.4g}  {score:>6}  {clause.contribution:>+12.4f}  {safe(clause.clause)}")
    if found.ranks:
        lines.append(f"ranks   {safe(ranks_line(found.ranks))}")
    if found.words:
        lines.append("words   " + safe(", ".join(found.words)))
    return lines


def _percent(share: float) -> str:
    """A share without a false 0 % or 100 % at its ends."""
    if 0 < share < 0.0001:
        return "less than 0.01 %"
    if 0.9999 < share < 1:
        return "more than 99.99 %"
    return f"{100 * share:.3g} %"
