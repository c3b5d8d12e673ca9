"""Any sequence of runs over real files, manifests and what programs give, against the model of `index_model.py`.

Runs may be killed: then the index is what a dead process leaves on the disk, and the same call goes on from there.
"""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from index_model import (
    BAD,
    COLOURS,
    FOLDERS,
    LISTED,
    MANIFESTS,
    MODELS,
    PHOTOS,
    PICTURES,
    PROGRAM,
    ROOTS,
    TEXTS,
    WORDS,
    Asset,
    Disk,
    Known,
    Part,
    Row,
    Run,
    Spy,
    given_vector,
    is_below,
    parts_of_file,
    picture,
    spy,
    vector_of,
)
from numpy.typing import NDArray

import mmsearch
from mmsearch.indexers import pipeline, reindex
from mmsearch.retrieval.media import content_hash, text_hash
from mmsearch.retrieval.store import LocalStore, Snapshot, doctor
from mmsearch.retrieval.types import Modality
from mmsearch.retrieval.uris import uri_to_path

_FOLDER: list[Path] = []


class Killed(BaseException):
    """The end of the process, as far as one test process can have several."""


ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from("abc"),
        st.lists(st.sampled_from(WORDS[:2]), min_size=1, max_size=2).map(tuple),
        st.sampled_from([None, *PHOTOS[:2], *LISTED]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda row: row.id,
)
GIVEN = st.lists(
    st.builds(
        Row,
        st.sampled_from("abc"),
        st.lists(st.sampled_from(WORDS[:2]), min_size=1, max_size=2).map(tuple),
        st.sampled_from([None, *PHOTOS[:1], *LISTED, *COLOURS]),
    ),
    min_size=1,
    max_size=2,
    unique_by=lambda row: row.id,
)


ENDS = st.one_of(
    st.none(), st.tuples(st.sampled_from(["kill", "ctrl-c", "full"]), st.sampled_from([0, 1, 2, 3, 5, 8, 13, 21, 34]))
)


class IndexMachine(RuleBasedStateMachine):
    """Files, manifests, what programs give, and an index that is to follow them."""

    def __init__(self) -> None:
        super().__init__()
        self.base = _FOLDER[0] / str(len(list(_FOLDER[0].iterdir())))
        self.disk = Disk(self.base)
        self.known = Known()
        self.model = "fake"
        self.fuse: tuple[str, int] | None = None
        self.staged = self.waiting = False
        self.ids: dict[int, tuple[str, str]] = {}
        self.held: tuple[Snapshot, list[Any]] | None = None
        self.checked = False
        for name in MODELS:
            spy(name).step = self.step
        _STEPS[:] = [self.step]
        self.index = self.opened()

    def teardown(self) -> None:
        _STEPS[:] = []
        self.index.close()
        if self.held is not None:
            self.held[0].close()
        shutil.rmtree(self.base, ignore_errors=True)
        self.base.mkdir()  # the next one takes the next number

    @initialize()
    def start(self) -> None:
        for path, content in (("photos/a.png", "red"), ("photos/sub/b%.png", "green"), ("lists/pics/p.png", "blue")):
            self.disk.write(path, content)
        self.disk.write("notes/x.txt", WORDS[0])
        self.disk.write_rows("lists/m.jsonl", [Row("a", WORDS[:2], "photos/a.png"), Row("b", WORDS[1:2], LISTED[0])])
        self.scan([*ROOTS, "lists/m.jsonl"], None)

    @property
    def exists(self) -> bool:
        return (self.base / "index").exists()

    def opened(self) -> mmsearch.Index:
        return mmsearch.open(self.base / "index", model="auto" if self.exists else self.model, threads=2)

    def paths(self, names: Sequence[str]) -> list[Path]:
        return [self.base / name for name in names]

    def folders(self) -> set[str]:
        """Folders that are roots."""
        if not self.exists:
            return set()
        roots = self.index.info().roots
        return {os.path.relpath(root.path, self.base) for root in roots if root.kind == "folder"}

    # How a call ends

    def step(self, name: str) -> None:
        """Before every step of a write, and in every call of the encoder."""
        if self.fuse is None:
            return
        end, left = self.fuse
        self.fuse = (end, left - 1) if left else None
        if left:
            return
        if end == "kill":
            shutil.copytree(self.base / "index", self.base / "dead")
            raise Killed
        raise KeyboardInterrupt if end == "ctrl-c" else OSError(28, "No space left on device")

    def call(self, call: Callable[[], Any], after: Known, end: tuple[str, int] | None, model: str = "") -> None:
        """Makes a call that leaves the index as `after`; where it ended early, once more."""
        encoder = spy(model or self.model)
        before, ids = self.known, self.item_ids()
        if end is not None and self.exists:
            self.fuse = end
            self.encodes_nothing_twice(encoder, lambda: self.cut_short(call))
            fired, self.fuse = self.fuse is None, None
            if fired:
                self.staged = self.staged or bool(model)
                self.is_between(after)
        self.encodes_nothing_twice(encoder, call)
        self.known = after if self.exists else Known()
        self.follow()
        self.checked = False
        self.moved_keep_their_ids(before, ids)

    def cut_short(self, call: Callable[[], Any]) -> None:
        with suppress(Killed, KeyboardInterrupt, OSError, mmsearch.IndexUnusable):
            call()
        if (self.base / "dead").exists():  # what a dead process leaves takes the place of what ended in good order
            self.index.close()
            shutil.rmtree(self.base / "index")
            (self.base / "dead").rename(self.base / "index")
            self.index = self.opened()

    def encodes_nothing_twice(self, encoder: Spy, call: Callable[[], Any]) -> None:
        there = self.embedded(encoder)
        encoder.encoded.clear()
        call()
        assert len(set(encoder.encoded)) == len(encoder.encoded)
        assert there.isdisjoint(encoder.encoded)

    def embedded(self, encoder: Spy) -> set[tuple[Modality, str]]:
        """Contents that a model has embedded already, used or not."""
        keys: dict[tuple[str, bytes], tuple[Modality, str]] = {
            ("image", content_hash(picture(name))): ("image", name) for name in COLOURS
        }
        for words in {part.content for name in WORDS for part in parts_of_file("", name)} | {*WORDS}:
            keys["text", text_hash(words)] = ("text", words)
        if not self.exists:
            return set()
        query = "SELECT space, content_key FROM embeddings JOIN models USING (model_id) WHERE identity = ?"
        return {keys[row] for row in self.sql(query, encoder.identity) if row in keys}

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.base / "index" / "catalog.sqlite")) as catalog:
            return catalog.execute(query, values).fetchall()

    def is_between(self, after: Known) -> None:
        """Every file is as before or as afterwards; rows may have to follow their pictures yet."""
        assert self.problems() <= {"staged-model", "salvaged-waiting", "orphan", "leftover"}
        found = {item for item in self.items() if item[1] is None}
        old, new = ({item for item in known.items() if item[1] is None} for known in (self.known, after))
        assert old & new <= found <= old | new

    def item_ids(self) -> dict[str, list[int]]:
        """Of files, by path."""
        found: dict[str, list[int]] = {}
        for item in self.index.items() if self.exists else ():
            if item.id is None and item.path is not None:
                found.setdefault(os.path.relpath(item.path, self.base), []).append(item.item_id)
        return found

    def moved_keep_their_ids(self, before: Known, ids: Mapping[str, list[int]]) -> None:
        """So does what stayed where it is; of a content that several files have, nobody says which one was moved."""
        now = self.item_ids()
        for path, asset in self.known.files.items():
            old = [one for one, was in before.files.items() if was.parts == asset.parts and asset.parts]
            new = [one for one, other in self.known.files.items() if other.parts == asset.parts]
            if len(old) != 1 or len(new) != 1 or before.files[old[0]].failed or before.files[old[0]].listed:
                continue
            if old == new or (path not in before.files and old[0] not in self.known.files):
                assert ids[old[0]] == now[path]

    def problems(self) -> set[str]:
        return {problem.kind for problem in self.index.doctor().problems}

    def follow(self) -> None:
        """A row that was not read again belongs to its picture where that has moved to."""
        moved = (
            {}
            if not self.exists
            else {
                (os.path.relpath(os.fsdecode(source), self.base) if source != b"rows:" else PROGRAM, uri[3:]): owner
                for source, uri, owner in self.sql(
                    "SELECT roots.path, uri, CAST(owners.path || '/' || owner_uri AS TEXT) FROM assets"
                    " JOIN roots USING (root_id) JOIN roots owners ON owners.root_id = owner_root_id"
                    " WHERE roots.kind != 'folder'"
                )
            }
        )
        for key, asset in self.known.rows.items():
            if asset.owner is not None and asset.owner not in self.known.files and key in moved:
                now = os.path.relpath(uri_to_path(moved[key]), self.base)
                if now in self.known.files and self.known.files[now].parts:
                    self.known.rows[key] = replace(asset, owner=now)

    # What happens on the disk

    @rule(path=st.sampled_from(PICTURES), content=st.sampled_from([*COLOURS, BAD]))
    def write_picture(self, path: str, content: str) -> None:
        if not self.disk.is_hidden(path):
            self.disk.write(path, content)

    @rule(path=st.sampled_from(TEXTS), content=st.sampled_from([*WORDS, BAD]))
    def write_text(self, path: str, content: str) -> None:
        if not self.disk.is_hidden(path):
            self.disk.write(path, content)

    @rule(pair=st.one_of(*(st.tuples(st.sampled_from(kind), st.sampled_from(kind)) for kind in (PICTURES, TEXTS))))
    def move(self, pair: tuple[str, str]) -> None:
        path, to = pair
        if path != to and path in self.disk.visible() and not self.disk.is_hidden(to):
            self.disk.move(path, to)

    @rule(pair=st.one_of(*(st.tuples(st.sampled_from(kind), st.sampled_from(kind)) for kind in (PICTURES, TEXTS))))
    def copy(self, pair: tuple[str, str]) -> None:
        path, to = pair
        if path != to and path in self.disk.visible() and not self.disk.is_hidden(to):
            self.disk.write(to, self.disk.files[path])

    @rule(path=st.sampled_from([*PICTURES, *TEXTS, *MANIFESTS]))
    def delete(self, path: str) -> None:
        if path in self.disk.visible() or path in self.disk.rows:
            self.disk.delete(path)

    @rule(path=st.sampled_from([*FOLDERS, *ROOTS]))
    def delete_folder(self, path: str) -> None:
        if not self.disk.is_hidden(path):
            self.disk.delete_folder(path)

    @rule(path=st.sampled_from([*ROOTS, "lists/pics"]), leave_empty=st.booleans())
    def unplug(self, path: str, leave_empty: bool) -> None:
        if path not in self.disk.hidden and (self.base / path).exists():
            self.disk.hide(path, leave_empty=leave_empty)

    @precondition(lambda self: self.disk.hidden)
    @rule()
    def plug_in(self) -> None:
        for root in sorted(self.disk.hidden):
            self.disk.show(root)

    @rule(path=st.sampled_from(MANIFESTS), rows=ROWS)
    def write_manifest(self, path: str, rows: list[Row]) -> None:
        self.disk.write_rows(path, rows)

    # Runs

    @rule(names=st.lists(st.sampled_from([*ROOTS, *MANIFESTS]), min_size=1, max_size=3, unique=True), end=ENDS)
    def scan(self, names: list[str], end: tuple[str, int] | None) -> None:
        names = [name for name in names if (self.base / name).exists()]
        if not names:
            return
        run = Run(self.known, self.disk, self.folders())
        for name in sorted(names, key=ROOTS.__contains__, reverse=True):
            (run.whole if name in ROOTS else run.manifest)(name)
        self.call(lambda: self.index.add(*self.paths(names)), run.end(), end)

    @precondition(lambda self: self.exists)
    @rule(prune=st.booleans(), retry=st.booleans(), end=ENDS)
    def rescan(self, prune: bool, retry: bool, end: tuple[str, int] | None) -> None:
        run = Run(self.known, self.disk, self.folders(), prune=prune)
        run.everything()
        self.call(lambda: self.index.add(prune=prune, retry=retry), run.end(), end)
        self.waiting = self.waiting and "salvaged-waiting" in self.problems()

    @rule(path=st.sampled_from([*PICTURES, *TEXTS, *FOLDERS[:3]]), end=ENDS)
    def name(self, path: str, end: tuple[str, int] | None) -> None:
        """A file, or a folder in a root: what was taken out comes back."""
        root = next(one for one in (*ROOTS, "lists/pics") if is_below(path, one))
        known = root in self.folders() and (root in self.known.roots or root not in ROOTS)
        if not known or not (self.base / path).exists():
            return
        if any(is_below(path, out) and path != out for out in self.known.out):
            with pytest.raises(mmsearch.UsageError, match="taken out"):
                self.index.add(self.base / path)
            return
        run = Run(self.known, self.disk, self.folders())
        run.known.out.discard(path)
        if path in FOLDERS:
            run.whole(path)
        else:
            run.named([path], root)
        self.call(lambda: self.index.add(self.base / path), run.end(), end)

    @precondition(lambda self: self.exists)
    @rule(path=st.sampled_from([*PICTURES, *TEXTS, *FOLDERS, "notes", *MANIFESTS]))
    def remove(self, path: str) -> None:
        """Takes something out."""
        after = deepcopy(self.known)
        folders = self.folders()
        above = next((folder for folder in folders if is_below(path, folder) and path != folder), None)
        count = 0
        if path in folders or path in after.roots:
            count = after.forget(path)
        elif above is not None:
            count = after.take_out(path)
            after.out.add(path)
        if not count and not os.path.lexists(self.base / path) and not (path in folders or path in self.known.roots):
            with pytest.raises(mmsearch.PathNotFound):
                self.index.remove(self.base / path)
            return
        self.call(lambda: self.assert_equal(self.index.remove(self.base / path), count), after, None)

    @precondition(lambda self: self.exists)
    @rule(pair=st.sampled_from([("photos/sub", PHOTOS[1]), ("photos/sub", "photos/sub/deep"), (PHOTOS[1], PHOTOS[1])]))
    def take_out_and_name(self, pair: tuple[str, str]) -> None:
        self.remove(pair[0])
        self.name(pair[1], None)

    @precondition(lambda self: self.exists)
    @rule(pair=st.one_of(*(st.tuples(st.sampled_from(kind), st.sampled_from(kind)) for kind in (PICTURES, TEXTS))))
    def carry(self, pair: tuple[str, str]) -> None:
        """A file moves to a place that is free, between two runs."""
        self.rescan(False, False, None)
        if pair[1] not in self.disk.files:
            self.move(pair)
            self.rescan(False, False, None)

    @precondition(lambda self: self.exists)
    @rule(ids=st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True))
    def remove_ids(self, ids: list[str]) -> None:
        after = deepcopy(self.known)
        there = [id_ for id_ in ids if after.rows.pop((PROGRAM, id_), None) is not None]
        after.drop_unlisted()
        self.call(lambda: self.assert_equal(self.index.remove(ids=ids), len(there)), after, None)

    def assert_equal(self, one: object, other: object) -> None:
        assert one == other

    # What a program gives

    @rule(rows=GIVEN, end=ENDS)
    def give(self, rows: list[Row], end: tuple[str, int] | None) -> None:
        run = Run(self.known, self.disk, self.folders())
        for row in rows:
            run.row(PROGRAM, row)
        items = [
            mmsearch.Item(
                id=row.id,
                text=list(row.texts),
                image=picture(row.picture) if row.picture in COLOURS else row.picture and self.base / row.picture,
            )
            for row in rows
        ]
        self.call(lambda: self.index.add(iter(items)), run.end(), end)

    @rule(id_=st.sampled_from("abc"), number=st.integers(1, 3), words=st.sampled_from([None, *WORDS[:2]]), end=ENDS)
    def give_vector(self, id_: str, number: int, words: str | None, end: tuple[str, int] | None) -> None:
        name = f"vector {number}"
        modality: Modality = "image" if words is None else "text"
        after = deepcopy(self.known)
        old, said = after.rows.get((PROGRAM, id_)), (self.model, name, words)
        if old is None or old.said != said:
            after.rows[PROGRAM, id_] = Asset((Part(None, modality, name, words),), said=said)
            after.drop_unlisted()
        vectors = given_vector(self.model, name)[None] * np.float32(number)
        self.call(
            lambda: self.index.add_vectors([id_], vectors, modality=modality, texts=[words] if words else None),
            after,
            end,
        )

    # The index itself

    @precondition(lambda self: self.exists)
    @rule()
    def merge(self) -> None:
        self.call(self.index.merge, self.known, None)
        ((unused,),) = self.sql(
            "SELECT COUNT(*) FROM embeddings WHERE embedding_id NOT IN (SELECT embedding_id FROM items)"
            " AND embedding_id NOT IN (SELECT embedding_id FROM salvaged)"
            " AND model_id = (SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'model_id')"
        )
        assert unused == 0

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = self.opened()

    @precondition(lambda self: self.exists)
    @rule(model=st.sampled_from(MODELS), drop=st.booleans(), end=ENDS)
    def change_model(self, model: str, drop: bool, end: tuple[str, int] | None) -> None:
        after = deepcopy(self.known)
        lost = self.embed_again(after) if model != self.model else False
        if lost and not drop:
            with pytest.raises(mmsearch.IndexUnusable, match="cannot be embedded again"):
                self.index.reindex(model)
            self.staged = True
            self.checked = False
            return
        run = Run(after, self.disk, self.folders())
        run.everything()
        self.call(lambda: self.index.reindex(model, drop=drop), run.end(), end, model)
        self.staged = self.staged and model == self.model
        if model != self.model:  # where a text had a vector that was given, it has its own now
            self.ids = {id_: said for id_, said in self.ids.items() if not said[1].startswith("vector")}
        self.model = model

    def embed_again(self, known: Known) -> bool:
        """Lets go of pictures that no file shows any more; returns whether one of them was not just changed."""
        found = self.disk.visible()
        shown = {path: found.get(path, BAD) for path, asset in known.files.items() if path in PICTURES and asset.parts}
        staged = {*shown.values()} - {BAD}
        lost = False
        for assets in (known.files, known.rows):
            for key, asset in assets.items():
                pictures = [part for part in asset.parts if part.modality == "image"]
                gone = [part for part in pictures if part.content not in staged]
                lost = lost or (bool(gone) and shown.get(str(key), BAD) == BAD)
                parts = tuple(
                    part._replace(content=part.text or part.content) for part in asset.parts if part not in gone
                )
                assets[key] = replace(asset, parts=parts, said=None if gone else asset.said)  # type: ignore[index]
        return lost

    @precondition(lambda self: self.exists)
    @rule()
    def lose_the_catalog(self) -> None:
        """Then the doctor saves the vectors, and a run finds the files again."""
        self.index.close()
        for file in (self.base / "index").glob("catalog.sqlite*"):
            file.unlink()
        self.index = self.opened()
        if not list((self.base / "index" / "segments").iterdir()):
            with pytest.raises(mmsearch.IndexNotFound):
                self.index.doctor()
            shutil.rmtree(self.base / "index")
            self.index, self.known, self.ids = self.opened(), Known(), {}
            self.staged = self.waiting = False
            return
        assert self.problems() & {"catalog-missing"}
        assert self.index.doctor(repair=True).sound
        roots = {root.path for root in self.index.info().roots if root.whole and root.kind != "rows"}
        self.known = Known(roots={os.path.relpath(root, self.base) for root in roots})
        self.staged = self.staged or "staged-model" in self.problems()
        self.model, self.waiting, self.checked = self.index.info().model, True, False
        # Where a catalog is lost again, ids that left no trace in segments since the last time are given again.
        self.ids = {id_: said for id_, said in self.ids.items() if id_ <= 1_000_000}
        self.scan([*ROOTS, *MANIFESTS], None)

    @precondition(lambda self: self.exists and self.held is None)
    @rule()
    def hold(self) -> None:
        snapshot = LocalStore.open(self.base / "index").snapshot()
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
        query = np.ones((1, snapshot.dim), np.float32)
        spaces: tuple[Modality, ...] = ("image", "text")
        return [list(snapshot.all_items()), *(snapshot.search(space, query, 100) for space in spaces)]

    # What has to be so

    def items(self) -> Counter[tuple[Any, ...]]:
        """As `Known.items`; the content is what the vector says."""
        with self.index._snapshot() as snapshot:
            rows = {
                space: dict(zip(ids.tolist(), snapshot.vectors(space, ids), strict=True))
                for space in ("image", "text")
                for ids in [snapshot.item_ids(space)]
            }
        found: Counter[tuple[Any, ...]] = Counter()
        for item in self.index.items():
            path = None if item.path is None else os.path.relpath(item.path, self.base)
            content = self.content_of(item.modality, rows[item.modality][item.item_id], item.text)
            found[path, item.id, item.fragment, item.modality, item.text, content] += 1
            said = (item.modality, content)
            known = self.ids.setdefault(item.item_id, said)
            assert (item.item_id, known) == (item.item_id, said)  # no other content ever gets its id
        return found

    def content_of(self, modality: Modality, row: NDArray[np.float32], text: str | None) -> str:
        model = self.index.info().model
        names = [*(COLOURS if modality == "image" else [str(text)]), *(f"vector {number}" for number in (1, 2, 3))]
        return next(name for name in names if np.allclose(vector_of(model, modality, name), row, atol=1e-6))

    @invariant()
    def the_index_is_as_the_model_says(self) -> None:
        if self.checked or not self.exists:
            return
        self.checked = True
        expected = self.known.items()
        found = self.items()
        assert (found - expected, expected - found) == (Counter(), Counter())
        assert self.index.info().items == expected.total()
        assert self.index.info().model == self.model
        failed = {failure.path for failure in self.index.failures()}
        assert failed == {str(self.base / path) for path, asset in self.known.files.items() if asset.failed} | {
            f"{source if source == PROGRAM else self.base / source}#id={id_}"
            for (source, id_), asset in self.known.rows.items()
            if asset.failed
        }
        allowed = {
            name for name, may_be in (("staged-model", self.staged), ("salvaged-waiting", self.waiting)) if may_be
        }
        assert self.problems() <= allowed
        contents = {(modality, content) for *_, modality, _, content in expected}
        assert self.sql("SELECT COUNT(DISTINCT embedding_id) FROM items") == [(len(contents),)]
        for modality, content in sorted(contents):
            self.finds(modality, content, expected)

    def finds(self, modality: Modality, content: str, expected: Mapping[tuple[Any, ...], int]) -> None:
        """A search with the content of items has all of them first."""
        count = sum(times for item, times in expected.items() if item[3] == modality and item[5] == content)
        query: dict[str, Any] = {"vector": vector_of(self.model, modality, content)}
        if content in COLOURS:
            query = {"image": picture(content), "include_self": True}
        elif not content.startswith("vector"):
            query = {"query": content}
        hits = self.index.search(**query, k=100, modality=modality, mode="dense")
        assert len(hits) == sum(times for item, times in expected.items() if item[3] == modality)
        assert all(hit.score > 1 - 1e-5 for hit in hits[:count])
        assert all(hit.score < 1 - 1e-4 for hit in hits[count:])


_STEPS: list[Callable[[str], None]] = []


def _step(name: str) -> None:
    for step in _STEPS:
        step(name)


@contextmanager
def every_step_is_told() -> Iterator[None]:
    """Runs commit as often as they can, with the encoders of this file; writers tell their steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: spy(name))
        patch.setattr(LocalStore, "open", functools.partial(LocalStore.open, steps=_step))
        for run in (pipeline.index_sources, reindex.reindex):
            patch.setitem(run.__kwdefaults__, "commit_seconds", 0.0)
        patch.setattr(doctor, "repair", functools.partial(doctor.repair, steps=_step))
        yield


@pytest.mark.parametrize("examples", [36, pytest.param(400, marks=pytest.mark.slow)])
def test_any_sequence_of_runs(tmp_path: Path, examples: int) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    _FOLDER[:] = [tmp_path]
    with every_step_is_told():
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            IndexMachine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=30,
                deadline=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
