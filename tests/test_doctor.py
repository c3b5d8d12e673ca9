"""Every kind of damage is found without a change on disk, repaired, and then gone; what is left is right."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from store_kit import DIM, add, content_of, embed, found, key, make, prepare, ref, vector

from mmsearch.retrieval.errors import IndexLocked, IndexNotFound, IndexTooNew
from mmsearch.retrieval.store import LocalStore, NewItem, layout
from mmsearch.retrieval.store.doctor import Diagnosis, examine, repair
from mmsearch.retrieval.types import AssetMetadata, Root

SAMPLES = Path(__file__).parent / "samples"
PICTURES = ("a.jpg", "a-again.jpg", "c.jpg")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return prepare(tmp_path / "photos" / "index")


def files_of(index: Path) -> dict[str, tuple[int, str]]:
    """Every file with its time and a hash of its bytes, and every folder."""
    found: dict[str, tuple[int, str]] = {}
    for path in sorted(index.rglob("*")):
        name = str(path.relative_to(index))
        content = b"" if path.is_dir() else path.read_bytes()
        found[name] = (path.stat().st_mtime_ns, hashlib.blake2b(content).hexdigest())
    return found


def looked_at(index: Path, **options: bool) -> Diagnosis:
    """What `examine` says; nothing changes on disk."""
    before = files_of(index)
    diagnosis = examine(index, **options)
    assert files_of(index) == before
    return diagnosis


def kinds(diagnosis: Diagnosis) -> list[str]:
    return [problem.kind for problem in diagnosis.problems]


def sql(index: Path, *statements: str) -> None:
    """Changes the catalog behind the back of the store, and leaves no log."""
    connection = sqlite3.connect(index / layout.CATALOG)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def rows(index: Path, query: str) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(index / layout.CATALOG)
    answer = connection.execute(query).fetchall()
    connection.close()
    return answer


def flip(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


def ids(store: LocalStore) -> dict[str, list[int]]:
    """Item ids by uri."""
    found: dict[str, list[int]] = {}
    with store.snapshot() as snapshot:
        for record in snapshot.all_items():
            found.setdefault(record.uri, []).append(record.item_id)
    return found


# Sound indexes


def test_a_sound_index(store: LocalStore) -> None:
    read: list[tuple[int, int]] = []
    diagnosis = examine(store.path, progress=lambda done, total: read.append((done, total)))
    assert diagnosis.sound and diagnosis.problems == ()
    assert (diagnosis.path, diagnosis.segments, diagnosis.items) == (store.path, 3, 5)
    sizes = [path.stat().st_size for path in (store.path / "segments").iterdir()]
    assert diagnosis.bytes_checked == sum(sizes) + (store.path / layout.CATALOG).stat().st_size
    assert read[-1] == (sum(sizes), sum(sizes))
    looked_at(store.path)
    before = files_of(store.path)
    del before["lock"]
    assert repair(store.path).problems == ()
    after = files_of(store.path)
    del after["lock"]
    assert after == before


def test_an_empty_index_is_sound(tmp_path: Path) -> None:
    store = make(tmp_path / "index")
    assert looked_at(store.path).sound
    assert repair(store.path).sound


def test_there_is_no_index(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a")
    for path in (tmp_path / "photos", tmp_path / "absent"):
        for action in (examine, repair):
            with pytest.raises(IndexNotFound):
                action(path)
    assert os.listdir(tmp_path / "photos") == ["a.jpg"]
    assert not (tmp_path / "absent").exists()


def test_a_newer_format_is_refused(store: LocalStore) -> None:
    sql(store.path, "PRAGMA user_version=99")
    for action in (looked_at, repair):
        with pytest.raises(IndexTooNew, match="format 99"):
            action(store.path)


def test_an_old_format_is_examined_as_it_is_and_repaired_after_its_migration(tmp_path: Path) -> None:
    index = tmp_path / "photos" / "index"
    shutil.copytree(SAMPLES / "format-1", index)
    diagnosis = looked_at(index)
    assert (diagnosis.sound, kinds(diagnosis), diagnosis.items) == (True, ["old-format"], 5)
    assert kinds(repair(index)) == ["old-format"]
    sql(index, "UPDATE meta SET value = '9' WHERE key = 'items.image'")
    assert kinds(looked_at(index)) == ["count", "old-format"]
    diagnosis = repair(index)
    assert diagnosis.sound and kinds(diagnosis) == ["count"]
    assert rows(index, "PRAGMA user_version") == [(layout.FORMAT_VERSION,)]
    assert looked_at(index).problems == ()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that this user cannot write to")
def test_a_folder_that_cannot_be_written_to(store: LocalStore) -> None:
    store.path.chmod(0o500)
    try:
        assert looked_at(store.path).sound
    finally:
        store.path.chmod(0o700)


def test_the_log_of_a_dead_writer_is_read_and_left_alone(store: LocalStore, tmp_path: Path) -> None:
    with store.writer() as writer:
        add(writer, tmp_path, "new.jpg", "new")
        writer.commit()
        dead = tmp_path / "dead"
        shutil.copytree(store.path, dead)  # with a log that was not written back
    assert (dead / f"{layout.CATALOG}-wal").stat().st_size
    for name in ("-shm", "-wal")[:1]:
        (dead / f"{layout.CATALOG}{name}").unlink(missing_ok=True)
    diagnosis = looked_at(dead)
    assert (diagnosis.sound, diagnosis.items) == (True, 6)


def test_a_writer_at_work_is_no_damage(store: LocalStore, tmp_path: Path) -> None:
    (store.path / "segments" / "image-000099.seg").write_bytes(b"half")
    before = examine(store.path)
    assert "writer" not in before.problems[0].message
    with store.writer() as writer:
        add(writer, tmp_path, "new.jpg", "new")
        writer.commit()
        (store.path / "segments" / "image-000099.seg.tmp").write_bytes(b"half")
        diagnosis = examine(store.path)
        assert (diagnosis.sound, diagnosis.items, kinds(diagnosis)) == (True, 6, ["leftover"])
        assert "a writer is at work" in diagnosis.problems[0].message
        with pytest.raises(IndexLocked):
            repair(store.path)
    assert len(os.listdir(store.path / "segments")) == 5


def test_a_merge_meanwhile_is_no_damage(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmsearch.retrieval.store import segment_check

    original = segment_check.check_segment
    merged: list[int] = []

    def check(path: Path, *arguments: object) -> object:
        if not merged:
            with store.writer() as writer:
                merged.append(writer.merge())
        return original(path, *arguments)

    monkeypatch.setattr(segment_check, "check_segment", check)
    assert examine(store.path).sound
    assert merged == [2]


# Damage that is put right in place


def test_counts_and_tombstones(store: LocalStore) -> None:
    sql(store.path, "UPDATE meta SET value = '7' WHERE key = 'items.text'", "DELETE FROM tombstones")
    diagnosis = looked_at(store.path)
    assert kinds(diagnosis) == ["count", "tombstones"]
    assert diagnosis.problems[0].message == "it counts 7 text items and has 2"
    before = content_of(store)
    done = repair(store.path)
    assert done.sound and all(problem.repaired for problem in done.problems)
    assert looked_at(store.path).problems == ()
    assert content_of(store) == before
    with store.snapshot() as snapshot:
        assert snapshot.counts == {"image": 3, "text": 2}
    assert found(store, "b") == [(uri, score) for uri, score in found(store, "b") if uri != "b.jpg"]
    sql(store.path, "INSERT INTO tombstones SELECT embedding_id, segment_id, 1 FROM embeddings WHERE space = 'text'")
    assert kinds(looked_at(store.path)) == ["tombstones"]
    repair(store.path)
    assert looked_at(store.path).problems == ()
    assert content_of(store) == before


def test_what_crashes_left(store: LocalStore) -> None:
    segments = store.path / "segments"
    shutil.copy(segments / "image-000001.seg", segments / "image-000009.seg")
    (segments / "text-000010.seg.tmp").write_bytes(b"half")
    (store.path / layout.NEW_CATALOG).write_bytes(b"half")
    diagnosis = looked_at(store.path)
    assert diagnosis.sound and kinds(diagnosis) == ["orphan", "leftover", "leftover"]
    generation = rows(store.path, "SELECT value FROM meta WHERE key = 'generation'")
    done = repair(store.path)
    assert [problem.repaired for problem in done.problems] == [True, True, True]
    assert looked_at(store.path).problems == ()
    assert sorted(os.listdir(segments)) == ["image-000001.seg", "image-000002.seg", "text-000003.seg"]
    assert rows(store.path, "SELECT value FROM meta WHERE key = 'generation'") == generation


def unlink(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def flip_last(path: Path) -> None:
    flip(path, -1)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (unlink, "segment-missing"),
        (cut, "segment-damaged"),
        (empty, "segment-damaged"),
        (garbage, "segment-damaged"),
        (flip_last, "segment-checksum"),
    ],
)
def test_a_segment_is_gone(store: LocalStore, damage: Callable[[Path], None], kind: str) -> None:
    before, old_ids = content_of(store), ids(store)
    path = store.path / "segments" / "image-000001.seg"  # a.jpg, its copy, and b.jpg, which was removed
    damage(path)
    damaged = path.read_bytes() if path.exists() else None
    diagnosis = looked_at(store.path)
    assert (kinds(diagnosis), diagnosis.segments) == ([kind], 2)
    problem = diagnosis.problems[0]
    assert (problem.where, problem.lost_items) == ("image-000001.seg", 2)
    again = "`mmsearch index`, which encodes 2 items again: a.jpg, a-again.jpg"
    assert problem.remedy == f"`mmsearch doctor --repair`, then {again}"
    done = repair(store.path)
    assert done.sound and [problem.repaired for problem in done.problems] == [True]
    assert (done.problems[0].remedy, done.problems[0].lost_items) == (again, 2)
    assert looked_at(store.path).problems == ()
    if damaged is not None:
        assert (store.path / "damaged" / "image-000001.seg").read_bytes() == damaged
    assert content_of(store) == {uri: content for uri, content in before.items() if uri not in ("a.jpg", "a-again.jpg")}
    unread = rows(store.path, "SELECT uri, size, content_hash FROM assets WHERE content_hash IS NULL ORDER BY uri")
    assert unread == [("a-again.jpg", -1, None), ("a.jpg", -1, None)]
    with store.writer() as writer:
        for uri in ("a.jpg", "a-again.jpg"):
            add(writer, store.path.parent, uri, "a")
        writer.commit()
        writer.merge()
    assert content_of(store) == before
    assert looked_at(store.path).problems == ()
    after = ids(store)
    assert after["c.jpg"] == old_ids["c.jpg"]
    assert min(after["a.jpg"]) > max(max(of) for of in old_ids.values())  # never used twice


def test_damaged_files_keep_apart(store: LocalStore) -> None:
    path = store.path / "segments" / "image-000001.seg"
    flip(path, -1)
    repair(store.path)
    path.write_bytes(b"x" * 5000)
    sql(
        store.path,
        "INSERT INTO segments (segment_id, model_id, space, filename, dtype, dim, count, bytes, checksum, precision,"
        " device, backend, generation) VALUES (1, 1, 'image', 'image-000001.seg', 'float32', 8, 1, 5000, x'00', 'a',"
        " 'b', 'c', 1)",
    )
    repair(store.path)
    assert sorted(os.listdir(store.path / "damaged")) == ["image-000001.seg", "image-000001.seg-1"]
    assert layout.index_bytes(store.path) > sum(
        path.stat().st_size for path in (store.path / "damaged").iterdir()
    ) + sum(path.stat().st_size for path in (store.path / "segments").iterdir())


def test_rows_of_a_program_must_be_given_again(tmp_path: Path) -> None:
    store = make(tmp_path / "index")
    with store.writer() as writer:
        writer.root(Root(Path(layout.ROWS), 0, "rows"))
        embed(writer, "text", ["one"])
        item = NewItem("text", key("one"), None, "one")
        row = ref(Path(layout.ROWS), "id=1", modality="text")
        writer.add(row, content_hash=key("one"), metadata=AssetMetadata(), items=[item])
        writer.commit()
    (store.path / "segments" / "text-000001.seg").unlink()
    assert "1 row that a program gave must be given again" in looked_at(store.path).problems[0].remedy


def test_vectors_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a broken writer would leave them: with the right checksum."""
    for number, (value, longest) in enumerate([(np.nan, 10.0), (np.inf, 10.0), (30.0, 10.0)]):
        store = prepare(tmp_path / str(number) / "index")
        path = store.path / "segments" / "image-000002.seg"
        content = bytearray(path.read_bytes())
        content[-4:] = np.float32(value).tobytes()
        path.write_bytes(content)
        checksum = hashlib.blake2b(content, digest_size=32).hexdigest()
        sql(store.path, f"UPDATE segments SET checksum = x'{checksum}' WHERE segment_id = 2")
        assert longest < 30
        diagnosis = looked_at(store.path)
        assert kinds(diagnosis) == ["segment-vectors"]
        assert repair(store.path).sound
        assert looked_at(store.path).problems == ()


def test_a_file_without_items_is_read_again(store: LocalStore) -> None:
    sql(store.path, "DELETE FROM items WHERE asset_id = (SELECT asset_id FROM assets WHERE uri = 'c.jpg')")
    diagnosis = looked_at(store.path)
    assert sorted(kinds(diagnosis)) == ["asset-empty", "count", "tombstones", "words"]
    repair(store.path)
    assert looked_at(store.path).problems == ()
    assert rows(store.path, "SELECT uri FROM assets WHERE size = -1") == [("c.jpg",)]


# Damage after which the catalog is made anew


@pytest.mark.parametrize(
    ("statement", "kind", "lost"),
    [
        ("UPDATE embeddings SET segment_id = 2 WHERE embedding_id = 1", "segment-ids", []),
        ("UPDATE embeddings SET segment_id = 99 WHERE embedding_id = 1", "embedding-lost", []),
        ("UPDATE embeddings SET content_key = zeroblob(32) WHERE embedding_id = 1", "segment-ids", []),
        ("UPDATE embeddings SET space = 'text' WHERE embedding_id = 1", "segment-ids", []),
        ("UPDATE items SET embedding_id = 99 WHERE item_id = 1", "item-lost", ["a.jpg"]),
        ("UPDATE items SET embedding_id = 4 WHERE item_id = 1", "item-lost", ["a.jpg"]),
        ("UPDATE items SET asset_id = 99 WHERE item_id = 1", "item-lost", ["a.jpg"]),
        ("UPDATE segments SET dim = 4 WHERE segment_id = 1", "segment-ids", []),
        ("UPDATE models SET identity = 'other'", "segment-ids", []),
        ("UPDATE assets SET root_id = 9 WHERE uri = 'c.jpg'", "reference", ["c.jpg"]),
        ("DELETE FROM segments WHERE segment_id = 2", "embedding-lost", []),
        ("DELETE FROM embeddings WHERE embedding_id = 1", "item-lost", []),
        ("DELETE FROM meta WHERE key = 'generation'", "catalog-damaged", []),
        ("DELETE FROM models", "catalog-damaged", []),
        ("DROP TABLE removed", "catalog-damaged", []),
        ("DROP INDEX ix_assets_hash", "catalog-damaged", []),
        ("UPDATE items SET text = CAST(x'41ff42' AS TEXT) WHERE item_id = 1", "catalog-damaged", []),
        ("PRAGMA application_id=0", "catalog-damaged", []),
        ("PRAGMA user_version=0", "catalog-damaged", []),
    ],
)
def test_a_catalog_that_contradicts_itself_or_its_segments(
    store: LocalStore, statement: str, kind: str, lost: list[str]
) -> None:
    before, old_ids = content_of(store), ids(store)
    sql(store.path, statement)
    diagnosis = looked_at(store.path)
    assert kind in kinds(diagnosis) and not diagnosis.sound
    done = repair(store.path)
    assert done.sound
    assert any("made anew" in problem.message for problem in done.problems)
    left = looked_at(store.path)
    assert left.sound and set(kinds(left)) <= {"salvaged-waiting"}
    store = LocalStore.open(store.path)
    assert content_of(store) == {uri: content for uri, content in before.items() if uri not in lost}
    assert ids(store) == {uri: of for uri, of in old_ids.items() if uri not in lost}
    with store.writer() as writer:
        for uri in lost:
            content = uri[0]
            assert key(content) in writer.find("image", [key(content)])  # nothing to encode
            writer.root(Root(store.path.parent, 1))
            picture = [NewItem("image", key(content))]
            stamp = AssetMetadata(width=4, height=3)
            writer.add(ref(store.path.parent, uri), content_hash=key(content), metadata=stamp, items=picture)
        writer.forget_salvaged()
        writer.commit()
        writer.merge()
    assert content_of(store) == before
    assert looked_at(store.path).problems == ()
    for content in "abc":
        vectors = {uri: vector(key(uri[0])) for uri in PICTURES}
        expected = sorted((-float(vector(key(content)) @ row), uri) for uri, row in vectors.items())
        assert sorted((-score, uri) for uri, score in found(store, content)) == expected


def test_an_older_catalog_finds_the_newer_segments(store: LocalStore, tmp_path: Path) -> None:
    """As when the log was lost, or a backup was put back: what it names was merged away."""
    shutil.copy(store.path / layout.CATALOG, tmp_path / "backup")
    before = content_of(store)
    with store.writer() as writer:
        add(writer, store.path.parent, "d.jpg", "d")
        writer.merge()
    shutil.copy(tmp_path / "backup", store.path / layout.CATALOG)
    assert set(kinds(looked_at(store.path))) == {"segment-missing", "orphan"}
    assert repair(store.path).sound
    assert kinds(looked_at(store.path)) == ["salvaged-waiting"]  # d
    assert content_of(LocalStore.open(store.path)) == before


# Information


def test_files_are_compared_with_the_disk(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    store = make(tmp_path / "index")
    with store.writer() as writer:
        for name in ("same.jpg", "changed.jpg", "gone.jpg"):
            (photos / name).write_bytes(name.encode())
            status = (photos / name).stat()
            add(writer, photos, name, name, stamp=(status.st_size, status.st_mtime_ns))
        add(writer, tmp_path / "absent", "a.jpg", "a")
        writer.commit()
    (photos / "gone.jpg").unlink()
    (photos / "changed.jpg").write_bytes(b"longer than before")
    assert looked_at(store.path).problems == ()
    diagnosis = looked_at(store.path, files=True)
    assert diagnosis.sound
    said = [(problem.kind, problem.where, problem.message) for problem in diagnosis.problems]
    assert said == [
        ("file-missing", str(photos), "1 file not there now: gone.jpg"),
        ("file-changed", str(photos), "1 file changed since: changed.jpg"),
        ("file-missing", str(tmp_path / "absent"), "it is not there (on a drive that is not mounted?)"),
    ]
    assert all(problem.remedy == "`mmsearch index`" and not problem.damage for problem in diagnosis.problems)


def test_an_unfinished_change_of_model_is_told(store: LocalStore) -> None:
    with store.writer() as writer:
        staged = writer.stage("other", "other-1", DIM, None)
        rows_ = np.stack([vector(key("a"))])
        writer.embed("image", [key("a")], rows_, precision="fp32", device="cpu", backend="fake", model_id=staged)
        writer.commit()
    diagnosis = looked_at(store.path)
    assert diagnosis.sound and kinds(diagnosis) == ["staged-model"]
    assert "the model other is unfinished (1 embedding so far)" in diagnosis.problems[0].message


# Chance


def check_vectors(store: LocalStore, texts: set[str]) -> None:
    """No item has the vector of other content."""
    with store.snapshot() as snapshot:
        for record in snapshot.all_items():
            row = snapshot.vectors(record.modality, [record.item_id])[0]
            content = record.content_hash if record.modality == "image" else key(str(record.text))
            if content is not None and (
                record.modality == "image" or record.text in texts
            ):  # else it will be read again
                assert row.tolist() == vector(content).tolist()


@pytest.mark.parametrize("what", [layout.CATALOG, "segments"])
def test_any_flipped_bit(tmp_path: Path, what: str) -> None:
    original = prepare(tmp_path / "original" / "index")
    before = content_of(original)
    chance = random.Random(20)
    for number in range(75):
        index = tmp_path / str(number) / "index"
        shutil.copytree(original.path, index)
        path = index / what
        if path.is_dir():
            path = chance.choice(sorted(path.iterdir()))
        flip(path, chance.randrange(path.stat().st_size), chance.randrange(8))
        damaged = looked_at(index)
        assert damaged.sound or what == layout.CATALOG or kinds(damaged)[0].startswith("segment-")
        assert what == layout.CATALOG or not damaged.sound
        done = repair(index)
        assert done.sound, (number, done)
        assert looked_at(index).sound
        store = LocalStore.open(index)
        check_vectors(store, {"one", "two"})
        assert set(content_of(store)) <= set(before) or damaged.sound
        shutil.rmtree(index.parent)
