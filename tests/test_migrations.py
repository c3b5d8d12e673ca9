"""Old formats open, newer ones are refused, and a step that fails leaves the index as it was."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from store_kit import (
    OTHER,
    add,
    content_of,
    flaws,
    key,
    make,
    other_vector,
    prepare,
    recut,
    ref,
    sql,
    stage,
    tokens_in,
    tokens_of,
    vector,
)

from mmsearch.retrieval.errors import IndexCorrupt, IndexLocked, IndexTooNew, IndexUnusable
from mmsearch.retrieval.store import LocalStore, Snapshot, layout, migrations
from mmsearch.retrieval.types import Root

SAMPLES = Path(__file__).parent / "samples"
NOW, NEXT = layout.FORMAT_VERSION, layout.FORMAT_VERSION + 1


def schema(index: Path) -> list[tuple[str, str]]:
    """Names and statements of all tables and indexes; white space and quotes mean nothing."""
    with sqlite3.connect(index / layout.CATALOG) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY name").fetchall()
    connection.close()
    return [(name, "".join(statement.replace('"', "").split())) for name, statement in rows]


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


CONTENT = {
    1: {
        "a.jpg": [(None, "image", vector(key("a")).tolist())],
        "a-again.jpg": [(None, "image", vector(key("a")).tolist())],
        "c.jpg": [(None, "image", vector(key("c")).tolist())],
        "notes.txt": [(None, "text", vector(key(text)).tolist()) for text in ("one", "two")],
    }
}
CONTENT[2] = {
    **CONTENT[1],
    "named.jpg": [
        (None, "image", vector(key("named")).tolist()),
        ("id=a%2Fb~2", "text", vector(key("six")).tolist()),
    ],
    "id=seven": [(None, "text", vector(key("seven")).tolist())],
}
CONTENT[3] = CONTENT[4] = CONTENT[2]
"""What the samples hold; see `prepare`, `enrich` and `enrich_with_tokens`."""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return prepare(tmp_path / "photos" / "index")


@pytest.fixture
def next_format(monkeypatch: pytest.MonkeyPatch) -> dict[int, migrations.Step]:
    """The software has moved on to the next format."""
    steps: dict[int, migrations.Step] = {**migrations.MIGRATIONS, NEXT: add_column}
    monkeypatch.setattr(layout, "FORMAT_VERSION", NEXT)
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
    assert flaws(store) == []
    assert content_of(store) == CONTENT[number]
    with store.snapshot() as snapshot:
        first = snapshot.search("image", vector(key("c"))[None], 1)[0][0]
        record = snapshot.items([first.item_id])[first.item_id]
        assert (record.meta, record.id, record.owner) == (None, None, None)
        assert record.path == str(photos / "c.jpg")  # the root moved along with the index inside it
        info = snapshot.info()
    assert (info.images, info.texts, info.segments) == {1: (3, 2, 3), 4: (4, 4, 7)}.get(number, (4, 4, 5))
    shown = ("a.jpg", "a-again.jpg", "c.jpg", "named.jpg")
    contents = dict(zip(shown, ("a", "a", "c", "named"), strict=True))
    tokens = {uri: tokens_of(key(contents[uri])).tolist() if number >= 4 else None for uri in shown[: info.images]}
    assert tokens_in(store) == tokens
    found = sql(store, "SELECT rowid FROM words WHERE words MATCH 'two OR again' ORDER BY rowid")
    texts = sql(
        store, "SELECT item_id FROM items JOIN assets USING (asset_id) WHERE text = 'two' OR uri = 'a-again.jpg'"
    )
    assert found == texts and len(found) == 2
    assert sql(store, "SELECT tag, relevance FROM tags") == ([("letter", 0.75)] if number >= 3 else [])
    with store.writer() as writer:
        writer.remove(str(photos), ["a.jpg"])
        writer.commit()
        writer.merge()
    assert flaws(store) == []
    assert tokens_in(store) == {uri: rows for uri, rows in tokens.items() if uri != "a.jpg"}
    make(tmp_path / "fresh")
    assert schema(store.path) == schema(tmp_path / "fresh")


def test_ids_that_were_used_up_stay_used_up(tmp_path: Path) -> None:
    """The sample has lost its newest rows since: no id may be given out twice, whatever a migration makes anew."""
    photos = tmp_path / "photos"
    shutil.copytree(SAMPLES / "format-1", photos / "index")
    connection = sqlite3.connect(photos / "index" / layout.CATALOG)
    with connection:
        connection.execute("UPDATE sqlite_sequence SET seq = seq + 100")
        used = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
    connection.close()
    assert set(used) == {"roots", "assets", "segments", "embeddings", "items"}
    store = LocalStore.open(photos / "index")
    assert dict(sql(store, "SELECT name, seq FROM sqlite_sequence")) == {**used, "models": 1}
    with store.writer() as writer:
        add(writer, photos, "new.jpg", "new")
        writer.root(Root(tmp_path / "elsewhere", 1))
        writer.commit()
    for table, id_ in (
        ("roots", "root_id"),
        ("assets", "asset_id"),
        ("segments", "segment_id"),
        ("embeddings", "embedding_id"),
        ("items", "item_id"),
    ):
        assert sql(store, f"SELECT MAX({id_}) FROM {table}") == [(used[table] + 1,)], table


def test_a_sidecar_of_format_1_keeps_its_picture(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(SAMPLES / "format-1", photos / "index")
    connection = sqlite3.connect(photos / "index" / layout.CATALOG)
    with connection:
        connection.execute("UPDATE assets SET owner_uri = 'c.jpg' WHERE uri = 'notes.txt'")
    connection.close()
    store = LocalStore.open(photos / "index")
    sidecar = ref(photos, "notes.txt", modality="text", owner="c.jpg")
    assert store.diff(Root(photos, 1), [sidecar]).unchanged == 1
    with store.writer() as writer:
        writer.move(str(photos), "c.jpg", ref(photos, "d.jpg"))
        writer.commit()
    with store.snapshot() as snapshot:
        assert {record.owner for record in snapshot.all_items() if record.modality == "text"} == {"d.jpg"}


def test_what_came_with_format_2_is_kept(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(SAMPLES / "format-2", photos / "index")
    store = LocalStore.open(photos / "index")
    with store.snapshot() as snapshot:
        roots = {root.kind: root for root in snapshot.roots()}
        assert (roots["folder"].path, roots["folder"].mounts, roots["folder"].whole) == (str(photos), ("usb",), True)
        captions = roots["manifest"]
        assert (captions.path, captions.columns) == (str(photos / "captions.csv"), '{"text": "caption"}')
        assert roots["rows"].path == "rows:"
        assert snapshot.removed(roots["folder"].root_id) == ["private"]
        records = {record.text: record for record in snapshot.all_items() if record.modality == "text"}
    row = records["six"]
    assert (row.id, row.meta, row.owner, row.path) == ("a/b", '{"by": "me"}', "named.jpg", str(photos / "named.jpg"))
    assert (records["seven"].id, records["seven"].path) == ("seven", None)
    hidden = [ref(photos, "private/d.jpg"), ref(photos, "private/e.jpg")]
    assert store.diff(Root(photos, 1), hidden).new == []
    with store.writer() as writer:
        model_id = writer.stage(**OTHER)
        assert list(writer.find("image", [key("a"), key("c")], model_id)) == [key("a")]
        with store.snapshot() as snapshot:
            assert stage(writer, snapshot) == model_id
        assert writer.switch(model_id, recut) == 0
        assert writer.remove(str(photos / "captions.csv"), ["id=a%2Fb~2"]) == 1
        writer.commit()
    assert flaws(store) == []
    images = {uri: items for uri, items in content_of(store).items() if items[0][1] == "image"}
    assert images == {  # the picture that only the row had named has gone with it
        uri: [(None, "image", other_vector(key(content)).tolist())]
        for uri, content in (("a.jpg", "a"), ("a-again.jpg", "a"), ("c.jpg", "c"))
    }


@pytest.mark.parametrize("opener", [LocalStore.open, Snapshot.open])
def test_an_old_format_is_migrated_when_it_is_opened(
    store: LocalStore, opener: type, next_format: dict[int, migrations.Step]
) -> None:
    layout.FORMAT_VERSION = NOW
    before = content_of(store)
    layout.FORMAT_VERSION = NEXT
    opened = opener(store.path)
    if isinstance(opened, Snapshot):
        opened.close()
    assert get_format(store.path) == NEXT
    assert "language" in dict(schema(store.path))["items"]
    assert content_of(store) == before
    LocalStore.open(store.path)  # the step is not run again


def test_a_step_that_fails_changes_nothing(store: LocalStore, next_format: dict[int, migrations.Step]) -> None:
    def fail(connection: sa.Connection) -> None:
        add_column(connection)
        raise RuntimeError("half-way")

    next_format[NEXT] = fail
    before = schema(store.path)
    with pytest.raises(RuntimeError, match="half-way"):
        LocalStore.open(store.path)
    assert schema(store.path) == before
    assert get_format(store.path) == NOW
    next_format[NEXT] = add_column
    LocalStore.open(store.path)
    assert get_format(store.path) == NEXT


@pytest.mark.parametrize("opener", [LocalStore.open, Snapshot.open])
def test_a_full_disk_is_a_clear_error(
    store: LocalStore, opener: type, next_format: dict[int, migrations.Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(connection: sa.Connection) -> None:
        add_column(connection)
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.exec_driver_sql("UPDATE items SET text = hex(zeroblob(100000))")

    next_format[NEXT] = fill
    with pytest.raises(IndexUnusable, match=f"to format {NEXT}: database or disk is full; it is as it was"):
        opener(store.path)
    assert get_format(store.path) == NOW
    monkeypatch.setattr(layout, "FORMAT_VERSION", NOW)
    assert flaws(store) == []


def test_a_migration_waits_for_no_writer(store: LocalStore, next_format: dict[int, migrations.Step]) -> None:
    with store.writer(), pytest.raises(IndexLocked):
        LocalStore.open(store.path)
    assert get_format(store.path) == NOW


def test_a_newer_format_is_refused_untouched(store: LocalStore) -> None:
    set_format(store.path, 99)
    before = (store.path / layout.CATALOG).read_bytes()
    for opener in (LocalStore.open, Snapshot.open, make):
        with pytest.raises(IndexTooNew, match=f"format 99 and this mmsearch reads up to {NOW}; upgrade"):
            opener(store.path)
    assert (store.path / layout.CATALOG).read_bytes() == before


def test_a_format_that_never_was_is_refused(store: LocalStore) -> None:
    set_format(store.path, 0)
    with pytest.raises(IndexCorrupt, match="format 0"):
        LocalStore.open(store.path)
