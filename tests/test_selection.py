"""Filtered search: whichever way it is done, the answer is what filtering first and searching then would give."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from store_kit import PRECISION, key

from mmsearch import Answer, Index
from mmsearch.retrieval.conditions import condition_of
from mmsearch.retrieval.store import LocalStore, NewItem, selection
from mmsearch.retrieval.store.records import Condition
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Modality, Root, Stamp

DIM = 4
_SPACES: tuple[Modality, ...] = ("image", "text")
_PLANS = ("as it comes", "ids first", "candidates")


@dataclass(frozen=True)
class Thing:
    """An item, and what filters ask of it."""

    item_id: int
    space: Modality
    vector: NDArray[np.float32]
    width: int | None
    tags: tuple[str, ...]


@dataclass
class Corpus:
    """An index, and what each of its items is."""

    store: LocalStore
    things: Sequence[Thing]

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<{len(self.things)} items>")


@dataclass(frozen=True)
class Question:
    """A filter, and whether a thing passes it."""

    where: str
    passes: Callable[[Thing], bool]

    def __repr__(self) -> str:
        return self.where


@contextlib.contextmanager
def planned(plan: str, depth: int = 1) -> Iterator[None]:
    """Makes one way of a filtered search the cheapest, in an index of any size."""
    with pytest.MonkeyPatch.context() as patch:
        if plan != "as it comes":
            patch.setattr(selection, "_FEW", 0)
            patch.setattr(selection, "_FIRST_DEPTH", depth)
            patch.setattr(selection, "_PER_ID", 0.0 if plan == "ids first" else 1e12)
            patch.setattr(selection, "_PER_ROW", 0.0)
        yield


# Selections


def _corpus(folder: Path, seed: int) -> Corpus:
    """Several commits of pictures and texts. A dozen contents for all, so that embeddings and scores are shared."""
    rng = np.random.default_rng(seed)
    store = LocalStore.create(folder / "index", model="fake", identity="fake-1", dim=DIM)
    contents = [f"content {number}" for number in range(int(rng.integers(1, 40)))]
    rows = dict(zip(contents, rng.integers(-1, 2, (len(contents), DIM)).astype(np.float32), strict=True))
    known: dict[str, tuple[int | None, tuple[str, ...]]] = {}
    for commit in range(4):
        with store.writer() as writer:
            writer.root(Root(folder, 1))
            for number in range(60):
                space = _SPACES[int(rng.integers(2))]
                uri = f"{commit}-{number}"
                width = None if rng.random() < 0.2 else int(rng.integers(100))
                chosen = [str(one) for one in rng.choice(contents, 1 if space == "image" else int(rng.integers(1, 4)))]
                for content in chosen:
                    if key(content) not in writer.find(space, [key(content)]):
                        writer.embed(space, [key(content)], rows[content][None], **PRECISION)
                writer.add(
                    ItemRef(str(folder), uri, str(folder / uri), space, Stamp(1, 1)),
                    content_hash=key(uri),
                    metadata=AssetMetadata(width=width),
                    items=[NewItem(space, key(one), *_piece(space, at, one)) for at, one in enumerate(chosen)],
                )
                known[uri] = (width, ("odd",) if number % 2 else ())
            writer.commit()
    gone = [uri for uri in known if rng.random() < 0.3]
    with store.writer() as writer:
        writer.remove(str(folder), gone)
        writer.commit()
        with store.snapshot() as snapshot:
            assets = {record.uri: record.asset_id for record in snapshot.all_items()}
        writer.tag({assets[uri]: {"odd": 0.5} for uri, (_, tags) in known.items() if tags and uri in assets})
        writer.commit()
    things: list[Thing] = []
    with store.snapshot() as snapshot:
        for space in _SPACES:
            records = [record for record in snapshot.all_items() if record.modality == space]
            vectors = snapshot.vectors(space, [record.item_id for record in records])
            pairs = zip(records, vectors, strict=True)
            things += [Thing(record.item_id, space, row, *known[record.uri]) for record, row in pairs]
    assert len({one.vector.tobytes() for one in things}) < len(things) / 2
    return Corpus(store, things)


def _piece(space: Modality, number: int, text: str) -> tuple[str | None, str | None]:
    return (f"char={number}", text) if space == "text" else (None, None)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Corpus]:
    return [_corpus(tmp_path_factory.mktemp("corpus"), seed) for seed in range(4)]


def _questions() -> st.SearchStrategy[Question]:
    def wide(least: int) -> Question:
        return Question(f"width >= {least}", lambda thing: thing.width is not None and thing.width >= least)

    def one(width: int) -> Question:
        return Question(f"width = {width}", lambda thing: thing.width == width)

    def narrow(most: int) -> Question:
        return Question(f"not width > {most}", lambda thing: thing.width is None or thing.width <= most)

    tags = [
        Question("tag = odd", lambda thing: "odd" in thing.tags),
        Question("not tag = odd", lambda thing: "odd" not in thing.tags),
        Question("tag = nowhere", lambda thing: False),
        Question("not tag = nowhere", lambda thing: True),
    ]
    widths = st.integers(0, 100)
    return st.one_of(widths.map(wide), widths.map(one), widths.map(narrow), st.sampled_from(tags))


def _naive(corpus: Corpus, space: Modality, query: NDArray[np.float32], k: int, question: Question) -> list[Any]:
    """Filter, then search."""
    passed = [thing for thing in corpus.things if thing.space == space and question.passes(thing)]
    pairs = sorted((-float(thing.vector.astype(np.float64) @ query), thing.item_id) for thing in passed)
    return [(item_id, -negative) for negative, item_id in pairs[:k]]


def _pairs(selected: selection.Selected) -> list[tuple[int, float]]:
    return [(candidate.item_id, candidate.score) for candidate in selected.candidates]


_QUERIES = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM).map(lambda row: np.array(row, np.float32))


@settings(max_examples=300, deadline=None)
@given(
    number=st.integers(0, 3),
    space=st.sampled_from(_SPACES),
    query=_QUERIES,
    k=st.sampled_from([1, 2, 5, 17, 1000]),
    question=_questions(),
    share=st.sampled_from([1.0, 0.5, 0.1, 0.0]),
    depth=st.integers(1, 64),
)
def test_every_plan_is_filter_then_search(
    corpora: list[Corpus],
    number: int,
    space: Modality,
    query: NDArray[np.float32],
    k: int,
    question: Question,
    share: float,
    depth: int,
) -> None:
    corpus = corpora[number]
    expected = _naive(corpus, space, query, k, question)
    total = sum(thing.space == space for thing in corpus.things)
    passed = sum(thing.space == space and question.passes(thing) for thing in corpus.things)
    with corpus.store.snapshot() as snapshot:
        where = condition_of(question.where, snapshot, space)
        assert selection.count_where(snapshot, space, where) == passed
        by_ids = selection.by_ids(snapshot, space, query, k, where)
        assert _pairs(by_ids) == expected
        assert (by_ids.plan, by_ids.selectivity) == ("ids first", pytest.approx(passed / total))
        with planned("candidates", depth):
            by_candidates = selection.by_candidates(snapshot, space, query, k, where, share)
        if by_candidates is not None:
            assert _pairs(by_candidates) == expected
            assert (by_candidates.plan, len(expected)) == ("candidates", k)
        for plan in _PLANS:
            with planned(plan, depth):
                found = selection.search_where(snapshot, space, query, k, where)
            assert _pairs(found) == expected
            assert found.plan == plan or plan != "ids first"


def test_candidates_are_checked_deeper_until_enough_have_passed(corpora: list[Corpus]) -> None:
    """The only one that passes is at each place of the ranking in turn."""
    corpus = corpora[0]
    query = np.array([1, 2, -1, 1], np.float32)
    mine = [thing.item_id for thing in corpus.things if thing.space == "image"]
    with corpus.store.snapshot() as snapshot, planned("candidates"):
        ranked = [one.item_id for one in snapshot.search("image", query[None], len(mine))[0]]
        assert 16 < len(ranked) // 4 < 128
        for place, item_id in enumerate(ranked, start=1):
            found = selection.by_candidates(snapshot, "image", query, 1, _only(item_id), 1.0)
            assert (found is not None) == (place <= 16)  # first two are looked at, then eight times as many
            if found is not None:
                assert [one.item_id for one in found.candidates] == [item_id]


def _only(item_id: int) -> Condition:
    return Condition("items.item_id = ?", "items.item_id = ?", (item_id,))


@pytest.mark.parametrize("space", _SPACES)
def test_a_sample_that_finds_nothing(corpora: list[Corpus], space: Modality, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the sample passes, or it has no item at all: all that pass are found, whatever was guessed."""
    corpus = corpora[1]
    query = np.array([1, 0, 2, -1], np.float32)
    width = next(thing.width for thing in corpus.things if thing.space == space and thing.width is not None)
    rare = Question(f"width = {width}", lambda thing: thing.width == width)
    all_ = Question("not tag = nowhere", lambda thing: True)
    other = next(thing.item_id for thing in corpus.things if thing.space != space)
    miss = next(thing.item_id for thing in corpus.things if thing.space == space and thing.width != width)
    for given_ids in ([], [other], [10**9], [miss]):
        monkeypatch.setattr(selection, "spread", lambda *_, given_ids=given_ids: given_ids)
        for question in (rare, all_):
            for k in (1, 5, 1000):
                expected = _naive(corpus, space, query, k, question)
                assert expected
                for plan in _PLANS:
                    with corpus.store.snapshot() as snapshot, planned(plan):
                        where = condition_of(question.where, snapshot, space)
                        assert _pairs(selection.search_where(snapshot, space, query, k, where)) == expected


@pytest.mark.parametrize("last", [0, 1, 2, 7, 1000, 200_000, 10**9])
def test_a_sample_is_of_ids_that_there_can_be(last: int) -> None:
    sample = selection.spread(last, 800)
    assert len(sample) == len(set(sample))
    assert all(1 <= item_id <= max(1, last) for item_id in sample)
    assert len(sample) >= min(last, 700)
    for step in (2, 3, 4, 5, 10):  # whatever is true of each so-manieth item is not true of the whole sample
        if last >= 1000:
            assert 0.5 / step < sum(item_id % step == 0 for item_id in sample) / len(sample) < 2 / step


@pytest.mark.parametrize("space", _SPACES)
def test_an_index_of_one_item_and_of_none(tmp_path: Path, space: Modality) -> None:
    store = LocalStore.create(tmp_path / "index", model="fake", identity="fake-1", dim=DIM)
    query = np.array([1, 0, 0, 0], np.float32)
    for items in (0, 1):
        if items:
            with store.writer() as writer:
                writer.root(Root(tmp_path, 1))
                writer.embed(space, [key("x")], np.ones((1, DIM), np.float32), **PRECISION)
                writer.add(
                    ItemRef(str(tmp_path), "x", str(tmp_path / "x"), space, Stamp(1, 1)),
                    content_hash=key("x"),
                    metadata=AssetMetadata(width=5),
                    items=[NewItem(space, key("x"), None, "x" if space == "text" else None)],
                )
                writer.commit()
        for plan in _PLANS:
            with store.snapshot() as snapshot, planned(plan):
                for source, passes in (("width = 5", items), ("width = 6", 0), ("not width = 6", items)):
                    where = condition_of(source, snapshot, space)
                    assert len(selection.search_where(snapshot, space, query, 3, where).candidates) == passes


# Answers

_COLOURS = ("red", "green", "blue", "black", "white", "yellow")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    """Pictures in three folders, many of them copies, captions beside some, and rows with prices."""
    folder = tmp_path_factory.mktemp("answers")
    for number in range(48):
        picture = folder / "photos" / f"album {number % 3}" / f"{number:02}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        size = (32 + 8 * (number % 4), 32)
        image = Image.new("RGB", size, _COLOURS[number % 6])
        if number % 5:
            image.paste(_COLOURS[(number + number % 5) % 6], (0, 0, 16, 6 * (number % 5)))
        image.save(picture)
        if number % 4 == 0:
            picture.with_suffix(".txt").write_text(f"a {_COLOURS[number % 6]} thing, number {number}", "utf-8")
    table = folder / "rows.jsonl"
    rows = [{"text": f"{_COLOURS[number % 6]} shirt for {number % 10}", "price": number % 10} for number in range(40)]
    table.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with Index(folder / "index", model="fake") as opened:
        opened.add(folder / "photos", table)
        yield opened


_FILTERS: dict[str, Callable[[Any], bool]] = {
    "width >= 48": lambda hit: (_width(hit) or 0) >= 48,
    "not width >= 48": lambda hit: not (_width(hit) or 0) >= 48,
    "path ~ '*/album 1/*'": lambda hit: "/album 1/" in str(hit.path),
    "folder = 'album 2' or meta.price < 3": lambda hit: "/album 2/" in str(hit.path) or _price(hit) in (0, 1, 2),
    "meta.price = 7": lambda hit: _price(hit) == 7,
    "modality = text and not ext = txt": lambda hit: hit.modality == "text" and not str(hit.path).endswith(".txt"),
    "width > 100": lambda hit: False,
}


def _width(hit: Any) -> int | None:
    """Of a picture; a caption has that of its picture."""
    name = Path(str(hit.path)).stem
    return 32 + 8 * (int(name) % 4) if name.isdigit() else None


def _price(hit: Any) -> int | None:
    if not str(hit.path).endswith("rows.jsonl"):
        return None
    return int(hit.text.rpartition(" ")[2])


_OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"query": "a red thing", "mode": "dense"},
    "minus": {"query": "a red thing - green", "mode": "dense"},
    "only minus": {"query": "- red", "mode": "dense"},
    "late": {"query": "red + 2:blue - white", "mode": "dense", "fusion": "late"},
    "lexical": {"query": "red thing", "mode": "lexical"},
    "phrase": {"query": '"red thing"', "mode": "hybrid"},
    "hybrid": {"query": "a red thing", "mode": "hybrid"},
    "both": {"query": "red + blue", "fusion": "both"},
    "file": {"query": "a red thing", "group": "file"},
    "folder": {"query": "a red thing", "group": "folder"},
    "dedup": {"query": "a red thing", "dedup": True},
    "diverse": {"query": "a red thing", "diverse": 0.5},
    "all of it": {"query": "red - blue", "group": "folder", "dedup": True, "diverse": 0.3},
}


def _shown(answer: Answer) -> list[tuple[int, float, int, tuple[int, ...]]]:
    return [(hit.item_id, hit.score, hit.others, tuple(one.item_id for one in hit.duplicates)) for hit in answer]


@pytest.mark.parametrize("modality", ["image", "text", "all"])
@pytest.mark.parametrize("name", _OPTIONS)
def test_answers_do_not_depend_on_the_plan(index: Index, name: str, modality: str) -> None:
    for where, passes in _FILTERS.items():
        options: dict[str, Any] = {**_OPTIONS[name], "modality": modality, "where": where}
        answers = []
        for plan in _PLANS:
            with planned(plan):
                answers.append(index.search(k=1000, **options))
                pages = [index.search(k=5, offset=offset, **options) for offset in (0, 5, 10)]
            paged = [hit for page in pages for hit in _shown(page)]
            assert paged == _shown(answers[-1])[:15], (where, plan)
        assert _shown(answers[0]) == _shown(answers[1]) == _shown(answers[2]), where
        hits = list(answers[0])
        assert all(passes(hit) for hit in hits), where
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))


@pytest.mark.parametrize("modality", ["image", "text"])
@pytest.mark.parametrize("name", ["dense", "minus", "only minus", "lexical", "file"])
def test_answers_are_those_that_pass_of_the_whole_answer(index: Index, name: str, modality: str) -> None:
    """One list, so its order does not change with what else is there."""
    options: dict[str, Any] = {**_OPTIONS[name], "modality": modality, "mode": _OPTIONS[name].get("mode", "dense")}
    group = options.pop("group", None)
    everything = list(index.search(k=1000, **options))
    for where, passes in _FILTERS.items():
        expected = [hit for hit in everything if passes(hit)]
        if group:
            expected = list({hit.path: hit for hit in reversed(expected)}.values())[::-1]
            expected.sort(key=lambda hit: hit.rank)
        for plan in _PLANS:
            for k in (1, 4, 1000):
                with planned(plan):
                    answer = index.search(k=k, where=where, group=group, **options)
                found = [(hit.item_id, pytest.approx(hit.score)) for hit in answer]
                assert found == [(hit.item_id, hit.score) for hit in expected[:k]], (where, plan, k)


@pytest.mark.parametrize("name", ["dense", "late", "hybrid", "both", "diverse"])
def test_k_hits_whenever_k_pass(index: Index, name: str) -> None:
    for modality in ("image", "text", "all"):
        everything = list(index.search("red", mode="dense", modality=modality, k=1000))
        for where, passes in _FILTERS.items():
            most = sum(map(passes, everything))
            for plan in _PLANS:
                for k in (1, 10, 1000):
                    with planned(plan):
                        answer = index.search(modality=modality, where=where, k=k, **_OPTIONS[name])
                    assert len(answer) == min(k, most), (where, plan, k)
                    if not most:
                        assert answer.notices[0] == "no item passes the filter"


@pytest.mark.parametrize("plan", ["ids first", "candidates"])
def test_the_explanation_says_how_it_was_done(index: Index, plan: str) -> None:
    with planned(plan):
        explanation = index.search("red", mode="dense", k=1, where="width>=40").explanation
    assert explanation is not None
    assert (explanation.plan, explanation.where) == (plan, "width >= 40")
    assert explanation.selectivity == pytest.approx(0.75, abs=0.2)
