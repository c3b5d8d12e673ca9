"""Pictures of hits in the terminal, where it answers the kitty graphics protocol; nothing elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from mmsearch.retrieval.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from mmsearch.retrieval.types import Hit

_EDGE = 512
_ROWS, _COLUMNS = 8, 24
_PATIENCE = 2.0
"""Seconds to wait for an answer; the terminals that are asked at all do answer, be it over a slow line."""

# "Could you show this pixel?", then a question that every terminal answers, after which no other answer will come.
_QUESTION = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
_YES = b"\x1b_Gi=31;OK\x1b\\"
_END = re.compile(rb"\x1b\[\?[\d;]*c")

_UNABLE = (
    "this terminal does not show pictures: --thumbnails needs one that speaks the kitty graphics protocol "
    "(kitty, Ghostty), without tmux or screen; --html FILE writes a page instead"
)


def require_thumbnails() -> None:
    """Checks, without asking the terminal, whether it may show pictures.

    Raises:
        UsageError: it does not.
        MissingExtra: the package for it is not installed.
    """
    from importlib.util import find_spec

    if not (sys.stdout.isatty() and may_speak_kitty(os.environ)):
        raise UsageError(_UNABLE)
    if find_spec("textual_image") is None:
        raise MissingExtra("pictures in the terminal need: pip install 'mmsearch[terminal]'")


def may_speak_kitty(environment: Mapping[str, str]) -> bool:
    """Whether the terminal is one that draws pictures at placeholders in the text, by what it says of itself.

    Others answer that they know the protocol, but would show the placeholders. Multiplexers pass the protocol on only
    where they are told to, so inside one nothing is sent.
    """
    term = environment.get("TERM", "")
    if "TMUX" in environment or "STY" in environment or term.startswith(("tmux", "screen", "dumb")):
        return False
    program = environment.get("TERM_PROGRAM", "").lower()
    return term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environment or program == "ghostty"


def drawing(*, wanted: bool) -> Callable[[Hit, int], None] | None:
    """What draws the picture of a hit, indented by a number of columns; None where there can be none.

    Args:
        wanted: it was asked for, and it is an error if it cannot be done.

    Raises:
        UsageError: wanted, and the terminal cannot.
        MissingExtra: wanted, and the package is not installed.
    """
    try:
        require_thumbnails()
    except (UsageError, MissingExtra):
        if wanted:
            raise
        return None
    if not _answers():
        if wanted:
            raise UsageError(_UNABLE)
        return None
    with _unseen_terminal():
        from textual_image.renderable import TGPImage
    from rich.console import Console
    from rich.padding import Padding

    from mmsearch.pictures import picture_path, small_picture
    from mmsearch.retrieval.errors import MediaError

    console = Console(file=sys.stdout)

    def draw(hit: Hit, indent: int) -> None:
        path = picture_path(hit)
        if path is None or console.width <= indent + 2:
            return
        try:
            picture = small_picture(path, _EDGE)
        except MediaError:  # the line above says which one it is
            return
        columns = max(1, min(_COLUMNS, console.width - indent, round(2 * _ROWS * picture.width / picture.height)))
        rows = max(1, min(_ROWS, round(columns * picture.height / picture.width / 2)))
        sys.stdout.flush()
        console.print(Padding(TGPImage(picture, width=columns, height=rows), (0, 0, 0, indent)))

    return draw


@contextlib.contextmanager
def _unseen_terminal() -> Iterator[None]:
    """Keeps textual_image from asking the terminal itself when it is imported.

    It does not wait long enough for slow lines, whose late answers would then stand at the prompt.
    """
    streams = vars(sys)
    known = streams["__stdout__"]
    streams["__stdout__"] = None
    try:
        yield
    finally:
        streams["__stdout__"] = known


def _answers() -> bool:
    """Whether the terminal behind stdout says that it shows pictures, and how large its cells are."""
    try:
        import termios
        import tty
        from fcntl import ioctl

        terminal = os.open(os.ttyname(sys.stdout.fileno()), os.O_RDWR | os.O_NOCTTY)
    except (ImportError, OSError, ValueError):
        return False
    try:
        if os.tcgetpgrp(terminal) != os.getpgrp():  # a job in the background would be stopped for asking
            return False
        size = memoryview(ioctl(terminal, termios.TIOCGWINSZ, bytes(8))).cast("H")
        if not all(size):  # textual_image would ask for what is not told here
            return False
        before = termios.tcgetattr(terminal)
        try:
            tty.setcbreak(terminal, termios.TCSANOW)
            return _YES in _asked(terminal)
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)
    except (OSError, termios.error):
        return False
    finally:
        os.close(terminal)


def _asked(terminal: int) -> bytes:
    """The answer of a terminal to the question; nothing where something is typed already, which would be lost."""
    if select.select([terminal], [], [], 0)[0]:
        return b""
    os.write(terminal, _QUESTION)
    answer = b""
    end = time.monotonic() + _PATIENCE
    while not _END.search(answer):
        left = end - time.monotonic()
        if left <= 0 or not select.select([terminal], [], [], left)[0]:
            break
        read = os.read(terminal, 256)
        if not read:
            break
        answer += read
    return answer
