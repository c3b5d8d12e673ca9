"""What a score means: relevance from the scores that an index and its model give anyway."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from search_kit import Built, File, build, no_encoder, unit

import mmsearch
from mmsearch.retrieval.calibrate import (
    FEWEST,
    MATCH,
    NO_MATCH,
    REFERENCES,
    WEIGHTS,
    WORD_WEIGHTS,
    Background,
    Calibration,
    Direction,
    Reference,
    length_of,
    reference_of,
    weights_of,
)
from mmsearch.retrieval.clauses import EmbeddedClause
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.encoders.presets import PRESETS
from mmsearch.retrieval.evaluate import roc_auc
from mmsearch.retrieval.probes import PROBES
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.store import LocalStore, Snapshot
from mmsearch.retrieval.types import Modality

Rows = NDArray[np.float32]

DIM = 12
PICTURES, TEXTS = 90, 60
DIRECTIONS: list[Direction] = [(query, items) for query in ("text", "image") for items in ("text", "image")]


def random_rows(count: int, seed: int) -> Rows:
    """Directions of a cone, as embeddings are."""
    rows = np.random.default_rng(seed).normal(size=(count, DIM)) + 0.5
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("calibrate")
    rows = random_rows(PICTURES, 0)
    rows[-1] = -unit(rows.mean(axis=0))  # unlike all others
    pictures = [File(f"{n:03}.jpg", tuple(map(float, row))) for n, row in enumerate(rows)]
    texts = [
        File(f"{n:03}.txt", tuple(map(float, row)), texts=(f"words {n}",), modality="text")
        for n, row in enumerate(random_rows(TEXTS, 1))
    ]
    return build(folder, [*pictures, *texts])


def stored(built: Built, space: Modality) -> Rows:
    with built.store.snapshot() as snapshot:
        return snapshot.vectors(space, snapshot.item_ids(space))


def naive(score: float, scores: Rows, direction: Direction, reference: Reference, length: float = 1.0) -> float:
    """The definition, number by number."""
    weights = weights_of(direction, length)

    def standard(value: float) -> float:
        return (value - reference.mean) / reference.deviation

    odds = weights.bias + weights.score * standard(score) + weights.mean * standard(float(np.mean(scores)))
    odds += weights.deviation * float(np.std(scores)) / reference.deviation + weights.size * math.log10(len(scores))
    return 1 / (1 + math.exp(-odds))


def naive_reference(queries: Rows, rows: Rows) -> Reference:
    """Mean of all scores, and the mean of each query's deviation, its own row left out."""
    pairs = [[float(query @ row) for row in rows if query @ row < 0.9999] for query in queries]
    return Reference(float(np.mean(np.concatenate(pairs))), float(np.mean([np.std(each) for each in pairs])))


def as_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model of `built` counts as the bundled one, whose references are known."""
    monkeypatch.setitem(REFERENCES, "fake", REFERENCES["starter"])


# How long a query is


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("dog", 0.0),
        ("", 0.0),
        ("!?", 0.0),
        ("a dog", 1 / 4),
        ("black-and-white dog", 3 / 4),
        ("a dog runs home", 3 / 4),
        ("a dog runs on the wide sunny beach", 1.0),
        ("word " * 50, 1.0),
        ("狗", 0.0),
        ("小狗", 0.0),
        ("一只狗在沙滩上", 2.5 / 4),
        ("一只棕色的狗在沙滩上快乐地奔跑", 1.0),
        ("red 小狗", 1 / 4),
    ],
)
def test_how_much_of_a_sentence(text: str, length: float) -> None:
    assert length_of(text) == pytest.approx(length)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_weights_go_over_from_words_to_sentences(direction: Direction) -> None:
    word = WORD_WEIGHTS.get(direction, WEIGHTS[direction])
    assert weights_of(direction, 0.0) == pytest.approx(word)
    assert weights_of(direction, 1.0) == pytest.approx(WEIGHTS[direction])
    assert weights_of(direction, 0.25) == pytest.approx(0.75 * np.array(word) + 0.25 * np.array(WEIGHTS[direction]))


def test_the_length_of_a_query_counts(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    as_starter(monkeypatch)
    encoder = FakeEncoder(dim=DIM + 8)
    monkeypatch.setattr(encoder, "identity", "fake-1", raising=False)
    row = random_rows(1, 30)[0]
    monkeypatch.setattr(encoder, "encode_texts", lambda texts: np.stack([row] * len(texts)))
    scores = stored(built, "image") @ row
    with built.store.snapshot() as snapshot:
        searcher = Searcher(snapshot, lambda: encoder)
        for query in ("dog", "a dog on grass", "a brown dog runs over the wet grass"):
            best = searcher.search(query, mode="dense", k=1)[0]
            reference = REFERENCES["starter"]["text", "image"]
            expected = naive(best.score, scores, ("text", "image"), reference, length_of(query))
            assert best.relevance == pytest.approx(expected, abs=1e-4)


# One query


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_relevance_is_its_definition(direction: Direction, built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    as_starter(monkeypatch)
    kind, space = direction
    query = unit([1.0, 0.5, *[0.3] * (DIM - 2)])
    rows = stored(built, space)
    with built.store.snapshot() as snapshot:
        background = Calibration(snapshot).background(space, [EmbeddedClause("q", 1.0, query, kind=kind)], [1.0], query)
    scores = rows @ query
    assert (background.mean, background.deviation) == pytest.approx((scores.mean(), scores.std()), abs=1e-5)
    found = background.relevance(scores)
    assert found is not None
    reference = REFERENCES["starter"][direction]
    assert found.tolist() == pytest.approx(
        [naive(float(score), scores, direction, reference) for score in scores], abs=1e-4
    )


def test_hits_have_it(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a query to the field of a hit, and to what the answer says of matching."""
    as_starter(monkeypatch)
    rows = stored(built, "image")
    with built.store.snapshot() as snapshot:
        searcher = Searcher(snapshot, no_encoder)
        own = searcher.search(f"id:{built.pictures['007.jpg']}", include_self=True, k=PICTURES)
        scores = rows @ rows[7]
        reference = REFERENCES["starter"]["image", "image"]
        for hit in own:
            assert hit.relevance == pytest.approx(naive(hit.score, scores, ("image", "image"), reference), abs=1e-4)
        assert own.matched is True
        between = (MATCH + NO_MATCH) / 2
        for best, matched in ((0.99, True), (MATCH, True), (between, None), (NO_MATCH, None), (0.01, False)):
            with monkeypatch.context() as patch:
                relevance = lambda self, scores, best=best: np.full(len(scores), best)  # noqa: E731
                patch.setattr(Background, "relevance", relevance)
                assert searcher.search(f"id:{built.pictures['007.jpg']}").matched is matched
        unlike = searcher.search(f"id:{built.pictures[f'{PICTURES - 1:03}.jpg']}")
        assert unlike.matched is False
        assert max(hit.relevance or 0.0 for hit in unlike) < MATCH


@given(
    st.sampled_from(DIRECTIONS),
    st.floats(-0.5, 1.0),
    st.floats(0.01, 0.5),
    st.integers(FEWEST, 10**7),
    st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=20),
)
def test_relevance_rises_with_the_score(
    direction: Direction, mean: float, deviation: float, count: int, scores: list[float]
) -> None:
    sample = mean + deviation * np.linspace(-1, 1, FEWEST)
    background = Background(sample, count, WEIGHTS[direction], Reference(0.4, 0.1))
    found = background.relevance(np.sort(np.array(scores)))
    assert found is not None
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= 1)).all()


def test_chance_counts() -> None:
    """The more there is to find a high score among, the less the same score means."""
    sample = np.linspace(0.2, 0.6, 200)
    for direction, weights in WEIGHTS.items():
        few, many = (Background(sample, count, weights, Reference(0.4, 0.1)) for count in (200, 2_000_000))
        score = np.array([0.6])
        assert few.relevance(score) > many.relevance(score), direction  # type: ignore[operator]


@pytest.mark.parametrize(
    ("scores", "weights", "unit"),
    [
        (np.linspace(0, 1, FEWEST - 1), WEIGHTS["text", "image"], Reference(0.4, 0.1)),
        (np.full(100, 0.5), WEIGHTS["text", "image"], Reference(0.4, 0.1)),
        (np.linspace(0, 1, 100), None, Reference(0.4, 0.1)),
        (np.linspace(0, 1, 100), WEIGHTS["text", "image"], None),
        (np.linspace(0, 1, 100), WEIGHTS["text", "image"], Reference(0.4, 0.0)),
        (np.empty(0), WEIGHTS["text", "image"], Reference(0.4, 0.1)),
    ],
)
def test_unknown_is_not_a_number(scores: Any, weights: Any, unit: Any) -> None:
    assert Background(scores, 100, weights, unit).relevance(np.array([0.9])) is None


def test_far_scores_overflow_nothing() -> None:
    background = Background(np.linspace(0, 1, 100), 100, WEIGHTS["text", "image"], Reference(0.0, 1e-9))
    with np.errstate(over="raise"):
        found = background.relevance(np.array([-1.0, 0.0, 1.0]))
    assert found is not None
    assert np.isfinite(found).all()


# Composed queries


def test_the_unit_of_a_composed_query_is_put_together(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    as_starter(monkeypatch)
    a, b, away = random_rows(3, 5)
    row = np.asarray(0.7 * a + 0.5 * b - 0.2 * away, np.float32)
    clauses = [
        EmbeddedClause("a", 1.0, a, kind="text"),
        EmbeddedClause("b", 1.0, b, kind="image"),
        EmbeddedClause("away", -1.0, away, kind="text"),
    ]
    rows = stored(built, "image")
    with built.store.snapshot() as snapshot:
        background = Calibration(snapshot).background("image", clauses, [0.7, 0.5, -0.2], row)
    texts, images = (REFERENCES["starter"][kind, "image"] for kind in ("text", "image"))
    reference = Reference(
        0.7 * texts.mean + 0.5 * images.mean - 0.2 * float((rows @ away).mean()),
        0.7 * texts.deviation + 0.5 * images.deviation,
    )
    scores = rows @ row
    found = background.relevance(scores[:5])
    assert found is not None
    assert found.tolist() == pytest.approx(
        [naive(float(score), scores, ("text", "image"), reference) for score in scores[:5]], abs=1e-4
    )


def test_the_same_clause_twice_is_that_clause(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    as_starter(monkeypatch)
    row = random_rows(1, 6)[0]
    clause = EmbeddedClause("a", 1.0, row, kind="text")
    with built.store.snapshot() as snapshot:
        calibration = Calibration(snapshot)
        once = calibration.background("image", [clause], [1.0], row).relevance(np.array([0.6]))
        twice = calibration.background("image", [clause, clause], [0.5, 0.5], row).relevance(np.array([0.6]))
    assert once == pytest.approx(twice)


def test_only_what_is_not_wanted(built: Built) -> None:
    """Nothing can match a query that asks for nothing."""
    with built.store.snapshot() as snapshot:
        answer = Searcher(snapshot, no_encoder).search(minus=[f"id:{built.pictures['000.jpg']}"])
    assert answer.matched is None
    assert [hit.relevance for hit in answer] == [None] * len(answer)


def test_a_given_vector_is_judged_by_its_own_scores(built: Built) -> None:
    row = random_rows(1, 7)[0]
    rows = stored(built, "image")
    scores = rows @ row
    with built.store.snapshot() as snapshot:
        answer = Searcher(snapshot, no_encoder).search(vector=row, modality="image", k=3)
    own = Reference(float(scores.mean()), float(scores.std()))
    for hit in answer:
        assert hit.relevance == pytest.approx(naive(hit.score, scores, ("image", "image"), own), abs=1e-4)


# References


@pytest.mark.parametrize("seed", range(3))
def test_the_reference_of_unrelated_pairs(seed: int) -> None:
    rows = random_rows(80, seed)
    queries = np.concatenate([random_rows(60, seed + 10), rows[:5]])
    assert reference_of(queries, rows) == pytest.approx(naive_reference(queries, rows), abs=1e-5)


def test_too_few_or_all_alike_have_none() -> None:
    rows = random_rows(FEWEST, 0)
    assert reference_of(rows, rows[:-1]) is None
    assert reference_of(rows[:-1], rows) is None
    assert reference_of(np.repeat(rows[:1], 60, axis=0), np.repeat(rows[:1], 60, axis=0)) is None


def test_every_bundled_model_and_direction_is_known() -> None:
    assert set(REFERENCES) == {name for name, preset in PRESETS.items() if preset.bundled}
    assert all(set(known) == set(DIRECTIONS) for known in REFERENCES.values())
    assert set(WEIGHTS) == set(DIRECTIONS)
    assert all(weights.score > 0 for weights in (*WEIGHTS.values(), *WORD_WEIGHTS.values()))


def test_other_models_are_judged_by_probes_and_own_pictures(built: Built) -> None:
    probes = random_rows(64, 20)
    pictures, texts = stored(built, "image"), stored(built, "text")
    with built.store.writer() as writer:
        assert not writer.has_probes()
        writer.set_probes(probes)
        assert writer.has_probes()
        writer.commit()
    query = random_rows(1, 8)[0]
    with built.store.snapshot() as snapshot:
        kept = snapshot.probes()
        np.testing.assert_allclose(kept, probes, atol=1e-3)
        for (kind, space), queries, rows in (
            (("text", "image"), kept, pictures),
            (("text", "text"), kept, texts),
            (("image", "image"), pictures, pictures),
            (("image", "text"), pictures, texts),
        ):
            clause = EmbeddedClause("q", 1.0, query, kind=kind)
            found = Calibration(snapshot).background(space, [clause], [1.0], query).relevance(np.array([0.7]))
            expected = naive(0.7, rows @ query, (kind, space), naive_reference(queries, rows))
            assert found is not None
            assert found.tolist() == pytest.approx([expected], abs=1e-3)


# Where probes come from


class Other(FakeEncoder):
    """Counts how often it was asked for the probes."""

    asked = 0

    def encode_texts(self, texts: Any) -> Rows:
        self.asked += texts is PROBES
        return super().encode_texts(texts)


class Mute(Other):
    """Has no finite vectors for the probes."""

    def encode_texts(self, texts: Any) -> Rows:
        rows = super().encode_texts(texts)
        return np.full_like(rows, np.nan) if texts is PROBES else rows


def _pictures(folder: Path, count: int = FEWEST) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (4, 4), (number * 5 % 256, number * 3 % 256, number)).save(folder / f"{number}.png")
    return folder


def _serve(monkeypatch: pytest.MonkeyPatch, encoder: FakeEncoder) -> None:
    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: encoder)


def _snapshot(path: Path) -> Snapshot:
    return LocalStore.open(path).snapshot()


def test_an_index_asks_its_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Other("other")
    _serve(monkeypatch, encoder)
    photos = _pictures(tmp_path / "photos")
    with mmsearch.Index(tmp_path / "index", model="other") as index:
        index.add(photos)
        Image.new("RGB", (4, 4), "red").save(photos / "more.png")
        index.add()
        assert encoder.asked == 1
        with _snapshot(tmp_path / "index") as snapshot:
            np.testing.assert_allclose(snapshot.probes(), FakeEncoder().encode_texts(PROBES), atol=1e-3)
        assert all(hit.relevance is not None for hit in index.search("red", mode="dense"))


def test_the_bundled_model_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Other("starter")
    _serve(monkeypatch, encoder)
    with mmsearch.Index(tmp_path / "index", model="starter") as index:
        index.add(_pictures(tmp_path / "photos", 3))
    assert encoder.asked == 0
    with _snapshot(tmp_path / "index") as snapshot:
        assert snapshot.probes().shape == (0, encoder.dim)


def test_without_probes_a_query_is_judged_by_its_own_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _serve(monkeypatch, Mute("other"))
    with mmsearch.Index(tmp_path / "index", model="other") as index:
        index.add(_pictures(tmp_path / "photos"))
        assert "relevance will compare queries less well" in caplog.text
        by_text = index.search("red", mode="dense")
        by_vector = index.search(vector=FakeEncoder().encode_texts(["red"])[0], modality="image")
    scores = np.array([hit.score for hit in by_text])
    own = by_text.explanation.background["image"] if by_text.explanation else (0.0, 0.0)
    weights = WORD_WEIGHTS["text", "image"]
    odds = weights.bias + weights.score * (scores - own[0]) / own[1] + weights.deviation + weights.size * math.log10(50)
    assert [hit.relevance for hit in by_text] == pytest.approx((1 / (1 + np.exp(-odds))).tolist(), abs=1e-4)
    assert [hit.item_id for hit in by_vector] == [hit.item_id for hit in by_text]


def test_another_model_brings_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Other("first"), Other("second", dim=20)
    _serve(monkeypatch, first)
    with mmsearch.Index(tmp_path / "index", model="first") as index:
        index.add(_pictures(tmp_path / "photos"))
        monkeypatch.setattr(
            "mmsearch.retrieval.encoders.models.load_encoder",
            lambda name, **options: {"first": first, "second": second}[name],
        )
        index.reindex("second")
    assert (first.asked, second.asked) == (1, 1)
    with _snapshot(tmp_path / "index") as snapshot:
        np.testing.assert_allclose(snapshot.probes(), FakeEncoder(dim=20).encode_texts(PROBES), atol=1e-3)


def test_probes_are_many_and_different() -> None:
    assert len(PROBES) == len(set(PROBES)) >= FEWEST


# The measure


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
    st.lists(st.integers(0, 5), min_size=1, max_size=20),
)
def test_auc_is_the_chance_to_be_above(present: list[int], absent: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in present for b in absent]
    assert roc_auc(np.array(present, float), np.array(absent, float)) == pytest.approx(sum(pairs) / len(pairs))
