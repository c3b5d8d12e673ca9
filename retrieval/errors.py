"""Every error this library raises on purpose. Messages say what happened and what to do.

    MMSearchError
    ├── UsageError                  the call cannot be meant (k < 1, an empty query); CLI exit code 2
    │   ├── PathNotFound            a path that does not exist
    │   └── QuerySyntaxError        a query that cannot be read, with the place
    │       └── FilterSyntaxError   the same of a filter
    ├── IndexNotFound               there is no index there yet; CLI exit code 3
    ├── IndexUnusable               an index is there and cannot be used
    │   ├── IndexTooNew             written by a newer mmsearch
    │   ├── IndexCorrupt            a checksum or a file is wrong
    │   ├── IndexLocked             another process is writing
    │   └── UnsafeFilesystem        SQLite's WAL is not safe there (network drives)
    ├── ModelMismatch               the index was made by another model
    ├── ModelUnavailable            a model's files cannot be had, or are not what they claim
    ├── TrainingFailed              training cannot go on: a full disk, a loss that is no number
    ├── MissingExtra                an optional dependency is not installed
    └── MediaError                  one file cannot be read; listed as a failure, never ends a run

The library raises and logs; it never prints and never exits. `mmsearch.cli` maps these to exit codes.
"""

from __future__ import annotations


class MMSearchError(Exception):
    """Root of the tree above."""


class UsageError(MMSearchError):
    """The call cannot be meant as it was made."""


class PathNotFound(UsageError):
    """A path given by the user does not exist."""


class QuerySyntaxError(UsageError):
    """A query cannot be read. The message shows the place and an example.

    Attributes:
        problem: what is wrong, in one line.
        position: of the character in the source where it is.
    """

    def __init__(self, problem: str, source: str, position: int, example: str) -> None:
        super().__init__(problem, source, position, example)  # what pickle makes it anew from
        self.problem = problem
        self.position = position

    def __str__(self) -> str:
        problem, source, position, example = self.args
        if not any(char.isprintable() and not char.isspace() for char in source):  # nothing to point at
            return f"{problem}, for example: {example}"
        return f"{problem}\n{_marked(source, position)}\nfor example: {example}"


class FilterSyntaxError(QuerySyntaxError):
    """A filter cannot be read."""


class IndexNotFound(MMSearchError):
    """There is no index at that place."""


class IndexUnusable(MMSearchError):
    """An index is there, and cannot be used as it is."""


class IndexTooNew(IndexUnusable):
    """The index was written by a newer version of mmsearch."""


class IndexCorrupt(IndexUnusable):
    """A file of the index is missing, damaged or not of this index."""


class IndexLocked(IndexUnusable):
    """Another process is writing to the index."""


class UnsafeFilesystem(IndexUnusable):
    """The index lies on a file system where SQLite's write-ahead log is unsafe."""


class ModelMismatch(MMSearchError):
    """The index was made by another model than the one asked for."""


class ModelUnavailable(MMSearchError):
    """A model's files cannot be had here, or are not what they should be."""


class TrainingFailed(MMSearchError):
    """Training cannot go on; what was reached is kept."""


class MissingExtra(MMSearchError):
    """An optional dependency is missing; the message names the pip extra."""


class MediaError(MMSearchError):
    """One file cannot be read as what its name says."""


def _marked(source: str, position: int) -> str:
    """The part of a source around a position, and a line with a caret under it."""
    from unicodedata import category, east_asian_width

    start = max(0, position - 50)
    shown = "".join(char if char.isprintable() else " " for char in source[start : position + 25])
    before = shown[: position - start]
    width = sum(0 if category(char) in ("Mn", "Me") else 2 if east_asian_width(char) in "WF" else 1 for char in before)
    return f"  {shown}\n  {' ' * width}^"
