"""What `mmsearch query` does with an answer: print it, write it as a page, open that, copy the files."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmsearch.retrieval.errors import UsageError

if TYPE_CHECKING:
    from mmsearch.retrieval.types import Answer, GroupBy


@dataclass(frozen=True, slots=True)
class Showing:
    """How an answer is shown.

    Attributes:
        as_json, paths0: instead of lines for people.
        explain: say how each hit was found.
        html: where to write a page.
        open: show the page in a browser.
        copy_to: folder for copies of the files.
        thumbnails: draw pictures in the terminal; None where it can.
        group: what hits stand for.
        offset: how many of the best were passed over.

    Raises:
        UsageError: options that make no sense together; a target that cannot be meant.
        MissingExtra: pictures in the terminal are wanted, and the package for them is not installed.
    """

    as_json: bool = False
    paths0: bool = False
    explain: bool = False
    html: Path | None = None
    open: bool = False
    copy_to: Path | None = None
    thumbnails: bool | None = None
    group: GroupBy | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        if self.as_json and self.paths0:
            raise UsageError("--json and --paths0 are two ways to print; take one")
        if self.paths0 and self.explain:
            raise UsageError("--paths0 prints paths only: leave out --explain")
        if self.thumbnails and (self.as_json or self.paths0):
            raise UsageError("--thumbnails is for people: leave out --json and --paths0")
        if self.thumbnails:
            from mmsearch.thumbnails import require_thumbnails

            require_thumbnails()
        if self.html is not None:
            from mmsearch.sheet import check_target

            check_target(self.html)
        if self.copy_to is not None:
            from mmsearch.copies import check_folder

            check_folder(self.copy_to)


def show(answer: Answer, how: Showing) -> None:
    """Shows an answer.

    Raises:
        UsageError: the terminal does not show the pictures that it is asked for.
        MMSearchError: a page or a folder cannot be written.
    """
    from mmsearch import answers, output

    people = output.is_terminal(sys.stdout)
    draw = None
    if how.thumbnails or (how.thumbnails is None and people and not (how.as_json or how.paths0)):
        from mmsearch.thumbnails import drawing

        draw = drawing(wanted=bool(how.thumbnails))
    answers.say_notices(answer, offset=how.offset)
    if how.as_json:
        answers.write_hits_json(answer, explain=how.explain)
        if how.explain and not answer.hits:  # no line could have it, and a line is a hit
            for line in answers.explanation_lines(answer):
                output.say(line)
    elif how.paths0:
        answers.write_paths0(answer)
    else:
        answers.write_hits(answer, people=people, group=how.group, draw=draw)
        if how.explain:
            if people and answer.hits:
                output.write("")
            for line in answers.explanation_lines(answer):
                output.write(line) if people else output.say(line)
    if how.html is not None or how.open:
        _write_page(answer, how)
    if how.copy_to is not None:
        from mmsearch.copies import copy_hits, copy_lines

        for line in copy_lines(copy_hits(answer.hits, how.copy_to)):
            output.say(line)


def _write_page(answer: Answer, how: Showing) -> None:
    from mmsearch import output
    from mmsearch.sheet import write_sheet

    path = how.html
    if path is None:
        import tempfile

        path = Path(tempfile.mkdtemp(prefix="mmsearch-")) / "hits.html"
    title = answer.explanation.query if answer.explanation is not None else "mmsearch"
    write_sheet(answer, path, title=title, group=how.group)
    if how.html is not None or not how.open:
        output.say(f"wrote {output.safe(os.fspath(path))}")
    if how.open and not _opened(path):
        output.say(f"no browser can be opened here; the page is {output.safe(os.fspath(path))}")


def _opened(path: Path) -> bool:
    """Whether a browser was asked to show a page."""
    import webbrowser

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        return webbrowser.open(path.absolute().as_uri())
    except (OSError, webbrowser.Error):
        return False
