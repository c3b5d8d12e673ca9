"""File name patterns: what `--include`, `--exclude` and a quoted glob such as `photos/**/*.jpg` mean.

`*`, `?` and `[...]` match inside one name, `**` any number of folders. A pattern that matches a folder matches
everything in it. Paths here are relative and `/`-separated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MAGIC = re.compile(r"[*?\[]")


def is_glob(path: str) -> bool:
    """Whether a path has wildcard characters in it."""
    return _MAGIC.search(path) is not None


@dataclass(frozen=True)
class Filter:
    """What a scan takes. Empty fields take everything.

    Attributes:
        include: a file must match it, where there is one.
        exclude: no file that matches it is taken, and no such folder is entered.
        glob: the segments of a glob given as PATH; taken files must match it.
    """

    include: re.Pattern[str] | None = None
    exclude: re.Pattern[str] | None = None
    glob: re.Pattern[str] | None = None
    _segments: tuple[re.Pattern[str] | None, ...] = ()

    @classmethod
    def of(cls, include: Sequence[str] = (), exclude: Sequence[str] = (), glob: str = "") -> Filter:
        """Compiles patterns.

        A pattern of `include` or `exclude` without `/` matches a file or folder name at any depth, one with `/` a
        path from the scanned folder on; upper and lower case are the same, since cameras write `.JPG`. A `glob` is
        anchored and keeps the case, as in a shell.
        """
        segments = tuple(None if part == "**" else re.compile(_translate(part)) for part in glob.split("/"))
        return cls(
            include=_compile(include),
            exclude=_compile(exclude),
            glob=re.compile(_path_regex("/" + glob), re.DOTALL) if glob else None,
            _segments=segments if glob else (),
        )

    def takes(self, path: str) -> bool:
        """Whether a file is wanted."""
        return (
            (self.include is None or self.include.fullmatch(path) is not None)
            and (self.exclude is None or self.exclude.fullmatch(path) is None)
            and (self.glob is None or self.glob.fullmatch(path) is not None)
        )

    def enters(self, path: str) -> bool:
        """Whether a folder can hold wanted files."""
        if self.exclude is not None and self.exclude.fullmatch(path):
            return False
        for name, segment in zip(path.split("/"), self._segments, strict=False):
            if segment is None:
                return True
            if not segment.fullmatch(name):
                return False
        return True


def _compile(patterns: Sequence[str]) -> re.Pattern[str] | None:
    wanted = [_path_regex(pattern) for pattern in patterns if pattern.strip("/")]
    return re.compile("|".join(wanted), re.IGNORECASE | re.DOTALL) if wanted else None


def _path_regex(pattern: str) -> str:
    pattern = pattern.removeprefix("./").rstrip("/")
    anchored = "/" in pattern
    parts = pattern.strip("/").split("/")
    regex = "" if anchored else "(?:[^/]+/)*"
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        if part == "**":
            regex += "[^/]+" if last else "(?:[^/]+/)*"
        else:
            regex += _translate(part) + ("" if last else "/")
    return f"(?:{regex}(?:/.*)?)"


def _translate(part: str) -> str:
    """One path segment of a glob to a regular expression."""
    regex, at = "", 0
    while at < len(part):
        char = part[at]
        at += 1
        if char == "*":
            regex += "[^/]*"
        elif char == "?":
            regex += "[^/]"
        elif char == "[":
            end = part.find("]", at + 2 if part[at : at + 1] in ("!", "^") else at + 1)
            if end < 0:
                regex += r"\["
                continue
            inside = part[at:end].replace("\\", r"\\").replace("[", r"\[")
            inside = "^/" + inside[1:] if inside[0] in "!^" else inside
            regex += f"[{inside}]"
            at = end + 1
        else:
            regex += re.escape(char)
    return regex
