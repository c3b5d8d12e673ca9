"""What an answer is to be like: the options of a search and their checks."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, get_args

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.types import FusionMethod, GroupBy, Mode, Selection, SortBy


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
