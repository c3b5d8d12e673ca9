"""Files of TREC come back as they were written, and what is wrong in them is told with its line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.retrieval.errors import MediaError, UsageError
from mmsearch.retrieval.evaluate import (
    measure_run,
    read_qrels,
    read_run,
    read_topics,
    write_qrels,
    write_run,
    write_topics,
)

_IDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=8).filter(
    lambda text: text.split() == [text]
)


@st.composite
def runs(draw: st.DrawFn) -> dict[str, list[tuple[str, float]]]:
    scores = st.floats(allow_nan=False) | st.integers(0, 2).map(float)
    run = draw(st.dictionaries(_IDS, st.dictionaries(_IDS, scores, min_size=1, max_size=6), max_size=4))
    return {query: sorted(found.items(), key=lambda pair: -pair[1]) for query, found in run.items()}


def _written(write: Any, read: Any, value: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "file"), value)
        return read(Path(folder, "file"))


@settings(deadline=None)
@given(runs())
def test_a_run_comes_back_in_order(run: dict[str, list[tuple[str, float]]]) -> None:
    back = _written(write_run, read_run, run)
    assert {query: list(found.items()) for query, found in back.items()} == run
    assert list(back) == list(run)
    assert _written(write_run, read_run, {query: dict(found) for query, found in run.items()}) == back


@settings(deadline=None)
@given(st.dictionaries(_IDS, st.dictionaries(_IDS, st.integers(-2, 5), min_size=1, max_size=5), max_size=4))
def test_qrels_come_back(qrels: dict[str, dict[str, int]]) -> None:
    assert _written(write_qrels, read_qrels, qrels) == qrels


@settings(deadline=None)
@given(
    st.dictionaries(
        _IDS.filter(lambda text: text[0] != "<"), _IDS | st.tuples(_IDS, _IDS).map(" ".join), min_size=1, max_size=5
    )
)
def test_topics_come_back(topics: dict[str, str]) -> None:
    assert _written(write_topics, read_topics, topics) == topics


def test_documents_without_scores_get_scores_that_all_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q": ["b", "a", "c"]}, tag="my system")
    assert (tmp_path / "run").read_text().splitlines() == [
        "q Q0 b 1 3.0 my-system",
        "q Q0 a 2 2.0 my-system",
        "q Q0 c 3 1.0 my-system",
    ]
    assert list(read_run(tmp_path / "run")["q"]) == ["b", "a", "c"]


def test_scores_of_numpy_are_written_as_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "run", {"q": [("a", float(np.float32(0.1))), ("b", np.float32(0.1))]})  # type: ignore[list-item]
    assert read_run(tmp_path / "run") == {"q": {"a": float(np.float32(0.1)), "b": float(np.float32(0.1))}}


def test_the_score_decides_and_the_rank_where_scores_are_equal(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("q Q0 low 1 0.5 x\nq Q0 second 3 1 x\nq Q0 first 2 1.0 x\n\nr Q0 z 1 1 x\r\n")
    run = read_run(tmp_path / "run")
    assert {query: list(found) for query, found in run.items()} == {"q": ["first", "second", "low"], "r": ["z"]}
    measured = measure_run(run, {"q": {"second": 1}})
    assert (measured.values["rank"][0], measured.expected["rank"][0]) == (2, 1.5)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"a query": ["d"]}, "query 'a query' has white space"),
        ({"q": ["my photo.jpg"]}, "document 'my photo.jpg' has white space"),
        ({"q": [""]}, "document '' has white space or is empty"),
        ({"q": ["a\n"]}, "has white space"),
        ({"q": ["a", "a"]}, "twice"),
        ({"q": [("a", float("nan"))]}, "score of a is no number"),
        ({"q": [("a", 1.0), ("b", 2.0)]}, "b has a higher score"),
    ],
)
def test_what_a_run_cannot_hold_is_refused_and_nothing_written(tmp_path: Path, run: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        write_run(tmp_path / "run", run)
    assert os.listdir(tmp_path) == []


def test_what_qrels_and_topics_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="topic 'a b' has white space"):
        write_qrels(tmp_path / "x", {"a b": {"d": 1}})
    with pytest.raises(UsageError, match="topic 'a b' has white space"):
        write_topics(tmp_path / "x", {"a b": "text"})
    with pytest.raises(UsageError, match="topic a has no text"):
        write_topics(tmp_path / "x", {"a": " "})


@pytest.mark.parametrize(
    ("read", "text", "words"),
    [
        (read_run, "q Q0 a 1 1.0 x\nq Q0 b 2 0.5\n", "line 2: expected `query Q0 document rank score tag`"),
        (read_run, "q Q0 a 1 much x\n", "line 1: .*found `q Q0 a 1 much x`"),
        (read_run, "q Q0 a 1 nan x\n", "line 1: "),
        (read_run, "q Q0 a first 1.0 x\n", "line 1: "),
        (read_run, "\nq Q0 a 1 2 x\nq Q0 a 2 1 x\n", "line 3: a comes twice in q"),
        (read_qrels, "1 0 a\n", "line 1: expected `topic 0 document grade`"),
        (read_qrels, "1 0 a 0.5\n", "line 1: "),
        (read_qrels, "1 0 a 1\n1 0 a 1\n", "line 2: a comes twice"),
        (read_topics, "1\ta dog\n2 a cat\n", "line 2: not a topic; expected an id without blanks, a tab"),
        (read_topics, "1\ta dog\n1\ta cat\n", "line 2: topic 1 comes twice"),
        (read_topics, "1\t \n", "line 1: not a topic"),
        (read_topics, "", "has no topics"),
        (read_topics, "<top>\n<num> 1\n<title> a\n</top>\n<top>\n<num> 2\n</top>", "line 5: not a topic"),
        (read_topics, "<html><p>no topics</p></html>", "has no topics"),
    ],
)
def test_malformed_lines_are_told(tmp_path: Path, read: Any, text: str, words: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(MediaError, match=words) as told:
        read(tmp_path / "file")
    assert str(tmp_path / "file") in str(told.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot be read: No such file"):
        read_run(tmp_path / "none")


def test_topics_may_be_marked_up(tmp_path: Path) -> None:
    (tmp_path / "topics").write_text(
        """
<top>
<num> Number: 301
<title> International
  organized crime

<desc> Description:
Identify organizations.
</top>
<TOP><NUM>302</NUM><TITLE>cats &amp; dogs</TITLE></TOP>
<top>
<num> 303 </num>
<title> Topic: a dog
</top>
"""
    )
    assert read_topics(tmp_path / "topics") == {
        "301": "International organized crime",
        "302": "cats & dogs",
        "303": "a dog",
    }
