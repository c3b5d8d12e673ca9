"""Rankings of composed queries, lexical and hybrid search, against naive versions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from search_kit import Built, File, add_captions, build, ids, no_encoder, unit

from mmsearch.retrieval.calibrate import Calibration
from mmsearch.retrieval.clauses import ClauseEncoder
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.query import ItemClause, Query, TextClause, parse
from mmsearch.retrieval.ranking import compose
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.store.reader import Snapshot
from mmsearch.retrieval.types import Answer, FusionMethod

VECTORS = st.tuples(*[st.integers(-3, 3)] * 4).filter(any)
WEIGHTS = st.sampled_from((1.0, 2.0, 0.5, -1.0, -2.0))


def search(built: Built, query: str | Query | None = None, encoder: Encoder | None = None, **options: object) -> Answer:
    with built.store.snapshot() as snapshot:
        give = no_encoder if encoder is None else lambda: encoder
        return Searcher(snapshot, give).search(query, **options)  # type: ignore[arg-type]


def _rows(snapshot: Snapshot, built: Built) -> dict[int, np.ndarray]:
    wanted = sorted(built.pictures.values())
    return dict(zip(wanted, snapshot.vectors("image", wanted).astype(np.float64), strict=True))


def _ranked(scores: dict[int, float]) -> list[int]:
    return sorted(scores, key=lambda id_: (-scores[id_], id_))


# One vector, a list for each clause, or both


def _composed(rows: dict[int, np.ndarray], clauses: Sequence[tuple[int, float]]) -> np.ndarray | None:
    """The definition: each clause counts by its weight over the spread of its scores, a negative one half."""
    if any(weight > 0 for _, weight in clauses):
        clauses = [(item, weight if weight > 0 else weight / 2) for item, weight in clauses]
    total = np.zeros(4)
    size = 0.0
    for item, weight in clauses:
        spread = float(np.std([rows[item] @ row for row in rows.values()])) if len(clauses) > 1 else 1.0
        share = weight / spread if spread > 1e-7 else weight
        total += share * rows[item]
        size += abs(share)
    length = float(np.linalg.norm(total))
    return None if length < 1e-4 * size else total / length


def _naive(rows: dict[int, np.ndarray], clauses: Sequence[tuple[int, float]], fusion: FusionMethod) -> dict[int, float]:
    composed = _composed(rows, clauses)
    if composed is None:
        return {}
    dense = {id_: float(row @ composed) for id_, row in rows.items()}
    # Near-ties of a composed vector go by what rounding makes of them.
    assume(all(abs(a - b) > 1e-5 for a, b in pairwise(sorted(dense.values()))))
    if fusion == "early" or len(clauses) == 1:
        return dense
    largest = max(abs(weight) for _, weight in clauses)
    sign = -1 if all(weight < 0 for _, weight in clauses) else 1
    lists = [(1.0, _ranked(dense))] if fusion == "both" else []
    for item, weight in clauses:
        ranking = _ranked({id_: sign * float(row @ rows[item]) for id_, row in rows.items()})
        lists.append((sign * weight / largest, ranking))
    return {id_: float(sum(Fraction(weight) / (61 + ranking.index(id_)) for weight, ranking in lists)) for id_ in rows}


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
@settings(max_examples=40, deadline=None)
@given(st.lists(VECTORS, min_size=2, max_size=7), st.data())
def test_fusion_of_clauses_is_the_naive_one(
    fusion: FusionMethod, vectors: list[tuple[int, ...]], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        built = build(Path(folder), [File(f"{n}.jpg", vector) for n, vector in enumerate(vectors)])
        item = st.sampled_from(sorted(built.pictures.values()))
        clauses = data.draw(st.lists(st.tuples(item, WEIGHTS), min_size=1, max_size=4))
        query = Query(tuple(ItemClause(*clause) for clause in clauses))
        answer = search(built, query, fusion=fusion, mode="dense", include_self=True, k=100)
        with built.store.snapshot() as snapshot:
            expected = _naive(_rows(snapshot, built), clauses, fusion)
    assert {hit.item_id: hit.score for hit in answer} == pytest.approx(expected, abs=2e-6)
    assert [(hit.item_id, hit.score) for hit in answer] == sorted(
        ((hit.item_id, hit.score) for hit in answer), key=lambda pair: (-pair[1], pair[0])
    )


@pytest.fixture
def three(tmp_path: Path) -> Built:
    """Pictures along three axes, and one between the first two."""
    return build(
        tmp_path,
        [
            File("x.jpg", (1, 0, 0, 0)),
            File("y.jpg", (0, 1, 0, 0)),
            File("z.jpg", (0, 0, 1, 0)),
            File("xy.jpg", (1, 1, 0, 0)),
        ],
    )


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
@pytest.mark.parametrize("query", ["id:1 - 2:id:1", "id:1 + id:2 - 2:id:2 - 2:id:1", "2:id:1 - id:1 - 3:id:1"])
def test_opposite_clauses_cancel_out(three: Built, fusion: str, query: str) -> None:
    answer = search(three, query, fusion=fusion)
    assert list(answer) == []
    assert answer.notices == ("the clauses cancel each other out: there is nothing left to rank by",)


def test_ranks_that_cancel_out_are_told_of(three: Built) -> None:
    """Of a composed vector half of the clause is left; of its ranks nothing is."""
    query = Query((ItemClause(1), ItemClause(1, -1.0)))
    late = search(three, query, fusion="late", mode="dense", include_self=True)
    assert [(hit.item_id, hit.score) for hit in late] == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0)]
    assert late.notices == ("the clauses cancel each other out: there is nothing left to rank by",)
    for fusion in ("early", "both"):
        answer = search(three, query, fusion=fusion, mode="dense", include_self=True)
        assert (answer[0].item_id, answer.notices) == (1, ())


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
def test_what_is_left_of_clauses_ranks(three: Built, fusion: str) -> None:
    answer = search(three, "id:1 + id:2 - 2:id:1", fusion=fusion, mode="dense", include_self=True)
    assert (answer[0].uri, answer.notices) == ("y.jpg", ())


def test_pictures_that_are_all_alike(tmp_path: Path) -> None:
    """Their scores vary by rounding only, which must not decide what a clause counts."""
    random = np.random.default_rng(3).normal(size=(2, 33))
    same = tuple(random[0].tolist())
    built = build(tmp_path, [File(f"{number:03}.jpg", same) for number in range(200)])
    for fusion in ("early", "late", "both"):
        answer = search(built, "3:id:5 - id:7", vector=random[1], fusion=fusion, include_self=True, k=200)
        assert ids(answer) == list(range(1, 201))
        assert answer.explanation is not None
        parts = [clause.contribution / (clause.score or 0.0) for clause in answer.explanation.hits[0].clauses]
        assert [part / parts[0] for part in parts] == pytest.approx([1.0, -1 / 6, 1 / 3])


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
@pytest.mark.parametrize("query", ["- id:1", "- id:1 - 3:id:4"])
def test_negative_clauses_only(three: Built, fusion: str, query: str) -> None:
    answer = search(three, query, fusion=fusion, include_self=True)
    assert len(answer) == 4
    assert {hit.uri for hit in answer[2:]} == {"x.jpg", "xy.jpg"}, "what is least like them comes first"
    assert answer.notices == ("only negative clauses: what is least like them comes first",)
    assert answer.matched is None


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
@pytest.mark.parametrize("size", [1e308, 1.7e308, 5e-324, 1e-300, 1e30])
def test_only_the_proportion_of_weights_counts(three: Built, fusion: str, size: float) -> None:
    def found(factor: float) -> list[tuple[int, float]]:
        query = Query((ItemClause(1, factor), ItemClause(2, factor), ItemClause(3, -factor)))
        answer = search(three, query, fusion=fusion, include_self=True)
        return [(hit.item_id, round(hit.score, 9)) for hit in answer]

    assert found(size) == found(1.0)
    assert len(found(size)) == 4


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
def test_a_hundred_clauses_and_no_more(three: Built, fusion: str) -> None:
    query = " + ".join(f"{number % 7 + 1}:id:{number % 3 + 1}" for number in range(100))
    answer = search(three, query, fusion=fusion, include_self=True)
    assert len(answer) == 4
    assert answer.explanation is not None
    assert len(answer.explanation.hits[0].clauses) == 100
    if fusion == "late":
        assert len(answer.explanation.hits[0].ranks) == 100, "clauses that are written alike keep lists of their own"
    for many in (f"{query} + id:1", " + ".join(["id:1"] * 200)):
        with pytest.raises(UsageError, match="100 clauses"):
            search(three, many, fusion=fusion)
    with pytest.raises(UsageError, match="200 clauses; at most 100"):
        search(three, Query((ItemClause(1),) * 200))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 10**400])
def test_weights_that_are_none(weight: float) -> None:
    with pytest.raises(UsageError, match="a weight is a finite number other than 0"):
        TextClause("dog", weight)
    with pytest.raises(UsageError, match="a weight is a finite number other than 0"):
        ItemClause(1, weight)


def test_weights_that_are_none_as_text(three: Built) -> None:
    for query in ("1e999:id:1", "0:id:1", "-1e999:id:1", "1e-999:id:1"):
        with pytest.raises(UsageError, match="a weight is a finite number other than 0"):
            search(three, query)
    for query in ("nan:dog", "inf:dog", "-inf:dog"):  # words, as docs/query.md says
        found = search(three, query, mode="lexical")
        assert found.explanation is not None
        assert found.explanation.query == query


def test_a_clause_that_is_called_like_another_list(corpus: Built) -> None:
    answer = search(corpus, "no + words + words + composed", _axes(), fusion="both")
    assert answer.explanation is not None
    ranks = next(one.ranks for one in answer.explanation.hits if one.item_id == corpus.pictures[SIGN])
    assert list(ranks) == ["composed", "no", "words", "words #2", "composed #2", "words #3", "clauses"]


def test_contributions_of_clauses_add_up_to_the_score(three: Built) -> None:
    answer = search(three, "2:id:1 + id:2 - 0.5:id:3", include_self=True)
    assert answer.explanation is not None
    for hit, explained in zip(answer, answer.explanation.hits, strict=True):
        assert sum(clause.contribution for clause in explained.clauses) == pytest.approx(hit.score, abs=1e-6)
        assert [clause.weight for clause in explained.clauses] == [2.0, 1.0, -0.5]


@pytest.mark.parametrize("fusion", ["early", "late", "both"])
def test_whether_anything_matches_is_the_same_on_every_page(tmp_path: Path, fusion: str) -> None:
    rows = np.random.default_rng(1).normal(size=(120, 64))
    built = build(tmp_path, [File(f"{n:03}.jpg", tuple(row.tolist())) for n, row in enumerate(rows)])
    query = "id:7 + 0.1:id:9"
    said = {
        search(built, query, fusion=fusion, k=10, offset=offset, include_self=True).matched for offset in (0, 50, 110)
    }
    assert said == {True}


# Lexical and hybrid search

CORPUS = (
    File("beach/IMG_2041dog.jpg", (1, 0, 0, 0), ("A red dog on the beach.", "a dog runs")),
    File("beach/plain.jpg", (1, 1, 0, 0), ('café au lait 🐕 "quoted" text',), ("sea side", "Hündin")),
    File("%E7%8C%AB/cat-1.jpg", (0, 1, 0, 0), ("一只大花猫坐在沙发上",), ("猫",)),
    File("%E7%8C%AB/x.jpg", (0, 1, 1, 0), ("no entry sign, no dog",)),
    File("notes.txt", (0, 0, 1, 0), ("the dog and the no entry sign", "花 and 猫"), modality="text"),
    File("empty.jpg", (0, 0, 1, 1)),
)


@pytest.fixture
def corpus(tmp_path: Path) -> Built:
    return build(tmp_path, CORPUS)


def uris(answer: Answer) -> set[str]:
    return {hit.uri for hit in answer}


DOG, PLAIN, CAT, SIGN = (file.uri for file in CORPUS[:4])


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("dog", {DOG, SIGN}),
        ("DOG", {DOG, SIGN}),
        ("beach", {DOG, PLAIN}),
        ("2041", {DOG}),
        ("img_2041dog.jpg", {DOG}),
        ('"no entry"', {SIGN}),
        ('"entry no"', set()),
        ('"red dog" lait', {DOG}),
        ("cafe", {PLAIN}),
        ("CAFÉ", {PLAIN}),
        ("cafe\u0301", {PLAIN}),
        ("hundin", {PLAIN}),
        ("sea", {PLAIN}),
        ('"sea side"', {PLAIN}),
        ("大花猫", {CAT}),
        ("花猫", {CAT}),
        ("猫", {CAT, SIGN}),
        ("沙", {CAT}),
        ("沙发", {CAT}),
        ("沙猫", set()),
        ('"坐在沙"', {CAT}),
        ('"坐沙"', set()),
        ("dog - beach", {SIGN}),
        ("dog - red", {DOG, SIGN}),
        ('dog - "no entry"', {DOG}),
        ("dog - sofa", {DOG, SIGN}),
        ("quoted", {PLAIN}),
        ("the", {DOG}),
        ("zebra", set()),
        ("zebra dog", {DOG, SIGN}),
    ],
)
def test_words_find_pictures(corpus: Built, query: str, found: set[str]) -> None:
    answer = search(corpus, query, mode="lexical")
    assert uris(answer) == found
    assert [hit.score for hit in answer] == sorted((hit.score for hit in answer), reverse=True)


@pytest.mark.parametrize("query", ["🐕", "!!!", "。", "...", '"?!"', "- -", "\\+ \\-", "*", "\u200b!"])
def test_queries_without_a_word(corpus: Built, query: str) -> None:
    try:
        answer = search(corpus, query, mode="lexical")
    except UsageError:
        assert query == "- -", "a clause is missing"
        return
    assert (list(answer), answer.notices) == ([], ("no text, name or tag here has the words of the query",))


@pytest.mark.parametrize(
    "query",
    [
        *(
            "dog OR zebra",
            "dog AND zebra",
            "NEAR( dog zebra, 9)",
            "dog*",
            "dog'",
            'do"g',
            "text: dog",
            "^dog",
            "dog;--",
        ),
        *(
            "{text} : dog",
            "-dog",
            "dog NOT red",
            "(dog",
            "dog)",
            "name: dog",
            "' OR 1=1 --",
            "dog\0",
            "dog ${x}",
            '5" dog',
        ),
    ],
)
@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
def test_operators_of_fts5_mean_nothing(corpus: Built, query: str, mode: str) -> None:
    answer = search(corpus, Query.literal(query), _axes(), mode=mode)
    assert answer.notices in ((), ("no text, name or tag here has the words of the query",))
    if "dog" in query and mode == "lexical" and query != 'do"g':
        assert uris(answer) >= {DOG, SIGN}


class _Axes(FakeEncoder):
    """Every text is along the first axis of a space of four."""

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([unit((1, 0, 0, 0))] * len(texts))


def _axes() -> FakeEncoder:
    encoder = _Axes(dim=16)
    encoder.dim, encoder.identity = 4, "fake-1"
    return encoder


def _share(words: Sequence[str], texts: Sequence[str], rows: Sequence[str]) -> float:
    """The definition: the idf of the words that the best of an item's texts has, in that of all words asked for."""
    idf = {}
    for word in words:
        found = sum(word in row for row in rows)
        idf[word] = math.log(1 + (len(rows) - found + 0.5) / (found + 0.5))
    return max(sum(idf[word] for word in words if word in text) for text in texts) / sum(idf.values())


# What can be found of each row of `corpus`: the names and tags of pictures, and texts with the names of their files.
ROWS = {
    DOG: (
        "beach img_2041dog.jpg dog",
        "a red dog on the beach. beach img_2041dog.jpg",
        "a dog runs beach img_2041dog.jpg",
    ),
    PLAIN: ("beach plain.jpg sea side hündin", 'café au lait 🐕 "quoted" text beach plain.jpg'),
    CAT: ("猫 cat-1.jpg 猫", "一只大花猫坐在沙发上 cat-1.jpg"),
    SIGN: ("猫 x.jpg", "no entry sign, no dog 猫 x.jpg"),
    "empty.jpg": ("empty.jpg",),
    "notes.txt": ("the dog and the no entry sign notes.txt", "花 and 猫 notes.txt"),
}


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("dog", ["dog"]),
        ("2:dog", ["dog"]),
        ("猫", ["猫"]),
        ("beach", ["beach"]),
        ("zebra", ["zebra"]),
        ("red dog", ["red", "dog"]),
        ("a red dog with a zebra", ["red", "dog", "zebra"]),
        ("cat and sign", ["cat", "sign"]),
        ('"no entry"', ["no entry"]),
        ('"no entry" sign', ["no entry", "sign"]),
        ("dog - 0.5:beach", ["dog"]),
    ],
)
@pytest.mark.parametrize("fusion", ["early", "late"])
def test_hybrid_is_the_fusion_of_both(corpus: Built, query: str, words: list[str], fusion: str) -> None:
    dense = ids(search(corpus, query, _axes(), mode="dense", fusion=fusion, k=100))
    lexical = ids(search(corpus, query, mode="lexical", k=100))
    hybrid = search(corpus, query, _axes(), fusion=fusion, k=100)
    if not lexical:
        assert [hit.score for hit in hybrid] == [
            hit.score for hit in search(corpus, query, _axes(), mode="dense", fusion=fusion, k=100)
        ]
        return
    uri = {item_id: uri for uri, item_id in corpus.pictures.items()}
    rows = [row for texts in ROWS.values() for row in texts]
    fused: dict[int, float] = {}
    for id_ in dense:
        fused[id_] = 1 / (6 + dense.index(id_))
        if id_ in lexical:
            fused[id_] += 2 * _share(words, ROWS[uri[id_]], rows) / (6 + lexical.index(id_))
    assert {hit.item_id: hit.score for hit in hybrid} == pytest.approx(fused)
    assert [(hit.item_id, hit.score) for hit in hybrid] == sorted(
        ((hit.item_id, hit.score) for hit in hybrid), key=lambda pair: (-pair[1], pair[0])
    )


def test_all_modalities_are_lists_of_their_own(corpus: Built) -> None:
    ranked = {
        mode: [
            ids(search(corpus, "dog", _axes(), mode=mode, modality=modality, k=100)) for modality in ("image", "text")
        ]
        for mode in ("dense", "lexical")
    }
    fused: dict[int, float] = {}
    for mode, weight in (("dense", 1), ("lexical", 2)):
        for ranking in ranked[mode]:
            for place, id_ in enumerate(ranking):
                fused[id_] = fused.get(id_, 0.0) + weight / (6 + place)
    answer = search(corpus, "dog", _axes(), modality="all", k=100)
    assert {hit.item_id: hit.score for hit in answer} == pytest.approx(fused)
    for mode in ("dense", "lexical"):  # one kind of list only: by their ranks, as ever
        expected: dict[int, float] = {}
        for ranking in ranked[mode]:
            for place, id_ in enumerate(ranking):
                expected[id_] = 1 / (61 + place)
        answer = search(corpus, "dog", _axes(), mode=mode, modality="all", k=100)
        assert {hit.item_id: hit.score for hit in answer} == pytest.approx(expected)


def test_a_picture_without_a_caption_can_win(tmp_path: Path) -> None:
    """One word in common must not count for more than a picture that fits best, nor less than all of them."""
    captioned = [File(f"{n:03}.jpg", (1, 1 + n, 0, 0), (f"a dog and thing{n}",)) for n in range(40)]
    built = build(tmp_path, [*captioned, File("fits.jpg", (1, 0, 0, 0))])
    assert search(built, "a dog wearing glasses indoors", _axes())[0].uri == "fits.jpg"
    all_of_them = search(built, "a dog and thing7", _axes())
    assert all_of_them[0].uri == "007.jpg", "the only one that has all words"
    assert "fits.jpg" in {hit.uri for hit in all_of_them[:3]}


def test_words_count_up_to_a_hundred_of_their_list(tmp_path: Path) -> None:
    built = build(tmp_path, [File(f"{n:03}.jpg", (1, n, 0, 0), ("a dog",)) for n in range(150)])
    answer = search(built, "dog", _axes(), k=150)
    assert answer.explanation is not None
    ranks = [one.ranks.get("words") for one in answer.explanation.hits]
    assert sorted(rank for rank in ranks if rank is not None) == list(range(1, 101))
    pages = [search(built, "dog", _axes(), k=50, offset=offset) for offset in (0, 50, 100)]
    assert [id_ for page in pages for id_ in ids(page)] == ids(answer)


def _factors(built: Built, query: str) -> list[float]:
    """What the clauses of a query for the items 1 and 3 count, but for the spread of their scores."""
    with built.store.snapshot() as snapshot:
        rows = _rows(snapshot, built)
        clauses = ClauseEncoder(snapshot, no_encoder).embed(parse(query).clauses)
        shares = compose(Calibration(snapshot), "image", clauses).shares
    spread = [float(np.std([rows[item] @ row for row in rows.values()])) for item in (1, 3)]
    return [share * deviation for share, deviation in zip(shares, spread, strict=True)]


def test_negative_clauses_count_half_beside_positive_ones(three: Built) -> None:
    positive, negative = _factors(three, "id:1 - id:3")
    assert negative / positive == pytest.approx(-0.5)
    positive, negative = _factors(three, "id:1 - 2:id:3")
    assert negative / positive == pytest.approx(-1.0)
    first, second = _factors(three, "- id:1 - 3:id:3")
    assert second / first == pytest.approx(3.0), "among themselves they count by their weights"


@pytest.mark.parametrize("modality", ["image", "text", "all"])
def test_a_phrase_that_is_there_is_a_match(corpus: Built, modality: str) -> None:
    for mode in ("hybrid", "lexical"):
        assert search(corpus, '"no entry"', _axes(), mode=mode, modality=modality).matched is True
        assert search(corpus, '"entry no"', _axes(), mode=mode, modality=modality).matched is None


def test_lexical_search_says_what_it_passes_over(corpus: Built) -> None:
    passed = "lexical search looks for words only: the rest of the query was passed over"
    assert search(corpus, "dog + id:1", mode="lexical").notices == (passed,)
    assert search(corpus, "dog", vector=[1, 0, 0, 0], mode="lexical").notices == (passed,)
    assert uris(search(corpus, "dog + id:1", mode="lexical")) == {DOG, SIGN}
    for query in ("id:1", "./a.jpg", "- dog", "id:1 - dog"):
        with pytest.raises(UsageError, match="looks for words: give it a text"):
            search(corpus, query, mode="lexical")


@pytest.mark.parametrize("mode", ["lexical", "hybrid", "dense"])
@pytest.mark.parametrize("modality", ["image", "text", "all"])
def test_any_k_and_offset(corpus: Built, mode: str, modality: str) -> None:
    few = search(corpus, "dog", _axes(), mode=mode, modality=modality, k=100)
    many = search(corpus, "dog", _axes(), mode=mode, modality=modality, k=10**30)
    assert ids(many) == ids(few)
    assert list(search(corpus, "dog", _axes(), mode=mode, modality=modality, offset=10**30)) == []


def test_equal_words_are_ranked_by_what_has_them(tmp_path: Path) -> None:
    """Captions of the same words, in another order than their pictures: a longer answer begins with a shorter one."""
    built = build(tmp_path, [File(f"{number:03}.jpg") for number in range(300)])
    add_captions(built, tmp_path, [(f"{number:03}.jpg", "a red dog") for number in reversed(range(300))])
    for k in (1, 10, 40, 300):
        assert ids(search(built, "red", mode="lexical", k=k)) == list(range(300, 300 - k, -1))


def test_of_frequent_words_the_newest_items_are_ranked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In hybrid search; lexical search ranks all."""
    built = build(tmp_path, [File(f"{number:03}.jpg") for number in range(120)])
    add_captions(built, tmp_path, [(f"{number:03}.jpg", "a red dog") for number in range(120) if number % 3])
    monkeypatch.setattr("mmsearch.retrieval.ranking.WORDS_RANKED", 10)
    found = search(built, "red", _axes(), mode="hybrid", k=120)
    worded = {one.item_id for one in found.explanation.hits if "words" in one.ranks}
    captioned = [number + 1 for number in range(120) if number % 3]
    assert worded == set(captioned[-10:])
    assert len(search(built, "red", mode="lexical", k=120)) == len(captioned)


def test_of_frequent_words_all_are_ranked_that_pass_a_filter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the newest items that have the words there may be none that passes."""
    files = [File(f"{'old' if number < 30 else 'new'}/{number:03}.jpg") for number in range(120)]
    built = build(tmp_path, files)
    add_captions(built, tmp_path, [(file.uri, "a red dog") for number, file in enumerate(files) if number % 3])
    monkeypatch.setattr("mmsearch.retrieval.ranking.WORDS_RANKED", 10)
    found = search(built, "red", _axes(), mode="hybrid", k=120, where="folder = old")
    assert len(found) == 30
    worded = {one.item_id for one in found.explanation.hits if "words" in one.ranks}
    assert worded == {number + 1 for number in range(30) if number % 3}


def test_words_that_most_have_say_nothing_beside_meaning(tmp_path: Path) -> None:
    built = build(tmp_path, [File(f"red {number:03}.jpg") for number in range(150)])
    found = search(built, "red", _axes(), mode="hybrid", k=20)
    assert not any("words" in one.ranks for one in found.explanation.hits)
    assert ids(found) == ids(search(built, "red", _axes(), mode="dense", k=20))
    assert len(search(built, "red", mode="lexical", k=20)) == 20
