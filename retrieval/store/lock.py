"""The lock of the one writer: `flock` on a file that names the process which holds it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mmsearch.retrieval.errors import IndexLocked, IndexNotFound
from mmsearch.retrieval.store import layout


class Lock:
    """Held from its making until `release`, or until the process ends in whatever way."""

    def __init__(self, index: Path) -> None:
        """Takes the lock at once.

        Raises:
            IndexLocked: another writer has it.
            IndexNotFound: the index folder is gone.
        """
        path = index / layout.LOCK
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError as error:
            raise IndexNotFound(f"there is no index at {index} (any more)") from error
        try:
            _lock(self._descriptor)
        except OSError as error:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip() if os.name != "nt" else ""
            os.close(self._descriptor)
            raise IndexLocked(
                f"another mmsearch (pid {holder or 'unknown'}) is writing to {index}; wait for it or stop it"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, b"%d\n" % os.getpid())

    def release(self) -> None:
        """Lets the next writer in. The file stays: removing it would let two writers lock two files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # far behind the process id, which others may read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
