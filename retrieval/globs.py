"""Globs over paths and texts: `*` is anything, `/` too, `?` one character, `[abc]`, `[a-z]` and `[!a]` one of a set.

Paths lie in the catalog as percent-encoded uris. Most globs can be encoded too, so that SQLite's own GLOB compares.
"""

from __future__ import annotations

import fnmatch
import os
import re
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

_PIECE = re.compile(r"\[[*?\[]\]|\*+|[?\[]|[^*?\[]+", re.S)
_HEX = "0123456789ABCDEF"
_LONGEST = 50_000  # bytes; SQLite refuses longer patterns


def literal(text: str) -> str:
    """The glob that matches exactly a text."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def anchored(glob: str) -> str:
    """A glob of whole absolute paths out of one that may be relative: it may begin at any folder then.

    `~/`, `./` and `../` at its start are the user's home, the current folder and the one above.
    """
    head, slash, rest = glob.partition("/")
    if slash and head in ("~", ".", ".."):
        place = os.path.expanduser("~") if head == "~" else os.path.abspath(head)
        return f"{literal(place).rstrip('/')}/{rest}"
    return glob if glob.startswith(("/", "*")) else f"*/{glob}"


def encoded_path(path: str) -> str:
    """A path percent-encoded, as the uris of the catalog are."""
    return quote_from_bytes(os.fsencode(path), safe="/")


def encoded_glob(glob: str) -> tuple[str, bool] | None:
    """A glob over percent-encoded paths that matches all that `glob` does, and whether it matches no more than that.

    None where there is none. What follows a `*` must not begin as the inside of an escape, else the `*` could end
    there: `*5.jpg` would match `100%25.jpg`, which is the file `100%.jpg`.
    """
    written: list[str] = []
    exact = True
    for piece in _PIECE.findall(glob):
        if piece in ("?", "["):
            return None
        if piece.startswith("*"):
            written.append("*")
            continue
        plain = encoded_path(piece[1] if piece.startswith("[") else piece)
        exact = exact and not (written and written[-1] == "*" and plain[0] in _HEX)
        written.append(plain)
    encoded = "".join(written)
    return (encoded, exact) if len(encoded) <= _LONGEST else None


def matches_path(glob: str, encoded: str | None) -> bool | None:
    """Whether a percent-encoded path matches; None for none."""
    return None if encoded is None else _pattern(glob, 0).match(_decoded(encoded)) is not None


def matches_extension(glob: str, encoded: str | None) -> bool | None:
    """Whether what follows the last dot of a file name matches, whatever the case; None for no path."""
    if encoded is None:
        return None
    stem, _, extension = _decoded(encoded).rpartition("/")[2].rpartition(".")
    return _pattern(glob, re.I).match(extension if stem else "") is not None


def matches_text(glob: str, text: object) -> bool | None:
    """Whether a text matches, whatever the case; None for none."""
    return None if text is None else _pattern(glob, re.I).match(str(text)) is not None


@lru_cache(maxsize=1024)  # more than a filter has: a miss for each row would be slow
def _pattern(glob: str, flags: int) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(glob), flags)


def _decoded(encoded: str) -> str:
    return os.fsdecode(unquote_to_bytes(encoded))
