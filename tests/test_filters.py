"""The filter language: what is read as what, that formatting is the inverse, and errors that show the place."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsearch.retrieval.errors import FilterSyntaxError, UsageError
from mmsearch.retrieval.filters import (
    FIELDS,
    MAX_COMPARISONS,
    MAX_DEPTH,
    MAX_VALUE,
    And,
    Between,
    Compare,
    Filter,
    Near,
    Not,
    OneOf,
    Or,
    format_filter,
    parse_filter,
)
from mmsearch.retrieval.periods import Period, read_period

A, B, C = (Compare("tag", "=", name) for name in "abc")


@pytest.mark.parametrize(
    ("source", "filter_"),
    [
        ("tag = a", A),
        ("tag=a", A),
        ("tag == a", A),
        ("TAG = a", A),
        ('tag = "a"', A),
        ("tag = 'a'", A),
        ("((tag = a))", A),
        ("tag = a or tag = b and tag = c", Or((A, And((B, C))))),
        ("tag = a and tag = b or tag = c", Or((And((A, B)), C))),
        ("(tag = a or tag = b) and tag = c", And((Or((A, B)), C))),
        ("tag = a AND tag = b And tag = c", And((A, B, C))),
        ("(tag = a and tag = b) and tag = c", And((And((A, B)), C))),
        ("not tag = a and tag = b", And((Not(A), B))),
        ("not (tag = a and tag = b)", Not(And((A, B)))),
        ("not(tag=a)or tag=b", Or((Not(A), B))),
        ("not not tag = a", Not(Not(A))),
        ("width >= 1000", Compare("width", ">=", 1000)),
        ("width<=1e3", Compare("width", "<=", 1000.0)),
        ("width != 7", Compare("width", "!=", 7)),
        ("height > .5", Compare("height", ">", 0.5)),
        ("lat < -33.9", Compare("lat", "<", -33.9)),
        ("lon in -10..10", Between("lon", -10, 10)),
        ("width in 100..", Between("width", 100, None)),
        ("width in ..100", Between("width", None, 100)),
        ("width in (1, 2,3)", OneOf("width", (1, 2, 3))),
        ("width > " + "9" * 30, Compare("width", ">", 1e30)),
        ("size > 1.5MB", Compare("size", ">", 1_500_000)),
        ("size > 1.5 mb", Compare("size", ">", 1_500_000)),
        ('size > "2 GiB"', Compare("size", ">", 2 * 2**30)),
        ("size in 10kB..1MiB", Between("size", 10_000, 2**20)),
        ("size in (1 kB, 2 KB) and size < 3B", And((OneOf("size", (1000, 2000)), Compare("size", "<", 3)))),
        ('path ~ "*/beach/*"', Compare("path", "~", "*/beach/*")),
        ("path ~ */beach/*.jp?g", Compare("path", "~", "*/beach/*.jp?g")),
        (r'path = "a\"b\\c.jpg"', Compare("path", "=", 'a"b\\c.jpg')),
        ("camera = 'it''s'", None),
        (r"camera = 'it\'s'", Compare("camera", "=", "it's")),
        ("camera = and", Compare("camera", "=", "and")),
        ("camera = 猫 or camera ~ É*", Or((Compare("camera", "=", "猫"), Compare("camera", "~", "É*")))),
        ("ext in (jpg, PNG)", OneOf("ext", ("jpg", "PNG"))),
        ("modality = Text", Compare("modality", "=", "text")),
        ("lat = -0", Compare("lat", "=", 0)),
        ("lat = -0.0", Compare("lat", "=", -0.0)),
        ('tag = ""', Compare("tag", "=", "")),
        ("path ~ ''", Compare("path", "~", "")),
        ("meta.price < Infinity", Compare("meta.price", "<", "Infinity")),
        ("taken in 2024-05..2024", Between("taken", read_period("2024-05"), read_period("2024"))),
        ("taken in 2024..2024-05", Between("taken", read_period("2024"), read_period("2024-05"))),
        ("near(90, -180, 1m)", Near(90.0, -180.0, 1.0)),
        ("near(-90, 180, 1e-3 km)", Near(-90.0, 180.0, 1.0)),
        (r"path ~ '\\[*\\]'", Compare("path", "~", r"\[*\]")),
        ("path ~ '**/[[]x]?[!a-z].jpg'", Compare("path", "~", "**/[[]x]?[!a-z].jpg")),
        ("path = 100%_[a].jpg", Compare("path", "=", "100%_[a].jpg")),
        ("year in 2020..2024", Between("year", read_period("2020"), read_period("2024"))),
        ("taken in 2024-05..2024-08", Between("taken", read_period("2024-05"), read_period("2024-08"))),
        ('taken > "2024-05-08 10:30"', Compare("taken", ">", read_period("2024-05-08T10:30"))),
        ("modified < 2024-5-8T10", Compare("modified", "<", read_period("2024-5-8T10"))),
        ("near(48.1, 11.5, 20km)", Near(48.1, 11.5, 20_000.0)),
        ("NEAR ( -48.1,+11.5,500 m )", Near(-48.1, 11.5, 500.0)),
        ("near(0, 180, 2MI)", Near(0.0, 180.0, 3218.688)),
        ("meta.price < 40", Compare("meta.price", "<", 40)),
        ("META.price in 1..2.5", Between("meta.price", 1, 2.5)),
        ('meta."my \\"column\\" [x]" ~ "a*"', Compare('meta.my "column" [x]', "~", "a*")),
        ("meta.'a b' = 1", Compare("meta.a b", "=", 1)),
        ("meta.a.b-c = x", Compare("meta.a.b-c", "=", "x")),
        ("meta.draft = true", Compare("meta.draft", "=", True)),
        ('meta.draft = "true"', Compare("meta.draft", "=", "true")),
        ('meta.code = "007"', Compare("meta.code", "=", "007")),
        ("meta.code = 007", Compare("meta.code", "=", 7)),
        ("meta.day >= 2024-05", Compare("meta.day", ">=", "2024-05")),
        ("meta.code ~ 12*", Compare("meta.code", "~", "12*")),
        ("\n tag\t=\u3000a ", A),
    ],
)
def test_a_filter_is_read(source: str, filter_: Filter | None) -> None:
    if filter_ is None:
        with pytest.raises(FilterSyntaxError):
            parse_filter(source)
        return
    assert parse_filter(source) == filter_
    assert parse_filter(format_filter(filter_)) == filter_


@pytest.mark.parametrize(
    ("source", "marked", "problem"),
    [
        ("", 0, "the filter is empty"),
        ("  ", 0, "the filter is empty"),
        ("tag = a tag = b", 8, "`and` or `or` is missing here"),
        ("camera = Canon EOS", 15, "a value of several words stands in quotes"),
        ("tag = a)", 7, "this parenthesis was not opened"),
        ("(tag = a", 8, "`)` is missing here"),
        ("tag = a and", 11, "a comparison is missing here"),
        ("not", 3, "a comparison is missing here"),
        ("or tag = a", 0, "a comparison is missing before `or`"),
        ("tag = a and and tag = b", 12, "a comparison is missing before `and`"),
        ("tag = a and (in (a))", 13, "a comparison is missing before `in`"),
        ('"tag" = a', 0, "a field is missing here"),
        ("year = 2021 or 2022", 15, "one of several values is asked for with `in`"),
        ("(ext = jpg or 'png') and width > 1", 14, "one of several values is asked for with `in`"),
        ("not draft and tag = a", 4, "one of several values is asked for with `in`"),
        ("width > 1 and height", 20, "an operator is missing after `height`"),
        ("draft", 0, "there is no field `draft`"),
        ("tag", 3, "an operator is missing after `tag`: = != < <= > >= in ~"),
        ("tag draft", 4, "an operator is missing after `tag`"),
        ("tag =", 5, "a value is missing after `=`"),
        ("path ~ ~/Pictures/*", 7, "a value is missing after `~`; one with signs in it stands in quotes"),
        ("tag = a and width <> 3", 19, "a value is missing after `<`"),
        ("tag ! a", 4, "`!` means nothing here"),
        ('tag = "a', 6, "this quote is not closed"),
        ("camera = don't", 12, "this quote is not closed"),
        ("wdth > 1", 0, "there is no field `wdth`; did you mean `width`? The fields are path, folder,"),
        ("tag = a and heigth > 1", 12, "did you mean `height`?"),
        ("date > 2024", 0, "did you mean `taken`?"),
        ("latitude > 1", 0, "did you mean `lat`?"),
        ("meta = 1", 0, "did you mean `meta.NAME`?"),
        ("nearby(1, 2, 3km)", 0, "did you mean `near(48.137, 11.575, 20km)`?"),
        ("xyzzy = 1", 0, "there is no field `xyzzy`; a column of a manifest is `meta.xyzzy`. The fields are path,"),
        ("made/in = 1", 0, 'a column of a manifest is `meta."made/in"`.'),
        ("location = Munich", 0, "did you mean `near(48.137, 11.575, 20km)`?"),
        (
            "tag not in (a, b)",
            4,
            "an operator is missing after `tag`: = != < <= > >= in ~; `not` stands before",
        ),
        ("meta. = 1", 0, "the name of a column is missing"),
        ('meta."" = 1', 0, "the name of a column is missing"),
        ("camera > x", 7, "`camera` is text, which is compared with = != in ~"),
        ("modality < text", 9, "`modality` is text"),
        ("width ~ 1*", 6, "`~` compares text, and `width` is none"),
        ("modality = picture", 11, "a modality is image or text"),
        ("width > wide", 8, "a number is needed here"),
        ("width > nan", 8, "a number is needed here"),
        ("width < Infinity", 8, "a number is needed here"),
        ("meta.price > 1e400", 13, "a number is needed here"),
        ("meta.price in 1..1e400", 17, "a number is needed here"),
        ('width > ""', 8, "a number is needed here"),
        ('size > ""', 7, "a size is a number of bytes"),
        ('taken > ""', 8, "a date is written as"),
        ('modality = ""', 11, "a modality is image or text"),
        ("width > 1e999", 8, "a number is needed here"),
        ("lat = ١", 6, "a number is needed here"),
        ("width > 10km", 8, "a number is needed here"),
        ("size > 3 apples", 9, "`and` or `or` is missing here"),
        ("size > 3apples", 7, "a size is a number of bytes, or of kB, MB, GB, KiB, MiB, GiB"),
        ("size > 1e300TB", 7, "no file is as large as that"),
        ("taken = yesterday", 8, "a date is written as 2024, 2024-05, 2024-05-08 or 2024-05-08T10:30"),
        ("taken = 2024-13", 8, "there is no such date: 2024-13"),
        ("taken = 2023-02-29", 8, "there is no such date: 2023-02-29"),
        ("taken = 0000", 8, "there is no such date: 0000"),
        ("taken = 2024-05-08T24:00", 8, "there is no such date"),
        ("taken = 24-05-08", 8, "a date is written as"),
        ("taken = 2024-02-30", 8, "there is no such date: 2024-02-30"),
        ("taken = 2024-05-08T10:60", 8, "there is no such date"),
        ("taken = 2024-05-08T10:30:60", 8, "there is no such date"),
        ("taken = 10000", 8, "a date is written as"),
        ("taken = -2024", 8, "a date is written as"),
        ("taken = 2024/05/08", 8, "a date is written as"),
        ("taken in 2024-06..2024-05-31", 9, "this range ends before it begins"),
        ("year = 0000", 7, "there is no such date: 0000"),
        ("year = 10000", 7, "a year has four digits"),
        ("year in 2024..2020", 8, "this range ends before it begins"),
        ("taken in 2024-05..2024-99", 18, "there is no such date: 2024-99"),
        ("taken in 2024-08..2024-05", 9, "this range ends before it begins"),
        ("meta.price in 20..10", 14, "this range ends before it begins"),
        ("year = 2024-05", 7, "a year has four digits"),
        ("meta.draft > true", 13, "`true` is compared with = and != only"),
        ("year in ..", 8, "a range needs one end at least"),
        ("year in 2020", 8, "after `in` comes a list in parentheses, or a range without blanks"),
        ("year in 2020 .. 2024", 8, "a range without blanks"),
        ("tag in a..b", 7, "after `in` comes a list in parentheses"),
        ("meta.price in a..b", 14, "a range is of numbers"),
        ("tag in ()", 8, "a value is missing here"),
        ("tag in (a b)", 10, "`)` is missing here"),
        ("near = 1", 0, "there is no field `near`; did you mean `near(48.137, 11.575, 20km)`?"),
        ("near(91, 0, 1km)", 5, "a latitude is a number from -90 to 90"),
        ("near(nan, 0, 1km)", 5, "a latitude is a number from -90 to 90"),
        ("near(0, 181, 1km)", 8, "a longitude is a number from -180 to 180"),
        ("near(0, 0)", 9, "`,` is missing here"),
        ("near(0, 0, 20)", 11, "a distance is a number above 0 with m, km or mi"),
        ("near(0, 0, -1km)", 11, "a distance is a number above 0"),
        ("near(0, 0, 0km)", 11, "a distance is a number above 0"),
        ("near(0, 0, 1e-999km)", 11, "a distance is a number above 0"),
        ("near(0, 0, 20cm)", 11, "a distance is a number above 0 with m, km or mi"),
        ("near(0, 0, 20 miles)", 11, "a distance is a number above 0 with m, km or mi"),
        ("near(0, 0, infkm)", 11, "a distance is a number above 0"),
        ("near(1e999, 0, 1km)", 5, "a latitude is a number from -90 to 90"),
        ('near("Munich", 0, 1km)', 5, "a latitude is a number from -90 to 90"),
        ("near(48.1 11.5 20km)", 10, "`,` is missing here"),
        ("near()", 5, "a latitude is a number from -90 to 90"),
        ("near(0, 0, 1e999km)", 11, "a distance is a number above 0"),
        ("near(0, 0, 1km", 14, "`)` is missing here"),
        ("tag = a\0b", 7, "this character is no text"),
        ("path = \udcff.jpg", 7, "this character is no text"),
        ('meta."\ud800" = 1', 6, "this character is no text"),
    ],
)
def test_a_mistake_is_shown(source: str, marked: int, problem: str) -> None:
    with pytest.raises(FilterSyntaxError) as raised:
        parse_filter(source)
    assert problem in raised.value.problem
    assert raised.value.position == marked
    message, _, example = str(raised.value).partition("for example: ")
    parse_filter(example)
    assert raised.value.problem in message
    if source.strip():
        assert message.splitlines()[2].index("^") == 2 + marked
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.position) == (str(raised.value), marked)


@pytest.mark.parametrize("where", [5, None, True, b"width > 1", ["width > 1"], Path("a")])
def test_a_filter_is_a_text(where: object) -> None:
    with pytest.raises(UsageError, match=f"a filter is a text, such as .*, not {type(where).__name__}"):
        parse_filter(where)  # type: ignore[arg-type]


def test_values_have_a_longest() -> None:
    for longest in ("a" * MAX_VALUE, "é猫" * (MAX_VALUE // 2), "\\" * MAX_VALUE, '"' * MAX_VALUE):
        for field in ("tag", f"meta.{longest}"):
            filter_ = Compare(field, "=", longest)
            assert parse_filter(format_filter(filter_)) == filter_
    long = "a" * (MAX_VALUE + 1)
    for source, marked in {
        f"tag = {long}": 6,
        f"tag = '{long}'": 6,
        f"tag in (a, {long})": 11,
        f"width > {'9' * (MAX_VALUE + 1)}": 8,
        f"meta.{long} = 1": 0,
        f"meta.'{long}' = 1": 0,
    }.items():
        with pytest.raises(FilterSyntaxError, match="longer than 4,096 characters") as raised:
            parse_filter(source)
        assert raised.value.position == marked
        assert len(str(raised.value)) < 500


def test_the_caret_stands_below_wide_characters() -> None:
    with pytest.raises(FilterSyntaxError) as raised:
        parse_filter("tag = 猫 x")
    _, shown, caret, _ = str(raised.value).splitlines()
    assert shown == "  tag = 猫 x"
    assert caret.index("^") == len("  tag = ") + len("猫") * 2 + len(" ")


def test_only_so_much_of_a_long_filter_is_shown() -> None:
    with pytest.raises(FilterSyntaxError) as raised:
        parse_filter("tag = a and " * 100 + "x" * 100_000 + " = 1")
    assert len(str(raised.value)) < 500


def test_every_field_can_be_asked_for() -> None:
    values = {
        "number": "1",
        "size": "1kB",
        "date": "2024-05",
        "year": "2024",
        "text": "x",
        "modality": "text",
    }
    for field, kind in FIELDS.items():
        value = values[kind]
        signs = ["=", "!="]
        signs += ["~"] if kind in ("text", "modality") else ["<", "<=", ">", ">="]
        for sign in signs:
            filter_ = parse_filter(f"{field} {sign} {value}")
            assert isinstance(filter_, Compare)
            assert (filter_.field, filter_.operator) == (field, sign)
        assert isinstance(parse_filter(f"{field} in ({value}, {value})"), OneOf)
        if kind not in ("text", "modality"):
            assert isinstance(parse_filter(f"{field} in {value}..{value}"), Between)


@pytest.mark.parametrize(
    ("opening", "closing"),
    [("(", ")"), ("not ", ""), ("not (", ")"), ("tag = a and (", ")"), ("tag = a or not (", ")")],
)
def test_depth_has_an_end(opening: str, closing: str) -> None:
    levels = opening.count("(") + opening.count("not")
    most = MAX_DEPTH // levels
    filter_ = parse_filter(opening * most + "tag = a" + closing * most)
    assert parse_filter(format_filter(filter_)) == filter_
    for depth in (most + 1, 1000, 10_000):
        with pytest.raises(FilterSyntaxError, match="levels of parentheses and `not`"):
            parse_filter(opening * depth + "tag = a" + closing * depth)


def test_length_has_an_end() -> None:
    assert parse_filter(" and ".join(["tag = a"] * MAX_COMPARISONS)) == And((A,) * MAX_COMPARISONS)
    long = [
        " or ".join(["tag = a"] * (MAX_COMPARISONS + 1)),
        f"tag in ({', '.join('a' * (MAX_COMPARISONS + 1))})",
        " or ".join(["near(0, 0, 1km)"] * (MAX_COMPARISONS + 1)),
        "tag in (a, b) and " * (MAX_COMPARISONS // 2) + "tag = a",
    ]
    for source in long:
        with pytest.raises(FilterSyntaxError, match="more than 200 comparisons and values of lists"):
            parse_filter(source)


@pytest.mark.parametrize(
    "piece", ["(", "tag = a and ", "x", '"', "'\\", "not ", " ", "1", "tag in (a,", "meta.", '\\"']
)
def test_long_nonsense_is_refused_at_once(piece: str) -> None:
    """A way of reading that took the square of the length would not end."""
    with pytest.raises(FilterSyntaxError):
        parse_filter(piece * (1_000_000 // len(piece)))
    with pytest.raises(FilterSyntaxError):
        parse_filter("width > " + piece * (1_000_000 // len(piece)))


def test_a_period_ends_where_the_next_one_begins() -> None:
    ends = {
        "2024": ("2024-01-01T00:00:00", "2025-01-01T00:00:00"),
        "2024-02": ("2024-02-01T00:00:00", "2024-03-01T00:00:00"),
        "2024-12": ("2024-12-01T00:00:00", "2025-01-01T00:00:00"),
        "2024-02-29": ("2024-02-29T00:00:00", "2024-03-01T00:00:00"),
        "2024-2-9T7": ("2024-02-09T07:00:00", "2024-02-09T08:00:00"),
        "2024-02-29 23:59": ("2024-02-29T23:59:00", "2024-03-01T00:00:00"),
        "2024-02-29T10:30:59": ("2024-02-29T10:30:59", "2024-02-29T10:31:00"),
    }
    for written, (start, end) in ends.items():
        assert read_period(written) == Period(written.replace(" ", "T"), start, end)
    for last in ("9999", "9999-12", "9999-12-31", "9999-12-31T23:59:59"):
        period = read_period(last)
        assert period.start < "9999-12-31T23:59:59.5" < period.end


# Round trips

_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_NUMBERS = st.integers(-(10**18) + 1, 10**18 - 1) | st.floats(allow_nan=False, allow_infinity=False)
_PERIODS = st.builds(
    lambda moment, length: read_period(moment.isoformat()[:length]),
    st.datetimes(),
    st.sampled_from([4, 7, 10, 13, 16, 19]),
)
_YEARS = st.integers(1, 9999).map(lambda year: read_period(f"{year:04}"))
_SIZES = st.integers(-(10**18) + 1, 10**18 - 1) | st.floats(-1e300, 1e300).filter(lambda size: not size.is_integer())
_VALUES = {
    "number": _NUMBERS,
    "size": _SIZES,
    "date": _PERIODS,
    "year": _YEARS,
    "text": _TEXTS,
    "modality": st.sampled_from(["image", "text"]),
    "any": _TEXTS | _NUMBERS | st.booleans(),
}


@st.composite
def _comparisons(draw: st.DrawFn) -> Filter:
    column = draw(_TEXTS.filter(bool))
    field = draw(st.sampled_from([*FIELDS, f"meta.{column}"]))
    kind = FIELDS.get(field, "any")
    values = _VALUES[kind]
    shape = draw(st.sampled_from(["compare", "list", "range", "near"]))
    if shape == "near":
        metres = draw(st.floats(0, 1e300, exclude_min=True))
        return Near(draw(st.floats(-90, 90)), draw(st.floats(-180, 180)), metres)
    if shape == "list":
        return OneOf(field, tuple(draw(st.lists(values, min_size=1, max_size=3))))
    if shape == "range" and kind not in ("text", "modality"):
        ends = draw(st.lists(_NUMBERS if kind == "any" else values, min_size=2, max_size=2))
        ends.sort(key=lambda end: end.start if isinstance(end, Period) else end)
        return Between(field, *draw(st.sampled_from([(ends[0], ends[1]), (ends[0], None), (None, ends[1])])))
    is_text = kind in ("text", "modality")
    operator = draw(
        st.sampled_from(["=", "!=", *(["~"] if is_text or kind == "any" else []), *([] if is_text else "<>")])
    )
    value = draw(_TEXTS if operator == "~" else values)
    return Compare(field, "=" if isinstance(value, bool) else operator, value)


def filters(leaves: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    """Filters of some comparisons, a few levels deep."""

    def combined(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
        several = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return inner.map(Not) | several.map(And) | several.map(Or)

    return st.recursive(leaves, combined, max_leaves=6)


@given(filters(_comparisons()))
def test_parse_is_the_inverse_of_format(filter_: Filter) -> None:
    written = format_filter(filter_)
    try:
        assert parse_filter(written) == filter_
    except FilterSyntaxError as error:
        assert "levels" in error.problem


_PIECES = [
    *("tag", "width", "taken", "size", "meta.x", 'meta."', "near(", "=", "!=", "<=", "~", "in", "(", ")", ",", "not "),
    *(
        " and ",
        " or ",
        "..",
        "1",
        "-1.5e3",
        "2024-05",
        "kB",
        " km",
        '"',
        "'",
        "\\",
        " ",
        "é",
        "猫",
        "\0",
        "\udc80",
        "!",
    ),
]


@given(st.text(st.characters()) | st.lists(st.sampled_from(_PIECES), max_size=14).map("".join))
def test_whatever_is_typed_is_read_or_refused(source: str) -> None:
    try:
        filter_ = parse_filter(source)
    except FilterSyntaxError as error:
        assert isinstance(error, UsageError)
        assert 0 <= error.position <= len(source)
        assert "for example: " in str(error)
        return
    written = format_filter(filter_)
    assert parse_filter(written) == filter_
    assert format_filter(parse_filter(written)) == written
