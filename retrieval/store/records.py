"""What the store takes and gives: frozen, and importable without numpy or SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass

from mmsearch.retrieval.types import AssetMetadata, Failure, ItemRef, Modality, Stamp


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to be added; its vector is found by `content_key` (32 bytes) in the space `modality`."""

    modality: Modality
    content_key: bytes
    fragment: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class AssetRecord:
    """A stored asset, for telling moved and copied files. `root` and `path` are absolute."""

    asset_id: int
    root_id: int
    root: str
    uri: str
    path: str
    modality: Modality
    stamp: Stamp
    content_hash: bytes
    owner: str | None
    status: str
    metadata: AssetMetadata


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item found by a search, before anything is known of it but its score (an inner product)."""

    item_id: int
    score: float


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """An item with what its asset says of itself. `root` and `path` are absolute; see `types.AssetMetadata`."""

    item_id: int
    asset_id: int
    root: str
    uri: str
    path: str
    fragment: str | None
    modality: Modality
    text: str | None
    content_hash: bytes
    owner: str | None
    width: int | None
    height: int | None
    taken: str | None
    camera: str | None
    orientation: int | None
    latitude: float | None
    longitude: float | None
    phash: int | None


@dataclass(frozen=True, slots=True)
class Diff:
    """A scan against the catalog.

    Attributes:
        new: uris that the catalog does not know.
        changed: known uris with another stamp (or another owner).
        unchanged: how many files need no look.
        failed: files that failed before and have not changed since; not tried again by themselves.
        known_failures: the same with their reasons.
        missing: known uris that the scan did not find, sorted; only those in its scope.
        device_changed: another drive is mounted where the root was.
        had_items: the catalog knows files under this root.
    """

    new: list[ItemRef]
    changed: list[ItemRef]
    unchanged: int
    failed: list[ItemRef]
    known_failures: list[Failure]
    missing: list[str]
    device_changed: bool
    had_items: bool
