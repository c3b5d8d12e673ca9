"""Any sequence of operations on a store, against a model: a dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_kit import DIM, add, brute_force, embed, key, make, queries, ref, vector

from mmsearch.retrieval.store import LocalStore, Snapshot, Writer
from mmsearch.retrieval.types import ItemRef, Modality, Root, Stamp

URIS = st.sampled_from(["a", "b%25", "c_", "%F0%9F%98%80", "d/e"])
CONTENTS = st.lists(st.sampled_from("pqrstu"), min_size=1, max_size=3)
SPACES = st.sampled_from(["image", "text"])
_FOLDERS: list[Path] = []


class StoreMachine(RuleBasedStateMachine):
    """The model: uri to (stamp, [(fragment, space, content)], failed). A fragment is never used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(_FOLDERS[0]) / str(len(list(_FOLDERS[0].iterdir())))
        self.root = self.folder / "photos"
        self.store = make(self.folder / "index")
        self.writer: Writer = self.store.writer()
        self.committed: dict[str, tuple[int, list[tuple[str, Modality, str]], bool]] = {}
        self.pending = dict(self.committed)
        self.ids: dict[str, int] = {}
        self.number = 0
        self.checked = True
        self.held: tuple[Snapshot, list[Any]] | None = None

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

    @rule(uri=URIS, contents=CONTENTS, space=SPACES)
    def add(self, uri: str, contents: list[str], space: Modality) -> None:
        stamp = self.number = self.number + 1
        fragments = [f"{stamp}-{position}" for position in range(len(contents))]
        add(self.writer, self.root, uri, *contents, modality=space, fragments=fragments, stamp=(stamp, stamp))
        items = [(fragment, space, content) for fragment, content in zip(fragments, contents, strict=True)]
        self.pending[uri] = (stamp, items, False)

    @rule(contents=CONTENTS, space=SPACES)
    def embed_what_nobody_needs(self, contents: list[str], space: Modality) -> None:
        embed(self.writer, space, contents)

    @rule(uri=URIS)
    def fail(self, uri: str) -> None:
        self.writer.fail(self.ref(uri), "bad")
        self.pending[uri] = (self.number, self.pending.get(uri, (0, [], False))[1], True)

    @rule(uri=URIS)
    def touch(self, uri: str) -> None:
        if uri in self.pending:
            self.writer.touch(self.ref(uri))
            self.pending[uri] = (self.number, self.pending[uri][1], False)

    @rule(uri=URIS, to=URIS)
    def move(self, uri: str, to: str) -> None:
        if uri in self.pending:
            self.writer.move(str(self.root), uri, self.ref(to))
            items = self.pending.pop(uri)[1]
            self.pending[to] = (self.number, items, False)

    @rule(uris=st.lists(URIS, max_size=3))
    def remove(self, uris: list[str]) -> None:
        there = {uri for uri in uris if self.pending.pop(uri, None) is not None}
        assert self.writer.remove(str(self.root), uris) == len(there)

    @rule()
    def commit(self) -> None:
        self.writer.commit()
        self.committed = dict(self.pending)
        self.checked = False

    @rule()
    def roll_back(self) -> None:
        self.writer.rollback()
        self.pending = dict(self.committed)
        self.checked = False

    @rule()
    def merge(self) -> None:
        self.writer.merge()
        self.committed = dict(self.pending)
        self.checked = False

    @rule()
    def reopen(self) -> None:
        self.writer.close()
        self.pending = dict(self.committed)
        self.store = LocalStore.open(self.store.path)
        self.writer = self.store.writer()
        self.checked = False

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
        return [snapshot.search(space, queries(3), k) for space in spaces for k in (1, 3, 50)]

    @invariant()
    def readers_see_what_was_committed(self) -> None:
        if self.checked:
            return
        self.checked = True
        assert self.store.verify() == []
        known = [ItemRef(str(self.root), uri, "", "image", Stamp(-1, -1)) for uri in self.committed]
        assert len(self.store.diff(Root(self.root, 1), known).changed) == len(self.committed)
        assert self.store.diff(Root(self.root, 1), []).missing == sorted(self.committed)
        with self.store.snapshot() as snapshot:
            failed = {failure.path for failure in snapshot.info().failed}
            assert len(failed) == sum(bad for _, _, bad in self.committed.values())
            for space in snapshot.counts:
                self.check(snapshot, space)

    def check(self, snapshot: Snapshot, space: Modality) -> None:
        expected = {
            fragment: (uri, content)
            for uri, (_, items, _) in self.committed.items()
            for fragment, kind, content in items
            if kind == space
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
        vectors = {id_: vector(key(expected[str(records[id_].fragment)][1])) for id_ in ids}
        assert np.array_equal(
            snapshot.vectors(space, ids), np.array(list(vectors.values()), np.float32).reshape(-1, DIM)
        )
        for query in queries(4, seed=self.number):
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
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
