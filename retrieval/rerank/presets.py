"""The rerankers that have names of their own: one table, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmsearch.retrieval.types import Modality

RerankerKind = Literal["blip-itm", "cross-encoder", "starter-joint"]
"""Which adapter runs it: BlipForImageTextRetrieval, a sequence classifier with one label, or the bundled one."""


@dataclass(frozen=True, slots=True)
class RerankerPreset:
    """A named reranker.

    Attributes:
        name: what to give as `--rerank`.
        kind: which adapter runs it.
        repo: on the hub; empty for the bundled one.
        reads: what it reads beside the query.
        modalities: of the items that it can score.
        languages: of queries, ISO 639-1.
        licence: of the weights, as their authors give it.
        download_bytes: about how much is downloaded.
        summary: a few words for `mmsearch models`.
    """

    name: str
    kind: RerankerKind
    repo: str
    reads: str
    modalities: tuple[Modality, ...]
    languages: tuple[str, ...]
    licence: str
    download_bytes: int
    summary: str


RERANKERS: dict[str, RerankerPreset] = {
    preset.name: preset
    for preset in (
        RerankerPreset(
            name="starter-joint",
            kind="starter-joint",
            repo="",
            reads="pictures",
            modalities=("image",),
            languages=("en", "zh"),
            licence="see its model card",
            download_bytes=0,
            summary="bundled; for indexes of the starter",
        ),
        RerankerPreset(
            name="minilm",
            kind="cross-encoder",
            repo="cross-encoder/ms-marco-MiniLM-L6-v2",
            reads="texts, and captions of pictures",
            modalities=("image", "text"),
            languages=("en",),
            licence="Apache-2.0",
            download_bytes=91_000_000,
            summary="English; small and quick",
        ),
        RerankerPreset(
            name="blip-itm",
            kind="blip-itm",
            repo="Salesforce/blip-itm-base-coco",
            reads="pictures",
            modalities=("image",),
            languages=("en",),
            licence="BSD-3-Clause",
            download_bytes=895_000_000,
            summary="English; slow without a GPU",
        ),
    )
}
"""Every preset by name, smallest first."""
