"""What a user takes out of an index stays out until it is taken back; a root can go altogether."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_kit import ROWS, add, add_listed, add_row, content_of, flaws, found, key, make, ref, sql

from mmsearch.retrieval.store import LocalStore, Writer
from mmsearch.retrieval.store.diff import is_below
from mmsearch.retrieval.types import Root

URIS = ["a", "a%25", "a%25/b", "a.", "a/b", "a/b/c", "a/bc", "a0", "a_", "ab", "b/a", "aXb", "a%2Fb"]
"""Neighbours in every order: `.` comes before `/`, `0` after it, and `%` and `_` are wildcards elsewhere."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path, photos: Path) -> LocalStore:
    store = make(tmp_path / "index")
    with store.writer() as writer:
        for uri in URIS:
            add(writer, photos, uri, uri)
        writer.scanned(Root(photos, 1))
        writer.commit()
    return store


def below(uri: str) -> list[str]:
    return [one for one in URIS if uri == "" or one == uri or one.startswith(f"{uri}/")]


@pytest.mark.parametrize("uri", [*URIS, "a/", "", "A", "%", "absent", "b"])
def test_what_is_taken_out_is_gone_with_all_below(store: LocalStore, photos: Path, uri: str) -> None:
    gone = below(uri)
    with store.writer() as writer:
        assert writer.take_out(str(photos), uri) == len(gone)
        assert sorted(content_of(store)) == sorted(URIS)  # until the commit
        writer.commit()
    left = sorted(set(URIS) - set(gone))
    assert sorted(content_of(store)) == left
    assert flaws(store) == []
    new = ["new", "a/new", "b/new"]
    diff = store.diff(Root(photos, 1), [ref(photos, one) for one in [*URIS, *new]])
    assert (diff.unchanged, diff.missing, diff.changed) == (len(left), [], [])
    assert [one.uri for one in diff.new] == [one for one in new if not is_below(one, {uri})]
    with store.snapshot() as snapshot:
        assert snapshot.removed(snapshot.roots()[0].root_id) == [uri]


@pytest.mark.parametrize(
    ("uri", "above", "expected"),
    [
        ("a", {"a"}, True),
        ("a/b", {"a"}, True),
        ("a/b/c", {"a/b"}, True),
        ("a/b", {"a/b/c"}, False),
        ("ab", {"a"}, False),
        ("a.", {"a"}, False),
        ("a%2Fb", {"a"}, False),
        ("b/a", {"a"}, False),
        ("a/b", {"a/"}, False),
        ("anything/at/all", {""}, True),
        ("a", set(), False),
    ],
)
def test_is_below(uri: str, above: set[str], expected: bool) -> None:
    assert is_below(uri, above) == expected


def test_what_is_taken_back_is_found_again(store: LocalStore, photos: Path) -> None:
    refs = [ref(photos, uri) for uri in URIS]
    with store.writer() as writer:
        assert writer.take_out(str(photos), "a/b") == 2
        assert writer.take_out(str(photos), "a") == 2
        assert writer.take_out(str(photos), "a") == 0  # again
        writer.commit()
        writer.take_back(str(photos), "a")
        writer.take_back(str(photos), "a_")  # was never out
        writer.commit()
        diff = store.diff(Root(photos, 1), refs)
        assert [one.uri for one in diff.new] == ["a", "a/bc"]  # a/b was taken out by itself
        writer.take_back(str(photos), "a/b")
        writer.commit()
    assert [one.uri for one in store.diff(Root(photos, 1), refs).new] == ["a", "a/b", "a/b/c", "a/bc"]


def test_what_is_taken_out_can_be_forgotten_before_the_commit(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        writer.take_out(str(photos), "a")
        writer.rollback()
        writer.commit()
        with pytest.raises(ValueError, match=r"register it with Writer\.root first"):
            writer.take_out(str(photos / "elsewhere"), "a")
    assert sorted(content_of(store)) == sorted(URIS)
    assert sql(store, "SELECT * FROM removed") == []


def test_a_rule_without_files_makes_no_generation(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        generation = writer.commit()
        assert writer.take_out(str(photos), "later") == 0
        assert writer.commit() == generation
    assert store.diff(Root(photos, 1), [ref(photos, "later"), ref(photos, "later/x")]).new == []


def test_a_root_is_forgotten_with_all_that_is_in_it(store: LocalStore, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with store.writer() as writer:
        add(writer, other, "kept", "kept")
        add(writer, other, "same", "a")  # the content of photos/a
        writer.take_out(str(photos), "ab")
        writer.commit()
        assert writer.forget_root(str(photos)) == len(URIS) - 1
        with pytest.raises(ValueError, match="unknown root"):
            writer.remove(str(photos), ["a"])
        writer.commit()
        assert sorted(content_of(store)) == ["kept", "same"]
        assert sql(store, "SELECT * FROM removed") == []
        assert [root.path for root in store.info().roots] == [str(other)]
        assert flaws(store) == []
        add(writer, photos, "a", "again")  # as another root, from scratch
        writer.commit()
        assert sql(store, "SELECT root_id FROM roots ORDER BY root_id") == [(2,), (3,)]
    assert found(store, "again", k=1)[0][0] == "a"
    assert not any(root.whole for root in store.info().roots)
    assert flaws(store) == []


def fill_with_rows(writer: Writer, photos: Path, manifest: Root) -> None:
    add_listed(writer, photos, "listed.jpg", "listed")
    add_row(writer, manifest, "id=1", "one", picture=(photos, "listed.jpg"))
    add_row(writer, manifest, "id=2", "two", picture=(photos, "a"))
    writer.commit()


def test_a_manifest_is_forgotten_with_the_pictures_that_only_it_named(store: LocalStore, photos: Path) -> None:
    manifest = Root(photos / "rows.csv", 1, kind="manifest")
    with store.writer() as writer:
        fill_with_rows(writer, photos, manifest)
        assert "listed.jpg" in content_of(store)
        assert writer.forget_root(str(manifest.path)) == 2
        writer.commit()
    assert sorted(content_of(store)) == sorted(URIS)
    assert flaws(store) == []


def test_rows_stay_when_the_root_of_their_pictures_is_forgotten(store: LocalStore, photos: Path) -> None:
    manifest = Root(photos / "rows.csv", 1, kind="manifest")
    with store.writer() as writer:
        fill_with_rows(writer, photos, manifest)
        add_row(writer, ROWS, "id=3", "three", picture=(photos, "a"))
        writer.forget_root(str(photos))
        writer.commit()
    with store.snapshot() as snapshot:
        records = [(record.text, record.path, record.uri, record.fragment) for record in snapshot.all_items()]
    assert records == [  # of what is left: the manifest; nothing on disk
        ("one", str(manifest.path), "rows.csv", "id=1"),
        ("two", str(manifest.path), "rows.csv", "id=2"),
        ("three", None, "id=3", None),
    ]
    assert flaws(store) == []


def test_the_root_of_a_program_can_be_emptied(store: LocalStore) -> None:
    with store.writer() as writer:
        add_row(writer, ROWS, "id=1", "one")
        add_row(writer, ROWS, "id=2", "two")
        writer.commit()
        assert writer.take_out(str(ROWS.path), "id=1") == 1
        assert writer.forget_root(str(ROWS.path)) == 1
        writer.commit()
        assert sorted(content_of(store)) == sorted(URIS)
        add_row(writer, ROWS, "id=1", "one")
        writer.commit()
    assert content_of(store)["id=1"][0][1] == "text"
    assert flaws(store) == []


def test_taking_out_reads_no_more_than_it_removes(store: LocalStore, photos: Path) -> None:
    """By the plans that SQLite makes: ranges of indexes, however large the root is."""
    import sqlalchemy as sa

    with store.writer() as writer:
        catalog = writer._catalog
        statements: list[tuple[str, object]] = []

        def note(connection: object, cursor: object, statement: str, parameters: object, *rest: object) -> None:
            statements.append((statement, parameters))

        sa.event.listen(catalog._engine, "before_cursor_execute", note)
        catalog.assets_below(1, "a/b")
        catalog.unlisted([(1, "a")])
        catalog.follow_picture((1, "a"), (1, "b"))
        sa.event.remove(catalog._engine, "before_cursor_execute", note)
        plans = [
            row[3]
            for statement, parameters in statements
            if statement.startswith(("SELECT", "UPDATE"))
            for row in catalog.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    assert len(plans) >= 5
    assert [plan for plan in plans if plan.startswith("SCAN") or plan.endswith("(root_id=?)")] == []


def test_the_content_of_what_was_taken_out_is_dead(store: LocalStore, photos: Path) -> None:
    with store.writer() as writer:
        writer.take_out(str(photos), "a/b")
        writer.commit()
        assert sql(store, "SELECT COUNT(*) FROM tombstones") == [(2,)]
        writer.merge(all_segments=True)
        assert writer.find("image", [key("a/b"), key("a")]) == {key("a"): 1}
    assert flaws(store) == []
