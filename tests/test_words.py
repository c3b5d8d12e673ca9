"""The words that lexical search looks in are always those of the items, whatever was done to them; and tags."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kit import ROWS, add, add_listed, add_row, flaws, make, prepare, ref, reindex, sql

from mmsearch.retrieval.store import LocalStore, Writer, layout
from mmsearch.retrieval.store.doctor import examine, repair
from mmsearch.retrieval.store.words import refill_words
from mmsearch.retrieval.types import Root

Words = list[tuple[int, str | None, str | None, str | None]]

NAMES = ("a.jpg", "b.jpg", "Summer/IMG_07beach.jpg", "%E5%A4%A7%E8%8A%B1%E7%8C%AB.jpg")
TEXTS = ("a red dog", "大花猫 in the sun", "Straße", "a red dog again")
TAGS = ("cat", "Dog", "红色", "two words")


def words(store: LocalStore) -> Words:
    """What the table holds, once FTS5 has said that it is sound."""
    sql(store, "INSERT INTO words (words) VALUES ('integrity-check')")
    return sql(store, "SELECT rowid, text, name, tags FROM words ORDER BY rowid")


def made_anew(store: LocalStore) -> Words:
    """What the table would hold if it were filled of the items as they are now; leaves it as it is."""
    connection = sqlite3.connect(store.path / layout.CATALOG, isolation_level=None)
    try:
        connection.execute("BEGIN")
        refill_words(connection)
        return connection.execute("SELECT rowid, text, name, tags FROM words ORDER BY rowid").fetchall()
    finally:
        connection.rollback()
        connection.close()


def asset_ids(store: LocalStore) -> list[int]:
    return [id_ for (id_,) in sql(store, "SELECT asset_id FROM assets ORDER BY asset_id")]


def tags_of(store: LocalStore) -> dict[str, tuple[str, ...]]:
    with store.snapshot() as snapshot:
        ids = [record.item_id for record in snapshot.all_items()]
        uris = {id_: record.uri for id_, record in snapshot.items(ids).items()}
        return {uris[id_]: tags for id_, tags in snapshot.tags(ids).items()}


def tag(store: LocalStore, uri: str, **tags: float) -> None:
    ((asset_id,),) = sql(store, "SELECT asset_id FROM assets WHERE uri = ?", uri)
    with store.writer() as writer:
        writer.tag({asset_id: tags})
        writer.commit()


# Any sequence of changes

_NAME, _TEXT = st.sampled_from(NAMES), st.sampled_from(TEXTS)
_CAPTION = st.sampled_from(("id=1", "id=2"))
CHANGES = st.one_of(
    st.tuples(st.just("picture"), _NAME, _TEXT),
    st.tuples(st.just("text"), _NAME, st.lists(_TEXT, min_size=1, max_size=2, unique=True)),
    st.tuples(st.just("caption"), _CAPTION, _TEXT, st.sampled_from((None, *NAMES))),
    st.tuples(st.just("row"), _CAPTION, _TEXT),
    st.tuples(st.just("move"), _NAME, _NAME),
    st.tuples(st.just("remove"), _NAME),
    st.tuples(st.just("take out"), st.sampled_from(("Summer", "a.jpg"))),
    st.tuples(st.just("tag"), st.integers(0, 5), st.dictionaries(st.sampled_from(TAGS), st.just(0.5), max_size=3)),
    st.tuples(st.just("fail"), _NAME),
    st.tuples(st.just("reindex")),
    st.tuples(st.just("commit")),
    st.tuples(st.just("rollback")),
)


def _change(store: LocalStore, writer: Writer, root: Path, change: tuple[object, ...]) -> None:
    manifest = Root(root / "captions.csv", 1, kind="manifest")
    match change:
        case ("picture", str(uri), str(content)):
            add(writer, root, uri, content, stamp=(len(content), 1))
        case ("text", str(uri), list(contents)):
            add(writer, root, f"{uri}.txt", *contents, modality="text")
        case ("caption", str(uri), str(text), picture):
            if picture is not None:
                add_listed(writer, root, f"listed-{picture}", str(picture))
            add_row(writer, manifest, uri, text, picture=None if picture is None else (root, f"listed-{picture}"))
        case ("row", str(uri), str(text)):
            add_row(writer, ROWS, uri, text)
        case ("move", str(old), str(new)):
            try:
                writer.move(str(root), old, ref(root, new))
            except KeyError:
                pass
        case ("remove", str(uri)):
            writer.remove(str(root), [uri, f"{uri}.txt"])
        case ("take out", str(uri)):
            writer.take_out(str(root), uri)
        case ("tag", int(number), dict(tags)):
            ids = asset_ids(store)
            if ids:
                writer.tag({ids[number % len(ids)]: tags})
        case ("fail", str(uri)):
            writer.fail(ref(root, uri), "cannot be read")
        case ("reindex",):
            writer.commit()
            if writer.models()[writer.model_id].identity == "fake-1":
                reindex(store, writer)
        case ("commit",):
            writer.commit()
        case ("rollback",):
            writer.rollback()
            writer.root(Root(root, 1))
        case _:
            raise AssertionError(change)


@settings(max_examples=60, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=25))
def test_the_words_are_those_of_the_items(changes: list[tuple[object, ...]]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        store = make(root / "index")
        with store.writer() as writer:
            writer.root(Root(root, 1))
            for change in changes:
                _change(store, writer, root, change)
            writer.commit()
        assert words(store) == made_anew(store)
        assert [row[0] for row in words(store)] == [
            id_ for (id_,) in sql(store, "SELECT item_id FROM items ORDER BY 1")
        ]
        assert flaws(store) == []
        assert "words" not in {problem.kind for problem in examine(store.path).problems}


# What is written


def test_names_of_files_texts_and_tags(tmp_path: Path) -> None:
    store = make(tmp_path / "index")
    manifest = Root(tmp_path / "captions.csv", 1, kind="manifest")
    with store.writer() as writer:
        add(writer, tmp_path, "Summer/IMG_07beach.jpg", "a")
        add(writer, tmp_path, "notes.txt", "大花猫", modality="text")
        add_row(writer, manifest, "id=secret", "Straße", picture=(tmp_path, "Summer/IMG_07beach.jpg"))
        writer.commit()
        writer.tag({1: {"red": 0.9, "大花": 0.8}})
        writer.commit()
    picture, note, row = words(store)
    assert picture[1] is None
    assert set((picture[2] or "").replace("/", " ").replace("_", " ").replace(".", " ").split()) == {
        *("summer", "img", "07beach", "07", "beach", "jpg")
    }
    assert set((picture[3] or "").split()) == {"red", "大花", "花"}
    assert (note[1] or "").split() == ["大花", "花猫", "猫"]
    assert row[1:] == ("strasse", None, None), "the id of a row is no name"


# Tags


def test_a_moved_file_keeps_its_tags(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    tag(store, "a.jpg", cat=0.9)
    with store.writer() as writer:
        writer.move(str(tmp_path), "a.jpg", ref(tmp_path, "elsewhere/a.jpg"))
        writer.commit()
    assert tags_of(store) == {"elsewhere/a.jpg": ("cat",)}
    assert words(store) == made_anew(store)


def test_new_content_has_no_tags_and_old_content_keeps_them(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    for uri in ("a.jpg", "c.jpg"):
        tag(store, uri, cat=0.9)
    with store.writer() as writer:
        add(writer, tmp_path, "a.jpg", "something else", stamp=(2, 2))
        writer.touch(ref(tmp_path, "c.jpg", stamp=(5, 5)))
        writer.fail(ref(tmp_path, "c.jpg", stamp=(6, 6)), "cannot be read")
        writer.commit()
    assert tags_of(store) == {"c.jpg": ("cat",)}


def test_the_tags_of_a_removed_file_leave(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    tag(store, "a.jpg", cat=0.9)
    with store.writer() as writer:
        writer.remove(str(tmp_path), ["a.jpg"])
        writer.commit()
    assert sql(store, "SELECT * FROM tags") == []
    assert sql(store, "SELECT rowid FROM words WHERE words MATCH 'cat'") == []


def test_another_model_keeps_tags(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    tag(store, "a.jpg", cat=0.9)
    tag(store, "notes.txt", cat=0.9)
    with store.writer() as writer:
        reindex(store, writer)
    assert tags_of(store) == {"a.jpg": ("cat",), "notes.txt": ("cat",)}
    assert words(store) == made_anew(store)


def test_setting_tags(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    with store.writer() as writer:
        generation = writer.commit()
        assert writer.tag({1: {"cat": 0.5, "CAT": 0.75, "Dog": 0.25}, 3: {}, 999: {"cat": 1.0}}) == 1
        assert writer.commit() == generation + 1
        assert writer.tag({1: {"cat": 0.5, "CAT": 0.75, "Dog": 0.25}}) == 0
        assert writer.commit() == generation + 1, "nothing has changed"
    assert sql(store, "SELECT * FROM tags ORDER BY tag") == [(1, "CAT", 0.75), (1, "Dog", 0.25)]
    with store.writer() as writer:
        assert writer.tag({1: {"half\udcff": 0.5, "nul\0": 0.5, "new\nline": 0.5, 'quo"te': 0.5}}) == 1
        writer.commit()
    assert tags_of(store) == {"a.jpg": ("half\\udcff", "new\nline", "nul\0", 'quo"te')}
    assert words(store) == made_anew(store)
    for word in ("half", "nul", "new", "line", "quo", "te"):
        assert sql(store, "SELECT rowid FROM words WHERE words MATCH ?", word) == [(1,)], word
    with store.writer() as writer:
        assert writer.tag({1: {}}) == 1
        writer.commit()
    assert tags_of(store) == {}
    assert words(store) == made_anew(store)


# Damage


@contextmanager
def damaging(store: LocalStore) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(store.path / layout.CATALOG)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def _flip(connection: sqlite3.Connection) -> None:
    """A bit of a leaf of the inverted index."""
    number, block = connection.execute("SELECT id, block FROM words_data ORDER BY id DESC LIMIT 1").fetchone()
    changed = bytearray(block)
    changed[len(changed) // 2] ^= 1
    connection.execute("UPDATE words_data SET block = ? WHERE id = ?", (bytes(changed), number))


def _run(statement: str) -> Callable[[sqlite3.Connection], None]:
    def run(connection: sqlite3.Connection) -> None:
        assert connection.execute(statement).rowcount

    return run


@pytest.mark.parametrize(
    "damage",
    [
        _run("DELETE FROM words WHERE rowid = 1"),
        _run("INSERT INTO words (rowid, text) VALUES (999, 'of nothing')"),
        _run("UPDATE words SET name = 'another' WHERE rowid = 1"),
        _run("UPDATE words SET tags = NULL WHERE rowid = 1"),
        _run("DELETE FROM words_data WHERE id > 10"),
        _run("DELETE FROM words_docsize WHERE id = 1"),
        _run("DELETE FROM words_content WHERE id = 1"),
        _flip,
    ],
)
def test_damaged_words_are_found_and_made_anew(tmp_path: Path, damage: Callable[[sqlite3.Connection], None]) -> None:
    store = prepare(tmp_path / "index")
    tag(store, "a.jpg", cat=0.9)
    before = words(store)
    with damaging(store) as connection:
        damage(connection)
    catalog = (store.path / layout.CATALOG).read_bytes()
    diagnosis = examine(store.path)
    assert [problem.kind for problem in diagnosis.problems] == ["words"]
    assert (store.path / layout.CATALOG).read_bytes() == catalog, "looking changes nothing"
    assert repair(store.path).sound
    assert words(store) == before
    assert examine(store.path).problems == ()


def test_salvage_keeps_tags_and_makes_the_words_anew(tmp_path: Path) -> None:
    store = prepare(tmp_path / "index")
    tag(store, "a.jpg", cat=0.9)
    before = words(store)
    with damaging(store) as connection:
        connection.execute("UPDATE embeddings SET segment_id = 2 WHERE embedding_id = 1")
    assert "segment-ids" in {problem.kind for problem in examine(store.path).problems}
    assert repair(store.path).sound
    assert tags_of(store) == {"a.jpg": ("cat",)}
    assert words(store) == made_anew(store) == before
