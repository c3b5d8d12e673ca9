"""Changing the model of an index: vectors are staged beside those in use, and one commit changes over."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from store_kit import (
    DIM,
    OTHER,
    PRECISION,
    THIRD,
    add,
    content_of,
    embed,
    enrich,
    flaws,
    found,
    key,
    make,
    other_vector,
    prepare,
    queries,
    recut,
    ref,
    reindex,
    segment_files,
    sql,
    stage,
    vector,
)

from mmsearch.retrieval.store import LocalStore, NewItem
from mmsearch.retrieval.store.catalog import Catalog
from mmsearch.retrieval.store.records import Model
from mmsearch.retrieval.store.segments import Segment
from mmsearch.retrieval.types import AssetMetadata, Root


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return prepare(tmp_path / "index")


def embeddings(store: LocalStore, model_id: int) -> int:
    return sql(store, "SELECT COUNT(*) FROM embeddings WHERE model_id = ?", model_id)[0][0]


def test_readers_see_the_old_model_until_the_switch(store: LocalStore) -> None:
    before = content_of(store)
    with store.snapshot() as held, store.writer() as writer:
        answers = held.search("image", queries(4), 9)
        with store.snapshot() as snapshot:
            model_id = stage(writer, snapshot)
        assert writer.model_id != model_id
        writer.commit()
        assert writer.models() == {
            1: Model(1, "fake", "fake-1", DIM, None),
            model_id: Model(model_id, *OTHER.values()),
        }
        assert content_of(store) == before
        assert (store.info().model, store.info().segments) == ("fake", 3)
        assert flaws(store) == []

        assert writer.switch(model_id, recut) == 0
        assert (writer.model_id, list(writer.models())) == (model_id, [model_id])
        assert not held.is_current()
        assert held.search("image", queries(4), 9) == answers
        assert held.vectors("image", [1])[0].tolist() == vector(key("a")).tolist()
    opened = LocalStore.open(store.path)
    assert (opened.model, opened.identity, opened.dim, opened.max_tokens) == tuple(OTHER.values())
    with opened.snapshot() as snapshot:
        assert (snapshot.model, snapshot.identity, snapshot.dim) == ("other", "other-1", DIM + 2)
        query = other_vector(key("c"))
        first = snapshot.search("image", query[None], 1)[0][0]
        assert (snapshot.items([first.item_id])[first.item_id].uri, first.score) == ("c.jpg", float(query @ query))
    assert flaws(opened) == []


def test_items_keep_their_ids_and_long_texts_are_cut_anew(store: LocalStore) -> None:
    with store.snapshot() as snapshot:
        before = {record.item_id: (record.uri, record.fragment) for record in snapshot.all_items()}
    with store.writer() as writer:
        add(writer, store.path.parent, "short.txt", "ab", modality="text")
        writer.commit()
        assert reindex(store, writer) == 0
    with store.snapshot() as snapshot:
        records = {record.item_id: record for record in snapshot.all_items()}
        counts = snapshot.counts
        rows = dict(zip(records, snapshot.vectors("image", [*records][:3]), strict=False))
    pictures = {id_: place for id_, place in before.items() if place[0] != "notes.txt"}
    assert {id_: (record.uri, record.fragment) for id_, record in records.items() if record.modality == "image"} == (
        pictures
    )
    assert {id_: row.tolist() for id_, row in rows.items()} == {
        id_: other_vector(key("c" if uri == "c.jpg" else "a")).tolist() for id_, (uri, _) in pictures.items()
    }
    newest = max(before)
    assert [(record.item_id, record.uri, record.fragment, record.text) for record in records.values()][3:] == [
        (newest + 1, "short.txt", None, "ab"),  # stays
        (newest + 2, "notes.txt", "0", "on"),
        (newest + 3, "notes.txt", "1", "e"),
        (newest + 4, "notes.txt", "0", "tw"),
        (newest + 5, "notes.txt", "1", "o"),
    ]
    assert counts == {"image": 3, "text": 5}
    assert flaws(store) == []


def test_a_long_index_is_cut_anew_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsearch.retrieval.store import models

    monkeypatch.setattr(models, "CHUNK", 3)
    store = make(tmp_path / "index")
    with store.writer() as writer:
        for number in range(10):
            add(writer, tmp_path, f"{number}.txt", f"{number}abc", "xy", modality="text", fragments=["f", "g"])
        writer.commit()
        assert reindex(store, writer) == 0
    expected = {(f"{number}.txt", f"f/{piece}") for number in range(10) for piece in range(2)}
    expected |= {(f"{number}.txt", "g") for number in range(10)}
    with store.snapshot() as snapshot:
        assert {(record.uri, str(record.fragment)) for record in snapshot.all_items()} == expected
        assert snapshot.counts["text"] == len(expected)
    assert flaws(store) == []


def test_what_has_no_vector_by_the_new_model_looks_changed(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        assert reindex(store, writer, leave=["c", "on"]) == 2  # a picture, and a text that is needed whole or not
    with store.snapshot() as snapshot:
        left = sorted((record.uri, record.text or "") for record in snapshot.all_items())
        assert snapshot.counts == {"image": 2, "text": 2}
        assert snapshot.pictures_of_hash(key("c")) == []
    assert left == [("a-again.jpg", ""), ("a.jpg", ""), ("notes.txt", "o"), ("notes.txt", "tw")]
    assert sql(store, "SELECT uri FROM assets WHERE size = -1 ORDER BY uri") == [("c.jpg",), ("notes.txt",)]
    assert sql(store, "SELECT uri FROM assets WHERE size <> -1 ORDER BY uri") == [("a-again.jpg",), ("a.jpg",)]
    refs = [ref(photos, "a.jpg"), ref(photos, "c.jpg"), ref(photos, "notes.txt", modality="text")]
    diff = store.diff(Root(photos, 1), refs)
    assert (diff.changed, diff.unchanged, diff.missing) == (refs[1:], 1, ["a-again.jpg"])
    assert flaws(store) == []


def test_vectors_that_no_item_needs_are_tombstones_of_the_new_model(store: LocalStore) -> None:
    with store.writer() as writer:
        with store.snapshot() as snapshot:
            model_id = stage(writer, snapshot)
        unused = key("nobody")
        writer.embed("image", [unused], other_vector(unused)[None], model_id=model_id, **PRECISION)
        writer.commit()
        assert sql(store, "SELECT COUNT(*) FROM tombstones") == [(1,)]  # of b.jpg, as before
        writer.switch(model_id, recut)
        dead = "SELECT model_id, content_key FROM tombstones JOIN embeddings USING (embedding_id)"
        assert sql(store, dead) == [(model_id, unused)]
        assert flaws(store) == []
        assert writer.merge() >= 1
        assert writer.find("image", [unused]) == {}
    assert sql(store, dead) == []
    assert flaws(store) == []


def test_the_old_segments_are_gone(store: LocalStore) -> None:
    old = segment_files(store)
    with store.writer() as writer:
        reindex(store, writer)
        assert old.isdisjoint(segment_files(store))
        assert len(segment_files(store)) == 2
    assert {name for (name,) in sql(store, "SELECT filename FROM segments")} == segment_files(store)
    assert embeddings(store, 1) == 0


def test_an_unfinished_change_goes_on_where_it_was(store: LocalStore) -> None:
    with store.writer() as writer:
        model_id = writer.stage(**OTHER)
        writer.embed("image", [key("a")], other_vector(key("a"))[None], model_id=model_id, **PRECISION)
        writer.commit()
    with store.writer() as writer:
        assert writer.stage(**OTHER) == model_id
        assert list(writer.find("image", [key("a"), key("c")], model_id)) == [key("a")]
        assert list(writer.find("image", [key("a"), key("c")])) == [key("a"), key("c")]
        assert writer.commit() == int(sql(store, "SELECT value FROM meta WHERE key = 'generation'")[0][0])
        assert reindex(store, writer) == 0
    assert flaws(store) == []


def test_another_change_gives_up_the_first(store: LocalStore) -> None:
    before = content_of(store)
    with store.writer() as writer:
        with store.snapshot() as snapshot:
            first = stage(writer, snapshot)
        writer.commit()
        files = segment_files(store)
        second = writer.stage(**THIRD)
        assert second > first
        writer.rollback()  # not given up yet
        assert list(writer.models()) == [1, first]
        second = writer.stage(**THIRD)
        writer.commit()
        assert list(writer.models()) == [1, second]
        with pytest.raises(ValueError, match=f"no model {first} is staged"):
            writer.switch(first, recut)
    assert embeddings(store, first) == 0
    with store.writer():  # sweeps
        pass
    assert len(segment_files(store)) == len(files) - 2
    assert content_of(store) == before
    assert flaws(store) == []


def test_vectors_of_a_change_that_was_given_up_are_not_written(store: LocalStore) -> None:
    files = segment_files(store)
    with store.writer() as writer:
        with store.snapshot() as snapshot:
            stage(writer, snapshot)
        writer.stage(**THIRD)  # in the same transaction
        writer.commit()
    assert segment_files(store) == files
    assert flaws(store) == []


def test_only_a_staged_model_can_be_switched_to(store: LocalStore) -> None:
    before = content_of(store)
    with store.writer() as writer:
        current = writer.model_id
        assert writer.stage("again", "fake-1", DIM, None) == current
        for model_id in (current, 99):
            with pytest.raises(ValueError, match=f"no model {model_id} is staged"):
                writer.switch(model_id, recut)
    assert content_of(store) == before


def test_the_same_content_may_wait_for_its_vector_by_one_model_and_have_it_by_the_other(store: LocalStore) -> None:
    photos = store.path.parent
    new = key("new")
    with store.writer() as writer:
        item = NewItem("image", new)
        writer.add(ref(photos, "new.jpg"), content_hash=new, metadata=AssetMetadata(), items=[item])
        model_id = writer.stage(**OTHER)
        writer.embed("image", [new], other_vector(new)[None], model_id=model_id, **PRECISION)
        assert list(writer.find("image", [new], model_id)) == [new]
        assert writer.find("image", [new]) == {}
        with pytest.raises(ValueError, match="1 items have no vector"):
            writer.commit()
        writer.add(ref(photos, "new.jpg"), content_hash=new, metadata=AssetMetadata(), items=[item])
        embed(writer, "image", ["new"])
        writer.commit()
    assert found(store, "new", k=1)[0][0] == "new.jpg"
    assert flaws(store) == []


def test_vectors_must_fit_their_model(store: LocalStore) -> None:
    with store.writer() as writer:
        model_id = writer.stage(**OTHER)
        with pytest.raises(ValueError, match=rf"shape \(1, {DIM + 2}\)"):
            writer.embed("image", [key("a")], vector(key("a"))[None], model_id=model_id, **PRECISION)
        with pytest.raises(KeyError):
            writer.embed("image", [key("a")], vector(key("a"))[None], model_id=99, **PRECISION)


def test_a_switch_that_fails_changes_nothing(store: LocalStore) -> None:
    before = content_of(store)

    def fail(fragment: str | None, text: str) -> list[NewItem] | None:
        if text == "two":
            raise RuntimeError("half-way")
        return recut(fragment, text)

    with store.writer() as writer:
        with store.snapshot() as snapshot:
            model_id = stage(writer, snapshot)
        with pytest.raises(RuntimeError, match="half-way"):
            writer.switch(model_id, fail)
        assert content_of(store) == before
        assert flaws(store) == []
        assert writer.switch(model_id, recut) == 0  # what was staged is there
    assert flaws(store) == []


def test_the_index_goes_on_with_the_new_model(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        reindex(store, writer)
        new = key("new")
        writer.embed("image", [new], other_vector(new)[None], **PRECISION)
        item = NewItem("image", new)
        writer.add(ref(photos, "new.jpg"), content_hash=new, metadata=AssetMetadata(), items=[item])
        writer.remove(str(photos), ["a.jpg", "c.jpg"])
        writer.merge(all_segments=True)
        assert flaws(store) == []
    with store.snapshot() as snapshot:
        ids = snapshot.item_ids("image")
        assert [record.uri for record in snapshot.items(ids.tolist()).values()] == ["a-again.jpg", "new.jpg"]
        assert np.array_equal(snapshot.vectors("image", ids), [other_vector(key("a")), other_vector(new)])


# Merging


def test_merging_everything_leaves_one_segment_of_each_space(store: LocalStore) -> None:
    photos = store.path.parent
    before = content_of(store)
    with store.writer() as writer:
        add(writer, photos, "large.txt", *map(str, range(40)), modality="text", fragments=list(map(str, range(40))))
        writer.commit()
        assert writer.merge() == 2  # the tiers leave the large one
        assert len(segment_files(store)) == 3
        assert writer.merge(all_segments=True) == 2
        assert len(segment_files(store)) == 2
        assert sql(store, "SELECT COUNT(*) FROM tombstones") == [(0,)]
        files = segment_files(store)
        assert writer.merge(all_segments=True) == 0  # nothing left to do
        assert segment_files(store) == files
        writer.remove(str(photos), ["a.jpg", "a-again.jpg"])
        assert writer.merge(all_segments=True) == 1  # a single segment with a tombstone
        writer.remove(str(photos), ["c.jpg"])
        assert writer.merge(all_segments=True) == 1
        assert len(segment_files(store)) == 1
    after = content_of(store)
    assert {uri: after[uri] for uri in ("notes.txt",)} == {"notes.txt": before["notes.txt"]}
    assert flaws(store) == []


@pytest.mark.parametrize("all_segments", [False, True])
def test_segments_of_two_models_are_not_mixed(store: LocalStore, all_segments: bool) -> None:
    enrich(store)
    before = content_of(store)
    with store.writer() as writer:
        model_id = writer.stage(**OTHER)
        for content in ("c", "named"):
            row = other_vector(key(content))[None]
            writer.embed("image", [key(content)], row, model_id=model_id, **PRECISION)
            writer.commit()
        assert writer.merge(all_segments=all_segments) > 3
        assert flaws(store) == []
        assert content_of(store) == before
        staged = "SELECT filename, dim, count FROM segments WHERE model_id = ?"
        ((filename, dim, count),) = sql(store, staged, model_id)
        assert (dim, count) == (DIM + 2, 3)
        header = Segment(store.path / "segments" / filename).header
        assert (header["identity"], header["model"], header["max_tokens"]) == ("other-1", "other", 2)
        assert reindex(store, writer) == 0
    assert flaws(store) == []


def test_segments_know_the_items_of_their_contents(store: LocalStore) -> None:
    """Also those that are written before any item points to them: a lost catalog is made from them again."""
    with store.writer() as writer:
        reindex(store, writer)
    ((name,),) = sql(store, "SELECT filename FROM segments WHERE space = 'image'")
    segment = Segment(store.path / "segments" / name)
    items = dict(zip((one.tobytes() for one in segment.keys), segment.item_ids.tolist(), strict=True))
    assert items == {key("a"): 1, key("c"): 3}


def test_a_rollback_that_cannot_reach_the_disk_forgets_all_the_same(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the vectors of rows that are gone would be written by the next commit."""
    before = content_of(store)
    with store.writer() as writer:
        add(writer, store.path.parent, "new.jpg", "new")

        def fail(self: Catalog) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        real = Catalog.rollback
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "rollback", fail)
            with pytest.raises(sqlite3.OperationalError):
                writer.rollback()
        real(writer._catalog)
        writer.commit()
    assert content_of(store) == before
    assert flaws(store) == []
