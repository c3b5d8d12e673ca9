"""Reading one generation: exact search, while others write, with little imported."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from store_kit import DIM, PRECISION, add, embed, found, key, make, prepare, queries, ref, segment_files, vector

from mmsearch.retrieval.errors import IndexNotFound, UsageError
from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot, layout, reader
from mmsearch.retrieval.store.segments import Segment
from mmsearch.retrieval.types import AssetMetadata, Root, Stamp


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return make(tmp_path / "index")


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
        assert writer.assets_by_hash(key("file"), "text")[0].metadata == metadata
        assert writer.assets_by_hash(key("file"), "text")[0].stamp == Stamp(2**40, 2**62)
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


def parameters_of(statement: str) -> list[str | int]:
    values: list[str | int] = ["[]"] * statement.count("?")
    return [*values[:-1], 1] if statement.endswith("LIMIT ?") else values


def test_every_statement_of_the_reader_fits_the_schema(store: LocalStore) -> None:
    connection = reader.connect(store.path)
    try:
        for name, statement in reader.SQL.items():
            parameters = parameters_of(statement)
            assert connection.execute(f"EXPLAIN {statement}", parameters).fetchall(), name
            connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    "name",
    ["items_of_embeddings", "embeddings_of_items", "items", "items_of_hash", "assets", "assets_at", "removed"],
)
def test_no_statement_of_a_query_reads_a_whole_table(store: LocalStore, name: str) -> None:
    connection = reader.connect(store.path)
    try:
        statement = reader.SQL[name]
        plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters_of(statement)).fetchall()
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
        "heavy.add('numpy.typing')  # costs as much as a search\n"
        "sys.stdout.write(','.join(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
