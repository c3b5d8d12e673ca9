"""mmsearch: cross-modal search over your pictures and texts.

    import mmsearch

    with mmsearch.open() as index:
        index.add("photos/")
        for hit in index.search("a cat on a sofa", k=5):
            print(hit.rank, hit.score, hit.path)

Names are loaded when they are first used, so that importing this costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsearch.evaluation import evaluate
    from mmsearch.index import Index, open
    from mmsearch.indexers.ingest import Progress
    from mmsearch.indexers.rows import Item
    from mmsearch.indexers.train.finetune import finetune
    from mmsearch.indexers.train.settings import TrainReport, Tuning
    from mmsearch.retrieval.errors import (
        FilterSyntaxError,
        IndexCorrupt,
        IndexLocked,
        IndexNotFound,
        IndexTooNew,
        IndexUnusable,
        MediaError,
        MissingExtra,
        MMSearchError,
        ModelMismatch,
        ModelUnavailable,
        PathNotFound,
        QuerySyntaxError,
        TrainingFailed,
        UnsafeFilesystem,
        UsageError,
    )
    from mmsearch.retrieval.evaluate.report import EvalReport
    from mmsearch.retrieval.explain import HeatMap
    from mmsearch.retrieval.query import ImageClause, ItemClause, Query, TextClause
    from mmsearch.retrieval.rerank import RerankCandidate, Reranker
    from mmsearch.retrieval.store.doctor import Diagnosis, Problem
    from mmsearch.retrieval.types import (
        Answer,
        ClauseScore,
        DuplicateGroup,
        DuplicatePicture,
        DuplicateReport,
        Explanation,
        Failure,
        Hit,
        HitExplanation,
        IndexInfo,
        ItemInfo,
        Picture,
        ReindexReport,
        Report,
        Reranking,
        RootInfo,
        TagCount,
        TaggedPicture,
        TagReport,
    )

__version__ = "0.1.0"

_HOMES = {
    "mmsearch.evaluation": ("evaluate",),
    "mmsearch.index": ("Index", "open"),
    "mmsearch.indexers.ingest": ("Progress",),
    "mmsearch.indexers.rows": ("Item",),
    "mmsearch.indexers.train.finetune": ("finetune",),
    "mmsearch.indexers.train.settings": ("TrainReport", "Tuning"),
    "mmsearch.retrieval.errors": (
        "FilterSyntaxError",
        "IndexCorrupt",
        "IndexLocked",
        "IndexNotFound",
        "IndexTooNew",
        "IndexUnusable",
        "MMSearchError",
        "MediaError",
        "MissingExtra",
        "ModelMismatch",
        "ModelUnavailable",
        "PathNotFound",
        "QuerySyntaxError",
        "TrainingFailed",
        "UnsafeFilesystem",
        "UsageError",
    ),
    "mmsearch.retrieval.evaluate.report": ("EvalReport",),
    "mmsearch.retrieval.explain": ("HeatMap",),
    "mmsearch.retrieval.store.doctor": ("Diagnosis", "Problem"),
    "mmsearch.retrieval.rerank": ("RerankCandidate", "Reranker"),
    "mmsearch.retrieval.query": ("ImageClause", "ItemClause", "Query", "TextClause"),
    "mmsearch.retrieval.types": (
        "Answer",
        "ClauseScore",
        "DuplicateGroup",
        "DuplicatePicture",
        "DuplicateReport",
        "Explanation",
        "Failure",
        "Hit",
        "HitExplanation",
        "IndexInfo",
        "ItemInfo",
        "Picture",
        "ReindexReport",
        "Report",
        "Reranking",
        "RootInfo",
        "TagCount",
        "TagReport",
        "TaggedPicture",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Answer",
    "ClauseScore",
    "Diagnosis",
    "DuplicateGroup",
    "DuplicatePicture",
    "DuplicateReport",
    "EvalReport",
    "Explanation",
    "Failure",
    "FilterSyntaxError",
    "HeatMap",
    "Hit",
    "HitExplanation",
    "ImageClause",
    "Index",
    "IndexCorrupt",
    "IndexInfo",
    "IndexLocked",
    "IndexNotFound",
    "IndexTooNew",
    "IndexUnusable",
    "Item",
    "ItemClause",
    "ItemInfo",
    "MMSearchError",
    "MediaError",
    "MissingExtra",
    "ModelMismatch",
    "ModelUnavailable",
    "PathNotFound",
    "Picture",
    "Problem",
    "Progress",
    "Query",
    "QuerySyntaxError",
    "ReindexReport",
    "Report",
    "RerankCandidate",
    "Reranker",
    "Reranking",
    "RootInfo",
    "TagCount",
    "TagReport",
    "TaggedPicture",
    "TextClause",
    "TrainReport",
    "TrainingFailed",
    "Tuning",
    "UnsafeFilesystem",
    "UsageError",
    "__version__",
    "evaluate",
    "finetune",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
