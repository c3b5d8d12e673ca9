"""How answers are printed: for people, for programs, and how each hit was found."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from answer_kit import HARM, OBEYED, answer, hit
from hypothesis import given
from hypothesis import strategies as st

from mmsearch import answers
from mmsearch.retrieval.types import Answer, ClauseScore

FOLDER = Path("/photos")


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def _table(capsys: pytest.CaptureFixture[str], found: Answer, **how: object) -> list[str]:
    answers.write_hits(found, people=True, **how)  # type: ignore[arg-type]
    return capsys.readouterr().out.splitlines()


def test_lines_for_programs_have_the_whole_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = "word\n" * 200
    answers.write_hits(
        answer(hit(1, FOLDER / "a.jpg"), hit(2, FOLDER / "b.txt", text=text, modality="text", fragment="char=0-9")),
        people=False,
    )
    first, second = capsys.readouterr().out.splitlines()
    assert first == "1\t0.500000\t/photos/a.jpg"
    assert second.split("\t") == ["2", "0.500000", "/photos/b.txt", "char=0-9", " ".join(["word"] * 200)]


def test_the_table_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(*(hit(rank, FOLDER / f"{rank}.jpg", relevance=0.5 if rank % 2 else None) for rank in range(8, 12)))
    head, *lines = _table(capsys, found)
    at = head.index("path")
    assert [line[at:] for line in lines] == [f"/photos/{rank}.jpg" for rank in range(8, 12)]
    assert head.split() == ["#", "score", "relevance", "path"]
    assert [line.split()[2] for line in lines] == ["-", "0.50", "-", "0.50"]


def test_relevance_has_no_column_where_nothing_is_known_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert "relevance" not in _table(capsys, answer(hit(1, FOLDER / "a.jpg")))[0]


def test_below_a_hit_stands_what_it_stands_for(capsys: pytest.CaptureFixture[str]) -> None:
    twins = tuple(hit(1, (FOLDER if n else Path("/other")) / f"{n}.jpg") for n in range(7))
    found = answer(hit(1, FOLDER / "a.jpg", duplicates=twins, others=1200, tags=("cat", "sofa")))
    _, _, *below = _table(capsys, found, group="folder")
    assert [line.strip() for line in below] == [
        "= /other/0.jpg",
        *(f"= {n}.jpg" for n in range(1, 5)),
        "= 2 more",
        "and 1,200 more in this folder",
        "tags: cat, sofa",
    ]


def test_long_texts_are_cut_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    head, _, *snippet = _table(capsys, answer(hit(1, FOLDER / "a.txt", text="word " * 100, modality="text")))
    indent = head.index("path")
    assert 1 < len(snippet) <= 4 and snippet[-1].endswith("…")
    for line in snippet:
        assert len(line) <= 80
        assert line[:indent].isspace() and line[indent] == "w"
    assert len(" ".join(line.strip() for line in snippet)) <= 160


def test_the_place_of_a_passage_stands_behind_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    _, first, *_ = _table(
        capsys, answer(hit(1, FOLDER / "a.txt", text="word", modality="text", fragment="char=120-124\n"))
    )
    assert first.split() == ["1", "0.5000", "/photos/a.txt", "char=120-124\\n"]


def test_a_snippet_shows_the_words_that_were_looked_for() -> None:
    text = "nothing here " * 20 + "the Red kettle is on the stove " + "nothing there " * 20
    assert answers.excerpt(text, (), 160) == answers.one_line(text, 160)
    assert answers.excerpt(text, ("blue",), 160) == answers.one_line(text, 160)
    shown = answers.excerpt(text, ("red", "stove", "blue"), 160)
    assert re.fullmatch(r"…(nothing|here) .*the Red kettle is on the stove nothing.*…", shown)
    assert len(shown) <= 160
    assert answers.excerpt("on the red sofa " + text, ("red",), 160).startswith("on the red sofa"), "as good, and first"
    at_the_end = answers.excerpt(text + "red", ("red", "kettle"), 100)
    assert "Red kettle" in at_the_end
    assert answers.excerpt("nothing here " * 40 + "a red end", ("red",), 100)[:11] in ("…nothing he", "…here nothi")
    assert answers.excerpt("credible " * 30 + "redo", ("red",), 160) == answers.one_line("credible " * 30, 160)


def test_a_snippet_counts_only_the_words_that_it_shows() -> None:
    filler = "nothing here " * 20
    text = f"red {filler} blue kettle {filler} sea {filler}"
    assert "blue kettle" in answers.excerpt(text, ("red", "blue", "kettle", "sea"), 160)


def test_snippets_find_phrases_and_words_without_spaces() -> None:
    assert "no -entry" in answers.excerpt("nothing here " * 30 + "no -entry", ("no entry",), 60)
    text = "没有什么" * 60 + "沙滩上的狗" + "没有什么" * 60
    shown = answers.excerpt(text, ("沙滩",), 160)
    assert "沙滩上的狗" in shown and len(shown) <= 160
    assert shown.index("沙") <= 42


@given(
    st.lists(st.sampled_from(["red", "Kettle", "sea", "猫狗", "an", "."])).map(" ".join),
    st.lists(st.sampled_from(["red", "kettle", "猫", "red kettle", "none"]), unique=True),
    st.integers(60, 90),
)
def test_snippets_are_parts_of_the_text(text: str, words: list[str], most: int) -> None:
    shown = answers.excerpt(text, words, most)
    assert len(shown) <= most
    assert shown.strip("…") in text
    assert _how_many(words, shown) >= _how_many(words, answers.one_line(text, most))


def _how_many(words: list[str], shown: str) -> int:
    """Words that are shown whole, with a naive eye."""
    padded = " " + shown.strip("…").lower().replace(" .", "") + " "
    return sum(word in padded if word == "猫" else f" {word} " in padded for word in words)


@given(text=st.text(alphabet="ab 中\u0301é", max_size=60), width=st.integers(4, 20))
def test_folded_lines_fit_and_lose_nothing(text: str, width: int) -> None:
    lines = answers.folded(text, width)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    for line in lines:
        wide = line.count("中")
        assert wide + len(line) - line.count("\u0301") <= width


def test_words_stay_whole_and_chinese_breaks_anywhere() -> None:
    assert answers.folded("a dog runs", 6) == ["a dog", "runs"]
    assert answers.folded("一只狗在海滩上", 8) == ["一只狗在", "海滩上"]
    assert answers.folded("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert answers.folded("", 4) == []


def test_pictures_are_drawn_below_their_hits_at_the_column_of_the_path(capsys: pytest.CaptureFixture[str]) -> None:
    drawn: list[tuple[int, int]] = []
    head, *_ = _table(
        capsys, answer(*(hit(n, FOLDER / "a.jpg") for n in (1, 2))), draw=lambda one, at: drawn.append((one.rank, at))
    )
    assert drawn == [(1, head.index("path")), (2, head.index("path"))]


@pytest.mark.parametrize("people", [True, False])
def test_what_would_be_obeyed_is_shown_instead(people: bool, capsys: pytest.CaptureFixture[str]) -> None:
    name = HARM.replace("/", "|")
    twin = hit(1, FOLDER / name)
    one = hit(1, FOLDER / name, text=HARM, modality="text", tags=(HARM,), duplicates=(twin,))
    clause = ClauseScore(HARM, 1.0, 0.5, 0.5)
    found = answer(one, clauses=(clause,), query=HARM, where=HARM, plan="scan", selectivity=0.5)
    answers.write_hits(found, people=people)
    answers.say_notices(Answer(found.hits, False, (HARM,), found.explanation))
    written = capsys.readouterr()
    shown = written.out + written.err + "\n".join(answers.explanation_lines(found))
    assert not [char for char in OBEYED if char in shown]
    assert "\\x1b[31m" in shown and "\\u202e" in shown
    assert written.out.count("\n") == 1 or people


def test_json_has_the_same_fields_for_every_hit(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(hit(1, FOLDER / "a.jpg"), hit(2), where="width > 1", clauses=(ClauseScore("red", 1.0, 0.4, 0.4),))
    answers.write_hits_json(found, explain=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == ["/photos/a.jpg", None]
    assert lines[0]["explanation"]["query"] == "red"
    assert lines[0]["explanation"]["where"] == "width > 1"
    assert lines[1]["explanation"]["ranks"] == {"dense": 2}
    assert lines[0]["explanation"]["clauses"][0]["contribution"] == 0.4
    assert lines[0].keys() == lines[1].keys()
    answers.write_hits_json(found)
    assert all("explanation" not in json.loads(line) for line in capsys.readouterr().out.splitlines())


def test_paths0_are_the_bytes_of_the_disk_each_once(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    odd = os.fsdecode(b"/photos/\xff\n\x1b.jpg")
    answers.write_paths0(answer(hit(1, Path(odd)), hit(2), hit(3, FOLDER / "b.jpg"), hit(4, Path(odd))))
    assert capfdbinary.readouterr().out == b"/photos/\xff\n\x1b.jpg\0/photos/b.jpg\0"


def test_an_explanation_says_what_it_knows() -> None:
    clauses = (ClauseScore("2:red", 2.0, 0.5, 0.9), ClauseScore("- sea", -1.0, None, 0.0))
    found = answer(
        hit(1, FOLDER / "a.jpg"),
        clauses=clauses,
        where="width > 1",
        plan="ids first",
        selectivity=0.25,
        background={"image": (0.1, 0.02)},
        milliseconds={"encode": 2.0, "search": 1.5},
    )
    shown = "\n".join(answers.explanation_lines(found))
    for fact in (
        "query       red",
        "mode        hybrid",
        "fusion      early",
        "filter      width > 1",
        "25 % of the items",
    ):
        assert fact in shown
    for fact in (
        "plan        ids first",
        "image 0.1000 ± 0.0200",
        "3.5 ms: encode 2.0, search 1.5",
        "1  /photos/a.jpg",
    ):
        assert fact in shown
    assert "+2  0.5000       +0.9000  2:red" in shown
    assert "-1       -       +0.0000  - sea" in shown
    assert "ranks   dense 1" in shown and "words   red" in shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "0 %"), (1.0, "100 %"), (0.00001, "less than 0.01 %"), (0.99999, "more than 99.99 %"), (0.123456, "12.3 %")],
)
def test_shares_are_never_rounded_to_none_or_all(share: float, shown: str) -> None:
    found = answer(where="x", selectivity=share)
    assert f"selectivity {shown} of the items" in answers.explanation_lines(found)


def test_what_is_said_before_the_hits(capsys: pytest.CaptureFixture[str]) -> None:
    answers.say_notices(Answer((), None, ("careful",)))
    assert capsys.readouterr().err == "careful\nnothing found\n"
    answers.say_notices(Answer((hit(1),), False))
    assert capsys.readouterr().err == "nothing here matches well; the nearest are:\n"
    answers.say_notices(Answer((hit(1),), None))
    assert capsys.readouterr().err == ""
