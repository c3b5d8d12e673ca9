"""The store as its users see it: what an index promises (commits, generations, identities, the lock, the search)."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_kit import DIM, add, brute_force, content_of, embed, key, make, prepare, queries, ref, segment_files, vector

from mmsearch.retrieval import store as store_module
from mmsearch.retrieval.errors import (
    IndexCorrupt,
    IndexLocked,
    IndexNotFound,
    IndexUnusable,
    ModelMismatch,
    UnsafeFilesystem,
    UsageError,
)
from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot, Writer, is_index, layout, reader
from mmsearch.retrieval.store.segments import Segment
from mmsearch.retrieval.types import AssetMetadata, Failure, ItemRef, Modality, Root, Stamp

PRECISION = {"precision": "fp32", "device": "cpu", "backend": "fake"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return make(tmp_path / "index")


def found(store: LocalStore, content: str, k: int = 10, space: Modality = "image") -> list[tuple[str, float]]:
    with store.snapshot() as snapshot:
        candidates = snapshot.search(space, vector(key(content))[None], k)[0]
        records = snapshot.items([candidate.item_id for candidate in candidates])
        return [(records[candidate.item_id].uri, candidate.score) for candidate in candidates]


# Making and opening


def test_the_folder_is_private(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    with store.snapshot(), store.writer():
        for folder, _, files in os.walk(store.path):
            assert os.stat(folder).st_mode & 0o777 == 0o700
            for name in files:
                assert os.stat(os.path.join(folder, name)).st_mode & 0o777 == 0o600, name


def test_public_names_are_sorted_and_there() -> None:
    assert store_module.__all__ == sorted(store_module.__all__)
    for name in store_module.__all__:
        assert getattr(store_module, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        _ = store_module.Nothing


def test_no_index_yet(tmp_path: Path) -> None:
    assert not is_index(tmp_path)
    assert not is_index(tmp_path / "absent")
    for opener in (LocalStore.open, Snapshot.open):
        with pytest.raises(IndexNotFound, match=r"no index at .*absent; make one with: mmsearch index"):
            opener(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_an_index_keeps_its_model(store: LocalStore) -> None:
    assert make(store.path).identity == "fake-1"
    with pytest.raises(ModelMismatch, match="made by fake, not by other; use another --index for other"):
        LocalStore.create(store.path, model="other", identity="other-1", dim=DIM)
    with pytest.raises(ModelMismatch):
        LocalStore.create(store.path, model="fake", identity="fake-1", dim=DIM + 1)
    assert LocalStore.open(store.path).model == "fake"


def test_an_index_is_not_made_among_other_things(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(IndexUnusable, match=r"holds other files \('photo.jpg'\)"):
        make(tmp_path)
    with pytest.raises(IndexUnusable, match="is a file"):
        make(tmp_path / "photo.jpg")
    with pytest.raises(IndexUnusable, match="cannot make an index at"):
        make(tmp_path / "photo.jpg" / "index")
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_unknown_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    strangers = [store.path / "README", store.path / "segments" / "notes.txt", store.path / "segments" / "x-1.seg"]
    for stranger in strangers:
        stranger.write_text("mine")
    orphan = store.path / "segments" / "image-000999.seg"
    temporary = store.path / "segments" / "image-000998.seg.tmp"
    orphan.write_bytes(b"")
    temporary.write_bytes(b"")
    with store.writer() as writer:
        writer.merge()
    assert all(stranger.read_text() == "mine" for stranger in strangers)
    assert not orphan.exists() and not temporary.exists()
    assert content_of(make(store.path)) == content_of(store)


MOUNTINFO = (
    b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    b"30 22 0:40 / /mnt/nas\\040drive rw shared:1 - nfs4 server:/x rw\n"
    b"31 30 8:2 / /mnt/nas\\040drive/local rw - ext4 /dev/sdb1 rw\n"
    b"32 22 0:41 / /mnt/share rw - cifs //server/x rw\n"
    b"33 22 0:42 / /mnt/ssh rw - fuse.sshfs me@there: rw\n"
    b"34 22 0:43 / /mnt/fuse rw - fuseblk /dev/sdc1 rw\n"
)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/mnt/nas drive", "nfs4"),
        ("/mnt/nas drive/deep/index", "nfs4"),
        ("/mnt/share/index", "cifs"),
        ("/mnt/ssh/index", "fuse.sshfs"),
        ("/mnt/nas drive/local/index", None),
        ("/mnt/nas drivel/index", None),
        ("/mnt/fuse/index", None),
        ("/data/me/index", None),
    ],
)
def test_network_drives_are_told_from_local_ones(monkeypatch: pytest.MonkeyPatch, path: str, kind: str | None) -> None:
    monkeypatch.setattr(layout, "mount_table", lambda: layout.parse_mountinfo(MOUNTINFO))
    if kind is None:
        layout.refuse_network_filesystem(Path(path))
    else:
        with pytest.raises(UnsafeFilesystem, match=f"network drive .{re.escape(kind)} at /mnt/.*keep it on a local"):
            layout.refuse_network_filesystem(Path(path))


def test_an_index_on_a_network_drive_is_refused(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "mount_table", lambda: [("/", "nfs4")])
    for attempt in (LocalStore.open, Snapshot.open, make, lambda path: store.writer()):
        with pytest.raises(UnsafeFilesystem):
            attempt(store.path)
    with pytest.raises(UnsafeFilesystem):
        make(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_catalog_is_a_clear_error(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    catalog = store.path / layout.CATALOG
    head = catalog.read_bytes()[:100]
    catalog.write_bytes(head + b"\xff" * 5000)
    for opener in (LocalStore.open, Snapshot.open):
        with pytest.raises(IndexCorrupt, match=r"catalog of .* cannot be read"):
            opener(store.path)
    catalog.write_bytes(b"no catalog at all" * 50)
    with pytest.raises(IndexNotFound):
        Snapshot.open(store.path)


def test_a_missing_or_foreign_segment_is_a_clear_error(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    first, second = (store.path / "segments" / name for name in ("image-000001.seg", "image-000002.seg"))
    shutil.copy(second, first)
    with pytest.raises(IndexCorrupt, match=r"image-000001.seg is not the segment that the catalog names"):
        store.snapshot()
    first.unlink()
    with pytest.raises(IndexCorrupt, match=r"image-000001.seg is missing"):
        store.snapshot()
    assert "image-000001.seg" in store.verify()[0]
    with store.writer() as writer, pytest.raises(IndexCorrupt, match="missing"):
        writer.merge()


def test_a_flipped_bit_is_found_and_not_laundered_by_a_merge(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    assert store.verify() == []
    path = store.path / "segments" / "image-000001.seg"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert store.verify() == ["image-000001.seg: its bytes are not those that were written (checksum)"]
    with store.writer() as writer, pytest.raises(IndexCorrupt, match="damaged"):
        writer.merge()
    assert path.exists()


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
        assert [record.uri for record in writer.asset_by_hash(key("a"))] == ["a.jpg", "copy.jpg", "later.jpg"]
    assert [uri for uri, _ in found(store, "a")] == ["a.jpg", "copy.jpg", "later.jpg"]
    assert [uri for uri, _ in found(store, "a", k=2)] == ["a.jpg", "copy.jpg"]
    assert segment_files(store) == {"image-000001.seg"}
    with store.snapshot() as snapshot:
        assert snapshot.hashes_of(key("a")) == [1, 2, 3]
        assert snapshot.hashes_of(key("b")) == []


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
        assert snapshot.hashes_of(key("old")) == []


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


# Scans


def test_diff(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        for uri in ("same.jpg", "size.jpg", "time.jpg", "owner.txt", "gone.jpg", "sub/gone.jpg"):
            add(writer, photos, uri, uri)
        writer.commit()
    refs = [
        ref(photos, "same.jpg"),
        ref(photos, "size.jpg", stamp=(2, 1)),
        ref(photos, "time.jpg", stamp=(1, 2)),
        ref(photos, "owner.txt", owner="owner.jpg"),
        ref(photos, "new.jpg"),
        ref(photos, "new.jpg"),  # named twice
        ref(photos, "same.jpg"),
    ]
    diff = store.diff(Root(photos, 1), iter(refs))
    assert diff.new == [refs[4]]
    assert diff.changed == refs[1:4]
    assert (diff.unchanged, diff.missing) == (1, ["gone.jpg", "sub/gone.jpg"])
    assert diff.had_items and not diff.device_changed
    diff = store.diff(Root(photos, 2), refs, scope=lambda uri: uri.startswith("sub/"))
    assert diff.missing == ["sub/gone.jpg"]
    assert diff.device_changed
    unknown = store.diff(Root(photos / "sub", 2), refs[:1])
    assert (unknown.new, unknown.had_items, unknown.device_changed) == (refs[:1], False, False)


def test_a_root_that_holds_the_index_moves_with_it(tmp_path: Path) -> None:
    home, outside = tmp_path / "drive", tmp_path / "outside"
    outside.mkdir()
    store = make(home / "photos" / ".index")
    with store.writer() as writer:
        add(writer, home, "photos/a.jpg", "a")
        add(writer, home / "photos", "b.jpg", "b")
        add(writer, outside, "c.jpg", "c")
        writer.commit()
    home.rename(tmp_path / "new drive")
    home = tmp_path / "new drive"
    store = LocalStore.open(home / "photos" / ".index")
    with store.snapshot() as snapshot:
        paths = {record.path for record in snapshot.items([1, 2, 3]).values()}
        assert paths == {str(home / "photos/a.jpg"), str(home / "photos/b.jpg"), str(outside / "c.jpg")}
        assert {(root.path, root.items, root.present) for root in snapshot.info().roots} == {
            (str(home), 1, True),
            (str(home / "photos"), 1, True),
            (str(outside), 1, True),
        }
    assert store.diff(Root(home, 1), [ref(home, "photos/a.jpg")]).unchanged == 1
    assert store.diff(Root(outside, 1), [ref(outside, "c.jpg")]).unchanged == 1
    assert str(tmp_path).encode() not in re.sub(re.escape(os.fsencode(outside)), b"", _catalog_bytes(store))


def _catalog_bytes(store: LocalStore) -> bytes:
    return b"".join(path.read_bytes() for path in store.path.iterdir() if path.name.startswith(layout.CATALOG))


def test_a_root_is_the_same_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    store = make(tmp_path / "photos" / "index")
    with store.writer() as writer:
        add(writer, tmp_path / "photos", "a.jpg", "a")
        writer.commit()
        linked = tmp_path / "link"
        writer.root(Root(linked, 1))
        assert writer.asset_by_hash(key("a"))[0].root == str(linked)  # as the caller writes it
        assert writer.remove(str(linked), ["a.jpg"]) == 1
    assert store.diff(Root(linked, 1), [ref(linked, "a.jpg")]).unchanged == 1


NAMES = [
    "100%25.jpg",
    "a_b.jpg",
    "aXb.jpg",
    "line%0Abreak.jpg",
    "%F0%9F%98%80.jpg",
    "%E7%8C%AB.jpg",
    "caf%C3%A9.jpg",
    "%FF%FE.jpg",
    "quote%27%22.jpg",
    "CASE.jpg",
    "case.jpg",
    "-rf.jpg",
    "deep/er/%20.jpg",
]


def test_names_are_bytes(store: LocalStore, tmp_path: Path) -> None:
    root = tmp_path / "r\n%_😀猫\udcff"
    with store.writer() as writer:
        for uri in NAMES:
            add(writer, root, uri, uri)
        writer.commit()
        assert writer.remove(str(root), ["a_b.jpg", "%.jpg", "CASE.jpg"]) == 2  # no wildcards, no folded case
        writer.commit()
    left = [uri for uri in NAMES if uri not in ("a_b.jpg", "CASE.jpg")]
    assert store.diff(Root(root, 1), [ref(root, uri) for uri in NAMES]).unchanged == len(left)
    with store.snapshot() as snapshot:
        records = snapshot.items(snapshot.item_ids("image").tolist())
    paths = {record.uri: record.path for record in records.values()}
    assert sorted(paths) == sorted(left)
    assert paths["line%0Abreak.jpg"] == os.path.join(root, "line\nbreak.jpg")
    assert paths["%F0%9F%98%80.jpg"] == os.path.join(root, "😀.jpg")
    assert os.fsencode(paths["%FF%FE.jpg"]).endswith(b"/\xff\xfe.jpg")


def test_texts_and_metadata_come_back_after_reopening(store: LocalStore, photos: Path) -> None:
    text = "Une forêt enneigée, naïve façade — 一只猫坐在沙发上 😀\n\0\ttab"
    metadata = AssetMetadata(
        width=4, height=3, taken="2024-05-01T10:00:00+02:00", camera="Fujifilm X-T4", orientation=6,
        latitude=-33.5, longitude=151.25, phash=-(2**63),
    )  # fmt: skip
    with store.writer() as writer:
        writer.root(Root(photos, 1))
        embed(writer, "text", [text])
        writer.add(
            ref(photos, "note.txt", modality="text", owner="note.jpg", stamp=(2**40, 2**62)),
            content_hash=key("file"),
            metadata=metadata,
            items=[NewItem("text", key(text), "char=0-40", text)],
        )
        writer.commit()
        assert writer.asset_by_hash(key("file"))[0].metadata == metadata
        assert writer.asset_by_hash(key("file"))[0].stamp == Stamp(2**40, 2**62)
    with Snapshot.open(store.path) as snapshot:
        hit = snapshot.search("text", vector(key(text))[None], 1)[0][0]
        record = snapshot.items([hit.item_id])[hit.item_id]
    assert (record.text, record.fragment, record.modality, record.owner) == (text, "char=0-40", "text", "note.jpg")
    for field in ("width", "height", "taken", "camera", "orientation", "latitude", "longitude", "phash"):
        assert getattr(record, field) == getattr(metadata, field)


def test_an_index_that_cannot_be_written_to_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only medium, where SQLite could not make the shared memory of its log."""
    store = prepare(tmp_path / "index")
    for name in ("-wal", "-shm"):
        (store.path / f"{layout.CATALOG}{name}").unlink(missing_ok=True)
    before = sorted(os.listdir(store.path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert len(found(store, "a")) == 3
    assert sorted(os.listdir(store.path)) == before


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


# Searching


def test_equal_scores_are_ordered_by_item_id(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        writer.root(Root(photos, 1))
        row = np.ones((1, DIM), np.float32)
        for number in (3, 1, 2, 0):  # equal vectors of different contents, in segments of their own
            content = key(str(number))
            writer.embed("image", [content], row, **PRECISION)
            for copy in range(2):
                uri = f"{number}-{copy}.jpg"
                item = NewItem("image", content)
                writer.add(ref(photos, uri), content_hash=content, metadata=AssetMetadata(), items=[item])
            writer.commit()
        for k in range(1, 10):
            with store.snapshot() as snapshot:
                for answer in snapshot.search("image", np.concatenate([row, row]), k):
                    assert [one.item_id for one in answer] == list(range(1, 9))[:k]
        writer.move(str(photos), "3-0.jpg", ref(photos, "later.jpg"))
        writer.merge()
    with store.snapshot() as snapshot:
        assert [one.item_id for one in snapshot.search("image", row, 99)[0]] == list(range(1, 9))


def test_few_or_no_hits(store: LocalStore, photos: Path) -> None:
    assert found(store, "a") == []
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.commit()
    with store.snapshot() as snapshot:
        one = snapshot.search("image", queries(1), 1)
        assert [len(answer) for answer in one] == [1]
        assert one == snapshot.search("image", queries(1), 1000)
        assert snapshot.search("image", queries(0), 5) == []
        assert snapshot.search("text", queries(2), 5) == [[], []]
        assert snapshot.vectors("image", []).shape == (0, DIM)
        assert snapshot.items([]) == {}
        for k in (0, -1):
            with pytest.raises(UsageError):
                snapshot.search("image", queries(1), k)
        with pytest.raises(ValueError, match="shape"):
            snapshot.search("image", np.zeros((1, DIM + 1), np.float32), 1)
        with pytest.raises(ValueError, match="finite"):
            snapshot.search("image", np.full((1, DIM), np.inf, np.float32), 1)
        with pytest.raises(KeyError):
            snapshot.vectors("text", [1])


def test_half_precision(tmp_path: Path, photos: Path) -> None:
    store = LocalStore.create(tmp_path / "half", model="fake", identity="fake-1", dim=DIM, dtype="float16")
    with store.writer() as writer:
        for name in "abc":
            add(writer, photos, name, name)
            writer.commit()
        writer.merge()
    assert found(LocalStore.open(store.path), "a", k=1)[0][0] == "a"
    (name,) = segment_files(store)
    assert Segment(store.path / "segments" / name).rows.dtype == np.float16
    assert store.verify() == []


# Reading while others write


def test_a_snapshot_stays_what_it_was(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        for number in range(8):
            add(writer, photos, f"{number}.jpg", str(number))
            writer.commit()
        with store.snapshot() as snapshot:
            before = snapshot.search("image", queries(5), 10)
            assert snapshot.is_current()
            writer.remove(str(photos), [f"{number}.jpg" for number in range(4)])
            add(writer, photos, "new.jpg", "new")
            assert snapshot.is_current()
            writer.commit()
            assert not snapshot.is_current()
            assert writer.merge() > 0
            assert len(segment_files(store)) < 8
            assert snapshot.search("image", queries(5), 10) == before
            assert len(snapshot.items(list(range(1, 9)))) == 8
            assert snapshot.vectors("image", [1])[0].tolist() == vector(key("0")).tolist()
            with store.snapshot() as fresh:
                assert fresh.counts["image"] == 5
                assert fresh.generation > snapshot.generation
    with pytest.raises(sqlite3.ProgrammingError):
        snapshot.search("image", queries(1), 1)


def test_a_reader_that_meets_a_merge_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between reading the names of segments and opening them, a merge removes the files."""
    store = prepare(tmp_path / "index")
    real = reader.Segment
    merged: list[int] = []

    def open_(path: Path) -> Any:
        if not merged:
            merged.append(1)
            with store.writer() as writer:
                merged.append(writer.merge())
        return real(path)

    monkeypatch.setattr(reader, "Segment", open_)
    with store.snapshot() as snapshot:
        assert merged[1] == 2
        assert snapshot.counts == {"image": 3, "text": 2}
        assert len(snapshot.search("image", queries(1), 9)[0]) == 3


def test_the_folder_deleted_under_a_reader(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    with store.snapshot() as snapshot:
        before = snapshot.search("image", queries(3), 9)
        assert snapshot.is_current()
        shutil.rmtree(store.path)
        assert not snapshot.is_current()
        assert snapshot.search("image", queries(3), 9) == before
        assert len(snapshot.items([1])) == 1
        for opener in (store.snapshot, store.info, store.writer):
            with pytest.raises(IndexNotFound):
                opener()
        prepare(store.path)  # another index at the same place
        assert not snapshot.is_current()


def test_searches_from_many_threads_while_a_writer_works(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        add(writer, photos, "0.jpg", "0")
        writer.commit()
        snapshot = store.snapshot()
        expected = snapshot.search("image", queries(4), 3)
        wrong: list[object] = []
        stop = threading.Event()

        def search() -> None:
            try:
                while not stop.is_set():
                    if snapshot.search("image", queries(4), 3) != expected or len(snapshot.items([1])) != 1:
                        wrong.append("another answer")
                    with store.snapshot() as fresh:
                        count = fresh.counts["image"]
                        if len(fresh.search("image", queries(1), 1000)[0]) != count:
                            wrong.append("not one generation")
                    fresh_or_not = snapshot.is_current()
                    if fresh_or_not not in (True, False):
                        wrong.append(fresh_or_not)
            except Exception as error:
                wrong.append(error)

        threads = [threading.Thread(target=search) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1, 25):
            add(writer, photos, f"{number}.jpg", str(number))
            writer.commit()
            if number % 5 == 0:
                writer.merge()
        stop.set()
        for thread in threads:
            thread.join()
        snapshot.close()
    assert wrong == []


# By construction


def test_every_statement_of_the_reader_fits_the_schema(store: LocalStore) -> None:
    connection = reader.connect(store.path)
    try:
        for name, statement in reader.SQL.items():
            parameters = ["[]"] * statement.count("?")
            assert connection.execute(f"EXPLAIN {statement}", parameters).fetchall(), name
            connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize("name", ["items_of_embeddings", "embeddings_of_items", "items", "items_of_hash", "assets"])
def test_no_statement_of_a_query_reads_a_whole_table(store: LocalStore, name: str) -> None:
    connection = reader.connect(store.path)
    try:
        statement = reader.SQL[name]
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", ["[]"] * statement.count("?")).fetchall()
    finally:
        connection.close()
    scans = [row[3] for row in plan if row[3].startswith("SCAN") and "json_each" not in row[3]]
    assert scans == []


def test_reading_imports_only_sqlite_and_numpy(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    code = (
        "import sys, pathlib\nfrom mmsearch.retrieval.store import Snapshot\nimport numpy as np\n"
        "with Snapshot.open(pathlib.Path(sys.argv[1])) as s:\n"
        f"    hits = s.search('image', np.ones((1, {DIM}), np.float32), 2)[0]\n"
        "    assert len(s.items([h.item_id for h in hits])) == 2 and s.is_current() and s.info().items == 5\n"
        "heavy = {'sqlalchemy', 'faiss', 'torch', 'onnxruntime', 'PIL', 'transformers', 'typer', 'rich'}\n"
        "sys.stdout.write(','.join(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


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


# Any sequence of operations, against a dict


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
