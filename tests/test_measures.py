"""Measures against trec_eval, against the definition of CLIP papers, and ties against every order there is."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.evaluate import Evaluated, measure_embeddings, measure_run

KS = (1, 3, 5, 10)
_THEIRS = {"mrr": "recip_rank", "map": "map"} | {
    f"{ours}@{k}": f"{theirs}_{k}"
    for ours, theirs in (("success", "success"), ("recall", "recall"), ("ndcg", "ndcg_cut"))
    for k in KS
}


def trec_eval(run: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    cut = ",".join(map(str, KS))
    measures = {"recip_rank", "map", f"success.{cut}", f"recall.{cut}", f"ndcg_cut.{cut}"}
    found: dict[str, Any] = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    return found


def assert_as_trec_eval(ours: Evaluated, theirs: Mapping[str, Any]) -> None:
    assert set(theirs) == set(ours.ids)
    for name, their_name in _THEIRS.items():
        expected = [theirs[query][their_name] for query in ours.ids]
        np.testing.assert_allclose(ours.values[name], expected, rtol=0, atol=1e-9, err_msg=name)


def in_our_order(ordered: Sequence[str]) -> dict[str, float]:
    return {item: float(len(ordered) - place) for place, item in enumerate(ordered)}


def random_case(seed: int, *, tied: bool) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    rng = np.random.default_rng(seed)
    run, qrels = {}, {}
    for number in range(6):
        items = [f"d{item}" for item in rng.permutation(40)[: rng.integers(1, 40)]]
        scores = rng.integers(0, 4, len(items)) if tied else rng.normal(size=len(items))
        run[f"q{number}"] = dict(zip(items, scores.astype(float).tolist(), strict=True))
        judged = [f"d{item}" for item in rng.permutation(50)[: rng.integers(1, 25)]]  # 40 to 49 are found nowhere
        qrels[f"q{number}"] = dict(zip(judged, rng.integers(-1, 4, len(judged)).tolist(), strict=True))
    return run, qrels


@pytest.mark.parametrize("seed", range(20))
def test_random_runs_measure_as_with_trec_eval(seed: int) -> None:
    run, qrels = random_case(seed, tied=False)
    ours = measure_run(run, qrels, ks=KS)
    assert_as_trec_eval(ours, trec_eval(run, qrels))
    for name, values in ours.values.items():  # nothing is tied, so every order is this one
        np.testing.assert_allclose(ours.expected[name], values, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_tied_runs_measure_as_with_trec_eval_once_the_order_is_in_the_scores(seed: int) -> None:
    run, qrels = random_case(seed, tied=True)
    # The order of equal scores is that of the mapping: `sorted` is stable.
    ordered = {query: sorted(found, key=lambda item: -found[item]) for query, found in run.items()}
    theirs = trec_eval({query: in_our_order(items) for query, items in ordered.items()}, qrels)
    assert_as_trec_eval(measure_run(run, qrels, ks=KS), theirs)
    assert_as_trec_eval(measure_run(ordered, qrels, ks=KS), theirs)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_embeddings_measure_as_with_trec_eval(seed: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(-1, 2, (45, 3)) if tied else rng.normal(size=(45, 3))
    queries, items = rows[:12].astype(np.float32), rows[12:].astype(np.float32)
    item_ids = rng.permutation(1000)[: len(items)]
    relevant = [
        dict(
            zip(
                rng.permutation(len(items))[:size].tolist(),
                rng.integers(0 if size > 1 else 1, 4, size).tolist(),
                strict=True,
            )
        )
        for size in rng.integers(1, 20, len(queries))
    ]
    ids = [f"q{number}" for number in range(len(queries))]
    run = {}
    for query, line in zip(ids, queries, strict=True):
        scores = [sum(float(a) * float(b) for a, b in zip(line, item, strict=True)) for item in items]
        order = sorted(range(len(items)), key=lambda row: (-scores[row], item_ids[row]))
        run[query] = in_our_order([str(row) for row in order])
    qrels = {
        query: {str(row): grade for row, grade in grades.items()} for query, grades in zip(ids, relevant, strict=True)
    }
    ours = measure_embeddings(queries, items, relevant, ids=ids, item_ids=item_ids, ks=KS, block=5)
    assert_as_trec_eval(ours, trec_eval(run, qrels))


# The definition of CLIP papers


def clip_recall_at_k(scores: NDArray[np.float32], positive: NDArray[np.bool_], k: int) -> float:
    """R@k of CLIP papers for the rows of a matrix: whether any of the k best columns is a positive one."""
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return float(np.mean([positive[row, columns].any() for row, columns in enumerate(best)]))


def test_success_is_what_clip_papers_call_recall() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(60, 16)).astype(np.float32)
    owners = np.repeat(np.arange(60), 5)
    texts = (images[owners] + rng.normal(0, 2.5, (300, 16))).astype(np.float32)
    scores, positive = texts @ images.T, owners[:, None] == np.arange(60)
    to_image = measure_embeddings(texts, images, [[owner] for owner in owners]).means()
    to_text = measure_embeddings(images, texts, [np.flatnonzero(owners == image).tolist() for image in range(60)])
    for k in (1, 5, 10):
        assert to_image[f"success@{k}"] == pytest.approx(clip_recall_at_k(scores, positive, k), abs=1e-12)
        assert to_image[f"recall@{k}"] == to_image[f"success@{k}"]  # one image to be found
        assert to_text.means()[f"success@{k}"] == pytest.approx(clip_recall_at_k(scores.T, positive.T, k), abs=1e-12)
        assert to_text.means()[f"recall@{k}"] < to_text.means()[f"success@{k}"]
    assert 0.1 < to_image["success@1"] < 0.9


# Ties


@st.composite
def small_rankings(draw: st.DrawFn) -> tuple[list[int], dict[int, int]]:
    """Scores of few items, many of them equal, and grades of some."""
    scores = draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
    return scores, draw(st.dictionaries(st.integers(0, len(scores)), st.integers(-1, 3), max_size=6))


@settings(deadline=None, max_examples=150)
@given(small_rankings())
def test_expected_values_are_means_over_all_orders_of_tied_items(case: tuple[list[int], dict[int, int]]) -> None:
    scores, grades = case
    qrels = {"q": {str(item): grade for item, grade in grades.items()}}
    ks = (1, 2, 3, 10)
    tied = measure_run({"q": {str(item): float(score) for item, score in enumerate(scores)}}, qrels, ks=ks)
    orders = [
        measure_run({"q": [str(item) for item in order]}, qrels, ks=ks).values
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    for name, expected in tied.expected.items():
        mean = np.mean([values[name][0] for values in orders])
        assert expected[0] == mean or expected[0] == pytest.approx(mean, abs=1e-12), name
        assert any(values[name][0] == pytest.approx(tied.values[name][0], abs=1e-12) for values in orders) or (
            tied.values[name][0] == np.inf
        )


@settings(deadline=None, max_examples=150)
@given(small_rankings())
def test_embeddings_and_runs_measure_alike(case: tuple[list[int], dict[int, int]]) -> None:
    scores, grades = case
    grades = {item: grade for item, grade in grades.items() if item < len(scores)}
    run = {"0": {str(item): float(score) for item, score in enumerate(scores)}}
    of_run = measure_run(run, {"0": {str(item): grade for item, grade in grades.items()}})
    items = np.array(scores, np.float32)[:, None]
    of_embeddings = measure_embeddings(np.ones((1, 1), np.float32), items, [grades])
    for ours, theirs in ((of_run.values, of_embeddings.values), (of_run.expected, of_embeddings.expected)):
        assert list(ours) == list(theirs)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_expected_values_of_a_large_block() -> None:
    # n = 5,000 of which m = 3: the first at (n + 1) / (m + 1), and drawing 10 of them misses all three so often.
    items = np.ones((5000, 8), np.float32)
    found = measure_embeddings(items[:2], items, [[0, 1, 2], [4997, 4998, 4999]])
    assert found.values["rank"].tolist() == [1, 4998]
    np.testing.assert_allclose(found.expected["rank"], 5001 / 4)
    missed = np.prod([(4997 - drawn) / (5000 - drawn) for drawn in range(10)])
    np.testing.assert_allclose(found.expected["success@10"], 1 - missed, rtol=1e-12)
    np.testing.assert_allclose(found.expected["recall@10"], 10 / 5000)


def test_equal_scores_are_ordered_by_item_id() -> None:
    items = np.ones((4, 2), np.float32)
    for ids in ([7, 3, 9, 1], ["g", "c", "i", "a"]):
        ranks = measure_embeddings(items, items, [[0], [1], [2], [3]], item_ids=ids).values["rank"]
        assert ranks.tolist() == [3, 2, 4, 1]


@pytest.mark.parametrize("dim", [31, 100, 512])
def test_equal_items_are_tied_whatever_the_product_rounds(dim: int) -> None:
    rng = np.random.default_rng(dim)
    queries = rng.normal(size=(37, dim)).astype(np.float32)
    row = rng.normal(size=dim).astype(np.float32)
    for count in (3, 5, 7, 9, 33, 65, 257):  # the last columns of a product are added up in another way
        items = np.tile(row, (count, 1))
        for block in (1, 3, 37):
            found = measure_embeddings(queries, items, [[count - 1]] * 37, block=block)
            assert set(found.values["rank"]) == {count}
            assert set(found.expected["rank"]) == {(count + 1) / 2}


def test_equal_items_are_tied_among_others() -> None:
    rng = np.random.default_rng(0)
    row, others = rng.normal(size=31).astype(np.float32), rng.normal(size=(6, 31)).astype(np.float32)
    items = np.concatenate([others, np.tile(row, (257, 1))])
    queries = rng.normal(size=(37, 31)).astype(np.float32)
    better = np.array([np.count_nonzero(others @ query > row @ query) for query in queries])
    found = measure_embeddings(queries, items, [[262]] * 37)
    assert found.values["rank"].tolist() == (better + 257).tolist()
    np.testing.assert_array_equal(found.expected["rank"], better + 129)


# What else may come


def test_what_is_no_number_is_not_found() -> None:
    items = np.eye(3, dtype=np.float32)
    items[1] = np.nan
    lost = measure_embeddings(np.full((1, 3), np.nan, np.float32), items, [[0]])  # nothing is ranked, so nothing first
    assert (lost.values["rank"][0], lost.values["judged@1"][0], lost.expected["success@10"][0]) == (np.inf, 0, 0)
    found = measure_embeddings(np.array([[2, 1, 1]] * 3, np.float32), items, [[0], [1], [2]])
    assert found.values["rank"].tolist() == [1, np.inf, 2]
    assert found.values["mrr"].tolist() == [1, 0, 0.5]
    assert found.expected["rank"].tolist() == [1, np.inf, 2]
    many = measure_embeddings(np.ones((1, 1), np.float32), np.array([[np.nan], *[[i] for i in range(20)]]), [range(21)])
    assert (many.values["rank"][0], many.values["recall@5"][0]) == (1, 5 / 21)
    run = measure_run({"q": {"a": float("nan"), "b": 1.0}}, {"q": {"a": 1}})
    assert run.values["rank"].tolist() == [np.inf]


def test_an_infinite_score_is_one() -> None:
    big = np.array([[3e38, 3e38]], np.float32)
    found = measure_embeddings(big, np.concatenate([big, -big, [[0, 0]]]).astype(np.float32), [{0: 1, 1: 1, 2: 2}])
    assert (found.values["map"][0], found.values["success@1"][0]) == (1, 1)


def test_one_pair_only() -> None:
    found = measure_embeddings(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), [[0]])
    assert found.median_rank == 1
    assert found.means() == dict.fromkeys(found.means(), 1.0)
    assert found.expected_means() == found.means()


def test_no_queries_at_all() -> None:
    found = measure_embeddings(np.empty((0, 2), np.float32), np.ones((3, 2), np.float32), [])
    assert set(found.means().values()) == {0.0}
    assert found.summary()["median_rank"] is None
    assert measure_run({"q": {"a": 1.0}}, {}).unjudged == 1


def test_a_query_may_be_among_the_items() -> None:
    items = np.array([[3, 0], [2, 0], [1, 0]], np.float32)
    without = measure_embeddings(items[:2], items, [[2], [2]], own=[0, 1], item_ids=[5, 4, 3])
    assert without.values["rank"].tolist() == [2, 2]
    assert measure_embeddings(items[:2], items, [[2], [2]]).values["rank"].tolist() == [3, 3]
    with pytest.raises(UsageError, match="one row of 0 to 2"):
        measure_embeddings(items[:2], items, [[2], [2]], own=[0, 3])


def test_unknown_ids_are_no_error_and_show() -> None:
    run = {"q1": {"a": 3.0, "b": 2.0, "c": 1.0}, "q9": {"a": 1.0}}
    qrels = {"q1": {"b": 2, "x": 1}, "q2": {"a": 1}, "q3": {"y": 0}}
    found = measure_run(run, qrels, ks=(1, 2))
    assert found.ids == ("q1", "q2", "q3")
    assert found.unjudged == 1
    assert found.values["judged@1"].tolist() == [0, 0, 0]
    assert found.values["judged@2"].tolist() == [0.5, 0, 0]
    assert found.values["recall@2"].tolist() == [0.5, 0, 0]
    assert found.values["rank"].tolist() == [2, np.inf, np.inf]
    ideal = 2 + 1 / np.log2(3)
    assert found.values["ndcg@2"].tolist() == pytest.approx([2 / np.log2(3) / ideal, 0, 0])
    assert found.median_rank == np.inf
    assert found.summary()["median_rank"] is None


def test_judged_is_a_share_of_what_is_shown() -> None:
    found = measure_run({"q": ["a", "b"]}, {"q": {"a": 0}}, ks=(1, 10))
    assert (found.values["judged@1"][0], found.values["judged@10"][0]) == (1, 0.5)
    assert found.values["success@10"][0] == 0


def test_the_median_lies_between_two_and_may_be_infinite() -> None:
    def median(*ranks: float) -> float:
        return Evaluated(("",) * len(ranks), {"rank": np.array(ranks)}, {}).median_rank

    assert (median(1, 2), median(3, 1, np.inf), median(1, np.inf), median(np.inf, np.inf)) == (1.5, 3, np.inf, np.inf)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"items": np.ones((3, 4), np.float32)}, "rows of the same length"),
        ({"relevant": [[0]]}, "2 queries need"),
        ({"ids": ["a"]}, "2 queries need"),
        ({"relevant": [[0], [3]]}, "query 1 has item row 3 as judged, and the rows are 0 to 2"),
        ({"relevant": [[-1], [0]]}, "item row -1"),
        ({"item_ids": [1, 1, 2]}, "all different"),
        ({"item_ids": [1, 2]}, "3 items need"),
        ({"ks": (5, 0)}, "at least 1, not 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {
        "queries": np.ones((2, 2), np.float32),
        "items": np.ones((3, 2), np.float32),
        "relevant": [[0], [1]],
    }
    measure_embeddings(**arguments)
    with pytest.raises(UsageError, match=words):
        measure_embeddings(**(arguments | change))


def test_a_result_that_comes_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="query q: a is in the results twice"):
        measure_run({"q": ["b", "a", "c", "a"]}, {"q": {"a": 1}})


@pytest.mark.parametrize("relevant", [1, 12])
def test_the_block_changes_nothing_and_no_matrix_of_all_pairs_is_held(relevant: int) -> None:
    rng = np.random.default_rng(7)
    queries = rng.integers(-3, 4, (3000, 8)).astype(np.float32)
    items = rng.integers(-3, 4, (4000, 8)).astype(np.float32)
    rows = rng.integers(0, 4000, (3000, relevant)).tolist()
    tracemalloc.start()
    found = measure_embeddings(queries, items, rows, block=64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000 * 4000 * 4 / 2
    other = measure_embeddings(queries, items, rows, block=1000)
    for name, values in found.values.items():
        np.testing.assert_array_equal(values, other.values[name], err_msg=name)
        np.testing.assert_array_equal(found.expected[name], other.expected[name], err_msg=name)
