"""The one writer: its lock, what commits publish, and merges."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_kit import DIM, PRECISION, add, content_of, embed, found, key, make, prepare, ref, segment_files, sql, vector

from mmsearch.retrieval.errors import IndexCorrupt, IndexLocked, IndexNotFound, IndexUnusable
from mmsearch.retrieval.store import LocalStore, NewItem, layout, lock
from mmsearch.retrieval.types import AssetMetadata, Failure, Root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return make(tmp_path / "index")


# The lock


def test_one_writer_at_a_time(store: LocalStore) -> None:
    with store.writer():
        with pytest.raises(IndexLocked, match=rf"another mmsearch \(pid {os.getpid()}\) is writing.*wait for it or"):
            store.writer()
        code = (
            "import sys, pathlib\nfrom mmsearch.retrieval.store import LocalStore\n"
            "try: LocalStore.open(pathlib.Path(sys.argv[1])).writer()\n"
            "except Exception as error: sys.stdout.write(type(error).__name__)\n"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=False
        )
        assert other.stdout == "IndexLocked", other.stderr
        assert found(store, "x") == []  # readers need no lock
    with store.writer() as writer:
        writer.close()
        writer.close()
        store.writer().close()


@pytest.mark.parametrize(
    ("reason", "error", "message"),
    [
        (errno.EWOULDBLOCK, IndexLocked, "another mmsearch"),
        (errno.EACCES, IndexLocked, "another mmsearch"),
        (errno.ENOLCK, IndexUnusable, r"cannot lock the index at .*: No locks available; .* name another with --index"),
    ],
)
def test_only_a_held_lock_is_called_locked(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, reason: int, error: type[Exception], message: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patch:
        patch.setattr(lock, "_lock", refuse)
        with pytest.raises(error, match=message) as caught:
            store.writer()
    assert caught.type is error
    store.writer().close()


def test_a_lock_that_cannot_be_opened_is_a_clear_error(store: LocalStore) -> None:
    (store.path / layout.LOCK).unlink()
    (store.path / layout.LOCK).mkdir()
    with pytest.raises(IndexUnusable, match=r"cannot lock the index at .*: Is a directory"):
        store.writer()


# Writing


def test_nothing_is_visible_before_the_commit(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        assert found(store, "a") == []
        assert writer.commit() == 1
        assert [uri for uri, _ in found(store, "a")] == ["a.jpg"]
        add(writer, photos, "b.jpg", "b")
    assert list(content_of(store)) == ["a.jpg"]  # left without commit


def test_a_commit_of_nothing_makes_no_generation(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        assert writer.commit() == 0
        add(writer, photos, "a.jpg", "a")
        assert writer.commit() == 1
        assert writer.commit() == 1
        writer.root(Root(photos, 1))
        assert writer.commit() == 1
        writer.root(Root(photos, 2))  # bookkeeping
        writer.scanned(Root(photos, 2))
        assert writer.commit() == 1
        assert writer.remove(str(photos), ["absent"]) == 0
        assert writer.commit() == 1
        assert writer.merge() == 0
    assert not store.diff(Root(photos, 2), []).device_changed
    assert store.info().generation == 1


def test_rollback_forgets(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.rollback()
        assert writer.find("image", [key("a")]) == {}
        assert writer.commit() == 0
        with pytest.raises(ValueError, match=r"register it with Writer.root first"):
            writer.remove(str(photos), ["a.jpg"])
        add(writer, photos, "a.jpg", "b")
        assert writer.commit() == 1
    assert content_of(store) == {"a.jpg": [(None, "image", vector(key("b")).tolist())]}


def test_an_item_without_a_vector_cannot_be_committed(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        writer.root(Root(photos, 1))
        item = NewItem("image", key("a"))
        writer.add(ref(photos, "a"), content_hash=key("a"), metadata=AssetMetadata(), items=[item])
        assert writer.find("image", [key("a")]) == {}
        with pytest.raises(ValueError, match="1 items have no vector"):
            writer.commit()
        assert content_of(store) == {}
        writer.root(Root(photos, 1))
        writer.add(ref(photos, "a"), content_hash=key("a"), metadata=AssetMetadata(), items=[item])
        embed(writer, "image", ["a"])  # the vector may come later
        writer.commit()
    assert content_of(store) == {"a": [(None, "image", vector(key("a")).tolist())]}


def test_bad_vectors_are_refused(store: LocalStore) -> None:
    with store.writer() as writer:
        with pytest.raises(ValueError, match="shape"):
            writer.embed("image", [key("a")], np.zeros((1, DIM + 1), np.float32), **PRECISION)
        with pytest.raises(ValueError, match="finite"):
            writer.embed("image", [key("a")], np.full((1, DIM), np.nan, np.float32), **PRECISION)
        with pytest.raises(ValueError, match="32 bytes"):
            writer.embed("image", [b"short"], np.zeros((1, DIM), np.float32), **PRECISION)


def test_the_same_content_under_two_uris_has_one_vector(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        add(writer, photos, "copy.jpg", "a")
        writer.commit()
        add(writer, photos, "later.jpg", "a")
        writer.commit()
        assert [record.uri for record in writer.assets_by_hash(key("a"), "image")] == ["a.jpg", "copy.jpg", "later.jpg"]
    assert [uri for uri, _ in found(store, "a")] == ["a.jpg", "copy.jpg", "later.jpg"]
    assert [uri for uri, _ in found(store, "a", k=2)] == ["a.jpg", "copy.jpg"]
    assert segment_files(store) == {"image-000001.seg"}
    with store.snapshot() as snapshot:
        assert snapshot.pictures_of_hash(key("a")) == [1, 2, 3]
        assert snapshot.pictures_of_hash(key("b")) == []


def test_new_content_at_the_same_uri(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "old")
        add(writer, photos, "b.jpg", "other")
        writer.commit()
        add(writer, photos, "a.jpg", "new", stamp=(2, 2))
        assert dict(found(store, "old"))["a.jpg"] == vector(key("old")) @ vector(key("old"))  # lives until then
        writer.commit()
    assert content_of(store)["a.jpg"] == [(None, "image", vector(key("new")).tolist())]
    with store.snapshot() as snapshot:
        assert snapshot.item_ids("image").tolist() == [2, 3]  # ids are not used again
        assert snapshot.counts == {"image": 2, "text": 0}
        assert snapshot.pictures_of_hash(key("old")) == []


def test_a_vector_without_items_is_revived_before_a_merge_and_gone_after(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        add(writer, photos, "b.jpg", "b")
        writer.commit()
        writer.remove(str(photos), ["a.jpg"])
        writer.commit()
        assert list(writer.find("image", [key("a"), key("z")])) == [key("a")]
        assert [uri for uri, _ in found(store, "a")] == ["b.jpg"]
        add(writer, photos, "again.jpg", "a")
        writer.commit()
        assert {uri for uri, _ in found(store, "a")} == {"again.jpg", "b.jpg"}
        writer.remove(str(photos), ["again.jpg"])
        assert writer.merge() == 1
        assert writer.find("image", [key("a")]) == {}
        assert writer.remove(str(photos), ["b.jpg"]) == 1
        assert writer.merge() == 1
    assert segment_files(store) == set()
    assert found(store, "a") == []


def test_a_failure_keeps_the_items_of_the_last_good_content(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.commit()
        writer.fail(ref(photos, "a.jpg", stamp=(9, 9)), "truncated \udcff after\nline 3")
        writer.fail(ref(photos, "b.jpg"), "no picture")
        writer.commit()
        refs = [ref(photos, "a.jpg", stamp=(9, 9)), ref(photos, "b.jpg")]
        diff = store.diff(Root(photos, 1), refs)
        assert (diff.failed, diff.changed, diff.new, diff.unchanged, diff.missing) == (refs, [], [], 0, [])
        assert diff.known_failures[1] == Failure(str(photos / "b.jpg"), "no picture")
        assert [uri for uri, _ in found(store, "a")] == ["a.jpg"]
        assert [failure.path for failure in store.info().failed] == [str(photos / "a.jpg"), str(photos / "b.jpg")]
        writer.touch(ref(photos, "a.jpg", stamp=(1, 1)))  # the old content is back
        add(writer, photos, "b.jpg", "b", stamp=(2, 2))
        writer.commit()
    assert store.info().failed == ()
    assert store.diff(Root(photos, 1), [ref(photos, "a.jpg"), ref(photos, "b.jpg", stamp=(2, 2))]).unchanged == 2


def test_a_move_keeps_item_ids(store: LocalStore, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        add(writer, photos, "b.jpg", "b")
        add(writer, other, "there.jpg", "there")
        writer.commit()
        writer.move(str(photos), "a.jpg", ref(photos, "b.jpg", stamp=(5, 5)))  # over another file
        writer.move(str(photos), "b.jpg", ref(other, "a.jpg", stamp=(5, 5)))  # to another root
        with pytest.raises(KeyError):
            writer.move(str(photos), "a.jpg", ref(photos, "c.jpg"))
        with pytest.raises(KeyError):
            writer.touch(ref(photos, "c.jpg"))
        writer.commit()
    with store.snapshot() as snapshot:
        records = snapshot.items([1, 2, 3])
    assert {id_: record.path for id_, record in records.items()} == {
        1: str(other / "a.jpg"),
        3: str(other / "there.jpg"),
    }
    assert store.diff(Root(other, 1), [ref(other, "a.jpg", stamp=(5, 5))]).missing == ["there.jpg"]


def test_removing_the_index_under_a_writer_is_a_clear_error(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        shutil.rmtree(store.path)
        with pytest.raises(IndexNotFound, match="removed while it was written to"):
            writer.commit()
    with pytest.raises(IndexNotFound):
        store.writer()


@pytest.mark.parametrize("operation", ["insert_items", "embedding_ids"])
def test_an_interrupt_between_two_statements_leaves_nothing_half_done(
    store: LocalStore, photos: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    from mmsearch.retrieval.store.catalog import Catalog

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.commit()
        before = content_of(store)
        with monkeypatch.context() as patch:
            embed(writer, "image", ["b"])
            patch.setattr(Catalog, operation, interrupt)
            with pytest.raises(KeyboardInterrupt):
                item = NewItem("image", key("b"))
                writer.add(ref(photos, "a.jpg"), content_hash=key("b"), metadata=AssetMetadata(), items=[item])
        writer.commit()
        assert content_of(store) == before


def test_how_vectors_were_made_is_recorded(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        writer.root(Root(photos, 1))
        for number, precision in enumerate(("fp32", "fp16")):
            content = key(precision)
            row = vector(content)[None]
            writer.embed("image", [content], row, precision=precision, device="cpu", backend="fake")
            item = NewItem("image", content)
            writer.add(ref(photos, str(number)), content_hash=content, metadata=AssetMetadata(), items=[item])
        writer.commit()
        query = "SELECT precision, device, backend FROM segments ORDER BY precision"
        connection = sqlite3.connect(store.path / layout.CATALOG)
        assert connection.execute(query).fetchall() == [("fp16", "cpu", "fake"), ("fp32", "cpu", "fake")]
        writer.merge()
        assert connection.execute(query).fetchall() == [("fp16,fp32", "cpu", "fake")]
        connection.close()


# Merging


def test_a_flipped_bit_is_found_and_not_laundered_by_a_merge(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    assert store.verify() == []
    path = store.path / "segments" / "image-000001.seg"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert store.verify() == ["image-000001.seg: its bytes are not those that were written (checksum)"]
    before = content_of(store)
    with store.writer() as writer:
        add(writer, tmp_path, "new.jpg", "new")
        with pytest.raises(IndexCorrupt, match=r"image-000001.seg is damaged .* kept.*`mmsearch doctor`"):
            writer.merge()
        add(writer, tmp_path, "later.jpg", "later")  # the writer goes on
        writer.commit()
    assert path.read_bytes() == data
    after = content_of(store)
    assert sorted(after) == sorted([*before, "later.jpg", "new.jpg"])
    assert {uri: after[uri] for uri in before} == before


def test_an_embedding_in_no_segment_is_found(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    for nowhere in (None, 99):
        sql(store, "UPDATE embeddings SET segment_id = ? WHERE embedding_id = 1", nowhere)
        assert sorted(store.verify()) == [
            "catalog.sqlite: 1 embedding in no segment",
            "image-000001.seg: its embeddings are not those that the catalog names",
        ]


def test_a_tombstone_of_another_segment_costs_no_row(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    before = content_of(store)
    connection = sqlite3.connect(store.path / layout.CATALOG)
    with connection:
        assert connection.execute("UPDATE tombstones SET segment_id = 2").rowcount == 1
    connection.close()
    with store.writer() as writer, pytest.raises(IndexCorrupt, match=r"image-000002.seg is not .*`mmsearch doctor`"):
        writer.merge()
    assert content_of(store) == before


def test_merges_copy_little_and_leave_few_segments(
    store: LocalStore, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adding one by one, with a merge after each: every row is copied O(log n) times."""
    from mmsearch.retrieval.store import publish

    copied: list[int] = []
    real = publish.write_segment

    def counting(path: Path, rows: Any, **how: Any) -> Any:
        copied.append(len(rows.ids))
        return real(path, rows, **how)

    monkeypatch.setattr(publish, "write_segment", counting)
    count = 48
    with store.writer() as writer:
        for number in range(count):
            add(writer, photos, f"{number}.jpg", str(number))
            writer.commit()
            writer.merge()
            assert len(segment_files(store)) <= 1 + np.log2(number + 1)
    assert sum(copied) <= count * (1 + np.log2(count))
    assert len(content_of(store)) == count


def test_large_segments_wait_for_seven_times_their_rows(
    store: LocalStore, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.retrieval.store import publish

    monkeypatch.setattr(publish, "_FEW_ROWS", 1)
    copied: list[int] = []
    real = publish.live_rows

    def counting(segments: Any, dead: Any) -> Any:
        found = real(segments, dead)
        copied.append(len(found[0]))
        return found

    monkeypatch.setattr(publish, "live_rows", counting)
    most = 0
    with store.writer() as writer:
        for number in range(64):
            add(writer, photos, f"{number}.jpg", str(number))
            writer.commit()
            writer.merge()
            most = max(most, len(segment_files(store)))
    assert copied == [8] * 7 + [64]  # the last takes seven segments of eight rows and eight of one
    assert most == 14
    assert len(segment_files(store)) == 1
    assert len(content_of(store)) == 64
