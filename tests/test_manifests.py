"""Manifests of all kinds, and the rows that come out of them."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import random
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch.indexers.manifests import Columns, Manifest, is_manifest
from mmsearch.indexers.rows import BadRow, Row
from mmsearch.retrieval.errors import MediaError, MissingExtra, UsageError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def good(path: Path, columns: Columns | None = None) -> list[Row]:
    rows = list(Manifest(path, columns).rows())
    assert [row.error for row in rows if isinstance(row, BadRow)] == []
    return [row for row in rows if isinstance(row, Row)]


def bad(path: Path) -> list[tuple[int, str]]:
    return [(row.number, row.error) for row in Manifest(path).rows() if isinstance(row, BadRow)]


def texts(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    return [row.texts for row in rows]


def meta(row: Row) -> dict[str, object]:
    return dict(json.loads(row.meta)) if row.meta else {}


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.csv", True), ("A.CSV", True), ("a.tsv", True), ("a.jsonl", True), ("a.ndjson", True), ("a.parquet", True)]
    + [("a.json", False), ("csv", False), ("a.txt", False), ("a.csv.gz", False)],
)
def test_a_manifest_is_known_by_its_name(name: str, expected: bool) -> None:
    assert is_manifest(name) is expected


def test_columns_go_to_the_catalog_and_back() -> None:
    for columns in (Columns(), Columns(text="Titel"), Columns("a", "b", "c")):
        assert Columns.from_json(columns.to_json()) == columns
    assert Columns().to_json() is None


def test_a_csv(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv",
        "id,image,caption,price,stars,code,sold,day\n"
        '7,in/a.jpg,"a cat, asleep",3,4.5,007,TRUE,2024-05-01\n'
        '8,/b.jpg,"two\nlines",-12,1e3,12,false,\n'
        '9,,"say ""hi""",,,,,\n',
    )
    manifest = Manifest(path)
    assert manifest.columns == Columns("caption", "image", "id")
    assert manifest.folders == {str(tmp_path / "in"), "/"}
    one, two, three = good(path)
    assert (one.key, one.number, one.texts, one.image) == (
        "id=7",
        1,
        ("a cat, asleep",),
        str(tmp_path / "in" / "a.jpg"),
    )
    assert meta(one) == {"price": 3, "stars": 4.5, "code": "007", "sold": True, "day": "2024-05-01"}
    assert (two.texts, two.image) == (("two\nlines",), "/b.jpg")
    assert meta(two) == {"price": -12, "stars": 1000.0, "code": "12", "sold": False}
    assert (three.texts, three.image, three.meta) == (('say "hi"',), None, None)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_dialects(tmp_path: Path, delimiter: str, end: str, encoding: str) -> None:
    lines = [("image", "text"), ("猫.jpg", "猫坐在沙发上"), ("b.jpg", "ein Bär")]
    content = "".join(delimiter.join(line) + end for line in lines)
    rows = good(write(tmp_path / "m.csv", content.encode(encoding)))
    assert texts(rows) == [("猫坐在沙发上",), ("ein Bär",)]
    assert rows[0].image == str(tmp_path / "猫.jpg")


def test_a_tsv_with_commas(tmp_path: Path) -> None:
    assert texts(good(write(tmp_path / "m.tsv", "text, long\ttext\na,b,c\tone, two\n"))) == [("one, two",)]


def test_rows_of_other_lengths(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "text,a,b\none\n\n  \ntwo,1,2,,\nthree,1,2,3\nfour,1\n")
    rows = list(Manifest(path).rows())
    assert [(row.number, row.texts) for row in rows if isinstance(row, Row)] == [
        (1, ("one",)),
        (2, ("two",)),
        (4, ("four",)),
    ]
    assert bad(path) == [(3, "it has 4 cells and there are 3 columns (line 6)")]


def test_types_hold_for_a_whole_column(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv", "text,n,big,f,b,nan\na,1,9223372036854775807,1,true,nan\nb,x,9223372036854775808,.5,1,1\n"
    )
    one, two = good(path)
    assert meta(one) == {"n": "1", "big": 9223372036854775807.0, "f": 1.0, "b": "true", "nan": "nan"}
    assert meta(two) == {"n": "x", "big": 9223372036854775808.0, "f": 0.5, "b": "1", "nan": "1"}


def test_a_column_without_a_name_is_left_out(tmp_path: Path) -> None:
    (row,) = good(write(tmp_path / "m.csv", ",text,n\n0,a,5\n"))  # as pandas writes its index
    assert meta(row) == {"n": 5}


def test_bad_bytes_spoil_their_row_only(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", b"text,tag\ngood,1\nbad \xff\xfe,2\nnul\0,3\ngood,4\nfine,\xff\n")
    assert [row.texts for row in Manifest(path).rows() if isinstance(row, Row)] == [("good",), ("good",)]
    assert bad(path) == [
        (2, "the text is not valid UTF-8"),
        (3, "the text has a NUL character in it"),
        (5, "the field 'tag' is not valid UTF-8"),
    ]


def test_a_picture_may_have_a_name_that_is_no_text(tmp_path: Path) -> None:
    (row,) = good(write(tmp_path / "m.csv", b"image\nin/\xff.jpg\n"))
    assert os.fsencode(str(row.image)) == os.fsencode(tmp_path) + b"/in/\xff.jpg"


def test_a_text_of_ten_megabytes(tmp_path: Path) -> None:
    long = "word " * 2_000_000
    for name, content in (("m.csv", f'text,n\n"{long}",1\n'), ("m.jsonl", json.dumps({"text": long}) + "\n")):
        assert texts(good(write(tmp_path / name, content))) == [(long,)]


@pytest.mark.parametrize("content", ['text\n"never closed\nmore\nand more\n', 'text,n\na,1\nb,"2\n', 'text\n"'])
def test_a_quote_that_is_never_closed_swallows_nothing(tmp_path: Path, content: str) -> None:
    with pytest.raises(MediaError, match="a quote that is never closed"):
        good(write(tmp_path / "m.csv", content))


@pytest.mark.parametrize(
    ("name", "content", "columns", "message"),
    [
        ("m.csv", "a,b\n1,2\n", None, "no column that is known as text or image; its columns are a, b. Say which"),
        ("m.csv", "a,b\n1,2\n", Columns(text="c"), "no column 'c' that could be the text; its columns are a, b"),
        ("m.csv", "text,text\n1,2\n", None, "two columns called text"),
        ("m.csv", "", None, "is empty"),
        ("m.csv", "\n\n", None, "is empty"),
        ("m.jsonl", "", None, "is empty"),
        ("m.jsonl", '{"a": 1}\n', None, "its columns are a"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, name: str, content: str, columns: Columns | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Manifest(write(tmp_path / name, content), columns)


@pytest.mark.parametrize("name", ["m.csv", "m.jsonl", "m.parquet"])
def test_what_is_no_manifest_at_all(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = write(tmp_path / name, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xfe" + random.Random(0).randbytes(500))
    with pytest.raises((MediaError, UsageError), match="m\\."):
        list(Manifest(path).rows())
    with pytest.raises(OSError):
        Manifest(tmp_path / f"absent-{name}")


def test_named_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "Datei,Titel,text\na.jpg,eins,zwei\n")
    manifest = Manifest(path, Columns(text="titel", image="Datei"))
    assert manifest.columns == Columns("Titel", "Datei", None)
    (row,) = good(path, Columns(text="Titel", image="Datei"))
    assert (row.texts, meta(row)) == (("eins",), {"text": "zwei"})


def test_json_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.jsonl",
        '\ufeff{"n": 1}\n'
        "\n"
        '{"file_name": "a.jpg", "captions": ["one", "two", ""], "n": 2, "x": {"y": [1, null]}}\r\n'
        '{"captions": 5, "n": NaN, "u": "\\u2028"}\n'
        "not json\n"
        "[1, 2]\n"
        '{"captions": {"a": 1}}\n'
        '{"captions": "x", "big": 123456789012345678901234567890}\n',
    )
    rows = [row for row in Manifest(path).rows() if isinstance(row, Row)]
    assert [(row.number, row.texts) for row in rows] == [(3, ("one", "two")), (4, ("5",)), (8, ("x",))]
    assert meta(rows[0]) == {"n": 2, "x": {"y": [1, None]}}
    assert meta(rows[1]) == {"u": "\u2028"}
    assert meta(rows[2]) == {"big": 123456789012345678901234567890.0}
    assert [number for number, _ in bad(path)] == [1, 5, 6, 7]
    assert bad(path)[0][1] == "it has neither a text nor an image"


def test_bad_json_stays_bad_and_ends_nothing(tmp_path: Path) -> None:
    lines = [b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"[" * 100_000, b'{"text": "ok"}', b'{"text": ' + b"1" * 5000]
    path = write(tmp_path / "m.jsonl", b"\n".join(lines))
    assert [row.texts for row in Manifest(path).rows() if isinstance(row, Row)] == [("ok",)]
    assert [number for number, _ in bad(path)] == [1, 2, 3, 5]


def test_pictures_that_cannot_be_meant(tmp_path: Path) -> None:
    content = "image\nhttps://example.org/a.jpg\ns3://b/c.jpg\nfile:///d%20e.jpg\na\0.jpg\n../up.jpg\n"
    path = write(tmp_path / "m.csv", content)
    assert [row.image for row in Manifest(path).rows() if isinstance(row, Row)] == [
        "/d e.jpg",
        str(tmp_path.parent / "up.jpg"),
    ]
    assert [(number, "fetches nothing" in error) for number, error in bad(path)] == [(1, True), (2, True), (4, False)]


def test_ids_that_come_twice(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.csv", "id,image,text\n1,a.jpg,one\n1,a.jpg,two\n1,b.jpg,three\n2,,four\n2,,five\n1,a.jpg,six\n"
    )
    rows = list(Manifest(path).rows())
    assert [row.key for row in rows] == ["id=1", "id=1~2", "id=1~3", "id=2", "id=2~2", "id=1~4"]
    assert [row.texts for row in rows if isinstance(row, Row)] == [("one",), ("two",), ("four",), ("six",)]
    assert bad(path) == [(3, "the id '1' is used by row 1 already"), (5, "the id '2' is used by row 4 already")]


def test_keys_without_ids_are_what_rows_say(tmp_path: Path) -> None:
    lines = ["a.jpg,one", "a.jpg,two", "b.jpg,one", "a.jpg,one"]
    path = write(tmp_path / "m.csv", "image,text\n" + "\n".join(lines))
    keys = [row.key for row in good(path)]
    assert len(set(keys)) == 4 and keys[3] == f"{keys[0]}~2"
    write(path, "image,text\n" + "\n".join(["new.jpg,new", *reversed(lines)]))
    assert sorted(row.key for row in good(path))[:-1] != keys
    assert set(keys) <= {row.key for row in good(path)}


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "m.parquet"
    noon = datetime.datetime(2024, 5, 1, 12)
    table = pa.table(
        {
            "id": pa.array([1, 2, 3]),
            "path": pa.array(["in/a.jpg", None, None]).dictionary_encode(),
            "text": pa.array([["one", "two"], ["three"], None]),
            "when": pa.array([noon, None, noon], pa.timestamp("ns")),
            "price": pa.array([Decimal("1.50"), Decimal("2.00"), None]),
            "vector": pa.array([b"\0" * 8, None, None]),
            "in": pa.array([{"a": 1}, {"a": None}, None]),
            "f": pa.array([float("nan"), 0.5, None]),
        }
    )
    pq.write_table(table, path)
    manifest = Manifest(path)
    assert manifest.folders == {str(tmp_path / "in")}
    rows = list(manifest.rows())
    assert [row.key for row in rows] == ["id=1", "id=2", "id=3"]
    one, two, three = rows
    assert isinstance(one, Row) and isinstance(two, Row) and isinstance(three, BadRow)
    assert (one.texts, one.image) == (("one", "two"), str(tmp_path / "in" / "a.jpg"))
    assert meta(one) == {"when": "2024-05-01T12:00:00", "price": 1.5, "in": {"a": 1}}
    assert meta(two) == {"price": 2, "f": 0.5, "in": {}}


def test_parquet_with_the_bytes_of_pictures(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for column in (pa.array([b"x"]), pa.array([{"bytes": b"x", "path": "a"}])):
        pq.write_table(pa.table({"image": column}), tmp_path / "m.parquet")
        with pytest.raises(UsageError, match="holds the bytes of pictures"):
            Manifest(tmp_path / "m.parquet")


def test_parquet_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'mmsearch\[parquet\]'"):
        Manifest(write(tmp_path / "m.parquet", b"PAR1"))


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), st.sampled_from([",", ";", "\t"]))
def test_what_a_csv_writer_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]], delimiter: str
) -> None:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(["text", "note"])
    writer.writerows(cells)
    path = write(tmp_path_factory.mktemp("m") / "m.csv", buffer.getvalue())
    expected = [(text,) for text, note in cells if text.strip()]
    assert [row.texts for row in Manifest(path).rows() if isinstance(row, Row)] == expected


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | CELLS,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELLS, JSON), min_size=1, max_size=6), st.booleans())
def test_what_json_says_is_kept(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, object]], ascii: bool
) -> None:
    lines = [json.dumps({"text": text, "value": value}, ensure_ascii=ascii) for text, value in pairs]
    path = write(tmp_path_factory.mktemp("m") / "m.jsonl", "\n".join(lines))
    rows = [row for row in Manifest(path).rows() if isinstance(row, Row)]
    expected = [(text, value) for text, value in pairs if text.strip()]
    assert [row.texts for row in rows] == [(text,) for text, _ in expected]
    assert [meta(row).get("value") for row in rows] == [value for _, value in expected]
