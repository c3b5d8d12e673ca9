"""docs/filters.md says what is true: its filters are read, its tables hold, its mistakes are refused, its code runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from cli_kit import run_here
from store_kit import PRECISION, key

from mmsearch import Index
from mmsearch.retrieval.conditions import condition_of
from mmsearch.retrieval.encoders.fake import FakeEncoder
from mmsearch.retrieval.errors import FilterSyntaxError
from mmsearch.retrieval.filters import (
    FIELDS,
    MAX_COMPARISONS,
    MAX_DEPTH,
    MAX_VALUE,
    format_filter,
    parse_filter,
)
from mmsearch.retrieval.store import LocalStore, NewItem
from mmsearch.retrieval.types import AssetMetadata, ItemRef, Root, Stamp
from mmsearch.retrieval.uris import path_to_uri


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "filters.md").read_text("utf-8")


def _lines(page: str, kind: str) -> list[str]:
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def _table(page: str, first: str) -> list[list[str]]:
    """The rows of the table whose first column is called that."""
    _, _, after = page.partition(f"\n| {first} |")
    rows = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_documented_filters_can_be_read(page: str) -> None:
    lines = _lines(page, "filter")
    assert len(lines) >= 5
    for line in lines:
        assert parse_filter(format_filter(parse_filter(line))) == parse_filter(line)


def test_the_documented_fields_are_all_there_are(page: str) -> None:
    """With the operators that each takes, and values that it can be compared with."""
    rows = _table(page, "field")
    named = [name for fields, *_ in rows for name in re.findall(r"`([^`]+)`", fields)]
    assert named == [*FIELDS, "meta.NAME"]
    for fields, _, operators, written in rows:
        values = re.findall(r"`([^`]+)`", written) or ["2024-05-08"]
        for name in re.findall(r"`([^`]+)`", fields):
            for sign in ("=", "!=", "<", "<=", ">", ">=", "~"):
                takes = operators == "all" or sign in operators.strip("`").split()
                for value in values:
                    signed = value if value.startswith("~ ") else f"{sign} {value}"
                    if takes:
                        parse_filter(f"{name} {signed}" if value != "true" else f"{name} = true")
                    elif not value.startswith("~ "):
                        with pytest.raises(FilterSyntaxError):
                            parse_filter(f"{name} {signed}")


def test_the_documented_limits_are_those(page: str) -> None:
    for limit in (f"{MAX_COMPARISONS} comparisons", f"{MAX_DEPTH} levels", f"{MAX_VALUE:,} characters"):
        assert limit in page


def test_the_documented_filters_let_through_what_is_said(page: str, tmp_path: Path) -> None:
    pictures = _table(page, "picture")
    rows = _table(page, "filter")
    assert len(rows) > 20
    names = {Path(path.strip("`")).name for path, *_ in pictures}
    with _index(tmp_path, pictures).snapshot() as snapshot:
        for source, passes in rows:
            where = condition_of(source.strip("`"), snapshot, "image")
            statement = f"SELECT item_id FROM items JOIN assets USING (asset_id) WHERE {where.sql}"
            found = snapshot.items([row[0] for row in snapshot.select(statement, where.parameters)])
            said = set(re.findall(r"`([^`]+)`", passes))
            assert {Path(str(record.path)).name for record in found.values()} == said, source
            assert said < names


def _index(folder: Path, pictures: list[list[str]]) -> LocalStore:
    store = LocalStore.create(folder / "index", model="fake", identity="fake-1", dim=2)
    root = Path("/photos")
    with store.writer() as writer:
        writer.root(Root(root, 1))
        writer.embed("image", [key("x")], np.array([[1, 0]], np.float32), **PRECISION)
        for path, width, taken, camera, place, _ in pictures:
            name = str(Path(path.strip("`")).relative_to(root))
            latitude, longitude = map(float, place.split(",")) if place else (None, None)
            writer.add(
                ItemRef(str(root), path_to_uri(name), str(root / name), "image", Stamp(1, 0)),
                content_hash=key("x"),
                metadata=AssetMetadata(
                    width=int(width),
                    taken=taken or None,
                    camera=camera or None,
                    latitude=latitude,
                    longitude=longitude,
                ),
                items=[NewItem("image", key("x"))],
            )
        writer.commit()
        writer.tag(
            {number: dict.fromkeys(tags.split(", "), 0.5) for number, (*_, tags) in enumerate(pictures, 1) if tags}
        )
        writer.commit()
    return store


def test_the_documented_mistakes_are_refused(page: str) -> None:
    lines = _lines(page, "refused")
    assert len(lines) > 8
    for line in lines:
        with pytest.raises(FilterSyntaxError):
            parse_filter(line)


def test_the_documented_message_is_what_is_shown(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMSEARCH_INDEX", str(tmp_path / "index"))
    with Index(tmp_path / "index", model="fake") as index:
        index.add([{"text": "a dog"}])
    command, *said = re.findall(r"^    (.*)$", page, re.MULTILINE)[:5]
    assert command == '$ mmsearch query dog --where "tag = cat and wdth > 1000"'
    done = run_here(capsys, "query", "dog", "--where", "tag = cat and wdth > 1000")
    assert (done.code, done.err.splitlines()) == (2, said)


def test_the_documented_python_prints_what_is_said(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mmsearch.retrieval.encoders.models.load_encoder", lambda name, **options: FakeEncoder(name="starter")
    )
    found = re.findall(r"^```python\n(.*?)^```\n\nThey print (.*?)\. Write", page, re.MULTILINE | re.DOTALL)
    [(code, said)] = found
    exec(compile(code, "docs/filters.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"`([^`]+)`", said)
