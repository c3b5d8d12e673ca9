"""Old formats open, newer ones are refused, and a step that fails leaves the index as it was."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_kit import content_of, key, make, prepare, vector

from mmsearch.retrieval.errors import IndexCorrupt, IndexLocked, IndexTooNew
from mmsearch.retrieval.store import LocalStore, Snapshot, layout, migrations

SAMPLES = Path(__file__).parent / "samples"


def schema(index: Path) -> list[tuple[str, str]]:
    with sqlite3.connect(index / layout.CATALOG) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name").fetchall()
    connection.close()
    return rows


def set_format(index: Path, number: int) -> None:
    with sqlite3.connect(index / layout.CATALOG) as connection:
        connection.execute(f"PRAGMA user_version={number}")
    connection.close()


def get_format(index: Path) -> int:
    with sqlite3.connect(index / layout.CATALOG) as connection:
        number = connection.execute("PRAGMA user_version").fetchone()[0]
    connection.close()
    return int(number)


def add_column(connection: sa.Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE items ADD COLUMN language TEXT")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return prepare(tmp_path / "photos" / "index")


@pytest.fixture
def next_format(monkeypatch: pytest.MonkeyPatch) -> dict[int, migrations.Step]:
    """The software has moved on to format 2."""
    steps: dict[int, migrations.Step] = {2: add_column}
    monkeypatch.setattr(layout, "FORMAT_VERSION", 2)
    monkeypatch.setattr(migrations, "MIGRATIONS", steps)
    return steps


def test_every_format_has_a_sample_and_a_step() -> None:
    formats = range(1, layout.FORMAT_VERSION + 1)
    assert sorted(migrations.MIGRATIONS) == list(formats)[1:]
    assert all((SAMPLES / f"format-{number}").is_dir() for number in formats)


@pytest.mark.parametrize("number", range(1, layout.FORMAT_VERSION + 1))
def test_a_kept_index_opens(tmp_path: Path, number: int) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(SAMPLES / f"format-{number}", photos / "index")
    store = LocalStore.open(photos / "index")
    assert (store.model, store.identity, store.dim) == ("fake", "fake-1", 8)
    assert store.max_tokens is None
    assert get_format(store.path) == layout.FORMAT_VERSION
    assert store.verify() == []
    assert content_of(store) == {
        "a.jpg": [(None, "image", vector(key("a")).tolist())],
        "a-again.jpg": [(None, "image", vector(key("a")).tolist())],
        "c.jpg": [(None, "image", vector(key("c")).tolist())],
        "notes.txt": [(None, "text", vector(key(text)).tolist()) for text in ("one", "two")],
    }
    with store.snapshot() as snapshot:
        first = snapshot.search("image", vector(key("c"))[None], 1)[0][0]
        record = snapshot.items([first.item_id])[first.item_id]
        assert record.path == str(photos / "c.jpg")  # the root moved along with the index inside it
        info = snapshot.info()
    assert (info.images, info.texts, info.segments) == (3, 2, 3)
    with store.writer() as writer:
        writer.remove(str(photos), ["a.jpg"])
        writer.commit()
        writer.merge()
    assert store.verify() == []
    make(tmp_path / "fresh")
    assert schema(store.path) == schema(tmp_path / "fresh")


@pytest.mark.parametrize("opener", [LocalStore.open, Snapshot.open])
def test_an_old_format_is_migrated_when_it_is_opened(
    store: LocalStore, opener: type, next_format: dict[int, migrations.Step]
) -> None:
    layout.FORMAT_VERSION = 1
    before = content_of(store)
    layout.FORMAT_VERSION = 2
    opened = opener(store.path)
    if isinstance(opened, Snapshot):
        opened.close()
    assert get_format(store.path) == 2
    assert "language" in dict(schema(store.path))["items"]
    assert content_of(store) == before
    LocalStore.open(store.path)  # the step is not run again


def test_a_step_that_fails_changes_nothing(store: LocalStore, next_format: dict[int, migrations.Step]) -> None:
    def fail(connection: sa.Connection) -> None:
        add_column(connection)
        raise RuntimeError("half-way")

    next_format[2] = fail
    before = schema(store.path)
    with pytest.raises(RuntimeError, match="half-way"):
        LocalStore.open(store.path)
    assert schema(store.path) == before
    assert get_format(store.path) == 1
    next_format[2] = add_column
    LocalStore.open(store.path)
    assert get_format(store.path) == 2


def test_a_migration_waits_for_no_writer(store: LocalStore, next_format: dict[int, migrations.Step]) -> None:
    with store.writer(), pytest.raises(IndexLocked):
        LocalStore.open(store.path)
    assert get_format(store.path) == 1


def test_a_newer_format_is_refused_untouched(store: LocalStore) -> None:
    set_format(store.path, 99)
    before = (store.path / layout.CATALOG).read_bytes()
    for opener in (LocalStore.open, Snapshot.open, make):
        with pytest.raises(IndexTooNew, match="format 99 and this mmsearch reads up to 1; upgrade"):
            opener(store.path)
    assert (store.path / layout.CATALOG).read_bytes() == before


def test_a_format_that_never_was_is_refused(store: LocalStore) -> None:
    set_format(store.path, 0)
    with pytest.raises(IndexCorrupt, match="format 0"):
        LocalStore.open(store.path)
