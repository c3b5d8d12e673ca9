"""Embeddings out of a lost catalog wait for their content, and give it back the item ids that it had."""

from __future__ import annotations

from pathlib import Path

import pytest
from store_kit import add, content_of, flaws, found, key, prepare, reindex, segment_files, sql

from mmsearch.retrieval.store import LocalStore
from mmsearch.retrieval.store.segments import Segment


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """What is left of the index of `prepare`: the vectors, no file and no item."""
    store = prepare(tmp_path / "index")
    sql(
        store,
        "INSERT INTO salvaged SELECT embedding_id, COALESCE(MIN(item_id), 0) FROM embeddings"
        " LEFT JOIN items USING (embedding_id) GROUP BY embedding_id",
    )
    for table in ("items", "assets", "tombstones", "words"):
        sql(store, f"DELETE FROM {table}")
    sql(store, "DELETE FROM meta WHERE key LIKE 'items.%'")
    assert flaws(store) == []
    assert content_of(store) == {}
    return store


def item_ids(store: LocalStore) -> dict[tuple[str, str | None], int]:
    with store.snapshot() as snapshot:
        return {(record.uri, record.text): record.item_id for record in snapshot.all_items()}


def salvaged(store: LocalStore) -> int:
    return int(sql(store, "SELECT COUNT(*) FROM salvaged")[0][0])


def test_content_that_is_found_again_has_its_ids_again(store: LocalStore) -> None:
    photos = store.path.parent
    files = segment_files(store)
    with store.writer() as writer:
        assert list(writer.find("image", [key("a")])) == [key("a")]
        add(writer, photos, "c.jpg", "c")
        add(writer, photos, "a-again.jpg", "a")
        add(writer, photos, "a.jpg", "a")
        add(writer, photos, "b.jpg", "b")  # had no item when the catalog was lost
        add(writer, photos, "notes.txt", "one", "more", "two", modality="text")
        writer.commit()
    assert item_ids(store) == {
        ("c.jpg", None): 3,
        ("a-again.jpg", None): 1,  # the first that comes
        ("a.jpg", None): 7,
        ("b.jpg", None): 8,
        ("notes.txt", "one"): 5,
        ("notes.txt", "more"): 9,
        ("notes.txt", "two"): 6,
    }
    assert len(segment_files(store) - files) == 1  # of "more"; nothing else was embedded again
    assert salvaged(store) == 0
    assert flaws(store) == []


def test_they_take_no_place_in_answers(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        for name in ("c", "new"):
            add(writer, photos, f"{name}.jpg", name)
        writer.commit()
    with store.snapshot() as snapshot:
        waiting = snapshot.sample("image", 10)
        assert len(waiting) == 4
        for row in waiting:
            all_hits = snapshot.search("image", row[None], 10)[0]
            assert len(all_hits) == 2
            for k in (1, 2, 3):
                assert snapshot.search("image", row[None], k)[0] == all_hits[:k]


def test_a_rollback_lets_them_wait_on(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.rollback()
        assert salvaged(store) == 5
        add(writer, photos, "a.jpg", "a")
        writer.commit()
        assert item_ids(store) == {("a.jpg", None): 1}
        writer.remove(str(photos), ["a.jpg"])  # an item like others now: its id is not given out again
        writer.commit()
        add(writer, photos, "a.jpg", "a")
        writer.commit()
    assert item_ids(store) == {("a.jpg", None): 7}
    assert flaws(store) == []


def test_they_are_not_dead_while_they_wait(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        add(writer, photos, "new.jpg", "new")
        writer.commit()
        writer.remove(str(photos), ["new.jpg"])
        writer.merge(all_segments=True)
        assert sql(store, "SELECT COUNT(*) FROM tombstones") == [(0,)]
        assert sorted(writer.find("image", [key(one) for one in ("a", "b", "c", "new")])) == sorted(
            key(one) for one in ("a", "b", "c")
        )
        assert flaws(store) == []
        for name in segment_files(store):  # and could be salvaged once more
            segment = Segment(store.path / "segments" / name)
            items = dict(zip((one.tobytes() for one in segment.keys), segment.item_ids.tolist(), strict=True))
            expected = {"a": 1, "b": 0, "c": 3} if name.startswith("image") else {"one": 5, "two": 6}
            assert items == {key(content): id_ for content, id_ in expected.items()}
        add(writer, photos, "a.jpg", "a")
        writer.commit()
    assert item_ids(store) == {("a.jpg", None): 1}
    assert [uri for uri, _ in found(store, "a")] == ["a.jpg"]


def test_what_was_not_found_again_is_let_go(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.commit()
        assert writer.forget_salvaged() == 4
        writer.rollback()
        assert salvaged(store) == 4
        assert writer.forget_salvaged() == 4
        writer.commit()
        assert writer.forget_salvaged() == 0
        assert sql(store, "SELECT COUNT(*) FROM tombstones") == [(4,)]
        assert flaws(store) == []
        writer.merge(all_segments=True)
    assert len(segment_files(store)) == 1
    assert item_ids(store) == {("a.jpg", None): 1}
    assert flaws(store) == []


def test_a_change_of_the_model_takes_along_what_was_found(store: LocalStore) -> None:
    photos = store.path.parent
    with store.writer() as writer:
        add(writer, photos, "a.jpg", "a")
        writer.commit()
        assert reindex(store, writer) == 0
    assert salvaged(store) == 0
    assert item_ids(store) == {("a.jpg", None): 1}
    assert flaws(store) == []
