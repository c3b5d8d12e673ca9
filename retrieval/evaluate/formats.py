"""The files that captions come in, read to one kind of record. Nothing here looks for pictures."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmsearch.retrieval.errors import MediaError, UsageError
from mmsearch.retrieval.media import decode_text

LANGUAGE = "en"
"""The language of a caption that says none: that of COCO, Flickr30k and most sets."""

_IMAGES = ("image", "path", "file_name", "filename", "image_name")
_TEXTS = ("text", "caption", "captions", "texts", "sentences", "comment")
_TEXT_IN = re.compile(r"(?:text|caption)s?_([A-Za-z]{2,3}(?:[-_][A-Za-z]{2,4})?)")
_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
_DELIMITERS = ("\t", ",", ";", "|")


class Record(NamedTuple):
    """What a file says of one picture: its name, its split (None: not said), and (language, text) pairs."""

    name: str
    split: str | None
    texts: tuple[tuple[str, str], ...]


def read_records(path: Path) -> tuple[str, list[Record]]:
    """The format of a file (`coco`, `karpathy`, `flickr`, `records`) and its records, in order.

    Raises:
        UsageError: nothing in it is known as captions of pictures.
        MediaError: it cannot be read as what it looks like.
    """
    try:
        text = decode_text(path.read_bytes()).removeprefix("\ufeff")
    except MediaError as error:
        raise MediaError(f"{path}: {error}") from None
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror}") from error
    first = next((line for line in _lines(text) if line.strip()), None)
    if first is None:
        raise UsageError(f"{path} is empty")
    if _TOKEN.fullmatch(first):
        return "flickr", list(_flickr(path, text))
    if first.lstrip()[0] in "[{":
        return _json(path, text)
    return "records", list(_table(path, text, first))


def _lines(text: str) -> list[str]:
    """Lines as editors count them; `splitlines` also ends them at characters that captions may have."""
    return text.replace("\r\n", "\n").split("\n")


def _json(path: Path, text: str) -> tuple[str, list[Record]]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in _lines(text) if line.strip()]
        if len(lines) > 1 and _is_object(lines[0]):
            return "records", list(_json_lines(path, text))
        raise MediaError(f"{path} is broken JSON, in line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise MediaError(f"{path} is no captions file: its JSON is nested too deeply") from None
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        if isinstance(value.get("annotations"), list):
            return "coco", list(_coco(path, value["images"], value["annotations"]))
        if any(isinstance(each, dict) and "sentences" in each for each in value["images"]):
            return "karpathy", list(_karpathy(path, value["images"]))
        value = value["images"]
    if isinstance(value, dict) and not _has_name(value):
        value = [_named(name, each) for name, each in value.items()]
    if isinstance(value, dict):
        value = [value]
    return "records", list(_records(path, value, "entry"))


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _has_name(value: Mapping[str, Any]) -> bool:
    return any(isinstance(value.get(name), str) for name in _IMAGES) and any(
        name in _TEXTS or _TEXT_IN.fullmatch(name) for name in value
    )


def _named(name: str, value: object) -> object:
    """An entry of an object by name of picture."""
    if isinstance(value, dict):
        return value if any(each in value for each in _IMAGES) else {**value, "image": name}
    return {"image": name, "captions": value}


def _json_lines(path: Path, text: str) -> Iterator[Record]:
    values = []
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise MediaError(f"{path} is broken JSON, in line {number}: {reason}") from None
    return _records(path, values, "line")


def _coco(path: Path, images: Sequence[Any], annotations: Sequence[Any]) -> Iterator[Record]:
    captions: dict[object, list[str]] = {}
    try:
        for each in annotations:
            if "caption" in each:
                captions.setdefault(each["image_id"], []).append(_text(each["caption"]))
        if annotations and not captions:
            raise UsageError(f"{path} has annotations without captions; COCO's captions are in captions_*.json")
        for each in images:
            texts = captions.pop(each["id"], [])
            yield Record(each["file_name"], _split(each), tuple((LANGUAGE, text) for text in texts))
    except (KeyError, TypeError, AttributeError) as error:
        raise _malformed(path, "COCO's captions", error) from None
    for image_id, texts in captions.items():
        yield Record(f"(image {image_id})", None, tuple((LANGUAGE, text) for text in texts))


def _karpathy(path: Path, images: Sequence[Any]) -> Iterator[Record]:
    try:
        for each in images:
            folder = each.get("filepath") or ""
            name = f"{folder}/{each['filename']}" if folder else each["filename"]
            texts = tuple((LANGUAGE, _text(sentence["raw"])) for sentence in each["sentences"])
            yield Record(name, _split(each), texts)
    except (KeyError, TypeError, AttributeError) as error:
        raise _malformed(path, "Karpathy's splits", error) from None


def _malformed(path: Path, kind: str, error: Exception) -> MediaError:
    reason = f"an entry has no {error.args[0]!r}" if isinstance(error, KeyError) else "an entry is no object"
    return MediaError(f"{path} looks like {kind}, but {reason}")


def _flickr(path: Path, text: str) -> Iterator[Record]:
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            found = _TOKEN.fullmatch(line)
            if found is None:
                raise MediaError(f"{path}, line {number}: not `name.jpg#0`, a tab, and a caption")
            yield Record(found[1], None, ((LANGUAGE, found[2]),))


def _table(path: Path, text: str, first: str) -> Iterator[Record]:
    delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))  # the limit belongs to the process
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        raise MediaError(f"{path}, line {reader.line_num}: {error}") from None
    names = [name.strip().lower() for name in rows[0][1]]
    records = [dict(zip(names, cells, strict=False)) for _, cells in rows[1:]]
    if not any(name in _IMAGES for name in names):
        shown = ", ".join(names[:10])
        raise UsageError(f"{path} has no column with pictures ({', '.join(_IMAGES[:4])}); its columns are {shown}")
    if not any(name in _TEXTS or _TEXT_IN.fullmatch(name) for name in names):
        raise UsageError(f"{path} has no column with captions (text, caption); its columns are {', '.join(names[:10])}")
    return _records(path, records, "row")


def _records(path: Path, values: object, noun: str) -> Iterator[Record]:
    """Records of objects with a name and captions each."""
    if not isinstance(values, list) or not values:
        raise UsageError(f"{path} has no captions")
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise UsageError(f"{path}, {noun} {number}: not an object with the name of a picture and captions")
        name = next((value[each] for each in _IMAGES if isinstance(value.get(each), str) and value[each].strip()), None)
        if name is None:
            raise UsageError(f"{path}, {noun} {number}: it names no picture ({', '.join(_IMAGES[:4])})")
        yield Record(name.strip(), _split(value), tuple(_texts(value)))


def _texts(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    said = value.get("language") or value.get("lang")
    own = said.strip() if isinstance(said, str) and said.strip() else LANGUAGE
    for name, content in value.items():
        other = _TEXT_IN.fullmatch(name)
        if name in _TEXTS or other:
            for each in content if isinstance(content, list) else [content]:
                if each is not None or isinstance(content, list):
                    yield (other[1].replace("_", "-").lower() if other else own), _text(each)


def _text(value: Any) -> str:
    """A caption as it is said: a text, or an object with one."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("raw", "text", "caption") if name in value), None)
    return value if isinstance(value, str) else "" if value is None else str(value)


def _split(value: Mapping[str, Any]) -> str | None:
    split = value.get("split")
    return split.strip() or None if isinstance(split, str) else None
