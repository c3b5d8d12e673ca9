"""The few EXIF fields that are stored: orientation, capture time, camera, position.

A reader of its own, because Pillow's reads every tag, warns about damaged ones and costs as much as decoding
a small photo. It takes the TIFF structure of the EXIF specification (CIPA DC-008) and is written for files that
lie: every offset is checked, a field that makes no sense is None, and nothing here raises.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 13: 4}
_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 6: "b", 8: "h", 9: "i"}
_ASCII, _UNDEFINED, _RATIONAL, _SIGNED_RATIONAL = 2, 7, 5, 10
_MAX_ENTRIES = 512
_MAX_BYTES = 4096

_MAKE, _MODEL, _ORIENTATION, _EXIF_FOLDER, _GPS_FOLDER = 0x010F, 0x0110, 0x0112, 0x8769, 0x8825
_ORIGINAL, _DIGITIZED, _OFFSET, _OFFSET_ORIGINAL, _OFFSET_DIGITIZED = 0x9003, 0x9004, 0x9010, 0x9011, 0x9012
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4

_TIME = re.compile(r"(\d{4})[:/.-](\d{1,2})[:/.-](\d{1,2})[ T]+(\d{1,2}):(\d{1,2})(?::(\d{1,2}))?")
_ZONE = re.compile(r"([+-])(\d{1,2}):?(\d{2})$|(Z)$")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f]+")

_Values = str | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Exif:
    """What a photo says of how it was taken. Fields are None where absent or nonsense.

    Attributes:
        orientation: 1-8.
        taken: DateTimeOriginal (else DateTimeDigitized) as ISO 8601, with an offset where there is one.
        camera: make and model, the make once.
        latitude, longitude: degrees, south and west negative; both or neither.
    """

    orientation: int | None = None
    taken: str | None = None
    camera: str | None = None
    latitude: float | None = None
    longitude: float | None = None


def parse_exif(block: bytes) -> Exif:
    """Reads an EXIF block, with or without its six-byte `Exif` prefix, or a whole classic TIFF file."""
    if block.startswith(b"Exif\x00\x00"):
        block = block[6:]
    if block[:4] == b"II*\x00":
        order = "<"
    elif block[:4] == b"MM\x00*":
        order = ">"
    else:
        return Exif()
    if len(block) < 8:
        return Exif()
    main = _folder(block, order, struct.unpack_from(order + "I", block, 4)[0], _MAIN_TAGS)
    photo = _folder(block, order, _pointer(main, _EXIF_FOLDER), _PHOTO_TAGS)
    gps = _folder(block, order, _pointer(main, _GPS_FOLDER), _GPS_TAGS)
    latitude, longitude = _position(gps)
    return Exif(
        orientation=_orientation(main.get(_ORIENTATION)),
        taken=_taken(photo),
        camera=_camera(main.get(_MAKE), main.get(_MODEL)),
        latitude=latitude,
        longitude=longitude,
    )


_MAIN_TAGS = frozenset({_MAKE, _MODEL, _ORIENTATION, _EXIF_FOLDER, _GPS_FOLDER})
_PHOTO_TAGS = frozenset({_ORIGINAL, _DIGITIZED, _OFFSET, _OFFSET_ORIGINAL, _OFFSET_DIGITIZED})
_GPS_TAGS = frozenset({_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE})


def _folder(block: bytes, order: str, offset: int, wanted: frozenset[int]) -> dict[int, _Values]:
    """The wanted tags of the image file directory at `offset`; damaged entries are left out."""
    if not 8 <= offset <= len(block) - 2:
        return {}
    found: dict[int, _Values] = {}
    (entries,) = struct.unpack_from(order + "H", block, offset)
    entry = struct.Struct(order + "HHI")
    for at in range(offset + 2, offset + 2 + 12 * min(entries, _MAX_ENTRIES), 12):
        if at + 12 > len(block):
            break
        tag, kind, number = entry.unpack_from(block, at)
        if tag not in wanted or tag in found:
            continue
        size = _SIZES.get(kind, 0) * number
        if not 0 < size <= _MAX_BYTES:
            continue
        start = at + 8 if size <= 4 else struct.unpack_from(order + "I", block, at + 8)[0]
        if start + size <= len(block):
            found[tag] = _values(block, order, kind, number, start)
    return found


def _values(block: bytes, order: str, kind: int, number: int, start: int) -> _Values:
    if kind in (_ASCII, _UNDEFINED):
        raw = block[start : start + number].split(b"\x00", 1)[0]
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    if kind in (_RATIONAL, _SIGNED_RATIONAL):
        code = "I" if kind == _RATIONAL else "i"
        numbers = struct.unpack_from(f"{order}{2 * number}{code}", block, start)
        pairs = zip(numbers[::2], numbers[1::2], strict=True)
        return tuple(above / below if below else math.nan for above, below in pairs)
    return tuple(struct.unpack_from(f"{order}{number}{_CODES[kind]}", block, start))


def _pointer(folder: Mapping[int, _Values], tag: int) -> int:
    value = folder.get(tag)
    return int(value[0]) if isinstance(value, tuple) else 0


def _orientation(value: _Values | None) -> int | None:
    if isinstance(value, tuple) and value[0] in range(1, 9):
        return int(value[0])
    return None


def _taken(photo: Mapping[int, _Values]) -> str | None:
    for time_tag, offset_tag in ((_ORIGINAL, _OFFSET_ORIGINAL), (_DIGITIZED, _OFFSET_DIGITIZED)):
        match = _TIME.match(_text(photo.get(time_tag)))
        if match is None:
            continue
        try:
            year, month, day, hour, minute, second = (int(part or 0) for part in match.groups())
            moment = datetime(year, month, day, hour, minute, second)
        except ValueError:
            continue
        zone = _text(photo.get(offset_tag)) or _text(photo.get(_OFFSET))
        return moment.isoformat() + _zone(zone)
    return None


def _zone(text: str) -> str:
    match = _ZONE.match(text)
    if match is None:
        return ""
    if match[4]:
        return "+00:00"
    hours, minutes = int(match[2]), int(match[3])
    return f"{match[1]}{hours:02}:{minutes:02}" if hours <= 14 and minutes < 60 else ""


def _camera(make: _Values | None, model: _Values | None) -> str | None:
    maker, name = _text(make), _text(model)
    if maker and name:
        first = maker.split()[0].lower()
        return name if name.lower().startswith(first) else f"{maker} {name}"
    return name or maker or None


def _text(value: _Values | None) -> str:
    return _UNPRINTABLE.sub(" ", value).strip()[:100] if isinstance(value, str) else ""


def _position(gps: Mapping[int, _Values]) -> tuple[float | None, float | None]:
    latitude = _degrees(gps.get(_LATITUDE), gps.get(_LATITUDE_REF), "NS", 90.0)
    longitude = _degrees(gps.get(_LONGITUDE), gps.get(_LONGITUDE_REF), "EW", 180.0)
    if latitude is None or longitude is None or latitude == longitude == 0:  # zeros: no satellite was found
        return None, None
    return latitude, longitude


def _degrees(value: _Values | None, reference: _Values | None, signs: str, most: float) -> float | None:
    """Degrees, minutes, seconds to signed degrees. Without a hemisphere the position is unknown: None."""
    side = _text(reference)[:1].upper()
    if not isinstance(value, tuple) or not side or side not in signs:
        return None
    degrees, minutes, seconds = (*value[:3], 0.0, 0.0)[:3]
    if math.isnan(seconds):  # 0/0: many cameras leave seconds out this way
        seconds = 0.0
    result = degrees + minutes / 60 + seconds / 3600
    if not (0 <= result <= most) or not (0 <= minutes < 60.0001) or not (0 <= seconds < 60.0001):
        return None
    return round(-result if side == signs[1] else result, 7) + 0.0  # never -0.0
