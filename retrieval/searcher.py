"""From a query to hits: embed it, search the spaces asked for, fuse, and fill in what people want to see."""

from __future__ import annotations

import logging
import operator
import unicodedata
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.retrieval.errors import MediaError, ModelMismatch, PathNotFound, UsageError
from mmsearch.retrieval.fusion import reciprocal_rank_fusion
from mmsearch.retrieval.types import Hit, Modality, Selection

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from PIL import Image

    from mmsearch.retrieval.encoders import Encoder
    from mmsearch.retrieval.store.reader import ItemRecord, Snapshot

_log = logging.getLogger(__name__)

_SPACES: tuple[Modality, ...] = ("image", "text")


class Searcher:
    """Answers queries on one snapshot. Safe to use from several threads.

    Args:
        snapshot: one generation of an index; the caller closes it.
        encoder: gives the index's encoder; called only for queries that need one.
    """

    def __init__(self, snapshot: Snapshot, encoder: Callable[[], Encoder]) -> None:
        self._snapshot = snapshot
        self._get_encoder = encoder

    def search(
        self,
        text: str | None = None,
        *,
        image: str | Path | bytes | Image.Image | None = None,
        vector: ArrayLike | None = None,
        k: int = 10,
        modality: Selection | None = None,
        include_self: bool = False,
    ) -> list[Hit]:
        """The k best items for a text, or a picture, or a vector of the index's space.

        A text that is longer than the model reads is cut at its end; that is logged as a warning.

        Args:
            text: literal text.
            image: a path, the bytes of a picture file, or a Pillow image.
            vector: `dim` numbers, not all zero; its length does not matter.
            k: how many hits at most; fewer if the index holds fewer.
            modality: what to find: `image`, `text`, or `all`, which fuses both by rank (a hit's score is then its
                fusion score, not a cosine). By default `image` if the index has images, else `text`.
            include_self: keep items whose content is that of the query picture.

        Returns:
            Hits, best first; equal scores by the smaller item id.

        Raises:
            UsageError: not exactly one of text, image and vector; an empty text; k < 1; a bad vector or modality.
            PathNotFound: `image` is a path that does not exist.
            MediaError: `image` is no picture.
        """
        if sum(query is not None for query in (text, image, vector)) != 1:
            raise UsageError("give one of a text, an image and a vector to search with")
        k = _checked_k(k)
        spaces = self._spaces(modality)
        own: Collection[int] = ()
        if text is not None:
            row = self._text_row(_checked_text(text))
        elif vector is not None:
            row = self._vector_row(vector)
        else:
            assert image is not None
            row, own = self._image_row(image)
            own = () if include_self else own
        return self._hits(row, k, spaces, frozenset(own))

    def _hits(
        self, row: NDArray[np.float32], k: int, spaces: tuple[Modality, ...], left_out: frozenset[int]
    ) -> list[Hit]:
        runs: list[list[tuple[int, float]]] = []
        for space in spaces:
            if not self._snapshot.counts.get(space, 0):
                continue
            candidates = self._snapshot.search(space, row[None, :], k + len(left_out))[0]
            found = [(hit.item_id, hit.score) for hit in candidates if hit.item_id not in left_out]
            runs.append(found[:k])
        if len(spaces) > 1:
            ranked = reciprocal_rank_fusion([[item_id for item_id, _ in run] for run in runs], k=k)
        else:
            ranked = runs[0] if runs else []
        records = self._snapshot.items([item_id for item_id, _ in ranked])
        return [_hit(rank, score, records[item_id]) for rank, (item_id, score) in enumerate(ranked, start=1)]

    def _spaces(self, modality: Selection | None) -> tuple[Modality, ...]:
        if modality is None:
            return ("image",) if self._snapshot.counts.get("image", 0) else ("text",)
        if modality == "all":
            return _SPACES
        if modality not in _SPACES:
            raise UsageError(f"modality {modality!r} is none of image, text, all")
        return (modality,)

    def _encoder(self) -> Encoder:
        encoder = self._get_encoder()
        if encoder.identity != self._snapshot.identity:
            raise ModelMismatch(
                f"the index was made by the model {self._snapshot.model}, and what is loaded now as "
                f"{encoder.name} is another one; index with it into a new --index"
            )
        return encoder

    def _text_row(self, text: str) -> NDArray[np.float32]:
        encoder = self._encoder()
        if getattr(encoder, "languages", None) == ("en",) and _has_other_letters(text):
            _log.warning("the model %s understands English only: answers to this query mean little", encoder.name)
        # A token is at least one character, so most queries need no count.
        if len(text) > encoder.max_tokens - 2:
            tokens = encoder.count_tokens(text)
            if tokens > encoder.max_tokens:
                _log.warning(
                    "the query has %d tokens and the model reads %d: the rest was cut off",
                    tokens,
                    encoder.max_tokens,
                )
        return _first(encoder.encode_texts([text]))

    def _image_row(self, image: str | Path | bytes | Image.Image) -> tuple[NDArray[np.float32], Collection[int]]:
        """The embedding of a picture, and the items of the same content."""
        from mmsearch.retrieval.media import content_hash, load_image, upright

        if isinstance(image, str | Path):
            if not str(image):
                raise UsageError("the path of the query image is empty")
            content, name = _read(Path(image)), str(image)
        elif isinstance(image, bytes | bytearray | memoryview):
            content, name = bytes(image), "the query image"
        else:
            encoder = self._encoder()
            return _first(encoder.encode_images([encoder.preprocess(upright(image))])), ()
        own = self._snapshot.pictures_of_hash(content_hash(content))
        if own:  # its embedding is in the index: no model needed
            return _first(self._snapshot.vectors("image", own[:1])), own
        encoder = self._encoder()
        loaded = load_image(content, target=encoder.image_size, name=name)
        return _first(encoder.encode_images([encoder.preprocess(loaded.image)])), own

    def _vector_row(self, vector: ArrayLike) -> NDArray[np.float32]:
        dim = self._snapshot.dim
        try:
            row: NDArray[np.float64] = np.asarray(vector, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise UsageError(f"the query vector is no array of {dim} numbers: {error}") from error
        if row.shape != (dim,):
            raise UsageError(f"the query vector has the shape {row.shape}; this index needs ({dim},)")
        length = float(np.linalg.norm(row))
        if not np.isfinite(length) or length == 0.0:
            raise UsageError("the query vector must be finite and not all zeros")
        return (row / length).astype(np.float32)


def _checked_k(k: Any) -> int:
    try:
        number = operator.index(k)
    except TypeError:
        raise UsageError(f"k must be a whole number, not {k!r}") from None
    if number < 1:
        raise UsageError(f"k must be 1 or more, not {number}")
    return number


def _checked_text(text: str) -> str:
    if not text.strip():
        raise UsageError("the query is empty; type what you look for")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("the query is not valid UTF-8 text") from None
    return text


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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise PathNotFound(f"{path} does not exist") from None
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null byte
        raise UsageError(f"{str(path)!r} is no path: {error}") from error


def _hit(rank: int, score: float, record: ItemRecord) -> Hit:
    return Hit(
        rank=rank,
        score=float(score),
        relevance=None,
        path=None if record.path is None else Path(record.path),
        uri=record.uri,
        fragment=record.fragment,
        modality=record.modality,
        text=record.text,
        item_id=record.item_id,
        width=record.width,
        height=record.height,
        taken=record.taken,
        id=record.id,
    )
