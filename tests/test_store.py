"""What an index is: how it is made, opened and kept private, and what a scan is compared with."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from store_kit import DIM, add, content_of, key, make, prepare, ref

from mmsearch.retrieval import store as store_module
from mmsearch.retrieval.errors import IndexCorrupt, IndexNotFound, IndexUnusable, ModelMismatch, UnsafeFilesystem
from mmsearch.retrieval.store import LocalStore, Snapshot, is_index, layout
from mmsearch.retrieval.types import Root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return make(tmp_path / "index")


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
    with pytest.raises(ModelMismatch, match="made by fake, not by other; `mmsearch reindex --model other` changes it"):
        LocalStore.create(store.path, model="other", identity="other-1", dim=DIM)
    with pytest.raises(ModelMismatch):
        LocalStore.create(store.path, model="fake", identity="fake-1", dim=DIM + 1)
    assert LocalStore.open(store.path).model == "fake"


def test_an_index_knows_how_long_its_texts_may_be(store: LocalStore, tmp_path: Path) -> None:
    assert store.max_tokens is None
    how = {"model": "fake", "identity": "fake-1", "dim": DIM}
    assert LocalStore.create(tmp_path / "long", **how, max_tokens=64).max_tokens == 64
    assert LocalStore.open(tmp_path / "long").max_tokens == 64
    assert LocalStore.create(tmp_path / "long", **how, max_tokens=16).max_tokens == 64  # as it was made
    assert LocalStore.create(store.path, **how, max_tokens=16).max_tokens is None


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
    monkeypatch.setattr(layout, "mount_table", lambda place: layout.parse_mountinfo(MOUNTINFO))
    if kind is None:
        layout.refuse_network_filesystem(Path(path))
    else:
        with pytest.raises(UnsafeFilesystem, match=f"network drive .{re.escape(kind)} at /mnt/.*keep it on a local"):
            layout.refuse_network_filesystem(Path(path))


def test_an_index_on_a_network_drive_is_refused(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "mount_table", lambda place: [("/", "nfs4")])
    for attempt in (LocalStore.open, Snapshot.open, make, lambda path: store.writer()):
        with pytest.raises(UnsafeFilesystem):
            attempt(store.path)
    with pytest.raises(UnsafeFilesystem):
        make(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_macos_is_asked_once_for_its_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    listing = "/dev/disk3s1s1 on / (apfs, local, journaled)\n//me@nas/a b on {} (smbfs, nodev, mounted by me)\n"

    def run(command: object, **how: object) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(stdout=listing.format(tmp_path / "nas drive"))

    monkeypatch.setattr(layout, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(subprocess, "run", run)
    layout._macos_mounts.cache_clear()
    try:
        for _ in range(3):
            layout.refuse_network_filesystem(tmp_path / "absent" / "index")
            with pytest.raises(UnsafeFilesystem, match=r"smbfs at .*nas drive"):
                layout.refuse_network_filesystem(tmp_path / "nas drive" / "index")
    finally:
        layout._macos_mounts.cache_clear()
    assert asked == [["/sbin/mount"]]


def test_a_damaged_catalog_is_a_clear_error(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    catalog = store.path / layout.CATALOG
    head = catalog.read_bytes()[:100]
    catalog.write_bytes(head + b"\xff" * 5000)
    for opener in (LocalStore.open, Snapshot.open):
        with pytest.raises(IndexCorrupt, match=r"catalog of .* cannot be read"):
            opener(store.path)
    catalog.write_bytes(b"no catalog at all" * 50)
    for opener in (LocalStore.open, Snapshot.open, make):
        with pytest.raises(IndexCorrupt, match=r"catalog of the index at .* is damaged, its vectors are there"):
            opener(store.path)
    catalog.unlink()
    for opener in (LocalStore.open, Snapshot.open, make):
        with pytest.raises(IndexCorrupt, match=r"catalog of the index at .* is missing, its vectors are there"):
            opener(store.path)
    shutil.rmtree(store.path / "segments")
    with pytest.raises(IndexNotFound):
        Snapshot.open(store.path)


@pytest.mark.parametrize("gone", ["DELETE FROM models", "DELETE FROM meta WHERE key = 'generation'"])
def test_a_catalog_without_its_first_facts_is_a_clear_error(tmp_path: Path, gone: str) -> None:
    store = prepare(tmp_path / "index")
    connection = sqlite3.connect(store.path / layout.CATALOG)
    with connection:
        connection.execute(gone)
    connection.close()
    with pytest.raises(IndexCorrupt, match=r"catalog of .* cannot be read"):
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
        assert writer.assets_by_hash(key("a"), "image")[0].root == str(linked)  # as the caller writes it
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
