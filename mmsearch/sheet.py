"""An answer as one HTML page that needs nothing else: thumbnails, scores, captions and links to the files.

The page has no script, and its policy forbids everything but the pictures and the style that are in it. Whatever
comes out of file names and texts is escaped.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote_from_bytes

from mmsearch.answers import duplicate_name, one_line, others_line, shown_path
from mmsearch.output import safe
from mmsearch.pictures import picture_path, small_picture
from mmsearch.retrieval.errors import MediaError, MMSearchError, UsageError
from mmsearch.retrieval.types import Answer, GroupBy, Hit, HitExplanation

_EDGE = 320
_CAPTION = 240

_STYLE = """
:root{color-scheme:light dark;--bg:#fafafa;--fg:#1b1b1d;--soft:#63636b;--card:#fff;--line:#e2e2e6;--mark:#2462d8}
@media(prefers-color-scheme:dark){:root{--bg:#151517;--fg:#ececef;--soft:#a0a0aa;--card:#1f1f23;--line:#34343a;
--mark:#86aefc}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif}
header,main,footer{max-width:90rem;margin:auto;padding:1rem}h1{font-size:1.25rem;margin:0 0 .25rem;
overflow-wrap:anywhere}header p,footer{color:var(--soft);margin:.15rem 0;overflow-wrap:anywhere}
ol{list-style:none;margin:0;padding:0;display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr))}
li{background:var(--card);border:1px solid var(--line);border-radius:.6rem;overflow:hidden;display:flex;
flex-direction:column}.shot{display:flex;align-items:center;justify-content:center;height:14rem;background:var(--line);
color:var(--soft);text-align:center}.shot img{max-width:100%;max-height:100%;display:block}
.shot blockquote{margin:0;padding:1rem;max-height:100%;overflow:hidden;text-align:left;color:var(--fg)}
.about{padding:.6rem .75rem;display:grid;gap:.2rem;overflow-wrap:anywhere}.rank{color:var(--soft)}
.about p{margin:0}.soft{color:var(--soft);font-size:.87rem}a{color:inherit}
a:focus-visible{outline:3px solid var(--mark);outline-offset:-3px}.about a{color:var(--mark)}
@media print{body{background:#fff;color:#000}li{break-inside:avoid}}
"""


def write_sheet(answer: Answer, path: Path, *, title: str, group: GroupBy | None = None) -> None:
    """Writes the page, whole or not at all, readable by its owner only.

    Raises:
        UsageError: `path` is a folder.
        MMSearchError: it cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file for the page, such as {path / 'hits.html'}")
    page = sheet(answer, title=title, group=group).encode("utf-8")
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600
        with open(descriptor, "wb") as file:
            file.write(page)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise MMSearchError(f"cannot write {path}: {error.strerror or error}") from error


def sheet(answer: Answer, *, title: str, group: GroupBy | None = None) -> str:
    """The page."""
    explained = {found.item_id: found for found in answer.explanation.hits} if answer.explanation else {}
    cards = "\n".join(_card(hit, explained.get(hit.item_id), group) for hit in answer)
    said = [*answer.notices]
    if answer and answer.matched is False:
        said.append("Nothing here matches well; these are the nearest.")
    facts = [f"{len(answer.hits):,} {'hit' if len(answer.hits) == 1 else 'hits'}"]
    if answer.explanation is not None and answer.explanation.where is not None:
        facts.append(f"where {answer.explanation.where}")
    facts.append(f"{datetime.now():%Y-%m-%d %H:%M}")
    notices = "".join(f"<p>{_text(line)}</p>" for line in said)
    return f"""<!doctype html>
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
<header><h1>{_text(title)}</h1><p>{_text(" · ".join(facts))}</p>{notices}</header>
<main><ol>
{cards}
</ol></main>
<footer>made by mmsearch; the pictures are in this file, the links lead to files of the machine that made it</footer>
</body>
</html>
"""


def _card(hit: Hit, explained: HitExplanation | None, group: GroupBy | None) -> str:
    name = hit.path.name if hit.path is not None else hit.uri
    shot = _shot(hit, name)
    label = f'<a href="{_href(hit.path)}">{_text(name)}</a>' if hit.path is not None else _text(name)
    rated = "" if hit.relevance is None else f" · relevance {hit.relevance:.2f}"
    lines = [f'<p><span class="rank">{hit.rank}.</span> {label}</p>']
    folder = os.path.dirname(shown_path(hit))
    if folder:
        lines.append(_soft(folder))
    lines.append(_soft(f"score {hit.score:.4f}{rated}"))
    if hit.text is not None and hit.fragment is not None:
        lines.append(_soft(hit.fragment))
    if hit.taken is not None:
        lines.append(_soft(f"taken {hit.taken.replace('T', ' ')}"))
    if explained is not None and len(explained.clauses) > 1:
        parts = (f"{one.clause} {one.contribution:+.3f}" for one in explained.clauses)
        lines.append(_soft("; ".join(parts)))
    lines += [_soft(f"= {duplicate_name(twin, hit)}") for twin in hit.duplicates]
    if hit.others:
        lines.append(_soft(others_line(hit, group)))
    if hit.tags:
        lines.append(_soft(f"tags: {', '.join(hit.tags)}"))
    return f'<li>{shot}<div class="about">{"".join(lines)}</div></li>'


def _shot(hit: Hit, name: str) -> str:
    """The picture of a hit, or its text, or a word on why there is none."""
    if hit.text is not None:
        inside = f"<blockquote>{_text(one_line(hit.text, _CAPTION))}</blockquote>"
    else:
        path = picture_path(hit)
        try:
            inside = "no file" if path is None else f'<img src="{_data_uri(path)}" alt="{_text(name)}" loading="lazy">'
        except MediaError as error:
            inside = _text(str(error))
    if hit.path is None:
        return f'<div class="shot">{inside}</div>'
    return f'<a class="shot" href="{_href(hit.path)}">{inside}</a>'


def _data_uri(path: Path) -> str:
    buffer = io.BytesIO()
    small_picture(path, _EDGE).save(buffer, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _href(path: Path) -> str:
    return f"file://{quote_from_bytes(os.fsencode(path), safe='/')}"


def _text(text: str) -> str:
    """Text without anything that a page or a reader could be led astray by."""
    return escape(safe(text), quote=True)


def _soft(text: str) -> str:
    return f'<p class="soft">{_text(text)}</p>'
