"""Paths as uris: relative to a root, `/`-separated, percent-encoded byte by byte, without loss.

A file name on Linux is bytes, not text. `os.fsencode` gives those bytes back whatever they are, so a
name that is not UTF-8 survives the round trip through the catalog and through JSON.
"""

from __future__ import annotations

import os
from urllib.parse import quote_from_bytes, unquote_to_bytes


def path_to_uri(relative: str) -> str:
    """A path relative to its root (as `os.scandir` names it) to a uri; plain ASCII names stay as they are."""
    if os.sep != "/":
        relative = relative.replace(os.sep, "/")
    return quote_from_bytes(os.fsencode(relative), safe="/")


def uri_to_path(uri: str) -> str:
    """The inverse of `path_to_uri`: a relative path with this system's separators."""
    relative = os.fsdecode(unquote_to_bytes(uri)) if "%" in uri else uri
    return relative.replace("/", os.sep) if os.sep != "/" else relative


def absolute_path(root: str, uri: str) -> str:
    """The openable path of `uri` under `root`. A drive root (`/`) is handled."""
    return os.path.join(root, uri_to_path(uri))
