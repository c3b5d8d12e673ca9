"""Damaged files of an index: whoever meets them says so, or works on; what is still whole stays on the disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from store_kit import add, change, prepare, queries, ref
from survival_kit import command, state_of

from mmsearch.retrieval.errors import IndexCorrupt, MMSearchError
from mmsearch.retrieval.store import LocalStore, Snapshot, layout
from mmsearch.retrieval.store.segments import HEADER_BYTES, Segment
from mmsearch.retrieval.types import Root

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the numbers that flipped bits make

Damage = Callable[[Path], object]
ROWS = 60  # enough for tables of several pages


# What people do with an index


def search(index: Path) -> None:
    with Snapshot.open(index) as snapshot:
        for space in snapshot.counts:
            found = snapshot.search(space, queries(2), 5)
            snapshot.items([one.item_id for candidates in found for one in candidates])
            ids = snapshot.item_ids(space)
            snapshot.vectors(space, ids)
        assert snapshot.is_current()


def list_all(index: Path) -> None:
    with Snapshot.open(index) as snapshot:
        snapshot.info()
        snapshot.failures()
        for root in snapshot.roots():
            snapshot.removed(root.root_id)
        for listing in (snapshot.all_items, snapshot.texts, snapshot.pictures):
            for _ in listing():
                pass


def compare(index: Path) -> None:
    root = index.parent
    LocalStore.open(index).diff(Root(root, 1), [ref(root, "a.jpg"), ref(root, "new.jpg")])


def write(index: Path) -> None:
    with LocalStore.open(index).writer() as writer:
        change(writer, index.parent)


def merge(index: Path) -> None:
    with LocalStore.open(index).writer() as writer:
        writer.merge()


def verify(index: Path) -> None:
    LocalStore.open(index).verify()


USES = (search, list_all, compare, write, merge, verify)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of several segments, with a tombstone and a catalog of many pages; not to be changed."""
    store = prepare(tmp_path_factory.mktemp("sound") / "index")
    with store.writer() as writer:
        for number in range(ROWS):
            writer.fail(ref(store.path.parent, f"{number} {'long name ' * 8}.jpg"), "cannot be read")
        writer.commit()
    return store.path


@pytest.fixture
def damaged(sound: Path, tmp_path: Path) -> Callable[[Damage], Path]:
    """Copies the sound index and damages the copy."""

    def copy(damage: Damage) -> Path:
        index = tmp_path / "index"
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(sound, index)
        damage(index)
        return index

    return copy


def live_keys(index: Path) -> set[bytes]:
    """What the vectors of an index were computed from, without what is dead."""
    connection = sqlite3.connect(index / layout.CATALOG)
    try:
        query = (
            "SELECT content_key FROM embeddings WHERE embedding_id NOT IN (SELECT embedding_id FROM tombstones)"
            " AND segment_id IS NOT NULL"
        )
        return {row[0] for row in connection.execute(query)}
    finally:
        connection.close()


def keys_on_disk(index: Path) -> set[bytes]:
    """The same of all whole segment files, whatever the catalog says."""
    found: set[bytes] = set()
    for path in (index / layout.SEGMENTS).glob("*.seg"):
        with suppress(MMSearchError, OSError):
            found.update(row.tobytes() for row in Segment(path).keys)
    return found


def complaints(
    index: Path, damages: Iterator[tuple[str, Damage]], use: Callable[[Path], None], damaged: Callable[[Damage], Path]
) -> list[str]:
    """What a use of a damaged index must not do: raise anything but our errors, or lose a vector."""
    live = live_keys(index)
    found = []
    for name, damage in damages:
        copy = damaged(damage)
        wanted = live & keys_on_disk(copy)
        before = set(os.listdir(copy / layout.SEGMENTS))
        error: Exception | None = None
        try:
            use(copy)
        except MMSearchError as expected:
            error = expected
            if len(str(error).splitlines()) != 1:
                found.append(f"{name}: {use.__name__} said {error!r}")
        except Exception as unexpected:
            error = unexpected
            found.append(f"{name}: {use.__name__} raised {unexpected!r}")
        gone = before - set(os.listdir(copy / layout.SEGMENTS))
        if gone and (use is not merge or not wanted <= keys_on_disk(copy)):
            found.append(f"{name}: {use.__name__} removed {sorted(gone)} ({error!r})")
    return found


# The catalog


def in_catalog(at: int, content: bytes) -> Damage:
    def overwrite(index: Path) -> None:
        with open(index / layout.CATALOG, "r+b") as file:
            file.seek(at)
            file.write(content)

    return overwrite


def cut_catalog(size: int) -> Damage:
    return lambda index: os.truncate(index / layout.CATALOG, size)


def page_size(index: Path) -> int:
    """As SQLite keeps it, in the first bytes of a database."""
    with open(index / layout.CATALOG, "rb") as file:
        return int.from_bytes(file.read(18)[16:], "big")


def pages(index: Path) -> Iterator[tuple[int, int, int]]:
    """Number, start and size of each page of the catalog."""
    size = page_size(index)
    for start in range(0, (index / layout.CATALOG).stat().st_size, size):
        yield start // size, start, size


def zeroed_pages(index: Path) -> Iterator[tuple[str, Damage]]:
    for page, start, size in pages(index):
        yield f"page {page} zeroed", in_catalog(start, bytes(size))


def garbage_pages(index: Path) -> Iterator[tuple[str, Damage]]:
    for page, start, size in pages(index):
        yield f"page {page} garbage", in_catalog(start, random.Random(page).randbytes(size))


def cut_catalogs(index: Path) -> Iterator[tuple[str, Damage]]:
    for _, start, size in pages(index):
        for left in (start, start + size // 3):
            yield f"cut to {left}", cut_catalog(left)


@pytest.mark.parametrize("damages", [zeroed_pages, garbage_pages, cut_catalogs])
@pytest.mark.parametrize(
    "use",
    [
        search,
        list_all,
        compare,
        write,
        merge,
        verify,
    ],
)
def test_a_catalog_with_a_bad_page(
    sound: Path,
    damaged: Callable[[Damage], Path],
    damages: Callable[[Path], Iterator[tuple[str, Damage]]],
    use: Callable[[Path], None],
) -> None:
    assert complaints(sound, damages(sound), use, damaged) == []


NO_CATALOGS = (b"", b"\0" * 9000, b"not a catalog\n" * 700, b"SQLite format 3\0", None)


def no_catalog(content: bytes | None) -> Damage:
    """Overwrites or deletes the catalog, beside a picture that could be indexed."""

    def damage(index: Path) -> None:
        (index.parent / "red.ppm").write_bytes(b"P6 1 1 255\n\xff\0\0")
        if content is None:
            (index / layout.CATALOG).unlink()
        else:
            (index / layout.CATALOG).write_bytes(content)

    return damage


@pytest.mark.parametrize("content", NO_CATALOGS)
def test_no_catalog(damaged: Callable[[Damage], Path], content: bytes | None) -> None:
    """Every use is refused, and nothing is made in its place."""
    index = damaged(no_catalog(content))
    before = state_of(index)
    for use in USES:
        with pytest.raises(IndexCorrupt, match="its vectors are there"):
            use(index)
    for arguments in (("query", "red"), ("info",), ("index",), ("index", str(index.parent), "--model", "fake")):
        ran = command(*arguments, "--index", str(index))
        assert (ran["code"], ran["stdout"]) == (1, "")
        assert "its vectors are there" in ran["stderr"]
        assert len(ran["stderr"].splitlines()) == 1
    assert state_of(index) == before


@pytest.mark.parametrize("name", [layout.CATALOG + "-wal", layout.CATALOG + "-shm"])
def test_garbage_in_the_log(sound: Path, damaged: Callable[[Damage], Path], name: str) -> None:
    """SQLite passes over frames that are not its own: what was checkpointed is still there."""
    index = damaged(lambda index: (index / name).write_bytes(random.Random(3).randbytes(70_000)))
    for use in USES:
        use(index)
    assert LocalStore.open(index).verify() == []


def forget_segments(index: Path) -> None:
    """What a few flipped bits can do: the page of the table `segments` says that it has no rows."""
    connection = sqlite3.connect(index / layout.CATALOG)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'segments'").fetchone()
    connection.close()
    in_catalog((page - 1) * page_size(index) + 3, bytes(2))(index)


@pytest.mark.parametrize("use", [write, merge])
def test_segments_that_the_catalog_has_forgotten_are_not_swept(
    sound: Path, damaged: Callable[[Damage], Path], use: Callable[[Path], None]
) -> None:
    index = damaged(forget_segments)
    assert LocalStore.open(index).verify() != []
    with suppress(MMSearchError):
        use(index)
    assert live_keys(sound) <= keys_on_disk(index)


# Segments


def regions(segment: Segment) -> dict[str, range]:
    header = segment.header
    text = len(json.dumps(header)) + 5
    starts = [header[f"{name}_offset"] for name in ("ids", "keys", "item_ids", "faiss", "vectors")]
    ends = [*starts[1:], header["bytes"]]
    names = ("ids", "keys", "item ids", "FAISS block", "vectors")
    found = {"header": range(text), "padding": range(text, HEADER_BYTES)}
    return {**found, **{name: range(start, end) for name, start, end in zip(names, starts, ends, strict=True)}}


def flips(index: Path, most: int) -> Iterator[tuple[str, Damage]]:
    """One flipped bit of one segment at a time, in every region."""
    chance = random.Random(5)
    for path in sorted((index / layout.SEGMENTS).glob("*.seg")):
        for region, places in regions(Segment(path)).items():
            for at in chance.sample(places, min(most, len(places))):
                bit = chance.randrange(8)

                def flip(copy: Path, name: str = path.name, at: int = at, bit: int = bit) -> None:
                    file = copy / layout.SEGMENTS / name
                    content = bytearray(file.read_bytes())
                    content[at] ^= 1 << bit
                    file.write_bytes(content)

                yield f"{path.name}, {region}, bit {bit} of byte {at}", flip


def test_the_regions_are_all_of_a_segment(sound: Path) -> None:
    for path in (sound / layout.SEGMENTS).glob("*.seg"):
        places = [at for region in regions(Segment(path)).values() for at in region]
        assert places == list(range(path.stat().st_size))


@pytest.mark.parametrize(("use", "most"), [(search, 30), (write, 2), (merge, 8)])
def test_a_flipped_bit_in_a_segment(
    sound: Path, damaged: Callable[[Damage], Path], use: Callable[[Path], None], most: int
) -> None:
    assert complaints(sound, flips(sound, most), use, damaged) == []


def test_every_flipped_bit_is_found(sound: Path, damaged: Callable[[Damage], Path]) -> None:
    for name, damage in flips(sound, 12):
        assert LocalStore.open(damaged(damage)).verify() != [], name


def spoilt_segments(index: Path) -> Iterator[tuple[str, Damage]]:
    """Cut short, grown, emptied, gone, a dangling link."""
    for path in sorted((index / layout.SEGMENTS).glob("*.seg")):
        size = path.stat().st_size
        for left in (0, 3, 5, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 8, size - 1, size + 1):

            def resize(copy: Path, name: str = path.name, left: int = left) -> None:
                os.truncate(copy / layout.SEGMENTS / name, left)

            yield f"{path.name} of {left} bytes", resize

        def unlink(copy: Path, name: str = path.name) -> None:
            (copy / layout.SEGMENTS / name).unlink()

        def dangle(copy: Path, name: str = path.name) -> None:
            unlink(copy, name)
            (copy / layout.SEGMENTS / name).symlink_to("nowhere.seg")

        yield f"no {path.name}", unlink
        yield f"a dangling link for {path.name}", dangle


def folder_for_a_segment(index: Path) -> None:
    place = index / layout.SEGMENTS / "image-000001.seg"
    place.unlink()
    place.mkdir()


def file_for_the_segments(index: Path) -> None:
    shutil.rmtree(index / layout.SEGMENTS)
    (index / layout.SEGMENTS).write_bytes(b"")


@pytest.mark.parametrize("use", USES)
def test_a_segment_that_is_not_whole(
    sound: Path, damaged: Callable[[Damage], Path], use: Callable[[Path], None]
) -> None:
    assert complaints(sound, spoilt_segments(sound), use, damaged) == []


def test_what_is_not_whole_is_found(sound: Path, damaged: Callable[[Damage], Path]) -> None:
    for name, damage in spoilt_segments(sound):
        index = damaged(damage)
        assert LocalStore.open(index).verify() != [], name
        with pytest.raises(IndexCorrupt):
            search(index)


@pytest.mark.parametrize("damage", [folder_for_a_segment, file_for_the_segments])
def test_a_segment_that_cannot_be_opened(damaged: Callable[[Damage], Path], damage: Damage) -> None:
    with pytest.raises(MMSearchError, match="segments"):
        search(damaged(damage))


@pytest.mark.parametrize("damage", [folder_for_a_segment, file_for_the_segments])
def test_a_segment_that_cannot_be_opened_is_found(damaged: Callable[[Damage], Path], damage: Damage) -> None:
    index = damaged(damage)
    with suppress(MMSearchError):
        assert LocalStore.open(index).verify() != []
    with pytest.raises(MMSearchError):
        merge(index)


def test_without_its_segments_nothing_is_swept_or_forgotten(sound: Path, damaged: Callable[[Damage], Path]) -> None:
    """The folder is gone, as where only the catalog was copied."""
    index = damaged(lambda index: shutil.rmtree(index / layout.SEGMENTS))
    for use in (search, merge):
        with pytest.raises(MMSearchError):
            use(index)
    shutil.copytree(sound / layout.SEGMENTS, index / layout.SEGMENTS, dirs_exist_ok=True)
    search(index)
    assert LocalStore.open(index).verify() == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("output", ["--json", None])
def test_numbers_that_a_damaged_row_may_hold(
    tmp_path: Path, draw: Callable[..., Path], number: float, output: str | None
) -> None:
    """A checksum is compared by merges, not by queries: those must print what they find, or say what is wrong."""
    pictures, index = tmp_path / "pictures", tmp_path / "index"
    for colour in ("red", "green", "blue"):
        draw(pictures / f"{colour}.png", colour)
    assert command("index", str(pictures), "--model", "fake", "--index", str(index))["code"] == 0
    (path,) = (index / layout.SEGMENTS).iterdir()
    header = Segment(path).header
    with open(path, "r+b") as file:
        file.seek(header["vectors_offset"])
        file.write(struct.pack("<f", number) * header["dim"])
    arguments = ["query", "red", "--index", str(index), *([output] if output else [])]
    ran = command(*arguments)
    assert ran["code"] in (0, 1)
    assert "unexpected" not in ran["stderr"]
    if ran["code"] == 0 and output:
        for line in ran["stdout"].splitlines():
            json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_a_run_over_a_damaged_segment_saves_what_is_new(tmp_path: Path) -> None:
    """The vectors that are damaged stay where they are; new ones are committed beside them."""
    store = prepare(tmp_path / "index")
    path = store.path / layout.SEGMENTS / "image-000001.seg"
    spoilt = bytearray(path.read_bytes())
    spoilt[-1] ^= 4
    path.write_bytes(spoilt)
    with store.writer() as writer:
        add(writer, tmp_path, "new.jpg", "new")
        writer.commit()
        with pytest.raises(IndexCorrupt, match="everything committed is kept"):
            writer.merge()
    assert path.read_bytes() == spoilt
    with store.snapshot() as snapshot:
        assert {record.uri for record in snapshot.all_items()} >= {"a.jpg", "c.jpg", "new.jpg"}
