"""Near-duplicates: the rule, the candidates against brute force, the groups, and the command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_kit import Result, run_alone
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import mmsearch
from mmsearch.retrieval import duplicates, neighbours
from mmsearch.retrieval.duplicates import (
    UNHASHED,
    DuplicateRule,
    find_duplicates,
    hash_distances,
    is_near_duplicate,
    near_duplicate_pairs,
    rule_of,
)
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot
from mmsearch.retrieval.types import AssetMetadata, DuplicateReport, ItemRef, Root, Stamp

Draw = Callable[..., Path]
Run = Callable[..., Result]

DIM = 24


class Fake:
    """A picture without a file: its content, vector and hash, and what decides which is kept."""

    def __init__(
        self,
        content: int,
        vector: Sequence[float] | NDArray[np.float64],
        phash: int | None = None,
        size: tuple[int, int] | None = (4, 3),
        bytes_: int = 100,
        age: int = 0,
    ) -> None:
        self.content, self.vector, self.phash = content, np.asarray(vector, np.float32), phash
        self.size, self.bytes, self.age = size, bytes_, age


def store_of(path: Path, pictures: Sequence[Fake], commits: int = 2) -> LocalStore:
    """An index of pictures, whose item ids are their places from 1 on, in several segments."""
    store = LocalStore.create(path, model="fake", identity="fake-1", dim=DIM)
    root = Root(Path("rows:"), 0, kind="rows")
    with store.writer() as writer:
        for part in np.array_split(np.arange(len(pictures)), commits):
            writer.root(root)
            for number in part.tolist():
                one = pictures[number]
                key = one.content.to_bytes(32, "big")
                width, height = one.size or (None, None)
                ref = ItemRef("rows:", f"id={number}", "rows:", "image", Stamp(one.bytes, one.age))
                facts = AssetMetadata(width, height, phash=one.phash)
                if not writer.find("image", [key]):
                    writer.embed("image", [key], one.vector[None], precision="fp32", device="cpu", backend="fake")
                writer.add(ref, content_hash=key, metadata=facts, items=[NewItem("image", key)])
            writer.commit()
    return store


def random_pictures(count: int, seed: int, dim: int = DIM) -> list[Fake]:
    """Pictures around a few motifs; hashes and vectors are near each other, far apart, or missing."""
    chance = np.random.default_rng(seed)
    motifs = [(chance.standard_normal(dim), int(chance.integers(-(2**63), 2**63))) for _ in range(max(2, count // 12))]
    pictures = []
    for number in range(count):
        vector, phash = motifs[chance.integers(len(motifs))]
        vector = vector + chance.choice([0.02, 0.1, 0.3, 2.0]) * chance.standard_normal(dim)
        bits = chance.choice(64, chance.choice([0, 2, 7, 8, 9, 11, 15, 20]), replace=False)
        unsigned = phash % 2**64
        for bit in bits.tolist():
            unsigned ^= 1 << bit
        signed = unsigned - 2**64 if unsigned >= 2**63 else unsigned
        hashed = None if chance.random() < 0.2 else signed
        side = int(chance.integers(2, 5))
        # Not of length one, as vectors that a program gives; one in fifty says nothing at all.
        vector = vector * (0.0 if chance.random() < 0.02 else chance.uniform(0.5, 3))
        size = None if chance.random() < 0.1 else (side, 3)
        pictures.append(Fake(number + 1, vector, hashed, size, int(chance.integers(100, 103)), int(chance.integers(3))))
    for number in chance.integers(1, count, count // 20).tolist():  # equal content, another name
        other = pictures[number - 1]
        pictures[number] = Fake(other.content, other.vector, other.phash, other.size, other.bytes, number)
    return pictures


def cosine(a: Fake, b: Fake) -> float:
    left, right = a.vector.astype(float), b.vector.astype(float)
    lengths = np.sqrt((left @ left) * (right @ right))
    return float(left @ right / lengths) if lengths else 0.0


def distance(a: Fake, b: Fake) -> int | None:
    return None if a.phash is None or b.phash is None else ((a.phash ^ b.phash) % 2**64).bit_count()


def near(a: Fake, b: Fake, rule: DuplicateRule) -> bool:
    """The rule as the table of the module says it."""
    if a.content == b.content:
        return True
    way = (cosine(a, b) - rule.typical) / (1 - rule.typical)
    bits = distance(a, b)
    return way >= 0.975 or (
        bits is not None
        and ((bits <= 8 and way >= 0.40) or (bits <= 12 and way >= 0.88) or (bits <= 18 and way >= 0.92))
    )


def naive_groups(pictures: Sequence[Fake], rule: DuplicateRule) -> list[list[int]]:
    """Stars, the slow and obvious way: item ids, the kept one first."""
    left = sorted(range(len(pictures)), key=lambda at: preference(pictures[at], at))
    groups = []
    while left:
        keep, *others = left
        twins = [at for at in others if near(pictures[keep], pictures[at], rule)]
        # What has the content of a near-duplicate goes with it, and what has the content of the kept as well.
        left = [at for at in others if at not in twins]
        if twins:
            groups.append([keep + 1, *(at + 1 for at in twins)])
    return groups


def preference(one: Fake, at: int) -> tuple[int, int, int, int]:
    area = one.size[0] * one.size[1] if one.size else 0
    return (-area, -one.bytes, one.age, at)


def contents_of(snapshot: Snapshot) -> Any:
    items = snapshot.picture_columns()
    return items.take(np.sort(np.unique(items.embedding_ids, return_index=True)[1]))


def groups_of(report: DuplicateReport) -> list[list[int]]:
    return [[group.keep.item_id, *(one.item_id for one in group.duplicates)] for group in report.groups]


# The rule


@pytest.mark.parametrize(
    ("bits", "cosine_", "expected"),
    [
        (0, 0.71, True),
        (0, 0.69, False),
        (8, 0.71, True),
        (9, 0.71, False),
        (12, 0.945, True),
        (12, 0.935, False),
        (13, 0.945, False),
        (18, 0.965, True),
        (19, 0.965, False),
        (64, 0.99, True),
        (64, 0.985, False),
        (UNHASHED, 0.99, True),
        (UNHASHED, 0.985, False),
    ],
)
def test_the_more_hashes_differ_the_closer_embeddings_must_be(bits: int, cosine_: float, expected: bool) -> None:
    rule = DuplicateRule.around(0.5)
    assert is_near_duplicate(np.array([cosine_]), np.array([bits]), rule).tolist() == [expected]


def test_a_threshold_replaces_what_embeddings_alone_must_reach() -> None:
    rule = DuplicateRule.around(0.5, threshold=0.8)
    assert rule.cosines[[0, 8, 9, 12, 18, 64, UNHASHED]].tolist() == [0.7, 0.7, 0.8, 0.8, 0.8, 0.8, 0.8]
    strict = DuplicateRule.around(0.5, threshold=0.999)
    assert strict.cosines[[8, 12, 18, 19, 64, UNHASHED]].tolist() == [0.7, 0.94, 0.96, 0.999, 0.999, 0.999]
    for wrong in (0, -0.5, 1.01, float("nan")):
        with pytest.raises(UsageError, match="threshold"):
            DuplicateRule.around(0.5, threshold=wrong)


@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), min_size=1))
def test_distances_of_hashes_are_counted_bits(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, np.int64).T
    expected = [((x ^ y) % 2**64).bit_count() for x, y in pairs]
    assert hash_distances(np.ascontiguousarray(a), np.ascontiguousarray(b)).tolist() == expected
    assert set(hash_distances(np.ascontiguousarray(a), np.ascontiguousarray(b), hashed=False).tolist()) == {UNHASHED}


def test_bits_are_counted_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    a = np.array([[0, 2**64 - 1, 5]], np.uint64)
    assert neighbours.hamming(a, np.array([[0], [1]], np.uint64)).tolist() == [[0, 64, 2], [1, 63, 1]]


def test_what_is_typical_comes_from_the_index(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    common = np.full(DIM, 3.0)
    cone = [Fake(number + 1, common + chance.standard_normal(DIM)) for number in range(900)]
    with store_of(tmp_path / "cone", cone).snapshot() as snapshot:
        assert 0.83 < rule_of(snapshot.embeddings("image")).typical < 0.95
    twins = [Fake(1, common), Fake(2, common + 0.01)]
    with store_of(tmp_path / "twins", twins).snapshot() as snapshot:  # two pictures say nothing about a model
        assert rule_of(snapshot.embeddings("image")).typical == pytest.approx(0.5, abs=0.02)


# Candidates against brute force


@given(st.integers(0, 2**32), st.integers(2, 120), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_hash_pairs_are_all_pairs(seed: int, count: int, bits: int) -> None:
    chance = np.random.default_rng(seed)
    few = chance.integers(0, 2**64, 6, np.uint64)
    flips = [sum(1 << int(bit) for bit in chance.choice(64, chance.integers(0, 9))) for _ in range(count)]
    hashes = few[chance.integers(0, 6, count)] ^ np.array([flip % 2**64 for flip in flips], np.uint64)
    found = [pair for a, b in neighbours.hash_pairs(hashes, bits) for pair in zip(a.tolist(), b.tolist(), strict=True)]
    numbers = hashes.tolist()
    expected = {(i, j) for i, j in combinations(range(count), 2) if (numbers[i] ^ numbers[j]).bit_count() <= bits}
    assert set(found) == expected


def test_very_many_equal_hashes_are_compared_with_the_best_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BEST_EQUALS", 3)
    hashes = np.array([1] * 50 + [0] * 40, np.uint64)
    found = {pair for a, b in neighbours.hash_pairs(hashes, 1) for pair in zip(a.tolist(), b.tolist(), strict=True)}
    for best, group in ((range(3), range(50)), (range(50, 53), range(50, 90))):
        assert {(i, j) for i in best for j in group if i < j} <= found
    assert {(i, j) for i in range(3) for j in range(50, 90)} | {
        (i, j) for i in range(50) for j in range(50, 53)
    } <= found
    assert not any(2 < i < 50 and 2 < j < 50 for i, j in found)
    assert len(found) < 50 * 3 + 40 * 3 + 50 * 3 + 40 * 3


@pytest.mark.parametrize("buckets", [False, True])
def test_vector_pairs_against_all_products(monkeypatch: pytest.MonkeyPatch, buckets: bool) -> None:
    if buckets:
        monkeypatch.setattr(neighbours, "EXACT_ROWS", 0)
        monkeypatch.setattr(neighbours, "_ROWS_PER_CENTRE", 20)
    monkeypatch.setattr(neighbours, "_BLOCK_HOMES", 64)
    chance = np.random.default_rng(1)
    rows = chance.standard_normal((60, 16))[chance.integers(0, 60, 900)] + 0.25 * chance.standard_normal((900, 16))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    shares: list[float] = []
    found: dict[tuple[int, int], float] = {}
    for i, j, scores in neighbours.vector_pairs(lambda at: rows[at], 900, 0.9, progress=shares.append):
        found |= dict(zip(zip(i.tolist(), j.tolist(), strict=True), scores.tolist(), strict=True))
    exact = rows.astype(float) @ rows.T.astype(float)
    i, j = np.nonzero(np.triu(exact, 1) >= 0.9)
    expected = set(zip(i.tolist(), j.tolist(), strict=True))
    assert len(expected) > 3000
    assert all(exact[pair] == pytest.approx(score, abs=1e-5) and score > 0.8999 for pair, score in found.items())
    assert len(expected & set(found)) >= (0.98 if buckets else 1.0) * len(expected)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_the_rule(tmp_path: Path, seed: int) -> None:
    pictures = random_pictures(300, seed)
    with store_of(tmp_path / "index", pictures).snapshot() as snapshot:
        contents = contents_of(snapshot)
        rule = rule_of(snapshot.embeddings("image"))
        pairs = near_duplicate_pairs(contents, snapshot.embeddings("image"), rule)
    ids = contents.item_ids.tolist()
    found = {}
    for i, j, close, bits in zip(
        pairs.first.tolist(), pairs.second.tolist(), pairs.cosines, pairs.distances, strict=True
    ):
        a, b = pictures[ids[i] - 1], pictures[ids[j] - 1]
        assert close == pytest.approx(cosine(a, b), abs=1e-12)
        assert bits == (UNHASHED if distance(a, b) is None else distance(a, b))
        found[i, j] = True
    expected = {
        (i, j) for i, j in combinations(range(len(ids)), 2) if near(pictures[ids[i] - 1], pictures[ids[j] - 1], rule)
    }
    assert len(expected) > 300
    assert set(found) == expected


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_stars_around_the_best(tmp_path: Path, seed: int) -> None:
    pictures = random_pictures(200, seed)
    with store_of(tmp_path / "index", pictures).snapshot() as snapshot:
        report = find_duplicates(snapshot)
        again = find_duplicates(snapshot)
        rule = rule_of(snapshot.embeddings("image"))
    assert report == again
    assert report.pictures == 200 and report.left_out == 0
    for group in report.groups:
        kept = pictures[group.keep.item_id - 1]
        for one in group.duplicates:
            other = pictures[one.item_id - 1]
            assert near(kept, other, rule)
            assert one.phash_distance == distance(kept, other)
            assert one.cosine == pytest.approx(1.0 if kept.content == other.content else cosine(kept, other))
    assert sorted(groups_of(report)) == sorted(naive_groups(pictures, rule))
    sizes = [group.bytes for group in report.groups]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == sum(one.size for one in report.groups[0].duplicates)


def test_no_chain_leads_from_one_picture_to_another(tmp_path: Path) -> None:
    # Each differs from the next in six bits; the first and the third in twelve, with embeddings too far apart.
    angles = (0.0, 0.4, 0.8)
    vectors = [[np.cos(angle), np.sin(angle), *[0.0] * (DIM - 2)] for angle in angles]
    pictures = [Fake(n + 1, vectors[n], (1 << 6 * n) - 1, size=(9 - n, 9)) for n in range(3)]
    with store_of(tmp_path / "index", pictures).snapshot() as snapshot:
        assert groups_of(find_duplicates(snapshot)) == [[1, 2]]


def test_the_keeper_has_most_pixels_then_bytes_then_age_then_the_smallest_id(tmp_path: Path) -> None:
    vector = np.ones(DIM)
    pictures = [
        Fake(1, vector, 0, (4, 3), 100, 5),
        Fake(2, vector, 0, None, 900, 0),
        Fake(3, vector, 0, (4, 3), 200, 9),
        Fake(4, vector, 0, (4, 3), 200, 7),
        Fake(5, vector, 0, (4, 3), 200, 7),
        Fake(6, vector, 0, (4, 4), 1, 99),
    ]
    with store_of(tmp_path / "index", pictures).snapshot() as snapshot:
        assert groups_of(find_duplicates(snapshot)) == [[6, 4, 5, 3, 1, 2]]


def test_ten_times_the_neighbours_that_are_kept_are_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BEST_NEIGHBOURS", 4)
    monkeypatch.setattr(duplicates, "_BUFFER_PAIRS", 50)
    pictures = [Fake(number + 1, np.ones(DIM) + number * 1e-4, number % 4) for number in range(40)]
    with store_of(tmp_path / "index", pictures).snapshot() as snapshot:
        assert groups_of(find_duplicates(snapshot)) == [list(range(1, 41))]


def test_vectors_that_were_removed_are_not_found(tmp_path: Path) -> None:
    with mmsearch.open(tmp_path / "index") as index:
        index.add_vectors(["a", "b", "c"], [[1.0, 0.0], [1.0, 0.001], [0.0, 1.0]], modality="image")
        (group,) = index.duplicates().groups
        assert {group.keep.uri, *(one.uri for one in group.duplicates)} == {"id=a", "id=b"}
        assert group.keep.path is None and group.duplicates[0].phash_distance is None
        index.remove(ids=["b"])
        assert index.duplicates() == DuplicateReport((), 2, 0)


# Files


@pytest.fixture
def album(tmp_path: Path, draw: Draw) -> Path:
    """A picture in three sizes, a copy of the largest, and another picture."""
    folder = tmp_path / "album"
    large = draw(folder / "large.png", "red", size=(192, 128))
    with Image.open(large) as image:
        image.resize((96, 64)).save(folder / "half.jpg")
        image.resize((48, 32)).save(folder / "small.png")
    (folder / "zcopy.png").write_bytes(large.read_bytes())
    os.utime(large, (1, 1))
    draw(folder / "other.png", "blue", "triangle")
    return folder


@pytest.fixture
def indexed(run: Run, album: Path) -> Path:
    assert run("index", album, "--model", "fake").code == 0
    return album


def test_copies_and_other_sizes_are_one_group(run: Run, indexed: Path) -> None:
    shown = run("dupes", "--json")
    (group,) = shown.json
    assert group["keep"]["path"] == str(indexed / "large.png")
    assert (group["keep"]["width"], group["keep"]["height"]) == (192, 128)
    assert group["keep"]["size"] == (indexed / "large.png").stat().st_size
    assert [Path(one["path"]).name for one in group["duplicates"]] == ["zcopy.png", "half.jpg", "small.png"]
    assert [set(one) for one in group["duplicates"]] == [
        {"item_id", "path", "uri", "width", "height", "size", "phash_distance", "cosine"}
    ] * 3
    assert (group["duplicates"][0]["phash_distance"], group["duplicates"][0]["cosine"]) == (0, 1.0)
    assert "3 near-duplicates in 1 group among 5 pictures" in shown.err


def test_paths0_are_all_but_the_kept(run: Run, indexed: Path, tmp_path: Path) -> None:
    done = run_alone("dupes", "--paths0", index=tmp_path / "index")
    assert done.stdout.split(b"\0") == [
        *(os.fsencode(indexed / name) for name in ("zcopy.png", "half.jpg", "small.png")),
        b"",
    ]


def test_a_table_for_people_and_tabs_for_programs(run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [line.split("\t") for line in run("dupes").out.splitlines()]
    assert [row[:3] for row in rows] == [
        ["1", "keep", "192x128"],
        ["1", "duplicate", "192x128"],
        ["1", "duplicate", "96x64"],
        ["1", "duplicate", "48x32"],
    ]
    assert rows[0][3:] == [str((indexed / "large.png").stat().st_size), str(indexed / "large.png")]
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stdout)
    lines = run("dupes").out.splitlines()
    assert lines[0].split()[:2] == ["keep", "192x128"] and lines[1].split()[0] == "192x128"
    assert lines[0].endswith("large.png") and lines[-1] == ""


def test_nothing_is_told_of_files_that_changed_or_went(run: Run, indexed: Path) -> None:
    (indexed / "large.png").unlink()
    (indexed / "small.png").write_bytes(b"something else")
    (group,) = run("dupes", "--json").json  # the copy is kept now, though its twin came first
    assert group["keep"]["path"] == str(indexed / "zcopy.png")
    assert [Path(one["path"]).name for one in group["duplicates"]] == ["half.jpg"]
    assert "left out: 2 files" in run("dupes").err
    (indexed / "zcopy.png").unlink()
    alone = run("dupes", "--json")
    assert (alone.code, alone.json) == (0, []) and "no near-duplicates among 5 pictures" in alone.err


@pytest.mark.skipif(not hasattr(os, "link"), reason="no hard links here")
def test_two_names_of_one_file_are_no_duplicates(run: Run, tmp_path: Path, draw: Draw) -> None:
    one = draw(tmp_path / "album" / "one.png", "red")
    os.link(one, tmp_path / "album" / "hard.png")
    os.symlink(one, tmp_path / "album" / "a-soft.png")
    assert run("index", tmp_path / "album", "--model", "fake").code == 0
    assert run("dupes", "--json").json == []
    copy = tmp_path / "album" / "zcopy.png"
    copy.write_bytes(one.read_bytes())
    assert run("index").code == 0
    (group,) = run("dupes", "--json").json
    assert len(group["duplicates"]) == 1
    assert {group["keep"]["path"], group["duplicates"][0]["path"]} & {str(copy)} == {str(copy)}
    assert str(tmp_path / "album" / "a-soft.png") not in (group["keep"]["path"], group["duplicates"][0]["path"])


# The command


def test_indexes_without_near_duplicates(run: Run, tmp_path: Path, draw: Draw) -> None:
    assert run("dupes").code == 3
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("Two texts.", "utf-8")
    (tmp_path / "notes" / "b.txt").write_text("Two texts.", "utf-8")
    assert run("index", tmp_path / "notes", "--model", "fake").code == 0
    shown = run("dupes")
    assert (shown.code, shown.out, shown.err) == (0, "", "no pictures in the index, only texts\n")
    draw(tmp_path / "notes" / "only.png", "red")
    assert run("index").code == 0
    assert run("dupes").err == "no near-duplicates among 1 picture\n"
    assert run("remove", tmp_path / "notes").code == 0
    shown = run("dupes", "--json")
    assert (shown.code, shown.out, shown.err) == (0, "", "the index is empty\n")


def test_a_filter_says_what_is_compared(run: Run, indexed: Path) -> None:
    whole = run("dupes", "--json").json
    assert whole
    left_out = Path(whole[0]["keep"]["path"]).name
    some = run("dupes", "--json", "--where", f'not path ~ "*/{left_out}"')
    paths = {one["path"] for group in some.json for one in [group["keep"], *group["duplicates"]]}
    assert paths and left_out not in {Path(path).name for path in paths}
    result = run("dupes", "--where", "width > 100000")
    assert (result.code, result.out, result.err) == (0, "", "no pictures in the index pass the filter\n")
    assert run("dupes", "--where", "width >").code == 2


def test_calls_that_cannot_be_meant(run: Run, indexed: Path) -> None:
    assert run("dupes", "--json", "--paths0").code == 2
    wrong = run("dupes", "--threshold", "1.5")
    assert wrong.code == 2 and "up to 1" in wrong.err


def test_progress_goes_to_the_end(indexed: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with mmsearch.open(tmp_path / "index") as index:
        index.duplicates(progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1] == (5, 5)


def test_progress_is_drawn_on_a_terminal(run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stderr)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "comparing" in run("dupes").err


def test_photos_saved_again_are_found_and_others_are_not(run: Run, shared: Path, tmp_path: Path) -> None:
    photos = sorted((shared / "coco_dev" / "images").iterdir())[:12]
    folder = tmp_path / "album"
    folder.mkdir()
    for photo in photos:
        with Image.open(photo) as opened:
            image = opened.convert("RGB")
        (folder / f"{photo.stem}.jpg").write_bytes(photo.read_bytes())
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(folder / f"{photo.stem}-small.jpg", quality=50)
        image.convert("L").save(folder / f"{photo.stem}-grey.png")
    assert run("index", folder, "--model", "starter").code == 0
    groups = run("dupes", "--json").json
    assert len(groups) == len(photos)
    for group in groups:
        names = {Path(one["path"]).stem for one in [group["keep"], *group["duplicates"]]}
        stem = min(names, key=len)
        assert names == {stem, f"{stem}-small", f"{stem}-grey"}
