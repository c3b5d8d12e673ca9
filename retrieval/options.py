"""What an answer is to be like: the options of a search and their checks."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.types import FusionMethod, GroupBy, Modality, Mode, Selection, SortBy

if TYPE_CHECKING:
    from mmsearch.retrieval.rerank import Reranker

DEPTH = 50
"""How many candidates are reranked, unless a search says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """What an answer is to be like; see `mmsearch.Index.search`.

    Raises:
        UsageError: a value that cannot be meant.
    """

    k: int = 10
    offset: int = 0
    modality: Selection | None = None
    where: str | None = None
    mode: Mode | None = None
    fusion: FusionMethod | None = None
    group: GroupBy | None = None
    dedup: bool = False
    diverse: float = 0.0
    sort: SortBy = "relevance"
    min_relevance: float = 0.0
    include_self: bool = False
    rerank: str | Reranker | None = None
    depth: int = DEPTH
    budget_ms: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _whole(self.k, "k", 1))
        object.__setattr__(self, "offset", _whole(self.offset, "offset", 0))
        for name, value, allowed in (
            ("modality", self.modality, get_args(Selection)),
            ("mode", self.mode, get_args(Mode)),
            ("fusion", self.fusion, get_args(FusionMethod)),
            ("group", self.group, get_args(GroupBy)),
            ("sort", self.sort, get_args(SortBy)),
        ):
            if value is not None and value not in allowed:
                raise UsageError(f"{name} {value!r} is none of {', '.join(allowed)}")
        if self.mode == "lexical" and self.fusion is not None:
            raise UsageError("fusion combines what clauses mean, and lexical search looks at words only: take one")
        for name, share in (("diverse", self.diverse), ("min_relevance", self.min_relevance)):
            if not _is_share(share):
                raise UsageError(f"{name} must be between 0 and 1, not {share}")
        object.__setattr__(self, "depth", _whole(self.depth, "depth", 1))
        if self.budget_ms is not None:
            object.__setattr__(self, "budget_ms", _whole(self.budget_ms, "budget_ms", 1))
            if self.rerank is None:
                raise UsageError("budget_ms is the time for reranking: name a reranker, or leave it out")
        if self.rerank is not None:
            _check_reranker(self.rerank)


def _check_reranker(rerank: Any) -> None:
    if isinstance(rerank, str):
        from mmsearch.retrieval.rerank.models import parse_name

        parse_name(rerank)
        return
    for name in ("name", "identity", "modalities", "batch_size", "score"):
        if not hasattr(rerank, name):
            raise UsageError(f"rerank {rerank!r} is neither the name of a reranker nor one: it has no {name}")
    _whole(rerank.batch_size, "batch_size of a reranker", 1)
    if not set(rerank.modalities) or not set(rerank.modalities) <= set(get_args(Modality)):
        raise UsageError(f"the modalities of a reranker are {', '.join(get_args(Modality))}, not {rerank.modalities!r}")


def _is_share(value: Any) -> bool:
    try:
        return bool(0 <= value <= 1)
    except (TypeError, ValueError):
        return False


def _whole(value: Any, name: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise UsageError(f"{name} must be {least} or more, not {number}")
    return number
