"""Names, captions, tags, columns and filters that mean harm are only text wherever they are shown, and in SQL."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from answer_kit import HARM, OBEYED
from cli_kit import Result

from mmsearch.retrieval.filters import Compare, OneOf, format_filter
from mmsearch.retrieval.store import LocalStore, layout

Run = Callable[..., Result]
Draw = Callable[..., Path]

_SQL = "x'); DROP TABLE items; -- \" OR 1=1"
_NAME = HARM.replace("/", "|")
_EVERYTHING = f"{_NAME} {_SQL}"


@pytest.fixture
def harmful(run: Run, tmp_path: Path, draw: Draw) -> Path:
    """A picture whose folder, name, caption, tag and row mean harm, a harmless one, and a copy of each."""
    folder = tmp_path / "pictures"
    picture = draw(tmp_path / "red.png", "red", size=(96, 64))
    place = folder / _NAME
    try:
        place.mkdir(parents=True)
        picture.rename(place / f"{_SQL}{_NAME[:40]}.png")
    except OSError:
        pytest.skip("this file system refuses such names")
    (found,) = place.iterdir()
    found.with_suffix(".txt").write_text(f"{_EVERYTHING} red", "utf-8")
    draw(folder / "plain.png", "blue", "circle", size=(300, 100))
    (folder / "copy.png").write_bytes(found.read_bytes())
    table = tmp_path / "rows.jsonl"
    table.write_text(json.dumps({"text": f"red {_EVERYTHING}", _EVERYTHING: _EVERYTHING, "image": str(found)}), "utf-8")
    assert run("index", folder, table, "--model", "fake").code == 0
    store = LocalStore.open(tmp_path / "index")
    with store.snapshot() as snapshot:
        assets = {record.asset_id for record in snapshot.all_items() if record.modality == "image"}
    with store.writer() as writer:
        writer.tag({asset_id: {_EVERYTHING: 0.5} for asset_id in assets})
        writer.commit()
    return found


def _inert(result: Result) -> None:
    assert result.code == 0, result.err
    for stream in (result.out, result.err):
        assert not [mark for mark in OBEYED if mark in stream], ascii(stream)


@pytest.mark.parametrize("modality", ["image", "text", "all"])
def test_answers_are_inert(run: Run, harmful: Path, modality: str) -> None:
    column = format_filter(Compare(f"meta.{_EVERYTHING.lower()}", "=", _EVERYTHING))
    for options in (
        [],
        ["--explain"],
        ["--json"],
        ["--json", "--explain"],
        ["--mode", "lexical", "--explain"],
        ["--dedup", "--group", "folder", "--explain"],
        ["--where", column, "--explain"],
        ["--where", f"not {format_filter(OneOf('camera', (_EVERYTHING, _SQL)))}", "--explain"],
        ["--minus", _NAME.replace('"', ""), "--explain"],
    ):
        result = run("query", "red", "--modality", modality, *options)
        _inert(result)
        assert result.out
        if "--json" in options:  # what is said is still what is there
            assert os.fspath(harmful) in [hit["path"] for hit in result.json]
            assert all(hit["tags"] == [_EVERYTHING] for hit in result.json if hit["modality"] == "image")
            texts = [hit["text"] for hit in result.json if hit["modality"] == "text"]
            assert any(_EVERYTHING in text for text in texts) or modality == "image"


@pytest.mark.parametrize("mode", ["dense", "lexical", "hybrid"])
def test_what_is_asked_for_is_inert(run: Run, harmful: Path, mode: str) -> None:
    for words in (_NAME.replace('"', ""), _SQL.replace('"', ""), '"items; --" red', "red OR 1 NEAR(a b) * ^ col:x"):
        _inert(run("query", "--mode", mode, "--explain", "--", words))


def test_other_commands_are_inert(run: Run, harmful: Path, tmp_path: Path) -> None:
    for command in (
        ["tags"],
        ["tags", "--json"],
        ["list"],
        ["list", "--json"],
        ["info"],
        ["dupes"],
        ["dupes", "--json"],
        ["dupes", "--where", format_filter(Compare("folder", "~", f"*{_EVERYTHING}*"))],
        ["tag", "--clear", "--where", format_filter(Compare("tag", "=", _EVERYTHING))],
        ["query", "red", "--copy-to", str(tmp_path / "copies")],
        ["remove", os.fspath(harmful)],
    ):
        _inert(run(*command))


class _Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.handlers: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        for name, value in attrs:
            if name.startswith("on"):
                self.handlers.add(name)
            if name in ("href", "src"):
                self.links.add(str(value).partition(":")[0])


def test_pages_are_inert(run: Run, harmful: Path, tmp_path: Path) -> None:
    out = tmp_path / "hits.html"
    where = format_filter(Compare("tag", "=", _EVERYTHING))
    _inert(run("query", "red", "--minus", _NAME.replace('"', ""), "--modality", "all", "--where", where, "--html", out))
    text = out.read_text("utf-8")
    assert not [mark for mark in OBEYED if mark in text]
    page = _Page()
    page.feed(text)
    assert not page.elements & {"script", "iframe", "object", "b"}
    assert not page.handlers
    assert page.links <= {"data", "file"}


_MISTAKES = (
    f"{_EVERYTHING} = 1",
    "\x1b[31m = 1",
    "wi\u202edth > 1",
    "width > \x9b5m",
    "taken = '\x1b]0;title\x07'",
    "taken in 2024-05..\x1b[31m",
    "size > '\u2028'",
    "modality = 'text\x1b'",
    "tag = 'a\x1b",
    "tag = a \x1b",
    "tag \x1b a",
    "tag = \udcff",
    "tag = \0",
    "near(\x1b, 1, 1km)",
    "width <script>alert(1)</script> 3",
    "1=1; DROP TABLE items",
)


def test_mistakes_are_shown_inert(run: Run, harmful: Path) -> None:
    for where in _MISTAKES:
        for command in (["query", "red"], ["dupes"], ["tag", "red"], ["tag", "--clear"]):
            result = run(*command, "--where", where)
            assert result.code == 2, (command, where)
            assert "for example: " in result.err and "^" in result.err
            assert not [mark for mark in OBEYED if mark in result.err], ascii(result.err)


def test_filters_leave_the_catalog_as_it_is(run: Run, harmful: Path, tmp_path: Path) -> None:
    before = _dump(tmp_path / "index")
    names = ["path", "folder", "ext", "camera", "tag", f"meta.{_SQL}", f"meta.{_NAME}", 'meta.a"b', "meta.a') --"]
    for name in names:
        for value in (_SQL, _NAME, "'; DELETE FROM assets; --", "*' OR '1'='1", "]'; --", "%", "?1", ":a"):
            for sign in ("=", "!=", "~"):
                written = format_filter(Compare(name, sign, value))  # type: ignore[arg-type]
                assert run("query", "red", "--where", f"{written} and {written}").code == 0
    assert _dump(tmp_path / "index") == before


def _dump(index: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"file:{index / layout.CATALOG}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())
