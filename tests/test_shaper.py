"""Pages, groups, near-duplicates, diversity and dates of whole answers, against naive versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_kit import Built, File, add_captions, build, ids, no_encoder, unit

from mmsearch.retrieval import shaper, shaping
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.options import SearchOptions
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.types import Answer, Hit

DIM = 16
FOLDERS = ("", "a/", "a/b/", "c/")
CAPTIONS = ((), ("a red dog",), ("a red dog", "on the beach"), ("a cat",))


def _corpus() -> list[File]:
    """Pictures and texts of few vectors, captions, dates, hashes and folders: equal scores everywhere."""
    random = np.random.default_rng(7)
    vectors = [tuple(row) for row in random.integers(-2, 3, (9, DIM)).tolist()]
    files = []
    for number in range(64):
        folder = FOLDERS[int(random.integers(len(FOLDERS)))]
        files.append(
            File(
                f"{folder}{number:02}.jpg",
                vectors[int(random.integers(len(vectors)))],
                CAPTIONS[int(random.integers(len(CAPTIONS)))],
                ("beach",) if random.random() < 0.3 else (),
                taken=f"2024-0{random.integers(1, 4)}-01T00:00:00" if random.random() < 0.5 else None,
                modified=int(random.integers(3)) * 10**18,
                phash=int(random.integers(3)) if random.random() < 0.8 else None,
            )
        )
    files += [
        File(f"{number}.txt", vectors[number % 9], ("a red dog", f"passage {number}"), modality="text")
        for number in range(8)
    ]
    return files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("corpus"), _corpus())


class _Encoder(FakeEncoder):
    identity = "fake-1"

    def __init__(self) -> None:
        super().__init__(dim=DIM)
        self.identity = "fake-1"


@pytest.fixture(scope="module")
def searcher(corpus: Built) -> Iterator[Searcher]:
    encoder = _Encoder()
    with corpus.store.snapshot() as snapshot:
        yield Searcher(snapshot, lambda: encoder)


@contextmanager
def small_pools() -> Iterator[None]:
    """Pools and depths that a small index has several of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shaper, "_POOL", 6)
        patch.setattr(shaping, "FIRST_DEPTH", 5)
        yield


def shown(hits: Answer) -> list[tuple[Any, ...]]:
    return [(hit.rank, hit.item_id, hit.score, hit.relevance, hit.others, tuple(ids(hit.duplicates))) for hit in hits]


OPTIONS = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(("dense", "lexical", "hybrid")),
        "fusion": st.sampled_from(("early", "late", "both")),
        "modality": st.sampled_from(("image", "text", "all")),
        "group": st.sampled_from((None, "file", "folder")),
        "dedup": st.booleans(),
        "diverse": st.sampled_from((0.0, 0.3, 1.0)),
        "min_relevance": st.sampled_from((0.0, 0.01)),
        "where": st.sampled_from((None, 'path ~ "*a*"', 'tag = "beach"')),
        "query": st.sampled_from(
            ("red dog", "2:red dog + cat", "red dog - 0.5:beach", "dog + id:3", '"red dog" + id:70')
        ),
    }
).map(lambda options: options | {"fusion": None} if options["mode"] == "lexical" else options)


# Pages


@settings(max_examples=120, deadline=None)
@given(OPTIONS, st.integers(1, 17))
def test_pages_fit_together(searcher: Searcher, options: dict[str, Any], k: int) -> None:
    with small_pools():
        whole = shown(searcher.search(k=500, **options))
        pages: list[tuple[Any, ...]] = []
        while True:
            page = shown(searcher.search(k=k, offset=len(pages), **options))
            pages += page
            if len(page) < k:
                break
        assert pages == whole
    everyone = [item_id for hit in whole for item_id in (hit[1], *hit[5])]
    assert len(set(everyone)) == len(everyone), "nothing comes twice"
    assert [hit[0] for hit in whole] == list(range(1, len(whole) + 1))


@settings(max_examples=30, deadline=None)
@given(OPTIONS, st.integers(1, 30), st.integers(0, 20))
def test_dates_sort_the_hits_of_a_page(searcher: Searcher, options: dict[str, Any], k: int, offset: int) -> None:
    by_relevance = searcher.search(k=k, offset=offset, **options)
    by_date = searcher.search(k=k, offset=offset, sort="date", **options)
    files = {file.uri: file for file in _corpus()}

    def date(hit: Hit) -> str:
        file = files[hit.uri.removesuffix(".txt") if hit.uri.endswith(".jpg.txt") else hit.uri]
        if file.taken is not None:
            return file.taken
        return str(np.datetime64(file.modified, "ns").astype("datetime64[s]"))

    assert ids(by_date) == ids(sorted(by_relevance, key=date, reverse=True))
    assert [hit.rank for hit in by_date] == list(range(offset + 1, offset + len(by_date) + 1))
    assert by_date.matched == by_relevance.matched


# Groups


@pytest.mark.parametrize("by", ["file", "folder"])
@pytest.mark.parametrize("query", ["red dog", "red dog - beach", "id:3"])
@pytest.mark.parametrize("mode", ["dense", "hybrid", "lexical"])
@pytest.mark.parametrize("modality", ["image", "text", "all"])
def test_groups_keep_the_order_and_count_the_others(
    searcher: Searcher, by: str, query: str, mode: str, modality: str
) -> None:
    if mode == "lexical" and query == "id:3":
        with pytest.raises(UsageError):
            searcher.search(query, mode=mode, group=by)
        return
    everything = searcher.search(query, mode=mode, modality=modality, k=200)
    grouped = searcher.search(query, mode=mode, modality=modality, k=200, group=by)
    best: dict[object, Hit] = {}
    others: dict[object, int] = {}
    for hit in everything:
        assert hit.path is not None
        place = hit.path if by == "file" else hit.path.parent
        best.setdefault(place, hit)
        others[place] = others.get(place, -1) + 1
    assert ids(grouped) == ids(list(best.values()))
    assert [hit.others for hit in grouped] == list(others.values())
    assert [hit.score for hit in grouped] == [hit.score for hit in best.values()]


@pytest.mark.parametrize("modality", ["image", "text", "all"])
@pytest.mark.parametrize("where", [None, 'path ~ "*a*"', 'tag = "one"'])
def test_every_folder_is_found_however_few_there_are(tmp_path: Path, modality: str, where: str | None) -> None:
    """Rows of a manifest lie where their pictures do, or where the manifest does."""
    files = [File(f"{folder}/{n:02}.jpg", (1, n), tags=("one",) * (n == 9)) for n in range(20) for folder in "ab"]
    built = build(tmp_path, [*files, File("a/below/only.jpg", (-1, 0)), File("last.jpg", (-1, -1), ("beside",))])
    add_captions(built, tmp_path, [("a/00.jpg", "one"), ("b/01.jpg", "two"), ("b/02.jpg", "three"), (None, "four")])
    with built.store.snapshot() as snapshot, small_pools():
        searcher = Searcher(snapshot, no_encoder)
        options: dict[str, Any] = {"vector": (1, 0), "modality": modality, "where": where}
        everything = searcher.search(k=200, **options)
        grouped = searcher.search(k=50, group="folder", **options)
    assert [hit.path.parent for hit in grouped if hit.path] == list(
        dict.fromkeys(hit.path.parent for hit in everything if hit.path)
    )
    assert len(grouped) > 0 or (modality, where) == ("text", 'tag = "one"')


# Near-duplicates


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
@pytest.mark.parametrize("modality", ["image", "text", "all"])
def test_the_best_of_near_duplicates_is_kept_and_lists_the_rest(searcher: Searcher, mode: str, modality: str) -> None:
    everything = searcher.search("red dog", mode=mode, modality=modality, k=200)
    kept = searcher.search("red dog", mode=mode, modality=modality, k=200, dedup=True)
    assert len(kept) < len(everything)
    rank = {hit.item_id: hit.rank for hit in everything}
    scores = {hit.item_id: hit.score for hit in everything}
    listed = [[hit.item_id, *ids(hit.duplicates)] for hit in kept]
    assert sorted(rank, key=rank.__getitem__) == sorted((one for each in listed for one in each), key=rank.__getitem__)
    for hit, each in zip(kept, listed, strict=True):
        assert [rank[one] for one in each] == sorted(rank[one] for one in each), "the best first"
        assert [one.score for one in hit.duplicates] == [scores[one.item_id] for one in hit.duplicates]
        assert {one.modality for one in hit.duplicates} <= {hit.modality}
        assert all(one.rank == hit.rank for one in hit.duplicates)
    assert [rank[hit.item_id] for hit in kept] == sorted(rank[hit.item_id] for hit in kept)


def test_near_duplicates_by_hash_and_by_embedding(tmp_path: Path) -> None:
    tilt = (1.0, 0.05) + (0.0,) * (DIM - 2)
    axis = (1.0,) + (0.0,) * (DIM - 1)
    away = (0.9, 1.0) + (0.0,) * (DIM - 2)
    built = build(
        tmp_path,
        [
            File("best.jpg", axis, phash=0),
            File("same-vector.jpg", axis, phash=-1),
            File("close.jpg", tilt, phash=1),
            File("other.jpg", away, phash=0),
            File("other-copy.jpg", away),
        ],
    )
    with built.store.snapshot() as snapshot:
        answer = Searcher(snapshot, no_encoder).search(vector=axis, dedup=True)
    assert [(hit.uri, [one.uri for one in hit.duplicates]) for hit in answer] == [
        ("best.jpg", ["same-vector.jpg", "close.jpg"]),
        ("other.jpg", ["other-copy.jpg"]),
    ]


# Diversity


@pytest.mark.parametrize("by", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("modality", ["image", "all"])
def test_diversity_is_maximal_marginal_relevance(corpus: Built, searcher: Searcher, by: float, modality: str) -> None:
    plain = searcher.search("red dog", modality=modality, k=200)
    diverse = searcher.search("red dog", modality=modality, k=200, diverse=by)
    assert len(plain) <= 200
    with corpus.store.snapshot() as snapshot:
        rows = {hit.item_id: unit(snapshot.vectors(hit.modality, [hit.item_id])[0]).astype(np.float64) for hit in plain}
    low, high = min(hit.score for hit in plain), max(hit.score for hit in plain)
    relevance = {hit.item_id: (hit.score - low) / (high - low) for hit in plain}
    left, chosen = ids(plain), list[int]()
    for hit in diverse:
        values = {
            one: (1 - by) * relevance[one] - by * max((rows[one] @ rows[other] for other in chosen), default=0.0)
            for one in left
        }
        assert values[hit.item_id] == pytest.approx(max(values.values()), abs=1e-6)
        first = next(
            one for one in left if (rows[one] == rows[hit.item_id]).all() and values[one] == values[hit.item_id]
        )
        assert hit.item_id == first, "of equals the best ranked"
        chosen.append(hit.item_id)
        left.remove(hit.item_id)
    assert left == []


# Relevance


def test_only_what_is_relevant_enough(searcher: Searcher) -> None:
    everything = searcher.search("red dog", k=200)
    assert all(hit.relevance is not None for hit in everything), "there are enough pictures to compare with"
    values = sorted((hit.relevance or 0.0) for hit in everything)
    for least in (values[1], values[len(values) // 2], values[-1]):
        expected = [hit.item_id for hit in everything if (hit.relevance or 0.0) >= least]
        assert ids(searcher.search("red dog", k=200, min_relevance=least)) == expected
    with small_pools():
        for options in ({}, {"modality": "all"}, {"fusion": "late"}, {"where": 'path ~ "*a*"'}, {"mode": "dense"}):
            some = searcher.search("red dog + cat", k=200, **options)
            least = sorted(hit.relevance or 0.0 for hit in some)[-5]
            expected = [hit.item_id for hit in some if (hit.relevance or 0.0) >= least]
            assert ids(searcher.search("red dog + cat", k=200, min_relevance=least, **options)) == expected
    texts = searcher.search("red dog", k=200, modality="text", mode="lexical", min_relevance=0.5)
    assert texts.notices == ("relevance is unknown here, so nothing was left out for it",)
    assert len(texts) > 0


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(
            ({name: value}, f"{name} must be between 0 and 1")
            for name in ("diverse", "min_relevance")
            for value in (-0.1, 1.1, float("nan"), float("inf"), "much", None, [0.5])
        ),
        ({"k": 0}, "k must be 1 or more"),
        ({"k": 1.0}, "k must be a whole number"),
        ({"offset": -1}, "offset must be 0 or more"),
        ({"mode": "exact"}, "mode 'exact' is none of dense, lexical, hybrid"),
        ({"fusion": ""}, "fusion '' is none of early, late, both"),
        ({"fusion": "late", "mode": "lexical"}, "lexical search looks at words only"),
        ({"group": "day"}, "group 'day' is none of file, folder"),
        ({"sort": "name"}, "sort 'name' is none of relevance, date"),
        ({"modality": "video"}, "modality 'video' is none of image, text, all"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SearchOptions(**options)


def test_numbers_of_numpy_are_numbers() -> None:
    options = SearchOptions(k=np.int64(3), diverse=np.float32(0.5))  # type: ignore[arg-type]
    assert (options.k, type(options.k)) == (3, int)
