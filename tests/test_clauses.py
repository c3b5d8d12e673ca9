"""Clauses and their vectors: items, pictures, texts and given vectors, and what is left out for them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsearch.indexers.paths import open_sources
from mmsearch.indexers.pipeline import index_sources
from mmsearch.retrieval.clauses import ClauseEncoder, EmbeddedClause
from mmsearch.retrieval.encoders import Encoder
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import MediaError, ModelMismatch, PathNotFound, UsageError
from mmsearch.retrieval.query import Clause, ImageClause, ItemClause, TextClause
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.store import LocalStore, Snapshot
from mmsearch.retrieval.types import Answer


class CountingEncoder(FakeEncoder):
    """Notes the texts of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []

    def encode_texts(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        self.calls.append(list(texts))
        return super().encode_texts(texts)


def no_encoder() -> Encoder:
    raise AssertionError("no model was needed")


@pytest.fixture
def store(tmp_path: Path, encoder: FakeEncoder, pictures: Path) -> LocalStore:
    (pictures / "more" / "red-again.png").write_bytes((pictures / "red-square.png").read_bytes())
    store = LocalStore.create(tmp_path / "index", model="fake", identity=encoder.identity, dim=encoder.dim)
    index_sources(open_sources([pictures]), store, lambda: encoder)
    return store


@pytest.fixture
def snapshot(store: LocalStore) -> Iterator[Snapshot]:
    with store.snapshot() as opened:
        yield opened


def item(snapshot: Snapshot, uri: str) -> int:
    (found,) = [record.item_id for record in snapshot.all_items() if record.uri == uri]
    return found


def embedded(snapshot: Snapshot, *clauses: Clause, encoder: Encoder | None = None) -> list[EmbeddedClause]:
    return ClauseEncoder(snapshot, no_encoder if encoder is None else lambda: encoder).embed(clauses)


def search(snapshot: Snapshot, *arguments: object, **options: object) -> Answer:
    return Searcher(snapshot, FakeEncoder).search(*arguments, **options)  # type: ignore[arg-type]


# What clauses are embedded as


def test_all_texts_in_one_call(snapshot: Snapshot, pictures: Path) -> None:
    encoder = CountingEncoder()
    clauses = (
        TextClause("a red dog", 2.0, ("red dog",)),
        ImageClause(pictures / "red-square.png", -1.0),
        TextClause("blue"),
        ItemClause(1),
    )
    found = embedded(snapshot, *clauses, encoder=encoder)
    assert encoder.calls == [["a red dog", "blue"]], "without quotes"
    assert [clause.weight for clause in found] == [2.0, -1.0, 1.0, 1.0]
    assert [clause.name for clause in found] == ['2:a "red dog"', f"- {pictures}/red-square.png", "blue", "id:1"]
    assert found[0].row == pytest.approx(encoder.encode_texts(["a red dog"])[0])
    assert found[2].row == pytest.approx(encoder.encode_texts(["blue"])[0])
    for clause in found:
        assert (clause.row.dtype, clause.row.shape) == (np.float32, (snapshot.dim,))
        assert np.linalg.norm(clause.row) == pytest.approx(1.0, abs=1e-6)


STARTER_PROMPTS = ["{}", "a photo of {}.", "{} in the picture."]


@pytest.mark.parametrize(
    ("text", "templates"),
    [
        ("dog", STARTER_PROMPTS),
        ("red  dog", STARTER_PROMPTS),
        ("{}", STARTER_PROMPTS),
        ("a red dog", ["{}"]),
        ("狗", ["{}", "{}。"]),
        ("红色", ["{}", "{}。"]),
        ("红 狗", ["{}", "{}。"]),
        ("大花猫", ["{}"]),
        ("狗 dog", ["{}"]),
    ],
)
def test_short_texts_are_read_in_the_templates_of_the_model(
    snapshot: Snapshot, text: str, templates: list[str]
) -> None:
    encoder = CountingEncoder()
    encoder.name = "starter"
    (clause,) = embedded(snapshot, TextClause(text), encoder=encoder)
    (read,) = encoder.calls
    words = text if templates == ["{}"] else " ".join(text.split())
    assert read == [template.replace("{}", words) for template in templates]
    mean = FakeEncoder().encode_texts(read).astype(np.float64).mean(axis=0)
    assert clause.row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert clause.row.dtype == np.float32
    assert clause.name == text, "it is shown as it was written"


def test_texts_of_several_clauses_keep_their_templates_apart(snapshot: Snapshot) -> None:
    encoder = CountingEncoder()
    encoder.name = "starter"
    texts = ["red", "a photo of a blue square", "狗", "green dog"]
    together = embedded(snapshot, *map(TextClause, texts), encoder=encoder)
    assert len(encoder.calls) == 1
    for clause, text in zip(together, texts, strict=True):
        (alone,) = embedded(snapshot, TextClause(text), encoder=encoder)
        assert clause.row == pytest.approx(alone.row, abs=1e-6)


def test_other_models_read_texts_as_they_are(snapshot: Snapshot) -> None:
    encoder = CountingEncoder()
    for name in ("fake", "balanced", "ViT-B-32/openai"):
        encoder.name = name
        embedded(snapshot, TextClause("red  dog"), encoder=encoder)
    assert encoder.calls == [["red  dog"]] * 3


def test_no_texts_need_no_model(snapshot: Snapshot, pictures: Path) -> None:
    found = embedded(snapshot, ItemClause(1), ImageClause(pictures / "red-square.png"))
    assert len(found) == 2


def test_a_picture_of_the_index_is_as_long_as_others(tmp_path: Path, encoder: FakeEncoder, pictures: Path) -> None:
    """Vectors of float16 are not quite of length 1, and the same picture named twice must cancel out."""
    store = LocalStore.create(
        tmp_path / "half", model="fake", identity=encoder.identity, dim=encoder.dim, dtype="float16"
    )
    index_sources(open_sources([pictures]), store, lambda: encoder)
    with store.snapshot() as snapshot:
        id_ = item(snapshot, "red-square.png")
        by_path, by_id = embedded(snapshot, ImageClause(pictures / "red-square.png"), ItemClause(id_))
        assert np.linalg.norm(by_path.row) == pytest.approx(1.0, abs=1e-7)
        assert (by_path.row == by_id.row).all()
        answer = search(snapshot, f"{pictures}/red-square.png - 2:id:{id_}")
        assert list(answer) == []
        assert "cancel each other out" in answer.notices[0]


def test_a_given_vector(snapshot: Snapshot) -> None:
    clause = ClauseEncoder(snapshot, no_encoder).vector([3.0, *[0.0] * 30, 4.0])
    assert (clause.name, clause.weight, clause.own) == ("<vector>", 1.0, frozenset())
    assert clause.row[[0, 31]].tolist() == pytest.approx([0.6, 0.8])
    for vector in ([0.0] * 32, [float("nan")] * 32, [float("inf"), *[0.0] * 31], [1.0] * 31, "red", [[1.0] * 32]):
        with pytest.raises(UsageError, match="query vector"):
            ClauseEncoder(snapshot, no_encoder).vector(vector)  # type: ignore[arg-type]
    for size in (1e300, 1e-300):
        row = ClauseEncoder(snapshot, no_encoder).vector([size] * 32).row
        assert np.linalg.norm(row) == pytest.approx(1.0), "of any length"


# Items


def test_an_item_that_never_was(snapshot: Snapshot) -> None:
    for number in (999, 2**63 - 1):
        with pytest.raises(UsageError, match=f"no item {number} in the index"):
            embedded(snapshot, ItemClause(number))
        with pytest.raises(UsageError, match=f"no item {number} in the index"):
            search(snapshot, f"red - id:{number}")
    for number in (0, -1, 2**63):
        with pytest.raises(UsageError, match="item ids are numbers from 1"):
            ItemClause(number)


def test_an_item_that_was_removed(store: LocalStore, pictures: Path) -> None:
    with store.snapshot() as before:
        id_ = item(before, "red-square.png")
    with store.writer() as writer:
        writer.remove(str(pictures), ["red-square.png"])
        writer.commit()
    with store.snapshot() as after, pytest.raises(UsageError, match=f"no item {id_} in the index"):
        search(after, f"id:{id_}")


def test_a_text_item_finds_pictures_and_texts(snapshot: Snapshot) -> None:
    roses = item(snapshot, "roses.txt")
    assert search(snapshot, f"id:{roses}", k=2)[0].uri in ("red-square.png", "more/red-again.png")
    texts = search(snapshot, f"id:{roses}", modality="text")
    assert [hit.uri for hit in texts] == ["more/%E5%A4%A9%E7%A9%BA.txt"], "not itself"
    with_itself = search(snapshot, f"id:{roses}", modality="text", include_self=True)
    assert (with_itself[0].uri, with_itself[0].score) == ("roses.txt", pytest.approx(1.0, abs=1e-6))


# What is left out


@pytest.mark.parametrize("mode", ["dense", "hybrid"])
@pytest.mark.parametrize("fusion", ["early", "late", "both"])
@pytest.mark.parametrize("rest", ["", " + blue", " - blue", " + 0.1:red"])
def test_what_a_clause_shows_is_left_out_with_its_copies(
    snapshot: Snapshot, pictures: Path, mode: str, fusion: str, rest: str
) -> None:
    own = {"red-square.png", "more/red-again.png"}
    for clause in (f"id:{item(snapshot, 'red-square.png')}", f"{pictures}/more/red-again.png"):
        for modality in ("image", "all"):
            options = {"mode": mode, "fusion": fusion, "modality": modality, "k": 50}
            found = [hit.uri for hit in search(snapshot, clause + rest, **options)]
            everything = [hit.uri for hit in search(snapshot, clause + rest, include_self=True, **options)]
            assert not own & set(found)
            assert own <= set(everything)
            assert sorted(everything) == sorted([*found, *own])


def test_a_negative_clause_leaves_its_picture_out_too(snapshot: Snapshot) -> None:
    id_ = item(snapshot, "red-square.png")
    assert "red-square.png" not in {hit.uri for hit in search(snapshot, f"- id:{id_}", k=50)}


def test_k_hits_in_spite_of_what_is_left_out(snapshot: Snapshot) -> None:
    id_ = item(snapshot, "red-square.png")
    for where in (None, 'ext = "png"'):
        everything = search(snapshot, f"id:{id_}", k=50, where=where)
        for k in range(1, len(everything) + 1):
            assert [hit.item_id for hit in search(snapshot, f"id:{id_}", k=k, where=where)] == [
                hit.item_id for hit in everything
            ][:k]


# Pictures that cannot be


def test_pictures_that_cannot_be_decoded(snapshot: Snapshot, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    (tmp_path / "text.jpg").write_text("no picture", encoding="utf-8")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[:40])
    for name in ("text.jpg", "empty.png", "cut.png"):
        for query in (f"{tmp_path}/{name}", f"red - 2:{tmp_path}/{name}"):
            with pytest.raises(MediaError, match=name):
                search(snapshot, query)
    with pytest.raises(MediaError, match="the query image"):
        search(snapshot, image=b"no picture")
    with pytest.raises(MediaError):
        search(snapshot, f"{tmp_path}/")
    for query in (f"{tmp_path}/nothing.jpg", f"red + {tmp_path}/text.jpg/below.jpg"):
        with pytest.raises(PathNotFound, match="does not exist"):
            search(snapshot, query)
    with pytest.raises(UsageError, match="is no path"):
        search(snapshot, image="nul\0.jpg")
    with pytest.raises(MediaError):
        search(snapshot, image="x" * 5000)


def test_bytes_and_pictures_are_clauses_like_paths(snapshot: Snapshot, pictures: Path) -> None:
    content = (pictures / "red-square.png").read_bytes()
    by_path, by_bytes, by_view = embedded(
        snapshot,
        ImageClause(pictures / "red-square.png"),
        ImageClause(content),
        ImageClause(memoryview(content)),  # type: ignore[arg-type]
    )
    assert (by_path.row == by_bytes.row).all() and (by_path.row == by_view.row).all()
    assert (
        by_path.own
        == by_bytes.own
        == by_view.own
        == {
            item(snapshot, "red-square.png"),
            item(snapshot, "more/red-again.png"),
        }
    )
    with Image.open(io.BytesIO(content)) as picture:
        (drawn,) = embedded(snapshot, ImageClause(picture), encoder=FakeEncoder())
    assert drawn.row @ by_path.row > 0.999
    assert drawn.own == frozenset(), "pixels do not tell of which file they are"


def test_a_home_folder(snapshot: Snapshot, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(pictures))
    (clause,) = embedded(snapshot, ImageClause("~/red-square.png"))
    assert item(snapshot, "red-square.png") in clause.own


def test_another_model_is_refused_where_one_is_needed(snapshot: Snapshot) -> None:
    other = FakeEncoder(dim=48)
    with pytest.raises(ModelMismatch):
        embedded(snapshot, TextClause("red"), encoder=other)
    with pytest.raises(ModelMismatch):
        embedded(snapshot, ImageClause(Image.new("RGB", (8, 8))), encoder=other)
    assert embedded(snapshot, ItemClause(1), encoder=other)


# Further clauses


def test_plus_and_minus(snapshot: Snapshot, pictures: Path) -> None:
    written = search(snapshot, f"red + 2:blue - 3:green - {pictures}/red-square.png", k=50)
    given = search(snapshot, "red", plus=["2:blue"], minus=["3:green", f"{pictures}/red-square.png"], k=50)
    assert given.explanation is not None and written.explanation is not None
    assert given.explanation.query == written.explanation.query
    assert list(given) == list(written)
    one = search(snapshot, "red", plus="blue", minus="green")
    assert one.explanation is not None and one.explanation.query == "red + blue - green", "a single one"
