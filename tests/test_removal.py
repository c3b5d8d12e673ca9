"""What is taken out of an index stays out of it, until it is named again; no file is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import mmsearch
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import IndexNotFound, PathNotFound, UsageError

Draw = Callable[..., Path]


@pytest.fixture
def index(tmp_path: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> mmsearch.Index:
    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: encoder)
    return mmsearch.open(tmp_path / "index", model="fake")


@pytest.fixture
def photos(tmp_path: Path, draw: Draw) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(("a.png", "b.png", "in/c.png", "in/deep/d.png", "in_e.png", "in%.png", "in0.png")):
        draw(folder / name, "red", size=(40 + number, 40))
    return folder


def names(index: mmsearch.Index, folder: Path) -> list[str]:
    return sorted(str(item.path.relative_to(folder)) for item in index.items() if item.path is not None)


def test_a_folder_stays_out_until_it_is_named(index: mmsearch.Index, photos: Path) -> None:
    index.add(photos)
    assert index.remove(photos / "in") == 2
    left = ["a.png", "b.png", "in%.png", "in0.png", "in_e.png"]
    assert names(index, photos) == left
    for again in (index.add(photos), index.add(), index.add(photos.parent)):
        assert (again.added, again.removed) == (0, 0)
        assert names(index, photos) == left
    assert (photos / "in" / "deep" / "d.png").exists()
    with pytest.raises(UsageError, match=r"photos/in, which was taken out of the index; name that folder"):
        index.add(photos / "in" / "deep")
    assert index.add(photos / "in").added == 2
    assert index.add(photos).unchanged == 7


def test_a_file_stays_out_until_it_is_named(index: mmsearch.Index, photos: Path, draw: Draw) -> None:
    index.add(photos)
    assert index.remove(photos / "in_e.png") == 1
    draw(photos / "in_e.png", "blue")  # changed: still out
    assert index.add().unchanged == 6
    assert index.add(photos / "in_e.png").added == 1
    assert index.add().unchanged == 7


def test_a_file_that_was_taken_out_before_its_folder(index: mmsearch.Index, photos: Path) -> None:
    index.add(photos)
    inner = photos / "in" / "c.png"
    assert (index.remove(inner), index.remove(photos / "in")) == (1, 1)
    with pytest.raises(UsageError, match="photos/in, which was taken out"):
        index.add(inner)
    assert index.add(photos / "in").added == 1  # c.png was taken out by itself
    assert index.add(inner).added == 1


def test_a_folder_and_a_file_in_it_are_taken_back_together(index: mmsearch.Index, photos: Path) -> None:
    index.add(photos)
    index.remove(photos / "in" / "c.png", photos / "in")
    assert index.add(photos / "in" / "c.png", photos / "in").added == 2


def test_a_folder_that_was_taken_out_is_named_as_it_is_written(index: mmsearch.Index, photos: Path) -> None:
    folder = photos / "my photos"
    (photos / "in").rename(folder)
    index.add(photos)
    index.remove(folder)
    with pytest.raises(UsageError, match="photos/my photos, which was taken out"):
        index.add(folder / "c.png")


def test_a_file_that_is_gone_from_the_disk_too(index: mmsearch.Index, photos: Path) -> None:
    index.add(photos)
    (photos / "a.png").unlink()
    assert index.remove(photos / "a.png") == 1
    with pytest.raises(PathNotFound, match="nothing in the index, or on disk, at"):
        index.remove(photos / "b.png", photos / "never.png")
    assert "b.png" in names(index, photos)  # nothing was removed by the call that failed


def test_a_root_is_forgotten(index: mmsearch.Index, photos: Path, tmp_path: Path, draw: Draw) -> None:
    index.add(photos)
    index.add(draw(tmp_path / "other" / "x.png", "blue").parent)
    assert index.remove(photos) == 7
    assert [root.path for root in index.info().roots] == [str(tmp_path / "other")]
    assert index.add().unchanged == 1
    assert index.add(photos).added == 7
    assert index.remove(tmp_path) == 8  # everything below
    assert index.info().roots == ()
    assert index.info().items == 0


def test_a_root_inside_another_stays_out_of_both(index: mmsearch.Index, photos: Path) -> None:
    index.add(photos / "in")
    index.add(photos)
    assert len(index.info().roots) == 2
    assert index.remove(photos / "in") == 2
    index.add(photos)
    index.add()
    assert [name for name in names(index, photos) if name.startswith("in/")] == []


def test_a_copy_of_what_was_removed_is_found(index: mmsearch.Index, photos: Path) -> None:
    (photos / "copy.png").write_bytes((photos / "a.png").read_bytes())
    index.add(photos)
    before = {str(item.uri): item.item_id for item in index.items()}
    assert index.remove(photos / "a.png") == 1
    hits = index.search(image=photos / "a.png", k=1, include_self=True)
    assert [(hit.uri, hit.item_id) for hit in hits] == [("copy.png", before["copy.png"])]
    assert hits[0].score == pytest.approx(1.0)


def test_a_sidecar_goes_with_its_picture(index: mmsearch.Index, photos: Path) -> None:
    (photos / "a.txt").write_text("A red square.", "utf-8")
    index.add(photos)
    assert index.remove(photos / "a.png") == 2
    assert index.add().added == 0
    assert index.add(photos / "a.png").items == 7
    assert index.add().items == 8


def test_nothing_to_remove_from(index: mmsearch.Index, photos: Path) -> None:
    with pytest.raises(IndexNotFound):
        index.remove(photos)
    index.add(photos)
    with pytest.raises(UsageError, match="empty"):
        index.remove("")


def test_through_a_link(index: mmsearch.Index, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photos)
    index.add(photos)
    assert index.remove(tmp_path / "link" / "in") == 2
    assert index.add(tmp_path / "link" / "in").added == 2
