"""Searching a snapshot: four directions, vectors, fusion by rank, and queries that cannot be meant."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import index_sources
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import MediaError, ModelMismatch, PathNotFound, UsageError
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.store import LocalStore, Snapshot


@pytest.fixture
def snapshot(tmp_path: Path, encoder: FakeEncoder, pictures: Path) -> Iterator[Snapshot]:
    store = LocalStore.create(tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim)
    index_sources(open_sources([pictures]), store, lambda: encoder)
    with store.snapshot() as opened:
        yield opened


@pytest.fixture
def searcher(snapshot: Snapshot, encoder: FakeEncoder) -> Searcher:
    return Searcher(snapshot, lambda: encoder)


def no_encoder() -> Encoder:
    raise AssertionError("no model was needed")


def test_text_finds_images(searcher: Searcher, pictures: Path) -> None:
    hits = searcher.search("a red thing", k=3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert hits[0].path == pictures / "red-square.png"
    assert (hits[0].uri, hits[0].modality, hits[0].text, hits[0].fragment) == ("red-square.png", "image", None, None)
    assert (hits[0].width, hits[0].height) == (96, 64)
    assert hits[0].relevance is None
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_chinese_text_finds_images(searcher: Searcher) -> None:
    assert searcher.search("蓝 三角", k=1)[0].uri == "blue-triangle.png"


def test_text_finds_texts(searcher: Searcher) -> None:
    hit = searcher.search("blue", k=1, modality="text")[0]
    assert (hit.uri, hit.text, hit.fragment) == ("more/%E5%A4%A9%E7%A9%BA.txt", "天空是蓝色的。", "char=0-7")
    assert (hit.width, hit.height) == (None, None)


def test_image_finds_images_but_itself(snapshot: Snapshot, pictures: Path) -> None:
    searcher = Searcher(snapshot, no_encoder)  # its embedding is in the index
    hits = searcher.search(image=pictures / "red-square.png", k=10)
    assert "red-square.png" not in {hit.uri for hit in hits}
    assert len(hits) == 5
    hits = searcher.search(image=str(pictures / "red-square.png"), include_self=True)
    assert hits[0].uri == "red-square.png"
    assert hits[0].score == pytest.approx(1.0, abs=1e-5)
    assert len(hits) == 6


def test_image_finds_texts(searcher: Searcher, pictures: Path) -> None:
    assert searcher.search(image=pictures / "red-square.png", modality="text", k=1)[0].uri == "roses.txt"


def test_the_query_image_stays_out_when_all_is_fused(searcher: Searcher, pictures: Path) -> None:
    hits = searcher.search(image=pictures / "red-square.png", modality="all", k=20)
    assert len(hits) == 7
    assert "red-square.png" not in {hit.uri for hit in hits}


def test_a_new_image_as_bytes_path_or_object(searcher: Searcher, tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 30), (30, 160, 40))
    file = io.BytesIO()
    picture.save(file, "PNG")
    (tmp_path / "query.png").write_bytes(file.getvalue())
    answers = [
        [hit.item_id for hit in searcher.search(image=image)]
        for image in (picture, file.getvalue(), tmp_path / "query.png")
    ]
    assert answers[0] == answers[1] == answers[2]
    assert searcher.search(image=picture, k=1)[0].uri == "green-circle.jpg"


def test_a_vector_of_any_length(snapshot: Snapshot, encoder: FakeEncoder) -> None:
    searcher = Searcher(snapshot, no_encoder)
    row = encoder.encode_texts(["red"])[0]
    same = [searcher.search(vector=vector, k=6) for vector in (row, (row * 7).tolist(), row.astype(np.float16))]
    assert [hit.uri for hit in same[0]] == [hit.uri for hit in same[1]] == [hit.uri for hit in same[2]]
    assert same[0][0].score == pytest.approx(same[1][0].score, abs=1e-6)


def test_all_interleaves_by_rank_not_by_score(searcher: Searcher) -> None:
    hits = searcher.search("red", modality="all", mode="dense", k=20)
    images = [hit.item_id for hit in searcher.search("red", modality="image", mode="dense", k=20)]
    texts = [hit.item_id for hit in searcher.search("red", modality="text", mode="dense", k=20)]
    assert [hit.item_id for hit in hits if hit.modality == "image"] == images
    assert [hit.item_id for hit in hits if hit.modality == "text"] == texts
    assert [hit.modality for hit in hits[:4]] == ["image", "text", "image", "text"]
    assert hits[0].score == pytest.approx(1 / 61)
    assert len({hit.item_id for hit in hits}) == 8


@pytest.mark.parametrize("modality", ["image", "text", "all"])
def test_k_larger_than_the_corpus(searcher: Searcher, modality: str) -> None:
    expected = {"image": 6, "text": 2, "all": 8}[modality]
    assert len(searcher.search("red", k=1000, modality=modality)) == expected  # type: ignore[arg-type]


def test_equal_scores_by_item_id(snapshot: Snapshot) -> None:
    vector = np.zeros(snapshot.dim)
    vector[11] = 1.0  # cyan: no picture has any, so all are about equal
    hits = Searcher(snapshot, no_encoder).search(vector=vector)
    pairs = [(-hit.score, hit.item_id) for hit in hits]
    assert pairs == sorted(pairs)


def test_the_default_is_text_where_there_are_no_images(tmp_path: Path, encoder: FakeEncoder) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("the red rose", encoding="utf-8")
    store = LocalStore.create(tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim)
    index_sources(open_sources([tmp_path / "in"]), store, lambda: encoder)
    with store.snapshot() as snapshot:
        searcher = Searcher(snapshot, lambda: encoder)
        assert [hit.modality for hit in searcher.search("red")] == ["text"]
        assert list(searcher.search("red", modality="image")) == []


def test_an_empty_index_has_no_hits(tmp_path: Path, encoder: FakeEncoder) -> None:
    store = LocalStore.create(tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim)
    with store.snapshot() as snapshot:
        assert list(Searcher(snapshot, lambda: encoder).search("red", modality="all")) == []
        assert list(Searcher(snapshot, lambda: encoder).search("red")) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "what to look for"),
        ({"query": ""}, "empty"),
        ({"query": " \n"}, "empty"),
        ({"query": "a\udcff"}, "UTF-8"),
        ({"query": "a", "k": 0}, "k must be 1"),
        ({"query": "a", "k": -3}, "k must be 1"),
        ({"query": "a", "k": 1.5}, "whole number"),
        ({"query": "a", "modality": "video"}, "image, text, all"),
        ({"vector": [1.0, 2.0]}, "shape"),
        ({"vector": "red"}, "numbers"),
        ({"vector": [0.0] * 32}, "zeros"),
        ({"vector": [float("nan")] * 32}, "finite"),
    ],
)
def test_what_cannot_be_meant(searcher: Searcher, arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        searcher.search(**arguments)  # type: ignore[arg-type]


def test_a_query_image_that_is_not_there_or_no_picture(searcher: Searcher, tmp_path: Path) -> None:
    with pytest.raises(PathNotFound, match="does not exist"):
        searcher.search(image=tmp_path / "nothing.jpg")
    (tmp_path / "text.jpg").write_text("no picture", encoding="utf-8")
    with pytest.raises(MediaError, match=r"text\.jpg"):
        searcher.search(image=tmp_path / "text.jpg")
    with pytest.raises(MediaError):
        searcher.search(image=tmp_path)


def test_a_long_query_is_cut_with_a_notice(searcher: Searcher, caplog: pytest.LogCaptureFixture) -> None:
    hits = searcher.search("red " * 10_000, k=1)
    assert hits[0].uri == "red-square.png"
    assert "10000 tokens and the model reads 64" in caplog.text
    caplog.clear()
    searcher.search("red " * 60)
    assert not caplog.text


def test_an_english_model_warns_of_other_scripts(
    snapshot: Snapshot, encoder: FakeEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    encoder.languages = ("en",)
    searcher = Searcher(snapshot, lambda: encoder)
    with caplog.at_level(logging.WARNING):
        searcher.search("a café, naïve; 100 % — “red”")
        assert not caplog.text
        searcher.search("一只猫")
    assert "English only" in caplog.text


def test_another_model_is_refused(snapshot: Snapshot) -> None:
    searcher = Searcher(snapshot, lambda: FakeEncoder(dim=48))
    with pytest.raises(ModelMismatch, match="--index"):
        searcher.search("red")


PASSAGES = {
    "plain.txt": "Nothing of interest.\n\n" * 30 + "A red red red rose.\n\n" + "More of nothing here.\n\n" * 30,
    "windows.txt": "Nothing of interest.\r\n\r\n" * 30 + "A red red red rose.\r\n\r\n" + "And more.\r\n\r\n" * 30,
    "chinese.md": "没有什么。\n\n" * 80 + "红" * 200 + "。\n\n" + "还是没有。\n\n" * 80,
    "accents.txt": "Caf\u00e9 e\u0301 \U0001f415 \u00a0na\u00efve.\n\n" * 40
    + "red red red \U0001f339 ros\u00e9.\n\n"
    + "rien\n\n" * 90,
    "long.txt": "word " * 500 + "red " * 60 + "word " * 500,
}


@pytest.mark.parametrize("name", PASSAGES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_an_image_finds_the_passage_and_where_it_is(
    tmp_path: Path, encoder: FakeEncoder, draw: Callable[..., Path], name: str, encoding: str
) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / name
    file.write_bytes(PASSAGES[name].encode(encoding))
    (tmp_path / "in" / "other.txt").write_text("The sky is blue.", encoding="utf-8")
    picture = draw(tmp_path / "query.png", "red")
    store = LocalStore.create(tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim)
    index_sources(open_sources([tmp_path / "in"]), store, lambda: encoder)
    with store.snapshot() as snapshot:
        searcher = Searcher(snapshot, lambda: encoder)
        hits = searcher.search(image=picture, modality="text", k=1000)
        in_file = [hit for hit in hits if hit.path == file]
        assert len(in_file) > 2
        assert "red" in (hits[0].text or "") or "红" in (hits[0].text or "")
        content = file.read_bytes().decode(encoding)
        for hit in in_file:
            start, end = map(int, (hit.fragment or "").removeprefix("char=").split("-"))
            assert content[start:end] == hit.text
        best, other = searcher.search(image=picture, modality="text", group="file")
        assert (best.item_id, best.others, other.others) == (hits[0].item_id, len(in_file) - 1, 0)
