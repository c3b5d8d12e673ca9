"""What the store takes and gives: frozen, and importable without numpy or SQLAlchemy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mmsearch.retrieval.types import AssetMetadata, Failure, ItemRef, Modality, Stamp


class Model(NamedTuple):
    """An encoder whose vectors an index holds; fields as `Encoder`, `name` as the user gave it."""

    model_id: int
    name: str
    identity: str
    dim: int
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item to be added; its vector is found by `content_key` (32 bytes) in the space `modality`."""

    modality: Modality
    content_key: bytes
    fragment: str | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class AssetRecord:
    """A stored asset, for telling moved and copied files. `root` and `path` are absolute, of files."""

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
class Condition:
    """A filter as SQL over `items JOIN assets`; values are bound to its `?`.

    Attributes:
        sql: an expression, for finding all that passes.
        of_one: the same for items that are given: it looks up what is known of each, and nothing else.
        parameters: what is bound, in order, to either.
        fields: names of the fields that it asks for.
    """

    sql: str
    of_one: str
    parameters: tuple[object, ...] = ()
    fields: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An item found by a search, before anything is known of it but its score (an inner product)."""

    item_id: int
    score: float


@dataclass(frozen=True, slots=True)
class Selected:
    """The candidates that a filter lets through, and how they were found.

    Attributes:
        candidates: at most k, best first.
        plan: `ids first` or `candidates`.
        selectivity: share of the items that pass: of all where that was counted, else of those looked at.
    """

    candidates: list[Candidate]
    plan: str
    selectivity: float


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """An item with what its asset says of itself; see `types.AssetMetadata`.

    `root` and `path` are absolute. Of a row that names a picture, `root`, `uri` and `path` are the picture's, and
    `fragment` says which row it is; a row that a program gave without a picture has no path. `meta` is a JSON
    object of a row's further columns, `id` the row's id where it was given one.
    """

    item_id: int
    asset_id: int
    root: str
    uri: str
    path: str | None
    fragment: str | None
    modality: Modality
    text: str | None
    content_hash: bytes | None
    owner: str | None
    width: int | None
    height: int | None
    taken: str | None
    camera: str | None
    orientation: int | None
    latitude: float | None
    longitude: float | None
    phash: int | None
    modified_ns: int
    meta: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Diff:
    """A scan against the catalog.

    Attributes:
        new: uris that the catalog does not know.
        changed: known uris with another stamp (or another owner, or so far only listed).
        unchanged: how many files need no look.
        failed: files that failed before and have not changed since; not tried again by themselves.
        known_failures: the same with their reasons.
        missing: known uris that the scan did not find, sorted; only those in its scope.
        device_changed: another drive is mounted where the root was.
        had_items: the catalog knows files under this root.
        mounts: uris of folders that were on other drives when the root was last scanned whole.
    """

    new: list[ItemRef]
    changed: list[ItemRef]
    unchanged: int
    failed: list[ItemRef]
    known_failures: list[Failure]
    missing: list[str]
    device_changed: bool
    had_items: bool
    mounts: tuple[str, ...]
