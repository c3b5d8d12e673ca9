"""Measures against what a plain loop over all pairs says, and comparisons of two systems."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mmsearch.indexers.train.figures import LANGUAGES, SENTENCES, retrieval_figures, retrieval_ranks
from mmsearch.retrieval.evaluate import (
    embeddings,
    first_ranks,
    overlap_at_k,
    paired_bootstrap,
    success_at_k,
    zero_shot_accuracy,
)


def slow_ranks(queries: NDArray[np.float32], items: NDArray[np.float32], relevant: list[list[int]]) -> list[int]:
    """The definition: every other item that scores as high or higher stands before the best relevant one."""
    ranks = []
    for query, answers in zip(queries.tolist(), relevant, strict=True):
        scores = [sum(a * b for a, b in zip(query, item, strict=True)) for item in items.tolist()]
        best = max(scores[answer] for answer in answers)
        before = [i for i, score in enumerate(scores) if i not in answers and score >= best]
        ranks.append(1 + len(before))
    return ranks


@st.composite
def corpora(draw: st.DrawFn) -> tuple[NDArray[np.float32], NDArray[np.float32], list[list[int]]]:
    """Rows of few small whole numbers, so that equal scores are common and exact."""
    dim, count, asked = draw(st.integers(1, 3)), draw(st.integers(1, 12)), draw(st.integers(1, 8))
    row = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    items = draw(st.lists(row, min_size=count, max_size=count))
    queries = draw(st.lists(row, min_size=asked, max_size=asked))
    answers = st.lists(st.integers(0, count - 1), min_size=1, max_size=count)
    relevant = draw(st.lists(answers, min_size=asked, max_size=asked))
    return np.array(queries, np.float32), np.array(items, np.float32), relevant


@settings(deadline=None)
@given(corpora())
def test_first_ranks_are_those_of_a_plain_loop(
    corpus: tuple[NDArray[np.float32], NDArray[np.float32], list[list[int]]],
) -> None:
    queries, items, relevant = corpus
    assert first_ranks(queries, items, relevant).tolist() == slow_ranks(queries, items, relevant)


def test_first_ranks_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, items = rng.normal(size=(23, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    relevant = [[i % 9, (i * 5) % 9] for i in range(23)]
    whole = first_ranks(queries, items, relevant)
    monkeypatch.setattr(embeddings, "_BLOCK", 5)
    assert first_ranks(queries, items, relevant).tolist() == whole.tolist()


def test_ties_count_against_the_system() -> None:
    same = np.ones((4, 2), np.float32)
    assert first_ranks(same[:1], same, [[0]]).tolist() == [4]
    assert first_ranks(same[:1], same, [[0, 2]]).tolist() == [3]
    assert first_ranks(same[:1], same, [[0, 1, 2, 3]]).tolist() == [1]


def test_success_at_k() -> None:
    ranks = np.array([1, 2, 10, 11])
    assert [success_at_k(ranks, k) for k in (1, 2, 9, 10, 100)] == [0.25, 0.5, 0.5, 0.75, 1.0]


def test_equal_systems_do_not_differ() -> None:
    a = np.random.default_rng(1).random(200) < 0.5
    found = paired_bootstrap(a, a.copy(), samples=1000)
    assert (found.delta, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_clear_difference_is_found_and_has_a_sign() -> None:
    rng = np.random.default_rng(2)
    a = rng.random(500) < 0.4
    b = a | (rng.random(500) < 0.3)
    better, worse = paired_bootstrap(a, b, samples=2000), paired_bootstrap(b, a, samples=2000)
    assert better.delta == pytest.approx(b.mean() - a.mean())
    assert 0 < better.low < better.delta < better.high
    assert worse.delta == pytest.approx(-better.delta)
    assert worse.high < 0
    assert better.p < 0.01 and worse.p < 0.01


def test_pairing_sees_what_the_means_alone_do_not() -> None:
    rng = np.random.default_rng(3)
    hard = rng.normal(0, 10, 300)  # queries differ far more than the systems do
    paired = paired_bootstrap(hard, hard + rng.normal(0.2, 0.5, 300), samples=2000)
    shuffled = paired_bootstrap(rng.permutation(hard), hard + 0.2, samples=2000)
    assert paired.p < 0.01 < 0.05 < shuffled.p


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for seed in range(100):
        a, b = rng.random(150) < 0.5, rng.random(150) < 0.6
        found = paired_bootstrap(a, b, samples=500, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert 88 <= covered <= 100


def test_a_comparison_can_be_repeated() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random(50), rng.random(50)
    assert paired_bootstrap(a, b, samples=700, seed=7) == paired_bootstrap(a, b, samples=700, seed=7)
    assert paired_bootstrap(a, b, samples=700, seed=7) != paired_bootstrap(a, b, samples=700, seed=8)


@pytest.mark.parametrize(("left", "right"), [(3, 2), (0, 0), (0, 1)])
def test_unpaired_values_are_refused(left: int, right: int) -> None:
    with pytest.raises(ValueError, match=f"{left} and {right} queries"):
        paired_bootstrap(np.zeros(left), np.zeros(right))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 10**6))
def test_zero_shot_accuracy_is_that_of_a_plain_loop(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, texts = rng.normal(size=(count, 3)).astype(np.float32), rng.normal(size=(classes, 3)).astype(np.float32)
    labels = rng.integers(0, classes, count)
    right = 0
    for image, label in zip(images, labels, strict=True):
        scores = [float(image @ text) for text in texts]
        right += scores.index(max(scores)) == label
    assert zero_shot_accuracy(images, texts, labels) == pytest.approx(right / count)


def test_overlap_counts_shared_answers() -> None:
    items = np.eye(6, dtype=np.float32)
    a = np.array([[6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]], np.float32)
    reverse = a[:, ::-1]
    assert overlap_at_k(a, a, items, 2) == 2.0
    assert overlap_at_k(a, reverse, items, 2) == 0.0
    assert overlap_at_k(a, reverse, items, 4) == 2.0
    half = np.stack([a[0], a[0]])
    assert overlap_at_k(a, half, items, 2) == 1.0


def test_overlap_orders_equal_scores_alike() -> None:
    rows = np.ones((3, 2), np.float32)
    assert overlap_at_k(rows, rows, np.ones((40, 2), np.float32), 10) == 10.0


def _captions_and_images() -> tuple[Any, Any, list[int]]:
    images = np.eye(12, dtype=np.float32)
    owners = [photo for photo in range(12) for _ in range(2)]
    captions = images[owners]
    captions[1] = images[5]  # one caption that describes another photo
    return captions, images, owners


def test_retrieval_figures_go_both_ways() -> None:
    captions, images, owners = _captions_and_images()
    figures = retrieval_figures("en", captions, images, owners)
    assert list(figures) == [f"en {way}@{k}" for way in ("t2i", "i2t") for k in (1, 5, 10)]
    assert figures["en t2i@1"] == pytest.approx(23 / 24)
    assert figures["en t2i@10"] == pytest.approx(23 / 24)
    to_image, to_text = retrieval_ranks(captions, images, owners)
    assert len(to_image) == 24
    assert to_text.tolist() == [1] * 5 + [2] + [1] * 6


def test_the_sentences_are_given_in_every_language() -> None:
    assert len(SENTENCES) == 10
    assert all(len(set(row)) == len(LANGUAGES) for row in SENTENCES)


def test_the_examples_of_the_page_run(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (repository / "docs" / "evaluation.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        names: dict[str, Any] = {}
        lines = block.strip().splitlines()
        exec(compile("\n".join(lines[:-1]), "docs/evaluation.md", "exec"), names)
        last, _, said = lines[-1].partition("  # ")
        value = eval(last, names)
        if said:
            assert value == pytest.approx(float(said.split(":")[0])), last


def test_names_are_listed_and_load_nothing_heavy() -> None:
    code = "import sys, mmsearch.retrieval.evaluate as e; print(*sys.modules); [getattr(e, n) for n in e.__all__]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert set(done.stdout.split()) & {"torch", "faiss", "sqlalchemy", "onnxruntime", "PIL", "transformers"} == set()
