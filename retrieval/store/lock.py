"""The lock of the one writer: `flock` on a file that names the process which holds it."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from mmsearch.retrieval.errors import IndexLocked, IndexNotFound, IndexUnusable
from mmsearch.retrieval.store import layout

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)  # the last is what Windows says


class Lock:
    """Held from its making until `release`, or until the process ends in whatever way."""

    def __init__(self, index: Path) -> None:
        """Takes the lock at once.

        Raises:
            IndexLocked: another writer has it.
            IndexNotFound: the index folder is gone.
            IndexUnusable: the file system does not let it be locked or written to.
        """
        path = index / layout.LOCK
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._take(index)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, b"%d\n" % os.getpid())
        except FileNotFoundError as error:
            raise IndexNotFound(f"there is no index at {index} (any more)") from error
        except OSError as error:
            self.release()
            raise IndexUnusable(
                f"cannot lock the index at {index}: {error.strerror or error}; "
                "check that you may write there, or name another with --index"
            ) from error
        except BaseException:
            self.release()
            raise

    def _take(self, index: Path) -> None:
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno not in _HELD:
                raise
            raise IndexLocked(
                f"another mmsearch (pid {self._holder() or 'unknown'}) is writing to {index}; wait for it or stop it"
            ) from error

    def _holder(self) -> str:
        """Process id of the writer that has the lock; empty where the file does not say."""
        text = os.pread(self._descriptor, 20, 0).strip() if os.name != "nt" else b""
        return text.decode() if text.isdigit() else ""

    def release(self) -> None:
        """Lets the next writer in. The file stays: removing it would let two writers lock two files."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def is_held(index: Path) -> bool:
    """Whether a writer is at work. Writes nothing; a writer that starts in the very instant is told to wait."""
    try:
        descriptor = os.open(index / layout.LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        _try(descriptor)
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(descriptor)
    return False


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # far behind the process id, which others may read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

    _try = _lock

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _try(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
