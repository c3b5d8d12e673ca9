"""Pictures with captions, from the files that such sets come in; and what of an index a TREC qrels file names.

The format is told by the content, not by the name of the file (docs/evaluation.md lists the formats):

- COCO: JSON with `images` (`id`, `file_name`) and `annotations` (`image_id`, `caption`),
- Karpathy's splits: JSON with `images` (`filename`, `filepath`, `split`, `sentences` with `raw`),
- Flickr's `token.txt`: lines of `name.jpg#0`, a tab, and a caption,
- records: JSON (a list, or an object by name of picture), JSON lines, CSV or TSV, with a name and captions each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmsearch.retrieval.errors import PathNotFound, UsageError
from mmsearch.retrieval.evaluate.formats import LANGUAGE, Record, read_records

_USUAL_FILES = (
    "captions.json",
    "captions.jsonl",
    "captions.csv",
    "captions.tsv",
    "captions.txt",
    "metadata.jsonl",
    "metadata.csv",
    "dataset.json",
    "token.txt",
)
_KINDS = (".json", ".jsonl", ".csv", ".tsv", ".token", ".token.txt")
_FOLDERS = ("", "images", "Images")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """A picture of a set: its absolute path, and the name that the set has for it."""

    path: Path
    name: str


@dataclass(frozen=True, slots=True)
class Caption:
    """A caption: its text, its language, and the row of its picture in `CaptionSet.pictures`."""

    text: str
    language: str
    picture: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What of a captions file could not be used.

    Attributes:
        missing: names of pictures that are not there, each once, in the order of the file.
        missing_captions: how many captions they had.
        empty: how many captions had nothing but white space.
        uncaptioned: how many pictures had no caption left.
    """

    missing: tuple[str, ...] = ()
    missing_captions: int = 0
    empty: int = 0
    uncaptioned: int = 0


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """Pictures and their captions.

    Attributes:
        source: absolute path of the file.
        format: `coco`, `karpathy`, `flickr` or `records`.
        pictures: each path once, in the order of the file.
        captions: in the order of the file, grouped by picture.
        left_out: what could not be used.
    """

    source: Path
    format: str
    pictures: tuple[CaptionedPicture, ...]
    captions: tuple[Caption, ...]
    left_out: LeftOut = field(default_factory=LeftOut)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of its captions, in the order in which they occur first."""
        return tuple(dict.fromkeys(caption.language for caption in self.captions))


def read_captions(
    path: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    languages: Sequence[str] = (),
) -> CaptionSet:
    """Reads a captions file, or the one in a folder.

    Args:
        path: the file, or a folder that has one.
        images: folder of the pictures; by default they are looked for beside the file, and in `images/` there.
        split: only pictures of this split.
        languages: only captions in these; all by default. A caption whose language is not said counts as `en`.

    Raises:
        PathNotFound: there is no such file or folder.
        UsageError: the file has no captions, none of this split or language, or none of a picture that is there.
        MediaError: the file is not what it looks like (broken JSON, not UTF-8).
    """
    source = _file(Path(os.path.abspath(path)))
    folder = None if images is None else Path(os.path.abspath(images))
    if folder is not None and not folder.is_dir():
        raise PathNotFound(f"{folder} is no folder with pictures")
    format_, records = read_records(source)
    records = _of_split(source, records, split)
    records = _of_languages(source, records, tuple(dict.fromkeys(languages)))
    return _resolved(source, format_, records, _Finder(source, folder))


def _file(path: Path) -> Path:
    """The captions file that is meant."""
    if not path.exists():
        raise PathNotFound(f"{path} does not exist")
    if not path.is_dir():
        return path
    for name in _USUAL_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(one for one in path.iterdir() if one.is_file() and one.name.lower().endswith(_KINDS))
    if not found:
        raise UsageError(f"{path} has no captions file (captions.json, token.txt, a .csv, ...); name the file itself")
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        raise UsageError(f"{path} has several files that could have captions ({names}); name the one that is meant")
    return found[0]


def _of_split(source: Path, records: list[Record], split: str | None) -> list[Record]:
    if split is None:
        return records
    chosen = [record for record in records if record.split == split]
    if not chosen:
        exist = sorted({record.split for record in records if record.split})
        raise UsageError(
            f"{source} has no split {split!r}; " + (f"it has {', '.join(exist)}" if exist else "it has no splits")
        )
    return chosen


def _of_languages(source: Path, records: list[Record], languages: tuple[str, ...]) -> list[Record]:
    if not languages:
        return records
    exist = dict.fromkeys(language for record in records for language, _ in record.texts)
    for language in languages:
        if language not in exist:
            raise UsageError(
                f"{source} has no captions in {language!r}, only in {', '.join(exist) or 'none'}; a caption whose "
                f"language is not said (a column `language`, or `captions_{language}`) counts as {LANGUAGE}"
            )
    return [
        Record(record.name, record.split, tuple(pair for pair in record.texts if pair[0] in languages))
        for record in records
    ]


class _Finder:
    """Finds pictures by the names that a captions file has for them."""

    def __init__(self, source: Path, images: Path | None) -> None:
        if images is not None:
            self._folders = [images]
        else:
            base = source.parent
            self._folders = [base / name for name in _FOLDERS]
            # The usual places of COCO: annotations/captions_val2017.json beside val2017/.
            self._folders += [base.parent / name for name in (source.stem.rpartition("_")[2], "images")]
        self._flat = images is not None

    def find(self, name: str) -> Path | None:
        """The absolute path, or None; the folder that had the last one is tried first."""
        names = [name]
        if self._flat and "/" in name:
            names.append(name.rpartition("/")[2])
        for folder in self._folders:
            for one in names:
                path = os.path.normpath(os.path.join(folder, one))
                if _is_file(path):
                    if folder != self._folders[0]:
                        self._folders.remove(folder)
                        self._folders.insert(0, folder)
                    return Path(path)
        return None


def _is_file(path: str) -> bool:
    try:
        return os.path.isfile(path)
    except ValueError:  # a NUL character
        return False


def _resolved(source: Path, format_: str, records: Iterable[Record], finder: _Finder) -> CaptionSet:
    found: dict[str, Path | None] = {}
    names: dict[Path, str] = {}
    texts: dict[Path, list[tuple[str, str]]] = {}
    missing: dict[str, int] = {}
    empty = any_caption = 0
    for record in records:
        if record.name not in found:
            found[record.name] = finder.find(record.name)
        path = found[record.name]
        kept = [(language, text) for language, raw in record.texts if (text := " ".join(raw.split()))]
        empty += len(record.texts) - len(kept)
        any_caption += len(record.texts)
        if path is None:
            missing[record.name] = missing.get(record.name, 0) + len(kept)
            continue
        names.setdefault(path, record.name)
        texts.setdefault(path, []).extend(kept)
    paths = [path for path, captions in texts.items() if captions]
    left_out = LeftOut(tuple(missing), sum(missing.values()), empty, len(texts) - len(paths))
    if not paths:
        raise UsageError(_nothing_left(source, left_out, any_caption, given=finder))
    return CaptionSet(
        source,
        format_,
        tuple(CaptionedPicture(path, names[path]) for path in paths),
        tuple(Caption(text, language, row) for row, path in enumerate(paths) for language, text in texts[path]),
        left_out,
    )


def _nothing_left(source: Path, left_out: LeftOut, captions: int, *, given: _Finder) -> str:
    if left_out.missing:
        shown = ", ".join(left_out.missing[:_SHOWN]) + (", ..." if len(left_out.missing) > _SHOWN else "")
        return (
            f"none of the {len(left_out.missing):,} pictures that {source} names is there ({shown}); "
            "say with --images in which folder they are"
        )
    return f"{source} has no captions" + (f": all {captions:,} are empty" if captions else "")
