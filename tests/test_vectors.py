"""Vectors that a program has already, served by their ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmsearch
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import ModelMismatch, ModelUnavailable, UsageError


def some(count: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


@pytest.fixture
def index(tmp_path: Path) -> mmsearch.Index:
    return mmsearch.open(tmp_path / "index")


def ids(hits: list[mmsearch.Hit]) -> list[str | None]:
    return [hit.id for hit in hits]


def test_a_collection_is_served(index: mmsearch.Index) -> None:
    rows = some(500)
    names = [f"item/{number}~ü" for number in range(500)]
    report = index.add_vectors(names, 3.0 * rows)  # their length does not matter
    assert (report.added, report.items, report.model) == (500, 500, "vectors")
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    expected = np.argsort(-(unit @ unit[7]), kind="stable")[:5]
    hits = index.search(vector=rows[7], k=5)
    assert ids(hits) == [names[number] for number in expected]
    assert hits[0].score == pytest.approx(1.0)
    assert hits[0].path is None
    assert hits[0].modality == "image"


def test_the_same_id_replaces_and_the_same_vector_changes_nothing(index: mmsearch.Index) -> None:
    rows = some(3)
    index.add_vectors([1, 2, 3], rows)
    again = index.add_vectors([1, 2, 3], rows)
    assert (again.added, again.updated, again.unchanged) == (0, 0, 3)
    changed = index.add_vectors([2, 4], some(2, seed=1))
    assert (changed.added, changed.updated, changed.items) == (1, 1, 4)
    assert ids(index.search(vector=some(2, seed=1)[0], k=1)) == ["2"]
    assert index.remove(ids=[2, "4", "never"]) == 2
    assert sorted(item.id for item in index.items()) == ["1", "3"]


def test_texts_pictures_and_fields_come_back(index: mmsearch.Index, tmp_path: Path) -> None:
    index.add_vectors(
        ["a", "b"],
        some(2),
        modality="text",
        texts=["first", None],
        images=[tmp_path / "photos" / "a b.jpg", None],
        meta=[{"price": 3, "tags": ["x"]}, None],
    )
    first = index.search(vector=some(2)[0], k=1)[0]
    assert (first.text, first.path, first.uri, first.fragment) == (
        "first",
        tmp_path / "photos" / "a b.jpg",
        "a%20b.jpg",
        "id=a",
    )
    assert {item.id: item.meta for item in index.items()} == {"a": {"price": 3, "tags": ["x"]}, "b": {}}


def test_equal_vectors_share_one_embedding(index: mmsearch.Index) -> None:
    row = some(1)
    index.add_vectors(range(100), np.repeat(row, 100, axis=0))
    with index._snapshot() as snapshot:
        assert sum(segment.count for segment in snapshot._segments["image"]) == 1
    assert [hit.id for hit in index.search(vector=row[0], k=100)] == [str(number) for number in range(100)]


def test_words_need_a_model(index: mmsearch.Index) -> None:
    index.add_vectors([1], some(1))
    with pytest.raises(ModelUnavailable, match="search it with a vector"):
        index.search("a cat")
    with pytest.raises(ModelMismatch, match="reindex"):
        mmsearch.open(index.path, model="starter").search("a cat")


def test_vectors_of_a_model_that_is_here(tmp_path: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: encoder)
    index = mmsearch.open(tmp_path / "index", model="fake")
    words = ["red", "green", "blue"]
    index.add_vectors(words, encoder.encode_texts(words), modality="text", texts=words)
    assert ids(index.search("green", k=1)) == ["green"]
    with pytest.raises(UsageError, match="have 5 numbers each and those of the index 32"):
        index.add_vectors([1], some(1, dim=5))


@pytest.mark.parametrize(
    ("names", "rows", "options", "message"),
    [
        (["a"], [[0.0, 0.0]], {}, "the vector of id 'a' is all zeros or not finite"),
        (["a", "b"], [[1.0, 0.0], [np.nan, 1.0]], {}, "the vector of id 'b'"),
        (["a"], [[1.0], [2.0]], {}, r"must have the shape \(1, dim\), not \(2, 1\)"),
        (["a"], [1.0], {}, "must have the shape"),
        (["a", "a"], [[1.0], [2.0]], {}, "1 of the 2 ids are given twice"),
        ([1, "1"], [[1.0], [2.0]], {}, "given twice"),
        ([""], [[1.0]], {}, "empty"),
        ([None], [[1.0]], {}, "id"),
        (["a"], [["x"]], {}, "no array of numbers"),
        (["a"], [[1.0]], {"texts": []}, "texts must have one entry for each of the 1 ids, not 0"),
        (["a"], [[1.0]], {"modality": "video"}, "none of image, text"),
        (["a"], [[1.0]], {"meta": [{"x": object()}]}, "cannot be stored"),
    ],
)
def test_what_cannot_be_meant(
    index: mmsearch.Index, names: list[object], rows: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        index.add_vectors(names, rows, **options)  # type: ignore[arg-type]
