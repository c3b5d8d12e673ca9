"""What the clauses of a query are in the embedding space: texts and pictures are embedded, items are looked up."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmsearch.retrieval.calibrate import length_of
from mmsearch.retrieval.encoders.presets import PRESETS
from mmsearch.retrieval.errors import MediaError, ModelMismatch, PathNotFound, UsageError
from mmsearch.retrieval.lexicon import has_unspaced
from mmsearch.retrieval.query import Clause, ImageClause, ItemClause, TextClause, format_clause

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store.reader import Snapshot
    from mmsearch.retrieval.types import Modality

_log = logging.getLogger(__name__)

_SHORT = 2
"""Prompt templates are for queries of at most so many words, or characters of a script without spaces."""


@dataclass(frozen=True, slots=True)
class EmbeddedClause:
    """A clause and its vector.

    Attributes:
        name: the clause as it is written.
        weight: signed.
        row: float32 (dim,) of length 1.
        own: items that are what the clause shows: of the same content, or the item itself.
        kind: what it is the vector of; None where that is not known.
        length: how much of a sentence a text is, see `calibrate.length_of`.
    """

    name: str
    weight: float
    row: NDArray[np.float32]
    own: frozenset[int] = frozenset()
    kind: Modality | None = None
    length: float = 1.0


class ClauseEncoder:
    """Embeds clauses for one snapshot; loads the model only for those that need it.

    Args:
        snapshot: whose space it is.
        encoder: gives the index's encoder.
    """

    def __init__(self, snapshot: Snapshot, encoder: Callable[[], Encoder]) -> None:
        self._snapshot = snapshot
        self._get_encoder = encoder

    def embed(self, clauses: Sequence[Clause]) -> list[EmbeddedClause]:
        """The clauses with their vectors, in order; all texts in one call of the encoder.

        Raises:
            UsageError: an item is not in the index.
            PathNotFound: a picture does not exist.
            MediaError: a picture cannot be read.
            ModelMismatch: the encoder is not the index's.
        """
        texts = [clause.text for clause in clauses if isinstance(clause, TextClause)]
        pictures = [self._picture(clause) for clause in clauses if isinstance(clause, ImageClause)]
        rows = iter(text_rows(self._encoder(), texts)) if texts else iter(())
        looked_at = iter(pictures)
        embedded = []
        for clause in clauses:
            own: frozenset[int] = frozenset()
            kind: Modality
            length = 1.0
            if isinstance(clause, TextClause):
                row, kind, length = next(rows), "text", length_of(clause.text)
            elif isinstance(clause, ImageClause):
                (row, own), kind = next(looked_at), "image"
            else:
                row, own, kind = self._item(clause)
            embedded.append(EmbeddedClause(format_clause(clause), clause.weight, row, own, kind, length))
        return embedded

    def vector(self, vector: ArrayLike) -> EmbeddedClause:
        """A vector that was given as such.

        Raises:
            UsageError: it does not have `dim` finite numbers, or they are all zero.
        """
        dim = self._snapshot.dim
        try:
            row: NDArray[np.float64] = np.asarray(vector, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the query vector is no array of {dim} numbers: {error}") from error
        if row.shape != (dim,):
            raise UsageError(f"the query vector has the shape {row.shape}; this index needs ({dim},)")
        if not np.isfinite(row).all() or not row.any():
            raise UsageError("the query vector must be finite and not all zeros")
        row = row / np.abs(row).max()  # or the squares of very large numbers overflow
        return EmbeddedClause("<vector>", 1.0, (row / np.linalg.norm(row)).astype(np.float32))

    def _encoder(self) -> Encoder:
        encoder = self._get_encoder()
        if encoder.identity != self._snapshot.identity:
            raise ModelMismatch(
                f"the index was made by the model {self._snapshot.model}, and what is loaded now as "
                f"{encoder.name} is another one; index with it into a new --index"
            )
        return encoder

    def _picture(self, clause: ImageClause) -> tuple[NDArray[np.float32], frozenset[int]]:
        """The embedding of a picture, and the items of the same content."""
        from mmsearch.retrieval.media import content_hash, load_image, upright

        image = clause.image
        if isinstance(image, str | Path):
            content, name = read_picture(Path(os.path.expanduser(image))), os.path.normpath(os.path.expanduser(image))
        elif isinstance(image, bytes | bytearray | memoryview):
            content, name = bytes(image), "the query image"
        else:
            encoder = self._encoder()
            return _first(encoder.encode_images([encoder.preprocess(upright(image))])), frozenset()
        own = self._snapshot.pictures_of_hash(content_hash(content))
        if own:  # its embedding is in the index: no model needed
            return self._stored("image", own[0]), frozenset(own)
        encoder = self._encoder()
        loaded = load_image(content, target=encoder.image_size, name=name)
        return _first(encoder.encode_images([encoder.preprocess(loaded.image)])), frozenset()

    def _item(self, clause: ItemClause) -> tuple[NDArray[np.float32], frozenset[int], Modality]:
        record = self._snapshot.items([clause.item_id]).get(clause.item_id)
        if record is None:
            raise UsageError(f"there is no item {clause.item_id} in the index; hits show their ids with --json")
        return (
            self._stored(record.modality, clause.item_id),
            self._snapshot.same_content(clause.item_id),
            record.modality,
        )

    def _stored(self, space: Modality, item_id: int) -> NDArray[np.float32]:
        """The vector of an item, whose length is 1 but for what float16 has rounded."""
        row = _first(self._snapshot.vectors(space, [item_id]))
        return row / np.float32(np.linalg.norm(row))


def text_rows(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """(n, dim) rows of query texts, short ones in the prompt templates of the model.

    What the model cannot read, or only in part, is logged as a warning.
    """
    if getattr(encoder, "languages", None) == ("en",) and any(map(_has_other_letters, texts)):
        _log.warning("the model %s understands English only: answers to this query mean little", encoder.name)
    for text in texts:
        # A token is at least one character, so most queries need no count.
        tokens = encoder.count_tokens(text) if len(text) > encoder.max_tokens - 2 else 0
        if tokens > encoder.max_tokens:
            _log.warning(
                "the query has %d tokens and the model reads %d: the rest was cut off", tokens, encoder.max_tokens
            )
    prompts = [prompts_of(encoder.name, text) for text in texts]
    rows = encoder.encode_texts(list(chain(*prompts)))
    if len(rows) == len(texts):
        return rows
    starts = np.cumsum([0, *map(len, prompts[:-1])])
    means = np.add.reduceat(rows, starts, axis=0)
    normalised: NDArray[np.float32] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return normalised


def prompts_of(model: str, text: str) -> tuple[str, ...]:
    """What a model reads of a query text: a short one in the prompt templates of its preset, others as they are."""
    preset, words = PRESETS.get(model), text.split()
    if preset is None or not words:
        return (text,)
    is_unspaced = has_unspaced(text)
    templates = preset.unspaced_prompts if is_unspaced else preset.prompts
    if not templates or len("".join(words) if is_unspaced else words) > _SHORT:
        return (text,)
    return tuple(template.replace("{}", " ".join(words)) for template in templates)


def read_picture(path: Path) -> bytes:
    """The content of a picture file that a query names.

    Raises:
        PathNotFound: it does not exist.
        MediaError: it cannot be read.
        UsageError: it is no path.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise PathNotFound(f"{path} does not exist") from None
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        raise UsageError(f"{str(path)!r} is no path: {error}") from error


def _first(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    row: NDArray[np.float32] = rows[0]
    return row


def _has_other_letters(text: str) -> bool:
    """Whether a text has letters that are not Latin."""
    return any(
        char.isalpha() and not unicodedata.name(char, "LATIN").startswith(("LATIN", "FULLWIDTH LATIN"))
        for char in text
        if ord(char) > 0x7F
    )
