"""Merging along the way, which a run can do without."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mmsearch.retrieval.errors import IndexUnusable

if TYPE_CHECKING:
    from mmsearch.retrieval.store.writer import Writer

_log = logging.getLogger(__name__)


class Merging:
    """Merges small segments of a writer. Where that fails once, an old one is damaged or the disk is full: no more."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._works = True

    def merge(self) -> None:
        """Commits and merges, if that is worth it and works."""
        if not self._works:
            return
        try:
            self._writer.merge()
        except IndexUnusable as error:
            self._works = False
            _log.warning("%s. What this run has done is saved; only old segments could not be merged", error)
