"""Retrieval measures, files of TREC, and whether a difference between two systems is more than chance."""

from __future__ import annotations

from mmsearch.retrieval.evaluate.embeddings import (
    first_ranks,
    overlap_at_k,
    roc_auc,
    success_at_k,
    zero_shot_accuracy,
)
from mmsearch.retrieval.evaluate.measures import KS, Evaluated, Relevant, measure_embeddings, measure_run
from mmsearch.retrieval.evaluate.runs import (
    read_qrels,
    read_run,
    read_topics,
    write_qrels,
    write_run,
    write_topics,
)
from mmsearch.retrieval.evaluate.significance import Comparison, paired_bootstrap, paired_randomisation

__all__ = [
    "KS",
    "Comparison",
    "Evaluated",
    "Relevant",
    "first_ranks",
    "measure_embeddings",
    "measure_run",
    "overlap_at_k",
    "paired_bootstrap",
    "paired_randomisation",
    "read_qrels",
    "read_run",
    "read_topics",
    "roc_auc",
    "success_at_k",
    "write_qrels",
    "write_run",
    "write_topics",
    "zero_shot_accuracy",
]
