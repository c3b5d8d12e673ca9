"""Rows of manifests and of programs, from the file or the list to the hits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mmsearch
from mmsearch.indexers.pipeline import index_sources
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.probes import PROBES

Draw = Callable[..., Path]


class Counting(FakeEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.images = self.texts = 0

    def encode_images(self, arrays: Any) -> Any:
        self.images += len(arrays)
        return super().encode_images(arrays)

    def encode_texts(self, texts: Any) -> Any:
        self.texts += len(texts) if texts is not PROBES else 0
        return super().encode_texts(texts)


@pytest.fixture
def counting() -> Counting:
    return Counting()


@pytest.fixture
def index(tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> mmsearch.Index:
    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: counting)
    return mmsearch.open(tmp_path / "index", model="fake")


@pytest.fixture
def photos(tmp_path: Path, draw: Draw) -> Path:
    folder = tmp_path / "data" / "photos"
    for name in ("red", "green", "blue"):
        draw(folder / f"{name}.png", name)
    return folder


def manifest(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def counts(report: mmsearch.Report) -> dict[str, int]:
    names = ("added", "updated", "moved", "copied", "removed", "unchanged")
    return {name: value for name in names if (value := getattr(report, name))}


def listed(index: mmsearch.Index) -> list[tuple[str, str | None, str | None]]:
    """uri, fragment and text of every item."""
    return sorted(((item.uri, item.fragment, item.text) for item in index.items()), key=str)


def test_captions_lead_to_their_pictures(index: mmsearch.Index, photos: Path, counting: Counting) -> None:
    path = manifest(
        photos.parent / "captions.jsonl",
        {"id": 1, "image": "photos/red.png", "text": ["a cherry", "a ruby"], "stars": 5},
        {"id": 1, "image": "photos/red.png", "text": "a rose"},
        {"id": "x/y", "image": "photos/green.png", "text": "grass", "stars": 4},
        {"id": 3, "text": "no picture at all"},
        {"id": 4, "image": "photos/blue.png"},
    )
    report = index.add(path)
    assert counts(report) == {"added": 5}  # rows
    assert (report.items, report.failed) == (8, ())
    assert (counting.images, counting.texts) == (3, 5)
    counting.images = counting.texts = 0
    hit = index.search("ruby", modality="text", k=1)[0]
    assert (hit.path, hit.uri, hit.fragment, hit.text, hit.id) == (
        photos / "red.png",
        "red.png",
        "id=1&text=2",
        "a ruby",
        "1",
    )
    assert index.search("a rose", modality="text", k=1)[0].fragment == "id=1~2"
    assert index.search("grass", modality="text", k=1)[0].id == "x/y"
    alone = index.search("no picture at all", modality="text", k=1)[0]
    assert (alone.path, alone.uri, alone.fragment) == (path, "captions.jsonl", "id=3")
    assert index.search("green", k=1)[0].path == photos / "green.png"
    assert {item.id: item.meta for item in index.items() if item.meta} == {"1": {"stars": 5}, "x/y": {"stars": 4}}
    asked = counting.texts
    for again in (index.add(path), index.add()):
        assert counts(again) == {"unchanged": 5}
        assert again.items == 8
    assert (counting.images, counting.texts) == (0, asked)


def test_a_picture_of_a_folder_and_of_a_manifest_is_one_item(index: mmsearch.Index, photos: Path) -> None:
    path = manifest(photos.parent / "m.jsonl", {"image": "photos/red.png", "text": "a cherry"})
    together = index.add(photos, path)
    assert (counts(together), together.items) == ({"added": 4}, 4)
    assert index.add().items == 4
    assert index.remove(path) == 1
    assert len(listed(index)) == 3  # the folder still holds the picture


@pytest.mark.parametrize("above", [False, True])
def test_a_folder_that_comes_after_its_manifest(index: mmsearch.Index, photos: Path, above: bool) -> None:
    path = manifest(photos.parent / "m.jsonl", {"image": "photos/red.png", "text": "a cherry"})
    index.add(path)
    before = index.search("red", k=1)[0]
    report = index.add(photos.parent if above else photos)
    assert report.items == 4
    after = index.search("red", k=1)[0]
    assert (after.path, after.item_id) == (before.path, before.item_id)
    assert index.search("cherry", modality="text", k=1)[0].path == photos / "red.png"
    assert counts(index.add()) == {"unchanged": 4}
    assert index.search("cherry", modality="text", k=1)[0].path == photos / "red.png"


def test_rows_come_change_and_go(index: mmsearch.Index, photos: Path, counting: Counting) -> None:
    red = {"id": 1, "image": "photos/red.png", "text": "one", "n": 1}
    green = {"id": 2, "image": "photos/green.png", "text": "two", "n": 1}
    path = manifest(photos.parent / "m.jsonl", red, green)
    index.add(path)
    ids = {item.uri: item.item_id for item in index.items() if item.modality == "image"}
    manifest(path, green, {**red, "n": 2}, {"id": 3, "text": "three"})
    assert counts(index.add()) == {"added": 1, "updated": 1, "unchanged": 1}
    assert counting.texts == 3  # a new field needs no new embedding
    assert {item.id: item.meta.get("n") for item in index.items() if item.id} == {"1": 2, "2": 1, "3": None}
    manifest(path, red)
    assert counts(index.add()) == {"updated": 1, "removed": 2}
    assert listed(index) == [("red.png", "id=1", "one"), ("red.png", None, None)]  # the picture went with its row
    assert [item.item_id for item in index.items() if item.modality == "image"] == [ids["red.png"]]
    manifest(path, {"id": 9, "text": "three"})
    index.add()
    assert listed(index) == [("m.jsonl", "id=9", "three")]


def test_a_picture_that_changes_or_is_missing(
    index: mmsearch.Index, photos: Path, draw: Draw, counting: Counting
) -> None:
    path = manifest(
        photos.parent / "m.jsonl",
        {"id": 1, "image": "photos/red.png", "text": "one"},
        {"id": 2, "image": "photos/new.png", "text": "two"},
        {"id": 3, "image": "photos/notes.doc", "text": "three"},
    )
    first = index.add(path)
    assert counts(first) == {"added": 1}
    assert [(failure.path, failure.error) for failure in first.failed] == [
        (f"{path}#id=2", f"row 2: its image {photos / 'new.png'} does not exist"),
        (f"{path}#id=3", f"row 3: its image {photos / 'notes.doc'} is of no kind of picture that is known"),
    ]
    assert len(index.add().failed) == 2
    draw(photos / "new.png", "orange")
    draw(photos / "red.png", "yellow")
    report = index.add()
    assert counts(report) == {"added": 1, "updated": 1}
    assert index.search("orange", k=1)[0].path == photos / "new.png"
    assert index.search("yellow", k=1)[0].path == photos / "red.png"
    (photos / "red.png").unlink()
    report = index.add()
    assert len(report.failed) == 2
    assert index.search("yellow", k=1)[0].path == photos / "new.png"  # no hit without a file


@pytest.mark.parametrize("left", [None, ".Trash"])
@pytest.mark.parametrize("scanned", [False, True])
def test_pictures_of_rows_on_a_drive_that_is_not_mounted_stay(
    index: mmsearch.Index, photos: Path, tmp_path: Path, counting: Counting, scanned: bool, left: str | None
) -> None:
    """They are named by rows alone, or found by a scan too; the mount point is away, or looks empty."""
    path = manifest(tmp_path / "near" / "m.jsonl", {"id": 1, "image": str(photos / "red.png"), "text": "one"})
    index.add(path, *([photos] if scanned else []))
    before = listed(index)
    ids = {item.uri: item.item_id for item in index.items() if item.modality == "image"}
    photos.rename(tmp_path / "unplugged")
    if left:
        (photos / left).mkdir(parents=True)
    generation = 0
    for _ in range(3):
        report = index.add()
        assert (counts(report), len(report.failed)) == ({}, 1)
        assert listed(index) == before
        again, generation = generation, index.info().generation
    assert again == generation  # nothing is written for what is known
    shutil.rmtree(photos, ignore_errors=True)
    (tmp_path / "unplugged").rename(photos)
    counting.images = counting.texts = 0
    assert index.add().failed == ()
    assert listed(index) == before
    assert {item.uri: item.item_id for item in index.items() if item.modality == "image"} == ids
    assert (counting.images, counting.texts) == (0, 0)
    shutil.rmtree(photos)
    report = index.add(prune=True)
    assert [(item.fragment, item.text) for item in index.items()] == [("id=1", "one")]


def test_a_picture_of_a_row_that_may_not_be_looked_at_stays(
    index: mmsearch.Index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add(manifest(photos.parent / "m.jsonl", {"id": 1, "image": "photos/red.png", "text": "one"}))
    before, stat = listed(index), os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("red.png"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        assert [failure.error.rpartition(" cannot be ")[2] for failure in index.add().failed] == [
            "read: Permission denied"
        ]
    assert listed(index) == before
    assert index.add().failed == ()


def test_rows_exchange_their_pictures(
    index: mmsearch.Index, photos: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit between the two rows, as long manifests have it, sees a picture that no row names."""
    monkeypatch.setitem(index_sources.__kwdefaults__, "commit_seconds", 0.0)
    monkeypatch.setattr("mmsearch.indexers.ingest.Ingest._take", lambda self, reads: [settled(reads.popleft())])
    path = photos.parent / "m.jsonl"
    index.add(manifest(path, *({"id": n, "image": f"photos/{n}.png", "text": n} for n in ("red", "green"))))
    counting.images = 0
    manifest(
        path, *({"id": n, "image": f"photos/{of}.png", "text": n} for n, of in (("red", "green"), ("green", "red")))
    )
    assert counts(index.add()) == {"updated": 2}
    assert listed(index) == [
        ("green.png", "id=red", "red"),
        ("green.png", None, None),
        ("red.png", "id=green", "green"),
        ("red.png", None, None),
    ]
    assert counting.images == 0


def settled(read: tuple[Any, Any]) -> tuple[Any, Any]:
    return read[0], read[1].result()


def test_a_picture_whose_row_never_came_does_not_stay_for_ever(
    index: mmsearch.Index, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(index_sources.__kwdefaults__, "commit_seconds", 0.0)
    path = manifest(photos.parent / "m.jsonl", {"id": 1, "image": "photos/red.png", "text": "one"})
    encode_texts = FakeEncoder.encode_texts

    def fail_for_rows(self: FakeEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
        return encode_texts(self, texts) if texts is PROBES else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(FakeEncoder, "encode_texts", fail_for_rows)
        with pytest.raises(ZeroDivisionError):
            index.add(path)
    assert listed(index) == [("red.png", None, None)]
    manifest(path, {"id": 2, "text": "two"})
    index.add(path)
    assert listed(index) == [("m.jsonl", "id=2", "two")]


def test_a_damaged_picture_is_named(index: mmsearch.Index, photos: Path) -> None:
    (photos / "red.png").write_bytes(b"no picture")
    path = manifest(photos.parent / "m.jsonl", {"id": 1, "image": "photos/red.png", "text": "one"})
    report = index.add(path)
    assert [failure.path for failure in report.failed] == [str(photos / "red.png")]
    assert listed(index) == [("red.png", "id=1", "one")]


def test_a_manifest_that_went_bad_loses_nothing(index: mmsearch.Index, photos: Path) -> None:
    path = manifest(photos.parent / "m.jsonl", {"id": 1, "image": "photos/red.png", "text": "one"})
    index.add(photos, path)
    for content in (b"", b"\xff\xfe\xfd", b'{"other": 1}\n', b"not json\n"):
        path.write_bytes(content)
        report = index.add()
        assert report.items == 4, content
        assert [failure.path for failure in report.failed] == [str(path)], content
        with pytest.raises(mmsearch.MMSearchError):
            index.add(path)
    path.unlink()
    report = index.add()
    assert (report.items, report.kept) == (4, 1)
    assert index.add(prune=True).items == 3


def test_columns_are_remembered(index: mmsearch.Index, photos: Path) -> None:
    path = photos.parent / "m.csv"
    path.write_text("Bild,Titel\nphotos/red.png,eine Kirsche\n", "utf-8")
    with pytest.raises(UsageError, match=r"its columns are Bild, Titel\. Say which it is with --text-column"):
        index.add(path)
    assert counts(index.add(path, text_column="Titel", image_column="Bild")) == {"added": 1}
    path.write_text("Bild,Titel\nphotos/red.png,eine Kirsche\nphotos/green.png,Gras\n", "utf-8")
    assert counts(index.add()) == {"added": 1, "unchanged": 1}


def test_a_manifest_moves_with_the_index(
    tmp_path: Path, photos: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: counting)
    path = manifest(photos.parent / "m.jsonl", {"id": 1, "image": "photos/red.png", "text": "one"})
    mmsearch.open(photos.parent / ".index", model="fake").add(path, photos.parent)
    photos.parent.rename(tmp_path / "elsewhere")
    moved = mmsearch.open(tmp_path / "elsewhere" / ".index", model="fake")
    assert counts(moved.add()) == {"unchanged": 4}
    assert moved.search("one", modality="text", k=1)[0].path == tmp_path / "elsewhere" / "photos" / "red.png"


def test_pictures_all_over_the_disk_share_a_root(index: mmsearch.Index, tmp_path: Path, draw: Draw) -> None:
    rows = []
    for number in range(12):
        picture = draw(tmp_path / "far" / f"{number % 4}" / f"{number}.png", "red", size=(30 + number, 30))
        rows.append({"image": str(picture), "text": f"number {number}"})
    index.add(manifest(tmp_path / "near" / "m.jsonl", *rows))
    roots = [root.path for root in index.info().roots if root.kind == "folder"]
    assert roots == [str(tmp_path / "far")]


def test_items_of_a_program(index: mmsearch.Index, photos: Path, counting: Counting) -> None:
    picture = (photos / "blue.png").read_bytes()
    items = [
        mmsearch.Item(id="a", text="a cherry", image=photos / "red.png", meta={"n": 1}),
        {"id": "b", "text": ["grass", "leaves"], "n": 2},
        mmsearch.Item(id="c", image=picture, text="the sky"),
        mmsearch.Item(text="without an id"),
    ]
    report = index.add(items)
    assert (counts(report), report.items, report.failed) == ({"added": 4}, 7, ())
    blue = index.search("blue", k=1)[0]
    assert (blue.id, blue.path, blue.width, blue.uri) == ("c", None, 96, "id=c")
    assert index.search("the sky", modality="text", k=1)[0].id == "c"
    assert index.search("cherry", modality="text", k=1)[0].path == photos / "red.png"
    counting.images = counting.texts = 0
    assert counts(index.add(iter(items))) == {"unchanged": 4}
    assert (counting.images, counting.texts) == (0, 0)
    changed = index.add([mmsearch.Item(id="b", text="grass")])
    assert (counts(changed), changed.items) == ({"updated": 1}, 6)
    assert counts(index.add()) == {}  # what a program gave is not scanned, and stays
    assert index.info().items == 6
    assert index.remove(ids=["a", "c"]) == 2
    assert sorted(item.id or "" for item in index.items()) == ["", "b"]


def test_many_items_come_in_batches(index: mmsearch.Index, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.additions._ROWS_AT_A_TIME", 10)
    seen: list[int] = []

    def items() -> Iterator[dict[str, object]]:
        for number in range(35):
            seen.append(len(list(index.items())) if number == 25 else 0)
            yield {"id": number, "text": f"number {number}"}

    report = index.add(items())
    assert (counts(report), report.items) == ({"added": 35}, 35)
    assert seen[25] == 20  # two batches were committed before the third was asked for


def test_bad_items_are_failures_and_bad_arguments_are_errors(index: mmsearch.Index) -> None:
    report = index.add([{"id": 1, "text": "ok"}, {"id": 2}, {"id": 3, "text": "a\0b"}, {"id": 1, "text": "twice"}])
    assert counts(report) == {"added": 1}
    assert [failure.path for failure in report.failed] == ["rows:#id=1~2", "rows:#id=2", "rows:#id=3"]
    assert len(index.failures()) == 3
    for wrong in (5, None, b"bytes", {"text": "a dict"}):
        with pytest.raises(UsageError, match="neither a path nor a list of items"):
            index.add(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="item 1 is of type int"):
        index.add([5])  # type: ignore[list-item]


def test_a_long_text_of_a_row_is_cut(index: mmsearch.Index) -> None:
    text = "A sentence about something red. " * 40
    index.add([{"id": 1, "text": text}])
    items = list(index.items())
    assert len(items) > 3
    for item in items:
        assert item.fragment is not None and item.text is not None
        start, end = map(int, item.fragment.removeprefix("char=").split("-"))
        assert text[start:end] == item.text


def test_equal_captions_share_one_embedding(index: mmsearch.Index, counting: Counting) -> None:
    index.add([{"id": number, "text": "the same"} for number in range(50)])
    assert counting.texts == 1
    assert np.allclose([hit.score for hit in index.search("the same", modality="text", mode="dense", k=50)], 1.0)


def test_rows_given_again_after_a_lost_catalog_are_not_encoded_again(
    index: mmsearch.Index, photos: Path, counting: Counting
) -> None:
    rows = [{"id": 1, "text": "a cherry"}, {"id": 2, "text": "a lime"}]
    index.add(photos)
    index.add(rows)
    before = {item.id: item.item_id for item in index.items()}
    (index.path / "catalog.sqlite").unlink()
    assert index.doctor(repair=True, model="fake").sound
    counting.images = counting.texts = 0
    assert counts(index.add()) == {"copied": 3}  # finds the files, their content known; the rows still wait
    assert counts(index.add(rows)) == {"added": 2}
    assert (counting.images, counting.texts) == (0, 0)
    assert {item.id: item.item_id for item in index.items()} == before


def test_a_missing_path_of_a_list_is_a_failure(index: mmsearch.Index, photos: Path) -> None:
    report = index.add(photos / "red.png", photos / "none.png", skip_missing=True)
    assert counts(report) == {"added": 1}
    assert [failure.path for failure in report.failed] == [str(photos / "none.png")]


def test_a_captioned_picture_that_was_removed_stays_away(index: mmsearch.Index, photos: Path) -> None:
    path = manifest(
        photos.parent / "m.jsonl",
        {"id": 1, "image": "photos/red.png", "text": "one"},
        {"id": 2, "image": "photos/green.png", "text": "two"},
    )
    index.add(path)
    assert index.remove(photos / "red.png") == 2
    assert counts(index.add()) == {"unchanged": 1}
    assert {item.uri for item in index.items()} == {"green.png"}
