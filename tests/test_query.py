"""The query language: what is read as what, that formatting is the inverse, and errors that show the place."""

from __future__ import annotations

import pickle
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.errors import QuerySyntaxError, UsageError
from mmsearch.retrieval.query import (
    MAX_CLAUSES,
    Clause,
    ImageClause,
    ItemClause,
    Query,
    TextClause,
    format_clause,
    format_query,
    parse,
    parse_clause,
)


@pytest.mark.parametrize(
    ("source", "clauses"),
    [
        ("a cat on a sofa", [TextClause("a cat on a sofa")]),
        ("一只猫坐在沙发上", [TextClause("一只猫坐在沙发上")]),
        (
            "2:golden retriever + ./pool.jpg - fruit",
            [TextClause("golden retriever", 2.0), ImageClause("./pool.jpg"), TextClause("fruit", -1.0)],
        ),
        ("id:17", [ItemClause(17)]),
        ("id:17 - 0.5:winter", [ItemClause(17), TextClause("winter", -0.5)]),
        ("- fruit", [TextClause("fruit", -1.0)]),
        ("+ fruit", [TextClause("fruit")]),
        ("-2:fruit", [TextClause("fruit", -2.0)]),
        ("dog - -2:fruit", [TextClause("dog"), TextClause("fruit", 2.0)]),
        ("-fruit", [TextClause("-fruit")]),
        ("-5 degrees", [TextClause("-5 degrees")]),
        ("black-and-white", [TextClause("black-and-white")]),
        ("e-mail - spam", [TextClause("e-mail"), TextClause("spam", -1.0)]),
        ("C++", [TextClause("C++")]),
        ("a+b", [TextClause("a+b")]),
        ("10:30 train", [TextClause("10:30 train")]),
        ("train at 2:dog", [TextClause("train at 2:dog")]),
        ("2: dog", [TextClause("dog", 2.0)]),
        (".5:dog", [TextClause("dog", 0.5)]),
        ("nan:dog", [TextClause("nan:dog")]),
        ("２:犬", [TextClause("２:犬")]),
        ("./my pool.jpg + dog", [ImageClause("./my pool.jpg"), TextClause("dog")]),
        ("2:~/a.jpg", [ImageClause("~/a.jpg", 2.0)]),
        ("/a.jpg", [ImageClause("/a.jpg")]),
        ("../a.jpg", [ImageClause("../a.jpg")]),
        ('./12" record.jpg', [ImageClause('./12" record.jpg')]),
        (r"./a \+ b.jpg", [ImageClause("./a + b.jpg")]),
        ("and/or", [TextClause("and/or")]),
        ('"rock - paper" + scissors', [TextClause("rock - paper", phrases=("rock - paper",)), TextClause("scissors")]),
        ('dog "red collar"', [TextClause("dog red collar", phrases=("red collar",))]),
        ('2:"red collar"', [TextClause("red collar", 2.0, ("red collar",))]),
        ('"id:17"', [TextClause("id:17", phrases=("id:17",))]),
        ('"./a.jpg"', [TextClause("./a.jpg", phrases=("./a.jpg",))]),
        (r"\id:17", [TextClause("id:17")]),
        (r"\2:dog", [TextClause("2:dog")]),
        (r"\./a.jpg", [TextClause("./a.jpg")]),
        (r"rock \- paper", [TextClause("rock - paper")]),
        ('a 5" screen', [TextClause('a 5" screen')]),
        (r"\"quoted\"", [TextClause('"quoted"')]),
        ("the dog's “ball”", [TextClause("the dog's “ball”")]),
        ("C:\\photos", [TextClause("C:\\photos")]),
        ("🐕 + 🎾", [TextClause("🐕"), TextClause("🎾")]),
        ("dog\n+\tcat", [TextClause("dog"), TextClause("cat")]),
        ("sign - no entry", [TextClause("sign"), TextClause("no entry", -1.0)]),
        ("rock-paper", [TextClause("rock-paper")]),
        ("dog -cat", [TextClause("dog -cat")]),
        ("dog- cat", [TextClause("dog- cat")]),
        ("wait -- what", [TextClause("wait -- what")]),
        ("dog – cat", [TextClause("dog – cat")]),
        ("猫\u3000-\u3000狗", [TextClause("猫"), TextClause("狗", -1.0)]),
        ("猫＋狗", [TextClause("猫＋狗")]),
        ("3:am", [TextClause("am", 3.0)]),
        ("16:9 screen", [TextClause("16:9 screen")]),
        ("1_0:dog", [TextClause("1_0:dog")]),
        ("inf:dog", [TextClause("inf:dog")]),
        ("id: 17", [TextClause("id: 17")]),
        ("ID:17", [TextClause("ID:17")]),
        ("id:007", [ItemClause(7)]),
        ("id:9223372036854775807", [ItemClause(2**63 - 1)]),
        ('2: ./12 "b.jpg', [ImageClause('./12 "b.jpg', 2.0)]),
        (f'dog + {" " * 99}./a "b.jpg', [TextClause("dog"), ImageClause('./a "b.jpg')]),
        (r"\+2:x - y", [TextClause("+2:x"), TextClause("y", -1.0)]),
        ('"a"b', [TextClause("ab", phrases=("a",))]),
        ('"a b" "c"', [TextClause("a b c", phrases=("a b", "c"))]),
        ("./caf\udce9.jpg", [ImageClause("./caf\udce9.jpg")]),
    ],
)
def test_what_is_read_as_what(source: str, clauses: list[Clause]) -> None:
    query = parse(source)
    assert list(query.clauses) == clauses
    assert parse(format_query(query)) == query


def test_words_of_a_command_line_are_joined() -> None:
    assert parse(["a", "cat", "+", "./my pool.jpg", "-", "2:red fruit"]) == parse("a cat + ./my pool.jpg - 2:red fruit")


@pytest.mark.parametrize(
    ("source", "position", "said"),
    [
        ("dog + + cat", 6, "missing"),
        ("dog +", 5, "missing"),
        ("+", 1, "missing"),
        ("- - dog", 2, "missing"),
        ("0:dog", 0, "weight"),
        ("dog + 1e999:cat", 6, "weight"),
        ("dog + 2:", 6, "without a clause"),
        ("id:abc", 0, "number"),
        ("dog - id:0", 6, "number"),
        ("id:", 0, "number"),
        ("id:9223372036854775808", 0, "number"),
        ("id:" + "0" * 19 + "1" + "9" * 5000, 0, "number"),
        ("id:١٧", 0, "number"),
        ("id:17 winter", 0, "number"),
        ('dog + 2:"red', 8, "not closed"),
        ('dog "red collar', 4, "not closed"),
        ('dog + ""', 6, "no words"),
        ("dog + \ud800", 6, "UTF-8"),
        (" + ".join(["dog"] * 200), 6 * MAX_CLAUSES, "100 clauses"),
    ],
)
def test_errors_show_the_place_and_an_example(source: str, position: int, said: str) -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse(source)
    assert (caught.value.position, said in caught.value.problem) == (position, True), caught.value.problem
    problem, shown, caret, example = str(caught.value).split("\n")
    assert problem == caught.value.problem
    assert caret.strip() == "^"
    assert len(shown) <= 2 + 75
    assert parse(example.removeprefix("for example: "))


@pytest.mark.parametrize("source", ["", "   "])
def test_an_empty_query_is_told_of_without_a_place(source: str) -> None:
    with pytest.raises(QuerySyntaxError, match=r"^the query is empty; .*, for example: ") as caught:
        parse(source)
    assert caught.value.position == 0
    assert parse(str(caught.value).partition("for example: ")[2])


def test_the_caret_is_under_the_place_in_wide_text_too() -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse("一只猫 + 0:狗")
    assert str(caught.value).split("\n")[1:3] == ["  一只猫 + 0:狗", "  " + " " * 9 + "^"]


def test_marks_on_letters_take_no_place_of_their_own() -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse("नमस्ते + 0:x")
    assert str(caught.value).split("\n")[2] == "  " + " " * (4 + 3) + "^"


def test_errors_can_cross_processes() -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse("dog + + cat")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.position, again.problem) == (str(caught.value), 6, caught.value.problem)


@pytest.mark.parametrize("part", ['a"', '"a" ', "2:", "./ ", "\\", "+ ", "id:1"])
def test_long_queries_take_no_long_time(part: str) -> None:
    started = time.monotonic()
    try:
        parse(part * 50_000)
    except QuerySyntaxError:
        pass
    assert time.monotonic() - started < 20  # a fraction of a second; minutes where the time is quadratic


def test_a_server_may_forbid_paths() -> None:
    with pytest.raises(QuerySyntaxError, match="send the picture"):
        parse("dog + /etc/passwd", paths=False)
    assert parse('"/etc/passwd"', paths=False).clauses[0] == TextClause("/etc/passwd", phrases=("/etc/passwd",))


def test_single_clauses_know_no_operators() -> None:
    assert parse_clause("2:rock + paper", sign=-1) == TextClause("rock + paper", -2.0)
    assert parse_clause("./a - b.jpg") == ImageClause("./a - b.jpg")
    with pytest.raises(QuerySyntaxError, match="empty"):
        parse_clause(" ")
    with pytest.raises(QuerySyntaxError, match="not closed"):
        parse_clause('a "red collar')


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf"), 0.0, 10**400])
def test_weights_are_finite_and_not_zero(weight: float) -> None:
    for make in (lambda: TextClause("a", weight), lambda: ImageClause("a", weight), lambda: ItemClause(1, weight)):
        with pytest.raises(UsageError, match="weight"):
            make()


def test_what_cannot_be_a_query() -> None:
    for make in (
        lambda: Query(()),
        lambda: Query((TextClause("a"),) * (MAX_CLAUSES + 1)),
        lambda: TextClause(" "),
        lambda: TextClause("\udcff"),
        lambda: TextClause("a b", phrases=("c",)),
        lambda: TextClause("ab", phrases=("b",)),
        lambda: TextClause("a b", phrases=("a ", "b")),
        lambda: TextClause("a  b", phrases=(" ",)),
        lambda: ItemClause(0),
        lambda: ItemClause(2**63),
        lambda: ImageClause(""),
    ):
        with pytest.raises(UsageError):
            make()


def test_pictures_without_a_path_are_shown_as_such() -> None:
    assert format_query(Query((TextClause("dog"), ImageClause(b"...", -2.0)))) == "dog - 2:<image>"
    assert format_clause(ItemClause(3, -1.0)) == "- id:3"
    assert ImageClause(Path("a.jpg")) == ImageClause("./a.jpg")


_TEXTS = st.text(
    st.sampled_from('ab "\\+-:./~0123456789id\n\t猫é') | st.characters(exclude_categories=["Cs"]), max_size=30
)
_WEIGHTS = st.floats(allow_nan=False, allow_infinity=False).filter(bool)


@st.composite
def clauses(draw: st.DrawFn) -> Clause:
    weight = draw(_WEIGHTS)
    kind = draw(st.sampled_from(["text", "image", "item"]))
    if kind == "item":
        return ItemClause(draw(st.integers(1, 2**63 - 1)), weight)
    if kind == "image":
        return ImageClause(draw(st.sampled_from(["./", "/", "~/", "../", ""])) + draw(_TEXTS) + "x", weight)
    text = draw(_TEXTS) + draw(st.sampled_from(["x", "x ", '"', "-", "\\"]))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    phrases = tuple(text[start:end] for start, end in zip(cuts[::2], cuts[1::2], strict=False))
    try:
        return TextClause(text, weight, phrases)
    except UsageError:
        return TextClause(text, weight)


@given(st.lists(clauses(), min_size=1, max_size=4))
def test_parse_is_the_inverse_of_format(given: list[Clause]) -> None:
    query = Query(tuple(given))
    assert parse(format_query(query)) == query


_PIECES = [
    "2:",
    "0.5:",
    "id:",
    "17",
    "./",
    "~/",
    '"',
    "\\",
    " ",
    " - ",
    " + ",
    "-",
    "1e9",
    "猫",
    "\u3000",
    "\ud800",
    "9" * 30,
]


@given(_TEXTS | st.text(st.characters()) | st.lists(st.sampled_from(_PIECES), max_size=12).map("".join))
def test_whatever_is_typed_is_read_or_refused(source: str) -> None:
    try:
        query = parse(source)
    except QuerySyntaxError as error:
        assert 0 <= error.position <= len(source)
        return
    written = format_query(query)
    assert parse(written) == query
    assert format_query(parse(written)) == written


def _documented(repository: Path, kind: str) -> list[str]:
    page = (repository / "docs" / "query.md").read_text("utf-8")
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_documented_queries_can_be_read(repository: Path) -> None:
    lines = _documented(repository, "query")
    assert len(lines) > 10
    for line in lines:
        assert parse(format_query(parse(line))) == parse(line)


def test_the_documented_readings_are_true(repository: Path) -> None:
    """Each row of the table of examples says what the query is read as."""
    page = (repository / "docs" / "query.md").read_text("utf-8")
    rows = re.findall(r"^\| `([^`]+)` \| ((?:`[^`]+`(?:, )?)+) \|$", page, re.MULTILINE)
    assert len(rows) > 10
    for source, readings in rows:
        assert [_reading(clause) for clause in parse(source).clauses] == re.findall(r"`([^`]+)`", readings), source


def test_the_documented_python_prints_what_is_said(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (repository / "docs" / "query.md").read_text("utf-8")
    code, said = re.findall(r"^```python\n(.*?)^```\n\nThey print (.*?)\.$", page, re.MULTILINE | re.DOTALL)[0]
    exec(compile(code, "docs/query.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"`([^`]+)`", said)


def _reading(clause: Clause) -> str:
    """A clause as the page shows it: weight, kind and content."""
    if isinstance(clause, ItemClause):
        kind, content = "item", str(clause.item_id)
    elif isinstance(clause, ImageClause):
        kind, content = "picture", str(clause.image)
    else:
        kind, content = "exactly" if clause.phrases == (clause.text,) else "words", clause.text
    return f"{clause.weight:+g} {kind} {content}"


def test_the_documented_mistakes_are_refused(repository: Path) -> None:
    lines = _documented(repository, "refused")
    assert len(lines) > 4
    for line in lines:
        with pytest.raises(QuerySyntaxError):
            parse(line)
