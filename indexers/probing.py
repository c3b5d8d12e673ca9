"""Asks a model once for what its scores are judged by."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.calibrate import REFERENCES
from mmsearch.retrieval.probes import PROBES

if TYPE_CHECKING:
    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store import Writer

_log = logging.getLogger(__name__)


def keep_probes(writer: Writer, encoder: Encoder, model_id: int | None = None) -> None:
    """Embeds the probes with the current model of an index, or a staged one, and keeps them, unless they are there."""
    if encoder.name in REFERENCES or writer.has_probes(model_id):
        return
    rows = encoder.encode_texts(PROBES)
    if np.isfinite(rows).all():
        writer.set_probes(rows, model_id)
    else:
        _log.warning(
            "the model %s gives no finite vectors for plain texts: relevance will compare queries less well",
            encoder.name,
        )
