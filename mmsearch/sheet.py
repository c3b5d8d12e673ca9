"""An answer as one HTML page that needs nothing else: thumbnails, scores, captions and links to the files.

The page has no script, and its policy forbids everything but the pictures and the style that are in it. Whatever
comes out of file names and texts is escaped.
"""

from __future__ import annotations

import base64
import io
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes

from mmsearch.answers import duplicate_name, one_line, others_line, ranks_line, shown_path
from mmsearch.output import counted, safe
from mmsearch.pictures import picture_path, small_picture
from mmsearch.retrieval.errors import MediaError, MMSearchError, UsageError
from mmsearch.retrieval.types import Answer, ClauseScore, GroupBy, Hit, HitExplanation

if TYPE_CHECKING:
    from mmsearch.retrieval.query import Clause

_EDGE = 400
_CLAUSE_EDGE = 128
_CAPTION = 240
_PASSAGE = 480

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f6f7;--fg:#1b1b1d;--soft:#5d5d66;--card:#fff;--mat:#ececef;--line:#dfdfe4;
--mark:#1f5fd6;--plus:#17703a;--minus:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#131315;--fg:#ececef;--soft:#a3a3ad;--card:#1d1d21;--mat:#0c0c0e;
--line:#313138;--mark:#8ab4ff;--plus:#7fd69b;--minus:#ff9a92}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
header,main,footer{max-width:100rem;margin:auto;padding:1rem clamp(.75rem,2vw,2rem)}
header{padding-top:1.75rem}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .35rem}
header p,footer{color:var(--soft);margin:.15rem 0;font-size:.93rem}
header .said{color:var(--fg);border-left:3px solid var(--mark);padding:.1rem 0 .1rem .65rem;margin:.6rem 0}
.clauses,.tags{display:flex;flex-wrap:wrap;gap:.4rem;list-style:none;margin:.6rem 0;padding:0}
.clauses li{display:flex;align-items:center;gap:.45rem;border:1px solid var(--line);border-radius:.5rem;
background:var(--card);padding:.25rem .6rem}
.clauses img{max-height:3.5rem;width:auto;border-radius:.25rem;margin-left:-.3rem}
.num{font-variant-numeric:tabular-nums;white-space:nowrap}
.plus{color:var(--plus)}.minus{color:var(--minus)}
.hits{list-style:none;margin:0;padding:0;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(min(16.5rem,100%),1fr))}
.hits>li{background:var(--card);border:1px solid var(--line);border-radius:.7rem;overflow:hidden;display:flex;
flex-direction:column}
.hits>li>a{display:block;color:inherit;text-decoration:none;border-radius:.7rem .7rem 0 0}
.hits>li>a:hover .name{color:var(--mark);text-decoration:underline}
a:focus-visible,summary:focus-visible{outline:3px solid var(--mark);outline-offset:-3px;border-radius:.3rem}
.shot{display:flex;align-items:center;justify-content:center;aspect-ratio:4/3;background:var(--mat);
color:var(--soft);text-align:center;overflow:hidden}
.shot img{width:100%;height:100%;object-fit:contain;display:block}
.shot.none{padding:1rem}
.passage{padding:.8rem .9rem;background:var(--mat);aspect-ratio:4/3;overflow:hidden;font-size:.95rem}
.passage p{margin:0;overflow:hidden;display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:7;line-clamp:7}
.name{display:flex;gap:.45rem;align-items:baseline;padding:.6rem .8rem 0;font-weight:600}.name bdi{min-width:0}
.rank{color:var(--soft);font-weight:400}
.about{padding:.15rem .8rem .75rem;display:grid;gap:.2rem;font-size:.87rem;color:var(--soft)}
.about p{margin:0}.about .caption{color:var(--fg);font-size:.93rem}
.bar{display:block;height:4px;border-radius:2px;background:var(--line);overflow:hidden;margin:.15rem 0}
.bar i{display:block;height:100%;background:var(--mark)}
.tags{gap:.25rem;margin:.1rem 0 0}.tags li{border:1px solid var(--line);border-radius:1rem;padding:0 .5rem}
summary{cursor:pointer}details ul{margin:.15rem 0 0;padding:0;list-style:none;display:grid;gap:.15rem}
.about a{color:var(--mark)}
@media(max-width:36rem){.hits{grid-template-columns:repeat(auto-fill,minmax(min(9.5rem,100%),1fr));gap:.6rem}
.passage{padding:.6rem;font-size:.87rem}.passage p{-webkit-line-clamp:5;line-clamp:5}
h1{font-size:1.25rem}.name{padding:.5rem .6rem 0}.about{padding:.15rem .6rem .6rem}}
@media print{body{background:#fff;color:#000}.hits>li{break-inside:avoid}}
"""


def write_sheet(answer: Answer, path: Path, *, title: str, group: GroupBy | None = None) -> None:
    """Writes the page, whole or not at all.

    Raises:
        UsageError: `path` does not name a page; a picture's name would be a picture lost.
        MMSearchError: it cannot be written.
    """
    check_target(path)
    temporary = path.with_name(f".mmsearch-{secrets.token_hex(8)}")
    try:
        try:
            with open(temporary, "xb") as file:
                for part in _parts(answer, title, group):
                    file.write(part.encode("utf-8"))
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MMSearchError(f"cannot write {path}: {error.strerror or error}") from error


def check_target(path: Path) -> None:
    """Raises UsageError where a page cannot be meant to be written to `path`."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file for the page, such as {path / 'hits.html'}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{path}: the page is an HTML file; end the name with .html")


def sheet(answer: Answer, *, title: str, group: GroupBy | None = None) -> str:
    """The page."""
    return "".join(_parts(answer, title, group))


def _parts(answer: Answer, title: str, group: GroupBy | None) -> Iterator[str]:
    """The page in pieces: with all its pictures it may be larger than what one wants in memory."""
    explained = {found.item_id: found for found in answer.explanation.hits} if answer.explanation else {}
    said = [*answer.notices]
    if not answer:
        said.append("Nothing found.")
    elif answer.matched is False:
        said.append("Nothing here matches well; these are the nearest.")
    notices = "".join(f'<p class="said">{_text(line)}</p>' for line in said)
    first = next((explained[hit.item_id].clauses for hit in answer if hit.item_id in explained), ())
    yield f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1><bdi>{_text(title)}</bdi></h1>{_clauses(first)}<p>{_text(" · ".join(_facts(answer)))}</p>{notices}</header>
<main><ol class="hits">
"""
    for hit in answer:
        yield _card(hit, explained.get(hit.item_id), group) + "\n"
    yield """</ol></main>
<footer>Made by mmsearch. The pictures are in this file; the links lead to files of the machine that made it.</footer>
</body>
</html>
"""


def _facts(answer: Answer) -> list[str]:
    facts = [counted(len(answer.hits), "hit")]
    if answer and answer[0].rank > 1:
        facts[0] = f"hits {answer[0].rank:,}–{answer[-1].rank:,}"
    if answer.explanation is not None:
        if answer.explanation.where is not None:
            facts.append(f"where {answer.explanation.where}")
        facts.append(answer.explanation.mode)
    return [*facts, f"{datetime.now():%Y-%m-%d %H:%M}"]


def _clauses(clauses: Sequence[ClauseScore]) -> str:
    """What the query is made of, where that is more than words: each clause, with its picture if it is one."""
    pictures = [_clause_picture(one.clause) for one in clauses]
    if len(clauses) < 2 and not any(pictures):
        return ""
    shown = []
    for one, picture in zip(clauses, pictures, strict=True):
        weight = f'<span class="num">{_number(one.weight)}</span>'
        shown.append(f'<li class="{_sign(one.weight)}">{picture}{weight} <bdi>{_without_weight(one.clause)}</bdi></li>')
    return f'<ul class="clauses" aria-label="clauses of the query">{"".join(shown)}</ul>'


def _clause(written: str) -> Clause | None:
    """A clause of an explanation; None for one that stands for what cannot be written."""
    from mmsearch.retrieval.query import parse

    try:
        return parse(written).clauses[0]
    except UsageError:
        return None


def _path(written: str) -> str | None:
    """The path of a clause that is a picture."""
    from mmsearch.retrieval.query import ImageClause

    clause = _clause(written)
    return clause.image if isinstance(clause, ImageClause) and isinstance(clause.image, str) else None


def _without_weight(written: str) -> str:
    from mmsearch.retrieval.query import format_clause

    clause = _clause(written)
    return _text(written if clause is None else format_clause(replace(clause, weight=1.0)))


def _short(written: str) -> str:
    """A clause as it is written, of a path the last part only: the whole stands at the top of the page."""
    path = _path(written)
    return _text(written if path is None else os.path.basename(path))


def _clause_picture(written: str) -> str:
    path = _path(written)
    if path is None:
        return ""
    try:
        return _image(Path(path).expanduser(), "", _CLAUSE_EDGE)
    except (MediaError, RuntimeError):  # gone since, or nobody's home
        return ""


def _card(hit: Hit, explained: HitExplanation | None, group: GroupBy | None) -> str:
    name = hit.path.name if hit.path is not None else hit.uri
    picture = picture_path(hit)
    named = f'<span class="name"><span class="rank num">{hit.rank}</span> <bdi>{_text(name)}</bdi></span>'
    passage = ""
    if hit.text is not None and picture is None:  # beside the link, or all of it would be the link's name
        passage = f'<div class="passage"><p dir="auto">{_text(one_line(hit.text, _PASSAGE))}</p></div>'
    else:
        named = _shot(picture, name) + named
    link = f'<a href="{_href(hit.path)}">{named}</a>' if hit.path is not None else named
    lines = []
    if hit.text is not None and picture is not None:
        lines.append(f'<p class="caption"><bdi>{_text(one_line(hit.text, _CAPTION))}</bdi></p>')
    lines.append(_relevance(hit))
    folder = os.path.dirname(shown_path(hit))
    shape = f"{hit.width} × {hit.height}" if hit.width and hit.height else ""
    taken = f"taken {hit.taken.replace('T', ' ')}" if hit.taken is not None else ""
    about = " · ".join(part for part in (shape, taken, hit.fragment or "") if part)
    lines += [f"<p>{_text(line)}</p>" for line in (folder, about, others_line(hit, group)) if line]
    if hit.tags:
        tags = "".join(f"<li>{_text(tag)}</li>" for tag in hit.tags)
        lines.append(f'<ul class="tags" aria-label="tags">{tags}</ul>')
    if hit.duplicates:
        twins = [_link(twin.path, duplicate_name(twin, hit)) for twin in hit.duplicates]
        lines.append(_details(counted(len(twins), "near-duplicate"), twins))
    if explained is not None:
        lines.append(_details("why", _reasons(explained)))
    return f'<li>{passage}{link}<div class="about">{"".join(lines)}</div></li>'


def _relevance(hit: Hit) -> str:
    line = f"<p>score {hit.score:.4f}</p>"
    if hit.relevance is None:
        return line
    share = f"{100 * min(1.0, max(0.0, hit.relevance)):.0f}%"
    bar = f'<span class="bar" aria-hidden="true"><i style="width:{share}"></i></span>'
    return f"{bar}<p>relevance {hit.relevance:.2f} · score {hit.score:.4f}</p>"


def _reasons(explained: HitExplanation) -> list[str]:
    """How a hit was found; nothing where that would only repeat its score."""
    reasons = []
    if len(explained.clauses) > 1:
        for one in explained.clauses:
            sign = _sign(one.contribution)
            reasons.append(f'<span class="{sign} num">{one.contribution:+.3f}</span> <bdi>{_short(one.clause)}</bdi>')
    if explained.ranks:
        reasons.append(_text(f"ranks: {ranks_line(explained.ranks)}"))
    if explained.words:
        reasons.append(_text(f"words: {', '.join(explained.words)}"))
    return reasons


def _details(summary: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    listed = "".join(f"<li>{line}</li>" for line in lines)
    return f"<details><summary>{_text(summary)}</summary><ul>{listed}</ul></details>"


def _shot(picture: Path | None, name: str) -> str:
    """The picture of a hit, or a word on why there is none."""
    if picture is None:
        return '<div class="shot none">no file</div>'
    try:
        return f'<div class="shot">{_image(picture, name, _EDGE)}</div>'
    except MediaError as error:
        return f'<div class="shot none">{_text(str(error))}</div>'


def _image(path: Path, name: str, edge: int) -> str:
    """A picture in the page itself.

    Raises:
        MediaError: it cannot be read.
    """
    picture = small_picture(path, edge)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="data:image/jpeg;base64,{data}" alt="{_text(name)}" {size} loading="lazy" decoding="async">'


def _sign(number: float) -> str:
    return "minus" if number < 0 else "plus"


def _number(weight: float) -> str:
    """A weight with its sign, as typographers write it."""
    return f"{'−' if weight < 0 else '+'}{abs(weight):g}"


def _link(path: Path | None, name: str) -> str:
    text = f"<bdi>{_text(name)}</bdi>"
    return text if path is None else f'<a href="{_href(path)}">{text}</a>'


def _href(path: Path) -> str:
    return f"file://{quote_from_bytes(os.fsencode(path), safe='/')}"


def _text(text: str) -> str:
    """Text without anything that a page or a reader could be led astray by."""
    return escape(safe(text), quote=True)
