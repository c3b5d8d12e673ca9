"""The nouns that cross module borders: frozen, typed, without behaviour of their own.

Everything here is importable without numpy, so that `mmsearch --help` stays fast.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, overload

Modality = Literal["image", "text"]
"""An embedding space of the store. Images and texts never share one (the modality gap)."""

RootKind = Literal["folder", "manifest", "rows"]
"""What uris are relative to: a folder, a manifest (its rows), or nothing on disk (rows that a program gave)."""

Selection = Literal["image", "text", "all"]
"""What a search looks at: one modality, or all of them fused by rank."""

Mode = Literal["dense", "lexical", "hybrid"]
"""How a search finds: by embedding, by the words of captions, texts, names and tags, or by both, fused by rank."""

FusionMethod = Literal["early", "late", "both"]
"""How clauses become one ranking: one composed vector, a list for each clause fused by rank, or all of these lists."""

GroupBy = Literal["file", "folder"]
"""What a grouped answer shows the best item of."""

SortBy = Literal["relevance", "date"]
"""The order of the hits of an answer."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a file system says of a file without reading it: `size` in bytes, `mtime_ns` since 1970."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Stamp:
        """The stamp of a file; times before 1677 and after 2262, which no database holds, become those."""
        return cls(stat.st_size, max(-(2**63), min(2**63 - 1, stat.st_mtime_ns)))


@dataclass(frozen=True, slots=True)
class Root:
    """A folder (or a folder above single files), or a manifest file, that item uris are relative to.

    Attributes:
        path: absolute path; `rows:` for rows that a program gave.
        device: `st_dev` of `path` at scan time; a changed one means another drive is mounted there.
        kind: what `path` is.
        columns: which columns of a manifest were named, as JSON; None for the defaults.
    """

    path: Path
    device: int
    kind: RootKind = "folder"
    columns: str | None = None


@dataclass(frozen=True, slots=True)
class ItemRef:
    """A file that a scan has found and not yet opened, or a row of a manifest.

    Attributes:
        root: absolute path of the root that `uri` is relative to.
        uri: path relative to the root, `/`-separated, percent-encoded (non-UTF-8 bytes too).
        path: absolute, openable.
        modality: what its items will be.
        stamp: size and modification time.
        owner: uri of the picture that a sidecar text (`x.txt` beside `x.jpg`) or a row belongs to, else None.
        owner_root: the root that `owner` is relative to; None for `root` itself.
        listed: a picture that only rows of manifests name; it leaves the index with the last of them.
    """

    root: str
    uri: str
    path: str
    modality: Modality
    stamp: Stamp
    owner: str | None = None
    owner_root: str | None = None
    listed: bool = False


@dataclass(frozen=True, slots=True)
class AssetMetadata:
    """What a file says of itself; stored when it is indexed. Unknown fields are None.

    Attributes:
        width, height: pixels as shown (after EXIF orientation).
        taken: EXIF capture time as ISO 8601, with an offset only where the file gives one.
        camera: make and model.
        orientation: the EXIF orientation 1-8 found in the file.
        latitude, longitude: degrees, south and west negative.
        phash: 64-bit perceptual hash of the shown picture, as a signed int64.
    """

    width: int | None = None
    height: int | None = None
    taken: str | None = None
    camera: str | None = None
    orientation: int | None = None
    latitude: float | None = None
    longitude: float | None = None
    phash: int | None = None


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of a text asset. `start`/`end` are character offsets into the decoded file."""

    text: str
    start: int
    end: int

    @property
    def fragment(self) -> str:
        """What tells this chunk from others of its file, such as `char=120-480`."""
        return f"char={self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that could not be indexed, and why (one line that a person can act on)."""

    path: str
    error: str


@dataclass(frozen=True, slots=True)
class Hit:
    """One retrieved item. Fields and their order are the same in Python, HTTP and `query --json`.

    Attributes:
        rank: 1 for the best.
        score: higher is better; comparable inside one answer only (cosine, or RRF for `all`). Reranking changes the
            order and leaves the scores of the first stage as they are.
        relevance: 0..1, how far the item stands out from what the whole index scores for this query; comparable
            between queries, languages and models. None where there is too little to compare with.
        path: absolute and openable, None where the item is no file of this machine. For a caption out of a
            manifest it is the path of its picture.
        uri: relative to its root, percent-encoded.
        fragment: part of the asset, such as `char=120-480` or, of a manifest, `id=17`; None for the whole.
        text: the text of a text item, None for images.
        item_id: never re-used within an index.
        width, height: pixels as shown; taken: ISO 8601 capture time; None where unknown.
        id: the id that a manifest or a program gave to the item; None for files of folders.
        tags: of the picture, sorted.
        others: further items of the same file or folder that were found, where hits are grouped.
        duplicates: near-duplicates of this hit that were found and left out for it, best first.
        rank_before: where the first stage had ranked the item, before reranking and before anything was left out or
            collapsed; None where nothing was reranked.
    """

    rank: int
    score: float
    relevance: float | None
    path: Path | None
    uri: str
    fragment: str | None
    modality: Modality
    text: str | None
    item_id: int
    width: int | None = None
    height: int | None = None
    taken: str | None = None
    id: str | None = None
    tags: tuple[str, ...] = ()
    others: int = 0
    duplicates: tuple[Hit, ...] = ()
    rank_before: int | None = None


@dataclass(frozen=True, slots=True)
class ClauseScore:
    """What one clause of a query says of one hit.

    Attributes:
        clause: as it is written in the query, its weight included.
        weight: signed.
        score: cosine of the clause and the item; None where the clause has words only and no embedding.
        contribution: the part of the hit's dense score that comes from this clause.
    """

    clause: str
    weight: float
    score: float | None
    contribution: float


@dataclass(frozen=True, slots=True)
class HitExplanation:
    """Why a hit is where it is.

    Attributes:
        item_id: of the hit.
        clauses: in the order of the query.
        ranks: the rank of the item in each list that was fused, by the name of the list; absent where it is not in.
        words: the words of the query that its text, name or tags have.
        rerank_score: what the reranker gave it, higher is better, comparable inside one answer only; None where it
            was not scored.
        rerank_ms: how long that took: the time of its batch, shared by the candidates in it.
    """

    item_id: int
    clauses: tuple[ClauseScore, ...]
    ranks: Mapping[str, int]
    words: tuple[str, ...] = ()
    rerank_score: float | None = None
    rerank_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Reranking:
    """What a reranker did for an answer.

    Attributes:
        reranker: its name.
        identity: of its weights, preprocess and tokenizer.
        query: what it read of the query.
        depth: how many candidates it was to score.
        budget_ms: in what time; None for as long as it takes.
        candidates: how many there were.
        scored: how many have its scores.
        out_of_time: whether the time was up before all were scored.
        failure: why none of its scores count, in one line; None where they do.
    """

    reranker: str
    identity: str
    query: str
    depth: int
    budget_ms: int | None
    candidates: int
    scored: int
    out_of_time: bool
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """How an answer was found.

    Attributes:
        query: the query as it was understood.
        mode, fusion: as asked for, or by default.
        where: the filter as it was understood; None without one.
        selectivity: share of the items looked at that the filter lets through, counted or estimated; None without.
        plan: how the filter was applied: `ids first` or `candidates`.
        background: mean and standard deviation of the dense scores of the index, by modality.
        milliseconds: wall-clock time by stage.
        hits: one for each hit, in order.
        rerank: what the reranker did; None without one.
    """

    query: str
    mode: Mode
    fusion: FusionMethod
    where: str | None = None
    selectivity: float | None = None
    plan: str | None = None
    background: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    hits: tuple[HitExplanation, ...] = ()
    rerank: Reranking | None = None


@dataclass(frozen=True, slots=True)
class Answer(Sequence[Hit]):
    """The hits of a search, best first, and what is to be said of them. It is used like a list of hits.

    Attributes:
        hits: at most k.
        matched: False where even the best hit is within what the index scores for anything: nothing here matches.
            None where that cannot be told.
        notices: what the person who asked should know, a line each.
        explanation: how the hits were found.
    """

    hits: tuple[Hit, ...]
    matched: bool | None = None
    notices: tuple[str, ...] = ()
    explanation: Explanation | None = None

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, at: int) -> Hit: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Hit]: ...
    def __getitem__(self, at: int | slice) -> Hit | Sequence[Hit]:
        return self.hits[at]


@dataclass(frozen=True, slots=True)
class ItemInfo:
    """An item as `list` shows it; fields as `Hit`. `meta` are the further fields of a row."""

    item_id: int
    path: Path | None
    uri: str
    fragment: str | None
    modality: Modality
    text: str | None
    width: int | None
    height: int | None
    taken: str | None
    id: str | None
    meta: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the index; fields as `Hit`, `size` in bytes of its file."""

    item_id: int
    path: Path | None
    uri: str
    width: int | None
    height: int | None
    size: int


@dataclass(frozen=True, slots=True)
class DuplicatePicture(Picture):
    """A picture that nearly equals the one that is kept.

    Attributes:
        phash_distance: bits in which their perceptual hashes differ; None where one has none.
        cosine: of their embeddings; 1 for equal content.
    """

    phash_distance: int | None
    cosine: float


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Near-duplicates of one picture, each compared with it.

    Attributes:
        keep: the one with the most pixels; of these the largest file, then the oldest, then the first indexed.
        duplicates: the others, in the same order.
    """

    keep: Picture
    duplicates: tuple[DuplicatePicture, ...]

    @property
    def bytes(self) -> int:
        """What the duplicates take."""
        return sum(one.size for one in self.duplicates)


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """The near-duplicates of an index.

    Attributes:
        groups: the one whose duplicates take most bytes first.
        pictures: how many were compared.
        left_out: pictures with near-duplicates whose files are not there, or have changed since they were indexed.
    """

    groups: tuple[DuplicateGroup, ...]
    pictures: int
    left_out: int


@dataclass(frozen=True, slots=True)
class TaggedPicture:
    """A picture that has a tag; fields as `Hit`."""

    relevance: float
    path: Path | None
    uri: str
    item_id: int


@dataclass(frozen=True, slots=True)
class TagCount:
    """A tag of one run.

    Attributes:
        tag: as it was given.
        pictures: how many of those looked at have it.
        best: a few of them, the most relevant first.
    """

    tag: str
    pictures: int
    best: tuple[TaggedPicture, ...] = ()


@dataclass(frozen=True, slots=True)
class TagReport:
    """What one run of tagging did, or would do.

    Attributes:
        tags: in the order given.
        pictures: how many were looked at.
        tagged: how many of them have one of these tags.
        changed: how many have other tags, or other relevances, than before; 0 where nothing was to be written.
        model: whose scores these are; empty where no picture was looked at.
        min_relevance: the least relevance of a tag.
        seconds: wall-clock time of the run.
        written: False for a run that only looked.
    """

    tags: tuple[TagCount, ...]
    pictures: int
    tagged: int
    changed: int
    model: str
    min_relevance: float
    seconds: float
    written: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What one index run did, counted in files; `items` is the index total afterwards.

    Attributes:
        skipped: files of unknown kinds by extension (with dot, lower case; "" for none).
        failed: every file that could not be indexed, known failures of earlier runs included.
        seconds: wall-clock time of the run.
        interrupted: True when Ctrl-C ended it early; everything counted here is committed.
        kept: uris not found by the scan and kept all the same, because their root looks unmounted.
        tokens: pictures of earlier runs that got the tokens which a reranker reads.
    """

    added: int = 0
    updated: int = 0
    moved: int = 0
    copied: int = 0
    removed: int = 0
    unchanged: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()
    items: int = 0
    seconds: float = 0.0
    model: str = ""
    interrupted: bool = False
    kept: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What one change to another model did. Without `switched` nothing that readers can see has changed.

    Attributes:
        model: the model changed to; empty if Ctrl-C came before it was loaded.
        previous_model: the model before.
        switched: whether the index is `model`'s now, and was not before. False if there was nothing to do.
        interrupted: True when Ctrl-C ended it early; the next one with the same model goes on from there.
        items: in the index afterwards.
        embedded: pictures and texts that this run has embedded.
        reused: items that needed none of that: equal content, or an interrupted run before this one.
        recut: texts that are cut into shorter ones, because the model reads less.
        changed: items whose file has other content now. They leave; the next index run finds the new content
            embedded already.
        dropped: items that could not be embedded again and have left, as was asked for.
        seconds: wall-clock time of the run.
    """

    model: str
    previous_model: str
    switched: bool = False
    interrupted: bool = False
    items: int = 0
    embedded: int = 0
    reused: int = 0
    recut: int = 0
    changed: int = 0
    dropped: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class RootInfo:
    """A root as `info` shows it.

    Attributes:
        present: False when the folder cannot be found now.
        whole: False where only single files of it were ever named; a later run looks at those only.
        kind: what the root is; see `Root`.
        columns: as `Root.columns`.
    """

    path: str
    items: int
    present: bool
    whole: bool = True
    kind: RootKind = "folder"
    columns: str | None = None


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index holds. `bytes` is its size on disk."""

    path: str
    model: str
    identity: str
    dim: int
    generation: int
    items: int
    images: int
    texts: int
    segments: int
    bytes: int
    roots: tuple[RootInfo, ...]
    failed: tuple[Failure, ...]
