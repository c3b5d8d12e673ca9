"""Reranking in a search: with filters, shaping and pages, what is told of it, and rerankers of every kind of harm."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cli_kit import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scripted_reranker import Clock, Scripted
from search_kit import Built, File, add_captions, build, ids

import mmsearch
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import UsageError
from mmsearch.retrieval.rerank import RerankCandidate, Reranker
from mmsearch.retrieval.rerank.fake import FakeReranker
from mmsearch.retrieval.rerank.scoring import Scorer
from mmsearch.retrieval.searcher import Searcher
from mmsearch.retrieval.types import Answer

Run = Callable[..., Result]


class _Encoder(FakeEncoder):
    """Every text is the first axis of the indexes below."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = "fake-1"

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[1.0, 0.0, 0.0, 0.0]] * len(texts), np.float32)


def _search(built: Built, query: str | None = "boat", scorer: Scorer | None = None, **options: object) -> Answer:
    options.setdefault("mode", "dense")
    with built.store.snapshot() as snapshot:
        return Searcher(snapshot, _Encoder, scorer=scorer).search(query, **options)  # type: ignore[arg-type]


def _files(count: int) -> list[File]:
    """Pictures that the first stage ranks as they are numbered; item ids go up with that."""
    return [
        File(f"f{at % 3}/{at:03}.jpg", (1.0, 0.02 * at, 0.0, 0.0), taken=f"2020-01-{at % 28 + 1:02}")
        for at in range(count)
    ]


@pytest.fixture(scope="module")
def pictures30(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("thirty"), _files(30))


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


# The order


def test_the_first_are_ordered_anew_and_the_rest_stays(pictures30: Built) -> None:
    plain = ids(_search(pictures30, k=30))
    assert plain == list(range(1, 31))
    answer = _search(pictures30, k=30, rerank=Scripted(), depth=10)
    assert ids(answer) == [*range(10, 0, -1), *range(11, 31)]
    assert [hit.rank_before for hit in answer] == ids(answer)
    assert [hit.rank for hit in answer] == list(range(1, 31))
    assert answer.notices == ()


def test_the_scores_of_the_first_stage_stay(pictures30: Built) -> None:
    before = {hit.item_id: (hit.score, hit.relevance) for hit in _search(pictures30, k=30)}
    answer = _search(pictures30, k=30, rerank=Scripted(), depth=10)
    assert {hit.item_id: (hit.score, hit.relevance) for hit in answer} == before


def test_off_by_default(pictures30: Built) -> None:
    answer = _search(pictures30)
    assert {hit.rank_before for hit in answer} == {None}
    assert answer.explanation is not None and answer.explanation.rerank is None


def test_depth_may_be_less_than_k_and_more_than_there_is(pictures30: Built) -> None:
    assert ids(_search(pictures30, k=5, rerank=Scripted(), depth=2)) == [2, 1, 3, 4, 5]
    assert ids(_search(pictures30, k=5, rerank=Scripted(), depth=10**6)) == [30, 29, 28, 27, 26]


def test_fifty_candidates_are_looked_at(tmp_path: Path) -> None:
    reranker = Scripted(batch_size=100)
    _search(build(tmp_path, _files(60)), k=3, rerank=reranker)
    assert reranker.batches == [list(range(1, 51))]


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "group": st.sampled_from(("file", "folder")),
        "dedup": st.just(True),
        "diverse": st.sampled_from((0.3, 1.0)),
        "where": st.sampled_from(('path ~ "*/f1/*"', "width >= 1", "not taken = 2020-01-05")),
        "mode": st.sampled_from(("dense", "lexical", "hybrid")),
        "modality": st.sampled_from(("image", "text", "all")),
        "min_relevance": st.just(0.1),
        "fusion": st.sampled_from(("early", "late", "both")),
    },
).filter(lambda chosen: not ("fusion" in chosen and chosen.get("mode") == "lexical"))


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Built:
    words = ("a boat", "a red boat at sea", "no ship", "the boat on a lake")
    files = [
        File(
            f"f{at % 3}/{at:03}.jpg",
            (1.0, 0.3 * math.sin(at), 0.3 * math.cos(2 * at), 0.01 * (at % 5)),
            texts=(words[at % 4],) if at % 2 else (),
            taken=f"2020-01-{at % 28 + 1:02}",
            phash=at // 2 if at % 5 == 0 else None,
        )
        for at in range(40)
    ]
    return build(tmp_path_factory.mktemp("captioned"), files)


@settings(deadline=None, max_examples=60)
@given(
    options=OPTIONS,
    depth=st.integers(1, 60),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    modalities=st.sampled_from((("image",), ("text",), ("image", "text"))),
    unreadable=st.integers(2, 9),
)
def test_pages_fit_together_whatever_else_is_asked(
    captioned: Built,
    options: dict[str, object],
    depth: int,
    sizes: list[int],
    modalities: tuple[str, ...],
    unreadable: int,
) -> None:
    def score(one: RerankCandidate) -> float:
        return math.nan if one.item_id % unreadable == 0 else float(one.item_id * 37 % 11)

    reranker = Scripted(score, batch_size=5, modalities=modalities)  # type: ignore[arg-type]
    wanted = {**options, "rerank": reranker, "depth": depth}
    whole = ids(_search(captioned, "boat", k=sum(sizes), **wanted))
    paged, offset = [], 0
    for size in sizes:
        page = _search(captioned, "boat", k=size, offset=offset, **wanted)
        paged += ids(page)
        offset += size
    assert paged == whole
    assert len(set(whole)) == len(whole)


@settings(deadline=None, max_examples=60)
@given(options=OPTIONS, depth=st.integers(1, 60), unreadable=st.integers(1, 9))
def test_reranking_keeps_the_hits_and_the_rule(
    captioned: Built, options: dict[str, object], depth: int, unreadable: int
) -> None:
    """Without anything that leaves out or collapses: the same items, in the order that the rule makes of the scores."""
    kept = {name: value for name, value in options.items() if name in ("where", "mode", "modality", "fusion")}

    def score(one: RerankCandidate) -> float:
        return math.nan if one.item_id % unreadable == 0 else float(one.item_id * 37 % 11)

    before = ids(_search(captioned, "boat", k=99, **kept))
    answer = _search(captioned, "boat", k=99, rerank=Scripted(score), depth=depth, **kept)
    scores = {id_: score(RerankCandidate(id_, "image", None, None)) for id_ in before}
    scored = [id_ for id_ in before[:depth] if not math.isnan(scores[id_])]
    expected = sorted(scored, key=lambda id_: (-scores[id_], before.index(id_)))
    expected += [id_ for id_ in before if id_ not in expected]
    assert ids(answer) == expected
    if scored:
        assert [hit.rank_before for hit in answer] == [before.index(id_) + 1 for id_ in ids(answer)]
    assert answer.explanation is not None
    for hit, found in zip(answer, answer.explanation.hits, strict=True):
        assert found.rerank_score == (scores[hit.item_id] if hit.item_id in scored and scored else None)


def test_a_filter_decides_what_is_reranked(pictures30: Built) -> None:
    reranker = Scripted()
    answer = _search(pictures30, k=30, rerank=reranker, depth=4, where='path ~ "*/f1/*"')
    assert sorted(candidate.item_id for candidate in reranker.candidates) == [2, 5, 8, 11]
    assert ids(answer)[:5] == [11, 8, 5, 2, 14]
    assert [hit.rank_before for hit in answer][:5] == [4, 3, 2, 1, 5]


def test_groups_show_the_one_that_is_best_now(pictures30: Built) -> None:
    answer = _search(pictures30, rerank=Scripted(), depth=9, group="folder")
    assert ids(answer) == [9, 8, 7]
    assert [hit.others for hit in answer] == [9, 9, 9]


def test_near_duplicates_are_those_of_the_best_now(tmp_path: Path) -> None:
    alike = [File(f"{at}.jpg", (1.0, 0.0, 0.0, 0.0), phash=7) for at in range(3)]
    built = build(tmp_path, [*alike, File("other.jpg", (0.5, 1.0, 0.0, 0.0), phash=-1)])
    (best, other) = _search(built, rerank=Scripted(lambda one: -abs(one.item_id - 2)), depth=3, dedup=True)
    assert (best.item_id, other.item_id) == (2, 4)
    assert [(twin.item_id, twin.rank_before) for twin in best.duplicates] == [(1, 1), (3, 3)]


def test_diversity_starts_from_the_order_of_the_reranker(pictures30: Built) -> None:
    assert ids(_search(pictures30, k=30, rerank=Scripted(), diverse=0.001)) == list(range(30, 0, -1))


def test_by_date_the_hits_are_the_reranked_ones(pictures30: Built) -> None:
    answer = _search(pictures30, k=3, rerank=Scripted(), sort="date")
    assert sorted(ids(answer)) == [28, 29, 30]  # taken on the 28th, the 1st and the 2nd
    assert ids(answer) == [28, 30, 29]
    assert [hit.rank_before for hit in answer] == [28, 30, 29]


def test_pages_fit_together_when_time_was_up(pictures30: Built) -> None:
    clock, scorer_limit = Clock(), 1_500_000
    reranker = Scripted(batch_size=5)
    calls = iter((1000.0, 1000.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0))

    def tick(_: int) -> None:
        clock.now += next(calls)

    reranker.before = tick
    scorer = Scorer(clock)
    wanted: dict[str, object] = {"rerank": reranker, "budget_ms": scorer_limit, "scorer": scorer}
    first = _search(pictures30, k=7, **wanted)  # type: ignore[arg-type]
    second = _search(pictures30, k=7, offset=7, **wanted)  # type: ignore[arg-type]
    assert ids(first) + ids(second) == [*range(10, 0, -1), *range(11, 15)]
    assert len(reranker.batches) == 2
    assert first.explanation is not None and first.explanation.rerank is not None
    assert first.explanation.rerank.scored == 10 and first.explanation.rerank.out_of_time
    assert first.notices == ()
    assert ids(_search(pictures30, k=7, **wanted)) == [*range(30, 23, -1)]  # type: ignore[arg-type]


# What it reads


def test_it_reads_the_positive_texts(pictures30: Built) -> None:
    reranker = Scripted(batch_size=99)
    answer = _search(pictures30, '2:"red boat" + sea - fruit', rerank=reranker)
    assert reranker.queries == ["red boat, sea"]
    assert answer.notices == (
        "the reranker reads 'red boat, sea': the rest of the query counts in the first stage only",
    )
    assert answer.explanation is not None and answer.explanation.rerank is not None
    assert answer.explanation.rerank.query == "red boat, sea"
    assert _search(pictures30, "red boat + sea", rerank=reranker).notices == ()


@pytest.mark.parametrize(
    ("query", "options"),
    [(None, {"vector": [1, 0, 0, 0]}), ("id:3", {}), ("- fruit", {}), ("id:3 - fruit", {})],
)
def test_a_query_without_words_is_not_reranked(
    pictures30: Built, query: str | None, options: dict[str, object]
) -> None:
    reranker = Scripted()
    answer = _search(pictures30, query, k=30, rerank=reranker, **options)  # type: ignore[arg-type]
    assert ids(answer) == ids(_search(pictures30, query, k=30, **options))  # type: ignore[arg-type]
    assert "not reranked: a reranker reads words, and the query looks for none" in answer.notices
    assert reranker.batches == []
    assert {hit.rank_before for hit in answer} == {None}


def test_a_query_without_words_loads_no_reranker(pictures30: Built) -> None:
    def no_reranker(name: str) -> Reranker:
        raise AssertionError("no reranker was needed")

    with pictures30.store.snapshot() as snapshot:
        searcher = Searcher(snapshot, _Encoder, reranker=no_reranker)
        assert len(searcher.search("id:3", rerank="minilm", mode="dense")) == 10


def test_a_candidate_has_its_text_captions_and_path(tmp_path: Path) -> None:
    built = build(
        tmp_path,
        [File("a.jpg", texts=("by its side",)), File("b.jpg"), File("c.txt", texts=("one", "two"), modality="text")],
    )
    add_captions(built, tmp_path, [("a.jpg", "in a row"), (None, "of nothing")])
    reranker = Scripted(batch_size=99)
    _search(built, rerank=reranker, modality="all")
    found = {(one.modality, one.text): one.path for one in reranker.candidates}
    assert found == {
        ("image", "by its side\nin a row"): tmp_path / "a.jpg",
        ("image", None): tmp_path / "b.jpg",
        ("text", "by its side"): tmp_path / "a.jpg.txt",
        ("text", "one"): tmp_path / "c.txt",
        ("text", "two"): tmp_path / "c.txt",
        ("text", "in a row"): tmp_path / "a.jpg",
        ("text", "of nothing"): tmp_path / "captions.csv",
    }


def test_words_find_and_the_reranker_orders(captioned: Built) -> None:
    before = ids(_search(captioned, "red boat", mode="lexical", k=99))
    assert len(before) > 5
    assert ids(_search(captioned, "red boat", mode="lexical", k=99, rerank=Scripted())) == sorted(before, reverse=True)


def test_a_modality_that_it_does_not_read_is_told_of(captioned: Built) -> None:
    answer = _search(captioned, modality="all", rerank=Scripted(modalities=("image",)), depth=20, k=20)
    assert answer.notices == ("scripted reads pictures only: texts come after what it has scored",)
    kinds = [hit.modality for hit in answer]
    assert kinds == sorted(kinds) and set(kinds) == {"image", "text"}
    answer = _search(captioned, modality="text", rerank=Scripted(modalities=("image",)), depth=5)
    assert answer.notices == ("not reranked: scripted reads pictures only, and none are among the first 5",)
    assert {hit.rank_before for hit in answer} == {None}


# Harm


def _raise(number: int) -> None:
    raise RuntimeError("out of memory\nat line 3")


def test_a_reranker_that_fails_is_told_of(pictures30: Built) -> None:
    reranker = Scripted()
    reranker.before = _raise
    answer = _search(pictures30, k=30, rerank=reranker)
    assert ids(answer) == list(range(1, 31))
    assert answer.notices == ("not reranked: scripted failed (RuntimeError: out of memory)",)
    assert {hit.rank_before for hit in answer} == {None}
    assert answer.explanation is not None and answer.explanation.rerank is not None
    assert answer.explanation.rerank.failure == "RuntimeError: out of memory"
    assert {found.rerank_score for found in answer.explanation.hits} == {None}


def test_a_reranker_that_hangs_is_told_of(pictures30: Built, release: threading.Event) -> None:
    reranker = Scripted()
    reranker.before = lambda number: release.wait(60)
    answer = _search(pictures30, k=30, rerank=reranker, budget_ms=20)
    assert ids(answer) == list(range(1, 31))
    assert answer.notices == ("not reranked: scripted scored nothing in 20 ms",)
    answer = _search(pictures30, k=30, rerank=reranker, scorer=Scorer(patience=0.25))
    assert ids(answer) == list(range(1, 31))
    assert answer.notices == ("not reranked: scripted scored nothing in 0.25 s",)
    assert not release.is_set()


def test_a_reranker_that_is_given_up_later_keeps_what_it_has_scored(
    pictures30: Built, release: threading.Event
) -> None:
    reranker = Scripted()
    reranker.before = lambda number: number == 1 and release.wait(60)
    answer = _search(pictures30, k=6, rerank=reranker, scorer=Scorer(patience=0.5))
    assert ids(answer) == [4, 3, 2, 1, 5, 6]
    assert answer.notices == ("scripted was given up after 0.5 s without an answer",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"depth": 0}, "depth must be 1 or more, not 0"),
        ({"depth": 2.5}, "depth must be a whole number"),
        ({"budget_ms": 0}, "budget_ms must be 1 or more, not 0"),
        ({"budget_ms": -5}, "budget_ms must be 1 or more"),
        ({"budget_ms": 0.5}, "budget_ms must be a whole number"),
        ({"rerank": "minlm"}, "the nearest names are minilm"),
        ({"rerank": 7}, "neither the name of a reranker nor one: it has no name"),
        ({"rerank": None, "budget_ms": 5}, "name a reranker, or leave it out"),
        ({"rerank": Scripted(batch_size=0)}, "batch_size of a reranker must be 1 or more"),
        ({"rerank": Scripted(modalities=())}, "modalities of a reranker are image, text"),
        ({"rerank": Scripted(modalities=("sound",))}, "modalities of a reranker are image, text"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_meant(pictures30: Built, options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        _search(pictures30, **{"rerank": "fake", **options})  # type: ignore[arg-type]


def test_an_index_that_is_empty_is_no_harm(tmp_path: Path) -> None:
    assert ids(_search(build(tmp_path, []), rerank=Scripted())) == []


# The facade


@pytest.fixture
def opened(pictures: Path, tmp_path: Path) -> Iterator[mmsearch.Index]:
    with mmsearch.open(tmp_path / "index", model="fake") as index:
        index.add(pictures)
        yield index


def test_the_index_reranks_by_name_and_by_object(opened: mmsearch.Index) -> None:
    by_name = opened.search("orange triangle", rerank="fake", depth=6)
    assert by_name[0].uri == "more/orange-triangle.jpg"
    assert ids(by_name) == ids(opened.search("orange triangle", rerank=FakeReranker(), depth=6))
    assert opened.search("orange triangle", rerank=Scripted(), depth=6)[0].item_id == 6


def test_a_reranker_is_loaded_once(opened: mmsearch.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, dict[str, object]]] = []

    def load(name: str, **options: object) -> Reranker:
        loaded.append((name, options))
        return FakeReranker()

    monkeypatch.setattr("mmsearch.retrieval.rerank.models.load_reranker", load)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda query: opened.search(query, rerank="minilm"), ["red", "blue"] * 8))
    assert [name for name, _ in loaded] == ["minilm"]
    assert loaded[0][1]["offline"] is False
    assert all(ids(answer) == ids(answers[at % 2]) for at, answer in enumerate(answers))


def test_pages_of_an_index_fit_together_when_time_was_up(opened: mmsearch.Index, release: threading.Event) -> None:
    reranker = Scripted(batch_size=2)
    reranker.before = lambda number: number == 1 and release.wait(60)
    first = opened.search("red", k=2, rerank=reranker, budget_ms=500)
    release.set()
    second = opened.search("red", k=4, offset=2, rerank=reranker, budget_ms=500)
    assert sorted(ids(first) + ids(second)) == [1, 2, 3, 4, 5, 6]
    assert len(reranker.batches) == 2


def test_other_commits_make_other_queries(opened: mmsearch.Index, pictures: Path) -> None:
    reranker = Scripted(batch_size=99)
    opened.search("red", k=2, rerank=reranker)
    (pictures / "red-square.txt").write_text("a caption", encoding="utf-8")
    opened.add()
    opened.search("red", k=2, offset=2, rerank=reranker)
    assert len(reranker.batches) == 2


def test_the_documented_reranker_runs(
    repository: Path, opened: mmsearch.Index, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (repository / "docs" / "rerank.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.setattr("mmsearch.retrieval.rerank.models.load_reranker", lambda name, **options: FakeReranker())
    monkeypatch.setattr("mmsearch.open", lambda: opened)
    for block in blocks:
        exec(compile(block, "docs/rerank.md", "exec"), {"__name__": "__main__"})
    assert "red-square.png" in capsys.readouterr().out


# The command line


@pytest.fixture
def indexed(run: Run, tmp_path: Path, draw: Callable[..., Path]) -> Path:
    """PNGs only, whose scores do not depend on a decoder's version."""
    folder = tmp_path / "plain"
    for colour in ("red", "green", "blue"):
        draw(folder / f"{colour}.png", colour)
    (folder / "rose.md").write_text("# Roses\n\nA red rose is a rose.\n", encoding="utf-8")
    assert run("index", folder, "--model", "fake").code == 0
    return folder


def test_json_has_the_rank_before_and_the_scores(run: Run, indexed: Path) -> None:
    lines = run("query", "blue", "--mode", "dense", "--rerank", "fake", "--depth", "2", "--json", "--explain").json
    assert [list(line)[-2:] for line in lines] == [["rank_before", "explanation"]] * 3
    assert sorted(line["rank_before"] for line in lines) == [1, 2, 3]
    assert {tuple(line["explanation"]["rerank"]) for line in lines} == {
        ("reranker", "identity", "query", "depth", "budget_ms", "candidates", "scored", "out_of_time", "failure")
    }
    assert lines[0]["explanation"]["rerank"]["scored"] == 2
    scores = [line["explanation"]["rerank_score"] for line in lines]
    assert scores[0] > scores[1] and scores[2] is None
    assert [line["explanation"]["rerank_ms"] is None for line in lines] == [False, False, True]
    assert "rerank" in lines[0]["explanation"]["milliseconds"]
    assert {line["rank_before"] for line in run("query", "blue", "--json").json} == {None}


def test_golden_rerank_on_a_terminal(
    run: Run, golden: Callable[[str, str], None], indexed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = Scripted(lambda one: -one.item_id)
    monkeypatch.setattr("mmsearch.output.is_terminal", lambda stream: stream is sys.stdout)
    monkeypatch.setattr("mmsearch.retrieval.rerank.models.load_reranker", lambda name, **options: reranker)
    wanted = ("query", "red", "--mode", "dense", "--rerank", "minilm", "--depth", "2", "--budget-ms", "99999")
    shown = run(*wanted, "--explain").out
    shown = re.sub(r"^time .*\n( {12}.*\n)*", "time\n", shown, flags=re.MULTILINE)
    golden("query-rerank.txt", re.sub(r"(?<=before), [\d.,]+ ms$", ", 0.0 ms", shown, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--rerank", "minlm"], 2, "no reranker is called `minlm`; the nearest names are minilm"),
        (["--rerank", "fake", "--depth", "0"], 2, "depth must be 1 or more"),
        (["--rerank", "fake", "--budget-ms", "0"], 2, "budget_ms must be 1 or more"),
        (["--rerank", "fake", "--depth", "many"], 2, "Invalid value for '--depth'"),
        (["--rerank", "fake", "--budget-ms", "0.5"], 2, "Invalid value for '--budget-ms'"),
        (["--rerank", "fake", "--budget-ms", "-5"], 2, "budget_ms must be 1 or more"),
        (["--budget-ms", "5"], 2, "name a reranker"),
        (["--rerank", "minilm", "--offline"], 1, "is not cached, and the network is not to be used"),
        (["--rerank", "local-dir:nowhere"], 1, "has no config.json"),
    ],
)
def test_errors_on_the_command_line(run: Run, indexed: Path, words: list[str], code: int, said: str) -> None:
    result = run("query", "red", *words)
    assert (result.code, result.out) == (code, "")
    assert said in result.err


def test_a_missing_package_is_named(run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmsearch.retrieval.rerank.models._missing", lambda kind: "sentence_transformers")
    result = run("query", "red", "--rerank", "minilm")
    assert result.code == 1
    assert "pip install 'mmsearch[rerank]'" in result.err


def test_a_picture_as_the_query_is_served_with_a_notice(run: Run, indexed: Path) -> None:
    result = run("query", "--image", indexed / "red.png", "--rerank", "minilm", "--json")
    assert result.code == 0
    assert result.err == "not reranked: a reranker reads words, and the query looks for none\n"
    assert result.json == run("query", "--image", indexed / "red.png", "--json").json


def test_a_failure_is_a_notice_and_no_traceback(run: Run, indexed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = Scripted()
    reranker.before = _raise
    monkeypatch.setattr("mmsearch.retrieval.rerank.models.load_reranker", lambda name, **options: reranker)
    result = run("query", "red", "--rerank", "minilm", "--json")
    assert (result.code, result.err) == (0, "not reranked: scripted failed (RuntimeError: out of memory)\n")
    assert result.json == run("query", "red", "--json").json
    assert "Traceback" in run("query", "red", "--rerank", "minilm", "-v").err


# Ends of programs. Python takes down a process whose daemon threads are in native code when it ends.

_NATIVE = """
import os, signal, sys, threading
import numpy as np
import torch
from mmsearch.retrieval.rerank import models

class Busy:
    name, identity, modalities, batch_size = "busy", "busy-1", frozenset({"image", "text"}), 1

    def score(self, query, candidates):
        if sys.argv[-1] == "press":
            os.kill(os.getpid(), signal.SIGINT)
        squares = torch.ones(300, 300)
        while True:
            squares = (squares @ squares) * 0

models.load_reranker = lambda name, **options: Busy()
"""


def _ended(code: str, *words: str | Path, index: Path) -> subprocess.CompletedProcess[str]:
    wanted = [sys.executable, "-c", code, *map(str, words)]
    environment = {**os.environ, "MMSEARCH_INDEX": str(index)}
    return subprocess.run(wanted, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_a_command_does_not_wait_for_what_it_left_behind(run: Run, indexed: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    words = ("query", "red", "--rerank", "minilm", "--budget-ms", "50", "--json")
    done = _ended(f"{_NATIVE}\nfrom mmsearch.cli import main; main()", *words, index=tmp_path / "index")
    assert (done.returncode, done.stderr) == (0, "not reranked: busy scored nothing in 50 ms\n")
    assert [json.loads(line) for line in done.stdout.splitlines()] == run("query", "red", "--json").json


def test_ctrl_c_ends_a_command_whose_reranker_runs(run: Run, indexed: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    # `press` is a word of the query: the last argument, which the reranker looks for.
    words = ("query", "--rerank", "minilm", "press")
    done = _ended(f"{_NATIVE}\nfrom mmsearch.cli import main; main()", *words, index=tmp_path / "index")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr.splitlines()[-1] == "interrupted"


def test_a_program_waits_for_the_batch_that_it_left_behind(indexed: Path, tmp_path: Path) -> None:
    code = """
import sys, time
import mmsearch

class Slow:
    name, identity, modalities, batch_size = "slow", "slow-1", frozenset({"image", "text"}), 1

    def score(self, query, candidates):
        time.sleep(2)
        print("scored", flush=True)
        return [1.0]

with mmsearch.open() as index:
    print(*index.search("red", rerank=Slow(), budget_ms=20).notices)
"""
    done = _ended(code, index=tmp_path / "index")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["not reranked: slow scored nothing in 20 ms", "scored"]
