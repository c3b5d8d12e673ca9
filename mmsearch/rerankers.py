"""The rerankers that an index has loaded: each once, when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, Unpack

if TYPE_CHECKING:
    from mmsearch.retrieval.rerank import Reranker
    from mmsearch.retrieval.rerank.scoring import Scorer


class Options(TypedDict):
    """How rerankers are loaded; see `retrieval.rerank.models.load_reranker`."""

    device: str | None
    precision: str | None
    threads: int | None
    offline: bool
    confirm: Callable[[str, int], bool] | None
    progress: Callable[[str, int, int], None] | None


class Rerankers:
    """Loads rerankers by name and keeps them. Safe from several threads."""

    def __init__(self, **options: Unpack[Options]) -> None:
        self._options = options
        self._loaded: dict[str, Reranker] = {}
        self._scorer: Scorer | None = None
        self._lock = threading.Lock()

    def get(self, name: str) -> Reranker:
        """The reranker of a name.

        Raises:
            UsageError: it is no name of a reranker.
            ModelUnavailable: it is not here and may not be downloaded, or there is none of that name.
            MissingExtra: a package that it needs is not installed.
        """
        from mmsearch.retrieval.rerank.models import load_reranker, parse_name

        name = parse_name(name).name
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_reranker(name, **self._options)
            return self._loaded[name]

    def scorer(self) -> Scorer:
        """What asks them. One for all searches: it knows what came of the earlier pages of a query."""
        from mmsearch.retrieval.rerank.scoring import Scorer

        with self._lock:
            if self._scorer is None:
                self._scorer = Scorer()
            return self._scorer
