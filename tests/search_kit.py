"""Small indexes of given vectors and words, for the tests of searching."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from store_kit import PRECISION, key

from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.store import LocalStore, NewItem, Writer
from mmsearch.retrieval.types import AssetMetadata, Hit, ItemRef, Modality, Root, Stamp

DIM = 4


@dataclass(frozen=True)
class File:
    """A file of an index: its vector and what is known of it.

    `texts` are the captions beside a picture, or what a text file says: an item each, of the same vector.
    """

    uri: str
    vector: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)
    texts: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    taken: str | None = None
    modified: int = 0
    phash: int | None = None
    modality: Modality = "image"


@dataclass
class Built:
    """An index and the item ids of its pictures and texts, by uri."""

    store: LocalStore
    pictures: dict[str, int] = field(default_factory=dict)
    texts: dict[str, list[int]] = field(default_factory=dict)


def unit(vector: Sequence[float]) -> NDArray[np.float32]:
    row = np.asarray(vector, np.float64)
    return np.asarray(row / np.linalg.norm(row), np.float32)


def build(folder: Path, files: Sequence[File]) -> Built:
    """An index of files, in their order: item ids go up with it, captions after all pictures."""
    dim = len(files[0].vector) if files else DIM
    store = LocalStore.create(folder / "index", model="fake", identity="fake-1", dim=dim)
    built = Built(store)
    tags: dict[int, Mapping[str, float]] = {}
    with store.writer() as writer:
        writer.root(Root(folder, 1))
        for file in files:
            if file.modality == "image":
                _add(writer, folder, file.uri, file, "image", (None,), None)
        for file in files:
            if file.modality == "text" or file.texts:
                uri, owner = (file.uri, None) if file.modality == "text" else (f"{file.uri}.txt", file.uri)
                _add(writer, folder, uri, file, "text", file.texts, owner)
        writer.commit()
    with store.snapshot() as snapshot:
        for record in snapshot.all_items():
            if record.modality == "image":
                built.pictures[record.uri] = record.item_id
            else:
                built.texts.setdefault(record.owner or record.uri, []).append(record.item_id)
        assets = {record.uri: record.asset_id for record in snapshot.all_items()}
    for file in files:
        if file.tags:
            tags[assets[file.uri]] = dict.fromkeys(file.tags, 0.5)
    if tags:
        with store.writer() as writer:
            writer.tag(tags)
            writer.commit()
    return built


def _add(
    writer: Writer,
    folder: Path,
    uri: str,
    file: File,
    space: Modality,
    texts: Sequence[str | None],
    owner: str | None,
) -> None:
    keys = [key(f"{uri} {number}") for number in range(len(texts))]
    writer.embed(space, keys, np.stack([unit(file.vector)] * len(keys)), **PRECISION)
    pieces = [None if len(texts) == 1 else f"char={number}" for number in range(len(texts))]
    writer.add(
        ItemRef(str(folder), uri, str(folder / uri), space, Stamp(1, file.modified), owner),
        content_hash=key(uri),
        metadata=AssetMetadata(taken=file.taken, phash=file.phash),
        items=[NewItem(space, one, piece, text) for one, piece, text in zip(keys, pieces, texts, strict=True)],
    )


def add_captions(built: Built, folder: Path, captions: Sequence[tuple[str | None, str]]) -> None:
    """Rows of a manifest that name pictures by their uris, or none, in this order."""
    manifest = Root(folder / "captions.csv", 1, kind="manifest")
    with built.store.writer() as writer:
        writer.root(manifest)
        for number, (uri, text) in enumerate(captions):
            writer.embed("text", [key(text)], unit([1, *[0] * (built.store.dim - 1)])[None], **PRECISION)
            writer.add(
                ItemRef(
                    str(manifest.path),
                    f"id={number}",
                    str(manifest.path),
                    "text",
                    Stamp(1, 1),
                    uri,
                    uri and str(folder),
                ),
                content_hash=key(text),
                metadata=AssetMetadata(),
                items=[NewItem("text", key(text), None, text)],
            )
        writer.commit()


def no_encoder() -> Encoder:
    raise AssertionError("no model was needed")


def ids(hits: Sequence[Hit]) -> list[int]:
    return [hit.item_id for hit in hits]
