"""Rows of manifests and of programs: what they belong to, how they are named, and pictures that only they name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from store_kit import (
    ROWS,
    add,
    add_listed,
    add_row,
    content_of,
    flaws,
    key,
    listed_ref,
    make,
    ref,
    row_ref,
    sql,
)

from mmsearch.retrieval.store import LocalStore
from mmsearch.retrieval.types import AssetMetadata, Failure, ItemRef, Root


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@pytest.fixture
def captions(tmp_path: Path) -> Root:
    return Root(tmp_path / "lists" / "captions.csv", 1, kind="manifest")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return make(tmp_path / "index")


# What readers see


def test_a_row_is_shown_as_its_picture_its_manifest_or_nothing(store: LocalStore, photos: Path, captions: Root) -> None:
    with store.writer() as writer:
        add(writer, photos, "sub/a b.jpg", "a")
        add_row(writer, captions, "id=a%2Fb~2", "of a picture", picture=(photos, "sub/a%20b.jpg"), meta='{"x": 1}')
        add_row(writer, captions, "row=7", "of the manifest")
        add_row(writer, captions, "id=long", "piece 0", "piece 1", picture=(photos, "sub/a%20b.jpg"))
        add_row(writer, captions, "id=more", "piece 2", "piece 3")
        add_row(writer, ROWS, "id=%E7%8C%AB", "of a program")
        add_row(writer, ROWS, "id=text", "piece 4", "piece 5")
        add_row(writer, ROWS, "id=pictured", "of a program, of a picture", picture=(photos, "sub/a%20b.jpg"))
        writer.commit()
    manifest, picture = str(captions.path), str(photos / "sub/a b.jpg")
    with store.snapshot() as snapshot:
        records = {str(record.text): record for record in snapshot.all_items()}
    shown = {text: (one.root, one.uri, one.path, one.fragment, one.id) for text, one in records.items()}
    del shown["None"]
    assert shown == {
        "of a picture": (str(photos), "sub/a%20b.jpg", picture, "id=a%2Fb~2", "a/b"),
        "of the manifest": (manifest, "captions.csv", manifest, "row=7", None),
        "piece 0": (str(photos), "sub/a%20b.jpg", picture, "id=long&char=0", "long"),
        "piece 1": (str(photos), "sub/a%20b.jpg", picture, "id=long&char=1", "long"),
        "piece 2": (manifest, "captions.csv", manifest, "id=more&char=0", "more"),
        "piece 3": (manifest, "captions.csv", manifest, "id=more&char=1", "more"),
        "of a program": ("rows:", "id=%E7%8C%AB", None, None, "猫"),
        "piece 4": ("rows:", "id=text", None, "char=0", "text"),
        "piece 5": ("rows:", "id=text", None, "char=1", "text"),
        "of a program, of a picture": (str(photos), "sub/a%20b.jpg", picture, "id=pictured", "pictured"),
    }
    assert json.loads(records["of a picture"].meta or "") == {"x": 1}
    assert records["of a picture"].owner == "sub/a%20b.jpg"
    assert records["of the manifest"].meta is None


def test_a_manifest_beside_the_index_moves_with_it(tmp_path: Path) -> None:
    home = tmp_path / "drive"
    store = make(home / "photos" / "index")
    near = Root(home / "photos" / "rows.csv", 1, kind="manifest", columns='{"id": "key"}')
    above = Root(home / "rows.csv", 1, kind="manifest")
    beside = Root(home / "lists" / "rows.csv", 1, kind="manifest")  # not in a folder that the index is in
    with store.writer() as writer:
        for number, root in enumerate((near, above, beside)):
            add_row(writer, root, f"id={number}", str(number))
        writer.commit()
    stored = sql(store, "SELECT path, relative FROM roots ORDER BY root_id")
    assert stored[:2] == [(b"../rows.csv", 1), (b"../../rows.csv", 1)]
    assert stored[2] == (bytes(beside.path), 0)
    new = tmp_path / "new drive"
    home.rename(new)
    (new / "photos" / "rows.csv").write_text("")
    store = LocalStore.open(new / "photos" / "index")
    with store.snapshot() as snapshot:
        paths = {record.text: record.path for record in snapshot.all_items()}
        roots = {root.path: root for root in snapshot.info().roots}
    assert paths == {
        "0": str(new / "photos" / "rows.csv"),
        "1": str(new / "rows.csv"),
        "2": str(beside.path),
    }
    first = roots[str(new / "photos" / "rows.csv")]
    assert (first.kind, first.columns, first.items, first.present) == ("manifest", '{"id": "key"}', 1, True)
    assert not roots[str(new / "rows.csv")].present
    moved = replace(near, path=new / "photos" / "rows.csv")
    assert store.diff(moved, [row_ref(moved, "id=0")]).unchanged == 1


def test_the_rows_of_a_program_are_no_folder(store: LocalStore, tmp_path: Path) -> None:
    folder = Root(tmp_path / "rows:", 1)
    with store.writer() as writer:
        add_row(writer, ROWS, "id=1", "one")
        add(writer, folder.path, "1.jpg", "picture")
        writer.root(ROWS)
        writer.commit()
    info = store.info()
    assert [(root.path, root.kind, root.items, root.present) for root in info.roots] == [
        ("rows:", "rows", 1, True),
        (str(folder.path), "folder", 1, False),
    ]
    assert store.diff(ROWS, [row_ref(ROWS, "id=1")]).unchanged == 1


def test_columns_of_a_manifest_are_remembered(store: LocalStore, captions: Root) -> None:
    with store.writer() as writer:
        add_row(writer, captions, "id=1", "one")
        generation = writer.commit()
        writer.root(replace(captions, columns='{"text": "title"}'))
        assert writer.commit() == generation  # bookkeeping
    assert [root.columns for root in store.info().roots] == ['{"text": "title"}']


def test_all_items_pictures_and_texts_in_pages(
    store: LocalStore, photos: Path, captions: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmsearch.retrieval.store import reader

    with store.writer() as writer:
        for number in range(7):
            add(writer, photos, f"{number}.jpg", str(number))
        add_listed(writer, photos, "again.jpg", "3")
        add(writer, photos, "note.txt", "x", "y", modality="text", fragments=["char=0-1", "char=1-2"])
        for number in range(3):
            add_row(writer, captions, f"id={number}", f"row {number}", picture=(photos, "again.jpg"))
        writer.remove(str(photos), ["1.jpg", "5.jpg"])
        writer.commit()
    for page in (1, 2, 5, 1000):
        monkeypatch.setattr(reader, "_PAGE", page)
        with store.snapshot() as snapshot:
            everything = list(snapshot.all_items())
            assert [record.item_id for record in everything] == [1, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]
            assert everything == list(snapshot.items([record.item_id for record in everything]).values())
            assert list(snapshot.pictures()) == [
                (key(content), key(content), str(photos / name))
                for content, name in (*((one, f"{one}.jpg") for one in "02346"), ("3", "again.jpg"))
            ]
            texts = [("char=0-1", "x"), ("char=1-2", "y"), *((None, f"row {number}") for number in range(3))]
            assert list(snapshot.texts()) == texts


def test_what_failed_is_named_as_a_person_would(store: LocalStore, photos: Path, captions: Root) -> None:
    with store.writer() as writer:
        writer.root(Root(photos, 1))
        writer.root(captions)
        writer.root(ROWS)
        writer.fail(ref(photos, "bad%20one.jpg"), "no picture")
        writer.fail(row_ref(captions, "row=3"), "names no picture")
        writer.fail(row_ref(ROWS, "id=3"), "no text")
        writer.commit()
    failures = [
        Failure(str(photos / "bad one.jpg"), "no picture"),
        Failure(f"{captions.path}#row=3", "names no picture"),
        Failure("rows:#id=3", "no text"),
    ]
    with store.snapshot() as snapshot:
        assert snapshot.failures() == failures
        assert list(snapshot.info().failed) == failures


# Pictures that only rows name


def listed_index(store: LocalStore, photos: Path, captions: Root) -> None:
    """Two rows of one listed picture, one of another, and one of a picture that was named."""
    with store.writer() as writer:
        add_listed(writer, photos, "two.jpg", "2")
        add_listed(writer, photos, "one.jpg", "1")
        add(writer, photos, "named.jpg", "n")
        add_row(writer, captions, "id=1", "first", picture=(photos, "two.jpg"))
        add_row(writer, captions, "id=2", "second", picture=(photos, "two.jpg"))
        add_row(writer, captions, "id=3", "third", picture=(photos, "one.jpg"))
        add_row(writer, captions, "id=4", "fourth", picture=(photos, "named.jpg"))
        writer.commit()


def pictures_of(store: LocalStore) -> list[str]:
    with store.snapshot() as snapshot:
        return [Path(str(path)).name for _, _, path in snapshot.pictures()]


def test_a_listed_picture_leaves_with_its_last_row(store: LocalStore, photos: Path, captions: Root) -> None:
    listed_index(store, photos, captions)
    with store.writer() as writer:
        for gone, left in (
            (["id=1"], ["two.jpg", "one.jpg", "named.jpg"]),
            (["id=2"], ["one.jpg", "named.jpg"]),
            (["id=3", "id=4"], ["named.jpg"]),
        ):
            assert writer.remove(str(captions.path), gone) == len(gone)
            writer.commit()
            assert pictures_of(store) == left
            assert flaws(store) == []


def test_a_listed_picture_stays_while_a_row_of_the_same_commit_names_it(
    store: LocalStore, photos: Path, captions: Root
) -> None:
    listed_index(store, photos, captions)
    with store.writer() as writer:
        writer.remove(str(captions.path), ["id=3"])
        add_row(writer, ROWS, "id=new", "fifth", picture=(photos, "one.jpg"))
        writer.commit()
        assert "one.jpg" in pictures_of(store)
        writer.remove(str(ROWS.path), ["id=new"])
        writer.rollback()
        writer.commit()
        assert "one.jpg" in pictures_of(store)
        writer.take_out(str(ROWS.path), "id=new")
        writer.commit()
    assert pictures_of(store) == ["two.jpg", "named.jpg"]
    assert flaws(store) == []


@pytest.mark.parametrize("how", ["add", "touch", "fail", "move", "moved over"])
def test_a_row_that_names_another_picture_lets_its_own_go(
    store: LocalStore, photos: Path, captions: Root, how: str
) -> None:
    listed_index(store, photos, captions)
    other = (photos, "named.jpg")
    changed = row_ref(captions, "id=3", picture=other, stamp=(2, 2))
    with store.writer() as writer:
        if how == "add":
            add_row(writer, captions, "id=3", "third", picture=other, stamp=(2, 2))
        elif how == "touch":
            writer.touch(changed)
        elif how == "fail":
            writer.fail(changed, "no text")
        elif how == "move":
            writer.move(str(captions.path), "id=3", replace(changed, uri="id=30"))
        else:
            writer.move(str(captions.path), "id=4", changed)
        writer.commit()
    assert pictures_of(store) == ["two.jpg", "named.jpg"]
    assert flaws(store) == []


def test_a_listed_picture_that_is_named_by_itself_stays(store: LocalStore, photos: Path, captions: Root) -> None:
    listed_index(store, photos, captions)
    folder = Root(photos, 1)
    assert store.diff(folder, [listed_ref(photos, "one.jpg")]).unchanged == 1
    assert store.diff(folder, [ref(photos, "one.jpg")]).changed == [ref(photos, "one.jpg")]
    assert store.diff(folder, [listed_ref(photos, "named.jpg")]).unchanged == 1  # that is less, not more
    with store.writer() as writer:
        writer.touch(ref(photos, "one.jpg"))
        writer.touch(listed_ref(photos, "named.jpg"))
        writer.remove(str(captions.path), ["id=1", "id=2", "id=3", "id=4"])
        writer.commit()
    assert pictures_of(store) == ["one.jpg", "named.jpg"]
    assert store.diff(folder, [ref(photos, "one.jpg")]).unchanged == 1


def test_rows_follow_a_picture_that_moves(store: LocalStore, photos: Path, captions: Root, tmp_path: Path) -> None:
    listed_index(store, photos, captions)
    other = tmp_path / "other"
    with store.writer() as writer:
        writer.root(Root(other, 1))
        writer.move(str(photos), "two.jpg", listed_ref(photos, "renamed.jpg"))
        writer.move(str(photos), "named.jpg", ref(other, "named.jpg"))  # to another root
        writer.commit()
        with store.snapshot() as snapshot:
            texts = {record.text: record.path for record in snapshot.all_items() if record.text}
        assert texts == {
            "first": str(photos / "renamed.jpg"),
            "second": str(photos / "renamed.jpg"),
            "third": str(photos / "one.jpg"),
            "fourth": str(other / "named.jpg"),
        }
        # The manifest still says where they were.
        refs = [row_ref(captions, f"id={n}", picture=(photos, "two.jpg")) for n in (1, 2)]
        refs.append(row_ref(captions, "id=4", picture=(photos, "named.jpg")))
        assert store.diff(captions, refs).changed == refs
        writer.remove(str(captions.path), ["id=1", "id=2"])
        writer.commit()
    assert pictures_of(store) == ["one.jpg", "named.jpg"]
    assert flaws(store) == []


def test_a_picture_moves_and_loses_its_last_row_in_one_commit(store: LocalStore, photos: Path, captions: Root) -> None:
    listed_index(store, photos, captions)
    with store.writer() as writer:
        writer.remove(str(captions.path), ["id=3"])
        writer.move(str(photos), "one.jpg", listed_ref(photos, "renamed.jpg"))
        writer.move(str(photos), "two.jpg", listed_ref(photos, "also.jpg"))
        writer.remove(str(captions.path), ["id=1", "id=2"])
        writer.commit()
    assert pictures_of(store) == ["named.jpg"]
    assert flaws(store) == []


# Scans


def test_a_few_of_many_are_looked_up(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        for number in range(5):
            add(writer, photos, f"{number}.jpg", str(number))
        writer.commit()
        writer.take_out(str(photos), "4.jpg")
        writer.fail(ref(photos, "3.jpg"), "bad")
        writer.commit()
    uris = ("0.jpg", "1.jpg", "3.jpg", "4.jpg", "5.jpg", "0.jpg")
    refs = [ref(photos, uri, stamp=(1, 2) if uri == "1.jpg" else (1, 1)) for uri in uris]
    for given in (refs, iter(refs)):
        diff = store.diff(Root(photos, 1), given, partial=True)
        assert [one.uri for one in diff.new] == ["5.jpg"]
        assert [one.uri for one in diff.changed] == ["1.jpg"]
        assert [one.uri for one in diff.failed] == ["3.jpg"]
        assert (diff.unchanged, diff.missing, diff.had_items) == (1, [], True)
    assert store.diff(Root(photos, 1), [], partial=True).missing == []
    assert store.diff(Root(photos, 1), refs).missing == ["2.jpg"]


def test_the_root_of_an_owner_counts(store: LocalStore, photos: Path, captions: Root, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sidecar = ref(photos, "a.txt", modality="text", owner="a.jpg")
    row = row_ref(captions, "id=1", picture=(photos, "a.jpg"))
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        add(writer, other, "a.jpg", "other a")
        writer.add(sidecar, content_hash=key("t"), metadata=AssetMetadata(), items=[])
        add_row(writer, captions, "id=1", "one", picture=(photos, "a.jpg"))
        writer.commit()

    def changed(root: Root, one: ItemRef) -> bool:
        return store.diff(root, [one]).changed == [one]

    folder = Root(photos, 1)
    assert not changed(folder, sidecar)
    assert not changed(folder, replace(sidecar, owner_root=str(photos)))  # the same, said in full
    assert changed(folder, replace(sidecar, owner_root=str(other)))
    assert changed(folder, replace(sidecar, owner=None))
    assert not changed(captions, row)
    assert changed(captions, replace(row, owner_root=str(other)))
    assert changed(captions, replace(row, owner_root=str(tmp_path / "never seen")))
    assert changed(captions, replace(row, owner=None, owner_root=None))
    with store.writer() as writer:
        writer.move(str(photos), "a.jpg", ref(other, "a.jpg"))  # the sidecar follows by name, into another root
        writer.commit()
    assert changed(folder, sidecar)


def test_folders_on_other_drives_are_remembered(store: LocalStore, photos: Path) -> None:
    root = Root(photos, 1)
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.scanned(root)
        writer.mounted(root, ["nas", "usb/b"])
        generation = writer.commit()
        assert store.diff(root, []).mounts == ("nas", "usb/b")
        writer.mounted(root, [])
        assert writer.commit() == generation
    assert store.diff(root, []).mounts == ()
    assert store.diff(Root(photos / "sub", 1), []).mounts == ()


def test_rows_do_not_mix_with_the_files_of_their_folder(store: LocalStore, photos: Path) -> None:
    """A manifest is a root of its own, also where its folder is one."""
    manifest = Root(photos / "rows.csv", 1, kind="manifest")
    with store.writer() as writer:
        add(writer, photos, "id=1", "a picture of that name")
        add_row(writer, manifest, "id=1", "a row of that name")
        writer.commit()
        writer.remove(str(photos), ["id=1"])
        writer.commit()
    assert list(content_of(store)) == ["rows.csv"]
    assert store.diff(manifest, [row_ref(manifest, "id=1")]).unchanged == 1
