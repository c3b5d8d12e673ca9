"""Copies of the files of hits into a folder: nothing there is ever overwritten."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mmsearch.answers import hit_paths
from mmsearch.output import counted, safe
from mmsearch.pictures import gone_or_why, open_regular
from mmsearch.retrieval.errors import MMSearchError, UsageError
from mmsearch.retrieval.types import Failure, Hit

_LONGEST_NAME = 255  # bytes, on nearly every file system
_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What `copy_hits` did, counted in files.

    Attributes:
        folder: where the copies are, as it was named.
        copied: new files there.
        present: files that were there already: equal content under their name, or the hit's own folder.
        pathless: hits that are no file of this machine.
        failed: files that could not be copied.
    """

    folder: Path
    copied: int
    present: int
    pathless: int
    failed: tuple[Failure, ...]


def copy_hits(hits: Sequence[Hit], folder: Path) -> CopyReport:
    """Copies the files of hits to a folder, which is made if need be; a file that cannot be copied ends nothing.

    Links are followed, times are kept. A name that other content has there gets a number: `x (2).jpg`. A copy is
    whole or not there, unless the process is killed.

    Raises:
        UsageError: `folder` is a file, or is empty.
        MMSearchError: `folder` cannot be made.
    """
    _make(folder)
    copied = present = 0
    failed: list[Failure] = []
    for path in hit_paths(hits):
        try:
            if _copy(path, folder):
                copied += 1
            else:
                present += 1
        except OSError as error:
            why = (error.strerror or str(error)) if path.exists() else gone_or_why(error)  # the target may be gone
            failed.append(Failure(os.fspath(path), why))
    pathless = sum(hit.path is None for hit in hits)
    return CopyReport(folder, copied, present, pathless, tuple(failed))


def copy_lines(report: CopyReport) -> list[str]:
    """A finished copy in a few lines for a person."""
    lines = [f"{counted(report.copied, 'file')} copied to {safe(os.fspath(report.folder))}"]
    if report.present:
        lines[0] += f"; {report.present:,} {'was' if report.present == 1 else 'were'} there already"
    if report.pathless:
        lines.append(f"{counted(report.pathless, 'hit')} without a file on this machine left out")
    if report.failed:
        lines.append(f"{counted(len(report.failed), 'file')} could not be copied:")
        lines += [f"  {safe(failure.path)}: {safe(failure.error)}" for failure in report.failed]
    return lines


def check_folder(folder: Path) -> None:
    """Raises UsageError where copies cannot be meant to go to `folder`; makes nothing."""
    if not folder.is_dir() and os.path.lexists(folder):
        raise UsageError(f"cannot copy to {folder}: a file is in the way; name a folder")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"cannot copy to {folder}: a file is in the way; name a folder") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise MMSearchError(f"cannot make the folder {folder}: {reason}") from error


def _copy(path: Path, folder: Path) -> bool:
    """Copies one file, unless it is there already."""
    if path.parent.samefile(folder):
        path.stat()  # a file that is gone is not there either
        return False
    with open_regular(path) as source:
        number = 1
        while True:
            target = folder / _numbered(path.name, number)
            try:
                copy = _create(target, source)
            except FileExistsError:
                if _same_content(path, target):
                    return False
                number += 1
                continue
            _fill(copy, target, source)
            return True


def _create(target: Path, source: BinaryIO) -> BinaryIO:
    """A new file that those may read who may read the source, as far as new files may be read."""
    mode = os.fstat(source.fileno()).st_mode & 0o666
    return open(target, "xb", opener=lambda name, flags: os.open(name, flags, mode))


def _fill(copy: BinaryIO, target: Path, source: BinaryIO) -> None:
    try:
        with copy:
            shutil.copyfileobj(source, copy, _BLOCK)
        times = os.fstat(source.fileno())
        os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _same_content(path: Path, target: Path) -> bool:
    try:
        return filecmp.cmp(path, target, shallow=False)
    except OSError:  # a link that leads nowhere has the name
        return False


def _numbered(name: str, number: int) -> str:
    """The name itself, then `name (2).ext` and so on, cut where it would be too long."""
    if number == 1:
        return name
    stem, extension = os.path.splitext(name)
    tail = f" ({number}){extension}"
    while stem and len(os.fsencode(stem + tail)) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem + tail
