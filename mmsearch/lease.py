"""A snapshot that several searches share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmsearch.retrieval.store.reader import Snapshot


class Lease:
    """A snapshot that closes when it is retired and its last user has given it back."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._users = 1  # the index itself
        self._lock = threading.Lock()

    def take(self) -> None:
        """One more user."""
        with self._lock:
            self._users += 1

    def give_back(self) -> None:
        """One user less."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.snapshot.close()

    retire = give_back
