"""Labels: what pictures can be tagged with, out of words, files, and the lists that come with mmsearch.

A label is a tag, or a tag with the words that the model reads for it: `pool = a swimming pool`.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from mmsearch.retrieval.errors import PathNotFound, UsageError

_LONGEST = 200
_LISTS = Path(__file__).parent / "lists"


class Label(NamedTuple):
    """A tag, and the words that the model reads for it. Labels of one tag are several ways to say it."""

    tag: str
    words: str


def parse_label(text: str) -> Label:
    """The label that a text says.

    Raises:
        UsageError: it says none: it is empty, too long, or has a comma or a control character in its tag.
    """
    tag, equals, words = (" ".join(part.split()) for part in text.partition("="))
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    if not tag or (equals and not words):
        raise UsageError(f"{shown!r} is no label: write a tag, or `tag = words for the model`")
    if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text.strip()):
        raise UsageError(f"{shown!r} is no label: it has a line end or another control character in it")
    if "," in tag:
        raise UsageError(f"{shown!r} is no tag, for its comma: give each label by itself, as in `dog cat beach`")
    if max(len(tag), len(words)) > _LONGEST:
        raise UsageError(f"{shown!r} is too long for a label: {_LONGEST} characters at most")
    return Label(unicodedata.normalize("NFC", tag), words or tag)


def read_labels(path: str | os.PathLike[str]) -> list[Label]:
    """The labels of a UTF-8 file, one a line; empty lines and those that begin with # are passed over.

    Raises:
        PathNotFound: there is no such file.
        UsageError: it cannot be read, or a line is no label.
    """
    shown = os.fspath(path)
    try:
        content = Path(path).expanduser().read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise PathNotFound(f"{shown} does not exist") from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"the labels in {shown} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from error
    labels = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            text = line.decode("utf-8").strip()
            if text and not text.startswith("#"):
                labels.append(parse_label(text))
        except UnicodeDecodeError:
            raise UsageError(f"{shown}, line {number} is not UTF-8; save the file as UTF-8") from None
        except UsageError as error:
            raise UsageError(f"{shown}, line {number}: {error}") from None
    return labels


def list_names() -> list[str]:
    """The lists that come with mmsearch."""
    return sorted(path.stem for path in _LISTS.glob("*.txt"))


def listed_labels(name: str) -> list[Label]:
    """The labels of a list that comes with mmsearch.

    Raises:
        UsageError: there is no list of that name.
    """
    names = list_names()
    if name not in names:
        raise UsageError(f"there is no list {name!r}: the lists are {', '.join(names)}; --labels reads a file of yours")
    return read_labels(_LISTS / f"{name}.txt")


def gathered(
    texts: Iterable[str], files: Iterable[str | os.PathLike[str]] = (), lists: Iterable[str] = ()
) -> list[Label]:
    """All labels that were named, in order, each once; tags that differ in ASCII capitals only are the first of them.

    Raises:
        UsageError: one is none, or there are none at all.
    """
    labels = [parse_label(text) for text in texts]
    for path in files:
        labels += read_labels(path)
    for name in lists:
        labels += listed_labels(name)
    if not labels:
        raise UsageError("there are no labels: name some, as in `mmsearch tag dog cat beach`, or take --list everyday")
    spellings: dict[bytes, str] = {}
    return list(
        dict.fromkeys(
            Label(spellings.setdefault(label.tag.encode().lower(), label.tag), label.words) for label in labels
        )
    )
