"""The page of hits: needs nothing else, runs nothing, and names that mean harm are only text in it."""

from __future__ import annotations

import base64
import errno
import io
import os
import re
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from answer_kit import HARM, OBEYED, answer, hit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsearch.retrieval.errors import MMSearchError, UsageError
from mmsearch.retrieval.types import Answer, ClauseScore, Hit
from mmsearch.sheet import sheet, write_sheet

Draw = Callable[..., Path]

_VOID = {"meta", "img", "br", "link"}
_TAGS = set(
    "html head meta title style body header h1 bdi ul li span p main ol a div details summary i img footer".split()
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """A page read strictly: every element that opens is closed, in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def _page(found: Answer, *, title: str = "red", **how: object) -> Page:
    return Page(sheet(found, title=title, **how))  # type: ignore[arg-type]


def _is_inert(page: Page) -> None:
    """Nothing in a page runs, is fetched, or was made of what it shows."""
    for tag, attributes in page.elements:
        assert tag in _TAGS
        assert not [name for name in attributes if name.startswith("on")]
        assert set(attributes) & {"srcset", "action", "formaction", "ping", "background"} == set()
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert attributes.get("href", "file:///").startswith("file:///")
    assert {"http-equiv": "Content-Security-Policy", "content": _POLICY} in page.all("meta")
    (style,) = page.all("style")
    assert style == {}


def test_a_page_shows_what_is_known_of_a_hit(tmp_path: Path, draw: Draw) -> None:
    path = draw(tmp_path / "red.png", "red", size=(900, 300))
    twin = hit(1, draw(tmp_path / "twin.png", "red"))
    one = hit(
        3,
        path,
        score=0.1234,
        relevance=0.25,
        width=900,
        height=300,
        taken="2024-05-06T07:08:09",
        tags=("cat", "sofa"),
        others=2,
        duplicates=(twin,),
    )
    clauses = (ClauseScore("2:red", 2.0, 0.5, 0.9), ClauseScore("- sea", -1.0, 0.1, -0.1))
    page = _page(
        answer(one, clauses=clauses, query="2:red - sea", where="width > 1"), title="2:red - sea", group="folder"
    )
    for shown in (
        "2:red - sea", "+2 red", "−1 sea", "hits 3–3 · where width > 1 · hybrid", "3 red.png",
        "relevance 0.25 · score 0.1234", str(tmp_path), "900 × 300 · taken 2024-05-06 07:08:09",
        "and 2 more in this folder", "1 near-duplicate", "twin.png", "+0.900 2:red", "-0.100 - sea", "ranks: dense 3",
    ):  # fmt: skip
        assert shown in page.text
    (image,) = page.all("img")
    assert (image["alt"], image["loading"]) == ("red.png", "lazy")
    links = [unquote_to_bytes(urlsplit(link["href"]).path) for link in page.all("a")]
    assert links == [os.fsencode(path), os.fsencode(tmp_path / "twin.png")]
    picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
    assert picture.size == (int(image["width"]), int(image["height"])) == (400, 133)
    _is_inert(page)


def test_one_clause_of_words_needs_no_list_of_clauses(tmp_path: Path, draw: Draw) -> None:
    one = hit(1, draw(tmp_path / "red.png", "red"))
    assert len(_page(answer(one, clauses=(ClauseScore("red", 1.0, 0.5, 0.5),))).all("ul")) == 1


def test_pictures_of_the_query_are_shown(tmp_path: Path, draw: Draw) -> None:
    asked = draw(tmp_path / "asked + here.png", "blue")
    clause = ClauseScore(str(asked).replace(" + ", " \\+ "), 1.0, 0.5, 0.5)
    one = hit(1, draw(tmp_path / "red.png", "red"))
    assert len(_page(answer(one, clauses=(clause,))).all("img")) == 2
    asked.unlink()
    assert len(_page(answer(one, clauses=(clause,))).all("img")) == 1
    nobody = ClauseScore("~nobody-of-this-name/a.png", 1.0, 0.5, 0.5)
    assert len(_page(answer(one, clauses=(nobody, clause))).all("img")) == 1
    unread = ClauseScore('not "closed', 1.0, 0.5, 0.5)
    assert 'not "closed' in _page(answer(one, clauses=(unread, clause))).text


def test_captions_stand_below_their_pictures(tmp_path: Path, draw: Draw) -> None:
    path = draw(tmp_path / "a.jpg", "red")
    sidecar = tmp_path / "a.txt"
    hits = (
        hit(1, path, modality="text", text="of a row"),
        hit(2, sidecar, modality="text", text="of a sidecar"),
        hit(3, tmp_path / "notes.md", modality="text", text="alone", fragment="char=0-5"),
        hit(4, None, modality="text", text="nowhere"),
    )
    page = _page(answer(*hits))
    assert len(page.all("img")) == 2
    assert len(page.all("a")) == 3
    for shown in ("of a row", "of a sidecar", "alone", "char=0-5", "nowhere"):
        assert shown in page.text


def test_what_cannot_be_shown_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "pipe.jpg")
    hits = [hit(1, tmp_path / "gone.jpg"), hit(2, tmp_path / "broken.jpg"), hit(3, tmp_path / "pipe.jpg"), hit(4, None)]
    page = _page(answer(*hits))
    assert page.all("img") == []
    for shown in ("the file is gone", "not a file", "no file"):
        assert shown in page.text
    assert [len(page.all(tag)) for tag in ("ol", "a")] == [1, 3]


def test_pictures_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 100), "red").save(tmp_path / "lying.jpg", exif=exif)
    (image,) = _page(answer(hit(1, tmp_path / "lying.jpg"))).all("img")
    assert int(image["height"]) > int(image["width"])


@pytest.mark.parametrize(
    "text", [HARM, "</style></title><script>alert(1)</script>", "javascript:alert(1)", "--><img src=x>"]
)
def test_texts_that_mean_harm_are_only_text(text: str, tmp_path: Path, draw: Draw) -> None:
    folder = tmp_path / text.replace("/", "|")
    picture = draw(folder / "a.png", "red").rename(folder / f"{text.replace('/', '|')}.png")
    twin = hit(1, tmp_path / text)
    hits = (
        hit(1, picture, tags=(text,), taken=text, duplicates=(twin,)),
        hit(2, tmp_path / "a.md", modality="text", text=text, fragment=text),
        hit(3, None, uri=text, modality="text", text=text),
        hit(4, picture, modality="text", text=text),
    )
    clauses = (ClauseScore(text, 1.0, 0.5, 0.5), ClauseScore("- sea", -1.0, 0.5, 0.5))
    found = answer(*hits, clauses=clauses, query=text, where=text)
    found = Answer(found.hits, False, (text,), found.explanation)
    source = sheet(found, title=text)
    page = Page(source)
    _is_inert(page)
    assert len(page.all("img")) == 2
    assert not [char for char in OBEYED if char in source]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", source)


@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=30), lone=st.binary(max_size=5))
def test_no_text_changes_what_a_page_is_made_of(text: str, lone: bytes) -> None:
    text += os.fsdecode(lone)

    def made(text: str) -> list[str]:
        one = hit(
            1, None, uri=text.replace("/", "|"), modality="text", text=text, tags=(text,), fragment=text, taken=text
        )
        source = sheet(answer(one, query=text, where=text), title=text)
        source.encode("utf-8")
        return [tag for tag, _ in Page(source).elements]

    assert made(text) == made("plain")


def test_paths_of_any_bytes_are_linked(tmp_path: Path, draw: Draw) -> None:
    path = draw(tmp_path / "a.png", "red").rename(tmp_path / os.fsdecode(b"\xff #?%&\n.png"))
    (link,) = _page(answer(hit(1, path))).all("a")
    assert unquote_to_bytes(urlsplit(link["href"]).path) == os.fsencode(path)


def test_an_empty_answer_is_a_page_too() -> None:
    page = _page(Answer((), None, ("careful",)), title="nothing like this")
    assert "nothing like this" in page.text and "careful" in page.text and "Nothing found." in page.text


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ("n" * 250 + ".html")
    path.write_text("before")
    found = answer(hit(1, None))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(MMSearchError, match=r"cannot write .*: No space left"):
            write_sheet(found, path, title="red")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"
    write_sheet(found, path, title="red")
    assert Page(path.read_text("utf-8")).all("h1")
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("name", ["photo.jpg", "page", "a.html.txt"])
def test_a_page_is_never_written_over_a_picture(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"end the name with \.html"):
        write_sheet(answer(), tmp_path / name, title="red")
    assert (tmp_path / name).read_bytes() == b"precious"


def test_a_page_that_has_nowhere_to_go(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name a file"):
        write_sheet(answer(), tmp_path, title="red")
    with pytest.raises(MMSearchError, match="No such file or directory"):
        write_sheet(answer(), tmp_path / "missing" / "a.html", title="red")


def test_a_page_stays_small(tmp_path: Path, draw: Draw) -> None:
    noise = Image.effect_noise((1600, 1200), 60).convert("RGB")
    noise.save(tmp_path / "noise.jpg")
    found: tuple[Hit, ...] = tuple(hit(n, tmp_path / "noise.jpg") for n in range(1, 11))
    assert len(sheet(answer(*found), title="red")) < 10 * 120_000
