"""Faults at the calls by which a process changes files: it dies there, or its disk is full, or cannot be synced.

`faults.c` does it, below Python and SQLite alike. `python tests/faults.py LIBRARY` (with that library preloaded)
answers lines of JSON `[scenario, place, mode, at, log]` on stdin: it forks a child which runs a scenario of
`scenarios` in that folder with that fault, and prints how the child ended and what it said.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scenarios import SCENARIOS, Scenario, State, quietly, state_of

_HERE = Path(__file__).parent
_RECORD = struct.Struct("=7q")


class Mode(enum.IntEnum):
    """What happens at call number `at`; the numbers are those of faults.c."""

    WATCH = 0
    """Nothing."""
    KILL = 1
    """The process dies before it."""
    TEAR = 2
    """It dies when half of the bytes are written."""
    FULL = 3
    """From there on whatever grows fails: no space left."""
    SHORT = 4
    """The same, but half of the first such write still fits."""
    BROKEN_SYNC = 5
    """It fails, if it is an fsync: input/output error."""


class Kind(enum.IntEnum):
    """What a call does; the numbers are those of faults.c."""

    CREATE = 0
    MKDIR = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    RENAME = 5
    UNLINK = 6
    MARK = 7
    """No call: a step that the store told."""


@dataclass(frozen=True)
class Call:
    """A record of the log.

    Attributes:
        kind: what it did.
        grows: whether it needs room on the disk.
        inode: of the file, where it has one.
        offset: where the data went; the new size for TRUNCATE.
        name: absolute path, or the name of a mark.
        other: the new path for RENAME.
        data: what WRITE wrote.
    """

    kind: Kind
    grows: bool
    inode: int
    offset: int
    name: str
    other: str
    data: bytes


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        code: exit code of the process.
        calls: how many calls it made.
        error: the class and message of an error, or None.
        seen: what a reader saw afterwards, in the same process, without faults.
    """

    code: int
    calls: int = 0
    error: str | None = None
    seen: State = None


def lacking() -> str | None:
    """Why there can be no faults here, or None."""
    if sys.platform != "linux" or sys.maxsize < 2**32:
        return "needs 64-bit Linux (LD_PRELOAD and /proc)"
    if shutil.which("cc") is None:
        return "needs a C compiler (cc)"
    return None


def build(folder: Path) -> Path:
    """Compiles the library into `folder`."""
    library = folder / "faults.so"
    flags = ["-O1", "-Wall", "-Wextra", "-U_FORTIFY_SOURCE", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["cc", *flags, "-o", library, _HERE / "faults.c"], check=True)
    return library


def read_log(path: Path) -> list[Call]:
    """The calls and marks that a run wrote to its log, in order."""
    log = path.read_bytes()
    calls, at = [], 0
    while at < len(log):
        kind, grows, inode, offset, *sizes = _RECORD.unpack_from(log, at)
        at += _RECORD.size
        parts = []
        for size in sizes:
            parts.append(log[at : at + size])
            at += size
        name, other = map(os.fsdecode, parts[:2])
        calls.append(Call(Kind(kind), bool(grows), inode, offset, name, other, parts[2]))
    return calls


class Server:
    """A warm process that forks a child for each run."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Use `serve`."""
        self._process = process

    def run(self, scenario: str, place: Path, mode: Mode, at: int = -1, log: Path | None = None) -> Outcome:
        """Runs a scenario on the index in `place`, with a fault at call number `at`; after it, looks and repeats.

        In a process that survives the fault, the same run is repeated without it, and must succeed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        order = [scenario, os.path.realpath(place), int(mode), at, None if log is None else str(log)]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))


@contextmanager
def serve(library: Path) -> Iterator[Server]:
    """Starts a server with the compiled library."""
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library),
        "PYTHONPATH": f"{_HERE.parent}{os.pathsep}{_HERE}",
        "OPENBLAS_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(_HERE / "faults.py"), str(library)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        yield Server(process)
    finally:
        process.stdin.close()
        code = process.wait(30)
        process.stdout.close()
    assert code == 0


def _attempt(scenario: Scenario, index: Path, library: ctypes.CDLL) -> str | None:
    try:
        scenario.run(index, lambda name: library.faults_mark(name.encode()))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _child(library: ctypes.CDLL, order: list[Any], pipe: int) -> None:
    name, place, mode, at, log = order
    scenario = SCENARIOS[name]
    index = Path(place) / scenario.index
    descriptor = -1 if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    library.faults_arm(os.fsencode(place), mode, ctypes.c_long(at), descriptor)
    error = _attempt(scenario, index, library)
    calls = library.faults_disarm()
    answer = {"calls": calls, "error": error}
    if mode != Mode.WATCH:
        answer["seen"] = state_of(index)
        scenario.run(index, quietly)
    with open(pipe, "w") as file:
        json.dump(answer, file)


def _warm_up() -> None:
    """Imports what the scenarios need and fills the caches of SQLAlchemy, once for all children."""
    for name, scenario in SCENARIOS.items():
        with tempfile.TemporaryDirectory() as folder:
            place, shared = Path(folder) / name, Path(folder) / "shared"
            place.mkdir()
            scenario.prepare(place, shared)
            scenario.run(place / scenario.index, quietly)


def _serve(library: ctypes.CDLL) -> None:
    library.faults_disarm.restype = ctypes.c_long
    _warm_up()
    for line in sys.stdin:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reading)
                _child(library, json.loads(line), writing)
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(writing)
        with open(reading) as pipe:
            said = pipe.read()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(json.dumps({"code": code, **json.loads(said or "{}")}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve(ctypes.CDLL(sys.argv[1]))
