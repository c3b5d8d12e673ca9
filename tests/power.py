"""What a power cut leaves of the files that a process wrote, by the log of its calls."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from faults import Call, Kind

Image = tuple[tuple[str, bytes | None], ...]
"""Names below a folder, sorted, with the bytes of files and None for folders."""

Data = Literal["synced", "some", "all"]
"""Only what was synced; about half of the other sectors too, whichever; everything."""
Names = Literal["synced", "all"]

_SECTOR = 512


@dataclass
class _File:
    """A file: what it holds, what of it is on the medium, and what was done to it since then."""

    now: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    since: list[Call] = field(default_factory=list)

    def do(self, call: Call) -> None:
        _change(self.now, call.offset, call.data if call.kind == Kind.WRITE else None)
        self.since.append(call)

    def sync(self) -> None:
        self.synced = bytes(self.now)
        self.since.clear()

    def left(self, data: Data, chance: random.Random) -> bytes:
        """What outlasts a power cut."""
        if data == "all":
            return bytes(self.now)
        if data == "synced" or not self.since:
            return self.synced
        left = bytearray(self.synced)
        for call in self.since:
            if call.kind == Kind.WRITE:
                for offset, data in _sectors(call):
                    if chance.random() < 0.5:
                        _change(left, offset, data)
            elif chance.random() < 0.5:
                _change(left, call.offset, None)
        return bytes(left)


def _change(content: bytearray, offset: int, data: bytes | None) -> None:
    """Writes data at a place, or (None) makes that the end."""
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


def _sectors(call: Call) -> Iterator[tuple[int, bytes]]:
    at, end = call.offset, call.offset + len(call.data)
    while at < end:
        stop = min(end, (at // _SECTOR + 1) * _SECTOR)
        yield at, call.data[at - call.offset : stop - call.offset]
        at = stop


class Disk:
    """A folder as a process sees it, and what of it is durable.

    Bytes and sizes are durable once their file was synced; that a name is there, was renamed or is gone, once its
    folder was. Whatever else has happened may be there after a power cut or not.
    """

    def __init__(self, folder: Path) -> None:
        """Takes what is in `folder` now for durable. The calls must be those of a run that starts from there."""
        self._folder = os.path.realpath(folder)
        self._now: dict[str, _File | None] = {}
        self._by_inode: dict[int, _File] = {}
        for path in sorted(Path(self._folder).rglob("*")):
            if path.is_dir():
                self._now[str(path)] = None
            else:
                content = path.read_bytes()
                self._now[str(path)] = self._by_inode[path.stat().st_ino] = _File(bytearray(content), content)
        self._durable = dict(self._now)

    def do(self, call: Call) -> None:
        """The next call of the log."""
        if call.kind == Kind.MKDIR:
            self._now[call.name] = None
        elif call.kind == Kind.CREATE:
            self._now[call.name] = self._by_inode[call.inode] = _File()
        elif call.kind in (Kind.WRITE, Kind.TRUNCATE):
            self._by_inode[call.inode].do(call)
        elif call.kind == Kind.RENAME:
            self._now[call.other] = self._now.pop(call.name)
        elif call.kind == Kind.UNLINK:
            del self._now[call.name]
        elif call.kind == Kind.SYNC:
            if call.name == self._folder or self._now.get(call.name, _File()) is None:
                self._sync_folder(call.name)
            else:
                self._by_inode[call.inode].sync()

    def _sync_folder(self, folder: str) -> None:
        kept = {name: file for name, file in self._durable.items() if os.path.dirname(name) != folder}
        here = {name: file for name, file in self._now.items() if os.path.dirname(name) == folder}
        self._durable = {**kept, **here}

    def cut(self, data: Data, names: Names, chance: random.Random) -> Image:
        """What is there after a power cut now.

        Args:
            data: which bytes outlast it.
            names: which changes of names do.
            chance: decides about "some".
        """
        left: dict[str, bytes | None] = {}
        for name, file in sorted((self._durable if names == "synced" else self._now).items()):
            above = os.path.dirname(name)
            if above != self._folder and os.path.relpath(above, self._folder) not in left:
                continue  # its folder is not there
            left[os.path.relpath(name, self._folder)] = None if file is None else file.left(data, chance)
        return tuple(left.items())


def restore(image: Image, to: Path) -> None:
    """Writes out what a power cut has left, into a new folder."""
    to.mkdir()
    for name, content in image:
        if content is None:
            (to / name).mkdir()
        else:
            (to / name).write_bytes(content)
