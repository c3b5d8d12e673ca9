"""A lost catalog: made anew from the segments and from what can be read of it, and nothing is encoded twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from store_kit import DIM, add, content_of, key, make, prepare, vector
from test_doctor import check_vectors, files_of, ids, kinds, looked_at, rows, sql

from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import index_sources
from mmsearch.indexers.rescan import rescan_sources
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import IndexCorrupt, IndexNotFound
from mmsearch.retrieval.probes import PROBES
from mmsearch.retrieval.store import LocalStore, layout
from mmsearch.retrieval.store.doctor import examine, repair
from mmsearch.retrieval.types import Report

Damage = Callable[[Path], None]


class Counting(FakeEncoder):
    """Counts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0

    def encode_images(self, arrays: list[NDArray[np.float32]]) -> NDArray[np.float32]:  # type: ignore[override]
        self.encoded += len(arrays)
        return super().encode_images(arrays)

    def encode_texts(self, texts: list[str]) -> NDArray[np.float32]:  # type: ignore[override]
        self.encoded += len(texts) if texts is not PROBES else 0
        return super().encode_texts(texts)


def index(store: LocalStore, encoder: FakeEncoder, *paths: Path) -> Report:
    """A run of `mmsearch index`, without PATH where none is given; a whole one lets go of what it did not find."""
    sources = open_sources(list(paths), index_path=store.path) if paths else rescan_sources(store)
    report = index_sources(sources, store, lambda: encoder)
    with store.writer() as writer:
        writer.forget_salvaged()
        writer.commit()
        writer.merge()
    return report


def answers(store: LocalStore) -> list[list[tuple[int, float]]]:
    """Item ids and scores of a few queries, in both spaces."""
    queries = FakeEncoder().encode_texts(["red", "a green circle", "roses", "天空", "black and yellow"])
    with store.snapshot() as snapshot:
        return [
            [(candidate.item_id, candidate.score) for candidate in found]
            for space in ("image", "text")
            for found in snapshot.search(space, queries, 100)  # type: ignore[arg-type]
        ]


def files(store: LocalStore) -> dict[str, int]:
    with store.snapshot() as snapshot:
        return {f"{one.root}/{one.uri}#{one.fragment}": one.item_id for one in snapshot.all_items()}


@pytest.fixture
def store(tmp_path: Path, pictures: Path) -> LocalStore:
    """An index of two folders, made in several runs, with a file of many chunks and one that was removed."""
    encoder = FakeEncoder()
    store = LocalStore.create(
        tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim, max_tokens=encoder.max_tokens
    )
    chunks = "\n\n".join(f"Paragraph {number} is about {number * number} red things." * 5 for number in range(40))
    (pictures / "long.txt").write_text(chunks, encoding="utf-8")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (pictures / "red-square.png").rename(elsewhere / "red-square.png")
    (pictures / "more" / "天空.txt").rename(tmp_path / "later")
    index(store, encoder, pictures)
    index(store, encoder, elsewhere)
    (pictures / "black-circle.gif").unlink()
    (tmp_path / "later").rename(elsewhere / "天空.txt")
    index_sources(rescan_sources(store), store, lambda: encoder)
    return store


def lose(index: Path) -> None:
    (index / layout.CATALOG).unlink()


def empty(index: Path) -> None:
    (index / layout.CATALOG).write_bytes(b"")


def garbage(index: Path) -> None:
    size = (index / layout.CATALOG).stat().st_size
    (index / layout.CATALOG).write_bytes(random.Random(1).randbytes(size))


def cut(index: Path) -> None:
    os.truncate(index / layout.CATALOG, 4096 * 3)


def lose_most(index: Path) -> None:
    """All pages from the third on are zeros."""
    path = index / layout.CATALOG
    path.write_bytes(path.read_bytes()[: 2 * 4096].ljust(path.stat().st_size, b"\0"))


@pytest.mark.parametrize("damage", [lose, empty, garbage, cut, lose_most])
def test_nothing_is_encoded_again(store: LocalStore, damage: Damage) -> None:
    before, found = answers(store), files(store)
    damage(store.path)
    diagnosis = looked_at(store.path)
    assert kinds(diagnosis)[0] in ("catalog-missing", "catalog-damaged") and not diagnosis.sound
    assert "48 vectors in 4 segments can be saved" in diagnosis.problems[0].message
    assert "`mmsearch doctor --repair`, then `mmsearch index`" in diagnosis.problems[0].remedy
    damaged = (store.path / layout.CATALOG).read_bytes() if (store.path / layout.CATALOG).exists() else None
    done = repair(store.path)
    assert done.sound and done.problems[0].repaired and "made anew" in done.problems[0].message
    assert done.problems[-1].kind == "salvaged-waiting"
    assert kinds(looked_at(store.path)) == ["salvaged-waiting"]
    if damaged is not None:
        assert (store.path / "damaged" / "catalog.sqlite-1").read_bytes() == damaged
    again = LocalStore.open(store.path)
    assert (again.model, again.identity, again.dim) == (store.model, store.identity, store.dim)
    assert again.max_tokens == store.max_tokens
    encoder = Counting()
    report = index(again, encoder)
    assert (encoder.encoded, report.failed) == (0, ())
    assert files(again) == found
    assert answers(again) == before
    assert looked_at(store.path).problems == ()
    assert index(again, encoder).added == 0


def test_new_items_get_new_ids(store: LocalStore, pictures: Path, draw: Callable[..., Path]) -> None:
    used = set(files(store).values())
    lose(store.path)
    repair(store.path)
    draw(pictures / "new.png", "purple")
    again = LocalStore.open(store.path)
    index(again, FakeEncoder())
    (new,) = set(files(again).values()) - used
    assert new > max(used) + 1_000_000


def test_what_can_be_read_stays(store: LocalStore) -> None:
    """An index of the catalog is unreadable, and a picture's hash was changed: the rest can be found at once."""
    before, found = answers(store), files(store)
    path = store.path / layout.CATALOG
    ((page,),) = rows(store.path, "SELECT rootpage FROM sqlite_master WHERE name = 'ix_assets_hash'")
    sql(store.path, "UPDATE assets SET content_hash = zeroblob(32) WHERE uri = 'green-circle.jpg'")
    content = bytearray(path.read_bytes())
    content[(page - 1) * 1024 : page * 1024] = bytes(1024)
    path.write_bytes(content)
    assert kinds(looked_at(store.path)) == ["catalog-damaged"]
    assert repair(store.path).sound
    again = LocalStore.open(store.path)
    lost = {name: id_ for name, id_ in found.items() if "green" in name}
    assert len(lost) == 1 and files(again) == {name: id_ for name, id_ in found.items() if name not in lost}
    encoder = Counting()
    index(again, encoder)
    assert encoder.encoded == 0
    assert files(again) == found
    assert answers(again) == before


def pages(catalog: Path) -> Iterator[bytes]:
    """A catalog with each of its pages lost in turn."""
    content = catalog.read_bytes()
    for start in range(0, len(content), 1024):
        yield content[:start] + b"\xa5" * 1024 + content[start + 1024 :]


def test_any_page_may_be_lost(store: LocalStore, tmp_path: Path) -> None:
    before, found = answers(store), files(store)
    for number, content in enumerate(pages(store.path / layout.CATALOG)):
        copy = tmp_path / "copies" / str(number)
        shutil.copytree(store.path, copy)
        (copy / layout.CATALOG).write_bytes(content)
        damaged = examine(copy)
        done = repair(copy)
        assert done.sound, (number, done)
        again = LocalStore.open(copy)
        assert files(again).items() <= found.items()
        encoder = Counting()
        index(again, encoder)
        assert encoder.encoded == 0, number
        assert files(again) == found, (number, damaged)
        assert answers(again) == before
        assert examine(copy).problems == ()


# What segments say


def rewrite_header(path: Path, change: Callable[[dict[str, object]], None]) -> None:
    content = path.read_bytes()
    header = json.loads(content[5:4096])
    change(header)
    path.write_bytes((b"MMSEG" + json.dumps(header).encode()).ljust(4095) + b"\n" + content[4096:])


def forget_names(index: Path) -> None:
    """Headers as format 1 has them."""
    for path in (index / "segments").iterdir():
        rewrite_header(path, lambda header: [header.pop(name, None) for name in ("model", "max_tokens", "roots")])


def test_the_model_must_be_named_where_nothing_names_it(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    lose(store.path)
    forget_names(store.path)
    before = files_of(store.path)
    with pytest.raises(IndexCorrupt, match=r"which model .* \(fake-1\); name it: `mmsearch doctor --repair --model"):
        repair(store.path)
    assert before.items() <= files_of(store.path).items() | {("lock", before["lock"])}
    assert repair(store.path, model="fake").sound
    again = LocalStore.open(store.path)
    assert (again.model, again.identity, again.dim) == ("fake", "fake-1", DIM)
    assert again.info().roots == ()


def test_the_bundled_model_names_itself(tmp_path: Path) -> None:
    from mmsearch.retrieval.encoders.starter import identity

    store = LocalStore.create(tmp_path / "index", model="starter", identity=identity(), dim=DIM)
    with store.writer() as writer:
        add(writer, tmp_path, "a.jpg", "a")
        writer.commit()
    lose(store.path)
    forget_names(store.path)
    repair(store.path)
    assert LocalStore.open(store.path).model == "starter"


def test_nothing_is_left(tmp_path: Path) -> None:
    store = make(tmp_path / "index")
    garbage(store.path)
    assert kinds(looked_at(store.path)) == ["catalog-damaged"]
    with pytest.raises(IndexCorrupt, match=r"nothing can be saved .* remove the folder and index again"):
        repair(store.path)
    lose(store.path)
    for action in (examine, repair):
        with pytest.raises(IndexNotFound):
            action(store.path)


def test_a_damaged_segment_of_a_lost_catalog(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    lose(store.path)
    os.truncate(store.path / "segments" / "image-000002.seg", 6000)
    diagnosis = looked_at(store.path)
    assert kinds(diagnosis) == ["catalog-missing", "segment-damaged"]
    assert repair(store.path).sound
    assert os.listdir(store.path / "damaged") == ["image-000002.seg"]
    assert kinds(looked_at(store.path)) == ["salvaged-waiting"]


def test_segments_that_were_merged_but_not_yet_removed(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    shutil.copytree(store.path / "segments", tmp_path / "old")
    with store.writer() as writer:
        assert writer.merge() == 2
    lose(store.path)
    for path in (tmp_path / "old").glob("image-*"):
        shutil.copy(path, store.path / "segments")
    assert repair(store.path).sound
    assert sorted(os.listdir(store.path / "segments")) == ["image-000004.seg", "text-000003.seg"]
    assert sorted(os.listdir(store.path / "damaged")) == ["image-000001.seg", "image-000002.seg"]


def test_the_model_that_is_only_being_changed_to_does_not_take_over(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    old_ids = ids(store)
    with store.writer() as writer:
        staged = writer.stage("other", "other-1", 4, 64)
        row = np.ones((1, 4), np.float32)
        writer.embed("image", [key("a")], row, precision="fp32", device="cpu", backend="fake", model_id=staged)
        writer.commit()
    lose(store.path)
    assert repair(store.path).sound
    again = LocalStore.open(store.path)
    assert (again.model, again.dim) == ("fake", DIM)
    assert sorted(kinds(looked_at(store.path))) == ["salvaged-waiting", "staged-model"]
    with again.writer() as writer:
        staged = writer.stage("other", "other-1", 4, 64)
        assert list(writer.find("image", [key("a"), key("c")], staged)) == [key("a")]
        add(writer, tmp_path, "a.jpg", "a")
        writer.commit()
    assert ids(again) == {"a.jpg": old_ids["a.jpg"]}


def test_roots_and_what_was_removed(tmp_path: Path, pictures: Path, draw: Callable[..., Path]) -> None:
    """A root that holds the index moves with it; a root of single files stays one."""
    encoder = FakeEncoder()
    place = pictures / ".index"
    store = LocalStore.create(place, model="fake", identity=encoder.identity, dim=encoder.dim)
    index(store, encoder, pictures)
    index(store, encoder, draw(tmp_path / "single" / "one.png", "cyan"))
    roots = [(root.path, root.whole, root.kind) for root in store.info().roots]
    lose(store.path)
    repair(store.path)
    again = LocalStore.open(store.path)
    assert [(root.path, root.whole, root.kind) for root in again.info().roots] == roots
    moved = tmp_path / "moved"
    pictures.rename(moved)
    again = LocalStore.open(moved / ".index")
    assert [root.path for root in again.info().roots] == [str(moved), str(tmp_path / "single")]
    counting = Counting()
    index(again, counting)
    assert counting.encoded == 0


# Ends in the middle


class Ended(BaseException):
    pass


@pytest.mark.parametrize("damage", [lose, garbage, lose_most, cut])
def test_a_salvage_may_end_anywhere(tmp_path: Path, damage: Damage) -> None:
    """Each step leaves on disk what another repair makes the same index of; so does one that ends with an error."""
    store = prepare(tmp_path / "index")
    with store.writer() as writer:
        add(writer, tmp_path, "d.jpg", "d")
        writer.commit()
    (store.path / "segments" / "image-000001.seg").write_bytes(b"damaged as well")
    damage(store.path)
    whole = tmp_path / "whole"
    shutil.copytree(store.path, whole)
    steps: list[str] = []

    def stop(name: str) -> None:
        steps.append(name)
        shutil.copytree(whole, tmp_path / f"killed-{len(steps) - 1}")

    assert repair(whole, steps=stop).sound
    expected = state(whole)
    assert {"salvage:fill", "salvage:rename", "salvage:tidy"} <= set(steps)
    for number, name in enumerate(steps):
        killed = tmp_path / f"killed-{number}"
        assert repair(killed).sound, name
        assert state(killed) == expected, name
        assert looked_at(killed).sound
        assert not [one for one in os.listdir(killed) if one.startswith((layout.NEW_CATALOG, layout.OLD_CATALOG))]
        failed = tmp_path / f"failed-{number}"
        shutil.copytree(store.path, failed)
        left = [number]

        def fail(_name: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise Ended

        with pytest.raises(Ended):
            repair(failed, steps=fail)
        assert repair(failed).sound, name
        assert state(failed) == expected, name


def state(index: Path) -> object:
    """What matters of an index."""
    store = LocalStore.open(index)
    waiting = rows(index, "SELECT content_key, item_id FROM salvaged JOIN embeddings USING (embedding_id) ORDER BY 1")
    return content_of(store), ids(store), waiting, sorted(os.listdir(index / "segments"))


def test_the_log_of_a_damaged_catalog_goes_with_it(tmp_path: Path) -> None:
    """A log beside the wrong catalog would be written into it."""
    store = prepare(tmp_path / "index")
    with store.writer() as writer:
        add(writer, tmp_path, "late.jpg", "late")
        writer.commit()
        shutil.copytree(store.path, tmp_path / "dead")
    dead = tmp_path / "dead"
    log = (dead / f"{layout.CATALOG}-wal").read_bytes()
    assert log
    content = bytearray((dead / layout.CATALOG).read_bytes())
    content[68:72] = bytes(4)  # no catalog of ours, by its first bytes
    (dead / layout.CATALOG).write_bytes(content)
    steps: list[str] = []

    def stop(name: str) -> None:
        steps.append(name)
        shutil.copytree(dead, tmp_path / f"killed-{len(steps) - 1}")

    assert repair(dead, steps=stop).sound
    assert (dead / "damaged" / "catalog.sqlite-1-wal").read_bytes() == log
    expected = state(dead)
    assert "late.jpg" in content_of(LocalStore.open(dead))
    for number, name in enumerate(steps):
        assert repair(tmp_path / f"killed-{number}").sound
        assert state(tmp_path / f"killed-{number}") == expected, name


def test_a_repair_in_place_may_end_anywhere(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    (store.path / "segments" / "image-000001.seg").write_bytes(b"damaged")
    sql(store.path, "DELETE FROM meta WHERE key = 'items.text'")
    steps: list[str] = []

    def stop(name: str) -> None:
        steps.append(name)
        shutil.copytree(store.path, tmp_path / f"killed-{len(steps) - 1}")

    assert repair(store.path, steps=stop).sound
    assert steps == ["repair:aside", "repair:catalog", "repair:commit", "repair:done", "repair:sweep"]
    for number, name in enumerate(steps):
        assert repair(tmp_path / f"killed-{number}").sound
        assert state(tmp_path / f"killed-{number}") == state(store.path), name
        assert os.listdir(tmp_path / f"killed-{number}" / "damaged") == ["image-000001.seg"]


# Twice


def test_what_waits_survives_a_second_loss(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    old_ids = ids(store)
    lose(store.path)
    repair(store.path)
    with LocalStore.open(store.path).writer() as writer:
        add(writer, tmp_path, "c.jpg", "c")
        writer.commit()
        writer.merge()  # copies of what waits have no item any more
    content = bytearray((store.path / layout.CATALOG).read_bytes())
    content[68:72] = bytes(4)
    (store.path / layout.CATALOG).write_bytes(content)
    repair(store.path)
    again = LocalStore.open(store.path)
    assert ids(again) == {"c.jpg": old_ids["c.jpg"]}
    with again.writer() as writer:
        add(writer, tmp_path, "a.jpg", "a")
        add(writer, tmp_path, "notes.txt", "one", "two", modality="text")
        writer.commit()
    assert ids(again) == {name: old_ids[name] for name in ("a.jpg", "c.jpg", "notes.txt")}
    check_vectors(again, {"one", "two"})
    assert vector(key("a")).tolist() == content_of(again)["a.jpg"][0][2]


def test_an_old_format_that_is_damaged(tmp_path: Path) -> None:
    """Its tables have other columns; its headers name neither model nor roots, but its catalog does."""
    samples = Path(__file__).parent / "samples"
    place = tmp_path / "photos" / "index"
    shutil.copytree(samples / "format-1", place)
    before = content_of(LocalStore.open(shutil.copytree(place, tmp_path / "photos" / "copy")))
    connection = sqlite3.connect(place / layout.CATALOG)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'tombstones'").fetchone()
    connection.close()
    content = bytearray((place / layout.CATALOG).read_bytes())
    content[(page - 1) * 4096 : page * 4096] = b"\xff" * 4096
    (place / layout.CATALOG).write_bytes(content)
    assert kinds(looked_at(place))[0] == "catalog-damaged"
    assert repair(place).sound
    again = LocalStore.open(place)
    assert (again.model, again.identity) == ("fake", "fake-1")
    assert content_of(again) == before
    assert [root.path for root in again.info().roots] == [str(tmp_path / "photos")]
