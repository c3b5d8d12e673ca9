"""Dates as people write them, from a year to a second, and the time that each stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2})(?:[T ](\d{1,2})(?::(\d{2})(?::(\d{2}))?)?)?)?)?", re.ASCII)
_BEYOND = ":"  # above every digit: the end of the last period that a date can name


@dataclass(frozen=True, slots=True)
class Period:
    """A date as it was written, and the time that it stands for: ISO 8601 wall clock, end excluded."""

    written: str
    start: str
    end: str


def read_period(text: str) -> Period:
    """The period that a date names: `2024`, `2024-05`, `2024-05-08`, or with hours, minutes and seconds.

    Raises:
        ValueError: it is no date, or there is no such day; the message says which.
    """
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError("a date is written as 2024, 2024-05, 2024-05-08 or 2024-05-08T10:30")
    parts = [int(part) for part in match.groups() if part is not None]
    year, month, day, *clock = [*parts, *(1, 1)[len(parts) - 1 :]] if len(parts) < 3 else parts
    try:
        start = datetime(year, month, day, *clock)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(f"there is no such date: {text}") from None
    return Period(text.replace(" ", "T"), start.isoformat(), _end(start, len(parts)))


def _end(start: datetime, precision: int) -> str:
    """The end of the period that begins at a time: a year, a month, a day, an hour, a minute or a second."""
    try:
        if precision == 1:
            return start.replace(year=start.year + 1).isoformat()
        if precision == 2:
            return (start + timedelta(days=32)).replace(day=1).isoformat()
        step = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1))[precision - 3]
        return (start + step).isoformat()
    except (ValueError, OverflowError):
        return _BEYOND
