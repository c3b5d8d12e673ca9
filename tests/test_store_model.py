"""Any sequence of operations on a store, against a model: a dict."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_kit import (
    FAKE,
    OTHER,
    THIRD,
    add,
    brute_force,
    embed,
    flaws,
    keep_texts,
    key,
    listed_ref,
    make,
    queries,
    recut,
    ref,
    row_ref,
    stage,
    vector_by,
)

from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot, Writer
from mmsearch.retrieval.store.diff import is_below
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp

URIS = st.sampled_from(["a", "b%25", "c_", "%F0%9F%98%80", "d/e"])
FOLDERS = st.sampled_from(["a", "b%25", "c", "d", "d/e"])
ROWS = st.sampled_from(["id=1", "id=2", "row=3"])
CONTENT = st.sampled_from(["p", "q", "r", "s", "tuv", "xyzp"])  # the long ones are cut into "tu", "v", "xy", "zp"
CONTENTS = st.lists(CONTENT, min_size=1, max_size=3)
SPACES = st.sampled_from(["image", "text"])
MODELS = st.sampled_from([FAKE, OTHER, THIRD])
_FOLDERS: list[Path] = []


@dataclass(frozen=True)
class Asset:
    """What should be there: items as (fragment, space, content); a fragment is never used twice."""

    items: tuple[tuple[str, Modality, str], ...] = ()
    failed: bool = False
    owner: str | None = None
    listed: bool = False


class StoreMachine(RuleBasedStateMachine):
    """Photos by uri, rows by uri, what was taken out, and which model is used."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(_FOLDERS[0]) / str(len(list(_FOLDERS[0].iterdir())))
        self.root = self.folder / "photos"
        self.rows = Root(self.folder / "rows.csv", 1, kind="manifest")
        self.store = make(self.folder / "index")
        self.writer: Writer = self.store.writer()
        self.photos: dict[str, Asset] = {}
        self.captions: dict[str, Asset] = {}
        self.removed: set[str] = set()
        self.model = FAKE
        self.ids: dict[str, int] = {}
        self.number = 0
        self.held: tuple[Snapshot, list[Any]] | None = None
        self.publish()

    def teardown(self) -> None:
        self.writer.close()
        if self.held is not None:
            self.held[0].close()

    @initialize()
    def start(self) -> None:
        self.writer.root(Root(self.root, 1))
        self.writer.commit()

    def ref(self, uri: str, space: Modality = "image") -> ItemRef:
        self.number += 1
        return ref(self.root, uri, modality=space, stamp=(self.number, self.number))

    def publish(self) -> None:
        """What a commit does to the model."""
        self.drop_unlisted()
        self.committed = (dict(self.photos), dict(self.captions), set(self.removed))
        self.checked = False

    def forget(self) -> None:
        """What a rollback does to the model."""
        photos, captions, removed = self.committed
        self.photos, self.captions, self.removed = dict(photos), dict(captions), set(removed)
        self.checked = False

    def drop_unlisted(self) -> None:
        named = {row.owner for row in self.captions.values()}
        self.photos = {uri: asset for uri, asset in self.photos.items() if uri in named or not asset.listed}

    def new_items(self, contents: list[str], space: Modality) -> tuple[tuple[str, Modality, str], ...]:
        self.number += 1
        return tuple((f"{self.number}-{position}", space, content) for position, content in enumerate(contents))

    # Photos

    @rule(uri=URIS, contents=CONTENTS, space=SPACES)
    def add(self, uri: str, contents: list[str], space: Modality) -> None:
        items = self.new_items(contents, space)
        fragments = [fragment for fragment, _, _ in items]
        stamp = (self.number, self.number)
        add(self.writer, self.root, uri, *contents, modality=space, fragments=fragments, stamp=stamp)
        self.photos[uri] = Asset(items)

    @rule(contents=CONTENTS, space=SPACES)
    def embed_what_nobody_needs(self, contents: list[str], space: Modality) -> None:
        embed(self.writer, space, contents)

    @rule(uri=URIS)
    def fail(self, uri: str) -> None:
        self.writer.fail(self.ref(uri), "bad")
        self.photos[uri] = Asset(self.photos.get(uri, Asset()).items, failed=True)

    @rule(uri=URIS)
    def touch(self, uri: str) -> None:
        if uri in self.photos:
            self.writer.touch(self.ref(uri))
            self.photos[uri] = Asset(self.photos[uri].items)

    @rule(uri=URIS, to=URIS)
    def move(self, uri: str, to: str) -> None:
        if uri in self.photos:
            self.writer.move(str(self.root), uri, self.ref(to))
            self.photos[to] = Asset(self.photos.pop(uri).items)
            for name, row in self.captions.items():
                if row.owner == uri:
                    self.captions[name] = replace(row, owner=to)

    @rule(uris=st.lists(URIS, max_size=3))
    def remove(self, uris: list[str]) -> None:
        there = {uri for uri in uris if self.photos.pop(uri, None) is not None}
        assert self.writer.remove(str(self.root), uris) == len(there)

    @rule(uri=FOLDERS)
    def take_out(self, uri: str) -> None:
        there = [one for one in self.photos if one == uri or one.startswith(f"{uri}/")]
        rows = [name for name, row in self.captions.items() if row.owner in there]
        assert self.writer.take_out(str(self.root), uri) == len(there) + len(rows)
        for one in there:
            del self.photos[one]
        for name in rows:
            del self.captions[name]
        self.removed.add(uri)

    @rule(uri=FOLDERS)
    def take_back(self, uri: str) -> None:
        self.writer.take_back(str(self.root), uri)
        self.removed.discard(uri)

    # Rows

    @rule(row=ROWS, picture=URIS, content=CONTENT, texts=CONTENTS)
    def add_row(self, row: str, picture: str, content: str, texts: list[str]) -> None:
        """A row names a picture; where that is not there, it comes with it."""
        self.writer.root(self.rows)
        if picture not in self.photos:
            self.write(listed_ref(self.root, picture), self.new_items([content], "image"))
            self.photos[picture] = Asset(self.last, listed=True)
        self.write(row_ref(self.rows, row, picture=(self.root, picture)), self.new_items(texts, "text"))
        self.captions[row] = Asset(self.last, owner=picture)

    def write(self, item_ref: ItemRef, items: tuple[tuple[str, Modality, str], ...]) -> None:
        self.last = items
        embed(self.writer, item_ref.modality, [content for _, _, content in items])
        text = item_ref.modality == "text"
        new = [NewItem(space, key(content), fragment, content if text else None) for fragment, space, content in items]
        self.number += 1
        stamped = replace(item_ref, stamp=Stamp(self.number, self.number))
        self.writer.add(stamped, content_hash=key(str(items)), metadata=AssetMetadata(), items=new)

    @rule(row=ROWS)
    def remove_row(self, row: str) -> None:
        self.writer.root(self.rows)
        there = self.captions.pop(row, None) is not None
        assert self.writer.remove(str(self.rows.path), [row]) == there

    @rule()
    def forget_rows(self) -> None:
        self.writer.root(self.rows)
        assert self.writer.forget_root(str(self.rows.path)) == len(self.captions)
        self.captions.clear()
        self.drop_unlisted()

    # Models

    @rule(model=MODELS, leave=st.sets(st.sampled_from(["p", "q", "r", "tuv", "tu", "zp"])))
    def stage(self, model: dict[str, Any], leave: Collection[str]) -> None:
        if model != self.model:
            with self.store.snapshot() as snapshot:
                stage(self.writer, snapshot, leave, model)

    @rule(model=MODELS, leave=st.sets(st.sampled_from(["p", "q", "tuv", "tu", "zp"]), max_size=2))
    def switch(self, model: dict[str, Any], leave: Collection[str]) -> None:
        if model == self.model:
            return
        self.writer.commit()
        self.publish()
        with self.store.snapshot() as snapshot:
            model_id = stage(self.writer, snapshot, leave, model)
        lost = 0
        for assets in (self.photos, self.captions):
            for uri, asset in assets.items():
                items: list[tuple[str, Modality, str]] = []
                for item in asset.items:
                    kept = self.kept(item, model, model_id)
                    items += kept
                    lost += not kept
                assets[uri] = replace(asset, items=tuple(items))
        assert self.writer.switch(model_id, recut if model is OTHER else keep_texts) == lost
        self.model = model
        self.store = LocalStore.open(self.store.path)
        assert self.store.identity == model["identity"]
        self.publish()

    def kept(
        self, item: tuple[str, Modality, str], model: dict[str, Any], model_id: int
    ) -> list[tuple[str, Modality, str]]:
        """What becomes of an item when the model changes."""
        fragment, space, content = item
        pieces = recut(fragment, content) if model is OTHER and space == "text" else None
        parts = [item] if pieces is None else [(str(piece.fragment), space, str(piece.text)) for piece in pieces]
        keys = {key(part) for _, _, part in parts}
        if len(self.writer.find(space, list(keys), model_id)) == len(keys):
            return parts
        return [item] if self.writer.find(space, [key(content)], model_id) else []

    # Publishing

    @rule()
    def commit(self) -> None:
        self.writer.commit()
        self.publish()

    @rule()
    def roll_back(self) -> None:
        self.writer.rollback()
        self.forget()

    @rule(all_segments=st.booleans())
    def merge(self, all_segments: bool) -> None:
        self.writer.merge(all_segments=all_segments)
        self.publish()

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.forget()
        self.store = LocalStore.open(self.store.path)
        self.writer = self.store.writer()

    @precondition(lambda self: self.held is None)
    @rule()
    def hold(self) -> None:
        snapshot = self.store.snapshot()
        self.held = (snapshot, self.answers(snapshot))

    @precondition(lambda self: self.held is not None)
    @rule()
    def let_go(self) -> None:
        assert self.held is not None
        snapshot, answers = self.held
        assert self.answers(snapshot) == answers
        snapshot.close()
        self.held = None

    def answers(self, snapshot: Snapshot) -> list[Any]:
        spaces: tuple[Modality, ...] = ("image", "text")
        return [snapshot.search(space, queries(3, dim=snapshot.dim), k) for space in spaces for k in (1, 3, 50)]

    @invariant()
    def readers_see_what_was_committed(self) -> None:
        if self.checked:
            return
        self.checked = True
        assert flaws(self.store) == []
        photos, captions, removed = self.committed
        known = [ItemRef(str(self.root), uri, "", "image", Stamp(-1, -1)) for uri in photos]
        shown = [one for one in known if not is_below(one.uri, removed)]
        folder = Root(self.root, 1)
        for partial in (False, True):
            assert self.store.diff(folder, known, partial=partial).changed == shown
        assert self.store.diff(folder, []).missing == sorted(photos)
        rows = [row_ref(self.rows, uri, picture=(self.root, str(row.owner))) for uri, row in captions.items()]
        other = [replace(one, owner="elsewhere", stamp=Stamp(-1, -1)) for one in rows]
        assert self.store.diff(self.rows, other).changed == other
        with self.store.snapshot() as snapshot:
            failed = {failure.path for failure in snapshot.failures()}
            assert len(failed) == sum(asset.failed for asset in photos.values())
            for space in snapshot.counts:
                self.check(snapshot, space)

    def check(self, snapshot: Snapshot, space: Modality) -> None:
        photos, captions, _ = self.committed
        expected = {
            fragment: (uri, content)
            for uri, asset in photos.items()
            for fragment, kind, content in asset.items
            if kind == space
        }
        for uri, row in captions.items():  # shown as their pictures
            expected |= {
                f"{uri}&{fragment}": (str(row.owner), content) for fragment, kind, content in row.items if kind == space
            }
        ids = snapshot.item_ids(space).tolist()
        records = snapshot.items(ids)
        assert {str(record.fragment): record.uri for record in records.values()} == {
            fragment: uri for fragment, (uri, _) in expected.items()
        }
        assert snapshot.counts[space] == len(ids) == len(expected)
        for id_ in ids:  # an item keeps its id for life, and nobody else gets it
            assert self.ids.setdefault(str(records[id_].fragment), id_) == id_
        assert len(set(self.ids.values())) == len(self.ids)
        identity = self.model["identity"]
        vectors = {id_: vector_by(identity, key(expected[str(records[id_].fragment)][1])) for id_ in ids}
        rows = np.array(list(vectors.values()), np.float32).reshape(-1, snapshot.dim)
        assert np.array_equal(snapshot.vectors(space, ids), rows)
        for query in queries(4, seed=self.number, dim=snapshot.dim):
            for k in (1, 2, 100):
                answer = snapshot.search(space, query[None], k)[0]
                slow = brute_force(snapshot, space, vectors, query, k)
                assert [(one.item_id, one.score) for one in answer] == slow


def test_any_sequence_of_operations(tmp_path: Path) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    _FOLDERS[:] = [tmp_path]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        StoreMachine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
