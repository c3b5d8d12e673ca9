"""What samples tell of filters and of words, and how a filter is applied for that: that both ways are there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from filter_kit import Corpus, random_corpus, random_filters
from hypothesis import given, settings
from hypothesis import strategies as st
from store_kit import PRECISION, key

from mmsearch.retrieval.conditions import FUNCTIONS, compile_filter, condition_of
from mmsearch.retrieval.filters import Filter, format_filter
from mmsearch.retrieval.store import LocalStore, NewItem, Snapshot, lexical, selection
from mmsearch.retrieval.store.records import Condition
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp

COUNT = 1200
DIM = 4
QUERY = np.array([1, 0, 0, 0], np.float32)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    """Pictures by number: the n-th is the n-th nearest to `QUERY`, is n pixels wide, and was taken n minutes late."""
    folder = tmp_path_factory.mktemp("plans")
    store = LocalStore.create(folder / "index", model="fake", identity="fake-1", dim=DIM)
    with store.writer() as writer:
        writer.root(Root(folder, 1))
        keys = [key(str(number)) for number in range(1, COUNT + 1)]
        angles = np.arange(1, COUNT + 1) / COUNT
        rows = np.stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles], axis=1).astype(np.float32)
        writer.embed("image", keys, rows, **PRECISION)
        for number, one in enumerate(keys, 1):
            uri = f"{number}.jpg"
            taken = f"2024-01-01T{number // 60:02}:{number % 60:02}:00"
            writer.add(
                ItemRef(str(folder), uri, str(folder / uri), "image", Stamp(number, 1)),
                content_hash=one,
                metadata=AssetMetadata(width=number, taken=taken, latitude=number / 100, longitude=1.0, camera="x"),
                items=[NewItem("image", one)],
            )
        writer.commit()
        writer.tag({number: {"even": 0.9} for number in range(2, COUNT + 1, 2)})
        writer.commit()
    with store.snapshot() as opened:
        yield opened


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index counts as one that is worth a sample."""
    monkeypatch.setattr(selection, "_FEW", COUNT - 1)


def _condition(snapshot: Snapshot, where: str) -> Condition:
    return condition_of(where, snapshot, "image")


def _selected(snapshot: Snapshot, where: str, k: int = 10) -> tuple[list[int], str, float]:
    found = selection.search_where(snapshot, "image", QUERY, k, _condition(snapshot, where))
    return [candidate.item_id for candidate in found.candidates], found.plan, found.selectivity


# The sample


def test_a_sample_lies_within_the_ids_and_all_over_them() -> None:
    for last in (1, 2, 799, 800, 5000, 1_000_003):
        ids = selection.spread(last, 800)
        assert ids == sorted(set(ids))
        assert ids[0] >= 1
        assert ids[-1] <= last
        assert len(ids) >= min(last, 800) // 2
        edges = [0, *ids, last + 1]
        assert max(np.diff(edges)) <= max(2, 4 * last / 800)


@pytest.mark.parametrize("step", [2, 3, 4, 5, 7, 8, 10, 16, 50, 64, 100])
@pytest.mark.parametrize("last", [5_000, 65_536, 200_000, 300_000])
def test_a_sample_keeps_no_step_with_the_items(step: int, last: int) -> None:
    ids = selection.spread(last, 800)
    for rest in {0, step // 2}:
        share = sum(number % step == rest for number in ids) / len(ids)
        assert share == pytest.approx(1 / step, abs=0.05)


@pytest.mark.parametrize(
    ("where", "share"),
    [
        ("width <= 120", 0.1),
        ("width > 0", 1.0),
        ("width < 0", 0.0),
        ("taken < 2024-01-01T10:00", 0.5),
        ("tag = even", 0.5),
    ],
)
def test_a_sample_tells_how_many_pass(snapshot: Snapshot, where: str, share: float) -> None:
    assert selection._sampled_share(snapshot, "image", _condition(snapshot, where)) == pytest.approx(share, abs=0.03)


def test_an_index_without_items_of_a_modality_has_a_share(snapshot: Snapshot) -> None:
    assert 0 <= selection._sampled_share(snapshot, "text", _condition(snapshot, "width > 5")) <= 1


# What is known of the fields


@pytest.mark.parametrize(
    ("where", "indexed"),
    [
        ("taken < 2024", True),
        ("taken in 2024-01..2024-02", True),
        ("year = 2024", True),
        ("near(5, 1, 3km)", True),
        ("lat > 5", True),
        ("tag = even", True),
        ("tag = even and width > 5", True),
        ("taken < 2024 or tag = even", True),
        ("width > 5", False),
        ("camera = x", False),
        ("size > 5", False),
        ("modified > 2020", False),
        ("path ~ '*5.jpg'", False),
        ("meta.price = 5", False),
        ("taken < 2024 or width > 5", False),
        ("not taken < 2024", False),
    ],
)
def test_sqlite_knows_what_is_indexed(snapshot: Snapshot, where: str, indexed: bool) -> None:
    assert selection._is_indexed(snapshot, "image", _condition(snapshot, where)) == indexed


# The plans


@pytest.mark.usefixtures("large")
def test_rare_items_are_read_first_and_common_ones_checked(snapshot: Snapshot) -> None:
    assert _selected(snapshot, "width > 0") == ([*range(1, 11)], "candidates", 1.0)
    ids, plan, share = _selected(snapshot, "width > 1194")
    assert (ids, plan) == ([*range(1195, 1201)], "ids first")
    assert share == pytest.approx(6 / COUNT)
    assert _selected(snapshot, "width > 5000") == ([], "ids first", 0.0)


def test_a_small_index_is_not_sampled(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_sampled_share", None)
    assert _selected(snapshot, "width > 0") == ([*range(1, 11)], "ids first", 1.0)


@pytest.mark.usefixtures("large")
def test_a_sample_may_be_wrong(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sample says, the k best of what passes are found."""
    for told in (0.0, 0.001, 0.3, 1.0):
        monkeypatch.setattr(selection, "_sampled_share", lambda *_, told=told: told)
        for where, expected in {
            "width > 0": [*range(1, 11)],
            "width > 600": [*range(601, 611)],
            "width > 1194": [*range(1195, 1201)],
            "width < 0": [],
            "tag = even and width > 100": [*range(102, 122, 2)],
        }.items():
            assert _selected(snapshot, where)[0] == expected, (told, where)


def test_checking_ends_where_it_would_look_at_a_large_part(snapshot: Snapshot) -> None:
    far = _condition(snapshot, "width > 1000")
    assert selection.by_candidates(snapshot, "image", QUERY, 10, far, 1.0) is None
    near = _condition(snapshot, "width > 50")
    found = selection.by_candidates(snapshot, "image", QUERY, 10, near, 1.0)
    assert found is not None
    assert [candidate.item_id for candidate in found.candidates] == [*range(51, 61)]


def test_both_ways_find_the_same_with_the_same_scores(snapshot: Snapshot) -> None:
    for where in ("tag = even", "width > 20", "not taken < 2024-01-01T00:30"):
        condition = _condition(snapshot, where)
        checked = selection.by_candidates(snapshot, "image", QUERY, 7, condition, 0.5)
        assert checked is not None
        assert checked.candidates == selection.by_ids(snapshot, "image", QUERY, 7, condition).candidates


def test_an_index_makes_reading_first_the_cheaper_for_longer(snapshot: Snapshot) -> None:
    """Where SQLite has to look at every row anyway, checking candidates is the cheaper at smaller shares already."""

    def smallest(where: str) -> float:
        condition = _condition(snapshot, where)
        shares = [number / 1000 for number in range(1001)]
        chosen = [selection._checking_is_cheaper(snapshot, "image", 10, condition, share) for share in shares]
        first = chosen.index(True)
        assert all(chosen[first:])  # from one share on, and no going back
        return shares[first]

    counts = snapshot.counts
    try:
        snapshot.counts = {"image": 200_000, "text": 100_000}
        assert smallest("width > 5") < smallest("taken < 2024") < 0.5
    finally:
        snapshot.counts = counts


# What a candidate is checked by


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    return [random_corpus(tmp_path_factory.mktemp("corpus"), seed) for seed in range(3)]


@settings(max_examples=200, deadline=None)
@given(number=st.integers(0, 2), filter_=random_filters(), space=st.sampled_from(["image", "text"]))
def test_items_that_are_given_pass_as_all_do(
    corpora: list[Corpus], number: int, filter_: Filter, space: Modality
) -> None:
    corpus = corpora[number]
    with corpus.store.snapshot() as snapshot:
        snapshot.register(FUNCTIONS)
        where = compile_filter(filter_, snapshot.roots(), space)
        items = [item_id for item_id, (modality, _) in corpus.things.items() if modality == space]
        statement = f"SELECT item_id FROM items JOIN assets USING (asset_id) WHERE items.modality = ? AND ({where.sql})"
        expected = {item_id for (item_id,) in snapshot.select(statement, (space, *where.parameters))}
        assert where.of_one.count("?") == len(where.parameters)
        assert selection.passing(snapshot, items, where) == expected, format_filter(filter_)
        assert selection.passing(snapshot, items[::2], where) == expected & set(items[::2])


@pytest.mark.parametrize(
    "where", ["taken < 2024", "near(5, 1, 3km)", "tag = even", "not tag ~ 'e*'", "size > 5", "path ~ '*5.jpg'"]
)
def test_items_that_are_given_are_looked_up_by_id(snapshot: Snapshot, where: str) -> None:
    """No index of a field is walked for them, and no table."""
    condition = _condition(snapshot, where)
    statement = f"EXPLAIN QUERY PLAN SELECT item_id {selection._GIVEN} WHERE {condition.of_one}"
    plan = [detail for *_, detail in snapshot.select(statement, ("[1]", *condition.parameters))]
    searched = [detail for detail in plan if "items" in detail or "assets" in detail]
    assert searched
    assert all("SEARCH" in detail and "INTEGER PRIMARY KEY" in detail for detail in searched), plan


# Words


@pytest.mark.parametrize(("word", "rows"), [("jpg", COUNT), ("even", COUNT // 2)])
def test_many_rows_with_a_word_are_estimated(
    snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch, word: str, rows: int
) -> None:
    monkeypatch.setattr(lexical, "_EXACTLY", rows // 4)
    assert lexical.word_frequency(snapshot, word, COUNT) == pytest.approx(rows, rel=0.02)
    assert lexical.word_frequency(snapshot, word, rows // 2) == rows // 2
    assert lexical.word_frequency(snapshot, word, rows // 8) == rows // 8


def test_few_rows_with_a_word_are_counted(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    for exactly in (2, 3, 20_000):
        monkeypatch.setattr(lexical, "_EXACTLY", exactly)
        assert lexical.word_frequency(snapshot, '"7"', COUNT) == 1
        assert lexical.word_frequency(snapshot, "nowhere", COUNT) == 0


def test_an_estimate_is_no_less_than_what_was_counted(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    """No window has the only row with the word."""
    monkeypatch.setattr(lexical, "_EXACTLY", 1)
    monkeypatch.setattr(lexical, "spread", lambda last, count: [1])
    assert lexical.word_frequency(snapshot, '"1100"', COUNT) == 1
