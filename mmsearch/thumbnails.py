"""Pictures in the terminal, where it speaks the kitty graphics protocol with placeholders; nothing elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mmsearch.retrieval.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from mmsearch.retrieval.types import Hit

_EDGE = 256
_ROWS, _COLUMNS = 8, 24


def speaks_kitty(environment: Mapping[str, str]) -> bool:
    """Whether the terminal shows pictures that are sent with the kitty protocol, by what it says of itself.

    Multiplexers pass the protocol on only where they are told to, so inside one nothing is sent.
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
    able = sys.stdout.isatty() and speaks_kitty(os.environ)
    if not able:
        if wanted:
            raise UsageError(
                "this terminal does not show pictures: --thumbnails needs one that speaks the kitty graphics protocol "
                "(kitty, Ghostty), without tmux or screen; --html FILE writes a page instead"
            )
        return None
    try:
        from textual_image.renderable import TGPImage
    except ImportError:
        if wanted:
            raise MissingExtra("pictures in the terminal need: pip install 'mmsearch[terminal]'") from None
        return None
    from rich.console import Console
    from rich.padding import Padding

    from mmsearch.pictures import picture_path, small_picture
    from mmsearch.retrieval.errors import MediaError

    console = Console(file=sys.stdout)

    def draw(hit: Hit, indent: int) -> None:
        path = picture_path(hit)
        if path is None:
            return
        try:
            picture = small_picture(path, _EDGE)
        except MediaError:  # the line above says which one it is
            return
        columns = max(1, min(_COLUMNS, 2 * _ROWS * picture.width // picture.height))
        sys.stdout.flush()
        console.print(Padding(TGPImage(picture, width=columns, height=_ROWS), (0, 0, 0, indent)))

    return draw
